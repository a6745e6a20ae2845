//! `salsa inspect PATH`: describes a checkpoint or a data set.
use std::path::{Path, PathBuf};

use anyhow::bail;
use serde::Deserialize;
use serde_json::json;

use crate::{
    chat::TemplateArguments,
    config::Usage,
    hub,
    stage::text::{
        chat_arguments::{ChatArguments, TextPrompts},
        encoder::Encoder,
    },
};

mod checkpoint;
mod dataset;
mod memory;
mod render;

/// A checkpoint or a data set.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  salsa inspect runs/quickstart/salsa\n  \
    salsa inspect preferences.jsonl --model runs/quickstart/salsa\n  \
    salsa inspect runs/quickstart/salsa --ranks 8\n  \
    salsa inspect --render chats.jsonl --model runs/quickstart/salsa --json")]
pub(super) struct Arguments {
    /// A Hugging Face model directory, a data file or a folder of data files; or an id of the hub, for a data set with
    /// the prefix datasets/.
    #[arg(value_name = "PATH", required_unless_present = "render")]
    path: Option<PathBuf>,
    /// Model whose tokenizer and chat template are used to show data; its weights are not needed.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// A chat template instead of the model's own: a Jinja file, or chatml.
    #[arg(long, value_name = "FILE|chatml", requires = "model")]
    chat_template: Option<String>,
    /// Arguments of the chat template, as in stages: `{enable_thinking: false}`.
    #[arg(long, value_name = "YAML", requires = "model", value_parser = super::chat::template_arguments)]
    chat_template_kwargs: Option<TemplateArguments>,
    /// How to interpret prompts that are plain text, as in stages: plain or chat.
    #[arg(long, value_name = "plain|chat", requires = "model", value_parser = text_prompts)]
    text_prompts: Option<TextPrompts>,
    /// Split to show, as in stages: one that file names in a folder define, or else train, validation or test, assigned
    /// by prompt; or all; or a slice of one, such as `train[:500]`.
    #[arg(long, value_name = "NAME|NAME[FROM:TO]")]
    split: Option<String>,
    /// Index of the example to show, from 0.
    #[arg(long, value_name = "N", default_value_t = 0)]
    example: usize,
    /// Render and tokenise every line of a file of {"messages": […], "add_generation_prompt": false}.
    #[arg(long, value_name = "FILE", requires = "model", conflicts_with = "path")]
    render: Option<PathBuf>,
    /// Processes that train a checkpoint together, a power of two: the memory that each of them needs.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = ranks)]
    ranks: usize,
    /// Print one JSON object per line instead of text (with --render).
    #[arg(long, requires = "render")]
    json: bool,
}

/// Describes what the path holds.
pub(super) fn main(arguments: &Arguments) -> anyhow::Result<()> {
    let model = arguments.model.as_ref().map(|model| hub::resolve(&model.to_string_lossy(), hub::Kind::Model));
    let model = model.transpose()?;
    if let (Some(file), Some(model)) = (&arguments.render, &model) {
        return render::print(file, &arguments.encoder(model)?, arguments.json);
    }
    let Some(path) = &arguments.path else { return Err(Usage("say what to inspect: a PATH".to_owned()).into()) };
    let path = local(path)?;
    match What::of(&path)? {
        What::Checkpoint => checkpoint::print(&path, arguments.ranks),
        What::Dataset => dataset::print(&path, model.as_deref(), arguments),
    }
}

impl Arguments {
    /// The encoder used to show data: tokenizer and template of the model.
    fn encoder(&self, model: &Path) -> anyhow::Result<Encoder> {
        let chat = ChatArguments {
            chat_template_kwargs: self.chat_template_kwargs.clone().unwrap_or_default(),
            text_prompts: self.text_prompts.unwrap_or_default(),
        };
        Ok(Encoder::from_dir(model, self.chat_template.as_deref())?.with_chat(&chat))
    }
}

fn ranks(number: &str) -> Result<usize, String> {
    let ranks = number.parse().ok().filter(|ranks: &usize| ranks.is_power_of_two() && *ranks <= 1 << 12);
    ranks.ok_or_else(|| "say a power of two, at most 4096".to_owned())
}

fn text_prompts(name: &str) -> Result<TextPrompts, String> {
    TextPrompts::deserialize(json!(name)).map_err(|_| "say plain or chat".to_owned())
}

/// Resolves a hub id to a local path, as a model or, with the prefix `datasets/`, as a data set; other paths are
/// unchanged.
fn local(path: &Path) -> anyhow::Result<PathBuf> {
    let text = path.to_string_lossy();
    match text.strip_prefix("datasets/") {
        Some(id) if hub::is_id(id) && !path.exists() => hub::resolve(id, hub::Kind::Dataset),
        _ if hub::is_id(&text) => hub::resolve(&text, hub::Kind::Model),
        _ => Ok(path.to_owned()),
    }
}

/// Content of a path.
#[derive(Debug, PartialEq)]
enum What {
    Checkpoint,
    Dataset,
}

impl What {
    fn of(path: &Path) -> anyhow::Result<What> {
        if path.exists() && !path.is_dir() {
            return Ok(What::Dataset);
        }
        let has = |name: &str| path.join(name).exists();
        if path.is_dir() && !has("config.json") && !has("adapter_config.json") && !has("model.safetensors") {
            let no_data = match crate::data::splits(path) {
                Ok(_) => return Ok(What::Dataset),
                Err(error) => error,
            };
            if !has("tokenizer.json") && !has("model.safetensors.index.json") {
                bail!("{} holds no model (config.json), and {no_data}", path.display());
            }
        }
        Ok(What::Checkpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_what_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| std::fs::write(dir.path().join(name), "{}").unwrap();
        let error = What::of(dir.path()).unwrap_err().to_string();
        assert!(error.contains("holds no model (config.json), and"), "{error}");
        write("data.jsonl");
        assert_eq!(What::of(dir.path()).unwrap(), What::Dataset);
        assert_eq!(What::of(&dir.path().join("data.jsonl")).unwrap(), What::Dataset);
        write("config.json");
        assert_eq!(What::of(dir.path()).unwrap(), What::Checkpoint);
        assert_eq!(What::of(Path::new("/nowhere")).unwrap(), What::Checkpoint, "its reader says what is missing");
    }
}
