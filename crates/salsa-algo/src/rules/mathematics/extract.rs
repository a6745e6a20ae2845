//! Where the final answer stands in a text.

/// Where a response states its final answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum AnswerPlace {
    /// In the last `\boxed{...}` or `\fbox{...}`.
    #[default]
    Boxed,
    /// On the last line with `#### `, behind it, as in GSM8K.
    Hashes,
    /// The last number of the text.
    Last,
    /// In a box, else behind `####`, else the last number.
    Any,
}

/// Returns the final answer of a text, or nothing if it states none. Takes time linear in the length.
///
/// ```
/// use salsa_algo::rules::mathematics::{AnswerPlace, find_answer};
/// let text = r"so \boxed{1}, no: \boxed{\frac{1}{2}}";
/// assert_eq!(find_answer(text, AnswerPlace::Boxed), Some(r"\frac{1}{2}"));
/// assert_eq!(find_answer("6 + 6 = 12\n#### 12", AnswerPlace::Hashes), Some("12"));
/// assert_eq!(find_answer("12 eggs, 3 left.", AnswerPlace::Any), Some("3"));
/// assert_eq!(find_answer("12 eggs", AnswerPlace::Boxed), None);
/// ```
pub fn find_answer(text: &str, place: AnswerPlace) -> Option<&str> {
    match place {
        AnswerPlace::Boxed => boxed(text),
        AnswerPlace::Hashes => hashes(text),
        AnswerPlace::Last => last_number(text),
        AnswerPlace::Any => stated(text).or_else(|| last_number(text)),
    }
}

/// The answer in a box or behind `####`.
pub(super) fn stated(text: &str) -> Option<&str> {
    boxed(text).or_else(|| hashes(text))
}

/// The last box, if it is closed: an unfinished one is no answer, and no earlier one counts instead.
fn boxed(text: &str) -> Option<&str> {
    let after = ["\\boxed", "\\fbox"].iter().filter_map(|command| {
        let start = text.rfind(command)?;
        Some(start + command.len())
    });
    let content = text[after.max()?..].trim_start();
    let Some(inner) = content.strip_prefix('{') else {
        // \boxed 5: one token, up to a space or the end of the formula.
        let end = content.find(|c: char| c.is_whitespace() || c == '$').unwrap_or(content.len());
        return Some(&content[..end]).filter(|answer| !answer.is_empty());
    };
    let (mut depth, mut escaped) = (1usize, false);
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(inner[..at].trim());
        }
    }
    None
}

fn hashes(text: &str) -> Option<&str> {
    let after = &text[text.rfind("####")? + 4..];
    let line = after.lines().next().unwrap_or("").trim();
    (!line.is_empty()).then_some(line)
}

/// Digits with thousands separators, a fraction and a sign that belongs to them.
fn last_number(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let end = bytes.iter().rposition(u8::is_ascii_digit)? + 1;
    let mut start = end - 1;
    while start > 0
        && (digit(start - 1) || (matches!(bytes[start - 1], b',' | b'.' | b'/') && start > 1 && digit(start - 2)))
    {
        start -= 1;
    }
    if start > 0 && bytes[start - 1] == b'.' {
        start -= 1;
    }
    // 5-3 is no -3.
    if start > 0
        && bytes[start - 1] == b'-'
        && !(start > 1 && (digit(start - 2) || bytes[start - 2].is_ascii_alphabetic()))
    {
        start -= 1;
    }
    if let Some(before) = text[..start].strip_suffix('−')
        && !before.ends_with(|c: char| c.is_ascii_alphanumeric())
    {
        start = before.len();
    }
    Some(&text[start..end])
}
