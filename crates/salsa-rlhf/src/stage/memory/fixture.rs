//! A shape for tests.
use salsa_engine::ModelSpec;

/// TinyLlama-1.1B: 1,100,048,384 parameters; as a reward model, without the 32000 x 2048 output matrix and with one row
/// for the score.
pub(crate) fn tiny_llama() -> ModelSpec {
    let config = serde_json::json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": false
    });
    crate::checkpoint::spec_of(&config).unwrap()
}
