//! GGUF, the format of llama.cpp and Ollama: files to Hugging Face directories ([`convert()`]), and back.

mod architecture;
mod block;
mod config;
mod convert;
mod dequantize;
mod pre_tokenizer;
mod reader;
mod rope_factors;
#[cfg(test)]
mod tests;
mod value;
mod vocabulary;

pub use self::convert::{ConvertOptions, Converted, convert};
