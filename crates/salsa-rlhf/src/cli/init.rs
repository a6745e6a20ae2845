//! `salsa init CONFIG --output DIR`
use std::path::PathBuf;

use anyhow::Context;
use serde_json::json;

use super::{merge::dtype, print};
use crate::{
    checkpoint::{self, Dtype},
    stage::keys::ByteSize,
};

/// A shape, and the destination of its random weights.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  salsa init gemma-2b.json --tokenizer my-model --output random-gemma --dtype bf16")]
pub(super) struct Arguments {
    /// Shape of the model: a config.json of Hugging Face.
    #[arg(value_name = "CONFIG")]
    config: PathBuf,
    /// Output directory; must be empty or absent.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Model directory to copy the tokenizer and chat template from.
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Type of the weights: float32, bfloat16 or float16.
    #[arg(long, value_parser = dtype, default_value = "float32")]
    dtype: Dtype,
    /// Seed of the random weights.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Maximum size of a weight file: bytes, or a size such as 5GB.
    #[arg(long, value_name = "SIZE", default_value = "5GB")]
    max_shard_size: String,
}

/// Writes a checkpoint with freshly initialised weights.
pub(super) fn main(arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { config, output, tokenizer, .. } = arguments;
    let size: ByteSize = serde_json::from_value(json!(arguments.max_shard_size)).context("--max_shard_size")?;
    let options = (arguments.dtype, size.0);
    let parameters = checkpoint::init(config, tokenizer.as_deref(), output, arguments.seed, options)?;
    print(&format!("{}\n", json!({"output": output, "parameters": parameters})))
}
