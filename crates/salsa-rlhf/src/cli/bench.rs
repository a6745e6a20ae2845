//! `salsa bench`: seconds per training step, decoding step, PPO or GRPO update, on random weights.
use std::{path::PathBuf, time::Instant};

use anyhow::ensure;
use clap::{Subcommand, ValueEnum};
use salsa_engine::{
    Activation, AdamW, Batch, Cpu, Device, Head, ModelSpec, NormWeight, Options, OutputGradient, Prompt, Query,
    Recompute, Rope, RopeScaling, Sampling, Trainable, random::Random,
};
use serde_json::{Value, json};

use super::{print, ranks::Ranks};
use crate::{
    checkpoint,
    stage::{
        device::{self, Choice as DeviceChoice},
        keys::ComputeType,
        memory::available::peak_mib,
    },
};

mod comm;
mod grpo;
mod models;
mod ppo;

/// Work to time.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  salsa bench generate --config base/config.json --batch 64 --dtype bf16")]
pub(super) struct Arguments {
    #[command(subcommand)]
    work: Work,
}

#[derive(Subcommand)]
enum Work {
    /// Training steps: forward, mean cross-entropy, backward, AdamW.
    #[command(
        after_help = "Example:\n  salsa bench sft --hidden 256 --layers 8 --vocab 4096 --head-dim 32 --batch 8 --seq 256 \
                            --steps 8 --dtype bf16 --json"
    )]
    Sft(SftWork),
    /// Decoding steps of a whole batch, sampled from the full softmax at temperature 1.
    #[command(after_help = "Example:\n  salsa bench generate --hidden 256 --layers 8 --batch 64 --new-tokens 256")]
    Generate(GenerateWork),
    /// PPO updates with four separate models: sample, score, learn.
    #[command(after_help = "Example:\n  salsa bench ppo --hidden 256 --layers 8 --batch 64 --response 128 --updates 2")]
    Ppo(PpoWork),
    /// GRPO updates: sample groups, log-probs of a reference, learn.
    #[command(after_help = "Example:\n  salsa bench grpo --hidden 256 --layers 8 --prompts 32 --generations 4 --json")]
    Grpo(GrpoWork),
    /// Exchange of bytes between processes: every operation, its bytes checked, its seconds.
    #[command(after_help = "Example:\n  mpirun -n 4 salsa bench comm --bytes 100000000")]
    Comm(CommWork),
}

impl Arguments {
    /// Whether several processes can share the work.
    pub(super) fn uses_processes(&self) -> bool {
        matches!(self.work, Work::Comm(_))
    }
}

/// A Llama with random weights.
#[derive(clap::Args, Clone)]
struct Shape {
    /// Width of the residual stream.
    #[arg(long, value_parser = count, default_value_t = 256)]
    hidden: usize,
    /// Blocks of attention and MLP.
    #[arg(long, value_parser = count, default_value_t = 8)]
    layers: usize,
    /// Tokens in the vocabulary.
    #[arg(long, value_parser = count, default_value_t = 4096)]
    vocab: usize,
    /// Numbers per attention head; `hidden / head-dim` heads.
    #[arg(long, value_parser = count, default_value_t = 32)]
    head_dim: usize,
    /// Width of the gated MLP. Default: `hidden * 8 / 3`, rounded down to a multiple of 8.
    #[arg(long, value_parser = count)]
    intermediate: Option<usize>,
    /// Heads of keys and values. Default: as many as queries.
    #[arg(long, value_parser = count)]
    kv_heads: Option<usize>,
    /// Number type of matrix products.
    #[arg(long, value_enum, default_value_t = Numbers::Auto)]
    dtype: Numbers,
    /// Device to compute on: auto (the GPU with the most free memory if one can be used, else the CPU), cpu, cuda or
    /// cuda:N.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Checkpoint directory or config.json whose shape replaces the options above.
    #[arg(long, value_name = "DIR|FILE")]
    config: Option<PathBuf>,
    /// Train adapters of this rank on all linear projections in place of all weights.
    #[arg(long, value_parser = count, value_name = "RANK")]
    lora: Option<usize>,
    /// In training, recompute activations in the backward pass instead of keeping them.
    #[arg(long, visible_alias = "gradient-checkpointing")]
    gradient_checkpointing: bool,
    /// Print one JSON object on one line instead of a sentence.
    #[arg(long)]
    json: bool,
}

#[derive(ValueEnum, Clone, Copy)]
enum Numbers {
    /// bfloat16 on a GPU and on a CPU that multiplies it faster, else f32.
    Auto,
    /// 32-bit floating point.
    F32,
    /// bfloat16 operands, sums in 32-bit floating point.
    Bf16,
}

#[derive(clap::Args)]
struct SftWork {
    #[command(flatten)]
    shape: Shape,
    /// Sequences per step.
    #[arg(long, value_parser = count, default_value_t = 8)]
    batch: usize,
    /// Tokens per sequence.
    #[arg(long, value_parser = count, default_value_t = 256)]
    seq: usize,
    /// Timed steps, after two untimed ones.
    #[arg(long, value_parser = count, default_value_t = 8)]
    steps: usize,
}

#[derive(clap::Args)]
struct GenerateWork {
    #[command(flatten)]
    shape: Shape,
    /// Sequences sampled together.
    #[arg(long, value_parser = count, default_value_t = 16)]
    batch: usize,
    /// Tokens of each prompt.
    #[arg(long, value_parser = count, default_value_t = 32)]
    prompt: usize,
    /// Tokens sampled per sequence.
    #[arg(long, value_parser = count, default_value_t = 128)]
    new_tokens: usize,
}

#[derive(clap::Args)]
struct PpoWork {
    #[command(flatten)]
    shape: Shape,
    /// Responses per update.
    #[arg(long, value_parser = count, default_value_t = 32)]
    batch: usize,
    /// Tokens of each prompt.
    #[arg(long, value_parser = count, default_value_t = 32)]
    prompt: usize,
    /// Tokens of each response.
    #[arg(long, value_parser = count, default_value_t = 64)]
    response: usize,
    /// Passes over the responses, one optimizer step each.
    #[arg(long, value_parser = count, default_value_t = 4)]
    epochs: usize,
    /// Timed updates, after one untimed update.
    #[arg(long, value_parser = count, default_value_t = 3)]
    updates: usize,
}

#[derive(clap::Args)]
struct GrpoWork {
    #[command(flatten)]
    shape: Shape,
    /// Prompts per update.
    #[arg(long, value_parser = count, default_value_t = 32)]
    prompts: usize,
    /// Responses per prompt.
    #[arg(long, value_parser = count, default_value_t = 4)]
    generations: usize,
    /// Tokens of each prompt.
    #[arg(long, value_parser = count, default_value_t = 32)]
    prompt: usize,
    /// Tokens of each response.
    #[arg(long, value_parser = count, default_value_t = 64)]
    response: usize,
    /// Passes over the responses, one optimizer step each.
    #[arg(long, value_parser = count, default_value_t = 1)]
    iterations: usize,
    /// Responses per forward and backward pass.
    #[arg(long, value_parser = count, default_value_t = 32)]
    pass: usize,
    /// Timed updates, after one untimed update.
    #[arg(long, value_parser = count, default_value_t = 3)]
    updates: usize,
}

#[derive(clap::Args)]
struct CommWork {
    /// Bytes that each process sends to each other one in an exchange; a broadcast has as many, a gathering as many of
    /// each process.
    #[arg(long, default_value_t = 16 << 20)]
    bytes: usize,
    /// Times each operation is repeated.
    #[arg(long, value_parser = count, default_value_t = 5)]
    repeat: usize,
    /// Print one JSON object on one line instead of a table.
    #[arg(long)]
    json: bool,
}

/// Parses a number from 1 to a million.
fn count(text: &str) -> Result<usize, String> {
    const MOST: usize = 1_000_000;
    match text.parse() {
        Ok(number @ 1..=MOST) => Ok(number),
        _ => Err(format!("give a whole number from 1 to {MOST}")),
    }
}

/// Runs the work and prints its times.
pub(super) fn main(arguments: &Arguments, ranks: &Ranks) -> anyhow::Result<()> {
    let shape = match &arguments.work {
        Work::Comm(work) => return comm::measure(work, ranks.comm().as_ref()),
        Work::Sft(work) => &work.shape,
        Work::Generate(work) => &work.shape,
        Work::Ppo(work) => &work.shape,
        Work::Grpo(work) => &work.shape,
    };
    let device = shape.open_device()?;
    match &arguments.work {
        Work::Sft(work) => sft(work, &device),
        Work::Generate(work) => generate(work, &device),
        Work::Ppo(work) => ppo::update(work, &device),
        Work::Grpo(work) => grpo::update(work, &device),
        Work::Comm(_) => unreachable!("it needs no device"),
    }
}

impl Shape {
    fn spec(&self) -> anyhow::Result<ModelSpec> {
        if let Some(config) = &self.config {
            return checkpoint::shape_of(config);
        }
        let (hidden, head_dim) = (self.hidden, self.head_dim);
        ensure!(head_dim > 0 && hidden % head_dim == 0, "--hidden {hidden} is not a multiple of --head-dim {head_dim}");
        let spec = ModelSpec {
            vocab_size: self.vocab,
            hidden_size: hidden,
            intermediate_size: self.intermediate.unwrap_or(hidden * 8 / 3 / 8 * 8),
            layers: self.layers,
            heads: hidden / head_dim,
            kv_heads: self.kv_heads.unwrap_or(hidden / head_dim),
            head_dim,
            max_positions: 1 << 20,
            rms_norm_eps: 1e-5,
            rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
            activation: Activation::Silu,
            norm: NormWeight::Plain,
            embedding_scale: 1.0,
            qkv_bias: false,
            qk_norm: false,
            sliding_window: None,
            options: Options::default(),
            tied_embeddings: false,
            head: Head::LanguageModel,
        };
        spec.validate()?;
        Ok(spec)
    }

    fn open_device(&self) -> anyhow::Result<Device> {
        let dtype = match self.dtype {
            Numbers::Auto => ComputeType::Auto,
            Numbers::F32 => ComputeType::Float32,
            Numbers::Bf16 => ComputeType::BFloat16,
        };
        Ok(self.device.open(dtype)?.device)
    }

    fn recompute(&self) -> Recompute {
        if self.gradient_checkpointing { Recompute::PerLayer } else { Recompute::KeepActivations }
    }

    /// Prints the timings: `times` in seconds, `unit_tokens` tokens each.
    fn report(
        &self,
        bench: &str,
        key: &str,
        times: &[f64],
        unit_tokens: usize,
        more: Value,
        device: &Device,
    ) -> anyhow::Result<()> {
        let best = times.iter().copied().fold(f64::INFINITY, f64::min);
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (rate, peak) = (unit_tokens as f64 / best, peak_mib());
        let place = device::label(device);
        let dtype = device.dtype().name();
        let isa = Cpu { dtype: device.dtype() }.isa();
        let mut object = json!({
            "bench": bench, key: times, "best_s": best, "median_s": sorted[sorted.len() / 2], "tokens_per_s": rate,
            "peak_rss_mib": peak, "peak_device_mib": device::peak_mib(device),
            "dtype": dtype, "isa": isa, "device": place,
            "threads": salsa_engine::threads(), "parameters": self.spec()?.parameters(),
            "version": env!("CARGO_PKG_VERSION"),
        });
        if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
            object.extend(more);
        }
        for (what, count, seconds) in device.cuda().map_or_else(Vec::new, |cuda| cuda.profile()) {
            eprintln!("{:9.3} ms {count:7} times  {what}", seconds * 1e3);
        }
        if self.json {
            return print(&format!("{object}\n"));
        }
        print(&format!(
            "{bench}: best {best:.4} s, median {:.4} s, {rate:.0} tokens/s, peak {} MiB, {} on {} with {} threads\n",
            sorted[sorted.len() / 2],
            peak.map_or("?".to_owned(), |mib| format!("{mib:.0}")),
            dtype,
            if device.cuda().is_some() { &place } else { isa },
            salsa_engine::threads()
        ))
    }
}

fn random_tokens(count: usize, vocabulary: usize, stream: u64) -> Vec<u32> {
    let mut random = Random::new(1, stream);
    (0..count).map(|_| random.below(vocabulary) as u32).collect()
}

fn sft(work: &SftWork, device: &Device) -> anyhow::Result<()> {
    ensure!(work.batch > 0 && work.seq > 1 && work.steps > 0, "--batch, --steps at least 1, --seq at least 2");
    let spec = work.shape.spec()?;
    let mut model = match work.shape.lora {
        None => Trainable::new(spec.clone(), models::weights(&spec, 1)?, device.clone(), work.shape.recompute())?,
        Some(rank) => models::adapted(&models::base(&spec, device)?, spec.head, rank, work.shape.recompute())?,
    };
    let (mut batch, mut query) = (Batch::new(), Query::default());
    for i in 0..work.batch {
        let tokens = random_tokens(work.seq, spec.vocab_size, i as u64);
        let rows = batch.push(&tokens);
        query.push_logprobs(rows, &tokens, 1);
    }
    let adamw = AdamW { weight_decay: 0.01, max_grad_norm: f64::INFINITY, ..AdamW::default() };
    let d_logprobs = vec![-1.0 / query.rows.len() as f32; query.rows.len()];
    let (mut times, mut losses) = (Vec::new(), Vec::new());
    for _ in 0..work.steps + 2 {
        let start = Instant::now();
        let (output, tape) = model.forward_train(&batch, &query);
        model.backward(tape, &OutputGradient { d_logprobs: &d_logprobs, d_values: &[] });
        model.adamw_step(&adamw, 1e-4)?;
        times.push(start.elapsed().as_secs_f64());
        losses.push(-output.logprobs.iter().map(|&x| f64::from(x)).sum::<f64>() / output.logprobs.len() as f64);
    }
    let more = json!({ "loss": { "first": losses[0], "last": losses[losses.len() - 1] } });
    work.shape.report("sft", "step_s", &times[2..], work.batch * work.seq, more, device)
}

fn generate(work: &GenerateWork, device: &Device) -> anyhow::Result<()> {
    ensure!(work.batch > 0 && work.prompt > 0 && work.new_tokens > 0, "--batch, --prompt, --new-tokens at least 1");
    let spec = work.shape.spec()?;
    let model = models::frozen(&spec, device)?;
    let prompt =
        |i: usize| Prompt { tokens: random_tokens(work.prompt, spec.vocab_size, i as u64), id: i as u64, sample: 0 };
    let prompts: Vec<Prompt> = (0..work.batch).map(prompt).collect();
    let mut times = Vec::new();
    for call in 0..4 {
        let sampling =
            Sampling { seed: call, max_new_tokens: work.new_tokens, slots: work.batch, ..Sampling::default() };
        let start = Instant::now();
        let responses = model.generate(&prompts, &sampling, &mut |_| ());
        times.push(start.elapsed().as_secs_f64() / work.new_tokens as f64);
        ensure!(responses.iter().all(|r| r.tokens.len() == work.new_tokens), "a response is shorter than asked");
    }
    work.shape.report("generate", "step_s", &times[1..], work.batch, json!({}), device)
}
