//! Tokens declared in files other than `tokenizer.json`, resolved as in transformers.
//!
//! ```text
//! tokenizer_config.json   added_tokens_decoder: id → token; if it is there, the two files below say nothing
//! special_tokens_map.json its keys replace those of tokenizer_config.json
//! added_tokens.json       token → id
//! tokenizer_config.json   bos_token, eos_token, …, every other NAME_token, then extra_special_tokens or
//!                         additional_special_tokens: special tokens; one that nothing above has gets the next free id
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;
use tokenizers::AddedToken;

use crate::input;

const CONFIG: &str = "tokenizer_config.json";
const MAP: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";

/// The order in which transformers adds them.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const EXTRA: [&str; 2] = ["extra_special_tokens", "additional_special_tokens"];

/// The tokenizer files other than `tokenizer.json`. An absent file is `null`.
pub(super) struct Declarations {
    config: Value,
    map: Value,
    added: Value,
}

/// A token to be added to those of `tokenizer.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Declared {
    /// Its spelling and flags.
    pub token: AddedToken,
    /// The required id, and the file that specifies it; `None`: the next free id.
    pub id: Option<(u32, &'static str)>,
}

impl Declarations {
    /// Reads the existing files.
    ///
    /// # Errors
    /// When one is not a JSON object; names it.
    pub(super) fn read(dir: &Path) -> Result<Declarations> {
        let object = |name: &str| {
            let path = dir.join(name);
            if !path.exists() {
                return Ok(Value::Null);
            }
            let bytes = input::read(&path)?;
            let value: Value =
                serde_json::from_slice(&bytes).with_context(|| format!("{} is no valid JSON", path.display()))?;
            ensure!(value.is_object(), "{} is no JSON object", path.display());
            Ok(value)
        };
        Ok(Declarations { config: object(CONFIG)?, map: object(MAP)?, added: object(ADDED)? })
    }

    /// The spelling of the token named by a key such as `eos_token`.
    pub(super) fn name(&self, key: &str) -> Option<String> {
        self.value(key).and_then(content).map(str::to_owned)
    }

    /// The value of a key: from `special_tokens_map.json` if that file counts, else, or if it lacks the key, from
    /// `tokenizer_config.json`.
    fn value(&self, key: &str) -> Option<&Value> {
        let order = if self.has_decoder() { [&self.config, &self.map] } else { [&self.map, &self.config] };
        order.into_iter().map(|file| &file[key]).find(|value| content(value).is_some())
    }

    fn has_decoder(&self) -> bool {
        !self.config["added_tokens_decoder"].is_null()
    }

    /// The tokens to add to a tokenizer with these added tokens, in transformers' order.
    ///
    /// # Errors
    /// When a declaration does not have the form that transformers writes; names file and key.
    pub(super) fn tokens(&self, own: &BTreeMap<u32, AddedToken>) -> Result<Vec<Declared>> {
        ensure!(
            self.config["split_special_tokens"] != true,
            "{CONFIG}: split_special_tokens is true, which is not supported: special tokens are single tokens here"
        );
        let (named, extra) = (self.named()?, self.extra()?);
        let mut tokens = if self.has_decoder() { self.decoder()? } else { self.added(&named, &extra)? };
        tokens.retain(|declared| declared.id.is_none_or(|(id, _)| own.get(&id) != Some(&declared.token)));
        let mut known: BTreeSet<String> = own.values().map(|token| token.content.clone()).collect();
        known.extend(tokens.iter().map(|declared| declared.token.content.clone()));
        let is_named = |content: &str| named.iter().any(|token| token.content == content);
        for declared in &mut tokens {
            declared.token.special |= is_named(&declared.token.content);
        }
        for token in named.into_iter().chain(extra) {
            if known.insert(token.content.clone()) {
                tokens.push(Declared { token, id: None });
            }
        }
        Ok(tokens)
    }

    /// Whether a token is declared other than by a key `NAME_token`.
    ///
    /// # Errors
    /// As [`Declarations::tokens`].
    pub(super) fn lists(&self, content: &str) -> Result<bool> {
        let is_it = |token: &AddedToken| token.content == content;
        let numbered = if self.has_decoder() { self.decoder()? } else { self.added(&[], &[])? };
        Ok(numbered.iter().any(|declared| is_it(&declared.token)) || self.extra()?.iter().any(is_it))
    }

    /// `added_tokens_decoder`, by id.
    fn decoder(&self) -> Result<Vec<Declared>> {
        let key = "added_tokens_decoder";
        let table = self.config[key].as_object().with_context(|| format!("{CONFIG}: {key} is no table of tokens"))?;
        let mut tokens = BTreeMap::new();
        for (id, token) in table {
            let number =
                id.parse::<u32>().map_err(|_| anyhow!("{CONFIG}: {key} has the id {id:?}: expected a number"))?;
            ensure!(token.is_object(), "{CONFIG}: {key} gives the id {id} no token with a content");
            tokens.insert(number, parse(token, key)?);
        }
        Ok(tokens.into_iter().map(|(id, token)| Declared { token, id: Some((id, CONFIG)) }).collect())
    }

    /// `added_tokens.json`, by id.
    fn added(&self, named: &[AddedToken], extra: &[AddedToken]) -> Result<Vec<Declared>> {
        let mut tokens = BTreeMap::new();
        for (content, id) in self.added.as_object().into_iter().flatten() {
            let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let number = number.with_context(|| format!("{ADDED} gives the token {content:?} the id {id}"))?;
            let is_special = named.iter().chain(extra).any(|token| token.content == *content);
            if let Some(other) = tokens.insert(number, AddedToken::from(content.as_str(), is_special)) {
                bail!("{ADDED} gives the id {number} to {:?} and to {content:?}", other.content);
            }
        }
        Ok(tokens.into_iter().map(|(id, token)| Declared { token, id: Some((id, ADDED)) }).collect())
    }

    /// The tokens of keys `NAME_token`, and the named ones of `extra_special_tokens`.
    fn named(&self) -> Result<Vec<AddedToken>> {
        let mut keys: Vec<&str> = NAMED.to_vec();
        for file in [&self.config, &self.map] {
            let other = file.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
            keys.extend(other.filter(|key| key.ends_with("_token") && !NAMED.contains(key)));
        }
        let mut values: Vec<(&str, &Value)> = keys.iter().filter_map(|key| Some((*key, self.value(key)?))).collect();
        let table = self.config[EXTRA[0]].as_object().into_iter().flatten();
        values.extend(table.map(|(key, value)| (key.as_str(), value)));
        values.into_iter().map(|(key, value)| special(value, key)).collect()
    }

    /// The further special tokens: those of `tokenizer_config.json` and, if it counts, of `special_tokens_map.json`,
    /// under the newer key; under the older key if neither has the newer.
    fn extra(&self) -> Result<Vec<AddedToken>> {
        let list = |file: &Value, key: &'static str| {
            let items = file[key].as_array().map(Vec::as_slice).unwrap_or_default();
            items.iter().map(|item| special(item, key)).collect::<Result<Vec<_>>>()
        };
        let map = if self.has_decoder() { &Value::Null } else { &self.map };
        let [newer, older] = EXTRA;
        let mut tokens = list(&self.config, newer)?;
        if tokens.is_empty() {
            tokens = list(&self.config, older)?;
        }
        tokens.extend(list(map, newer)?);
        let is_silent = tokens.is_empty() && EXTRA.iter().all(|key| self.config[*key].is_null());
        if is_silent { list(map, older) } else { Ok(tokens) }
    }
}

/// The spelling of a token: a string, or the `content` of a table.
fn content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str()).filter(|content| !content.is_empty())
}

fn special(value: &Value, key: &str) -> Result<AddedToken> {
    let token = match value {
        Value::String(content) => AddedToken::from(content.as_str(), true),
        _ => parse(value, key)?,
    };
    Ok(AddedToken { special: true, ..token })
}

fn parse(value: &Value, key: &str) -> Result<AddedToken> {
    let content = content(value).with_context(|| format!("{key} has {value}, which is no token with a content"))?;
    let flag = |name: &str| match &value[name] {
        Value::Null => Ok(None),
        Value::Bool(flag) => Ok(Some(*flag)),
        other => Err(anyhow!("{key}: {name} of {content:?} is {other}: expected true or false")),
    };
    let token = AddedToken::from(content, flag("special")?.unwrap_or(false));
    Ok(AddedToken {
        single_word: flag("single_word")?.unwrap_or(token.single_word),
        lstrip: flag("lstrip")?.unwrap_or(token.lstrip),
        rstrip: flag("rstrip")?.unwrap_or(token.rstrip),
        normalized: flag("normalized")?.unwrap_or(token.normalized),
        ..token
    })
}
