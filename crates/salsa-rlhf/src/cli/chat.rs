//! `salsa chat --model DIR`
use std::{
    io::{BufRead, IsTerminal, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use salsa_engine::{Head, ModelSpec, Prompt, Sampling};
use serde::Deserialize;
use serde_json::json;

use super::print;
use crate::{
    chat::Message,
    config::Usage,
    data::Content,
    hub,
    stage::{
        StageContext,
        arguments::{ComputeType, MOST_TOKENS, check_count},
        device::Choice as DeviceChoice,
        memory::{Knobs, Need, Responses, Saving, part, shape},
        start::{Found, Frozen},
    },
};

/// A model and how to sample from it.
#[derive(clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Example:\n  salsa chat --model runs/quickstart/salsa --temperature 0.7"
)]
pub struct Arguments {
    /// A language-model directory, or an id of the Hugging Face hub.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Says who the model is, where its chat template has a place for it.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Divides the logits; 0 always takes the likeliest token.
    #[arg(long, default_value_t = 0.7)]
    temperature: f32,
    /// Samples among the likeliest tokens that together have this probability; 1 switches it off.
    #[arg(long, default_value_t = 1.0, visible_alias = "top_p")]
    top_p: f32,
    /// Samples among this many likeliest tokens; 0 switches it off.
    #[arg(long, default_value_t = 0, visible_alias = "top_k")]
    top_k: usize,
    /// Most tokens of an answer.
    #[arg(long, default_value_t = 256, visible_alias = "max_new_tokens")]
    max_new_tokens: usize,
    /// Number type of matrix products: auto (bfloat16 where this machine multiplies it faster), f32 or bf16.
    #[arg(long, default_value = "auto", value_parser = dtype)]
    dtype: ComputeType,
    /// Where to compute: auto (the GPU with the most free memory if one can be used, else the processor), cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// The same seed and the same lines give the same answers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Reads a line, answers it, until the input ends or says `/quit`; `/new` forgets the conversation.
pub fn main(arguments: &Arguments) -> anyhow::Result<()> {
    check(arguments)?;
    let dir = hub::resolve(&arguments.model.to_string_lossy(), hub::Kind::Model)?;
    let Frozen { checkpoint, encoder, model } = {
        let opened = arguments.device.open(arguments.dtype)?;
        StageContext::default().say(&opened.line);
        opened.device.scope(|| open(arguments, &dir))?
    };
    let encoder = encoder.with_context(|| format!("{} has no tokenizer.json", dir.display()))?;
    let opening: Vec<Message> = arguments.system.iter().map(|text| Message::new("system", text)).collect();
    let mut messages = opening.clone();
    let mut turn = 0;
    invite("an empty line or Ctrl-D ends it, /new starts anew");
    for line in std::io::stdin().lock().lines() {
        let line = line.context("cannot read the input")?;
        match line.trim() {
            "" | "/quit" | "/exit" => break,
            "/new" => {
                messages = opening.clone();
                invite("a new conversation");
                continue;
            }
            text => messages.push(Message::new("user", text)),
        }
        let tokens = encoder.prompt(&Content::Messages(messages.clone()))?;
        let room = model.spec().max_positions.saturating_sub(tokens.len());
        ensure!(
            room > 0,
            "the conversation of {} tokens fills the model's context of {}; start anew with /new",
            tokens.len(),
            model.spec().max_positions
        );
        let sampling = Sampling {
            temperature: arguments.temperature,
            top_k: arguments.top_k,
            top_p: arguments.top_p,
            seed: arguments.seed,
            max_new_tokens: arguments.max_new_tokens.min(room),
            stop_tokens: checkpoint.tokens.eos.clone(),
            slots: 1,
        };
        let prompt = Prompt { tokens, id: turn, sample: 0 };
        let answer = model.generate(&[prompt], &sampling, &mut |_| {}).pop().context("one prompt, one response")?;
        let text = encoder.decode(&answer.tokens)?;
        print(&format!("{}\n", text.trim()))?;
        messages.push(Message::new("assistant", text.trim()));
        turn += 1;
        invite("");
    }
    Ok(())
}

/// Reads the model, if there is memory for it and for a conversation of [`CONVERSATION`] tokens.
fn open(arguments: &Arguments, dir: &Path) -> anyhow::Result<Frozen> {
    let found = Found::open(dir, Head::LanguageModel)?;
    let conversation = vec![0; CONVERSATION.min(found.spec().max_positions.saturating_sub(arguments.max_new_tokens))];
    let responses = Responses::new([&conversation], arguments.max_new_tokens);
    let generation = |spec: &ModelSpec, knobs: &Knobs, need: &mut Need| {
        need.add(part::GENERATION, responses.generation(spec, knobs.dtype, knobs.slots));
        need.add(part::ACTIVATIONS, shape::forward_pass(spec, responses.reading(knobs.slots).tokens()));
    };
    found.check_memory("chat", &Knobs::default(), &[Saving::Dtype], &generation, &StageContext::default())?;
    found.load()
}

/// Tokens of a conversation for which there shall be memory; longer ones may need more.
const CONVERSATION: usize = 2048;

fn check(arguments: &Arguments) -> Result<(), Usage> {
    let Arguments { temperature, top_p, max_new_tokens, .. } = *arguments;
    if !(temperature >= 0.0 && temperature.is_finite()) {
        return Err(Usage(format!("--temperature is {temperature}; it must be 0 or above")));
    }
    if !(top_p > 0.0 && top_p <= 1.0) {
        return Err(Usage(format!("--top-p is {top_p}; it must be above 0 and at most 1")));
    }
    check_count("--max-new-tokens", max_new_tokens as u64, MOST_TOKENS).map_err(|error| Usage(error.to_string()))
}

fn dtype(name: &str) -> Result<ComputeType, String> {
    ComputeType::deserialize(json!(name)).map_err(|_| "say auto, f32 or bf16".to_owned())
}

/// A person sees a note and a prompt sign; a pipe does not.
fn invite(note: &str) {
    if std::io::stdin().is_terminal() {
        let mut err = std::io::stderr();
        // Nobody can be told if stderr is gone.
        let _ = if note.is_empty() { Ok(()) } else { writeln!(err, "({note})") };
        let _ = write!(err, "> ").and_then(|()| err.flush());
    }
}
