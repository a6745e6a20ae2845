//! The key reference of `salsa STAGE --help`, generated from the stage's schema.
use clap::builder::{PossibleValue, PossibleValuesParser};
use serde_json::Value;

use crate::{
    config::{names, paths, schema::HEADING},
    stage::kind::Kind,
};

/// Columns of a page; narrower than most terminals, which would wrap longer lines without indentation.
const WIDTH: usize = 80;

/// The longest list of choices shown beside a key; longer ones are listed below it.
const LONGEST: usize = 48;

/// The key that discriminates between several mappings.
const TAG: &str = "kind";

/// The reference of every key of a stage: name, type, default, other names and meaning.
pub(super) fn keys(kind: &Kind) -> String {
    page(kind).0
}

/// The same keys as options, nested keys dotted: for completions and manual pages.
pub(super) fn options(kind: &Kind) -> Vec<clap::Arg> {
    page(kind).1
}

fn page(kind: &Kind) -> (String, Vec<clap::Arg>) {
    let (schema, defaults) = ((kind.schema)(), (kind.defaults)());
    let mut page = Page { text: String::new(), options: Vec::new(), schema: &schema, told: Vec::new() };
    for key in defaults.keys() {
        let property = &schema["properties"][key];
        if let Some(heading) = property[HEADING].as_str() {
            page.text += &format!("\n{heading}:\n");
        }
        let others: Vec<&str> = names::others(key, &defaults).collect();
        let note = if others.is_empty() { String::new() } else { format!("[also: {}]", others.join(", ")) };
        page.key(&Key { path: key.clone(), schema: property, is_required: false, note });
    }
    (page.text, page.options)
}

/// The page under construction.
struct Page<'a> {
    text: String,
    options: Vec<clap::Arg>,
    schema: &'a Value,
    /// Mapping types whose keys are already listed, and under which key.
    told: Vec<(&'a str, String)>,
}

/// A key, or a dotted key of a nested mapping.
struct Key<'a> {
    path: String,
    schema: &'a Value,
    /// Whether its mapping requires it.
    is_required: bool,
    note: String,
}

/// One form of a value, and the name of its type, if it has one.
#[derive(Clone, Copy)]
struct Form<'a> {
    schema: &'a Value,
    name: Option<&'a str>,
}

impl<'a> Page<'a> {
    fn key(&mut self, key: &Key<'a>) {
        let forms = self.forms(key.schema, None);
        let is_tagged = forms.iter().any(|form| form.tag().is_some());
        let (path, default) = match is_tagged {
            true => (format!("{}.{TAG}", key.path), &key.schema["default"][TAG]),
            false => (key.path.clone(), &key.schema["default"]),
        };
        let default = if key.is_required { REQUIRED.to_owned() } else { start(default, meaning(key.schema)) };
        // Keys of list items have no flag.
        let dashes = if path.contains("[]") { "" } else { "--" };
        let head = format!("{dashes}{path} <{}> {default} {}", values(&forms), key.note);
        self.text += &wrapped(&head, 2, 6);
        self.text += &wrapped(first_paragraph(meaning(key.schema)), 6, 6);
        for form in &forms {
            if let Some(choice) = form.choice() {
                self.text += &wrapped(&format!("{choice}: {}", first_paragraph(meaning(form.schema))), 8, 10);
            }
        }
        if !dashes.is_empty() {
            self.options.push(option(path, &forms, key.schema));
        }
        self.below(&key.path, &forms);
    }

    /// Lists the keys of the mappings that a key takes.
    fn below(&mut self, path: &str, forms: &[Form<'a>]) {
        let mut keys: Vec<(Key<'a>, Vec<&str>)> = Vec::new();
        let mut as_before = None;
        for form in forms {
            let (form, path) = match self.item(form) {
                Some(item) => (item, format!("{path}[]")),
                None => (*form, path.to_owned()),
            };
            let Some(properties) = form.schema["properties"].as_object() else { continue };
            if let Some((_, before)) =
                self.told.iter().find(|(told, _)| form.name == Some(*told) && form.tag().is_none())
            {
                if before.trim_end_matches("[]") != path.trim_end_matches("[]") {
                    as_before = Some(before.clone());
                }
                continue;
            }
            self.told.extend(form.name.map(|name| (name, path.clone())));
            for (name, schema) in properties.iter().filter(|(name, _)| form.tag().is_none() || name.as_str() != TAG) {
                let path = format!("{path}.{name}");
                match keys.iter_mut().find(|(key, _)| key.path == path && key.schema == schema) {
                    Some((_, kinds)) => kinds.extend(form.tag()),
                    None => {
                        let required = form.schema["required"].as_array();
                        let is_required = required.is_some_and(|keys| keys.iter().any(|key| key == name));
                        let key = Key { path, schema, is_required, note: String::new() };
                        keys.push((key, form.tag().into_iter().collect()));
                    }
                }
            }
        }
        if let Some(before) = as_before {
            self.text += &wrapped(&format!("Its keys are those below {before}."), 6, 6);
        }
        for (mut key, kinds) in keys {
            if !kinds.is_empty() {
                key.note = format!("[{TAG}: {}]", kinds.join(", "));
            }
            self.key(&key);
        }
    }

    /// The forms of a value, named types resolved.
    fn forms(&self, schema: &'a Value, name: Option<&'a str>) -> Vec<Form<'a>> {
        if let Some(name) = schema["$ref"].as_str().and_then(|path| path.strip_prefix("#/definitions/")) {
            return self.forms(&self.schema["definitions"][name], Some(name));
        }
        match ["anyOf", "oneOf", "allOf"].iter().find_map(|keyword| schema[keyword].as_array()) {
            Some(forms) => forms.iter().flat_map(|form| self.forms(form, name)).collect(),
            None => vec![Form { schema, name }],
        }
    }

    /// The item form of a list whose items are one kind of mapping.
    fn item(&self, form: &Form<'a>) -> Option<Form<'a>> {
        let items = form.schema.get("items").filter(|items| items.is_object())?;
        match self.forms(items, form.name)[..] {
            [item] if item.schema["properties"].is_object() => Some(item),
            _ => None,
        }
    }
}

impl<'a> Form<'a> {
    /// The `kind` of this mapping, if it has one.
    fn tag(&self) -> Option<&'a str> {
        self.schema["properties"][TAG]["const"].as_str()
    }

    /// The one value that this form allows, or the `kind` of this mapping.
    fn choice(&self) -> Option<&'a str> {
        self.schema["const"].as_str().or_else(|| self.tag())
    }

    /// This choice with its meaning.
    fn possible(&self) -> Option<PossibleValue> {
        let help = first_paragraph(meaning(self.schema)).replace('\n', " ");
        self.choice().map(|choice| PossibleValue::new(choice.to_owned()).help(help))
    }

    /// A short name of this form; none for other spellings of a choice.
    fn word(&self) -> Option<&'a str> {
        let is = |kind: &str| match &self.schema["type"] {
            Value::Array(kinds) => kinds.iter().any(|known| known == kind),
            known => known == kind,
        };
        match self.choice().or_else(|| self.schema["title"].as_str()) {
            Some(word) => Some(word),
            None if self.schema.get("enum").is_some() => None,
            None if is("string") => Some(self.schema[paths::INPUT].as_str().unwrap_or("text")),
            None if is("integer") => Some("whole number"),
            None if is("number") => Some("number"),
            None if is("boolean") => Some("true|false"),
            None if is("array") => Some("list"),
            None if is("object") => Some("mapping"),
            None => None,
        }
    }
}

/// The values that a key takes.
fn values(forms: &[Form<'_>]) -> String {
    let mut words: Vec<&str> = Vec::new();
    for word in forms.iter().filter_map(|form| form.word()) {
        if !words.contains(&word) {
            words.push(word);
        }
    }
    let all = words.join("|");
    if all.len() > LONGEST { "choice".to_owned() } else { all }
}

/// A key as an option. It has choices only if all its values can be listed.
fn option(path: String, forms: &[Form<'_>], schema: &Value) -> clap::Arg {
    let choices: Option<Vec<PossibleValue>> = forms.iter().map(Form::possible).collect::<Option<Vec<_>>>();
    let option = clap::Arg::new(path.clone()).long(path).value_name(values(forms));
    let option = option.help(first_paragraph(meaning(schema)).replace('\n', " "));
    match choices {
        Some(choices) => option.value_parser(PossibleValuesParser::new(choices)),
        None if forms.iter().any(|form| form.schema.get(paths::INPUT).is_some()) => {
            option.value_hint(clap::ValueHint::AnyPath)
        }
        None => option,
    }
}

const REQUIRED: &str = "[required]";

/// The default of a key, as shown. An empty default is shown as such if the key's meaning explains "empty:", else as
/// required.
fn start(default: &Value, meaning: &str) -> String {
    let is_empty = match default {
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(keys) => keys.is_empty(),
        _ => false,
    };
    match default {
        _ if is_empty && !meaning.to_lowercase().contains("empty:") => REQUIRED.to_owned(),
        _ if is_empty => "[default: empty]".to_owned(),
        Value::Null => "[default: none]".to_owned(),
        Value::String(text) => format!("[default: {text}]"),
        Value::Number(number) if number.is_f64() => {
            let number = format!("{:?}", number.as_f64().unwrap_or_default());
            format!("[default: {}]", number.trim_end_matches(".0"))
        }
        value => format!("[default: {value}]"),
    }
}

fn meaning(schema: &Value) -> &str {
    schema["description"].as_str().unwrap_or_default()
}

fn first_paragraph(text: &str) -> &str {
    text.split("\n\n").next().unwrap_or_default()
}

/// Wraps a text to lines of a page; text in brackets is not broken.
fn wrapped(text: &str, first: usize, rest: usize) -> String {
    let (mut lines, mut line, mut is_empty) = (String::new(), " ".repeat(first), true);
    for word in words(text) {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines += &format!("{line}\n");
            (line, is_empty) = (" ".repeat(rest), true);
        }
        if !is_empty {
            line.push(' ');
        }
        line += word;
        is_empty = false;
    }
    if is_empty { lines } else { format!("{lines}{line}\n") }
}

/// The words of a text; a word that begins with a bracket extends to the closing bracket if that fits on a line.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text.trim_start();
    std::iter::from_fn(move || {
        let closing = match rest.chars().next()? {
            '[' => rest.find(']'),
            '<' => rest.find('>'),
            _ => None,
        };
        let from = closing.filter(|end| *end < WIDTH / 2).unwrap_or(0);
        let end = rest[from..].find(char::is_whitespace).map_or(rest.len(), |end| from + end);
        let word = &rest[..end];
        rest = rest[end..].trim_start();
        Some(word)
    })
}

#[cfg(test)]
mod tests;
