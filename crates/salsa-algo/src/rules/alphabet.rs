//! The script a text is written in.

/// A script, or several that belong together, by ranges of Unicode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Alphabet {
    /// Latin, with all its accents and full-width forms.
    Latin,
    /// The letters of Greek.
    Greek,
    /// The letters of Cyrillic.
    Cyrillic,
    /// The letters of Armenian.
    Armenian,
    /// The letters of Georgian.
    Georgian,
    /// The letters of Hebrew.
    Hebrew,
    /// Arabic, with the letters of Persian and Urdu.
    Arabic,
    /// Devanagari: Hindi, Marathi, Nepali.
    Devanagari,
    /// The letters of Bengali.
    Bengali,
    /// Gurmukhi, of Punjabi.
    Gurmukhi,
    /// The letters of Gujarati.
    Gujarati,
    /// The letters of Tamil.
    Tamil,
    /// The letters of Telugu.
    Telugu,
    /// The letters of Kannada.
    Kannada,
    /// The letters of Malayalam.
    Malayalam,
    /// The letters of Thai.
    Thai,
    /// The letters of Lao.
    Lao,
    /// The letters of Tibetan.
    Tibetan,
    /// The letters of Burmese.
    Myanmar,
    /// The letters of Khmer.
    Khmer,
    /// Ethiopic: Amharic, Tigrinya.
    Ethiopic,
    /// The letters of Korean.
    Hangul,
    /// Hiragana and Katakana. Japanese text is Kana and Han.
    Kana,
    /// Chinese characters, wherever they are used.
    Han,
}

impl Alphabet {
    /// The ranges of this script, first and last code point; what is in them and no letter never counts.
    const fn ranges(self) -> &'static [(u32, u32)] {
        match self {
            Alphabet::Latin => &[
                (0x41, 0x5a),
                (0x61, 0x7a),
                (0xaa, 0xaa),
                (0xba, 0xba),
                (0xc0, 0xd6),
                (0xd8, 0xf6),
                (0xf8, 0x2b8),
                (0x2e0, 0x2e4),
                (0x1d00, 0x1d25),
                (0x1d2c, 0x1d5c),
                (0x1d62, 0x1d65),
                (0x1d6b, 0x1d77),
                (0x1d79, 0x1dbe),
                (0x1e00, 0x1eff),
                (0x2071, 0x2071),
                (0x207f, 0x207f),
                (0x2090, 0x209c),
                (0x212a, 0x212b),
                (0x2132, 0x2132),
                (0x214e, 0x214e),
                (0x2160, 0x2188),
                (0x2c60, 0x2c7f),
                (0xa722, 0xa787),
                (0xa78b, 0xa7ff),
                (0xab30, 0xab64),
                (0xfb00, 0xfb06),
                (0xff21, 0xff3a),
                (0xff41, 0xff5a),
            ],
            Alphabet::Greek => &[(0x370, 0x3e1), (0x3f0, 0x3ff), (0x1d26, 0x1d2a), (0x1f00, 0x1fff), (0x2126, 0x2126)],
            Alphabet::Cyrillic => &[
                (0x400, 0x52f),
                (0x1c80, 0x1c8f),
                (0x1d2b, 0x1d2b),
                (0x1d78, 0x1d78),
                (0x2de0, 0x2dff),
                (0xa640, 0xa69f),
            ],
            Alphabet::Armenian => &[(0x531, 0x58f), (0xfb13, 0xfb17)],
            Alphabet::Georgian => &[(0x10a0, 0x10ff), (0x1c90, 0x1cbf), (0x2d00, 0x2d2f)],
            Alphabet::Hebrew => &[(0x591, 0x5f4), (0xfb1d, 0xfb4f)],
            Alphabet::Arabic => &[(0x600, 0x6ff), (0x750, 0x77f), (0x870, 0x8ff), (0xfb50, 0xfdff), (0xfe70, 0xfefc)],
            Alphabet::Devanagari => &[(0x900, 0x97f), (0xa8e0, 0xa8ff)],
            Alphabet::Bengali => &[(0x980, 0x9ff)],
            Alphabet::Gurmukhi => &[(0xa00, 0xa7f)],
            Alphabet::Gujarati => &[(0xa80, 0xaff)],
            Alphabet::Tamil => &[(0xb80, 0xbff)],
            Alphabet::Telugu => &[(0xc00, 0xc7f)],
            Alphabet::Kannada => &[(0xc80, 0xcff)],
            Alphabet::Malayalam => &[(0xd00, 0xd7f)],
            Alphabet::Thai => &[(0xe00, 0xe7f)],
            Alphabet::Lao => &[(0xe80, 0xeff)],
            Alphabet::Tibetan => &[(0xf00, 0xfff)],
            Alphabet::Myanmar => &[(0x1000, 0x109f), (0xa9e0, 0xa9ff), (0xaa60, 0xaa7f)],
            Alphabet::Khmer => &[(0x1780, 0x17ff)],
            Alphabet::Ethiopic => &[(0x1200, 0x139f), (0x2d80, 0x2ddf), (0xab01, 0xab2f)],
            Alphabet::Hangul => {
                &[(0x1100, 0x11ff), (0x3131, 0x318e), (0xa960, 0xa97f), (0xac00, 0xd7ff), (0xffa0, 0xffdc)]
            }
            Alphabet::Kana => &[(0x3041, 0x30ff), (0x31f0, 0x31ff), (0xff66, 0xff9f), (0x1b000, 0x1b16f)],
            Alphabet::Han => &[
                (0x2e80, 0x2fdf),
                (0x3005, 0x3007),
                (0x3021, 0x3029),
                (0x3038, 0x303b),
                (0x3400, 0x4dbf),
                (0x4e00, 0x9fff),
                (0xf900, 0xfaff),
                (0x20000, 0x323af),
            ],
        }
    }

    /// Whether a character lies in the ranges of this script.
    pub fn contains(self, character: char) -> bool {
        let code = u32::from(character);
        self.ranges().iter().any(|&(first, last)| (first..=last).contains(&code))
    }
}

/// The share of the letters of a text that belong to one of these scripts; nothing if the text has no letter.
///
/// A letter is what Unicode calls alphabetic: vowel signs of Indian scripts count; digits, punctuation and emoji do
/// not.
///
/// ```
/// use salsa_algo::rules::alphabet::{Alphabet, share};
/// assert_eq!(share("Das ist ёж!", &[Alphabet::Latin]), Some(0.75)); // 6 of 8 letters
/// assert_eq!(share("日本語です", &[Alphabet::Han, Alphabet::Kana]), Some(1.0));
/// assert_eq!(share("1 + 1 = 2", &[Alphabet::Latin]), None);
/// ```
pub fn share(text: &str, alphabets: &[Alphabet]) -> Option<f64> {
    let (mut all, mut inside) = (0u64, 0u64);
    for letter in text.chars().filter(|character| character.is_alphabetic()) {
        all += 1;
        inside += u64::from(alphabets.iter().any(|alphabet| alphabet.contains(letter)));
    }
    (all > 0).then(|| inside as f64 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLES: [(Alphabet, &str); 24] = [
        (Alphabet::Latin, "Ærøskøbing Żółć Tiếng Việt ABC"),
        (Alphabet::Greek, "Ἀθῆναι Ωμέγα"),
        (Alphabet::Cyrillic, "Съешь ёщё Київ Ѣ"),
        (Alphabet::Armenian, "Հայերեն"),
        (Alphabet::Georgian, "ქართული"),
        (Alphabet::Hebrew, "שלום"),
        (Alphabet::Arabic, "العربية پنجابی"),
        (Alphabet::Devanagari, "नमस्ते"),
        (Alphabet::Bengali, "বাংলা"),
        (Alphabet::Gurmukhi, "ਪੰਜਾਬੀ"),
        (Alphabet::Gujarati, "ગુજરાતી"),
        (Alphabet::Tamil, "தமிழ்"),
        (Alphabet::Telugu, "తెలుగు"),
        (Alphabet::Kannada, "ಕನ್ನಡ"),
        (Alphabet::Malayalam, "മലയാളം"),
        (Alphabet::Thai, "ภาษาไทย"),
        (Alphabet::Lao, "ພາສາລາວ"),
        (Alphabet::Tibetan, "བོད་ཡིག"),
        (Alphabet::Myanmar, "မြန်မာ"),
        (Alphabet::Khmer, "ភាសាខ្មែរ"),
        (Alphabet::Ethiopic, "አማርኛ"),
        (Alphabet::Hangul, "한국어 ㅋㅋ"),
        (Alphabet::Kana, "ひらがなカタカナー"),
        (Alphabet::Han, "汉字漢字々"),
    ];

    #[test]
    fn each_sample_is_in_its_own_script_only() {
        for (own, text) in SAMPLES {
            for (other, _) in SAMPLES {
                assert_eq!(share(text, &[other]), Some(if own == other { 1.0 } else { 0.0 }), "{text} {other:?}");
            }
        }
    }

    #[test]
    fn no_character_is_in_two_scripts() {
        for character in '\0'..=char::MAX {
            let scripts = SAMPLES.iter().filter(|(alphabet, _)| alphabet.contains(character)).count();
            assert!(scripts <= 1, "{character:?}");
        }
    }
}
