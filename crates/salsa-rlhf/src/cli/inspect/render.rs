//! Conversations as the model sees them, for comparison with other programs.
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use crate::{
    chat::{Conversation, GenerationPrompt, TemplateArguments},
    data::{self, Content},
    stage::text::{encoder::Encoder, rows::Rows},
};

/// Renders and tokenises every line: its text, its tokens and, for a whole conversation, the `sequence` that a stage
/// would build with its `learned` part, or the reason why it cannot be built.
pub(super) fn print(file: &Path, encoder: &Encoder, as_json: bool) -> anyhow::Result<()> {
    let rows = Rows::read(file)?;
    for row in &rows.rows {
        let place = || format!("{}: line {}", rows.name(), row.line);
        let (messages, prompt) = read(&row.object).with_context(place)?;
        let shown = match render(encoder, &messages, prompt) {
            Ok(shown) => shown,
            Err(error) if as_json => json!({"error": format!("{error:#}")}),
            Err(error) => return Err(error.context(place())),
        };
        super::super::print(&if as_json {
            format!("{shown}\n")
        } else {
            let learned = shown.get("learned").or(shown.get("not_learned"));
            let learned = learned.map_or(String::new(), |learned| format!("learned {learned}\n"));
            format!("{}\n{}\n{learned}", shown["text"].as_str().unwrap_or_default(), shown["tokens"])
        })?;
    }
    Ok(())
}

/// A line's messages with the arguments of its template, and whether to add a generation prompt.
fn read(object: &Map<String, Value>) -> anyhow::Result<(Conversation, GenerationPrompt)> {
    let list = object.get("messages").filter(|list| list.is_array()).context("no list \"messages\"")?;
    let Content::Messages(mut conversation) = data::content(list, "messages")? else {
        bail!("\"messages\" is text");
    };
    let column = |name| object.get(name);
    conversation.arguments =
        TemplateArguments::of_record(column(TemplateArguments::COLUMN), column(TemplateArguments::TOOLS))?;
    let prompt = match object.get("add_generation_prompt") {
        None | Some(Value::Bool(false)) => GenerationPrompt::Omit,
        Some(Value::Bool(true)) => GenerationPrompt::Add,
        Some(other) => bail!("add_generation_prompt is {other}: expected true or false"),
    };
    Ok((conversation, prompt))
}

fn render(encoder: &Encoder, messages: &Conversation, prompt: GenerationPrompt) -> anyhow::Result<Value> {
    let text = encoder.render(messages, prompt)?;
    let mut shown = json!({"text": text, "tokens": encoder.tokens_of_rendered(&text)?});
    if prompt == GenerationPrompt::Omit && messages.iter().any(|message| message.role == "assistant") {
        match encoder.conversation(messages) {
            Ok(learned) => {
                let ranges: Vec<[usize; 2]> = learned.learned.iter().map(|range| [range.start, range.end]).collect();
                shown["sequence"] = json!(learned.tokens);
                shown["learned"] = json!(ranges);
            }
            Err(error) => shown["not_learned"] = json!(format!("{error:#}")),
        }
    }
    Ok(shown)
}
