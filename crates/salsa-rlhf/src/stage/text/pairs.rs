//! Preference pairs as tokens: the training data of `reward`, `dpo`, `orpo` and `cpo`.
use std::cmp::Ordering;

use anyhow::bail;

use super::{
    encoder::{Encoder, TruncationMode},
    source::DataSource,
};
use crate::{
    data::{Content, Example, Preference},
    stage::StageContext,
};

/// A prompt with a preferred and a rejected response.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pair {
    /// Prompt and preferred response.
    pub chosen: Side,
    /// Prompt and rejected response.
    pub rejected: Side,
    /// How much better the preferred response is according to the data, in units of score; 0 if not given.
    pub margin: f64,
    /// Score of the rule "the longer response wins" on this pair: 1, 0, or 0.5 if both have the same number of
    /// characters.
    pub longer_wins: f64,
}

impl Pair {
    /// Tokens of both sides.
    pub(crate) fn length(&self) -> usize {
        self.chosen.tokens.len() + self.rejected.tokens.len()
    }
}

/// One response with its prompt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Side {
    /// Prompt and response, the end token included.
    pub tokens: Vec<u32>,
    /// The number of prompt tokens.
    pub prompt: usize,
}

/// Encoded pairs, and the number of omitted ones.
#[derive(Debug, PartialEq)]
pub(crate) struct Pairs {
    /// The pairs.
    pub pairs: Vec<Pair>,
    /// The number of pairs with identical responses: they carry no preference.
    pub identical: usize,
    /// The number of pairs without response tokens within `max_length`.
    pub too_long: usize,
}

impl Pairs {
    /// Reads and tokenises preferences, and reports their number.
    ///
    /// # Errors
    /// If an example is not a preference, cannot be tokenised, or no pair is left.
    pub(crate) fn load(
        source: &DataSource,
        encoder: &Encoder,
        max_length: usize,
        mode: TruncationMode,
        context: &StageContext,
    ) -> anyhow::Result<Pairs> {
        let loaded = source.load()?;
        let pair = |example: &Example| -> anyhow::Result<Option<Pair>> {
            let preference = preference(example)?;
            let side = |response: &Content| -> anyhow::Result<Option<Side>> {
                let (tokens, prompt) = encoder.prompt_and_response(&preference.prompt, response)?;
                Ok(Side { tokens, prompt }.truncated(max_length, mode))
            };
            let (chosen, rejected) = (side(&preference.chosen)?, side(&preference.rejected)?);
            let longer_wins = longer_wins(&preference.chosen, &preference.rejected);
            Ok(chosen.zip(rejected).map(|(chosen, rejected)| Pair {
                chosen,
                rejected,
                margin: preference.margin.unwrap_or(0.0),
                longer_wins,
            }))
        };
        let pairs: Vec<Pair> = loaded.try_map(pair)?.into_iter().flatten().collect();
        let count = loaded.examples.len();
        if pairs.is_empty() {
            bail!(
                "{source}: all {count} pairs are longer than {max_length} tokens (max_length, or the model's context where that is \
                 less); allow longer ones, or choose another truncation_mode"
            );
        }
        loaded.report_reading(source, encoder, context);
        let pairs = Pairs { identical: loaded.dropped_identical, too_long: count - pairs.len(), pairs };
        context.say_used(format!("{source}: {}", pairs.summary()), pairs.too_long);
        Ok(pairs)
    }

    /// One line for the user.
    fn summary(&self) -> String {
        let Pairs { pairs, identical, too_long } = self;
        format!("{} pairs; left out: {identical} with identical responses, {too_long} too long", pairs.len())
    }
}

/// Returns the example as a preference.
///
/// # Errors
/// If it is none.
pub(crate) fn preference(example: &Example) -> anyhow::Result<&Preference> {
    match example {
        Example::Preference(preference) => Ok(preference),
        _ => bail!("this is {}; preferences (chosen and rejected) are needed", example.layout()),
    }
}

impl Side {
    /// The number of response tokens.
    pub(crate) fn response_length(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    /// Truncates the side to `max_length` tokens; `None` if it is omitted or no token of prompt or response is left.
    pub(super) fn truncated(self, max_length: usize, mode: TruncationMode) -> Option<Side> {
        let (tokens, cut) = mode.apply(self.tokens, max_length)?;
        let prompt = self.prompt.saturating_sub(cut).max(1); // the first token has no log-probability
        (prompt < tokens.len()).then_some(Side { tokens, prompt })
    }
}

fn longer_wins(chosen: &Content, rejected: &Content) -> f64 {
    match characters(chosen).cmp(&characters(rejected)) {
        Ordering::Greater => 1.0,
        Ordering::Equal => 0.5,
        Ordering::Less => 0.0,
    }
}

fn characters(content: &Content) -> usize {
    match content {
        Content::Text(text) => text.chars().count(),
        Content::Messages(messages) => messages.iter().map(|message| message.content.chars().count()).sum(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_side_keeps_a_token_of_prompt_and_of_response() {
        let side = || Side { tokens: vec![1, 2, 3, 4, 5], prompt: 3 };
        let cut = |max_length, mode| side().truncated(max_length, mode).map(|side| (side.tokens, side.prompt));
        assert_eq!(cut(4, TruncationMode::KeepEnd), Some((vec![2, 3, 4, 5], 2)));
        assert_eq!(cut(2, TruncationMode::KeepEnd), Some((vec![4, 5], 1)), "a first token has no log-probability");
        assert_eq!(cut(4, TruncationMode::KeepStart), Some((vec![1, 2, 3, 4], 3)));
        assert_eq!(cut(3, TruncationMode::KeepStart), None, "no response is left");
        assert_eq!(cut(4, TruncationMode::Drop), None);
    }

    #[test]
    fn longer_wins_by_characters() {
        let text = |text: &str| Content::Text(text.to_owned());
        assert_eq!(longer_wins(&text("éé"), &text("abc")), 0.0);
        assert_eq!(longer_wins(&text("éé"), &text("ab")), 0.5);
        assert_eq!(longer_wins(&text("abc"), &text("éé")), 1.0);
    }

    /// 1,399 longer, 938 shorter and 15 equal, counted by an independent program.
    #[test]
    fn longer_wins_on_real_pairs() {
        let data =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/hh-rlhf/helpful-base-test.jsonl.gz");
        if !data.exists() {
            println!("skipped: {} is not there", data.display());
            return;
        }
        let examples = DataSource::Path(data.into()).load().unwrap().examples;
        let wins = |example: &Example| match example {
            Example::Preference(pair) => longer_wins(&pair.chosen, &pair.rejected),
            other => panic!("{other:?}"),
        };
        let rate = examples.iter().map(wins).sum::<f64>() / examples.len() as f64;
        assert_eq!(examples.len(), 2352);
        assert!((rate - 0.5980).abs() < 0.002, "{rate}");
    }
}
