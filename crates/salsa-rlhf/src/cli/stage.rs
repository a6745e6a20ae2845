//! `salsa pretrain | sft | reward | ppo | …`: one stage, from a file and flags.
use std::path::Path;

use anyhow::Context;

use super::{flags::Flags, help::keys, print};
use crate::{
    config::Usage,
    stage::{
        Outcome, StageContext,
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
        return print(&help(kind));
    }
    let planned = (kind.load)(flags.config.as_deref(), &flags.pairs)?;
    let place = kind.product.key().map(|key| (key, planned.config[key].as_str().unwrap_or_default().to_owned()));
    if let Some((key, _)) = place.as_ref().filter(|(_, place)| place.is_empty()) {
        return Err(Usage(format!("say where the result goes: --{key} PATH")).into());
    }
    let results = match (kind.product, place) {
        (Product::Directory, Some((_, place))) => {
            let context = super::context()?;
            let work = || (planned.work)(&context);
            let outcome =
                run_stage(kind.name, Path::new(&place), (planned.config.clone(), planned.places.clone()), work)?;
            if let Outcome::Skipped { .. } = outcome {
                context.say(&format!("{place} is done already, nothing to do"));
            }
            outcome.results().clone()
        }
        // Nothing to resume, so Ctrl-C may end it at once: the one file is written whole or not at all.
        _ => (planned.work)(&StageContext::default())?,
    };
    print(&format!("{results}\n"))
}

/// An example, and every key with what it means.
pub fn help(kind: &Kind) -> String {
    format!(
        "Example:\n  {}\n\nKeys, as --KEY VALUE or as KEY: VALUE in the file of --config. A dotted key is one of\n\
         a mapping, and [required] says of it that the mapping cannot be without it.\n{}",
        example(kind),
        keys(kind)
    )
}

fn example(kind: &Kind) -> String {
    let flags = match kind.name {
        "pretrain" => "--dataset texts.txt --output_dir base --hidden_size 256 --num_hidden_layers 4",
        "sft" => "--model base --dataset chat.jsonl --output_dir sft-a --seed 1",
        "soup" => "sft-a sft-b --weights 0.5 0.5 --output soup",
        "reward" => "--model sft-a --dataset pairs.jsonl --output_dir reward",
        "ppo" => {
            "--model sft-a --reward_model reward --dataset prompts.jsonl --output_dir salsa \\\n    \
                  --reference.kind soup --reference.models '[sft-a, sft-b]' --kl_coef 0.05"
        }
        "evaluate" => "--config evaluate.yaml --output_dir eval",
        "landscape" => {
            "--models sft-a sft-b --reward_model reward --prompts prompts.jsonl --output_dir landscape \\\n    \
                  --max_prompts 200 --max_new_tokens 96"
        }
        "winrate" => return "salsa eval winrate --answers a.jsonl --baseline b.jsonl --reward_model reward".to_owned(),
        "kitchen" => "--output_dir data --seed 1",
        "dpo" => "--model sft-a --dataset pairs.jsonl --output_dir dpo --beta 0.1",
        "generate" => "--model sft-a --input prompts.jsonl --output answers.jsonl --temperature 0",
        "score" => "--model reward --input answers.jsonl --output scores.jsonl",
        "logprobs" => "--model sft-a --input answers.jsonl --output logprobs.jsonl",
        _ => "--config config.yaml",
    };
    format!("salsa {} {flags}", kind.name)
}
