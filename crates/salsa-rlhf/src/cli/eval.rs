//! `salsa eval winrate`
use clap::Subcommand;

use super::{flags::Flags, print, stage};
use crate::{config, stage::winrate};

/// What to evaluate.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  salsa eval winrate --answers salsa.jsonl --baseline sft.jsonl --reward_model reward"
)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// How often one set of answers beats another, by a reward model or the toy world's gold reward.
    #[command(after_help = winrate_help())]
    Winrate(stage::Arguments),
}

/// Prints the result as JSON.
pub fn main(arguments: &Arguments) -> anyhow::Result<()> {
    let What::Winrate(arguments) = &arguments.what;
    let flags = Flags::parse(&arguments.words)?;
    if flags.help {
        return print(&winrate_help());
    }
    let config: winrate::WinrateConfig = config::load(flags.config.as_deref(), &flags.pairs)?;
    let results = winrate::run(&config, &super::context()?)?;
    print(&format!("{results}\n"))
}

fn winrate_help() -> String {
    let defaults = match serde_json::to_value(winrate::WinrateConfig::default()) {
        Ok(serde_json::Value::Object(keys)) => stage::keys(&keys),
        _ => String::new(),
    };
    let example = "salsa eval winrate --answers salsa.jsonl --baseline sft.jsonl --reward_model reward";
    format!("Example:\n  {example}\n\n{defaults}")
}
