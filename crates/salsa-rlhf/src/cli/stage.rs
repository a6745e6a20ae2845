//! `salsa pretrain | sft | reward | dpo | generate | score | logprobs`: one stage, from a file and flags.
use std::{fmt::Write, path::Path};

use anyhow::Context;
use serde_json::Value;

use super::{flags::Flags, print};
use crate::{
    config::Usage,
    stage::{
        Outcome,
        kind::{Kind, Product},
        kinds, run_stage,
    },
};

/// A configuration file and flags.
#[derive(clap::Args)]
pub struct Arguments {
    /// `--config FILE` and any key of the stage; `-` and `_` are equal, TRL's names are understood.
    #[arg(value_name = "--config FILE --KEY VALUE", trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Runs the stage of this kind.
pub fn main(name: &str, arguments: &Arguments) -> anyhow::Result<()> {
    let kind = kinds::find(name).with_context(|| format!("no stage is called {name}"))?;
    let flags = Flags::parse(&arguments.words)?;
    if flags.help {
        let mut command = super::command();
        let command = command.find_subcommand_mut(name).context("the command is known")?;
        return print(&command.render_help().to_string());
    }
    let planned = (kind.load)(flags.config.as_deref(), &flags.pairs)?;
    let key = kind.product.key();
    let place = planned.config[key].as_str().unwrap_or_default().to_owned();
    if place.is_empty() {
        return Err(Usage(format!("say where the result goes: --{key} PATH")).into());
    }
    let context = super::context()?;
    let results = match kind.product {
        Product::File(_) => (planned.work)(&context)?,
        Product::Directory => {
            let work = || (planned.work)(&context);
            let outcome = run_stage(kind.name, Path::new(&place), planned.config.clone(), &planned.inputs, work)?;
            if let Outcome::Skipped { .. } = outcome {
                context.say(&format!("{place} is done already, nothing to do"));
            }
            outcome.results().clone()
        }
    };
    print(&format!("{results}\n"))
}

/// An example and every key with its default.
pub fn help(kind: &Kind) -> String {
    let mut text = format!("Example:\n  {}\n\nKeys and defaults:\n", example(kind));
    for (key, value) in (kind.defaults)() {
        let value = match value {
            Value::String(text) if text.is_empty() => String::new(),
            Value::Null => "(none)".to_owned(),
            value => value.to_string(),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  --{key:<30} {value}");
    }
    text
}

fn example(kind: &Kind) -> String {
    let flags = match kind.name {
        "pretrain" => "--dataset texts.txt --output_dir base --hidden_size 256 --num_hidden_layers 4",
        "sft" => "--model base --dataset chat.jsonl --output_dir sft-a --seed 1",
        "reward" => "--model sft-a --dataset pairs.jsonl --output_dir reward",
        "dpo" => "--model sft-a --dataset pairs.jsonl --output_dir dpo --beta 0.1",
        "generate" => "--model sft-a --input prompts.jsonl --output answers.jsonl --temperature 0",
        "score" => "--model reward --input answers.jsonl --output scores.jsonl",
        "logprobs" => "--model sft-a --input answers.jsonl --output logprobs.jsonl",
        _ => "--config config.yaml",
    };
    format!("salsa {} {flags}", kind.name)
}
