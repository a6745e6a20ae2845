//! Checks of the data that a stage reads.
use std::path::Path;

use anyhow::{Context, bail};

use super::{
    StageCheck,
    models::{Models, Reader},
};
use crate::{
    chat,
    data::{Example, Labels, Reading},
    stage::{
        reads::{ExampleUse, RowUse},
        text::{
            encoder::Encoder,
            labelled::responses,
            overlong::check_one_fits,
            pairs::preference,
            rows::{Row, Rows},
            source::{DataPart, DataSource},
        },
    },
};

impl StageCheck<'_> {
    /// Reads all data sets that exist.
    pub(super) fn data(&mut self, models: &Models<'_>) {
        let reads = &self.step.planned.reads;
        for (place, source, used) in &reads.examples {
            self.examples(place, source, *used, models.reader());
        }
        for (place, path, used) in reads.rows.iter().filter(|(_, path, _)| !path.as_os_str().is_empty()) {
            self.rows(place, path, *used, models.reader());
        }
        if models.reader().is_none() && !reads.template.is_empty() {
            self.faults.take(chat::source_of(&reads.template).context("chat_template"));
        }
    }

    fn examples(&mut self, place: &str, source: &DataSource, used: ExampleUse, reader: Option<&Reader>) {
        match source {
            DataSource::Mixture(sources) => {
                sources.iter().for_each(|source| self.examples(place, source, used, reader));
            }
            DataSource::Path(path) | DataSource::Part(DataPart { path, .. }) => {
                if self.is_here(place, path) {
                    let fact = look_at(source, used, reader).with_context(|| place.to_owned());
                    self.facts.extend(self.faults.take(fact).map(|fact| format!("{place} {source}: {fact}")));
                }
            }
        }
    }

    fn rows(&mut self, place: &str, path: &Path, used: RowUse, reader: Option<&Reader>) {
        if self.is_here(place, path) {
            let fact = look_at_rows(path, used, reader).with_context(|| place.to_owned());
            self.facts.extend(self.faults.take(fact).map(|fact| format!("{place} {}: {fact}", path.display())));
        }
    }
}

/// Reads a source and encodes its first example for the stage's model. Returns the number of examples and their layout.
fn look_at(source: &DataSource, used: ExampleUse, reader: Option<&Reader>) -> anyhow::Result<String> {
    let labels = if used == ExampleUse::Labelled { Labels::Kept } else { Labels::Paired };
    let mut loaded = source.load_with(Reading { labels, ..Reading::default() })?;
    let count = loaded.examples.len();
    loaded.examples.truncate(1);
    let label = loaded.labels.first().copied().flatten();
    let encoder = reader.and_then(|reader| reader.encoder.as_ref());
    let layout = loaded.try_map(|example| see(example, label, used, encoder).map(|()| example.layout()))?;
    let notes: String = loaded.notes.iter().map(|note| format!("\n  {note}")).collect();
    Ok(format!("{count} examples ({}){notes}", layout[0]))
}

fn see(example: &Example, label: Option<bool>, used: ExampleUse, encoder: Option<&Encoder>) -> anyhow::Result<()> {
    match (used, encoder) {
        (ExampleUse::Text, _) => Ok(()),
        (ExampleUse::Demonstration, Some(encoder)) => encoder.example(example).map(drop),
        (ExampleUse::Demonstration, None) if matches!(example, Example::Prompt(_)) => {
            bail!("this is a prompt without a response; there is nothing to learn")
        }
        (ExampleUse::Demonstration, None) => Ok(()),
        (ExampleUse::Preference, encoder) => {
            let pair = preference(example)?;
            let sides = [&pair.chosen, &pair.rejected];
            encoder.map_or(Ok(()), |encoder| {
                sides.into_iter().try_for_each(|side| encoder.prompt_and_response(&pair.prompt, side).map(drop))
            })
        }
        (ExampleUse::Labelled, encoder) => {
            let responses = responses(example, label)?;
            encoder.map_or(Ok(()), |encoder| {
                let mut each = responses.into_iter();
                each.try_for_each(|(prompt, response, _)| encoder.prompt_and_response(prompt, response).map(drop))
            })
        }
        (ExampleUse::Prompt, encoder) => {
            let prompt = example.prompt().context("this record has no prompt")?;
            encoder.map_or(Ok(()), |encoder| encoder.prompt(&prompt).map(drop))
        }
    }
}

/// The same for a file of rows.
fn look_at_rows(path: &Path, used: RowUse, reader: Option<&Reader>) -> anyhow::Result<String> {
    let rows = Rows::read(path)?;
    if let Some(Reader { encoder, spec, .. }) = reader {
        let encoder = encoder.as_ref();
        check_one_fits(&rows, |row: &Row| match used {
            RowUse::Prompt => row.prompt_tokens(encoder, spec),
            RowUse::Sequence => row.sequence(encoder, spec),
            RowUse::Answer => row.answer(encoder, spec),
        })?;
    }
    Ok(format!("{} rows", rows.rows.len()))
}
