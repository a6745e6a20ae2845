//! The vocabulary of a file to `tokenizer.json`, as transformers builds it from the same keys.

use std::cmp::Reverse;
use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::architecture::Pieces;
use super::pre_tokenizer::{self, PreTokenizer};
use super::value::Metadata;

/// The kinds of tokens in `tokenizer.ggml.token_type`.
pub(super) const NORMAL: i32 = 1;
pub(super) const UNKNOWN: i32 = 2;
pub(super) const CONTROL: i32 = 3;
pub(super) const USER_DEFINED: i32 = 4;
pub(super) const UNUSED: i32 = 5;
pub(super) const BYTE: i32 = 6;

/// The tokenizer of a file.
pub(super) struct Vocabulary<'a> {
    metadata: &'a Metadata,
    tokens: Vec<String>,
    kinds: Vec<i32>,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    /// Ends a turn, and is not `eos`.
    pub(super) turn_ends: Vec<u32>,
    pub(super) pad: Option<u32>,
    unknown: Option<u32>,
}

impl<'a> Vocabulary<'a> {
    /// Reads and checks the lists and ids.
    pub(super) fn read(metadata: &'a Metadata, rows: usize) -> Result<Vocabulary<'a>> {
        let tokens = metadata.texts("tokenizer.ggml.tokens")?.context("tokenizer.ggml.tokens is missing")?.to_vec();
        ensure!(
            !tokens.is_empty() && tokens.len() <= rows,
            "it has {} tokens and embeddings for {rows}: they do not belong together",
            tokens.len()
        );
        let kinds = match metadata.numbers("tokenizer.ggml.token_type")? {
            None => vec![NORMAL; tokens.len()],
            Some(kinds) => kinds.into_iter().map(|kind| kind as i32).collect(),
        };
        ensure!(
            kinds.len() == tokens.len(),
            "tokenizer.ggml.token_type has {} values for {} tokens",
            kinds.len(),
            tokens.len()
        );
        let id = |name: &str| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let id = metadata.size(&key)?.filter(|id| *id != u32::MAX as usize);
            let count = tokens.len();
            ensure!(
                id.is_none_or(|id| id < count),
                "{key} is {}, and there are {count} tokens",
                id.unwrap_or_default()
            );
            Ok(id.map(|id| id as u32))
        };
        let (bos, eos, pad, unknown) = (id("bos")?, id("eos")?, id("padding")?, id("unknown")?);
        let turn_ends = [id("eot")?, id("eom")?].into_iter().flatten().filter(|id| Some(*id) != eos).collect();
        Ok(Vocabulary { metadata, tokens, kinds, bos, eos, turn_ends, pad, unknown })
    }

    /// The files of a checkpoint's tokenizer: name and content.
    pub(super) fn files(mut self, pieces: Pieces, context: usize) -> Result<Vec<(&'static str, Value)>> {
        let model = self.metadata.text("tokenizer.ggml.model")?.context("tokenizer.ggml.model is missing")?;
        let (mut tokenizer, adds_bos) = match model {
            "gpt2" => self.byte_level()?,
            "llama" => (self.sentence_pieces(pieces)?, true),
            other => bail!("tokenizer.ggml.model is {other:?}: supported are gpt2 and llama; {OWN}"),
        };
        let adds = |name: &str| self.metadata.flag(&format!("tokenizer.ggml.add_{name}_token"));
        let (adds_bos, adds_eos) = (adds("bos")?.unwrap_or(adds_bos), adds("eos")?.unwrap_or(false));
        let (bos, eos) = (self.bos.filter(|_| adds_bos), self.eos.filter(|_| adds_eos));
        tokenizer["post_processor"] = self.post_processor(bos, eos);
        tokenizer["added_tokens"] = self.added_tokens();
        Ok(vec![("tokenizer.json", tokenizer), ("tokenizer_config.json", self.tokenizer_config(context))])
    }

    fn spelling(&self, id: Option<u32>) -> Value {
        id.map_or(Value::Null, |id| json!(self.tokens[id as usize]))
    }

    fn tokenizer_config(&self, context: usize) -> Value {
        json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": false,
            "model_max_length": context,
            "bos_token": self.spelling(self.bos),
            "eos_token": self.spelling(self.eos),
            "pad_token": self.spelling(self.pad),
            "unk_token": self.spelling(self.unknown),
        })
    }

    /// Control tokens are special; user-defined ones are found in texts before all others.
    fn added_tokens(&self) -> Value {
        let added = self.kinds.iter().enumerate().filter(|(_, kind)| [CONTROL, USER_DEFINED].contains(kind));
        let one = |(id, kind): (usize, &i32)| {
            json!({
                "id": id,
                "content": self.tokens[id],
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": *kind == CONTROL,
            })
        };
        added.map(one).collect()
    }

    fn post_processor(&self, bos: Option<u32>, eos: Option<u32>) -> Value {
        if bos.is_none() && eos.is_none() {
            return Value::Null;
        }
        let special =
            |id: u32, kind: u32| json!({ "SpecialToken": { "id": self.spelling(Some(id)), "type_id": kind } });
        let around = |name: &str, kind: u32| {
            let text = json!({ "Sequence": { "id": name, "type_id": kind } });
            [bos.map(|id| special(id, kind)), Some(text), eos.map(|id| special(id, kind))].into_iter().flatten()
        };
        let entry = |id: u32| {
            let name = self.tokens[id as usize].clone();
            (name.clone(), json!({ "id": name, "ids": [id], "tokens": [name] }))
        };
        json!({
            "type": "TemplateProcessing",
            "single": around("A", 0).collect::<Value>(),
            "pair": around("A", 0).chain(around("B", 1)).collect::<Value>(),
            "special_tokens": Value::Object([bos, eos].into_iter().flatten().map(entry).collect()),
        })
    }

    /// Byte-level merges, and whether a beginning token is added by default.
    fn byte_level(&self) -> Result<(Value, bool)> {
        let name = self.metadata.text("tokenizer.ggml.pre")?.context(format!(
            "tokenizer.ggml.pre is missing, so how texts are split before merging is unknown; {OWN}"
        ))?;
        let pre = PreTokenizer::named(name).with_context(|| {
            format!("tokenizer.ggml.pre is {name:?}; supported are {}; {OWN}", pre_tokenizer::names())
        })?;
        let merges = self.metadata.texts("tokenizer.ggml.merges")?.context("tokenizer.ggml.merges is missing")?;
        let ids = self.ids()?;
        let pair = |(number, merge): (usize, &String)| {
            // A piece may itself begin with a space.
            let start = merge.chars().next().map_or(0, char::len_utf8);
            let at = merge[start..].find(' ').map(|at| at + start);
            let (left, right) = at.map_or(("", ""), |at| (&merge[..at], &merge[at + 1..]));
            let known = [left, right, &format!("{left}{right}")].iter().all(|piece| ids.contains_key(*piece));
            ensure!(known, "merge {number} of tokenizer.ggml.merges joins or makes pieces that are no tokens");
            Ok(json!([left, right]))
        };
        let merges = merges.iter().enumerate().map(pair).collect::<Result<Vec<Value>>>()?;
        let tokenizer = json!({
            "version": "1.0",
            "normalizer": pre.nfc.then(|| json!({ "type": "NFC" })),
            "pre_tokenizer": pre.json(),
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": {
                "type": "BPE",
                "unk_token": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": pre.ignore_merges,
                "vocab": self.vocab(),
                "merges": merges,
            },
        });
        Ok((tokenizer, pre.adds_bos))
    }

    /// Merges recovered from the vocabulary, with bytes for characters without a token.
    fn sentence_pieces(&mut self, pieces: Pieces) -> Result<Value> {
        if pieces == Pieces::Gemma {
            // Runs of spaces are stored as spaces, and merged as their sign.
            let runs = self.tokens.iter_mut().filter(|token| token.len() > 1 && token.chars().all(|c| c == ' '));
            runs.for_each(|token| *token = token.replace(' ', "▁"));
        }
        let ids = self.ids()?;
        let scores = match pieces {
            Pieces::Gemma => (0..self.tokens.len()).map(|id| -(id as f64)).collect(),
            Pieces::Llama => {
                self.metadata.numbers("tokenizer.ggml.scores")?.context("tokenizer.ggml.scores is missing")?
            }
        };
        ensure!(
            scores.len() == self.tokens.len(),
            "tokenizer.ggml.scores has {} values for {} tokens",
            scores.len(),
            self.tokens.len()
        );
        ensure!(!scores.iter().any(|score| score.is_nan()), "tokenizer.ggml.scores has a NaN");
        let merges = match self.metadata.texts("tokenizer.ggml.merges")? {
            Some(_) => bail!("tokenizer.ggml.merges is there beside scores; {OWN}"),
            None => merges(&self.tokens, &ids, &scores),
        };
        let prefix = pieces == Pieces::Llama && self.metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let unknown = self.unknown.or(self.kinds.iter().position(|kind| *kind == UNKNOWN).map(|id| id as u32));
        let spaces = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
        let split = json!({
            "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious", "invert": false,
        });
        // SentencePiece and llama.cpp prefix a space to every text, also to one that begins with a space.
        let start = json!({ "type": "Prepend", "prepend": "▁" });
        let normalizer = match prefix {
            true => json!({ "type": "Sequence", "normalizers": [start, spaces] }),
            false => spaces,
        };
        let pre_tokenizer = if pieces == Pieces::Gemma { split } else { Value::Null };
        let mut decoders = vec![
            json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if prefix {
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        Ok(json!({
            "version": "1.0",
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "decoder": { "type": "Sequence", "decoders": decoders },
            "model": {
                "type": "BPE",
                "unk_token": self.spelling(unknown),
                "fuse_unk": true,
                "byte_fallback": true,
                "ignore_merges": false,
                "vocab": self.vocab(),
                "merges": merges,
            },
        }))
    }

    /// Ids by token.
    fn ids(&self) -> Result<HashMap<&str, usize>> {
        let mut ids = HashMap::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            let earlier = ids.insert(token.as_str(), id);
            ensure!(
                earlier.is_none(),
                "tokenizer.ggml.tokens has one token twice, as {} and {id}",
                earlier.unwrap_or_default()
            );
            ensure!(!token.is_empty(), "tokenizer.ggml.tokens has an empty token, {id}");
        }
        Ok(ids)
    }

    fn vocab(&self) -> Value {
        Value::Object(
            self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect::<Map<_, _>>(),
        )
    }
}

/// The remedy where a tokenizer cannot be converted.
const OWN: &str = "give the folder of the model's own tokenizer files with --tokenizer";

/// All ways to join two tokens to a third, best first: by the score of what they make, then longer left parts, then
/// longer right ones. Scores of a SentencePiece vocabulary order merges just so.
fn merges(tokens: &[String], ids: &HashMap<&str, usize>, scores: &[f64]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let known = cuts.filter_map(|(left, right)| Some((*ids.get(left)?, *ids.get(right)?, left, right)));
        let mut own: Vec<_> = known.collect();
        own.sort_by_key(|(left, right, ..)| (*left, *right));
        let length = |text: &str| text.chars().count();
        found.extend(own.into_iter().map(|(_, _, left, right)| (scores[id], length(left), length(right), left, right)));
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then((Reverse(a.1), Reverse(a.2)).cmp(&(Reverse(b.1), Reverse(b.2)))));
    found.into_iter().map(|(.., left, right)| (left.to_owned(), right.to_owned())).collect()
}
