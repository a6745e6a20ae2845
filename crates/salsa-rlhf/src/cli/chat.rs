//! `salsa chat --model DIR`
use std::{
    io::{BufRead, IsTerminal, Write},
    path::PathBuf,
};

use anyhow::{Context, ensure};
use salsa_engine::{Dtype, Head, Prompt, Sampling};

use super::print;
use crate::{chat::Message, config::Usage, data::Content, hub, stage::start::Frozen};

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
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Samples among this many likeliest tokens; 0 switches it off.
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Most tokens of an answer.
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    /// The same seed and the same lines give the same answers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Reads a line, answers it, until the input ends or says `/quit`; `/new` forgets the conversation.
pub fn main(arguments: &Arguments) -> anyhow::Result<()> {
    check(arguments)?;
    let dir = hub::resolve(&arguments.model.to_string_lossy(), hub::Kind::Model)?;
    let open = || Frozen::open(&dir, Head::LanguageModel);
    let Frozen { checkpoint, encoder, model } = Dtype::fastest().scope(open)?;
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

fn check(arguments: &Arguments) -> Result<(), Usage> {
    let Arguments { temperature, top_p, max_new_tokens, .. } = *arguments;
    if !(temperature >= 0.0 && temperature.is_finite()) {
        return Err(Usage(format!("--temperature is {temperature}; it must be 0 or above")));
    }
    if !(top_p > 0.0 && top_p <= 1.0) {
        return Err(Usage(format!("--top-p is {top_p}; it must be above 0 and at most 1")));
    }
    if max_new_tokens == 0 {
        return Err(Usage("--max-new-tokens is 0; it must be at least 1".to_owned()));
    }
    Ok(())
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
