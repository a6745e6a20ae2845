//! `salsa merge ADAPTER --output DIR`
use std::path::PathBuf;

use anyhow::Context;
use serde_json::json;

use super::print;
use crate::{
    checkpoint::{self, Checkpoint, Dtype},
    stage::keys::ByteSize,
};

/// An adapter and the destination of the merged model.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  salsa merge runs/lora/sft-a --output sft-a-merged --dtype bfloat16")]
pub(super) struct Arguments {
    /// Adapter directory in PEFT format.
    adapter: PathBuf,
    /// Output directory; must be empty or absent.
    #[arg(long, value_name = "DIR", visible_alias = "output-dir")]
    output: PathBuf,
    /// Number type of the model: float32, bfloat16 or float16; by default that of the base.
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    dtype: Option<Dtype>,
    /// Maximum size of a weight file: bytes, or a size such as 5GB.
    #[arg(long, value_name = "SIZE", default_value = "5GB")]
    max_shard_size: String,
}

/// Writes `W + scale * B A` for every matrix that the adapter has factors for, and everything else unchanged from the
/// base.
pub(super) fn main(arguments: &Arguments) -> anyhow::Result<()> {
    let size: ByteSize = serde_json::from_value(json!(arguments.max_shard_size)).context("--max_shard_size")?;
    let checkpoint = Checkpoint::open(&arguments.adapter)?;
    checkpoint::merge(&checkpoint, &arguments.output, arguments.dtype, size.0)?;
    let summary = json!({
        "adapter": arguments.adapter,
        "base": checkpoint.base_dir(),
        "output": arguments.output,
        "parameters": checkpoint.spec.parameters(),
    });
    print(&format!("{summary}\n"))
}

/// Parses a number type by any of its names.
pub(super) fn dtype(text: &str) -> Result<Dtype, String> {
    match text {
        "float32" | "f32" | "fp32" => Ok(Dtype::F32),
        "bfloat16" | "bf16" => Ok(Dtype::BF16),
        "float16" | "f16" | "fp16" => Ok(Dtype::F16),
        _ => Err("expected float32, bfloat16 or float16".to_owned()),
    }
}
