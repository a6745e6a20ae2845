//! Incremental detokenisation of a choice, with stop texts.
use crate::stage::text::encoder::Encoder;

/// The text of a choice so far.
///
/// A token may be part of a character, and its text may depend on the previous token. Therefore the last tokens are
/// decoded together, and text is appended once it ends with a whole character.
#[derive(Debug, Default)]
pub(super) struct Text {
    tokens: Vec<u32>,
    /// The tokens before `read` are in `text`; those from `window` on are decoded together with later ones.
    window: usize,
    read: usize,
    text: String,
    stops: Vec<String>,
    /// Bytes of `text` that were emitted.
    told: usize,
    is_stopped: bool,
}

impl Text {
    /// An empty text, which will end before the first occurrence of any of `stops`.
    pub(super) fn new(stops: &[String]) -> Text {
        Text { stops: stops.to_vec(), ..Text::default() }
    }

    /// Appends a token.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub(super) fn push(&mut self, encoder: &Encoder, token: u32) -> anyhow::Result<()> {
        self.tokens.push(token);
        self.decode(encoder, Ending::Open)
    }

    /// Flushes an incomplete character.
    ///
    /// # Errors
    /// As [`Text::push`].
    pub(super) fn finish(&mut self, encoder: &Encoder) -> anyhow::Result<()> {
        self.decode(encoder, Ending::Last)
    }

    fn decode(&mut self, encoder: &Encoder, ending: Ending) -> anyhow::Result<()> {
        if self.is_stopped {
            return Ok(());
        }
        let before = encoder.decode(&self.tokens[self.window..self.read])?;
        let now = encoder.decode(&self.tokens[self.window..])?;
        let Some(more) = now.get(before.len()..).filter(|more| !more.is_empty()) else { return Ok(()) };
        if ending == Ending::Open && more.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(());
        }
        let searched = self.text.len();
        self.text += more;
        (self.window, self.read) = (self.read, self.tokens.len());
        self.stop_from(searched);
        Ok(())
    }

    /// Truncates the text before the stop text that is complete first and ends after `searched` bytes; of several that
    /// end there, before the longest. The result is independent of how many characters a token has.
    fn stop_from(&mut self, searched: usize) {
        let find = |stop: &String| {
            let start = floor(&self.text, searched.saturating_sub(stop.len() - 1));
            self.text[start..].find(stop.as_str()).map(|at| (start + at + stop.len(), start + at))
        };
        if let Some((_, at)) = self.stops.iter().filter_map(find).min() {
            self.text.truncate(at);
            self.is_stopped = true;
        }
    }

    /// Whether a stop text occurred, which ends the choice.
    pub(super) fn is_stopped(&self) -> bool {
        self.is_stopped
    }

    /// Returns the text not emitted yet, except for a suffix that may be the beginning of a stop text.
    pub(super) fn more(&mut self) -> String {
        let held = if self.is_stopped { 0 } else { self.stops.iter().map(|stop| self.begun(stop)).max().unwrap_or(0) };
        self.up_to(self.text.len() - held)
    }

    /// Returns all text not emitted yet.
    pub(super) fn rest(&mut self) -> String {
        self.up_to(self.text.len())
    }

    /// The whole text of a finished choice: as `salsa generate` decodes it, unless a stop text truncated it.
    ///
    /// # Errors
    /// As [`Text::push`].
    pub(super) fn whole(&self, encoder: &Encoder) -> anyhow::Result<String> {
        if self.is_stopped { Ok(self.text.clone()) } else { encoder.decode(&self.tokens) }
    }

    /// The tokens so far.
    #[cfg(test)]
    fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    fn up_to(&mut self, end: usize) -> String {
        // A stop text cannot have started in emitted text, since such a suffix is held back.
        let start = self.told.min(end);
        self.told = end.max(self.told);
        self.text[start..end].to_owned()
    }

    /// Length of the longest suffix of the text that is a proper prefix of `stop`.
    fn begun(&self, stop: &str) -> usize {
        let longest = self.text.len().min(stop.len() - 1);
        (1..=longest).rev().find(|&len| stop.is_char_boundary(len) && self.text.ends_with(&stop[..len])).unwrap_or(0)
    }
}

/// Whether more tokens may follow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    Open,
    Last,
}

/// The last character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tokenizer::Tokenizer;

    fn encoder() -> Encoder {
        let texts = ["the cat sat on the mat", "größe und maß", "猫が座った", "🙂🙃 and on"].map(str::to_owned);
        Encoder::new(Tokenizer::train_bpe(texts.into_iter(), 300, &["</s>"]).unwrap(), None, vec![0])
    }

    fn pieces(encoder: &Encoder, tokens: &[u32], stops: &[String]) -> (Vec<String>, bool, usize) {
        let (mut text, mut pieces) = (Text::new(stops), Vec::new());
        for &token in tokens {
            text.push(encoder, token).unwrap();
            pieces.push(text.more());
            if text.is_stopped() {
                return (pieces, true, text.tokens().len());
            }
        }
        text.finish(encoder).unwrap();
        pieces.push(text.rest());
        (pieces, text.is_stopped(), text.tokens().len())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn pieces_of_any_tokens_are_the_text_of_all(tokens in prop::collection::vec(0u32..290, 0..60)) {
            let encoder = encoder();
            let (pieces, stopped, _) = pieces(&encoder, &tokens, &[]);
            prop_assert!(!stopped);
            prop_assert_eq!(pieces.concat(), encoder.decode(&tokens).unwrap());
        }

        #[test]
        fn the_text_ends_before_the_first_stop_text(
            text in "[ab🙂]{0,12}",
            stops in prop::collection::vec("[ab🙂]{1,3}", 1..3),
        ) {
            let encoder = encoder();
            let tokens = encoder.tokens_of_rendered(&text).unwrap();
            let (pieces, stopped, _) = pieces(&encoder, &tokens, &stops);
            // The first complete stop text ends the choice, even if the same token contains another one.
            let ends = text.char_indices().map(|(at, letter)| at + letter.len_utf8());
            let end = ends.into_iter().find_map(|end| {
                stops.iter().filter_map(|stop| text[..end].find(stop.as_str())).min()
            });
            prop_assert_eq!(stopped, end.is_some());
            prop_assert_eq!(pieces.concat(), &text[..end.unwrap_or(text.len())]);
        }
    }

    /// A token that ends inside a character is decoded later: then two stop texts are found together.
    #[test]
    fn of_two_stop_texts_the_one_that_is_complete_first_ends_the_choice() {
        let encoder = encoder();
        for (text, told) in [("a🙂🙂", "a"), ("a🙂", "a"), ("aa🙂🙂", "aa")] {
            let tokens = encoder.tokens_of_rendered(text).unwrap();
            let (pieces, stopped, _) = pieces(&encoder, &tokens, &["🙂".to_owned(), "a🙂🙂".to_owned()]);
            assert_eq!((pieces.concat().as_str(), stopped), (told, true), "{text}");
        }
    }

    #[test]
    fn what_may_begin_a_stop_text_is_held_back() {
        let encoder = encoder();
        let mut text = Text::new(&["abab!".to_owned(), "bx?".to_owned()]);
        for (letter, told) in [("a", ""), ("b", ""), ("a", ""), ("b", ""), ("x", "aba"), ("a", "bx"), ("c", "ac")] {
            text.push(&encoder, encoder.tokens_of_rendered(letter).unwrap()[0]).unwrap();
            assert_eq!(text.more(), told, "after {letter}");
        }
        assert_eq!(text.rest(), "");
    }
}
