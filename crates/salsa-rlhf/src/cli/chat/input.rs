//! Lines from a terminal, with editing and history, or from a pipe.
use std::io::{BufRead, IsTerminal};

use anyhow::Context;
use rustyline::{DefaultEditor, error::ReadlineError};

/// Source of input lines.
pub(super) enum Input {
    /// Interactive, with a prompt.
    Terminal(Box<DefaultEditor>),
    /// A file or another program.
    Pipe,
}

/// Result of reading a line.
pub(super) enum Read {
    /// A line.
    Line(String),
    /// Ctrl-C at the prompt.
    Interrupted,
    /// End of the input.
    End,
}

impl Input {
    pub(super) fn open() -> anyhow::Result<Input> {
        if std::io::stdin().is_terminal() && std::io::stderr().is_terminal() {
            return Ok(Input::Terminal(Box::new(DefaultEditor::new().context("cannot use the terminal")?)));
        }
        Ok(Input::Pipe)
    }

    /// Reads the next line.
    pub(super) fn read(&mut self) -> anyhow::Result<Read> {
        match self {
            Input::Terminal(editor) => match editor.readline("> ") {
                Ok(line) => {
                    // A failure to store the history is no reason to stop.
                    let _ = editor.add_history_entry(&line);
                    Ok(Read::Line(line))
                }
                Err(ReadlineError::Interrupted) => Ok(Read::Interrupted),
                Err(ReadlineError::Eof) => Ok(Read::End),
                Err(error) => Err(error).context("cannot read the input"),
            },
            Input::Pipe => {
                let mut line = String::new();
                let read = std::io::stdin().lock().read_line(&mut line).context("cannot read the input")?;
                Ok(if read == 0 { Read::End } else { Read::Line(line) })
            }
        }
    }

    /// Shows a note on a terminal; does nothing for a pipe.
    pub(super) fn note(&self, note: &str) {
        if matches!(self, Input::Terminal(_)) {
            eprintln!("({note})");
        }
    }
}
