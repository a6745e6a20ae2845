//! The chat template of a soup, if it is not the tokenizer's.
use std::path::Path;

use anyhow::Context;

use super::SoupConfig;
use crate::{
    chat::{self, ChatTemplate},
    checkpoint::Companions,
    tokenizer::SpecialTokenNames,
};

/// Replaces the chat template of the companions by the configured one, if any. `models` are the folders of all models,
/// in order.
///
/// # Errors
/// If the template does not exist or does not compile.
pub(super) fn put<'a>(
    config: &SoupConfig,
    companions: Companions,
    models: impl Iterator<Item = &'a Path>,
) -> anyhow::Result<Companions> {
    let Some(choice) = &config.chat_template else { return Ok(companions) };
    let source = match &**choice {
        "auto" => most_common(models)?,
        text if text.contains('{') => Some(text.to_owned()),
        name => Some(chat::source_of(name).context("chat_template")?),
    };
    let Some(source) = source else { return Ok(companions) };
    ChatTemplate::new(&source, &SpecialTokenNames::default()).context("chat_template")?;
    Ok(companions.with_chat_template(&source))
}

/// The most common template of the models, the earliest in a tie; `None` if no model has one.
fn most_common<'a>(models: impl Iterator<Item = &'a Path>) -> anyhow::Result<Option<String>> {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for dir in models {
        let Some(template) = ChatTemplate::from_dir(dir)? else { continue };
        let source = template.source().trim();
        match counts.iter_mut().find(|(known, _)| known == source) {
            Some((_, count)) => *count += 1,
            None => counts.push((source.to_owned(), 1)),
        }
    }
    let most = counts.iter().map(|(_, count)| *count).max();
    Ok(counts.into_iter().find(|(_, count)| Some(*count) == most).map(|(source, _)| source))
}
