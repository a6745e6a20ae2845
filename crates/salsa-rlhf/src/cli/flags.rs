//! `--key value` flags of stages. They are not declared: every key of the stage is a flag.
use std::path::PathBuf;

use crate::config::Usage;

/// The parsed words after a stage's command.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Flags {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// Whether `--help` was given.
    pub help: bool,
    /// Keys and values in order; a key with several values is repeated, a key without a value has the value `true`.
    pub pairs: Vec<(String, String)>,
}

impl Flags {
    /// Parses `--key value`, `--key=value`, `--switch` and `--list a b c`.
    ///
    /// # Errors
    /// A word that belongs to no key, `--config` without a file or given twice.
    pub(super) fn parse(words: &[String]) -> Result<Flags, Usage> {
        let mut flags = Flags::default();
        let mut words = words.iter().map(String::as_str).peekable();
        while let Some(word) = words.next() {
            if word == "--help" || word == "-h" {
                flags.help = true;
                continue;
            }
            let Some(key) = key(word) else {
                return Err(Usage(format!("{word:?} belongs to no option; write --key {word}, or --config FILE")));
            };
            let (key, mut values) = match key.split_once('=') {
                Some((key, value)) => (key, vec![value]),
                None => (key, Vec::new()),
            };
            while values.is_empty() || !word.contains('=') {
                match words.next_if(|word| self::key(word).is_none() && *word != "-h") {
                    Some(value) => values.push(value),
                    None => break,
                }
            }
            flags.add(key, &values)?;
        }
        Ok(flags)
    }

    fn add(&mut self, key: &str, values: &[&str]) -> Result<(), Usage> {
        if key == "config" {
            match (values, &self.config) {
                ([file], None) => self.config = Some(PathBuf::from(file)),
                ([_], Some(_)) => return Err(Usage("--config is given twice".to_owned())),
                _ => return Err(Usage("--config takes one file".to_owned())),
            }
            return Ok(());
        }
        let values = if values.is_empty() { &["true"] } else { values };
        self.pairs.extend(values.iter().map(|value| (key.to_owned(), (*value).to_owned())));
        Ok(())
    }
}

/// The key of a word of the form `--key`. A negative number is a value.
fn key(word: &str) -> Option<&str> {
    word.strip_prefix("--").filter(|key| key.starts_with(|c: char| c.is_alphabetic()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Flags::parse(&words).map_err(|usage| usage.0)
    }

    #[test]
    fn keys_values_switches_and_lists_are_told_apart() {
        let flags = parse("--seed 1 --packing --lr=-2e-5 --models a b --max_steps -1 --config c.yaml").unwrap();
        let pairs: Vec<(&str, &str)> = flags.pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let expected = [
            ("seed", "1"),
            ("packing", "true"),
            ("lr", "-2e-5"),
            ("models", "a"),
            ("models", "b"),
            ("max_steps", "-1"),
        ];
        assert_eq!(pairs, expected);
        assert_eq!(flags.config, Some(PathBuf::from("c.yaml")));
        assert!(parse("--seed 1 --help").unwrap().help);
    }

    #[test]
    fn stray_words_are_errors() {
        assert!(parse("stray --seed 1").unwrap_err().starts_with("\"stray\" belongs to no option"));
        assert!(parse("--seed=1 stray").unwrap_err().starts_with("\"stray\" belongs to no option"));
        assert!(parse("-x").unwrap_err().starts_with("\"-x\" belongs to no option"));
        assert_eq!(parse("--config").unwrap_err(), "--config takes one file");
        assert_eq!(parse("--config a --config b").unwrap_err(), "--config is given twice");
    }
}
