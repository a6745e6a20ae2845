//! `salsa eval winrate`
use clap::Subcommand;

use super::stage;

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
    Winrate(stage::Arguments),
}

/// Prints the result as JSON.
pub fn main(arguments: &Arguments) -> anyhow::Result<()> {
    match &arguments.what {
        What::Winrate(arguments) => stage::main("winrate", arguments),
    }
}
