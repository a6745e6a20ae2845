//! Lines that begin with a slash, and the settings that they change.
use salsa_engine::Sampling;

use super::Arguments;
use crate::stage::keys::{MOST_TOKENS, check_count};

/// What `/help` says.
pub(super) const HELP: &str = "\
/new                 forget the conversation
/system TEXT         say who the model is, and start anew; without a text: no longer
/set NAME VALUE      change temperature, top_p, top_k, max_new_tokens or seed
/settings            show them
/quit                end (as Ctrl-D does); Ctrl-C ends an answer";

/// How answers are sampled.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    pub(super) temperature: f32,
    pub(super) top_p: f32,
    pub(super) top_k: usize,
    pub(super) max_new_tokens: usize,
    pub(super) seed: u64,
}

impl Settings {
    pub(super) fn of(arguments: &Arguments) -> Settings {
        let Arguments { temperature, top_p, top_k, max_new_tokens, seed, .. } = *arguments;
        Settings { temperature, top_p, top_k, max_new_tokens, seed }
    }

    /// The name of the setting that makes no sense, and its range.
    pub(super) fn check(&self) -> Result<(), String> {
        let Settings { temperature, top_p, max_new_tokens, .. } = *self;
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return Err(format!("--temperature is {temperature}; it must be 0 or above"));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(format!("--top-p is {top_p}; it must be above 0 and at most 1"));
        }
        check_count("--max-new-tokens", max_new_tokens as u64, MOST_TOKENS).map_err(|error| error.to_string())
    }

    /// The settings with one of them changed.
    fn with(&self, name: &str, value: &str) -> Result<Settings, String> {
        fn read<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String> {
            value.parse().map_err(|_| format!("{name}: {value:?} is no number of this kind"))
        }
        let mut changed = self.clone();
        match name.replace('-', "_").as_str() {
            "temperature" => changed.temperature = read(name, value)?,
            "top_p" => changed.top_p = read(name, value)?,
            "top_k" => changed.top_k = read(name, value)?,
            "max_new_tokens" => changed.max_new_tokens = read(name, value)?,
            "seed" => changed.seed = read(name, value)?,
            _ => return Err(format!("there is no setting {name:?}: temperature, top_p, top_k, max_new_tokens, seed")),
        }
        changed.check().map(|()| changed)
    }

    /// All of them on one line.
    pub(super) fn shown(&self) -> String {
        let Settings { temperature, top_p, top_k, max_new_tokens, seed } = self;
        format!("temperature {temperature}, top_p {top_p}, top_k {top_k}, max_new_tokens {max_new_tokens}, seed {seed}")
    }

    /// For an answer for which the context has `room` tokens.
    pub(super) fn sampling(&self, room: usize, stop_tokens: &[u32]) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed,
            max_new_tokens: self.max_new_tokens.min(room),
            stop_tokens: stop_tokens.to_vec(),
            slots: 1,
        }
    }
}

/// What a line asks for.
#[derive(Debug, PartialEq)]
pub(super) enum Line {
    /// Nothing: an empty line.
    Nothing,
    /// An answer to this.
    Say(String),
    /// To forget the conversation.
    New,
    /// To forget the conversation and to begin with this system message, if any.
    System(Option<String>),
    /// Other settings.
    Set(Settings),
    /// A note to the person: help, the settings, a mistake.
    Note(String),
    /// The end.
    Quit,
}

impl Line {
    /// What `line` asks for, given the settings now.
    pub(super) fn read(line: &str, settings: &Settings) -> Line {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).map_or((line, ""), |(word, rest)| (word, rest.trim()));
        match (word, rest) {
            ("", _) => Line::Nothing,
            ("/quit" | "/exit", "") => Line::Quit,
            ("/new", "") => Line::New,
            ("/help", "") => Line::Note(HELP.to_owned()),
            ("/settings", "") => Line::Note(settings.shown()),
            ("/system", "") => Line::System(None),
            ("/system", text) => Line::System(Some(text.to_owned())),
            ("/set", rest) => match rest.split_once(char::is_whitespace) {
                Some((name, value)) => settings.with(name, value.trim()).map_or_else(Line::Note, Line::Set),
                None => Line::Note("say /set NAME VALUE, for example /set temperature 0.2".to_owned()),
            },
            // A path, `/etc/hosts`, is something to say; a lone word after a slash is meant as a command.
            (word, "") if word.starts_with('/') && !word[1..].contains('/') => {
                Line::Note(format!("there is no command {word}; /help lists them"))
            }
            _ => Line::Say(line.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings { temperature: 0.7, top_p: 1.0, top_k: 0, max_new_tokens: 256, seed: 0 };

    fn read(line: &str) -> Line {
        Line::read(line, &SETTINGS)
    }

    #[test]
    fn lines_are_commands_or_said() {
        assert_eq!(read("  "), Line::Nothing);
        assert_eq!(read(" hello /new "), Line::Say("hello /new".to_owned()));
        assert_eq!(read("what is in /etc/hosts"), Line::Say("what is in /etc/hosts".to_owned()));
        assert_eq!(read("/etc/hosts"), Line::Say("/etc/hosts".to_owned()));
        assert_eq!(read("/new"), Line::New);
        assert_eq!(read("/system You are a cook."), Line::System(Some("You are a cook.".to_owned())));
        assert_eq!(read("/system"), Line::System(None));
        assert_eq!(read("/quit"), Line::Quit);
        assert_eq!(read("/nwe"), Line::Note("there is no command /nwe; /help lists them".to_owned()));
    }

    #[test]
    fn settings_change_within_their_ranges() {
        assert_eq!(read("/set temperature 0.2"), Line::Set(Settings { temperature: 0.2, ..SETTINGS }));
        assert_eq!(read("/set max-new-tokens 5"), Line::Set(Settings { max_new_tokens: 5, ..SETTINGS }));
        for (line, word) in [
            ("/set temperature -1", "--temperature is -1"),
            ("/set temperature nan", "--temperature is NaN"),
            ("/set top_p 0", "--top-p is 0"),
            ("/set seed x", "no number"),
            ("/set", "/set NAME VALUE"),
            ("/set colour red", "no setting"),
        ] {
            let Line::Note(note) = read(line) else { panic!("{line} is taken") };
            assert!(note.contains(word), "{line}: {note}");
        }
    }
}
