//! The conversation loop; answers are printed as they are sampled.
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, bail};
use salsa_engine::Prompt;

use super::{
    super::print,
    command::{Line, Settings},
    input::{Input, Read},
};
use crate::{
    chat::Message,
    data::Content,
    stage::{models::frozen::Frozen, text::encoder::Encoder},
};

/// A model and its conversation so far.
struct Talk<'a> {
    frozen: &'a Frozen,
    encoder: &'a Encoder,
    settings: Settings,
    opening: Vec<Message>,
    messages: Vec<Message>,
    /// Number of answers so far; each answer has its own random stream.
    turn: u64,
}

/// Reads lines and answers until the input ends.
pub(super) fn main(frozen: &Frozen, settings: Settings, system: Option<&str>, dir: &Path) -> anyhow::Result<()> {
    let encoder = frozen.encoder.as_ref().with_context(|| format!("{} has no tokenizer.json", dir.display()))?;
    let opening: Vec<Message> = system.into_iter().map(|text| Message::new("system", text)).collect();
    let mut talk = Talk { frozen, encoder, settings, messages: opening.clone(), opening, turn: 0 };
    let mut input = Input::open()?;
    let stop = interrupts(&input)?;
    input.note("/help lists what there is; Ctrl-C ends an answer, Ctrl-D the conversation");
    loop {
        let line = match input.read()? {
            Read::Line(line) => Line::read(&line, &talk.settings),
            Read::Interrupted => continue,
            Read::End => return Ok(()),
        };
        match line {
            Line::Nothing => {}
            Line::Quit => return Ok(()),
            Line::Note(note) => eprintln!("{note}"),
            Line::Set(settings) => {
                input.note(&settings.shown());
                talk.settings = settings;
            }
            Line::New => talk.begin(talk.opening.clone()),
            Line::System(text) => talk.begin(text.iter().map(|text| Message::new("system", text)).collect()),
            Line::Say(text) => talk.say(&text, &stop, &input)?,
        }
    }
}

/// Sets a flag on Ctrl-C, which ends the current answer. A pipe keeps the default: Ctrl-C ends the program.
fn interrupts(input: &Input) -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    if matches!(input, Input::Terminal(_)) {
        let flag = stop.clone();
        ctrlc::set_handler(move || flag.store(true, Ordering::SeqCst)).context("cannot listen for Ctrl-C")?;
    }
    Ok(stop)
}

impl Talk<'_> {
    fn begin(&mut self, opening: Vec<Message>) {
        self.messages = opening.clone();
        self.opening = opening;
    }

    /// Appends a user message and answers it. If the conversation fills the context it is left unchanged: a terminal
    /// gets a note, a pipe an error.
    fn say(&mut self, text: &str, stop: &AtomicBool, input: &Input) -> anyhow::Result<()> {
        let mut messages = self.messages.clone();
        messages.push(Message::new("user", text));
        let tokens = self.encoder.prompt(&Content::from(messages.clone()))?;
        let context = self.frozen.model.spec().max_positions;
        let room = context.saturating_sub(tokens.len());
        if room == 0 {
            let length = tokens.len();
            let full = format!("the conversation of {length} tokens fills the model's context of {context}");
            if matches!(input, Input::Pipe) {
                bail!("{full}; begin anew with a line /new");
            }
            input.note(&format!("{full}; begin anew with /new"));
            return Ok(());
        }
        stop.store(false, Ordering::SeqCst);
        let answer = self.answer(tokens, room, stop)?;
        messages.push(Message::new("assistant", answer.trim()));
        self.messages = messages;
        self.turn += 1;
        Ok(())
    }

    /// Samples the answer and prints it piece by piece, until it ends or `stop` is set.
    fn answer(&self, tokens: Vec<u32>, room: usize, stop: &AtomicBool) -> anyhow::Result<String> {
        let sampling = self.settings.sampling(room, &self.frozen.checkpoint.tokens.eos);
        let mut decoding = self.frozen.model.decoding(1, tokens.len().saturating_add(sampling.max_new_tokens));
        let ticket = decoding.submit(Prompt { tokens, id: self.turn, sample: 0 }, &sampling.into());
        let (mut drawn, mut shown) = (Vec::new(), Shown::default());
        while !decoding.is_idle() {
            drawn.extend(decoding.step().into_iter().map(|event| event.token));
            print(&shown.more(&self.encoder.decode(&drawn)?))?;
            if stop.load(Ordering::SeqCst) {
                decoding.cancel(ticket);
            }
        }
        let text = self.encoder.decode(&drawn)?;
        print(&format!("{}\n", shown.rest(&text)))?;
        Ok(text)
    }
}

/// The printed part of an answer.
#[derive(Default)]
struct Shown {
    /// Bytes of the text, including its leading space.
    bytes: usize,
}

impl Shown {
    /// Returns what can be printed of `text` beyond what was printed. Holds back trailing characters that may still
    /// change: an incomplete character (it may span several tokens), and white space, which an answer does not end
    /// with.
    fn more(&mut self, text: &str) -> String {
        let complete = text.trim_end_matches('\u{fffd}').trim_end();
        self.up_to(complete)
    }

    /// Returns the unprinted rest of the finished `text`.
    fn rest(&mut self, text: &str) -> String {
        self.up_to(text.trim_end())
    }

    fn up_to(&mut self, text: &str) -> String {
        // A decoder may rewrite earlier text once more tokens follow; printed text stays.
        let Some(more) = text.get(self.bytes..) else { return String::new() };
        let more = if self.bytes == 0 { more.trim_start() } else { more };
        self.bytes = self.bytes.max(text.len());
        more.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_appears_piece_by_piece_and_whole() {
        let mut shown = Shown::default();
        let texts = ["", " ", " Hi", " Hi ", " Hi \u{fffd}", " Hi é", " Hi é\n", " Hi é\nyou \n"];
        let pieces: Vec<String> = texts.iter().map(|text| shown.more(text)).collect();
        assert_eq!(pieces, ["", "", "Hi", "", "", " é", "", "\nyou"]);
        assert_eq!(shown.rest(" Hi é\nyou \u{fffd}"), " \u{fffd}");
    }
}
