//! Prompts for sampling responses: the data of `ppo` and evaluations.
use anyhow::{Context, ensure};

use serde_json::{Map, Value};

use super::{encoder::Encoder, source::DataSource};
use crate::{
    data::{Content, Reading, Records},
    stage::StageContext,
};

/// A prompt as given and as tokens.
pub(in crate::stage) struct TextPrompt {
    /// Its text or messages.
    pub content: Content,
    /// The whole prompt, up to the start of the response.
    pub tokens: Vec<u32>,
    /// The columns of its record, if records are kept; else empty.
    pub columns: Map<String, Value>,
}

/// The prompts of a data set, and the number of prompts that do not fit.
pub(in crate::stage) struct Prompts {
    pub prompts: Vec<TextPrompt>,
    pub left_out: usize,
}

/// The prompts that fit a context of `positions` tokens together with a response, in the order of the data set.
pub(in crate::stage) fn load(
    dataset: &DataSource,
    max_prompt_length: usize,
    response_length: usize,
    encoder: &Encoder,
    positions: usize,
    records: Records,
    context: &StageContext,
) -> anyhow::Result<Prompts> {
    let room = positions.checked_sub(response_length).filter(|room| *room > 0).with_context(|| {
        format!("responses of {response_length} tokens leave no room for a prompt in a context of {positions}; make them shorter")
    })?;
    let longest = max_prompt_length.min(room);
    let mut loaded = dataset.load_with(Reading { records, ..Reading::default() })?;
    let mut columns = std::mem::take(&mut loaded.records).into_iter();
    let mut prompts = loaded.try_map(|example| {
        let prompt = example.prompt().context("this record has no prompt")?;
        let tokens = encoder.prompt(&prompt)?;
        Ok(TextPrompt { content: prompt, tokens, columns: columns.next().unwrap_or_default() })
    })?;
    prompts.retain(|prompt| (1..=longest).contains(&prompt.tokens.len()));
    let left_out = loaded.examples.len() - prompts.len();
    ensure!(
        !prompts.is_empty(),
        "{}: all {left_out} prompts are longer than {longest} tokens (max_prompt_length is {max_prompt_length}, the context \
         {positions} less {response_length} for the response); shorten them, or allow longer prompts or shorter responses",
        dataset,
    );
    loaded.report_reading(dataset, encoder, context);
    let used = format!("{dataset}: {} prompts, {left_out} left out (over {longest} tokens)", prompts.len());
    context.say_used(used, left_out);
    Ok(Prompts { prompts, left_out })
}
