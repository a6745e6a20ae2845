//! Which tensor of a file gets which type.

use super::super::{
    block::BlockType,
    file_type::{FileType, Place},
};

fn of(kind: FileType, name: &str, columns: usize, layers: usize, tied: bool) -> BlockType {
    kind.of_tensor(&Place { name, dimensions: 2, columns, layers, tied, is_70b: layers == 80 })
}

/// The layers that llama.cpp's `use_more_bits` names, of 30 and of 18.
#[test]
fn q4_k_m_gives_six_bits_to_the_tensors_of_llama_cpp() {
    let more = |layers: usize, part: &str| -> Vec<usize> {
        let kind = |layer: &usize| of(FileType::Q4_K_M, &format!("blk.{layer}.{part}.weight"), 2048, layers, false);
        (0..layers).filter(|layer| kind(layer) == BlockType::Q6_K).collect()
    };
    let of_30 = [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29];
    assert_eq!(more(30, "attn_v"), of_30);
    assert_eq!(more(30, "ffn_down"), of_30);
    assert_eq!(more(18, "ffn_down"), [0, 1, 4, 7, 10, 13, 15, 16, 17]);
    for part in ["attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"] {
        assert_eq!(more(30, part), [0; 0], "{part}");
    }
    assert_eq!(of(FileType::Q4_K_M, "blk.13.attn_v.weight", 8192, 80, false), BlockType::Q5_K);
    assert_eq!(of(FileType::Q4_K_M, "blk.13.attn_v.weight", 4096, 32, false), BlockType::Q4_K);
}

#[test]
fn embeddings_outputs_and_odd_rows_get_what_llama_cpp_gives_them() {
    let output = |kind, columns| of(kind, "output.weight", columns, 30, false);
    assert_eq!(output(FileType::Q4_K_M, 2048), BlockType::Q6_K);
    assert_eq!(output(FileType::Q4_K_M, 576), BlockType::Q8_0);
    assert_eq!(output(FileType::Q4_0, 2048), BlockType::Q6_K);
    assert_eq!(output(FileType::Q4_0, 576), BlockType::Q8_0);
    assert_eq!(output(FileType::Q8_0, 2048), BlockType::Q8_0);
    assert_eq!(of(FileType::Q4_K_M, "token_embd.weight", 2048, 30, true), BlockType::Q6_K);
    assert_eq!(of(FileType::Q4_K_M, "token_embd.weight", 2048, 30, false), BlockType::Q4_K);
    // Rows of 576 are no whole super-blocks, rows of 100 no whole blocks.
    assert_eq!(of(FileType::Q4_K_M, "blk.9.attn_q.weight", 576, 30, true), BlockType::Q5_0);
    assert_eq!(of(FileType::Q4_K_M, "blk.0.attn_v.weight", 576, 30, true), BlockType::Q8_0);
    assert_eq!(of(FileType::Q4_K_M, "blk.9.attn_q.weight", 100, 30, true), BlockType::F16);
    assert_eq!(of(FileType::Q8_0, "blk.9.attn_q.weight", 100, 30, true), BlockType::F16);
    for kind in ["f32", "f16", "bf16", "q8_0", "q4_0", "Q4_K_M"].map(|name| FileType::named(name).unwrap()) {
        let norm =
            Place { name: "output_norm.weight", dimensions: 1, columns: 2048, layers: 30, tied: true, is_70b: false };
        assert_eq!(kind.of_tensor(&norm), BlockType::F32, "{kind}");
    }
    assert_eq!(FileType::named("q3_k_m"), None);
}
