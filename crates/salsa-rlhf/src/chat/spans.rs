//! The ranges of assistant turns in the output of a template that does not mark them.

use std::ops::Range;

use anyhow::{Context, Result, bail};

use super::{ChatTemplate, GenerationPrompt, Message, TemplateArguments};

/// Renders the conversation up to each assistant turn, with the generation prompt; the turn is what follows this prefix
/// in the whole rendering.
///
/// ```text
/// before = render(messages[..i], Add);   after = render(messages[..=i], Omit);   span = before.len()..after.len()
/// ```
///
/// This requires that `before` and `after` are prefixes of the whole. Two kinds of templates violate the second: those
/// that end every rendering with the end-of-sequence token (Phi-3), which is then removed; and those that shorten
/// earlier turns by dropping past reasoning (Qwen3), where the turn is the longest suffix of `after` that occurs in the
/// whole.
pub(super) fn by_prefixes(
    template: &ChatTemplate,
    messages: &[Message],
    arguments: &TemplateArguments,
) -> Result<(String, Vec<Range<usize>>)> {
    let render = |messages: &[Message], prompt| template.render_with(messages, arguments, prompt);
    let whole = render(messages, GenerationPrompt::Omit)?;
    let mut spans: Vec<Range<usize>> = Vec::new();
    for (i, message) in messages.iter().enumerate().filter(|(_, m)| m.role == "assistant") {
        let turn = || format!("cannot tell which part of the rendered conversation is message {}", i + 1);
        let before = render(&messages[..i], GenerationPrompt::Add).with_context(turn)?;
        let after = render(&messages[..=i], GenerationPrompt::Omit).with_context(turn)?;
        let length = whole.strip_prefix(before.as_str()).and_then(|rest| {
            let added = after.strip_prefix(before.as_str());
            let closed = added.and_then(|added| added.strip_suffix(template.eos()?));
            let exact = [added, closed].into_iter().flatten().find(|added| rest.starts_with(added));
            exact.map(str::len).or_else(|| shortened(rest, added.unwrap_or(&after), &message.content))
        });
        // If a template does not write turns one after the other, one can seem to start inside another.
        let apart = spans.last().is_none_or(|last| last.end <= before.len());
        let Some(length) = length.filter(|_| apart) else {
            bail!(
                "{}: the chat template writes it differently once other messages follow. Put {{% generation %}} and {{% endgeneration %}} around the assistant's part in the template, or train on prompt and completion records, one for each turn",
                turn()
            );
        };
        spans.push(before.len()..before.len() + length);
    }
    Ok((whole, spans))
}

/// The length of the longest suffix of `added` that is a prefix of `rest`, if it contains the last line of `content`.
fn shortened(rest: &str, added: &str, content: &str) -> Option<usize> {
    let length = overlap(added.as_bytes(), rest.as_bytes());
    let kept = rest.get(..length).filter(|kept| !kept.is_empty())?;
    let last = content.trim().lines().last().unwrap_or_default().trim();
    kept.contains(last).then_some(length)
}

/// The length of the longest suffix of `a` that is a prefix of `b`.
fn overlap(a: &[u8], b: &[u8]) -> usize {
    let b = &b[..b.len().min(a.len())];
    if b.is_empty() {
        return 0;
    }
    // borders[i]: length of the longest proper prefix of b[..=i] that is also its suffix.
    let mut borders = vec![0; b.len()];
    let mut matched = 0;
    for i in 1..b.len() {
        while matched > 0 && b[i] != b[matched] {
            matched = borders[matched - 1];
        }
        matched += usize::from(b[i] == b[matched]);
        borders[i] = matched;
    }
    let mut matched = 0;
    for byte in a {
        if matched == b.len() {
            matched = borders[matched - 1];
        }
        while matched > 0 && *byte != b[matched] {
            matched = borders[matched - 1];
        }
        matched += usize::from(*byte == b[matched]);
    }
    matched
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn overlaps() {
        let table =
            [("abc", "bcd", 2), ("abc", "abc", 3), ("abc", "x", 0), ("aab", "aabaab", 3), ("", "a", 0), ("a", "", 0)];
        for (a, b, length) in table {
            assert_eq!(overlap(a.as_bytes(), b.as_bytes()), length, "{a} {b}");
        }
    }

    proptest! {
        #[test]
        fn an_overlap_is_the_longest(a in "[ab]{0,12}", b in "[ab]{0,12}") {
            let longest = (0..=a.len().min(b.len())).rev().find(|n| a.ends_with(&b[..*n])).unwrap_or(0);
            prop_assert_eq!(overlap(a.as_bytes(), b.as_bytes()), longest);
        }
    }
}
