//! Description of a checkpoint.
use std::path::Path;

use salsa_engine::{
    Activation, BlockNorms, Head, LayerOptions, LoraSpec, ModelSpec, NormWeight, Rope, RopeScaling, Rotary,
};

use super::memory;
use crate::{chat::ChatTemplate, checkpoint::Checkpoint, stage::lifecycle::record::Record, tokenizer::Tokenizer};

/// Prints one fact per line, then the memory of each stage, in each of so many processes. Reads no weights.
pub(super) fn print(dir: &Path, ranks: usize) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(dir)?;
    let spec = &checkpoint.spec;
    let mut facts = vec![
        ("family", family(&checkpoint)),
        ("head", head(spec.head).to_owned()),
        ("parameters", format!("{} ({})", spec.parameters(), short(spec.parameters() as f64))),
        ("dtype", format!("{:?}", checkpoint.dtype)),
        ("shape", shape(spec)),
        ("vocabulary", vocabulary(&checkpoint)?),
        ("context", context(spec)),
        ("details", details(spec)),
        ("special tokens", special_tokens(&checkpoint)),
        ("chat template", chat_template(&checkpoint)?),
    ];
    if let Some(adapter) = checkpoint.adapter() {
        facts.push(("adapter", self::adapter(&adapter.lora, adapter.lora.parameters(spec))));
        facts.push(("base", adapter.base_dir.display().to_string()));
    }
    if let Some((mean, std)) = checkpoint.score_normalization() {
        facts.push(("scores", format!("mean {mean:.4}, standard deviation {std:.4}")));
    }
    if let Some(record) = Record::read(&dir.join("stage.json"))? {
        facts.push(("made by", format!("salsa {} {}", record.stage, record.version)));
    }
    let mut text: String = facts.iter().map(|(name, fact)| format!("{name:<14} {fact}\n")).collect();
    text += &memory::table(spec, checkpoint.embedding_is_bf16(), ranks);
    super::super::print(&text)
}

/// Rank, scale, targets and size.
fn adapter(lora: &LoraSpec, parameters: usize) -> String {
    let targets: Vec<&str> = lora.targets.iter().map(|target| target.name()).collect();
    let size = short(parameters as f64);
    format!("rank {}, scale {}, {size} parameters on {}", lora.rank, lora.scale(), targets.join(" "))
}

fn family(checkpoint: &Checkpoint) -> String {
    let model_type = checkpoint.config["model_type"].as_str().unwrap_or("?");
    let architecture = checkpoint.config["architectures"][0].as_str().unwrap_or("?");
    format!("{model_type} ({architecture})")
}

fn head(head: Head) -> &'static str {
    match head {
        Head::LanguageModel => "language model",
        Head::Scalar => "reward model (one score per sequence)",
        Head::LanguageModelWithValue => "language model with a value head",
    }
}

fn shape(spec: &ModelSpec) -> String {
    format!(
        "{} layers, hidden {}, intermediate {}, {} heads of {} ({} key/value heads)",
        spec.layers, spec.hidden_size, spec.intermediate_size, spec.heads, spec.head_dim, spec.kv_heads
    )
}

fn vocabulary(checkpoint: &Checkpoint) -> anyhow::Result<String> {
    let rows = checkpoint.spec.vocab_size;
    if !checkpoint.dir().join("tokenizer.json").exists() {
        return Ok(format!("{rows} embeddings, no tokenizer.json"));
    }
    let tokens = Tokenizer::from_dir(checkpoint.dir())?.vocab_size();
    Ok(format!("{rows} embeddings, {tokens} tokens"))
}

fn context(spec: &ModelSpec) -> String {
    let layers = |is_one: fn(LayerOptions) -> bool| {
        let count = (0..spec.layers).filter(|layer| is_one(spec.layer(*layer))).count();
        if count == spec.layers { String::new() } else { format!(" in {count} of {} layers", spec.layers) }
    };
    let mut text = format!("{} positions, {}", spec.max_positions, rope(&spec.rope));
    if let Some(local) = &spec.options.local_rope {
        text += &format!(", {}{}", rope(local), layers(|layer| layer.rotary == Rotary::Local));
    }
    if (0..spec.layers).any(|layer| spec.layer(layer).rotary == Rotary::None) {
        text += &format!(", no rope{}", layers(|layer| layer.rotary == Rotary::None));
    }
    if let Some(window) = spec.sliding_window {
        text += &format!(", sliding window {window}{}", layers(|layer| layer.windowed));
    }
    text
}

fn rope(rope: &Rope) -> String {
    let scaling = match rope.scaling {
        RopeScaling::None => "",
        RopeScaling::Linear { .. } => ", linear scaling",
        RopeScaling::Llama3 { .. } => ", llama3 scaling",
        RopeScaling::Yarn { .. } => ", yarn scaling",
        RopeScaling::LongRope { .. } => ", longrope scaling",
        RopeScaling::Dynamic { .. } => ", dynamic scaling",
    };
    format!("rope theta {}{scaling}", rope.theta)
}

fn details(spec: &ModelSpec) -> String {
    let mut details = vec![match spec.activation {
        Activation::Silu => "SiLU",
        Activation::GeluTanh => "GELU (tanh)",
    }];
    details.push(if spec.tied_embeddings { "tied embeddings" } else { "untied embeddings" });
    details.extend((spec.norm == NormWeight::OnePlus).then_some("norm weights stored minus one"));
    details.extend(spec.qkv_bias.then_some("bias on q, k, v"));
    details.extend(spec.options.output_bias.then_some("bias on o"));
    details.extend(spec.qk_norm.then_some("norm on q and k"));
    details.extend(match spec.options.norms {
        BlockNorms::Before => None,
        BlockNorms::Both => Some("norms before and after attention and MLP"),
        BlockNorms::After => Some("norms after attention and MLP"),
    });
    details.extend(spec.options.attention_softcap.is_some().then_some("capped attention scores"));
    details.extend(spec.options.logit_softcap.is_some().then_some("capped logits"));
    details.extend(spec.options.fused_projections.then_some("fused projections"));
    details.join(", ")
}

fn special_tokens(checkpoint: &Checkpoint) -> String {
    let id = |id: Option<u32>| id.map_or("none".to_owned(), |id| id.to_string());
    let tokens = &checkpoint.tokens;
    format!("bos {}, eos {:?}, pad {}", id(tokens.bos), tokens.eos, id(tokens.pad))
}

fn chat_template(checkpoint: &Checkpoint) -> anyhow::Result<String> {
    Ok(match ChatTemplate::from_dir(checkpoint.dir())? {
        Some(template) => format!("yes ({} characters)", template.source().chars().count()),
        None => "none".to_owned(),
    })
}

/// `8.4 M`
fn short(number: f64) -> String {
    match number {
        n if n >= 1e9 => format!("{:.2} B", n / 1e9),
        n if n >= 1e6 => format!("{:.1} M", n / 1e6),
        n => format!("{:.1} k", n / 1e3),
    }
}
