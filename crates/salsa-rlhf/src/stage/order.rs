//! Which examples make up each optimizer step: a pure function of seed, epoch and lengths.
use salsa_engine::random::Random;

/// Every optimizer step of a run, in order.
///
/// The order of an epoch is a shuffle keyed by (seed, epoch). It depends on nothing that happened before, so a resumed
/// run continues exactly where it stopped.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    steps: Vec<Step>,
}

/// The examples of one optimizer step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Example numbers of each forward and backward pass.
    pub micro_batches: Vec<Vec<usize>>,
    /// Passes over the data when this step is done, in epochs.
    pub epoch: f64,
}

/// How examples are put together into one forward and backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batching {
    /// This many examples, whatever their lengths.
    Examples(usize),
    /// As many examples as fit into this many tokens (`packing`). A longer example makes a pass of its own.
    Tokens(usize),
}

/// How long a run lasts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Duration {
    /// Passes over the data; a fraction of one is rounded up to whole steps.
    Epochs(f64),
    /// Optimizer steps.
    Steps(u64),
}

impl Plan {
    /// Plans a run over examples of the given lengths (in tokens), `accumulation` passes to a step.
    ///
    /// The last step of an epoch may be smaller than the others; no example is dropped. Without examples, or for zero
    /// steps, the plan is empty.
    pub fn new(lengths: &[usize], batching: Batching, accumulation: usize, duration: Duration, seed: u64) -> Plan {
        let mut steps = Vec::new();
        let mut epoch = 0;
        while !lengths.is_empty() {
            let wanted = match duration {
                Duration::Epochs(epochs) if epochs <= epoch as f64 => 0.0,
                Duration::Epochs(epochs) => (epochs - epoch as f64).min(1.0),
                Duration::Steps(total) if steps.len() as u64 >= total => 0.0,
                Duration::Steps(_) => 1.0,
            };
            if wanted == 0.0 {
                break;
            }
            let passes = passes_of_epoch(lengths, batching, seed, epoch);
            let groups: Vec<&[Vec<usize>]> = passes.chunks(accumulation.max(1)).collect();
            let kept = (wanted * groups.len() as f64).ceil() as usize;
            for (i, group) in groups.iter().take(kept).enumerate() {
                let epoch = epoch as f64 + (i + 1) as f64 / groups.len() as f64;
                steps.push(Step { micro_batches: group.to_vec(), epoch });
            }
            epoch += 1;
        }
        if let Duration::Steps(total) = duration {
            steps.truncate(total as usize);
        }
        Plan { steps }
    }

    /// All steps.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }
}

/// Example numbers of each pass of one epoch.
fn passes_of_epoch(lengths: &[usize], batching: Batching, seed: u64, epoch: u64) -> Vec<Vec<usize>> {
    let mut random = Random::new(seed, ORDER_STREAM + epoch);
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    random.shuffle(&mut order);
    match batching {
        Batching::Examples(count) => order.chunks(count.max(1)).map(<[usize]>::to_vec).collect(),
        Batching::Tokens(budget) => {
            let mut passes = Vec::new();
            for window in order.chunks(PACKING_WINDOW) {
                passes.extend(first_fit_decreasing(window, lengths, budget));
            }
            random.shuffle(&mut passes); // else every window would start with its longest examples
            passes
        }
    }
}

/// Packs `examples` into bins of at most `budget` tokens: longest first, each into the first bin with room.
fn first_fit_decreasing(examples: &[usize], lengths: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let mut sorted = examples.to_vec();
    sorted.sort_by_key(|&example| std::cmp::Reverse(lengths[example]));
    let mut bins: Vec<(usize, Vec<usize>)> = Vec::new();
    for example in sorted {
        let length = lengths[example];
        match bins.iter_mut().find(|(used, _)| used + length <= budget) {
            Some((used, bin)) => {
                *used += length;
                bin.push(example);
            }
            None => bins.push((length, vec![example])),
        }
    }
    bins.into_iter().map(|(_, bin)| bin).collect()
}

/// Examples among which packing chooses: large enough to fill bins well, small enough to keep the shuffle a shuffle.
const PACKING_WINDOW: usize = 1024;

/// Random stream of epoch 0's order ("ORDER" in ASCII, then room for 65536 epochs).
const ORDER_STREAM: u64 = 0x004f_5244_4552_0000;

#[cfg(test)]
mod tests {
    use super::*;

    fn examples(plan: &Plan) -> Vec<usize> {
        plan.steps().iter().flat_map(|step| step.micro_batches.concat()).collect()
    }

    #[test]
    fn an_epoch_visits_every_example_once() {
        for batching in [Batching::Examples(3), Batching::Tokens(7)] {
            let lengths = [1, 5, 2, 7, 3, 3, 1, 4, 6, 2, 9];
            let plan = Plan::new(&lengths, batching, 2, Duration::Epochs(1.0), 1);
            let mut seen = examples(&plan);
            seen.sort_unstable();
            assert_eq!(seen, (0..11).collect::<Vec<_>>(), "{batching:?}");
            assert_eq!(plan.steps().last().expect("steps").epoch, 1.0);
        }
    }

    #[test]
    fn steps_per_epoch_round_up() {
        // 10 examples, 2 per pass, 2 passes per step: 3 steps, the last one of a single pass.
        let plan = Plan::new(&[1; 10], Batching::Examples(2), 2, Duration::Epochs(2.0), 1);
        let passes: Vec<usize> = plan.steps().iter().map(|step| step.micro_batches.len()).collect();
        assert_eq!(passes, [2, 2, 1, 2, 2, 1]);
        assert_eq!(Plan::new(&[1; 10], Batching::Examples(2), 2, Duration::Epochs(1.5), 1).steps().len(), 5);
        assert_eq!(Plan::new(&[1; 10], Batching::Examples(2), 2, Duration::Steps(4), 1).steps().len(), 4);
        assert_eq!(Plan::new(&[1; 10], Batching::Examples(2), 2, Duration::Steps(0), 1).steps().len(), 0);
        assert_eq!(Plan::new(&[], Batching::Examples(2), 2, Duration::Steps(4), 1).steps().len(), 0);
    }

    #[test]
    fn a_longer_run_starts_like_a_shorter_one_and_seeds_differ() {
        let lengths = [3; 40];
        let short = Plan::new(&lengths, Batching::Examples(4), 1, Duration::Epochs(1.0), 7);
        let long = Plan::new(&lengths, Batching::Examples(4), 1, Duration::Epochs(3.0), 7);
        assert_eq!(long.steps()[..10], short.steps()[..]);
        assert_ne!(examples(&long)[..40], examples(&long)[40..80], "epochs are shuffled differently");
        let other = Plan::new(&lengths, Batching::Examples(4), 1, Duration::Epochs(1.0), 8);
        assert_ne!(examples(&other), examples(&short), "seeds shuffle differently");
    }

    #[test]
    fn packing_fills_the_budget() {
        // 6 + 2, 5 + 3, 4 + 4 fill three bins of 8; the 9 has a bin of its own.
        let bins = first_fit_decreasing(&[0, 1, 2, 3, 4, 5, 6], &[2, 4, 6, 3, 5, 4, 9], 8);
        assert_eq!(bins, [vec![6], vec![2, 0], vec![4, 3], vec![1, 5]]);
    }
}
