//! The tokens of several choices, in an order determined by the request alone.
//!
//! Choices are decoded concurrently, and their relative progress depends on the other requests. Tokens are passed on in
//! turn, one from each unfinished choice, so that a streamed reply has the same bytes every time.
use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::sync::mpsc::UnboundedReceiver;

use super::engine::{Request, SampledToken};

/// The tokens that the engine samples for a request. Dropping it cancels the generation.
pub(super) struct OrderedTokens {
    events: UnboundedReceiver<Result<SampledToken, Arc<str>>>,
    request: Arc<Request>,
    early: Vec<VecDeque<SampledToken>>,
    is_open: Vec<bool>,
    turn: usize,
}

impl OrderedTokens {
    /// Receives the tokens of a request with this number of choices.
    pub(super) fn new(
        events: UnboundedReceiver<Result<SampledToken, Arc<str>>>,
        request: Arc<Request>,
        choices: usize,
    ) -> OrderedTokens {
        OrderedTokens {
            events,
            request,
            early: (0..choices).map(|_| VecDeque::new()).collect(),
            is_open: vec![true; choices],
            turn: 0,
        }
    }

    /// Stops a choice early.
    pub(super) fn stop(&mut self, choice: usize) {
        self.request.stop(choice);
        self.is_open[choice] = false;
        self.early[choice].clear();
    }

    /// Polls for the next token; none when all choices have ended.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<SampledToken, Arc<str>>>> {
        loop {
            let count = self.is_open.len();
            let open = (self.turn..self.turn + count).map(|at| at % count.max(1)).find(|&at| self.is_open[at]);
            let Some(turn) = open else { return Poll::Ready(None) };
            self.turn = turn;
            if let Some(drawn) = self.early[turn].pop_front() {
                self.turn = turn + 1;
                self.is_open[turn] = drawn.finish.is_none();
                return Poll::Ready(Some(Ok(drawn)));
            }
            match ready!(self.events.poll_recv(context)) {
                Some(Ok(drawn)) if self.is_open[drawn.choice] => self.early[drawn.choice].push_back(drawn),
                Some(Ok(_)) => {}
                Some(Err(message)) => return Poll::Ready(Some(Err(message))),
                None => return Poll::Ready(Some(Err("the engine has stopped".into()))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use salsa_engine::{Finish, Sampling};
    use tokio::sync::mpsc;

    use super::*;

    /// Choice and token of all received tokens, for this order of sampling. Choice 1 is stopped at token 11.
    fn told(order: &[(usize, u32, bool)]) -> Vec<(usize, u32)> {
        let (sender, events) = mpsc::unbounded_channel();
        let request = Arc::new(Request::new(Sampling::default(), None, 3, sender.clone()));
        let mut choices = OrderedTokens::new(events, request.clone(), 3);
        for &(choice, token, is_last) in order {
            let finish = is_last.then_some(Finish::Length);
            sender.send(Ok(SampledToken { choice, token, ranking: None, finish })).unwrap();
        }
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut all = Vec::new();
        while let Poll::Ready(Some(drawn)) = choices.poll_next(&mut context) {
            let SampledToken { choice, token, .. } = drawn.unwrap();
            if token == 11 {
                choices.stop(choice);
                assert!(!request.wants(choice) && request.wants(0));
            }
            all.push((choice, token));
        }
        all
    }

    #[test]
    fn the_order_is_that_of_the_tokens_however_they_come() {
        let [a, b, c] = [0, 1, 2];
        let expected = [(a, 0), (b, 10), (c, 20), (a, 1), (b, 11), (c, 21), (a, 2), (c, 22)];
        let by_choice: Vec<(usize, u32, bool)> = [
            [(a, 0, false), (a, 1, false), (a, 2, true)],
            [(b, 10, false), (b, 11, false), (b, 12, false)],
            [(c, 20, false), (c, 21, false), (c, 22, true)],
        ]
        .concat();
        let by_step: Vec<(usize, u32, bool)> =
            (0..3).flat_map(|step| [0, 3, 6].map(|at| by_choice[at + step])).collect();
        let backwards: Vec<(usize, u32, bool)> =
            [6..9, 3..6, 0..3].into_iter().flat_map(|r| by_choice[r].to_vec()).collect();
        for order in [by_choice, by_step, backwards] {
            assert_eq!(told(&order), expected);
        }
    }
}
