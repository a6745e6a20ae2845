//! The sequences of one model: waiting ones and running ones.
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use salsa_engine::{Decoding, Device, Event, Model, Prompt, Ticket};

use super::{Generation, Request, SampledToken, command::Place, finite};
use crate::serve::{catalogue::Size, metrics::Metrics};

/// A language model with its sequences.
pub(super) struct Lane<'a> {
    decoding: Decoding<'a, Device>,
    size: Size,
    waiting: VecDeque<Waiting>,
    running: BTreeMap<Ticket, Running>,
    metrics: &'a Metrics,
}

/// A waiting sequence.
struct Waiting {
    prompt: Prompt,
    running: Running,
    _place: Place,
}

/// The request and choice of a sequence.
struct Running {
    request: Arc<Request>,
    choice: usize,
}

impl Running {
    fn is_wanted(&self) -> bool {
        self.request.wants(self.choice)
    }
}

impl<'a> Lane<'a> {
    /// The lane of a model; none for a model without a language-model head.
    pub(super) fn new(model: &'a Model, context: usize, size: &Size, metrics: &'a Metrics) -> Option<Lane<'a>> {
        model.spec().head.has_language_model().then(|| Lane {
            decoding: model.decoding(size.sequences, context),
            size: *size,
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
            metrics,
        })
    }

    /// Queues prompts; they start when there is room.
    pub(super) fn queue(&mut self, generation: Generation) {
        let Generation { prompts, request, places, .. } = generation;
        for (choice, (prompt, place)) in prompts.into_iter().zip(places).enumerate() {
            let running = Running { request: request.clone(), choice };
            self.waiting.push_back(Waiting { prompt, running, _place: place });
        }
    }

    /// Whether there is nothing to do.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// The number of running sequences.
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// Starts waiting sequences and samples a token for every running one.
    pub(super) fn step(&mut self) {
        self.forget();
        self.admit();
        if self.running.is_empty() {
            return;
        }
        for event in self.decoding.step() {
            self.tell(event);
        }
    }

    /// Drops sequences that are no longer needed.
    fn forget(&mut self) {
        self.waiting.retain(|waiting| waiting.running.is_wanted());
        let decoding = &mut self.decoding;
        self.running.retain(|ticket, running| {
            let is_wanted = running.is_wanted();
            if !is_wanted {
                decoding.cancel(*ticket);
            }
            is_wanted
        });
    }

    /// Submits waiting prompts, limited by free slots and by the tokens of one pass. Adjacent equal prompts share one
    /// prefill.
    fn admit(&mut self) {
        let (mut tokens, mut last) = (0, Vec::new());
        while self.running.len() < self.size.sequences {
            let Some(next) = self.waiting.front() else { break };
            let more = if next.prompt.tokens == last { 0 } else { next.prompt.tokens.len() };
            if tokens > 0 && tokens + more > self.size.batched_tokens {
                break;
            }
            let Waiting { prompt, running, .. } = self.waiting.pop_front().expect("it was looked at");
            tokens += more;
            last.clone_from(&prompt.tokens);
            let (sampling, ranked) = (&running.request.sampling, running.request.ranked);
            let ticket = match ranked {
                Some(count) => self.decoding.submit_ranked(prompt, sampling, count),
                None => self.decoding.submit(prompt, sampling),
            };
            self.running.insert(ticket, running);
        }
        self.metrics.add_prompt_tokens(tokens);
    }

    /// Sends a token to its request. A closed receiver is noticed before the next step.
    fn tell(&mut self, event: Event) {
        let Event { ticket, token, logprob, finish, ranking } = event;
        // The step in which a sequence starts samples two tokens; the first may have been the last one needed.
        let Some(Running { request, choice }) = self.running.get(&ticket) else { return };
        self.metrics.add_generated_tokens(1);
        let told = ranking.iter().flat_map(|ranking| ranking.top.iter().map(|(_, logprob)| logprob));
        let drawn = match finite(told.chain([&logprob])) {
            Ok(()) => Ok(SampledToken { choice: *choice, token, ranking, finish }),
            Err(message) => Err(message),
        };
        let is_over = finish.is_some() || drawn.is_err();
        // An error ends the whole request; its other sequences are dropped with its receiver.
        let _ = request.events.send(drawn);
        if is_over {
            self.running.remove(&ticket);
            self.decoding.cancel(ticket);
        }
    }
}
