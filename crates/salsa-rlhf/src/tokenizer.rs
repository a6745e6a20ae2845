//! Text to tokens and back: Hugging Face `tokenizer.json` files, and byte-level BPE training.

mod bytes;
mod declared;
mod guarded;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::json;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Encoding};

use self::declared::{Declarations, Declared};
use self::guarded::{Guarded, Specials};
use crate::{atomic, input};

/// The spelling of the special tokens, as in `tokenizer_config.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokenNames {
    /// Beginning of sequence.
    pub bos: Option<String>,
    /// End of sequence, or of the assistant's turn.
    pub eos: Option<String>,
    /// Padding; never fed to a model by this program.
    pub pad: Option<String>,
}

impl SpecialTokenNames {
    /// Reads `tokenizer_config.json` and `special_tokens_map.json`; where they differ, the second takes precedence,
    /// unless the first has an `added_tokens_decoder`, as in transformers. Absent files are no error.
    ///
    /// # Errors
    /// When an existing file is not a JSON object; names it.
    pub fn from_dir(dir: &Path) -> Result<SpecialTokenNames> {
        Ok(SpecialTokenNames::of(&Declarations::read(dir)?))
    }

    fn of(declarations: &Declarations) -> SpecialTokenNames {
        SpecialTokenNames {
            bos: declarations.name("bos_token"),
            eos: declarations.name("eos_token"),
            pad: declarations.name("pad_token"),
        }
    }
}

/// Far above any vocabulary size; added tokens get the next ids, which must not overflow.
const MOST_IDS: usize = 1 << 31;

/// Remedy for contradictory tokenizer files.
const BELONG: &str = "they do not belong together; take the tokenizer files that the model was trained with";

/// A tokenizer.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Guarded,
    names: SpecialTokenNames,
    vocab_size: usize,
    /// One more than the largest id in `tokenizer.json`.
    own_size: usize,
    /// Number of the model's embeddings, if known.
    embeddings: Option<usize>,
}

impl Tokenizer {
    /// The tokenizer of a checkpoint: `tokenizer.json`, and the additional tokens that `tokenizer_config.json`,
    /// `special_tokens_map.json` and `added_tokens.json` declare, as transformers adds them.
    ///
    /// # Errors
    /// When the files are absent or invalid, give a token different ids, or only name the beginning- or end-of-sequence
    /// token without listing it; names them and the remedy.
    pub fn from_dir(dir: &Path) -> Result<Tokenizer> {
        let path = dir.join("tokenizer.json");
        if !path.exists() {
            let shown = dir.display();
            if dir.join("tokenizer.model").exists() || dir.join("vocab.json").exists() {
                bail!(
                    "{shown} has a tokenizer in an older form but no tokenizer.json. Convert it: python -c \"from transformers import AutoTokenizer; AutoTokenizer.from_pretrained('{shown}').save_pretrained('{shown}')\""
                );
            }
            bail!("{shown} has no tokenizer.json: copy the tokenizer files of the model it was made from into it");
        }
        let tokenizer = Tokenizer::from_file(&path)?;
        let declarations = Declarations::read(dir)?;
        tokenizer.with_declared(&declarations).with_context(|| format!("the tokenizer of {}", dir.display()))
    }

    fn with_declared(mut self, declarations: &Declarations) -> Result<Tokenizer> {
        self.names = SpecialTokenNames::of(declarations);
        // No model is trained with a beginning or end token that no file lists. Other unlisted tokens, such as padding,
        // do no harm.
        for name in [&self.names.bos, &self.names.eos].into_iter().flatten() {
            if self.token_to_id(name).is_none() && !declarations.lists(name)? {
                bail!("its files name the special token {name:?}, which tokenizer.json does not have");
            }
        }
        let declared = declarations.tokens(&self.added_tokens())?;
        if declared.is_empty() {
            return Ok(self);
        }
        for Declared { token, id } in &declared {
            if let (Some((id, file)), Some(own)) = (id, self.token_to_id(&token.content))
                && own != *id
            {
                bail!("{file} gives the token {:?} the id {id}, tokenizer.json {own}: {BELONG}", token.content);
            }
        }
        let tokens = declared.iter().map(|declared| declared.token.clone());
        self.inner.add_tokens(tokens).map_err(|e| anyhow!("its tokens cannot be added: {e}"))?;
        for Declared { token, id } in declared {
            let content = &token.content;
            let got = self.token_to_id(content).with_context(|| format!("the token {content:?} cannot be added"))?;
            if let Some((id, file)) = id.filter(|(id, _)| *id != got) {
                bail!(
                    "{file} gives the token {content:?} the id {id}, but tokenizer.json lacks it and its next free id is \
                     {got}: {BELONG}"
                );
            }
            self.vocab_size = self.vocab_size.max(got as usize + 1);
        }
        Ok(self)
    }

    /// Restricts the tokenizer to a model with `rows` embeddings. A text that contains a token without an embedding,
    /// which only files other than `tokenizer.json` can declare, then cannot be encoded.
    ///
    /// # Errors
    /// When `tokenizer.json` itself has larger ids, or the beginning- or end-of-sequence token has.
    pub fn for_embeddings(mut self, rows: usize) -> Result<Tokenizer> {
        ensure!(
            self.own_size <= rows,
            "the tokenizer has ids up to {} but the model has embeddings for {rows} tokens: they do not belong together",
            self.own_size - 1
        );
        for name in [&self.names.bos, &self.names.eos].into_iter().flatten() {
            ensure!(
                self.token_to_id(name).is_none_or(|id| (id as usize) < rows),
                "the special token {name:?} is not in tokenizer.json, and the model has embeddings for {rows} tokens, none \
                 of which is left for it: {BELONG}"
            );
        }
        self.embeddings = Some(rows);
        Ok(self)
    }

    /// The tokens of a checkpoint that are declared, or given other flags, outside `tokenizer.json`, by id.
    ///
    /// # Errors
    /// As [`Tokenizer::from_dir`].
    pub(crate) fn declared_beside(dir: &Path) -> Result<BTreeMap<u32, AddedToken>> {
        if Declarations::read(dir)?.tokens(&BTreeMap::new())?.is_empty() {
            return Ok(BTreeMap::new());
        }
        let (own, mut all) = (
            Tokenizer::from_file(&dir.join("tokenizer.json"))?.added_tokens(),
            Tokenizer::from_dir(dir)?.added_tokens(),
        );
        all.retain(|id, token| own.get(id) != Some(token));
        Ok(all)
    }

    /// The spelling of the unknown token that the files beside `tokenizer.json` name.
    ///
    /// # Errors
    /// When an existing file is not a JSON object; names it.
    pub(crate) fn unknown_of(dir: &Path) -> Result<Option<String>> {
        Ok(Declarations::read(dir)?.name("unk_token"))
    }

    /// The tokens added to the model's vocabulary, by id.
    fn added_tokens(&self) -> BTreeMap<u32, AddedToken> {
        self.inner.added_tokens()
    }

    /// A tokenizer from a `tokenizer.json` alone, without names of special tokens.
    ///
    /// # Errors
    /// When the file cannot be read or is not a tokenizer; names it.
    pub fn from_file(path: &Path) -> Result<Tokenizer> {
        let bytes = input::read(path)?;
        let inner =
            Guarded::from_json(&bytes).map_err(|e| anyhow!("{} is no valid tokenizer.json: {e}", path.display()))?;
        Tokenizer::wrap(inner).with_context(|| format!("in {}", path.display()))
    }

    /// [`Tokenizer::from_file`] for the bytes of a file.
    pub(crate) fn from_json(bytes: &[u8]) -> Result<Tokenizer> {
        Tokenizer::wrap(Guarded::from_json(bytes)?)
    }

    /// Trains a byte-level BPE. The result depends only on the texts and their counts, not on threads or runs.
    ///
    /// Ids: special tokens in the given order, the 256 bytes, then the merges. Digits are single tokens. Encoding adds
    /// no tokens. The vocabulary is smaller than `vocab_size` if the texts have no more pairs to merge.
    ///
    /// # Errors
    /// When `vocab_size` is too small for the bytes and special tokens, or a special token is empty or repeated.
    pub fn train_bpe(
        texts: impl Iterator<Item = String> + Send,
        vocab_size: usize,
        special_tokens: &[&str],
    ) -> Result<Tokenizer> {
        let least = 256 + special_tokens.len();
        if vocab_size < least {
            bail!(
                "a vocabulary of {vocab_size} is too small: 256 bytes and {} special tokens need {least}",
                special_tokens.len()
            );
        }
        let twice = |(i, token): (usize, &&str)| token.is_empty() || special_tokens[..i].contains(token);
        if let Some(bad) = special_tokens.iter().enumerate().find_map(|(i, t)| twice((i, t)).then_some(t)) {
            bail!("the special token {bad:?} is empty or given twice");
        }
        let mut trainer: TrainerWrapper = BpeTrainer::builder()
            .vocab_size(vocab_size)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(special_tokens.iter().map(|t| AddedToken::from(*t, true)).collect())
            .build()
            .into();
        let mut inner = tokenizers::Tokenizer::new(BPE::default());
        inner.with_pre_tokenizer(Some(Sequence::new(vec![
            Digits::new(true).into(),
            ByteLevel::new(false, false, true).into(),
        ])));
        inner.with_decoder(Some(ByteLevel::default()));
        Tokenizer::wrap(Guarded::trained(inner, &mut trainer, texts).context("cannot train the tokenizer")?)
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json` and, with a template, `chat_template.jinja`, for transformers 4
    /// and 5.
    ///
    /// # Errors
    /// When a name is not a token of this tokenizer, or a file cannot be written.
    pub fn save(&self, dir: &Path, names: &SpecialTokenNames, chat_template: Option<&str>) -> Result<()> {
        let mut config = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false });
        for (key, name) in [("bos_token", &names.bos), ("eos_token", &names.eos), ("pad_token", &names.pad)] {
            let Some(name) = name else { continue };
            if self.token_to_id(name).is_none() {
                bail!("{key} {name:?} is no token of this tokenizer: give it as a special token when training");
            }
            config[key] = json!(name);
        }
        if let Some(template) = chat_template {
            config["chat_template"] = json!(template);
            atomic::write(&dir.join("chat_template.jinja"), template.as_bytes())?;
        }
        let text = self.inner.json().context("cannot write the tokenizer")?;
        atomic::write(&dir.join("tokenizer.json"), text.as_bytes())?;
        atomic::write(&dir.join("tokenizer_config.json"), format!("{config:#}\n").as_bytes())
    }

    /// The tokens of a text, without adding any. Special tokens spelled out in the text are recognised.
    ///
    /// # Errors
    /// When the tokenizer cannot represent the text (some have no token for unknown characters).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encoding(text, Specials::Omit)?.get_ids().to_vec())
    }

    /// The tokens of `text` when it follows `before`, without adding any.
    ///
    /// These are the tokens of `before` and `text` together after removing those of `before` alone. If a token spans
    /// the boundary, they are those of `text` alone. The result differs from `encode(text)` for tokenizers of the
    /// SentencePiece kind, which prepend a space to every text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_after(&self, before: &str, text: &str) -> Result<Vec<u32>> {
        if before.is_empty() || text.is_empty() {
            return self.encode(text);
        }
        let (head, mut whole) = (self.encode(before)?, self.encode(&format!("{before}{text}"))?);
        if whole.starts_with(&head) { Ok(whole.split_off(head.len())) } else { self.encode(text) }
    }

    /// The tokens of a text with the tokenizer's additions, such as a beginning-of-sequence token; one that is spelled
    /// out in the text is not doubled.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.encoding(text, Specials::Add)?.get_ids().to_vec();
        if let [first, second, ..] = ids[..]
            && first == second
            && Some(first) == self.bos()
        {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// The tokens of a text, without adding any, and for each byte range the range of tokens that overlap it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_spans(&self, text: &str, spans: &[Range<usize>]) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let encoding = self.encoding(text, Specials::Omit)?;
        let offsets = encoding.get_offsets();
        let ranges = spans.iter().map(|span| tokens_of(span, offsets)).collect();
        Ok((encoding.get_ids().to_vec(), ranges))
    }

    /// The text of tokens, without special tokens.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, Specials::Omit).map_err(|e| anyhow!("cannot decode tokens: {e}"))
    }

    /// The text of tokens, with special tokens spelled out.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn decode_with_special(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, Specials::Add).map_err(|e| anyhow!("cannot decode tokens: {e}"))
    }

    /// The bytes of a token that follows other text: a part of a character, or a word with its space. Special tokens
    /// are spelled out.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn token_bytes(&self, id: u32) -> Result<Vec<u8>> {
        let (alone, twice) = (self.decode_with_special(&[id])?, self.decode_with_special(&[id, id])?);
        match twice.strip_prefix(&alone) {
            Some(text) if !text.contains(char::REPLACEMENT_CHARACTER) => Ok(text.as_bytes().to_vec()),
            other => {
                let spelled = self.inner.id_to_token(id).unwrap_or_default();
                Ok(bytes::of_spelling(&spelled).unwrap_or_else(|| other.unwrap_or(&alone).as_bytes().to_vec()))
            }
        }
    }

    /// The id of a token by its spelling in the vocabulary; `None` if the model has no embedding for it.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token).filter(|id| self.embeddings.is_none_or(|rows| (*id as usize) < rows))
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The spelling of the special tokens.
    pub fn names(&self) -> &SpecialTokenNames {
        &self.names
    }

    /// The id of the beginning-of-sequence token.
    pub fn bos(&self) -> Option<u32> {
        self.names.bos.as_deref().and_then(|name| self.token_to_id(name))
    }

    /// The id of the end-of-sequence token.
    pub fn eos(&self) -> Option<u32> {
        self.names.eos.as_deref().and_then(|name| self.token_to_id(name))
    }

    /// The id of the padding token.
    pub fn pad(&self) -> Option<u32> {
        self.names.pad.as_deref().and_then(|name| self.token_to_id(name))
    }

    fn wrap(inner: Guarded) -> Result<Tokenizer> {
        let vocab_size = inner.largest_id()?.ok_or_else(|| anyhow!("the tokenizer has no tokens"))? as usize + 1;
        ensure!(vocab_size <= MOST_IDS, "the tokenizer has the id {}: the file is damaged", vocab_size - 1);
        let names = SpecialTokenNames::default();
        Ok(Tokenizer { inner, names, vocab_size, own_size: vocab_size, embeddings: None })
    }

    fn encoding(&self, text: &str, specials: Specials) -> Result<Encoding> {
        let start = || text.chars().take(40).collect::<String>();
        let encoding = self.inner.encode(text, specials);
        let encoding =
            encoding.map_err(|e| anyhow!("the tokenizer cannot encode the text beginning {:?}: {e}", start()))?;
        let rows = self.embeddings.unwrap_or(usize::MAX);
        if let Some(id) = encoding.get_ids().iter().find(|id| **id as usize >= rows) {
            bail!(
                "the text beginning {:?} has the token {:?}, which is not in tokenizer.json and for which the model has no \
                 embedding",
                start(),
                self.inner.id_to_token(*id).unwrap_or_default()
            );
        }
        Ok(encoding)
    }
}

/// The tokens that overlap `span`. White-space tokens may be reported as empty, at their end.
fn tokens_of(span: &Range<usize>, offsets: &[(usize, usize)]) -> Range<usize> {
    let touches = |&(start, end): &(usize, usize)| match start == end {
        true => span.start < end && end <= span.end,
        false => start < span.end && span.start < end,
    };
    let first = offsets.iter().position(touches).unwrap_or(0);
    let last = offsets.iter().rposition(touches).map_or(first, |i| i + 1);
    first..last
}

#[cfg(test)]
mod tests;
