//! `tokenizer.json` to the keys of a file.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;

use super::pre_tokenizer::PreTokenizer;
use super::vocabulary::{BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED};
use super::writer::Pairs;
use crate::chat::ChatTemplate;
use crate::checkpoint::Checkpoint;
use crate::input;
use crate::tokenizer::Tokenizer;

/// Adds tokens, merges or scores, special tokens and the chat template of a checkpoint.
///
/// # Errors
/// When llama.cpp has no tokenizer of this kind.
pub(super) fn add(checkpoint: &Checkpoint, pairs: &mut Pairs) -> Result<()> {
    let dir = checkpoint.dir();
    let tokenizer = checkpoint.tokenizer()?;
    let path = dir.join("tokenizer.json");
    let json: Value = serde_json::from_slice(&input::read(&path)?)?;
    add_vocabulary(&json, dir, checkpoint.spec.vocab_size, pairs)
        .with_context(|| format!("{} cannot be written as GGUF", path.display()))?;
    add_special(checkpoint, &tokenizer, &json, pairs)?;
    if let Some(template) = ChatTemplate::from_dir(dir)? {
        pairs.text("tokenizer.chat_template", template.source());
    }
    Ok(())
}

fn add_special(checkpoint: &Checkpoint, tokenizer: &Tokenizer, json: &Value, pairs: &mut Pairs) -> Result<()> {
    let mut id = |name: &str, id: Option<u32>| {
        id.into_iter().for_each(|id| pairs.whole(&format!("tokenizer.ggml.{name}_token_id"), id as usize));
    };
    let tokens = &checkpoint.tokens;
    let eos = tokenizer.eos().filter(|eos| tokens.eos.contains(eos)).or(tokens.eos.first().copied());
    let mut others = tokens.eos.iter().copied().filter(|end| Some(*end) != eos);
    id("bos", tokens.bos);
    id("eos", eos);
    id("eot", others.next());
    id("eom", others.next());
    id("padding", tokens.pad);
    let unknown = json["model"]["unk_token"].as_str().map(str::to_owned).or(Tokenizer::unknown_of(checkpoint.dir())?);
    id("unknown", unknown.and_then(|token| tokenizer.token_to_id(&token)));
    let (plain, with) = (tokenizer.encode("a")?, tokenizer.encode_with_special("a")?);
    pairs.flag("tokenizer.ggml.add_bos_token", tokens.bos.is_some() && with.first() == tokens.bos.as_ref());
    pairs.flag("tokenizer.ggml.add_eos_token", with.len() > 1 && with.last() != plain.last());
    Ok(())
}

fn add_vocabulary(json: &Value, dir: &Path, rows: usize, pairs: &mut Pairs) -> Result<()> {
    let model = &json["model"];
    ensure!(model["type"] == "BPE", "its model is {}: llama.cpp reads BPE only", model["type"]);
    let (mut tokens, mut kinds) = (vec![String::new(); rows], vec![UNUSED; rows]);
    for (token, id) in model["vocab"].as_object().context("it has no model.vocab")? {
        let id = id.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|id| *id < rows);
        let id = id.with_context(|| format!("the token {token:?} has no embedding"))?;
        (tokens[id], kinds[id]) = (token.clone(), NORMAL);
    }
    let merges = merges(model)?;
    let fallback = model["byte_fallback"].as_bool().unwrap_or(false);
    if fallback {
        let is_byte = |token: &str| token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
        tokens.iter().zip(&mut kinds).filter(|(token, _)| is_byte(token)).for_each(|(_, kind)| *kind = BYTE);
        let unknown = model["unk_token"].as_str().and_then(|unknown| tokens.iter().position(|token| token == unknown));
        unknown.into_iter().for_each(|id| kinds[id] = UNKNOWN);
    }
    for (id, content, special) in added(json, dir)?.into_iter().filter(|(id, ..)| *id < rows) {
        // llama.cpp looks for user-defined tokens in texts before spaces are replaced.
        let text = if special { content } else { content.replace('▁', " ") };
        let kind = if special { CONTROL } else { USER_DEFINED };
        (tokens[id], kinds[id]) = (text, if kinds[id] == UNKNOWN { UNKNOWN } else { kind });
    }
    let unused = kinds.iter().enumerate().filter(|(_, kind)| **kind == UNUSED);
    unused.for_each(|(id, _)| tokens[id] = format!("[PAD{id}]"));
    if fallback {
        add_sentence_pieces(json, &tokens, &merges, pairs);
    } else {
        let pre = PreTokenizer::of_json(json)
            .context("its pre_tokenizer is none of those that llama.cpp has a name for and this program knows")?;
        ensure!(json["normalizer"].is_null() || pre.nfc, "its normalizer is none that llama.cpp has");
        pairs.text("tokenizer.ggml.model", "gpt2");
        pairs.text("tokenizer.ggml.pre", pre.names[0]);
        let joined: Vec<String> = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        pairs.texts("tokenizer.ggml.merges", &joined);
    }
    pairs.texts("tokenizer.ggml.tokens", &tokens);
    pairs.wholes("tokenizer.ggml.token_type", &kinds);
    Ok(())
}

/// llama.cpp has no merges for these: it joins the pair whose token has the largest score. So a token's score is the
/// place of the first merge that makes it.
fn add_sentence_pieces(json: &Value, tokens: &[String], merges: &[(String, String)], pairs: &mut Pairs) {
    let mut places = HashMap::with_capacity(merges.len());
    for (place, (left, right)) in merges.iter().enumerate() {
        places.entry(format!("{left}{right}")).or_insert(place);
    }
    let score = |(id, token): (usize, &String)| -(places.get(token).copied().unwrap_or(merges.len() + id) as f32);
    let scores: Vec<f32> = tokens.iter().enumerate().map(score).collect();
    let prepends = |part: &Value| match part["type"].as_str() {
        Some("Prepend") => true,
        Some("Metaspace") => part["prepend_scheme"].as_str().unwrap_or("always") != "never",
        _ => false,
    };
    let steps = |part: &Value, list: &str| part[list].as_array().cloned().unwrap_or_else(|| vec![part.clone()]);
    let mut all = steps(&json["normalizer"], "normalizers");
    all.extend(steps(&json["pre_tokenizer"], "pretokenizers"));
    pairs.text("tokenizer.ggml.model", "llama");
    pairs.text("tokenizer.ggml.pre", "default");
    pairs.floats("tokenizer.ggml.scores", &scores);
    pairs.flag("tokenizer.ggml.add_space_prefix", all.iter().any(prepends));
}

/// The merges, which are `"a b"` or `["a", "b"]`, depending on the version that saved them.
fn merges(model: &Value) -> Result<Vec<(String, String)>> {
    let pair = |merge: &Value| match merge {
        Value::String(text) => text.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())),
        _ => Some((merge[0].as_str()?.to_owned(), merge[1].as_str()?.to_owned())),
    };
    let list = model["merges"].as_array().context("it has no model.merges")?;
    list.iter().map(|merge| pair(merge).ok_or_else(|| anyhow!("the merge {merge} is no pair"))).collect()
}

/// Added tokens of `tokenizer.json` and of the files beside it: id, text, and whether it is special.
fn added(json: &Value, dir: &Path) -> Result<Vec<(usize, String, bool)>> {
    let own = |token: &Value| {
        let id = usize::try_from(token["id"].as_u64()?).ok()?;
        Some((id, token["content"].as_str()?.to_owned(), token["special"].as_bool().unwrap_or(false)))
    };
    let list = json["added_tokens"].as_array().into_iter().flatten();
    let mut all = Vec::new();
    for token in list {
        match own(token) {
            Some(token) => all.push(token),
            None => bail!("the added token {token} has no id or content"),
        }
    }
    let beside = Tokenizer::declared_beside(dir)?.into_iter();
    all.extend(beside.map(|(id, token)| (id as usize, token.content, token.special)));
    Ok(all)
}
