//! Where the assistant turns are in the output of a template that does not mark them.

use std::ops::Range;

use anyhow::{Context, Result, bail};

use super::{ChatTemplate, GenerationPrompt, Message};

/// Renders the conversation up to each assistant turn, with the generation prompt: what follows that in the rendering
/// of the whole is the turn.
///
/// ```text
/// before = render(messages[..i], Add);   after = render(messages[..=i], Omit);   span = before.len()..after.len()
/// ```
///
/// This needs `before` to begin `after`, and `after` to begin the whole. Where a template shortens earlier turns (as
/// those that drop past reasoning do), the turn in the whole is its content and what `after` has behind the content.
pub(super) fn by_prefixes(template: &ChatTemplate, messages: &[Message]) -> Result<(String, Vec<Range<usize>>)> {
    let whole = template.render(messages, GenerationPrompt::Omit)?;
    let mut spans = Vec::new();
    for (i, message) in messages.iter().enumerate().filter(|(_, m)| m.role == "assistant") {
        let turn = || format!("cannot tell which part of the rendered conversation is message {}", i + 1);
        let before = template.render(&messages[..i], GenerationPrompt::Add).with_context(turn)?;
        let after = template.render(&messages[..=i], GenerationPrompt::Omit).with_context(turn)?;
        let length = if !whole.starts_with(&before) {
            None
        } else if after.starts_with(&before) && whole.starts_with(&after) {
            Some(after.len() - before.len())
        } else {
            shortened(&whole[before.len()..], &after, message.content.trim())
        };
        let Some(length) = length else {
            bail!(
                "{}: the chat template writes it differently once other messages follow. Put {{% generation %}} and {{% endgeneration %}} around the assistant's part in the template, or train on prompt and completion records, one for each turn",
                turn()
            );
        };
        spans.push(before.len()..before.len() + length);
    }
    Ok((whole, spans))
}

/// The length of `content` and of what `after` has behind it, if `rest` begins with the two.
fn shortened(rest: &str, after: &str, content: &str) -> Option<usize> {
    let ending = &after[after.rfind(content)? + content.len()..];
    let length = content.len() + ending.len();
    (rest.starts_with(content) && rest[content.len()..].starts_with(ending)).then_some(length)
}
