//! Description of a data set: layout, lengths, duplicates, and one example as a model is trained on it.
use std::{collections::HashMap, fmt::Write, hash::Hash, io::IsTerminal, path::Path};

use anyhow::{Context, ensure};
use salsa_algo::stats::quantiles;

use super::Arguments;
use crate::{
    chat::Message,
    data::{self, Content, Dataset, Example},
    stage::{
        StageContext,
        text::{encoder::Encoder, source::Part},
    },
};

/// Quantiles of the lengths that are shown.
const SHARES: [f64; 7] = [0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0];

/// Prints one fact per line, then lengths, then an example.
pub(super) fn print(path: &Path, model: Option<&Path>, arguments: &Arguments) -> anyhow::Result<()> {
    let splits = data::splits(path)?;
    let split = match &arguments.split {
        None if splits.len() > 1 => {
            // Splits are printed first; everything else describes one of them.
            super::super::print(&format!("{:<14} {}\n", "splits", splits.join(", ")))?;
            splits.iter().find(|split| split.starts_with("train")).or(splits.first())
        }
        given => given.as_ref(),
    };
    let set = match split {
        Some(name) => {
            let part = Part::from(name.clone()).load(path, data::Reading::default())?;
            ensure!(!part.examples.is_empty(), "{} ({name}) holds no examples", path.display());
            part
        }
        None => data::load(path)?,
    };
    ensure!(
        arguments.example < set.examples.len(),
        "--example {} is not there: the data set has {} examples, counted from 0",
        arguments.example,
        set.examples.len()
    );
    let encoder = match model {
        Some(model) => Some(arguments.encoder(model)?),
        None => None,
    };
    report_reading(&set, encoder.as_ref());
    let mut text = facts(&set, split);
    text += &lengths(&set, encoder.as_ref())?;
    text += &format!("\nexample {}\n", arguments.example);
    let ink = if std::io::stdout().is_terminal() { Ink::Colour } else { Ink::Brackets };
    text += &shown(&set.examples[arguments.example], encoder.as_ref(), ink)?;
    super::super::print(&text)
}

/// Prints the notes that stages print on stderr about this data set.
fn report_reading(set: &Dataset, encoder: Option<&Encoder>) {
    let context = StageContext::default();
    let name = set.path.display();
    set.notes.iter().for_each(|note| context.say(&format!("{name}: {note}")));
    let is_text = |example: &Example| matches!(example.prompt(), Some(Content::Text(text)) if !text.is_empty());
    if let Some(note) = encoder.and_then(Encoder::text_prompt_note).filter(|_| set.examples.iter().any(is_text)) {
        context.say(&format!("{name}: {note}"));
    }
}

fn facts(set: &Dataset, split: Option<&String>) -> String {
    let mut facts: Vec<_> = split.map(|name| ("split", name.clone())).into_iter().collect();
    facts.push(("layout", set.layout.to_string()));
    facts.push(("recognised", set.recognised.to_owned()));
    facts.push(("examples", set.examples.len().to_string()));
    if set.dropped_identical > 0 {
        facts.push(("left out", format!("{} pairs with identical or equally rated answers", set.dropped_identical)));
    }
    let whole: Vec<String> = set.examples.iter().map(|example| format!("{example:?}")).collect();
    let prompts: Vec<String> =
        set.examples.iter().filter_map(Example::prompt).map(|prompt| format!("{prompt:?}")).collect();
    let by_prompt = if prompts.is_empty() {
        String::new()
    } else {
        format!(", {} by prompt ({} prompts)", repeated(&prompts), prompts.len() - repeated(&prompts))
    };
    facts.push(("duplicates", format!("{} exact{by_prompt}", repeated(&whole))));
    facts.push(("sha256", set.sha256.clone()));
    facts.iter().map(|(name, fact)| format!("{name:<14} {fact}\n")).collect()
}

/// Number of items that repeat an earlier one.
fn repeated<T: Hash + Eq>(items: &[T]) -> usize {
    let mut seen: HashMap<&T, ()> = HashMap::new();
    items.iter().filter(|item| seen.insert(item, ()).is_some()).count()
}

/// Quantiles of the lengths of each part: in tokens if there is a tokenizer, else in characters.
fn lengths(set: &Dataset, encoder: Option<&Encoder>) -> anyhow::Result<String> {
    let mut parts: Vec<(&'static str, Vec<f64>)> = Vec::new();
    let bos_marks_turns = encoder.is_some_and(Encoder::begins_turns_with_bos);
    let mut checks = Specials { bos_marks_turns, ..Specials::default() };
    for (example, place) in set.examples.iter().zip(&set.places) {
        let measured = measured(example, encoder, &mut checks).with_context(|| place.to_string())?;
        for (index, (name, length)) in measured.into_iter().enumerate() {
            if parts.len() <= index {
                parts.push((name, Vec::new()));
            }
            parts[index].1.push(length as f64);
        }
    }
    let unit = if encoder.is_some() { "tokens" } else { "characters (--model DIR counts tokens)" };
    let mut text = format!("\nlengths in {unit}\n  {:<20}", "");
    for share in SHARES {
        let name = match share {
            0.0 => "least".to_owned(),
            1.0 => "most".to_owned(),
            share => format!("{} %", share * 100.0),
        };
        let _ = write!(text, "{name:>9}");
    }
    text += "\n";
    for (name, lengths) in &parts {
        let _ = write!(text, "  {name:<20}");
        for value in quantiles(lengths, &SHARES).unwrap_or_default() {
            let _ = write!(text, "{value:>9.0}");
        }
        text += "\n";
    }
    if let Some(encoder) = encoder {
        text += &checks.told(encoder);
    }
    Ok(text)
}

/// The lengths of an example's parts.
fn measured(
    example: &Example,
    encoder: Option<&Encoder>,
    checks: &mut Specials,
) -> anyhow::Result<Vec<(&'static str, usize)>> {
    let Some(encoder) = encoder else {
        return Ok(match example {
            Example::Text(text) => vec![("text", text.chars().count())],
            Example::Messages(messages) => vec![("conversation", said(messages))],
            Example::Prompt(prompt) => vec![("prompt", characters(prompt))],
            Example::PromptCompletion { prompt, completion } => {
                vec![("prompt", characters(prompt)), ("completion", characters(completion))]
            }
            Example::Preference(pair) => vec![
                ("prompt", characters(&pair.prompt)),
                ("chosen", characters(&pair.chosen)),
                ("rejected", characters(&pair.rejected)),
            ],
        });
    };
    match example {
        Example::Prompt(prompt) => {
            let tokens = encoder.prompt(prompt)?;
            checks.see(encoder, &tokens, None);
            Ok(vec![("prompt", tokens.len())])
        }
        Example::Preference(pair) => {
            let (chosen, prompt) = encoder.prompt_and_response(&pair.prompt, &pair.chosen)?;
            let (rejected, _) = encoder.prompt_and_response(&pair.prompt, &pair.rejected)?;
            checks.see(encoder, &chosen, chosen.last());
            checks.see(encoder, &rejected, rejected.last());
            Ok(vec![("prompt", prompt), ("chosen", chosen.len() - prompt), ("rejected", rejected.len() - prompt)])
        }
        other => {
            let sequence = encoder.example(other)?;
            let last = sequence.learned_tokens().last();
            checks.see(encoder, &sequence.tokens, last.as_ref());
            Ok(vec![("whole", sequence.tokens.len()), ("learned", sequence.learned_count())])
        }
    }
}

fn characters(content: &Content) -> usize {
    match content {
        Content::Text(text) => text.chars().count(),
        Content::Messages(messages) => said(messages),
    }
}

fn said(messages: &[Message]) -> usize {
    messages.iter().map(|message| message.content.chars().count()).sum()
}

/// Counts of how sequences begin and end.
#[derive(Default)]
struct Specials {
    sequences: usize,
    with_bos: usize,
    with_many_bos: usize,
    without_end: usize,
    /// Whether the chat template begins every turn with the BOS token, as ChatML does if it is `<|im_start|>`.
    bos_marks_turns: bool,
}

impl Specials {
    /// Counts one sequence; `last` is the last token with loss (none: no token has loss).
    fn see(&mut self, encoder: &Encoder, tokens: &[u32], last: Option<&u32>) {
        self.sequences += 1;
        if let Some(bos) = encoder.bos() {
            let count = tokens.iter().filter(|token| **token == bos).count();
            self.with_bos += usize::from(count > 0);
            let is_doubled = tokens.windows(2).any(|pair| *pair == [bos, bos]);
            // If BOS and EOS are one token, it occurs more often.
            let is_repeated = if self.bos_marks_turns { is_doubled } else { count > 1 };
            self.with_many_bos += usize::from(is_repeated && !encoder.ends().contains(&bos));
        }
        self.without_end += usize::from(last.is_some_and(|last| !encoder.ends().contains(last)));
    }

    fn told(&self, encoder: &Encoder) -> String {
        let mut text = match encoder.bos() {
            None => format!("{:<14} the tokenizer has none\n", "bos"),
            Some(bos) => format!("{:<14} token {bos} in {} of {} sequences\n", "bos", self.with_bos, self.sequences),
        };
        if self.with_many_bos > 0 {
            text += &format!("{:<14} {} sequences hold it more than once\n", "WARNING", self.with_many_bos);
        }
        text += &format!("{:<14} tokens {:?}\n", "end", encoder.ends());
        if self.without_end > 0 {
            text += &format!("{:<14} {} sequences do not end with an end token\n", "WARNING", self.without_end);
        }
        text
    }
}

/// How tokens with loss are marked.
#[derive(Clone, Copy, PartialEq)]
enum Ink {
    /// Green text, for a terminal.
    Colour,
    /// Between `⟦` and `⟧`.
    Brackets,
}

impl Ink {
    fn learned(self, text: &str) -> String {
        match self {
            // Coloured line by line, so that pagers that split lines keep the colour.
            Ink::Colour => text
                .split_inclusive('\n')
                .map(|line| {
                    format!(
                        "\x1b[32m{}\x1b[0m{}",
                        line.trim_end_matches('\n'),
                        if line.ends_with('\n') { "\n" } else { "" }
                    )
                })
                .collect(),
            Ink::Brackets => format!("⟦{text}⟧"),
        }
    }

    /// Escapes control characters of the data for a terminal.
    fn plain(self, text: &str) -> String {
        text.chars()
            .map(
                |c| {
                    if c.is_control() && c != '\n' && c != '\t' {
                        c.escape_default().to_string()
                    } else {
                        c.to_string()
                    }
                },
            )
            .collect()
    }
}

/// One example, with the tokens that have loss marked.
fn shown(example: &Example, encoder: Option<&Encoder>, ink: Ink) -> anyhow::Result<String> {
    let Some(encoder) = encoder else { return Ok(parts(example, ink)) };
    if let Example::Prompt(prompt) = example {
        let tokens = encoder.prompt(prompt)?;
        return Ok(format!("{}\n", ink.plain(&encoder.decode_with_special(&tokens)?)));
    }
    let sequence = encoder.example(example)?;
    let (mut text, mut done) = (String::new(), 0);
    for range in &sequence.learned {
        text += &ink.plain(&encoder.decode_with_special(&sequence.tokens[done..range.start])?);
        text += &ink.learned(&ink.plain(&encoder.decode_with_special(&sequence.tokens[range.clone()])?));
        done = range.end;
    }
    text += &ink.plain(&encoder.decode_with_special(&sequence.tokens[done..])?);
    if let Example::Preference(pair) = example {
        let (tokens, prompt) = encoder.prompt_and_response(&pair.prompt, &pair.rejected)?;
        text += &format!("\nrejected\n{}", ink.plain(&encoder.decode_with_special(&tokens[prompt..])?));
    }
    Ok(format!("{text}\n"))
}

/// An example without a model: its named parts, those with loss marked.
fn parts(example: &Example, ink: Ink) -> String {
    let part = |name: &str, text: &str, learned: bool| {
        let text = ink.plain(text);
        format!("[{}] {}\n", ink.plain(name), if learned { ink.learned(&text) } else { text })
    };
    let turns = |messages: &[Message], learned: bool| -> String {
        messages.iter().map(|turn| part(&turn.role, &turn.content, learned && turn.role == "assistant")).collect()
    };
    let content = |name: &str, content: &Content, learned: bool| match content {
        Content::Text(text) => part(name, text, learned),
        Content::Messages(messages) => turns(messages, learned),
    };
    match example {
        Example::Text(text) => format!("{}\n", ink.learned(&ink.plain(text))),
        Example::Messages(messages) => turns(messages, true),
        Example::Prompt(prompt) => content("prompt", prompt, false),
        Example::PromptCompletion { prompt, completion } => {
            content("prompt", prompt, false) + &content("completion", completion, true)
        }
        Example::Preference(pair) => {
            let rejected = content("rejected", &pair.rejected, false);
            content("prompt", &pair.prompt, false) + &content("chosen", &pair.chosen, true) + "rejected\n" + &rejected
        }
    }
}
