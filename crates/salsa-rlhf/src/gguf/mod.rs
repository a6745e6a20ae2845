//! GGUF, the format of llama.cpp and Ollama: files to Hugging Face directories ([`convert()`]), and checkpoints and
//! adapters to files ([`export()`], [`export_adapter`]).

mod architecture;
mod block;
mod config;
mod convert;
mod dequantize;
mod export;
mod file_type;
mod k_quants;
mod pre_tokenizer;
mod quantize;
mod reader;
mod rope_factors;
#[cfg(test)]
mod tests;
mod tokenizer_keys;
mod value;
mod vocabulary;
mod writer;

pub use self::convert::{ConvertOptions, Converted, convert};
pub use self::export::{Exported, export, export_adapter};
pub use self::file_type::FileType;
