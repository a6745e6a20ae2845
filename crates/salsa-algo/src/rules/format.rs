//! Tags around reasoning and answer.

/// A form that a whole response must have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Format {
    /// `<think>` at the very start and nowhere else, `</think>` somewhere after it, then anything.
    #[default]
    Think,
    /// `<think>`, `</think>`, `<answer>` and `</answer>`, each alone on its line, in this order, from the very start;
    /// the line of `</answer>` may be followed by others.
    ThinkAnswer,
}

/// Whether a response has this form.
///
/// ```text
/// Think         ^<think>(?!.*<think>)(.*?)</think>.*$
/// ThinkAnswer   ^<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>$
/// ```
///
/// as Python's `re.match` reads them with `DOTALL | MULTILINE`. Source: TRL's `think_format_reward` and open-r1's
/// `format_reward`, whose rewards are 1 and 0.
///
/// ```
/// use salsa_algo::rules::format::{Format, has_format};
/// assert!(has_format("<think>\n1 + 1\n</think>\n2", Format::Think));
/// assert!(!has_format("2 <think></think>", Format::Think)); // not at the start
/// assert!(has_format("<think>\n1 + 1\n</think>\n<answer>\n2\n</answer>", Format::ThinkAnswer));
/// assert!(!has_format("<think>1 + 1</think><answer>2</answer>", Format::ThinkAnswer)); // no lines of their own
/// ```
pub fn has_format(response: &str, format: Format) -> bool {
    match format {
        Format::Think => {
            response.strip_prefix("<think>").is_some_and(|rest| !rest.contains("<think>") && rest.contains("</think>"))
        }
        Format::ThinkAnswer => {
            let rest = response.strip_prefix("<think>\n");
            let answer = rest.and_then(|rest| rest.split_once("\n</think>\n<answer>\n"));
            answer.is_some_and(|(_, answer)| answer.ends_with("\n</answer>") || answer.contains("\n</answer>\n"))
        }
    }
}

/// The tags of [`Format::ThinkAnswer`] with their line breaks, as open-r1's `tag_count_reward` counts them.
pub const THINK_ANSWER_TAGS: [&str; 4] = ["<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>"];

/// The share of the tags that stand in a response exactly once; 0 if there are no tags.
///
/// With [`THINK_ANSWER_TAGS`] this is open-r1's `tag_count_reward`: a quarter for each of the four.
///
/// ```
/// use salsa_algo::rules::format::{THINK_ANSWER_TAGS, tags_once};
/// assert_eq!(tags_once("<think>\nx\n</think>\n", &THINK_ANSWER_TAGS), 0.5);
/// assert_eq!(tags_once("<a><a></a>", &["<a>", "</a>"]), 0.5); // <a> stands twice
/// ```
pub fn tags_once(response: &str, tags: &[&str]) -> f64 {
    let once = tags.iter().filter(|tag| response.matches(**tag).take(2).count() == 1).count();
    once as f64 / tags.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_shares_no_line_break_with_the_next() {
        let whole = "<think>\na\n</think>\n<answer>\nb\n</answer>";
        assert_eq!(tags_once(whole, &THINK_ANSWER_TAGS), 1.0);
        assert_eq!(tags_once(&format!("{whole}{whole}"), &THINK_ANSWER_TAGS), 0.0);
        assert_eq!(tags_once("", &THINK_ANSWER_TAGS), 0.0);
        assert_eq!(tags_once("x", &[]), 0.0);
    }

    #[test]
    fn lines_of_think_and_answer() {
        let has = |text| has_format(text, Format::ThinkAnswer);
        assert!(has("<think>\n\n</think>\n<answer>\n\n</answer>"), "empty contents");
        assert!(!has("<think>\n</think>\n<answer>\n</answer>"), "one line break is not two");
        assert!(has("<think>\na\n</think>\n<answer>\nb\n</answer>\nmore"), "the end of a line is enough");
        assert!(!has("<think>\na\n</think>\n<answer>\nb\n</answer> more"));
        assert!(!has("\n<think>\na\n</think>\n<answer>\nb\n</answer>"));
        assert!(!has("<think>\na\n</think>\n\n<answer>\nb\n</answer>"));
    }
}
