//! Slash commands, and the settings that they change.
use salsa_engine::Sampling;

use super::Arguments;
use crate::stage::keys::{MOST_TOKENS, check_count};

/// Text of `/help`.
pub(super) const HELP: &str = "\
/new                 forget the conversation
/system TEXT         say who the model is, and start anew; without a text: no longer
/set NAME VALUE      change temperature, top_p, top_k, max_new_tokens or seed
/settings            show them
/quit                end (as Ctrl-D does); Ctrl-C ends an answer";

/// Sampling settings of answers.
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

    /// Checks the settings; an error names the invalid setting and its range.
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

    /// Returns the settings with one of them changed.
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

    /// Returns all settings on one line.
    pub(super) fn shown(&self) -> String {
        let Settings { temperature, top_p, top_k, max_new_tokens, seed } = self;
        format!("temperature {temperature}, top_p {top_p}, top_k {top_k}, max_new_tokens {max_new_tokens}, seed {seed}")
    }

    /// Sampling settings for an answer, where the context has room for `room` more tokens.
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

/// A parsed input line.
#[derive(Debug, PartialEq)]
pub(super) enum Line {
    /// An empty line.
    Nothing,
    /// A user message to answer.
    Say(String),
    /// Start a new conversation.
    New,
    /// Start a new conversation with this system message, if any.
    System(Option<String>),
    /// Replace the settings.
    Set(Settings),
    /// Text to show to the user: help, settings, an error.
    Note(String),
    /// End of the session.
    Quit,
}

impl Line {
    /// Parses `line`, given the current settings.
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
            // A path such as `/etc/hosts` is a message; a lone word after a slash is taken for a command.
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
