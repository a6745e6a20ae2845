//! Tests of GGUF files, most on models of a few numbers that the writer has made.

mod blocks;
mod hostile;
mod round_trip;
mod tokens;
mod types;

use super::{
    block::BlockType,
    writer::{NewTensor, Pairs},
};

/// The metadata of a Llama of one block.
fn shape(pairs: &mut Pairs) {
    pairs.text("general.architecture", "llama");
    for (key, number) in [
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", 8),
        ("feed_forward_length", 16),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
    ] {
        pairs.whole(&format!("llama.{key}"), number);
    }
    pairs.float("llama.attention.layer_norm_rms_epsilon", 1e-5);
}

/// A byte-level vocabulary of five tokens, with a fault.
fn vocabulary(pairs: &mut Pairs, fault: &str) {
    let last = if fault == "twice" { "<|end|>" } else { "ab" };
    let tokens = ["<|end|>", "a", "b", "c", last].map(str::to_owned);
    let merge = if fault == "merge" { "a c" } else { "a b" };
    pairs.text("tokenizer.ggml.model", if fault == "model" { "bert" } else { "gpt2" });
    pairs.text("tokenizer.ggml.pre", if fault == "pre" { "unheard-of" } else { "gpt-2" });
    pairs.texts("tokenizer.ggml.tokens", &tokens);
    pairs.texts("tokenizer.ggml.merges", &[merge.to_owned()]);
    pairs.wholes("tokenizer.ggml.token_type", if fault == "kinds" { &[3, 1] } else { &[3, 1, 1, 1, 1] });
    pairs.whole("tokenizer.ggml.eos_token_id", 0);
}

/// A Llama of one block with its vocabulary; embeddings are tied.
fn small(pairs: &mut Pairs, tensors: &mut Vec<NewTensor>) {
    shape(pairs);
    vocabulary(pairs, "");
    let new = |(name, shape): (&str, &[usize])| NewTensor {
        name: name.to_owned(),
        shape: shape.to_vec(),
        kind: BlockType::F32,
    };
    let list: [(&str, &[usize]); 11] = [
        ("token_embd.weight", &[5, 8]),
        ("blk.0.attn_norm.weight", &[8]),
        ("blk.0.attn_q.weight", &[8, 8]),
        ("blk.0.attn_k.weight", &[4, 8]),
        ("blk.0.attn_v.weight", &[4, 8]),
        ("blk.0.attn_output.weight", &[8, 8]),
        ("blk.0.ffn_norm.weight", &[8]),
        ("blk.0.ffn_gate.weight", &[16, 8]),
        ("blk.0.ffn_up.weight", &[16, 8]),
        ("blk.0.ffn_down.weight", &[8, 16]),
        ("output_norm.weight", &[8]),
    ];
    tensors.extend(list.into_iter().map(new));
}
