//! `salsa export MODEL --gguf FILE`
use std::path::PathBuf;

use anyhow::Context;
use serde_json::json;

use super::print;
use crate::{
    checkpoint::Checkpoint,
    gguf::{self, FileType},
};

/// A checkpoint and the file to write it to.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  salsa export runs/quickstart/salsa --gguf salsa.gguf\n  \
                        salsa export sft --gguf sft-q4_k_m.gguf --type q4_k_m\n  \
                        salsa export runs/lora/sft-a --gguf sft-a-lora.gguf --adapter\n\n\
                        Then:\n  llama-cli -m sft-q4_k_m.gguf\n  \
                        echo FROM ./sft-q4_k_m.gguf > Modelfile; ollama create sft")]
pub(super) struct Arguments {
    /// Model directory, or adapter directory in PEFT format, which is merged with its base.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// GGUF file to write.
    #[arg(long, value_name = "FILE")]
    gguf: PathBuf,
    /// Number type of the matrices: f32, f16, bf16, q8_0, q4_0 or q4_k_m, as in llama.cpp.
    #[arg(long = "type", value_name = "TYPE", value_parser = file_type, default_value = "f16", visible_alias = "outtype")]
    kind: FileType,
    /// Write the adapter alone, as a LoRA file for llama.cpp's --lora beside a GGUF of its base.
    #[arg(long)]
    adapter: bool,
}

/// Writes a GGUF file with the tokenizer and chat template of the model.
pub(super) fn main(arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { model, gguf: path, kind, adapter } = arguments;
    let checkpoint = Checkpoint::open(model)?;
    let done = match adapter {
        true => gguf::export_adapter(&checkpoint, path, *kind),
        false => gguf::export(&checkpoint, path, *kind),
    };
    let done = done.with_context(|| format!("cannot export {}", model.display()))?;
    let summary = json!({
        "output": path,
        "architecture": done.architecture,
        "parameters": done.parameters,
        "type": kind.to_string(),
        "bytes": done.bytes,
    });
    print(&format!("{summary}\n"))
}

fn file_type(text: &str) -> Result<FileType, String> {
    FileType::named(text).ok_or_else(|| format!("expected one of {}", FileType::names()))
}
