//! `salsa convert MODEL.gguf --output DIR`
use std::path::PathBuf;

use anyhow::Context;
use serde_json::json;

use super::{merge::dtype, print};
use crate::{
    checkpoint::Dtype,
    gguf::{self, ConvertOptions},
    stage::keys::ByteSize,
};

/// A GGUF file and the destination of the checkpoint.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  salsa convert SmolLM2-135M-Instruct.Q4_1.gguf --output smollm2\n  \
                        salsa convert big-00001-of-00003.gguf --output big --dtype float32\n  \
                        salsa sft --model smollm2 --dataset chats.jsonl --output sft")]
pub(super) struct Arguments {
    /// GGUF file; of a model in several files, any of them.
    #[arg(value_name = "MODEL.gguf")]
    model: PathBuf,
    /// Output directory; must be empty or absent.
    #[arg(long, value_name = "DIR", visible_alias = "output-dir")]
    output: PathBuf,
    /// Number type of the weights: float32, bfloat16 or float16; by default the file's own, bfloat16 for quantised ones.
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    dtype: Option<Dtype>,
    /// Directory to take the tokenizer files and chat template from, instead of the file's vocabulary.
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Maximum size of a weight file: bytes, or a size such as 5GB.
    #[arg(long, value_name = "SIZE", default_value = "5GB")]
    max_shard_size: String,
}

/// Writes weights, config, tokenizer and chat template of a GGUF file as a Hugging Face directory.
pub(super) fn main(arguments: &Arguments) -> anyhow::Result<()> {
    let size: ByteSize = serde_json::from_value(json!(arguments.max_shard_size)).context("--max_shard_size")?;
    let options =
        ConvertOptions { dtype: arguments.dtype, tokenizer: arguments.tokenizer.clone(), max_shard_bytes: size.0 };
    let done = gguf::convert(&arguments.model, &arguments.output, &options)?;
    let summary = json!({
        "output": arguments.output,
        "architecture": done.architecture,
        "parameters": done.parameters,
        "dtype": done.dtype,
    });
    print(&format!("{summary}\n"))
}
