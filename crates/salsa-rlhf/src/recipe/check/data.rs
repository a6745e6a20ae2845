//! The data that a stage reads.
use std::path::Path;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Look,
    models::{Models, Reader},
};
use crate::{
    chat,
    data::Example,
    stage::text::{
        encoder::Encoder,
        overlong::check_one_fits,
        pairs::preference,
        rows::{Row, Rows},
        source::{DataPart, DataSource},
    },
};

/// What a stage makes of an example.
#[derive(Clone, Copy)]
enum Use {
    /// Text to train a tokenizer and a base model on.
    Text,
    /// Something to learn.
    Lesson,
    /// A preference.
    Pair,
    /// A prompt to answer.
    Prompt,
}

/// What a stage makes of a row.
#[derive(Clone, Copy)]
enum RowUse {
    Prompt,
    Sequence,
    Answer,
}

impl Look<'_> {
    /// Reads all data sets that are there.
    pub(super) fn data(&mut self, models: &Models) {
        let config = self.config();
        for (place, value, made) in examples(self.kind(), config) {
            if let Ok(source) = DataSource::deserialize(value) {
                self.examples(&place, &source, made, models.reader());
            }
        }
        for (place, made) in rows(self.kind()) {
            if let Some(path) = config[*place].as_str().filter(|path| !path.is_empty()) {
                self.rows(place, Path::new(path), *made, models.reader());
            }
        }
        if let (None, Some(choice)) =
            (models.reader(), config["chat_template"].as_str().filter(|text| !text.is_empty()))
        {
            self.faults.take(chat::source_of(choice).context("chat_template"));
        }
    }

    fn examples(&mut self, place: &str, source: &DataSource, made: Use, reader: Option<&Reader>) {
        match source {
            DataSource::Mixture(sources) => {
                sources.iter().for_each(|source| self.examples(place, source, made, reader));
            }
            DataSource::Path(path) | DataSource::Part(DataPart { path, .. }) => {
                if self.is_here(place, path) {
                    let fact = look_at(source, made, reader).with_context(|| place.to_owned());
                    self.facts.extend(self.faults.take(fact).map(|fact| format!("{place} {source}: {fact}")));
                }
            }
        }
    }

    fn rows(&mut self, place: &str, path: &Path, made: RowUse, reader: Option<&Reader>) {
        if self.is_here(place, path) {
            let fact = look_at_rows(path, made, reader).with_context(|| place.to_owned());
            self.facts.extend(self.faults.take(fact).map(|fact| format!("{place} {}: {fact}", path.display())));
        }
    }
}

/// The data sources of a stage, each with its place.
fn examples<'a>(kind: &str, config: &'a Value) -> Vec<(String, &'a Value, Use)> {
    let at = |keys: &[&str], made: Use| -> Vec<(String, &'a Value, Use)> {
        let values = keys.iter().map(|key| (*key, &config[*key])).filter(|(_, value)| !value.is_null());
        values.map(|(key, value)| (key.to_owned(), value, made)).collect()
    };
    match kind {
        "pretrain" => at(&["dataset", "eval_dataset"], Use::Text),
        "sft" => at(&["dataset", "eval_dataset"], Use::Lesson),
        "reward" | "dpo" => at(&["dataset", "eval_dataset"], Use::Pair),
        "ppo" => at(&["dataset"], Use::Prompt),
        "landscape" => [at(&["prompts"], Use::Prompt), at(&["eval_dataset"], Use::Lesson)].concat(),
        "evaluate" => {
            let sets = config["datasets"].as_array().into_iter().flatten().enumerate();
            sets.map(|(i, set)| (format!("datasets[{i}]"), &set["dataset"], Use::Prompt)).collect()
        }
        "soup" if config["greedy"].is_object() => {
            let greedy = &config["greedy"];
            let made = if greedy["reward_model_path"].is_null() { Use::Lesson } else { Use::Prompt };
            vec![("greedy.dataset".to_owned(), &greedy["dataset"], made)]
        }
        _ => Vec::new(),
    }
}

/// The keys under which a stage reads rows.
fn rows(kind: &str) -> &'static [(&'static str, RowUse)] {
    match kind {
        "generate" => &[("input", RowUse::Prompt)],
        "score" | "logprobs" => &[("input", RowUse::Sequence)],
        "winrate" => &[("answers", RowUse::Answer), ("baseline", RowUse::Answer)],
        _ => &[],
    }
}

/// Reads a source, and lets the stage's model see its first example. Returns how many there are, and of what layout.
fn look_at(source: &DataSource, made: Use, reader: Option<&Reader>) -> anyhow::Result<String> {
    let mut loaded = source.load()?;
    let count = loaded.examples.len();
    loaded.examples.truncate(1);
    let encoder = reader.and_then(|reader| reader.encoder.as_ref());
    let layout = loaded.try_map(|example| see(example, made, encoder).map(|()| example.layout()))?;
    let notes: String = loaded.notes.iter().map(|note| format!("\n  {note}")).collect();
    Ok(format!("{count} examples ({}){notes}", layout[0]))
}

fn see(example: &Example, made: Use, encoder: Option<&Encoder>) -> anyhow::Result<()> {
    match (made, encoder) {
        (Use::Text, _) => Ok(()),
        (Use::Lesson, Some(encoder)) => encoder.example(example).map(drop),
        (Use::Lesson, None) if matches!(example, Example::Prompt(_)) => {
            bail!("this is a prompt without a response; there is nothing to learn")
        }
        (Use::Lesson, None) => Ok(()),
        (Use::Pair, encoder) => {
            let pair = preference(example)?;
            let sides = [&pair.chosen, &pair.rejected];
            encoder.map_or(Ok(()), |encoder| {
                sides.into_iter().try_for_each(|side| encoder.prompt_and_response(&pair.prompt, side).map(drop))
            })
        }
        (Use::Prompt, encoder) => {
            let prompt = example.prompt().context("this record has no prompt")?;
            encoder.map_or(Ok(()), |encoder| encoder.prompt(&prompt).map(drop))
        }
    }
}

/// The same of rows.
fn look_at_rows(path: &Path, made: RowUse, reader: Option<&Reader>) -> anyhow::Result<String> {
    let rows = Rows::read(path)?;
    if let Some(Reader { encoder, spec, .. }) = reader {
        let encoder = encoder.as_ref();
        check_one_fits(&rows, |row: &Row| match made {
            RowUse::Prompt => row.prompt_tokens(encoder, spec),
            RowUse::Sequence => row.sequence(encoder, spec),
            RowUse::Answer => row.answer(encoder, spec),
        })?;
    }
    Ok(format!("{} rows", rows.rows.len()))
}
