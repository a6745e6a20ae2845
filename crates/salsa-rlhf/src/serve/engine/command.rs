//! Commands to the engine, and its results.
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use salsa_engine::{Finish, Prompt, Ranking, Sampling};
use tokio::sync::{mpsc, oneshot};

/// A command to the engine.
pub(crate) enum Command {
    /// Generate continuations of prompts.
    Generate(Generation),
    /// Run forward passes over sequences.
    Pass(Pass),
}

/// Prompts to continue, all with the same sampling parameters.
pub(crate) struct Generation {
    /// Index of the model.
    pub model: usize,
    /// The prompts; the index of a prompt is the number of its choice.
    pub prompts: Vec<Prompt>,
    /// The request.
    pub request: Arc<Request>,
    /// Places in the queue, one per prompt.
    pub places: Vec<Place>,
}

/// State of a generation request, shared with the receiver of its tokens.
pub(crate) struct Request {
    /// The sampling parameters.
    pub sampling: Arc<Sampling>,
    /// Number of most likely tokens to return per token, if log-probs are requested.
    pub ranked: Option<usize>,
    /// The receiver of tokens.
    pub events: mpsc::UnboundedSender<Result<SampledToken, Arc<str>>>,
    /// For each choice, whether it was stopped.
    stopped: Vec<AtomicBool>,
}

impl Request {
    /// Creates a request with this number of choices.
    pub(crate) fn new(
        sampling: Sampling,
        ranked: Option<usize>,
        choices: usize,
        events: mpsc::UnboundedSender<Result<SampledToken, Arc<str>>>,
    ) -> Request {
        let stopped = (0..choices).map(|_| AtomicBool::new(false)).collect();
        Request { sampling: sampling.into(), ranked, events, stopped }
    }

    /// Stops a choice, e.g. at a stop text.
    pub(crate) fn stop(&self, choice: usize) {
        self.stopped[choice].store(true, Ordering::Relaxed);
    }

    /// Whether a choice still needs tokens.
    pub(crate) fn wants(&self, choice: usize) -> bool {
        !self.stopped[choice].load(Ordering::Relaxed) && !self.events.is_closed()
    }
}

/// A sampled token of a choice.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SampledToken {
    /// Index of the choice.
    pub choice: usize,
    /// The token.
    pub token: u32,
    /// Its log-prob at temperature 1 and the most likely tokens, if requested.
    pub ranking: Option<Ranking>,
    /// Why the choice ends here; none if it continues.
    pub finish: Option<Finish>,
}

/// Sequences for forward passes.
pub(crate) struct Pass {
    /// Index of the model.
    pub model: usize,
    /// The sequences.
    pub sequences: Vec<Vec<u32>>,
    /// The requested output.
    pub asked: Asked,
    /// The receiver of the result.
    pub answer: oneshot::Sender<Reading>,
    /// Places in the queue.
    pub places: Vec<Place>,
}

/// The result of forward passes, or an error message.
pub(crate) type Reading = Result<Passed, Arc<str>>;

/// The requested output of forward passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The scalar at the last token.
    Scores,
    /// The log-prob of every token after the first.
    Logprobs,
    /// The same with this number of most likely tokens.
    Rankings(usize),
}

/// The output, sequence by sequence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Passed {
    /// For [`Asked::Scores`].
    Scores(Vec<f32>),
    /// For [`Asked::Logprobs`].
    Logprobs(Vec<Vec<f32>>),
    /// For [`Asked::Rankings`].
    Rankings(Vec<Vec<Ranking>>),
}

/// The number of waiting sequences, and its limit.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    waiting: Arc<AtomicUsize>,
    most: usize,
}

/// A sequence's place in the queue; released on drop.
#[derive(Debug)]
pub(crate) struct Place(Arc<AtomicUsize>);

impl Queue {
    /// An empty queue.
    pub(crate) fn new(most: usize) -> Queue {
        Queue { waiting: Arc::new(AtomicUsize::new(0)), most }
    }

    /// Takes places for `count` sequences; none if fewer are free.
    pub(crate) fn enter(&self, count: usize) -> Option<Vec<Place>> {
        let more = |waiting: usize| waiting.checked_add(count).filter(|sum| *sum <= self.most);
        self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some((0..count).map(|_| Place(self.waiting.clone())).collect())
    }

    /// The number of waiting sequences.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// The maximum number of waiting sequences.
    pub(crate) fn most(&self) -> usize {
        self.most
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_and_given_up() {
        let queue = Queue::new(3);
        let two = queue.enter(2).unwrap();
        assert!(queue.enter(2).is_none() && queue.enter(usize::MAX).is_none());
        let one = queue.enter(1).unwrap();
        assert_eq!(queue.waiting(), 3);
        drop(two);
        assert_eq!(queue.waiting(), 1);
        drop(one);
        assert_eq!((queue.waiting(), queue.enter(3).map(|places| places.len())), (0, Some(3)));
    }
}
