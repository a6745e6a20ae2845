//! `judgments.jsonl`: every answer of the judge, one line each, written and synced on arrival. Lines are never
//! rewritten, so no paid answer is lost.
use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::call::{Answer, Call, Failure, Reply, Settings, Subject, Usage};
use crate::{atomic, input, stage::StageContext};

/// The file's name in a stage's directory.
pub(super) const FILE_NAME: &str = "judgments.jsonl";

/// The answers so far.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    answers: Answers,
}

/// Answers by the identity of their calls. Only the first reply to a call counts.
#[derive(Debug, Default)]
pub(super) struct Answers {
    replies: HashMap<String, Reply>,
    failures: HashMap<String, Failure>,
    spent: Usage,
}

/// One line.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    id: String,
    #[serde(flatten)]
    subject: Subject,
    prompt_sha256: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reply: Option<Reply>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failure: Option<Failure>,
}

impl Answers {
    /// The reply to a call.
    pub(super) fn reply(&self, id: &str) -> Option<&Reply> {
        self.replies.get(id)
    }

    /// The failure of a call without a reply, if it was tried.
    pub(super) fn failure(&self, id: &str) -> Option<&Failure> {
        self.failures.get(id).filter(|_| !self.replies.contains_key(id))
    }

    /// The tokens of all answers, with those of failures and of replies that do not count.
    pub(super) fn spent(&self) -> Usage {
        self.spent
    }

    fn take(&mut self, line: Line) {
        let of_reply = line.reply.as_ref().map(|reply| reply.usage);
        let usage = of_reply.or(line.failure.as_ref().map(|failure| failure.usage)).unwrap_or_default();
        self.spent.prompt_tokens += usage.prompt_tokens;
        self.spent.completion_tokens += usage.completion_tokens;
        match (line.reply, line.failure) {
            (Some(reply), _) => drop(self.replies.entry(line.id).or_insert(reply)),
            (None, Some(failure)) => drop(self.failures.insert(line.id, failure)),
            (None, None) => {}
        }
    }
}

impl Journal {
    /// Opens the journal of a directory. An incomplete last line, left by a killed process, is dropped and reported.
    ///
    /// # Errors
    /// If the file cannot be read or written, or has a complete line of another format.
    pub(super) fn open(dir: &Path, context: &StageContext) -> anyhow::Result<Journal> {
        let path = dir.join(FILE_NAME);
        let mut file = atomic::open_to_continue(&path)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if whole < text.len() {
            let lost = text.len() - whole;
            let place = path.display();
            context.say(&format!("{place}: the last line is cut off ({lost} bytes); it is dropped and asked again"));
            file.set_len(whole as u64).with_context(|| format!("cannot cut {}", path.display()))?;
        }
        file.seek(SeekFrom::Start(whole as u64)).with_context(|| format!("cannot read {}", path.display()))?;
        let mut answers = Answers::default();
        read_lines(&path, &text[..whole], &mut answers)?;
        Ok(Journal { path, file, answers })
    }

    /// The answers so far.
    pub(super) fn answers(&self) -> &Answers {
        &self.answers
    }

    /// Appends an answer and syncs it to disk.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn add(&mut self, call: &Call, settings: &Settings, answer: Answer) -> anyhow::Result<()> {
        let (reply, failure) = match answer {
            Ok(reply) => (Some(reply), None),
            Err(failure) => (None, Some(failure)),
        };
        let (id, subject, prompt_sha256) = (call.id(settings), call.subject.clone(), call.prompt_digest());
        let line = Line { id, subject, prompt_sha256, reply, failure };
        let mut text = serde_json::to_string(&line)?;
        text.push('\n');
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|error| atomic::explain(&error, &format!("cannot write {}", self.path.display())))?;
        self.answers.take(line);
        Ok(())
    }
}

/// The answers of another journal; an incomplete last line is ignored.
///
/// # Errors
/// If it cannot be read.
pub(super) fn read(path: &Path) -> anyhow::Result<Answers> {
    let (text, mut answers) = (input::read(path)?, Answers::default());
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    read_lines(path, &text[..whole], &mut answers)?;
    Ok(answers)
}

/// Whether the first line of a file is that of a journal.
///
/// # Errors
/// If it cannot be read.
pub(super) fn is_journal(path: &Path) -> anyhow::Result<bool> {
    let text = input::read(path)?;
    let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(serde_json::from_slice::<Line>(first).is_ok())
}

fn read_lines(path: &Path, text: &[u8], answers: &mut Answers) -> anyhow::Result<()> {
    let lines = text.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty());
    for (number, line) in lines {
        match serde_json::from_slice(line) {
            Ok(line) => answers.take(line),
            Err(error) => bail!(
                "{}: line {} is no judgment of salsa ({error}); it was changed by hand or the disk lost it: remove that line",
                path.display(),
                number + 1
            ),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::call::{FailureKind, test_call};
    use super::*;
    use crate::stage::fixture::quiet;

    fn settings() -> Settings {
        Settings { temperature: 0.0, top_logprobs: 0, max_tokens: 10 }
    }

    fn reply(text: &str) -> Answer {
        Ok(Reply { text: text.to_owned(), ..Reply::default() })
    }

    #[test]
    fn what_was_answered_is_kept_and_the_first_reply_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (test_call("1", "x"), test_call("2", "y"));
        let mut journal = Journal::open(dir.path(), &quiet()).unwrap();
        journal.add(&a, &settings(), reply("first")).unwrap();
        journal.add(&a, &settings(), reply("second")).unwrap();
        let usage = Usage { prompt_tokens: 7, completion_tokens: 10 };
        let cut = Failure { usage, ..Failure::new(FailureKind::Timeout, "late") };
        journal.add(&b, &settings(), Err(cut)).unwrap();
        for journal in [journal, Journal::open(dir.path(), &quiet()).unwrap()] {
            let answers = journal.answers();
            assert_eq!(answers.reply(&a.id(&settings())).unwrap().text, "first");
            assert_eq!(answers.reply(&b.id(&settings())), None);
            assert_eq!(answers.failure(&b.id(&settings())).unwrap().kind, FailureKind::Timeout);
            assert_eq!(answers.spent(), usage, "a failure may have cost tokens too");
        }
        let mut journal = Journal::open(dir.path(), &quiet()).unwrap();
        journal.add(&b, &settings(), reply("now")).unwrap();
        assert_eq!(journal.answers().failure(&b.id(&settings())), None, "a later reply ends a failure");
    }

    /// Truncated at every byte, as after a kill or a full disk: whole lines are kept, and writing continues.
    #[test]
    fn a_torn_line_is_dropped_wherever_it_is_torn() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let (a, b) = (test_call("1", "x"), test_call("2", "ü"));
        let mut journal = Journal::open(dir.path(), &quiet()).unwrap();
        journal.add(&a, &settings(), reply("first")).unwrap();
        let first = fs::read(&path).unwrap().len();
        journal.add(&b, &settings(), reply("zweite ü")).unwrap();
        let whole = fs::read(&path).unwrap();
        for cut in first..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut journal = Journal::open(dir.path(), &quiet()).unwrap();
            assert!(journal.answers().reply(&a.id(&settings())).is_some());
            assert!(journal.answers().reply(&b.id(&settings())).is_none(), "{cut}");
            journal.add(&b, &settings(), reply("zweite ü")).unwrap();
            assert_eq!(fs::read(&path).unwrap(), whole, "{cut}");
        }
    }

    #[test]
    fn the_journal_of_another_run_is_known_and_read_even_if_it_was_killed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let (a, b) = (test_call("1", "x"), test_call("2", "y"));
        let mut journal = Journal::open(dir.path(), &quiet()).unwrap();
        journal.add(&a, &settings(), reply("first")).unwrap();
        journal.add(&b, &settings(), reply("second")).unwrap();
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        assert!(is_journal(&path).unwrap());
        let answers = read(&path).unwrap();
        assert!(answers.reply(&a.id(&settings())).is_some() && answers.reply(&b.id(&settings())).is_none());
        fs::write(&path, "{\"question_id\": 81, \"model\": \"m\"}\n").unwrap();
        assert!(!is_journal(&path).unwrap());
    }

    #[test]
    fn a_foreign_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE_NAME), "{\"a\": 1}\n").unwrap();
        let error = format!("{:#}", Journal::open(dir.path(), &quiet()).map(drop).unwrap_err());
        assert!(error.contains("line 1 is no judgment"), "{error}");
    }
}
