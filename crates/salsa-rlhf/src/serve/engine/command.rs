//! What the engine is asked, and what it answers.
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use salsa_engine::{Finish, Prompt, Ranking, Sampling};
use tokio::sync::{mpsc, oneshot};

/// What the engine is asked.
pub(crate) enum Command {
    /// To continue prompts.
    Generate(Generation),
    /// To read sequences.
    Pass(Pass),
}

/// Prompts to be continued, all sampled in one way.
pub(crate) struct Generation {
    /// Which model.
    pub model: usize,
    /// The prompts; the number of a choice is its place among them.
    pub prompts: Vec<Prompt>,
    /// Who asks.
    pub request: Arc<Request>,
    /// The places in the queue, one for each prompt.
    pub places: Vec<Place>,
}

/// Who asks for replies, and how they are made.
pub(crate) struct Request {
    /// How tokens are chosen.
    pub sampling: Arc<Sampling>,
    /// How many of the most likely tokens are told with each token, if log-probs are.
    pub ranked: Option<usize>,
    /// Where tokens go.
    pub events: mpsc::UnboundedSender<Result<Drawn, Arc<str>>>,
    /// For each choice, whether nothing more of it is wanted.
    stopped: Vec<AtomicBool>,
}

impl Request {
    /// For so many choices.
    pub(crate) fn new(
        sampling: Sampling,
        ranked: Option<usize>,
        choices: usize,
        events: mpsc::UnboundedSender<Result<Drawn, Arc<str>>>,
    ) -> Request {
        let stopped = (0..choices).map(|_| AtomicBool::new(false)).collect();
        Request { sampling: sampling.into(), ranked, events, stopped }
    }

    /// Ends a choice: it has a text at which it ends.
    pub(crate) fn stop(&self, choice: usize) {
        self.stopped[choice].store(true, Ordering::Relaxed);
    }

    /// Whether somebody still wants more of a choice.
    pub(crate) fn wants(&self, choice: usize) -> bool {
        !self.stopped[choice].load(Ordering::Relaxed) && !self.events.is_closed()
    }
}

/// One more token of a choice.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Drawn {
    /// Which choice.
    pub choice: usize,
    /// The token.
    pub token: u32,
    /// Its log-prob at temperature 1 and the most likely tokens, if they were asked for.
    pub ranking: Option<Ranking>,
    /// Why the choice ends here; none if it goes on.
    pub finish: Option<Finish>,
}

/// Sequences to be read.
pub(crate) struct Pass {
    /// The model.
    pub model: usize,
    /// The sequences.
    pub sequences: Vec<Vec<u32>>,
    /// What is asked of each.
    pub asked: Asked,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Reading>,
    /// The places in the queue.
    pub places: Vec<Place>,
}

/// What a forward pass gave, or why it gave nothing.
pub(crate) type Reading = Result<Passed, Arc<str>>;

/// What is asked of sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The scalar at the last token.
    Scores,
    /// The log-prob of every token after the first.
    Logprobs,
    /// The same with so many of the most likely tokens.
    Rankings(usize),
}

/// The answer, sequence by sequence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Passed {
    /// For [`Asked::Scores`].
    Scores(Vec<f32>),
    /// For [`Asked::Logprobs`].
    Logprobs(Vec<Vec<f32>>),
    /// For [`Asked::Rankings`].
    Rankings(Vec<Vec<Ranking>>),
}

/// How many sequences wait, and how many may.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    waiting: Arc<AtomicUsize>,
    most: usize,
}

/// A sequence's place in the queue; given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<AtomicUsize>);

impl Queue {
    /// An empty one.
    pub(crate) fn new(most: usize) -> Queue {
        Queue { waiting: Arc::new(AtomicUsize::new(0)), most }
    }

    /// Places for so many sequences; none if there are not as many.
    pub(crate) fn enter(&self, count: usize) -> Option<Vec<Place>> {
        let more = |waiting: usize| waiting.checked_add(count).filter(|sum| *sum <= self.most);
        self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some((0..count).map(|_| Place(self.waiting.clone())).collect())
    }

    /// How many sequences wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// How many may.
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
