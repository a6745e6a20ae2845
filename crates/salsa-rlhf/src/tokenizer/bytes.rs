//! The bytes of tokens that are not whole characters, from their spelling in the vocabulary.

/// The bytes of a token spelled as `<0xE2>`, or in the alphabet of byte-level BPE; `None` for other spellings.
pub(super) fn of_spelling(token: &str) -> Option<Vec<u8>> {
    if let Some(hex) = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')) {
        return u8::from_str_radix(hex, 16).ok().map(|byte| vec![byte]);
    }
    token.chars().map(of_letter).collect()
}

/// The byte of a letter of byte-level BPE. Printable bytes are their own letters; the others have, in order, the
/// characters from 256 on.
fn of_letter(letter: char) -> Option<u8> {
    let code = u32::from(letter);
    let byte = match code {
        33..=126 | 161..=172 | 174..=255 => code,
        256..=288 => code - 256,
        289..=322 => code - 289 + 127,
        323 => 173,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Tokenizer;

    #[test]
    fn the_tokens_of_a_text_have_its_bytes() {
        let texts = ["größe 猫が 🙂🙃", "the cat"].map(str::to_owned);
        let tokenizer = Tokenizer::train_bpe(texts.into_iter(), 270, &["</s>"]).unwrap();
        let text = "größe the cat 🙂 猫 \u{fffd}\n</s>";
        let tokens = tokenizer.encode(text).unwrap();
        let bytes: Vec<u8> = tokens.iter().flat_map(|&token| tokenizer.token_bytes(token).unwrap()).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), text);
        assert!(tokens.iter().any(|&token| tokenizer.decode(&[token]).unwrap().contains('\u{fffd}')));
    }

    #[test]
    fn every_byte_has_a_letter_and_a_name() {
        let of_letters: Vec<u8> = (33..=323).filter_map(|code| of_letter(char::from_u32(code)?)).collect();
        let mut sorted = of_letters.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..=255).collect::<Vec<u8>>());
        // Space, the last control character and the soft hyphen, as in GPT-2.
        assert_eq!(of_spelling("\u{120}\u{142}\u{143}"), Some(vec![32, 160, 173]));
        assert_eq!((of_spelling("<0xE2>"), of_spelling("猫")), (Some(vec![0xe2]), None));
    }
}
