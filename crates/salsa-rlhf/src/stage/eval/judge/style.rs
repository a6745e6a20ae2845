//! Style counts of Arena-Hard: tokens and markdown.
use std::sync::LazyLock;

use regex::Regex;
use salsa_algo::judge::style::Style;
use tiktoken_rs::CoreBPE;

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is a constant")
}

static CODE: LazyLock<Regex> = LazyLock::new(|| pattern("```([^`]*)```"));
static HEADERS: LazyLock<[Regex; 6]> =
    LazyLock::new(|| [1, 2, 3, 4, 5, 6].map(|level| pattern(&format!("(?m)^#{{{level}}}{SPACE}"))));
static LISTS: LazyLock<[Regex; 2]> =
    LazyLock::new(|| [pattern(&format!(r"(?m)^{SPACE}*\d+\.{SPACE}")), pattern(&format!("(?m)^{SPACE}*[-*+]{SPACE}"))]);
static BOLD: LazyLock<[Regex; 2]> = LazyLock::new(|| [pattern(r"\*\*[^*\n]+\*\*"), pattern(r"__[^_\n]+__")]);

/// Matches like Python's `\s`: Unicode white space, and four separator control characters.
const SPACE: &str = r"[\s\x1c-\x1f]";

/// The encoding whose tokens are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// v0.1: those of gpt-3.5-turbo.
    Cl100k,
    /// v2: those of gpt-4o.
    O200k,
}

impl Encoding {
    fn tokenizer(self) -> &'static CoreBPE {
        match self {
            Encoding::Cl100k => tiktoken_rs::cl100k_base_singleton(),
            Encoding::O200k => tiktoken_rs::o200k_base_singleton(),
        }
    }

    /// The number of tokens of a text; special tokens are encoded as text.
    pub(super) fn tokens(self, text: &str) -> usize {
        self.tokenizer().encode_ordinary(text).len()
    }
}

/// The counts of an answer: tokens of the whole; headers, list items and bold passages outside of code.
pub(super) fn of(answer: &str, encoding: Encoding) -> Style {
    let text = without_code(answer);
    let count =
        |patterns: &[Regex]| patterns.iter().map(|pattern| pattern.find_iter(&text).count()).sum::<usize>() as f64;
    Style {
        tokens: encoding.tokens(answer) as f64,
        headers: count(&*HEADERS),
        lists: count(&*LISTS),
        bold: count(&*BOLD),
    }
}

/// Removes the text between triple backticks, including all its other occurrences; the backticks stay.
fn without_code(answer: &str) -> String {
    let blocks: Vec<&str> = CODE.captures_iter(answer).filter_map(|found| Some(found.get(1)?.as_str())).collect();
    let mut text = answer.to_owned();
    for block in blocks.into_iter().filter(|block| !block.is_empty()) {
        text = text.replace(block, "");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_is_counted_outside_of_code() {
        let answer =
            "# One\n## Two\n#no\n1. a\n  - b\n* c\n**bold** and __too__ **not\nthis**\n```\n# code\n- x\n```\n";
        let style = of(answer, Encoding::O200k);
        assert_eq!((style.headers, style.lists, style.bold), (2.0, 3.0, 2.0));
        assert_eq!(of("", Encoding::Cl100k), Style::default());
    }

    #[test]
    fn tokens_are_openais() {
        // Published examples of the two encodings.
        assert_eq!(Encoding::Cl100k.tokens("tiktoken is great!"), 6);
        assert_eq!(Encoding::O200k.tokens("antidisestablishmentarianism"), 6);
        assert!(Encoding::O200k.tokens("<|endoftext|>") > 1, "it is text");
    }
}
