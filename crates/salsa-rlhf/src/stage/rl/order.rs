//! The prompts of an update, and the responses of a minibatch: determined before the run starts.
use salsa_engine::random::Random;

/// Random streams of prompts and minibatches ("PROMPT" and "MINI" in ASCII, then room for a counter).
const PROMPT_STREAM: u64 = 0x5052_4f4d_5000_0000;
const MINIBATCH_STREAM: u64 = 0x4d49_4e49_0000_0000;

/// What determines the order of prompts and responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// The seed of the run.
    pub seed: u64,
    /// Responses per update; a multiple of `group`.
    pub batch: usize,
    /// Responses per prompt, next to each other.
    pub group: usize,
    /// Passes over the responses of an update.
    pub epochs: u64,
    /// Optimizer steps per pass.
    pub minibatches: usize,
    /// What a minibatch consists of.
    pub learned: Learned,
}

/// What a minibatch consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Learned {
    /// Responses.
    Responses,
    /// Pairs of responses to one prompt.
    Pairs {
        /// Pairs per prompt.
        per_prompt: usize,
    },
}

impl Order {
    /// The prompts of an update, counted from 0, each as often as it has responses.
    pub(super) fn prompts(&self, prompts: usize, update: u64) -> Vec<usize> {
        let asked = (self.batch / self.group) as u64;
        self.prompts_from(prompts, update * asked, asked)
    }

    /// The prompts from the `first` one of the run on, `asked` of them, each as often as it has responses: every pass
    /// over the data visits each prompt once, in a new order.
    pub(super) fn prompts_from(&self, prompts: usize, first: u64, asked: u64) -> Vec<usize> {
        let count = prompts as u64;
        let mut chosen = Vec::new();
        for pass in first / count..=(first + asked - 1) / count {
            let mut order: Vec<usize> = (0..prompts).collect();
            Random::new(self.seed, PROMPT_STREAM + pass).shuffle(&mut order);
            let from = first.max(pass * count) - pass * count;
            let to = (first + asked).min((pass + 1) * count) - pass * count;
            chosen.extend_from_slice(&order[from as usize..to as usize]);
        }
        chosen.into_iter().flat_map(|prompt| std::iter::repeat_n(prompt, self.group)).collect()
    }

    /// The number of responses or pairs of an update.
    pub(super) fn count(&self) -> usize {
        match self.learned {
            Learned::Responses => self.batch,
            Learned::Pairs { per_prompt } => self.batch / self.group * per_prompt,
        }
    }

    /// The responses whose prompts are those of a response or pair of an update.
    pub(super) fn prompts_of(&self, at: usize) -> impl Iterator<Item = usize> + use<> {
        let (response, count) = match self.learned {
            Learned::Responses => (at, 1),
            Learned::Pairs { per_prompt } => (at / per_prompt * self.group, 2),
        };
        std::iter::repeat_n(response, count)
    }

    /// The minibatches of a pass over the responses or pairs of an update, in a new order each time. Within a minibatch
    /// those of one prompt are neighbours: their prompt is then computed once.
    pub(super) fn minibatches(&self, update: u64, epoch: u64) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..self.count()).collect();
        Random::new(self.seed, MINIBATCH_STREAM + update * self.epochs + epoch).shuffle(&mut order);
        let bound = |part: usize| part * order.len() / self.minibatches;
        let mut parts: Vec<_> =
            (0..self.minibatches).map(|part| order[bound(part)..bound(part + 1)].to_vec()).collect();
        if self.group > 1 {
            parts.iter_mut().for_each(|part| part.sort_unstable());
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_visits_every_prompt_once_and_groups_stay_together() {
        let order = Order { seed: 3, batch: 6, group: 2, epochs: 3, minibatches: 2, learned: Learned::Responses };
        // 3 prompts per update, 5 prompts: 5 updates are 3 passes.
        let asked: Vec<usize> = (0..5).flat_map(|update| order.prompts(5, update)).collect();
        assert!(asked.chunks(2).all(|pair| pair[0] == pair[1]), "{asked:?}");
        let visits: Vec<usize> = asked.iter().step_by(2).copied().collect();
        for pass in visits.chunks(5) {
            let mut pass = pass.to_vec();
            pass.sort_unstable();
            assert_eq!(pass, [0, 1, 2, 3, 4]);
        }
        assert!(order.minibatches(4, 0).iter().all(|part| part.is_sorted()));
        let mut learned = order.minibatches(4, 0).concat();
        assert!((1..3).any(|epoch| learned != order.minibatches(4, epoch).concat()));
        learned.sort_unstable();
        assert_eq!(learned, [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn pairs_are_visited_once_and_know_their_prompt() {
        let learned = Learned::Pairs { per_prompt: 2 };
        let order = Order { seed: 3, batch: 12, group: 4, epochs: 1, minibatches: 2, learned };
        let mut visited = order.minibatches(0, 0).concat();
        visited.sort_unstable();
        assert_eq!(visited, [0, 1, 2, 3, 4, 5]);
        let prompts = order.prompts(7, 0);
        for pair in 0..6 {
            let of: Vec<usize> = order.prompts_of(pair).map(|response| prompts[response]).collect();
            assert_eq!(of, [prompts[4 * (pair / 2)]; 2]);
        }
    }
}
