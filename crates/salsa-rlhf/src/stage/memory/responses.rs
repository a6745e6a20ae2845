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

    /// So many responses to each prompt, finished and kept: their prompts, tokens and log-probabilities.
    pub fn kept(&self, each: u64) -> u64 {
        let tokens: u64 = self.prompts.iter().map(|prompt| 4 * prompt + 8 * self.new_tokens).sum();
        tokens.saturating_add(128 * self.prompts.len() as u64).saturating_mul(each)
    }

    /// The pass over the prompts of so many sequences, with which their generation begins.
    pub fn reading(&self, slots: usize) -> Arrays {
        Arrays::of([self.longest_prompts(slots)])
    }

    /// The passes over prompts with their responses, `batch` at a time and `count` in all, as many together as fit into
    /// `budget` tokens.
    pub fn scoring(&self, count: usize, batch: usize, budget: u64) -> Arrays {
        self.passes(count, |at, _, tokens| at.is_multiple_of(batch) || tokens > budget)
    }

    /// The passes over prompts with their responses, so many of them together, `count` in all. Which ones meet is a matter
    /// of chance; the longest ones may.
    pub fn learning(&self, count: usize, together: usize) -> Arrays {
        let mut arrays = self.passes(count, |_, pass, _| pass == together);
        arrays.pass(self.longest_prompts(together) + together as u64 * self.new_tokens);
        arrays
    }

    /// `starts(sequence, sequences of the pass so far, tokens with this one)`: whether a new pass begins.
    fn passes(&self, count: usize, starts: impl Fn(usize, usize, u64) -> bool) -> Arrays {
        let (mut arrays, mut pass, mut tokens) = (Arrays::default(), 0, 0);
        // The sizes of passes come again and again.
        let count = if self.prompts.is_empty() { 0 } else { count.min(LOOKED_AT) };
        for (at, prompt) in self.prompts.iter().cycle().take(count).enumerate() {
            let next = prompt + self.new_tokens;
            if pass > 0 && starts(at, pass, tokens + next) {
                arrays.pass(tokens);
                (pass, tokens) = (0, 0);
            }
            (pass, tokens) = (pass + 1, tokens + next);
        }
        arrays.pass(tokens);
        arrays
    }

    /// Tokens of so many prompts, the longest ones; where there are fewer, each comes several times.
    fn longest_prompts(&self, count: usize) -> u64 {
        let mut prompts = self.prompts.clone();
        prompts.sort_unstable_by(|a, b| b.cmp(a));
        let all: u64 = prompts.iter().sum();
        let Some(times) = count.checked_div(prompts.len()) else { return 0 };
        all * times as u64 + prompts.iter().take(count % prompts.len()).sum::<u64>()
    }

    fn longest(&self) -> u64 {
        self.prompts.iter().max().copied().unwrap_or(0) + self.new_tokens
    }
}

/// Sequences whose passes are looked at; a larger number of them does not give larger passes.
const LOOKED_AT: usize = 4_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_are_those_of_the_run() {
        let prompts = [vec![0; 6], vec![0; 22], vec![0; 12]];
        let responses = Responses::new(&prompts, 10);
        assert_eq!(responses.longest(), 32);
        // The longest prompts; where there are fewer, each comes several times.
        assert_eq!([0, 1, 2, 4].map(|slots| responses.reading(slots).rounded()), [0, 22, 36, 64]);
        // 16 + 32 + 22: all fit into 70, within 48 two and one, within 10 each is alone.
        let scoring = |budget| responses.scoring(3, 3, budget).rounded();
        assert_eq!(scoring(70), 72, "70, in steps of 8");
        assert_eq!(scoring(48), 48 + 22);
        assert_eq!(scoring(10), 16 + 32, "22 takes what 32 left");
        // Two at a time: 16 + 32; 22 + 16 and 32 alone, for which the first will do.
        assert_eq!(responses.scoring(5, 2, 70).rounded(), 48);
        // The same, and 32 + 22 might meet.
        assert_eq!(responses.learning(5, 2).rounded(), 48 + 56);
        assert_eq!(responses.learning(5, 1).rounded(), 16 + 32);
        assert_eq!(Responses::new(&[], 10).scoring(3, 3, 70).rounded(), 0);
    }
}
