//! The examples of each optimizer step: a pure function of seed, epoch and lengths.
use salsa_engine::random::Random;

use crate::stage::ranks::{part, parts_by_length};

/// Every optimizer step of a run, in order. Steps are computed on demand, not stored.
///
/// The order of an epoch is a shuffle keyed by (seed, epoch). It depends on no earlier state, so a resumed run
/// continues exactly where it stopped.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan<'a> {
    lengths: &'a [usize],
    batching: Batching,
    accumulation: usize,
    duration: Duration,
    seed: u64,
    steps: u64,
}

/// The examples of one optimizer step.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    /// Example indices of each forward and backward pass.
    pub micro_batches: Vec<Vec<usize>>,
    /// Epochs completed after this step.
    pub epoch: f64,
}

impl Step {
    /// The passes of each gradient unit. One unit has the passes of the step; several are cut from its examples in
    /// order, by number, or where passes have a number of tokens by that.
    pub(super) fn units(&self, units: usize, batching: Batching, lengths: &[usize]) -> Vec<Vec<Vec<usize>>> {
        if units == 1 {
            return vec![self.micro_batches.clone()];
        }
        let examples = self.micro_batches.concat();
        match batching {
            Batching::Examples(count) => (0..units)
                .map(|unit| part(&examples, unit, units).chunks(count.max(1)).map(<[usize]>::to_vec).collect())
                .collect(),
            Batching::Tokens(budget) => {
                let of_examples: Vec<usize> = examples.iter().map(|&example| lengths[example]).collect();
                let parts = parts_by_length(&of_examples, units).into_iter();
                parts.map(|unit| filled(&examples[unit], lengths, budget)).collect()
            }
        }
    }
}

/// Passes of adjacent examples with at most `budget` tokens, or one example.
fn filled(examples: &[usize], lengths: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let (mut passes, mut used) = (Vec::<Vec<usize>>::new(), 0);
    for &example in examples {
        match passes.last_mut() {
            Some(pass) if used + lengths[example] <= budget => pass.push(example),
            _ => {
                passes.push(vec![example]);
                used = 0;
            }
        }
        used += lengths[example];
    }
    passes
}

/// How examples are grouped into one forward and backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Batching {
    /// This many examples, regardless of their lengths.
    Examples(usize),
    /// As many examples as fit into this many tokens (`packing`). A longer example gets a pass to itself.
    Tokens(usize),
}

/// Length of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Duration {
    /// Passes over the data; a fraction of one is rounded up to whole steps.
    Epochs(f64),
    /// Optimizer steps.
    Steps(u64),
}

impl<'a> Plan<'a> {
    /// Plans a run over examples of the given lengths (in tokens), with `accumulation` passes per step. Returns `None`
    /// if `stop`, called after each epoch whose passes are counted, returns true.
    ///
    /// The last step of an epoch may be smaller than the others; no example is dropped. Without examples, or for zero
    /// steps, the plan is empty.
    pub(super) fn new(
        lengths: &'a [usize],
        batching: Batching,
        accumulation: usize,
        duration: Duration,
        seed: u64,
        stop: &dyn Fn() -> bool,
    ) -> Option<Plan<'a>> {
        let mut plan = Plan { lengths, batching, accumulation: accumulation.max(1), duration, seed, steps: 0 };
        if lengths.is_empty() {
            return Some(plan);
        }
        plan.steps = match (duration, batching) {
            (Duration::Steps(steps), _) => steps,
            // All epochs have the same number of steps.
            (Duration::Epochs(epochs), Batching::Examples(_)) => {
                let whole = epochs.max(0.0).floor();
                let of_epoch = plan.steps_of_epoch(0);
                (whole as u64).saturating_mul(of_epoch as u64) + plan.kept(whole as u64, of_epoch) as u64
            }
            (Duration::Epochs(_), Batching::Tokens(_)) => plan.counted(stop)?,
        };
        Some(plan)
    }

    /// The number of steps.
    pub(super) fn len(&self) -> u64 {
        self.steps
    }

    /// Whether there are no steps.
    pub(super) fn is_empty(&self) -> bool {
        self.steps == 0
    }

    /// The steps from `first` on, counted from 0.
    pub(super) fn from(&self, first: u64) -> Steps<'_> {
        let mut steps = Steps { plan: self, epoch: 0, passes: Vec::new(), of_epoch: 0, next: 0, at: 0 };
        if self.is_empty() {
            return steps;
        }
        if let Batching::Examples(_) = self.batching {
            // Skip to the epoch; only the last one can be partial.
            let of_epoch = self.steps_of_epoch(0) as u64;
            steps.epoch = first / of_epoch;
            steps.at = steps.epoch * of_epoch;
        }
        steps.begin();
        while first - steps.at >= (steps.of_epoch - steps.next) as u64 && first < self.steps {
            steps.at += steps.of_epoch as u64;
            steps.epoch += 1;
            steps.begin();
        }
        steps.next = (first - steps.at) as usize;
        steps.at = first;
        steps
    }

    /// Tokens of all steps, for a progress bar: exact if the run ends with an epoch, otherwise estimated by the mean
    /// length.
    pub(super) fn tokens(&self) -> u64 {
        let Some(per_step) = self.tokens_per_epoch().checked_div(self.steps_of_epoch(0) as u64) else { return 0 };
        match self.duration {
            Duration::Epochs(epochs) if epochs.fract() == 0.0 => self.tokens_per_epoch().saturating_mul(epochs as u64),
            _ => self.steps.saturating_mul(per_step),
        }
    }

    fn tokens_per_epoch(&self) -> u64 {
        self.lengths.iter().map(|&length| length as u64).sum()
    }

    /// Steps of a whole epoch.
    fn steps_of_epoch(&self, epoch: u64) -> usize {
        let passes = match self.batching {
            Batching::Examples(count) => self.lengths.len().div_ceil(count.max(1)),
            Batching::Tokens(_) => passes_of_epoch(self.lengths, self.batching, self.seed, epoch).len(),
        };
        passes.div_ceil(self.accumulation)
    }

    /// How many steps of this epoch belong to the run, according to its duration in epochs.
    fn kept(&self, epoch: u64, of_epoch: usize) -> usize {
        match self.duration {
            Duration::Steps(_) => of_epoch,
            Duration::Epochs(epochs) if epochs <= epoch as f64 => 0,
            Duration::Epochs(epochs) => ((epochs - epoch as f64).min(1.0) * of_epoch as f64).ceil() as usize,
        }
    }

    /// The number of steps of all epochs, counted one by one: with packing it depends on the order of an epoch.
    fn counted(&self, stop: &dyn Fn() -> bool) -> Option<u64> {
        let mut steps = 0;
        for epoch in 0.. {
            if self.kept(epoch, 1) == 0 {
                break;
            }
            steps += self.kept(epoch, self.steps_of_epoch(epoch)) as u64;
            if stop() {
                return None;
            }
        }
        Some(steps)
    }
}

/// Iterator over the steps of a plan.
pub(super) struct Steps<'a> {
    plan: &'a Plan<'a>,
    epoch: u64,
    /// The passes of the current epoch.
    passes: Vec<Vec<usize>>,
    /// Number of steps of the current epoch if it were complete.
    of_epoch: usize,
    /// Index of the next step in the current epoch.
    next: usize,
    /// Index of the next step in the run.
    at: u64,
}

impl Steps<'_> {
    fn begin(&mut self) {
        let Plan { lengths, batching, accumulation, seed, .. } = *self.plan;
        self.passes = passes_of_epoch(lengths, batching, seed, self.epoch);
        self.of_epoch = self.passes.len().div_ceil(accumulation);
        self.next = 0;
    }
}

impl Iterator for Steps<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.at >= self.plan.steps {
            return None;
        }
        if self.next == self.of_epoch {
            self.epoch += 1;
            self.begin();
        }
        let from = self.next * self.plan.accumulation;
        let to = self.passes.len().min(from + self.plan.accumulation);
        let micro_batches = self.passes[from..to].iter_mut().map(std::mem::take).collect();
        self.next += 1;
        self.at += 1;
        Some(Step { micro_batches, epoch: self.epoch as f64 + self.next as f64 / self.of_epoch as f64 })
    }
}

/// Example indices of each pass of one epoch.
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

/// Number of examples that packing chooses from: large enough to fill bins well, small enough to preserve the shuffle.
const PACKING_WINDOW: usize = 1024;

/// Random stream of epoch 0's order ("ORDER" in ASCII, then room for 65536 epochs).
const ORDER_STREAM: u64 = 0x004f_5244_4552_0000;

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(lengths: &[usize], batching: Batching, accumulation: usize, duration: Duration, seed: u64) -> Plan<'_> {
        Plan::new(lengths, batching, accumulation, duration, seed, &|| false).expect("nobody stops it")
    }

    fn steps(plan: &Plan<'_>) -> Vec<Step> {
        plan.from(0).collect()
    }

    fn examples(plan: &Plan<'_>) -> Vec<usize> {
        steps(plan).iter().flat_map(|step| step.micro_batches.concat()).collect()
    }

    /// The reference implementation: every step of every epoch in a list.
    fn listed(lengths: &[usize], batching: Batching, accumulation: usize, duration: Duration, seed: u64) -> Vec<Step> {
        let mut steps = Vec::new();
        for epoch in 0u64.. {
            let wanted = match duration {
                Duration::Epochs(epochs) => (epochs - epoch as f64).clamp(0.0, 1.0),
                Duration::Steps(total) => f64::from(u8::from((steps.len() as u64) < total)),
            };
            if wanted == 0.0 {
                break;
            }
            let passes = passes_of_epoch(lengths, batching, seed, epoch);
            let groups: Vec<&[Vec<usize>]> = passes.chunks(accumulation).collect();
            let kept = (wanted * groups.len() as f64).ceil() as usize;
            for (i, group) in groups.iter().take(kept).enumerate() {
                let epoch = epoch as f64 + (i + 1) as f64 / groups.len() as f64;
                steps.push(Step { micro_batches: group.to_vec(), epoch });
            }
        }
        if let Duration::Steps(total) = duration {
            steps.truncate(total as usize);
        }
        steps
    }

    #[test]
    fn steps_that_are_made_when_they_are_asked_for_are_those_of_a_list() {
        let lengths: Vec<usize> = (0..23).map(|i| 1 + i * 7 % 11).collect();
        let durations = [0.0, 0.3, 1.0, 2.5, 3.0].map(Duration::Epochs);
        for duration in durations.into_iter().chain([0, 1, 7, 40].map(Duration::Steps)) {
            for batching in [Batching::Examples(4), Batching::Examples(100), Batching::Tokens(13)] {
                for accumulation in [1, 3] {
                    let expected = listed(&lengths, batching, accumulation, duration, 5);
                    let plan = plan(&lengths, batching, accumulation, duration, 5);
                    assert_eq!(plan.len(), expected.len() as u64, "{duration:?} {batching:?} {accumulation}");
                    for first in 0..=expected.len() {
                        let found: Vec<Step> = plan.from(first as u64).collect();
                        assert_eq!(found, expected[first..], "{duration:?} {batching:?} {accumulation} from {first}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_run_without_an_end_starts_at_once() {
        let lengths = [3; 10];
        let far = plan(&lengths, Batching::Examples(2), 2, Duration::Steps(1_000_000_000_000), 1);
        assert_eq!(far.from(999_999_999_998).count(), 2);
        let many = plan(&lengths, Batching::Examples(2), 2, Duration::Epochs(1e9), 1);
        assert_eq!((many.len(), many.tokens()), (3_000_000_000, 30_000_000_000));
        assert_eq!(many.from(0).take(4).count(), 4);
        let packed = Plan::new(&lengths, Batching::Tokens(8), 1, Duration::Epochs(1e9), 1, &|| true);
        assert!(packed.is_none(), "counting heeds a request to stop");
    }

    #[test]
    fn an_epoch_visits_every_example_once() {
        for batching in [Batching::Examples(3), Batching::Tokens(7)] {
            let lengths = [1, 5, 2, 7, 3, 3, 1, 4, 6, 2, 9];
            let plan = plan(&lengths, batching, 2, Duration::Epochs(1.0), 1);
            let mut seen = examples(&plan);
            seen.sort_unstable();
            assert_eq!(seen, (0..11).collect::<Vec<_>>(), "{batching:?}");
            assert_eq!(steps(&plan).last().expect("steps").epoch, 1.0);
        }
    }

    #[test]
    fn steps_per_epoch_round_up() {
        // 10 examples, 2 per pass, 2 passes per step: 3 steps, the last one of a single pass.
        let two = plan(&[1; 10], Batching::Examples(2), 2, Duration::Epochs(2.0), 1);
        let passes: Vec<usize> = steps(&two).iter().map(|step| step.micro_batches.len()).collect();
        assert_eq!(passes, [2, 2, 1, 2, 2, 1]);
        assert_eq!(plan(&[1; 10], Batching::Examples(2), 2, Duration::Epochs(1.5), 1).len(), 5);
        assert_eq!(plan(&[1; 10], Batching::Examples(2), 2, Duration::Steps(4), 1).len(), 4);
        assert_eq!(plan(&[1; 10], Batching::Examples(2), 2, Duration::Steps(0), 1).len(), 0);
        assert_eq!(plan(&[], Batching::Examples(2), 2, Duration::Steps(4), 1).len(), 0);
    }

    #[test]
    fn a_longer_run_starts_like_a_shorter_one_and_seeds_differ() {
        let lengths = [3; 40];
        let short = plan(&lengths, Batching::Examples(4), 1, Duration::Epochs(1.0), 7);
        let long = plan(&lengths, Batching::Examples(4), 1, Duration::Epochs(3.0), 7);
        assert_eq!(steps(&long)[..10], steps(&short)[..]);
        assert_ne!(examples(&long)[..40], examples(&long)[40..80], "epochs are shuffled differently");
        let other = plan(&lengths, Batching::Examples(4), 1, Duration::Epochs(1.0), 8);
        assert_ne!(examples(&other), examples(&short), "seeds shuffle differently");
    }

    #[test]
    fn packing_fills_the_budget() {
        // 6 + 2, 5 + 3, 4 + 4 fill three bins of 8; the 9 gets a bin to itself.
        let bins = first_fit_decreasing(&[0, 1, 2, 3, 4, 5, 6], &[2, 4, 6, 3, 5, 4, 9], 8);
        assert_eq!(bins, [vec![6], vec![2, 0], vec![4, 3], vec![1, 5]]);
    }
}
