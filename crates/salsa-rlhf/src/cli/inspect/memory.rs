//! The memory that each stage needs, known from a model's shape before anything is loaded.
use salsa_engine::{Head, LoraSpec, ModelSpec};

/// Bytes per parameter that is trained: f32 weights, gradients and AdamW's two moments; without the packed copy.
const TRAINED: u64 = 16;

/// Bytes per parameter of the packed copy that products read, in f32 and in bf16; of a frozen model there is nothing else.
const PACKED: [u64; 2] = [4, 2];

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
        "\nmemory (trained: {TRAINED} B per parameter for weights, gradients and two moments; all: a packed copy, {} B with dtype float32, {} B with bfloat16)\n  \
         {:<49} {:>10} {:>10} {:>10} {:>10}\n",
        PACKED[0], PACKED[1], "stage", "trained", "frozen", "float32", "bfloat16"
    );
    for stage in stages(spec) {
        let [f32, bf16] = PACKED.map(|packed| stage.trained * (TRAINED + packed) + stage.frozen * packed);
        text += &format!(
            "  {:<49} {:>10} {:>10} {:>10} {:>10}\n",
            stage.name,
            count(stage.trained),
            count(stage.frozen),
            size(f32),
            size(bf16)
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
        "key/value cache per token of a sequence being generated, in float32: {} B\n",
        2 * ACTIVATION * (spec.layers * spec.kv_heads * spec.head_dim) as u64
    );
    text
}

fn stages(spec: &ModelSpec) -> Vec<Stage> {
    let (model, rewarding) = (spec.with_head(Head::LanguageModel), spec.with_head(Head::Scalar));
    let (language, scalar) = (model.parameters() as u64, rewarding.parameters() as u64);
    let lora = LoraSpec::default();
    let (adapter, critic) = (lora.parameters(&model) as u64, lora.parameters(&rewarding) as u64);
    let stage = |name, trained, frozen| Stage { name, trained, frozen };
    vec![
        stage("generate, logprobs", 0, language),
        stage("score", 0, scalar),
        stage("sft", language, 0),
        stage("reward", scalar, 0),
        stage("dpo (policy, reference)", language, language),
        stage("ppo (policy, critic, reference, reward model)", language + scalar, language + scalar),
        stage("sft with use_peft (rank 16)", adapter, language),
        stage("reward with use_peft (rank 16)", critic, scalar),
        stage("dpo with use_peft (rank 16; reference: its base)", adapter, language),
        // One base; the reference, a soup of two adapters, has twice the rank, and there is the reward model.
        stage("ppo with use_peft (rank 16, one base)", adapter + critic, language + 2 * adapter + critic),
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
        let found: Vec<(u64, u64)> = stages[..6].iter().map(|stage| (stage.trained, stage.frozen)).collect();
        let both = language + scalar;
        assert_eq!(found, [(0, language), (0, scalar), (language, 0), (scalar, 0), (language, language), (both, both)]);
        // Rank 16, 22 layers: q and o 2 * 4096, k and v 2 * (2048 + 256), three matrices of the feed-forward 2048 + 5632.
        let adapter = 22 * 16 * (2 * 4096 + 2 * 2304 + 3 * 7680);
        assert_eq!((stages[6].trained, stages[6].frozen), (adapter, language));
        // 20 B * 1.1e9 = 20.5 GiB, 18 B: 18.4 GiB.
        let table = table(&tiny_llama());
        assert!(table.contains("1.10 B          -   20.5 GiB   18.4 GiB"), "{table}");
    }

    #[test]
    fn activations_are_counted_by_layer() {
        let spec = tiny_llama();
        // 5 * 2048 + 2 * 36 * 64 + 3 * 5632 = 31744 numbers of 4 bytes.
        assert_eq!(layer_per_token(&spec), 4 * 31_744);
        assert_eq!(kept_per_token(&spec), 22 * 4 * 31_744);
        assert_eq!(recomputed_per_token(&spec), 22 * 4 * 2048);
        // 22 layers * 4 heads of 64 * key and value * 4 B.
        assert!(table(&spec).contains("generated, in float32: 45056 B"));
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!((size(1 << 20), size(3 << 29)), ("1.0 MiB".to_owned(), "1.5 GiB".to_owned()));
        assert_eq!((count(0), count(1500), count(2_500_000)), ("-".to_owned(), "1.5 k".to_owned(), "2.5 M".to_owned()));
    }
}
