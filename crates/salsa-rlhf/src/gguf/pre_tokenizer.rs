//! How texts are split before byte-level merges: `tokenizer.ggml.pre`, and the same in `tokenizer.json`.

use serde_json::{Value, json};

/// A way to split.
#[derive(Clone, Copy)]
pub(super) struct PreTokenizer {
    /// Its names in files; the first is written.
    pub(super) names: &'static [&'static str],
    split: Split,
    /// A word that is a token is not merged from its pieces.
    pub(super) ignore_merges: bool,
    /// Characters are composed first.
    pub(super) nfc: bool,
    /// A beginning-of-sequence token is added if the file does not say.
    pub(super) adds_bos: bool,
}

#[derive(Clone, Copy)]
enum Split {
    /// GPT-2's pattern, which is built into the library.
    Gpt2,
    /// Each digit alone, then GPT-2's pattern.
    DigitsThenGpt2,
    /// A pattern.
    Pattern(&'static str),
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const GPT2: PreTokenizer =
    PreTokenizer { names: &["gpt-2", "phi-2"], split: Split::Gpt2, ignore_merges: false, nfc: false, adds_bos: false };

/// All that are known, for the vocabularies of the supported architectures.
const TABLE: &[PreTokenizer] = &[
    GPT2,
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell"],
        split: Split::DigitsThenGpt2,
        ..GPT2
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        split: Split::Pattern(LLAMA3),
        ignore_merges: true,
        adds_bos: true,
        ..GPT2
    },
    PreTokenizer { names: &["dbrx", "smaug-bpe"], split: Split::Pattern(LLAMA3), ..GPT2 },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "kormo", "megrez"],
        split: Split::Pattern(QWEN2),
        nfc: true,
        ..GPT2
    },
    PreTokenizer { names: &["tekken"], split: Split::Pattern(TEKKEN), ignore_merges: true, ..GPT2 },
];

/// The names of all.
pub(super) fn names() -> String {
    TABLE.iter().flat_map(|one| one.names).copied().collect::<Vec<_>>().join(", ")
}

impl PreTokenizer {
    /// By `tokenizer.ggml.pre`.
    pub(super) fn named(name: &str) -> Option<&'static PreTokenizer> {
        TABLE.iter().find(|one| one.names.contains(&name))
    }

    /// The one that a `tokenizer.json` has.
    pub(super) fn of_json(tokenizer: &Value) -> Option<&'static PreTokenizer> {
        let ignores = tokenizer["model"]["ignore_merges"].as_bool().unwrap_or(false);
        let split = Kind::of(&tokenizer["pre_tokenizer"])?;
        let same = |one: &&PreTokenizer| Kind::of(&one.json()).is_some_and(|own| own == split);
        let all: Vec<&PreTokenizer> = TABLE.iter().filter(same).collect();
        all.iter().find(|one| one.ignore_merges == ignores).copied()
    }

    /// The `pre_tokenizer` of a `tokenizer.json`.
    pub(super) fn json(&self) -> Value {
        let bytes = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
        let first = match self.split {
            Split::Gpt2 => return bytes(true),
            Split::DigitsThenGpt2 => {
                let digits = json!({ "type": "Digits", "individual_digits": true });
                return json!({ "type": "Sequence", "pretokenizers": [digits, bytes(true)] });
            }
            Split::Pattern(pattern) => {
                json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false })
            }
        };
        json!({ "type": "Sequence", "pretokenizers": [first, bytes(false)] })
    }
}

/// What matters of a `pre_tokenizer`.
#[derive(PartialEq)]
enum Kind {
    Bytes,
    DigitsAndBytes,
    Pattern(String),
}

impl Kind {
    fn of(json: &Value) -> Option<Kind> {
        let list = match json["type"].as_str()? {
            "Sequence" => json["pretokenizers"].as_array()?.as_slice(),
            _ => std::slice::from_ref(json),
        };
        let (bytes, first) = list.split_last()?;
        if bytes["type"] != "ByteLevel" || bytes["add_prefix_space"].as_bool() == Some(true) {
            return None;
        }
        match (first, bytes["use_regex"].as_bool().unwrap_or(true)) {
            ([], true) => Some(Kind::Bytes),
            ([digits], true) if digits["type"] == "Digits" && digits["individual_digits"] == true => {
                Some(Kind::DigitsAndBytes)
            }
            ([split], false) if split["behavior"] == "Isolated" && split["invert"] == false => {
                split["pattern"]["Regex"].as_str().map(|pattern| Kind::Pattern(pattern.to_owned()))
            }
            _ => None,
        }
    }
}
