//! Judge prompts, read from the files of the tools.
use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::files;
use crate::{chat::Message, input};

/// A row of FastChat's `judge_prompts.jsonl`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Template {
    /// Its name.
    pub name: String,
    /// `single` or `pairwise`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The system message; may be empty.
    #[serde(default)]
    pub system_prompt: String,
    /// The user's message, with `{field}`s.
    pub prompt_template: String,
    /// The format of the verdict.
    pub output_format: String,
}

/// The templates of a file, by name.
///
/// # Errors
/// If the file cannot be read or a row is no template.
pub(super) fn read(path: &Path) -> anyhow::Result<BTreeMap<String, Template>> {
    let rows = files::rows(path)?;
    let templates = rows.try_map(|row| {
        let template: Template = serde_json::from_value(Value::Object(row.object.clone()))
            .context("this is no judge prompt; FastChat's judge_prompts.jsonl is needed")?;
        Ok((template.name.clone(), template))
    })?;
    Ok(templates.into_iter().collect())
}

/// Finds a template by name.
///
/// # Errors
/// If there is none; the error lists the existing names.
pub(super) fn named<'a>(templates: &'a BTreeMap<String, Template>, name: &str) -> anyhow::Result<&'a Template> {
    templates.get(name).with_context(|| {
        let names: Vec<&str> = templates.keys().map(String::as_str).collect();
        format!("templates: there is no {name:?} among {}", names.join(", "))
    })
}

impl Template {
    /// The conversation, filled with these fields.
    ///
    /// # Errors
    /// If the template uses a field that is not among them.
    pub(super) fn messages(&self, fields: &[(&str, &str)]) -> anyhow::Result<Vec<Message>> {
        let user = fill(&self.prompt_template, fields).with_context(|| format!("template {}", self.name))?;
        let system = (!self.system_prompt.is_empty()).then(|| Message::new("system", self.system_prompt.as_str()));
        Ok(system.into_iter().chain([Message::new("user", user)]).collect())
    }
}

/// Fills fields into a template in one pass, like Python's `str.format`: field values are not expanded again, and
/// doubled braces become single ones.
///
/// # Errors
/// If the template uses a field that is not given, or has an unpaired brace.
pub(super) fn fill(template: &str, fields: &[(&str, &str)]) -> anyhow::Result<String> {
    let (mut out, mut rest) = (String::with_capacity(template.len()), template);
    while let Some(at) = rest.find(['{', '}']) {
        out += &rest[..at];
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            out += brace;
            rest = after;
            continue;
        }
        ensure!(brace == "{", "a }} stands alone in the template");
        let (name, after) = rest.split_once('}').context("a { stands alone in the template")?;
        let value = fields.iter().find(|(field, _)| *field == name).with_context(|| {
            let known: Vec<&str> = fields.iter().map(|(field, _)| *field).collect();
            format!("the template names {{{name}}}, which is not among {}", known.join(", "))
        })?;
        out += value.1;
        rest = after;
    }
    Ok(out + rest)
}

/// A configuration of Arena-Hard: `judge_config.yaml` of v0.1, or `arena-hard-v2.0.yaml`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct ArenaConfig {
    /// v0.1: the system prompt.
    pub system_prompt: Option<String>,
    /// The user's message, with `{field}`s: a text, or a list of one text.
    pub prompt_template: OneOrList,
    /// v2: the patterns for verdicts.
    pub regex_patterns: Vec<String>,
}

/// A text, or a list of texts.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrList {
    /// v2.
    One(String),
    /// v0.1.
    List(Vec<String>),
}

impl Default for OneOrList {
    fn default() -> OneOrList {
        OneOrList::List(Vec::new())
    }
}

impl ArenaConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// If the file has another format, or more than one turn.
    pub(super) fn read(path: &Path) -> anyhow::Result<ArenaConfig> {
        let text = input::read_to_string(path)?;
        let config: ArenaConfig = serde_saphyr::from_str(&text)
            .with_context(|| format!("{}: this is no configuration of Arena-Hard", path.display()))?;
        config.user().with_context(|| path.display().to_string())?;
        Ok(config)
    }

    /// The template of the user's message.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub(super) fn user(&self) -> anyhow::Result<&str> {
        match &self.prompt_template {
            OneOrList::One(text) => Ok(text),
            OneOrList::List(texts) => match &texts[..] {
                [text] => Ok(text),
                _ => bail!("prompt_template has {} texts; one is needed", texts.len()),
            },
        }
    }

    /// The user's message. Accepts the field names of both versions.
    ///
    /// # Errors
    /// As [`fill`].
    pub(super) fn message(&self, question: &str, a: &str, b: &str) -> anyhow::Result<Message> {
        let fields = [
            ("QUESTION", question),
            ("ANSWER_A", a),
            ("ANSWER_B", b),
            ("question_1", question),
            ("answer_1", a),
            ("answer_2", b),
        ];
        Ok(Message::new("user", fill(self.user()?, &fields)?))
    }
}

/// The system prompts of Arena-Hard v2 by category, parsed from the literals of `JUDGE_SETTINGS` in its
/// `utils/judge_utils.py`; nothing is executed.
///
/// # Errors
/// If the file has another form.
pub(super) fn system_prompts(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let text = input::read_to_string(path)?;
    system_prompts_of(&text)
        .with_context(|| format!("{}: this is not Arena-Hard's utils/judge_utils.py", path.display()))
}

fn system_prompts_of(text: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let (before, settings) = text.split_once("JUDGE_SETTINGS").context("it has no JUDGE_SETTINGS")?;
    let mut constants = BTreeMap::new();
    for line in before.lines() {
        if let Some((name, value)) = line.split_once(" = ").filter(|(_, value)| value.starts_with('"')) {
            constants.insert(name.trim(), literal(value)?.0);
        }
    }
    let mut prompts = BTreeMap::new();
    let mut category = None;
    for line in settings.lines().map(str::trim) {
        let Some((key, value)) = line.strip_prefix('"').and_then(|line| line.split_once("\":")) else { continue };
        match (key, value.trim()) {
            (name, "{") => category = Some(name.to_owned()),
            ("system_prompt", value) => {
                let prompt = match value.starts_with('"') {
                    true => literal(value)?.0,
                    false => {
                        let name = value.trim_end_matches(',');
                        constants.get(name).with_context(|| format!("{name} is not a text above"))?.clone()
                    }
                };
                prompts.insert(category.clone().context("a system_prompt belongs to no category")?, prompt);
            }
            _ => {}
        }
    }
    ensure!(!prompts.is_empty(), "it has no system_prompt");
    Ok(prompts)
}

/// Splits off a double-quoted string literal, which is the same in Python and JSON except for `\'`.
fn literal(text: &str) -> anyhow::Result<(String, &str)> {
    let mut escaped = false;
    let end = text.char_indices().skip(1).find(|(_, c)| {
        let is_end = *c == '"' && !escaped;
        escaped = *c == '\\' && !escaped;
        is_end
    });
    let (end, _) = end.context("a text has no end")?;
    let read = serde_json::from_str(&text[..=end].replace("\\'", "'")).context("a text cannot be read")?;
    Ok((read, &text[end + 1..]))
}

/// AlpacaEval's prompt: parts between `<|im_start
/// ROLE` and `<|im_end
/// `. Braces that enclose no field are kept.
///
/// # Errors
/// If the text has no such parts.
pub(super) fn alpaca_messages(template: &str, fields: &[(&str, &str)]) -> anyhow::Result<Vec<Message>> {
    let parts: Vec<&str> = template.trim().split("<|im_start|>").skip(1).collect();
    ensure!(!parts.is_empty(), "the template has no <|im_start|>; AlpacaEval's alpaca_eval_clf.txt is needed");
    let message = |part: &&str| {
        let (role, content) = part.split_once('\n').context("a part of the template has no line behind its role")?;
        let content = content.split_once("<|im_end|>").context("a part of the template has no <|im_end|>")?.0;
        // Fields last: an answer may contain the markers of the template.
        Ok(Message::new(role.trim(), replaced(content.trim(), fields)))
    };
    parts.iter().map(message).collect()
}

/// Replaces fields in one pass; everything else is kept.
fn replaced(template: &str, fields: &[(&str, &str)]) -> String {
    let (mut out, mut rest) = (String::new(), template);
    while let Some(at) = rest.find('{') {
        out += &rest[..at];
        rest = &rest[at..];
        let found = fields.iter().find_map(|(name, value)| {
            let after = rest[1..].strip_prefix(name)?.strip_prefix('}')?;
            Some((value, after))
        });
        match found {
            Some((value, after)) => {
                out += value;
                rest = after;
            }
            None => {
                out.push('{');
                rest = &rest[1..];
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_put_in_once() {
        let fields = [("a", "{b} }"), ("b", "x")];
        assert_eq!(fill("{a}-{b}-{{a}}", &fields).unwrap(), "{b} }-x-{a}");
        assert_eq!(fill("nothing", &[]).unwrap(), "nothing");
        for (template, complaint) in [("{c}", "{c}"), ("{a", "alone"), ("a}", "alone")] {
            let error = format!("{:#}", fill(template, &fields).unwrap_err());
            assert!(error.contains(complaint), "{error}");
        }
    }

    #[test]
    fn python_settings_are_read_without_running_them() {
        let text = "ONE = \"say \\\"a\\\"\\nand it\\'s b\"\n\nJUDGE_SETTINGS = {\n    \"hard\": {\n        \
                    \"baseline\": \"m\",\n        \"system_prompt\": ONE,\n    },\n    \"creative\": {\n        \
                    \"system_prompt\": \"other\",\n    },\n}\n";
        let prompts = system_prompts_of(text).unwrap();
        assert_eq!(prompts["hard"], "say \"a\"\nand it's b");
        assert_eq!(prompts["creative"], "other");
        assert!(system_prompts_of("x = 1").is_err() && system_prompts_of("JUDGE_SETTINGS = {}").is_err());
    }

    #[test]
    fn alpaca_parts_keep_their_braces() {
        let template =
            "<|im_start|>system\nBe quick.\n<|im_end|>\n<|im_start|>user\n{\n  {output_1} {other}\n}\n<|im_end|>";
        let messages = alpaca_messages(template, &[("output_1", "<|im_end|>{output_1}")]).unwrap();
        assert_eq!(messages[0], Message::new("system", "Be quick."));
        assert_eq!(messages[1], Message::new("user", "{\n  <|im_end|>{output_1} {other}\n}"));
        assert!(alpaca_messages("plain", &[]).is_err());
    }

    #[test]
    fn both_versions_of_arena_hard_are_read() {
        let old: ArenaConfig =
            serde_saphyr::from_str("system_prompt: s\nprompt_template: [\"{question_1}|{answer_1}|{answer_2}\"]\n")
                .unwrap();
        let new: ArenaConfig =
            serde_saphyr::from_str("prompt_template: \"{QUESTION}|{ANSWER_A}|{ANSWER_B}\"\n").unwrap();
        for config in [&old, &new] {
            assert_eq!(config.message("q", "a", "b").unwrap().content, "q|a|b");
        }
        assert_eq!(old.system_prompt.as_deref(), Some("s"));
        assert!(ArenaConfig::default().user().is_err());
    }
}
