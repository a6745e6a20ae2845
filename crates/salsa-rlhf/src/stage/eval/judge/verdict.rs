//! Parses verdicts in judgments. The tools use three independent rules.
use std::sync::LazyLock;

use anyhow::Context;
use regex::Regex;
use serde_json::{Value, json};

/// The end marker of a reasoning model's thoughts.
const END_OF_THOUGHTS: &str = "</think>";

/// The text after the last `</think>`, and whether there was one.
pub(super) fn without_thoughts(text: &str) -> (&str, bool) {
    match text.rfind(END_OF_THOUGHTS) {
        Some(at) => (&text[at + END_OF_THOUGHTS.len()..], true),
        None => (text, false),
    }
}

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is a constant")
}

static SCORE: LazyLock<[Regex; 2]> =
    LazyLock::new(|| [pattern(r"\[\[([0-9]+\.?[0-9]*)\]\]"), pattern(r"\[([0-9]+\.?[0-9]*)\]")]);
static SCORES: LazyLock<[Regex; 2]> = LazyLock::new(|| {
    [pattern(r"\[\[([0-9]+\.?[0-9]*),\s?([0-9]+\.?[0-9]*)\]\]"), pattern(r"\[([0-9]+\.?[0-9]*),\s?([0-9]+\.?[0-9]*)\]")]
});
static LABEL: LazyLock<Regex> = LazyLock::new(|| pattern(r"\[\[([AB<>=]+)\]\]"));

/// MT-Bench, single answers: the first `[[number]]`, else the first `[number]`, else `None`; integers stay integers. As
/// in the tool, the range is not checked.
pub(super) fn score(text: &str) -> Option<Value> {
    let found = SCORE.iter().find_map(|pattern| pattern.captures(text))?;
    number(&found[1])
}

fn number(text: &str) -> Option<Value> {
    match text.contains('.') {
        true => text.parse::<f64>().ok().map(|number| json!(number)),
        // Numbers beyond the integer range become floats.
        false => {
            text.parse::<u64>().map(|number| json!(number)).or_else(|_| text.parse::<f64>().map(|n| json!(n))).ok()
        }
    }
}

/// The answer that a judge prefers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preferred {
    /// The one shown first.
    A,
    /// The one shown second.
    B,
    /// Neither.
    Tie,
}

/// MT-Bench, pairs: the first of `[[A]]`, `[[B]]`, `[[C]]`, in this order, that occurs anywhere. As in the tool, a
/// judgment that mentions `[[A]]` and ends with `[[B]]` is for A.
pub(super) fn preferred(text: &str) -> Option<Preferred> {
    let verdicts = [("[[A]]", Preferred::A), ("[[B]]", Preferred::B), ("[[C]]", Preferred::Tie)];
    verdicts.into_iter().find(|(label, _)| text.contains(label)).map(|(_, preferred)| preferred)
}

/// Maximum score difference of a tie.
const TIE: f64 = 0.1;

/// MT-Bench, graded pairs: `[[a,b]]`, else `[a,b]`; scores within 0.1 tie.
pub(super) fn preferred_by_scores(text: &str) -> Option<Preferred> {
    let found = SCORES.iter().find_map(|pattern| pattern.captures(text))?;
    let (a, b): (f64, f64) = (found[1].parse().ok()?, found[2].parse().ok()?);
    Some(match a - b {
        difference if difference.abs() <= TIE => Preferred::Tie,
        difference if difference > 0.0 => Preferred::A,
        _ => Preferred::B,
    })
}

/// The labels that Arena-Hard v0.1 finds in all attempts together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// One label, possibly repeated.
    Label(String),
    /// None: a second attempt follows.
    Nothing,
    /// Several different ones: no verdict, and no second attempt.
    Contradiction,
}

/// Arena-Hard v0.1: the only label in `[[…]]`.
pub(super) fn only_label(text: &str) -> Found {
    let mut labels = LABEL.captures_iter(text).map(|found| found[1].to_owned());
    let Some(first) = labels.next() else { return Found::Nothing };
    if labels.all(|label| label == first) { Found::Label(first) } else { Found::Contradiction }
}

/// The patterns of Arena-Hard v2, in order of preference.
pub(super) struct Patterns(Vec<Regex>);

impl Patterns {
    /// The tool's default patterns: `[[label]]`, else `[label]`.
    pub(super) fn standard() -> Patterns {
        Patterns(vec![LABEL.clone(), pattern(r"\[([AB<>=]+)\]")])
    }

    /// The patterns of a configuration file.
    ///
    /// # Errors
    /// If one is no valid pattern, or has no group.
    pub(super) fn new(texts: &[String]) -> anyhow::Result<Patterns> {
        let compiled = texts.iter().map(|text| {
            let pattern =
                Regex::new(text).with_context(|| format!("regex_patterns: {text:?} is no regular expression"))?;
            anyhow::ensure!(pattern.captures_len() > 1, "regex_patterns: {text:?} has no group for the label");
            Ok(pattern)
        });
        Ok(Patterns(compiled.collect::<anyhow::Result<_>>()?))
    }

    /// Arena-Hard v2: the last match of the first pattern that matches the upper-cased text.
    pub(super) fn last_label(&self, text: &str) -> Option<String> {
        let text = text.to_uppercase();
        let last = |pattern: &Regex| {
            let labels = pattern.captures_iter(&text).filter_map(|found| Some(found.get(1)?.as_str().to_owned()));
            labels.filter(|label| !label.is_empty()).last()
        };
        self.0.iter().find_map(last)
    }
}

/// The meaning of a label: the five of v0.1, and five more of v2.
pub(super) fn label(text: &str) -> Option<salsa_algo::judge::arena::Label> {
    use salsa_algo::judge::arena::Label;
    Some(match text {
        "A>>B" | "B<<A" => Label::MuchBetter,
        "A>B" | "B<A" => Label::Better,
        "A=B" | "B=A" => Label::Tie,
        "B>A" | "A<B" => Label::Worse,
        "B>>A" | "A<<B" => Label::MuchWorse,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_read_as_fastchat_reads_them() {
        for (text, expected) in [
            ("Rating: [[8]]", Some(json!(8))),
            ("[[8.5]] and then [[3]]", Some(json!(8.5))),
            ("[2] before [[9.]]", Some(json!(9.0))),
            ("Rating: [7]", Some(json!(7))),
            ("[[10]", Some(json!(10))),
            ("9/10", None),
            ("[[ 8 ]]", None),
            ("[[-1]]", None),
            ("[[1000]]", Some(json!(1000))),
            ("$ERROR$", None),
            ("[[1", None),
        ] {
            assert_eq!(score(text), expected, "{text}");
        }
        assert_eq!(score("[[99999999999999999999999]]").and_then(|n| n.as_f64()), Some(1e23));
    }

    #[test]
    fn the_first_literal_in_fixed_order_wins() {
        for (text, expected) in [
            ("[[A]]", Some(Preferred::A)),
            ("I doubted [[A]], but [[B]]", Some(Preferred::A)),
            ("[[C]] [[B]]", Some(Preferred::B)),
            ("[[C]]", Some(Preferred::Tie)),
            ("[A]", None),
            ("A>B", None),
        ] {
            assert_eq!(preferred(text), expected, "{text}");
        }
        assert_eq!(preferred_by_scores("[[8.1,8]]"), Some(Preferred::Tie));
        assert_eq!(preferred_by_scores("[7, 9]"), Some(Preferred::B));
        assert_eq!(preferred_by_scores("[[9,7]]"), Some(Preferred::A));
        assert_eq!(preferred_by_scores("9 to 7"), None);
    }

    #[test]
    fn one_distinct_label_or_none() {
        assert_eq!(only_label("[[A>>B]] so [[A>>B]]"), Found::Label("A>>B".to_owned()));
        assert_eq!(only_label("[[A>B]] or [[B>A]]"), Found::Contradiction);
        assert_eq!(only_label("[A>B] [[a>b]]"), Found::Nothing);
    }

    #[test]
    fn the_last_label_of_the_text_in_capitals() {
        let patterns = Patterns::standard();
        for (text, expected) in [
            ("[[A>B]] no, [[b>>a]]", Some("B>>A")),
            ("[A>B] [A=B]", Some("A=B")),
            ("[A>B] [[B>A]] [A=B]", Some("B>A")),
            ("nothing", None),
        ] {
            assert_eq!(patterns.last_label(text).as_deref(), expected, "{text}");
        }
        let own = Patterns::new(&["VERDICT: ([AB<>=]+)".to_owned()]).unwrap();
        assert_eq!(own.last_label("verdict: A>B").as_deref(), Some("A>B"));
        assert!(Patterns::new(&["[AB".to_owned()]).is_err() && Patterns::new(&["[AB]+".to_owned()]).is_err());
    }

    #[test]
    fn ten_labels_have_a_meaning() {
        for (one, other) in [("A>>B", "B<<A"), ("A>B", "B<A"), ("A=B", "B=A"), ("B>A", "A<B"), ("B>>A", "A<<B")] {
            assert!(label(one).is_some() && label(one) == label(other), "{one}");
        }
        assert_eq!([label("A"), label(">>"), label("A>>>B")], [None; 3]);
    }

    #[test]
    fn thoughts_are_no_verdict() {
        assert_eq!(without_thoughts("<think>[[A]]?</think> [[B]]"), (" [[B]]", true));
        assert_eq!(without_thoughts("[[B]]"), ("[[B]]", false));
    }
}
