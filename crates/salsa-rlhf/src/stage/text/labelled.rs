//! Single responses with a label, as tokens: the training data of `kto`.
use anyhow::bail;

use super::{
    encoder::{Encoder, TruncationMode},
    pairs::Side,
    source::DataSource,
};
use crate::{
    data::{Content, Example, Labels, Reading},
    stage::StageContext,
};

/// A prompt with a response, and whether it is a good one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Labelled {
    /// Prompt and response.
    pub side: Side,
    /// Whether the response is desirable.
    pub desirable: bool,
}

/// Encoded responses, and the number of omitted ones.
pub(crate) struct LabelledSet {
    /// The responses.
    pub responses: Vec<Labelled>,
    /// The number of responses without tokens within `max_length`.
    pub too_long: usize,
}

impl LabelledSet {
    /// Reads and tokenises responses with labels, and preference pairs as two of them each; reports their number.
    ///
    /// # Errors
    /// If an example is neither, cannot be tokenised, or no response is left.
    pub(crate) fn load(
        source: &DataSource,
        encoder: &Encoder,
        max_length: usize,
        mode: TruncationMode,
        context: &StageContext,
    ) -> anyhow::Result<LabelledSet> {
        let loaded = source.load_with(Reading { labels: Labels::Kept, ..Reading::default() })?;
        let mut labels = loaded.labels.iter();
        let encoded = loaded.try_map(|example| {
            let label = labels.next().copied().flatten();
            let side = |(prompt, response, desirable): (&Content, &Content, bool)| {
                let (tokens, prompt) = encoder.prompt_and_response(prompt, response)?;
                let side = Side { tokens, prompt }.truncated(max_length, mode);
                anyhow::Ok(side.map(|side| Labelled { side, desirable }))
            };
            responses(example, label)?.into_iter().map(side).collect::<anyhow::Result<Vec<_>>>()
        })?;
        let all: Vec<Option<Labelled>> = encoded.into_iter().flatten().collect();
        let count = all.len();
        let responses: Vec<Labelled> = all.into_iter().flatten().collect();
        if responses.is_empty() {
            bail!(
                "{source}: all {count} responses are longer than {max_length} tokens (max_length, or the model's context where \
                 that is less); allow longer ones, or choose another truncation_mode"
            );
        }
        loaded.report_reading(source, encoder, context);
        let set = LabelledSet { too_long: count - responses.len(), responses };
        let (desirable, undesirable) = set.counts();
        context.say_used(
            format!(
                "{source}: {desirable} desirable responses, {undesirable} undesirable; left out: {} too long",
                set.too_long
            ),
            set.too_long,
        );
        Ok(set)
    }

    /// The numbers of desirable and of undesirable responses.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let desirable = self.responses.iter().filter(|response| response.desirable).count();
        (desirable, self.responses.len() - desirable)
    }
}

/// Prompt, response and label of each response of an example: one with a label, or a preference pair.
///
/// # Errors
/// If the example is neither.
pub(crate) fn responses(example: &Example, label: Option<bool>) -> anyhow::Result<Vec<(&Content, &Content, bool)>> {
    match (example, label) {
        (Example::Preference(pair), _) => {
            Ok(vec![(&pair.prompt, &pair.chosen, true), (&pair.prompt, &pair.rejected, false)])
        }
        (Example::PromptCompletion { prompt, completion }, Some(label)) => Ok(vec![(prompt, completion, label)]),
        _ => bail!(
            "this is {} without a label; answers with a label (prompt, completion, label: true or false), or preferences \
             (chosen and rejected), are needed",
            example.layout()
        ),
    }
}
