//! `salsa pretrain | sft | reward | ppo | …`: runs one stage, configured by a file and flags.
use std::path::Path;

use clap::ArgMatches;

use super::{
    flags::Flags,
    help::{keys, options},
    next, print,
    ranks::Ranks,
    soup,
};
use crate::{
    config::Usage,
    stage::{
        Outcome, StageContext,
        kind::{Kind, Product, Stage},
        lifecycle::agreement,
        run_stage,
        soup::SoupConfig,
        text::rows,
    },
};

/// The command of a stage: `--config FILE` and any of its keys.
pub(super) fn command(kind: &Kind, name: &'static str) -> clap::Command {
    let (value, help) = match kind.name {
        SoupConfig::NAME => ("MODEL … --KEY VALUE", soup::WORDS),
        _ => (
            "--config FILE --KEY VALUE",
            "`--config FILE` and any key of the stage; `-` and `_` are equal, TRL's names are understood.",
        ),
    };
    let words = clap::Arg::new(ARGUMENTS).value_name(value).help(help);
    let words = words.num_args(0..).trailing_var_arg(true).allow_hyphen_values(true);
    clap::Command::new(name).about(kind.about).arg(words)
}

/// The command with `--config` and its keys declared as options of clap; running a stage parses them with [`Flags`]
/// instead.
pub(super) fn with_options(command: clap::Command, kind: &Kind) -> clap::Command {
    let config = clap::Arg::new("config").long("config").value_name("FILE").value_hint(clap::ValueHint::FilePath);
    let config = config.help("File of keys and values, in YAML; flags win over it.");
    command.arg(config).args(options(kind)).after_help(format!("Example:\n  {}", kind.example()))
}

/// The words after the command of a stage.
pub(super) fn words(matches: &ArgMatches) -> Vec<String> {
    matches.get_many::<String>(ARGUMENTS).into_iter().flatten().cloned().collect()
}

/// The name of the argument that takes all words.
const ARGUMENTS: &str = "words";

/// Runs a stage.
pub(super) fn main(kind: &Kind, words: &[String], ranks: &Ranks) -> anyhow::Result<()> {
    if kind.name == SoupConfig::NAME {
        return soup::main(words, ranks);
    }
    let flags = Flags::parse(words)?;
    if flags.help {
        return print(&help(kind));
    }
    let planned = (kind.load)(flags.config.as_deref(), &flags.pairs)?;
    let place = kind.product.key().map(|key| (key, planned.config[key].as_str().unwrap_or_default().to_owned()));
    if let Some((key, _)) = place.as_ref().filter(|(_, place)| place.is_empty()) {
        return Err(Usage(format!("say where the result goes: --{key} PATH")).into());
    }
    let mut context = StageContext::default().with_ranks(ranks.comm().clone());
    let results = match (kind.product, &place) {
        _ if planned.is_dry_run => (planned.work)(&context)?,
        (Product::Directory, Some((_, place))) => {
            context = super::context(ranks)?;
            let config = (planned.config.clone(), planned.places.clone());
            let outcome = run_stage(kind.name, Path::new(place), config, &context, &planned.work)?;
            if let Outcome::Skipped { .. } = outcome {
                context.say(&format!("{place} is done already, nothing to do"));
            }
            outcome.results().clone()
        }
        // Nothing can be resumed, so Ctrl-C may end it at once: the one file is written atomically.
        _ => {
            agreement::check(&*context.ranks, &planned.config, &planned.places)?;
            (planned.work)(&context)?
        }
    };
    if place.as_ref().is_some_and(|(_, place)| place == rows::STDOUT) {
        // stdout has the rows.
        context.say(&results.to_string());
        return Ok(());
    }
    print(&format!("{results}\n"))?;
    if let Some((_, place)) = place.as_ref().filter(|_| !planned.is_dry_run) {
        next::after_stage(kind, Path::new(place), &context);
    }
    Ok(())
}

/// An example, and the reference of every key.
pub(super) fn help(kind: &Kind) -> String {
    format!(
        "Example:\n  {}\n\nKeys, as --KEY VALUE or as KEY: VALUE in the file of --config. A dotted key is one of\n\
         a mapping, and [required] says of it that the mapping cannot be without it.\n{}",
        kind.example(),
        keys(kind)
    )
}
