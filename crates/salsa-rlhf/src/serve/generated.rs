//! Sampled tokens of a request as pieces of text with log-probs, from which replies are built.
use std::{
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use salsa_engine::{Finish, Ranking};

use super::{
    choices::OrderedTokens,
    engine::SampledToken,
    text::Text,
    tokens::{TokenLogprobs, Vocabulary},
};
use crate::{
    serve::{catalogue::Served, metrics::Metrics},
    stage::text::encoder::Encoder,
};

/// A piece of a choice.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    /// Index of the choice.
    pub choice: usize,
    /// Its text; may be empty.
    pub text: String,
    /// The log-probs of the tokens since the last piece, if requested.
    pub logprobs: Vec<TokenLogprobs>,
    /// Why the choice ends with this piece; none if it continues.
    pub finish: Option<&'static str>,
}

/// The pieces of all choices.
pub(super) struct Generated {
    choices: OrderedTokens,
    texts: Vec<Text>,
    /// Log-probs of tokens whose text was not emitted yet.
    kept: Vec<Vec<TokenLogprobs>>,
    drawn: usize,
    /// Arrival of the request; none after the first token.
    began: Option<Instant>,
    metrics: Arc<Metrics>,
}

impl Generated {
    /// The pieces of these choices, whose texts end before any of `stops`.
    pub(super) fn new(
        choices: OrderedTokens,
        count: usize,
        stops: &[String],
        began: Instant,
        metrics: Arc<Metrics>,
    ) -> Generated {
        let texts = (0..count).map(|_| Text::new(stops)).collect();
        Generated { choices, texts, kept: vec![Vec::new(); count], drawn: 0, began: Some(began), metrics }
    }

    /// The number of sampled tokens.
    pub(super) fn tokens(&self) -> usize {
        self.drawn
    }

    /// The whole text of a finished choice.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub(super) fn whole(&self, encoder: &Encoder, choice: usize) -> anyhow::Result<String> {
        self.texts[choice].whole(encoder)
    }

    /// Polls for the next piece; none when all choices have ended. Pieces without text that do not end a choice are
    /// skipped.
    pub(super) fn poll_piece(
        &mut self,
        served: &Served,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Piece, Arc<str>>>> {
        loop {
            let drawn = match ready!(self.choices.poll_next(context)) {
                None => return Poll::Ready(None),
                Some(Err(message)) => return Poll::Ready(Some(Err(message))),
                Some(Ok(drawn)) => drawn,
            };
            match self.take(served, drawn) {
                Ok(None) => {}
                Ok(Some(piece)) => return Poll::Ready(Some(Ok(piece))),
                Err(error) => return Poll::Ready(Some(Err(format!("{error:#}").into()))),
            }
        }
    }

    fn take(&mut self, served: &Served, drawn: SampledToken) -> anyhow::Result<Option<Piece>> {
        let SampledToken { choice, token, ranking, finish } = drawn;
        self.drawn += 1;
        if let Some(began) = self.began.take() {
            self.metrics.first_token(began.elapsed());
        }
        let encoder = served.encoder.as_ref().expect("requests for text go to models with a tokenizer");
        let text = &mut self.texts[choice];
        text.push(encoder, token)?;
        if let Some(Ranking { logprob, top }) = ranking {
            self.kept[choice].push(Vocabulary(encoder).told(token, logprob, &top)?);
        }
        if finish.is_some() && !text.is_stopped() {
            text.finish(encoder)?;
        }
        let finish = match (text.is_stopped(), finish) {
            (true, _) | (false, Some(Finish::Stop)) => Some("stop"),
            (false, Some(Finish::Length)) => Some("length"),
            (false, None) => None,
        };
        if text.is_stopped() {
            self.choices.stop(choice);
        }
        let said = if finish.is_some() { text.rest() } else { text.more() };
        if said.is_empty() && finish.is_none() {
            return Ok(None);
        }
        Ok(Some(Piece { choice, text: said, logprobs: std::mem::take(&mut self.kept[choice]), finish }))
    }
}
