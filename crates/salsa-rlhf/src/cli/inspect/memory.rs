//! The memory that each stage needs, known from a model's shape before anything is loaded.
use salsa_engine::{Head, LoraSpec, ModelSpec};

/// Bytes per parameter that is trained: f32 weights, gradients and AdamW's two moments.
const TRAINED: u64 = 16;

/// Bytes per parameter that only computes: f32 weights.
const FROZEN: u64 = 4;

/// Bytes of an activation: f32.
const ACTIVATION: u64 = 4;

/// The number of tokens in a pass for which activations are shown.
const EXAMPLE_TOKENS: u64 = 4096;

/// What a stage keeps of models: how many parameters it trains, and how many it only uses.
struct Stage {
    name: &'static str,
    trained: u64,
    frozen: u64,
}

/// A table of all stages, with activations as a number per token of a pass.
pub fn table(spec: &ModelSpec) -> String {
    let mut text = format!(
        "\nmemory (float32; trained {TRAINED} B per parameter: weights, gradients, two moments; frozen {FROZEN} B)\n  \
         {:<46} {:>12} {:>12} {:>12}\n",
        "stage", "trained", "frozen", "bytes"
    );
    for stage in stages(spec) {
        let bytes = stage.trained * TRAINED + stage.frozen * FROZEN;
        text += &format!(
            "  {:<46} {:>12} {:>12} {:>12}\n",
            stage.name,
            count(stage.trained),
            count(stage.frozen),
            size(bytes)
        );
    }
    let (kept, recomputed) = (kept_per_token(spec), recomputed_per_token(spec));
    text += &format!(
        "activations per token of a training pass: {} B; with gradient_checkpointing {} B and one layer's {} B\n  \
         (a pass of {EXAMPLE_TOKENS} tokens: {} or {})\n",
        kept,
        recomputed,
        layer_per_token(spec),
        size(kept * EXAMPLE_TOKENS),
        size((recomputed + layer_per_token(spec)) * EXAMPLE_TOKENS)
    );
    text += &format!(
        "key/value cache per token of a sequence being generated: {} B\n",
        2 * ACTIVATION * (spec.layers * spec.kv_heads * spec.head_dim) as u64
    );
    text
}

fn stages(spec: &ModelSpec) -> Vec<Stage> {
    let language = spec.with_head(Head::LanguageModel).parameters() as u64;
    let scalar = spec.with_head(Head::Scalar).parameters() as u64;
    let adapter = LoraSpec::default().parameters(&spec.with_head(Head::Scalar)) as u64;
    let stage = |name, trained, frozen| Stage { name, trained, frozen };
    vec![
        stage("generate, logprobs", 0, language),
        stage("score", 0, scalar),
        stage("sft", language, 0),
        stage("reward", scalar, 0),
        stage("dpo (policy, reference)", language, language),
        stage("ppo (policy, critic, reference, reward model)", language + scalar, language + scalar),
        stage("sft with use_peft (rank 16)", adapter, language),
        // One base; the reference, a soup of two adapters, has twice the rank, and there is the reward model.
        stage("ppo with use_peft (rank 16, one base)", 2 * adapter, language + 3 * adapter),
    ]
}

/// What the backward pass needs of one layer, for one token.
///
/// ```text
/// input, two norms' outputs, attention's and the feed-forward's sums   5 hidden
/// queries, keys, values, attention's output                           (2 heads + 2 kv_heads) * head_dim
/// gate, up, their product                                              3 intermediate
/// ```
fn layer_per_token(spec: &ModelSpec) -> u64 {
    let attention = 2 * (spec.heads + spec.kv_heads) * spec.head_dim;
    ACTIVATION * (5 * spec.hidden_size + attention + 3 * spec.intermediate_size) as u64
}

fn kept_per_token(spec: &ModelSpec) -> u64 {
    layer_per_token(spec) * spec.layers as u64
}

/// Each layer's input.
fn recomputed_per_token(spec: &ModelSpec) -> u64 {
    ACTIVATION * (spec.hidden_size * spec.layers) as u64
}

/// `8.4 M`, or `-` for none.
fn count(number: u64) -> String {
    match number as f64 {
        0.0 => "-".to_owned(),
        n if n >= 1e9 => format!("{:.2} B", n / 1e9),
        n if n >= 1e6 => format!("{:.1} M", n / 1e6),
        n => format!("{:.1} k", n / 1e3),
    }
}

/// `1.2 GiB`
fn size(bytes: u64) -> String {
    let mib = bytes as f64 / (1024.0 * 1024.0);
    if mib >= 1024.0 { format!("{:.1} GiB", mib / 1024.0) } else { format!("{mib:.1} MiB") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TinyLlama-1.1B: 1,100,048,384 parameters; as a reward model without the 32000 x 2048 output matrix, and with one
    /// row for the score.
    fn tiny_llama() -> ModelSpec {
        let config = serde_json::json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "intermediate_size": 5632,
            "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": false
        });
        crate::checkpoint::spec_of(&config).unwrap()
    }

    #[test]
    fn bytes_follow_from_the_parameters() {
        let stages = stages(&tiny_llama());
        let language = 1_100_048_384;
        let scalar = language - 32_000 * 2048 + 2048;
        let found: Vec<(u64, u64)> = stages.iter().map(|stage| (stage.trained, stage.frozen)).collect();
        let both = language + scalar;
        let (whole, adapters) = found.split_at(6);
        assert_eq!(whole, [(0, language), (0, scalar), (language, 0), (scalar, 0), (language, language), (both, both)]);
        // Per layer 16 * (in + out) of q, o: 2048 + 2048; k, v: 2048 + 256; gate, up, down: 2048 + 5632; then a head.
        let adapter = 22 * 16 * (2 * 4096 + 2 * 2304 + 3 * 7680) + 2048;
        assert_eq!(adapters, [(adapter, language), (2 * adapter, language + 3 * adapter)]);
        // 16 B * 1.1e9 = 17.6e9 B = 16.4 GiB.
        let table = table(&tiny_llama());
        assert!(table.contains("sft ") && table.contains("1.10 B") && table.contains("16.4 GiB"), "{table}");
    }

    #[test]
    fn activations_are_counted_by_layer() {
        let spec = tiny_llama();
        // 5 * 2048 + 2 * 36 * 64 + 3 * 5632 = 31744 numbers of 4 bytes.
        assert_eq!(layer_per_token(&spec), 4 * 31_744);
        assert_eq!(kept_per_token(&spec), 22 * 4 * 31_744);
        assert_eq!(recomputed_per_token(&spec), 22 * 4 * 2048);
        // 22 layers * 4 heads of 64 * key and value * 4 B.
        assert!(table(&spec).contains("generated: 45056 B"));
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!((size(1 << 20), size(3 << 29)), ("1.0 MiB".to_owned(), "1.5 GiB".to_owned()));
        assert_eq!((count(0), count(1500), count(2_500_000)), ("-".to_owned(), "1.5 k".to_owned(), "2.5 M".to_owned()));
    }
}
