//! `salsa chat --model DIR`
//!
//! The conversation loop is in [`talk`], the slash commands are in [`command`].
use std::path::{Path, PathBuf};

use salsa_engine::Head;
use serde::Deserialize;
use serde_json::json;

use crate::{
    chat::TemplateArguments,
    config::{self, Usage},
    hub,
    stage::{
        StageContext,
        device::Choice as DeviceChoice,
        keys::ComputeType,
        memory::{MemorySettings, Need, Order, Passed, Passes, Responses, Saving, part},
        models::frozen::{Found, Frozen},
        text::chat_arguments::ChatArguments,
    },
};

mod command;
mod input;
mod talk;

use command::Settings;

/// A model and its sampling settings.
#[derive(clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Example:\n  salsa chat --model runs/quickstart/salsa --temperature 0.7\n\n\
        In the conversation /help lists the commands, Ctrl-C ends an answer, Ctrl-D the program. Lines may also come from\n\
        a pipe: one answer for each."
)]
pub(super) struct Arguments {
    /// Directory of a language model, or an id of the Hugging Face hub.
    #[arg(long, value_name = "DIR", visible_alias = "model-name-or-path")]
    model: PathBuf,
    /// System message, for chat templates that take one.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Arguments of the chat template, such as `{enable_thinking: false}`.
    #[arg(long, value_name = "YAML", default_value = "{}", alias = "chat_template_kwargs", value_parser = template_arguments)]
    chat_template_kwargs: TemplateArguments,
    /// Divisor of the logits; 0 always takes the likeliest token.
    #[arg(long, default_value_t = 0.7)]
    temperature: f32,
    /// Samples among the likeliest tokens that together have this probability; 1 switches it off.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Samples among this many likeliest tokens; 0 switches it off.
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Maximum number of tokens in an answer.
    #[arg(long, default_value_t = 256)]
    max_new_tokens: usize,
    /// Number type of matrix products: auto (bfloat16 where this machine multiplies it faster), f32 or bf16.
    #[arg(long, default_value = "auto", value_parser = dtype)]
    dtype: ComputeType,
    /// Device to compute on: auto (the GPU with the most free memory if one can be used, else the CPU), cpu, cuda or
    /// cuda:N.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// The same seed and the same lines give the same answers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Answers each input line until the input ends.
pub(super) fn main(arguments: &Arguments) -> anyhow::Result<()> {
    let settings = Settings::of(arguments);
    settings.check().map_err(Usage)?;
    let dir = hub::resolve(&arguments.model.to_string_lossy(), hub::Kind::Model)?;
    let opened = arguments.device.open(arguments.dtype)?;
    let context = StageContext::default().on(opened.device);
    context.say(&opened.line);
    let frozen = open(arguments, &dir, &context)?;
    talk::main(&frozen, settings, arguments.system.as_deref(), &dir)
}

/// Loads the model if memory suffices for it and for a conversation of [`CONVERSATION`] tokens.
fn open(arguments: &Arguments, dir: &Path, context: &StageContext) -> anyhow::Result<Frozen> {
    let chat =
        ChatArguments { chat_template_kwargs: arguments.chat_template_kwargs.clone(), ..ChatArguments::default() };
    let found = Found::open(dir, Head::LanguageModel)?.with_chat(&chat);
    let conversation = vec![0; CONVERSATION.min(found.spec().max_positions.saturating_sub(arguments.max_new_tokens))];
    let responses = Responses::new([&conversation], arguments.max_new_tokens, Order::Given);
    let generation = |model: Passed<'_>, knobs: &MemorySettings, need: &mut Need| {
        let passes = Passes::new(knobs);
        responses.add_generation(model, knobs.slots, 1, &passes);
        need.add(part::GENERATION, passes.bytes());
    };
    found.check_memory("chat", &MemorySettings::on(&context.device), &[Saving::Dtype], &generation, context)?;
    found.load(&context.device)
}

/// Tokens of a conversation for which memory is planned; longer ones may need more.
const CONVERSATION: usize = 2048;

/// Parses arguments of a chat template from YAML or JSON.
pub(super) fn template_arguments(text: &str) -> Result<TemplateArguments, String> {
    let value = config::parse(text).map_err(|error| format!("{error:#}"))?;
    TemplateArguments::deserialize(value).map_err(|error| error.to_string())
}

fn dtype(name: &str) -> Result<ComputeType, String> {
    ComputeType::deserialize(json!(name)).map_err(|_| "say auto, f32 or bf16".to_owned())
}
