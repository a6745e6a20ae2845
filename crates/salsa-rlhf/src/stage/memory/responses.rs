//! Responses to prompts: what generating them takes, and what models take that read them afterwards.
use salsa_engine::{Dtype, ModelSpec};

use super::{Arrays, shape};

/// Prompts, and the most tokens of a response to each.
#[derive(Clone, Debug)]
pub struct Responses {
    /// Tokens of the prompts, in their order.
    prompts: Vec<u64>,
    new_tokens: u64,
}

impl Responses {
    /// One to each prompt.
    pub fn new<'a>(prompts: impl IntoIterator<Item = &'a Vec<u32>>, new_tokens: usize) -> Responses {
        let prompts = prompts.into_iter().map(|tokens| tokens.len() as u64).collect();
        Responses { prompts, new_tokens: new_tokens as u64 }
    }

    /// The sequences that are generated at once.
    pub fn generation(&self, spec: &ModelSpec, dtype: Dtype, slots: usize) -> u64 {
        shape::generation(spec, dtype, slots as u64, self.longest())
    }

    /// The pass over the prompts of so many sequences, with which their generation begins.
    pub fn reading(&self, slots: usize) -> Arrays {
        let mut prompts = self.prompts.clone();
        prompts.sort_unstable_by(|a, b| b.cmp(a));
        Arrays::of([prompts.iter().cycle().take(if prompts.is_empty() { 0 } else { slots }).sum()])
    }

    /// The passes over prompts with their responses, `count` of them, as many together as fit into `budget` tokens.
    pub fn scoring(&self, count: usize, budget: u64) -> Arrays {
        self.passes(count, |pass, used, next| pass > 0 && used + next > budget)
    }

    /// The passes over prompts with their responses, so many of them together, `count` in all.
    pub fn learning(&self, count: usize, together: usize) -> Arrays {
        self.passes(count, |pass, _, _| pass == together)
    }

    fn passes(&self, count: usize, full: impl Fn(usize, u64, u64) -> bool) -> Arrays {
        let (mut arrays, mut pass, mut used) = (Arrays::default(), 0, 0);
        for prompt in self.prompts.iter().cycle().take(if self.prompts.is_empty() { 0 } else { count }) {
            let next = prompt + self.new_tokens;
            if full(pass, used, next) {
                arrays.pass(used);
                (pass, used) = (0, 0);
            }
            (pass, used) = (pass + 1, used + next);
        }
        arrays.pass(used);
        arrays
    }

    fn longest(&self) -> u64 {
        self.prompts.iter().max().copied().unwrap_or(0) + self.new_tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_are_those_of_the_run() {
        let prompts = [vec![0; 6], vec![0; 22], vec![0; 12]];
        let responses = Responses::new(&prompts, 10);
        assert_eq!(responses.longest(), 32);
        // The longest prompts; where there are fewer, each comes several times.
        assert_eq!([0, 1, 2, 4].map(|slots| responses.reading(slots).tokens()), [0, 22, 36, 64]);
        // 16 + 32 + 22: all fit into 70, within 48 two and one, within 10 each is alone.
        let scoring = |budget| responses.scoring(3, budget).tokens();
        assert_eq!(scoring(70), 72, "70, in steps of 8");
        assert_eq!(scoring(48), 48 + 22);
        assert_eq!(scoring(10), 16 + 32, "22 takes what 32 left");
        // Two together: 16 + 32; 22 + 16 and 32 alone, for which the first will do. One at a time: 16, 32.
        assert_eq!([2, 1].map(|together| responses.learning(5, together).tokens()), [48, 16 + 32]);
        assert_eq!(Responses::new(&[], 10).scoring(3, 70).tokens(), 0);
    }
}
