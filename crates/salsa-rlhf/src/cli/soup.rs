//! `salsa soup MODEL … --output DIR`: averages or merges several models into one.
use std::{path::Path, time::Instant};

use anyhow::Context;

use super::{flags::Flags, next, print, ranks::Ranks};
use crate::{
    config::{self, Origin, Usage},
    hub,
    progress::human_time,
    stage::{
        StageContext,
        kind::Stage,
        soup::{SoupConfig, mergekit, write_new_directory},
        table,
    },
};

/// Description of the words after the command.
pub(super) const WORDS: &str = "The ingredients, then `--config FILE` (also mergekit's) and any of the keys below; `-` and `_` are equal. As with \
     mergekit-yaml, `FILE DIRECTORY` does too: a file that ends in .yaml, .yml or .json, and where the result goes.";

/// Writes the soup. Prints its results on stdout as JSON or, with `--report`, the geometry as a table.
pub(super) fn main(words: &[String], ranks: &Ranks) -> anyhow::Result<()> {
    let models = words.iter().take_while(|word| !word.starts_with('-')).count();
    let (models, words) = words.split_at(models);
    let mut flags = Flags::parse(words)?;
    if flags.help || (models.is_empty() && flags == Flags::default()) {
        let mut command = super::command();
        let command = command.find_subcommand_mut("soup").context("the command is known")?;
        return print(&command.render_help().to_string());
    }
    let key = match models {
        [file] | [file, _] if flags.config.is_none() && is_configuration(file) => {
            flags.config = Some(file.into());
            "output"
        }
        _ => "models",
    };
    let positional = if key == "output" { &models[1..] } else { models };
    flags.pairs.splice(0..0, positional.iter().map(|word| (key.to_owned(), word.clone())));
    let context = super::context(ranks)?;
    let config = hub::localise(configuration(&flags, &context)?.with_adapters_apart()?)?;
    config.check()?;
    if config.output_dir.as_os_str().is_empty() {
        return Err(Usage("say where the result goes: --output DIR".to_owned()).into());
    }
    let start = Instant::now();
    let cooked = write_new_directory(&config, &context)?;
    let shown = config.output_dir.display();
    context.say(&format!("{shown} is ready after {}", human_time(start.elapsed().as_secs_f64())));
    match cooked.geometry {
        Some(geometry) => print(&geometry.table())?,
        None => print(&format!("{}\n", cooked.summary))?,
    }
    let kind = table::find(SoupConfig::NAME).context("the stage is known")?;
    next::after_stage(kind, &config.output_dir, &context);
    Ok(())
}

/// Whether a word names a configuration file, which a model cannot be.
fn is_configuration(word: &str) -> bool {
    let path = Path::new(word);
    let ends = path.extension().is_some_and(|end| ["yaml", "yml", "json"].iter().any(|known| end == *known));
    ends && !path.is_dir()
}

/// The configuration: defaults, overridden by the file, overridden by flags.
fn configuration(flags: &Flags, context: &StageContext) -> anyhow::Result<SoupConfig> {
    let Some(file) = &flags.config else { return config::load(None, &flags.pairs) };
    let mapping = config::read_mapping(file)?;
    if !mergekit::is_one(&mapping) {
        return config::load(Some(file), &flags.pairs);
    }
    let origin = Origin::file(file);
    let converted = mergekit::convert(&mapping).map_err(|error| origin.within(error))?;
    converted.passed_over.iter().for_each(|line| context.say(&format!("{}: {line}", file.display())));
    config::from_mapping_and_flags(&converted.soup, &origin, &flags.pairs)
}
