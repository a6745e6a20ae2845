//! Responses to prompts: the passes that generate them, and those of models that read them afterwards.

use super::passes::{Passed, Passes};

/// Prompts, and the maximum number of tokens of a response.
#[derive(Clone, Debug)]
pub(crate) struct Responses {
    /// Tokens of the prompts.
    prompts: Vec<u64>,
    new_tokens: u64,
    order: Order,
}

/// The order in which prompts are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The given order.
    Given,
    /// Any order: arbitrary prompts can be in the same pass, also the longest ones. Each can occur several times.
    Shuffled,
}

impl Responses {
    /// One response to each prompt.
    pub(crate) fn new<'a>(
        prompts: impl IntoIterator<Item = &'a Vec<u32>>,
        new_tokens: usize,
        order: Order,
    ) -> Responses {
        let mut prompts: Vec<u64> = prompts.into_iter().map(|tokens| tokens.len() as u64).collect();
        if order == Order::Shuffled {
            prompts.sort_unstable_by(|a, b| b.cmp(a));
        }
        Responses { prompts, new_tokens: new_tokens as u64, order }
    }

    /// Adds their generation with `slots` sequences at once, `distinct` of which start with different prompts.
    pub(crate) fn add_generation(&self, model: Passed<'_>, slots: usize, distinct: usize, passes: &Passes) {
        // Sequences that share a prompt also need logits for their first token.
        let reading = self.reading(distinct);
        let steps = vec![1; slots.saturating_sub(reading.len())];
        passes.generate(model, &[reading, steps].concat(), slots, self.longest());
    }

    /// Length of the longest prompt with its response.
    pub(crate) fn longest(&self) -> u64 {
        self.prompts.iter().max().copied().unwrap_or(0) + self.new_tokens
    }

    /// Bytes of the finished responses, `each` per prompt: prompts, tokens and log-probabilities.
    pub(crate) fn kept(&self, each: u64) -> u64 {
        let tokens: u64 = self.prompts.iter().map(|prompt| 4 * prompt + 8 * self.new_tokens).sum();
        tokens.saturating_add(128 * self.prompts.len() as u64).saturating_mul(each)
    }

    /// Sequence lengths of the largest forward pass over prompts with responses, `batch` at a time, split by a `budget`
    /// of tokens.
    pub(crate) fn scoring(&self, batch: usize, budget: u64) -> Vec<u64> {
        let whole: Vec<u64> = self.repeated(batch).map(|prompt| prompt + self.new_tokens).collect();
        let passes = whole.chunks(batch.max(1)).flat_map(|batch| within(batch, budget));
        passes.max_by_key(|pass| pass.iter().sum::<u64>()).map(<[u64]>::to_vec).unwrap_or_default()
    }

    /// Sequence lengths of the largest pass over this many prompts with responses.
    pub(crate) fn learning(&self, together: usize) -> Vec<u64> {
        self.reading(together).iter().map(|prompt| prompt + self.new_tokens).collect()
    }

    /// The `count` adjacent prompts with the most tokens.
    pub(crate) fn reading(&self, count: usize) -> Vec<u64> {
        let prompts: Vec<u64> = self.repeated(count).collect();
        let windows = prompts.windows(count.clamp(1, prompts.len().max(1)));
        windows.max_by_key(|prompts| prompts.iter().sum::<u64>()).map(<[u64]>::to_vec).unwrap_or_default()
    }

    /// All prompts in the relevant order; if each can occur several times, the first `count` of the repeated prompts.
    fn repeated(&self, count: usize) -> impl Iterator<Item = u64> {
        let most = match self.order {
            Order::Given => self.prompts.len(),
            Order::Shuffled if self.prompts.is_empty() => 0,
            Order::Shuffled => count,
        };
        let times = most.div_ceil(self.prompts.len().max(1));
        self.prompts.iter().flat_map(move |&prompt| std::iter::repeat_n(prompt, times)).take(most)
    }
}

/// Groups of neighbours that fit into `budget` tokens; a longer one is alone.
fn within(lengths: &[u64], budget: u64) -> Vec<&[u64]> {
    let (mut parts, mut start, mut tokens) = (Vec::new(), 0, 0);
    for (at, length) in lengths.iter().enumerate() {
        if at > start && tokens + length > budget {
            parts.push(&lengths[start..at]);
            (start, tokens) = (at, 0);
        }
        tokens += length;
    }
    parts.push(&lengths[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn responses(order: Order) -> Responses {
        Responses::new(&[vec![0; 6], vec![0; 22], vec![0; 12]], 10, order)
    }

    #[test]
    fn passes_in_the_given_order_are_those_of_the_run() {
        let given = responses(Order::Given);
        assert_eq!(given.reading(2), [22, 12], "neighbours");
        assert_eq!(given.reading(9), [6, 22, 12]);
        // 16 + 32 + 22: all fit into 70; within 48, two and one; within 10, each is alone.
        assert_eq!(given.scoring(3, 70), [16, 32, 22]);
        assert_eq!(given.scoring(3, 48), [16, 32]);
        assert_eq!(given.scoring(3, 10), [32]);
        assert_eq!(given.scoring(2, 70), [16, 32], "two at a time");
        assert!(Responses::new(&[], 10, Order::Given).scoring(3, 70).is_empty());
    }

    #[test]
    fn the_longest_of_shuffled_prompts_may_meet_and_each_can_come_several_times() {
        let shuffled = responses(Order::Shuffled);
        assert_eq!(shuffled.learning(2), [32, 22]);
        assert_eq!(shuffled.learning(4), [32, 32, 22, 22], "the third comes once at least");
        assert_eq!(shuffled.scoring(3, 60), [32, 22]);
        assert!(Responses::new(&[], 10, Order::Shuffled).learning(3).is_empty());
    }
}
