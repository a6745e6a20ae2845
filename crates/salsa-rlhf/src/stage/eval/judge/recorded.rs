//! Existing judgments: journals of this program, and files of the tools. They need not be paid for again.
use std::{collections::HashMap, path::Path};

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    call::{Call, Reply, Settings, Subject, digest},
    files,
    journal::{self, Answers, Journal},
    protocol::{Protocol, Replies, arena::default_baseline, mt_bench::ERROR},
    score::Rows,
};

/// Sources of replies: other journals, and files of the tools.
pub(super) struct Recorded {
    journals: Vec<Answers>,
    /// Judgments of tools, by what they judge.
    foreign: HashMap<String, Reply>,
}

/// A view of all replies.
pub(super) struct ReplyIndex<'a> {
    /// The journal of this run.
    pub journal: &'a Journal,
    /// Existing judgments.
    pub recorded: &'a Recorded,
    /// The request settings.
    pub settings: &'a Settings,
}

impl Replies for ReplyIndex<'_> {
    fn reply(&self, call: &Call) -> Option<&Reply> {
        let id = call.id(self.settings);
        let ours = self.journal.answers().reply(&id);
        let others = || self.recorded.journals.iter().find_map(|answers| answers.reply(&id));
        ours.or_else(others).or_else(|| self.recorded.foreign.get(&about(&call.subject, call.user_prompt())))
    }

    fn whole(&self, call: &Call) -> Option<&str> {
        let id = call.id(self.settings);
        let is_ours = self.journal.answers().reply(&id).is_some()
            || self.recorded.journals.iter().any(|answers| answers.reply(&id).is_some());
        let foreign = || self.recorded.foreign.get(&about(&call.subject, call.user_prompt()));
        (!is_ours).then(foreign).flatten().map(|reply| reply.text.as_str())
    }
}

/// A key of what a judgment is about, from the fields that the tools record.
fn about(subject: &Subject, user_prompt: &str) -> String {
    let order = [subject.order];
    let parts = [subject.question.as_bytes(), subject.judge.as_bytes(), subject.template.as_bytes(), &order];
    let models = subject.models.iter().map(String::as_bytes);
    digest(parts.into_iter().chain([user_prompt.as_bytes()]).chain(models))
}

impl Recorded {
    /// Reads existing judgments.
    ///
    /// # Errors
    /// If a file cannot be read, or is no file of judgments of this protocol.
    pub(super) fn read<'a>(
        paths: impl IntoIterator<Item = &'a Path>,
        protocol: Protocol,
        baseline: &str,
    ) -> anyhow::Result<Recorded> {
        let mut recorded = Recorded { journals: Vec::new(), foreign: HashMap::new() };
        for path in paths {
            if journal::is_journal(path)? {
                recorded.journals.push(journal::read(path)?);
                continue;
            }
            recorded.take(&rows(path, protocol)?, protocol, baseline);
        }
        Ok(recorded)
    }

    fn take(&mut self, rows: &Rows, protocol: Protocol, baseline: &str) {
        let mut add = |subject: Subject, user_prompt: &str, text: &str| {
            if !text.is_empty() && text != ERROR {
                let reply = Reply { text: text.to_owned(), ..Reply::default() };
                self.foreign.entry(about(&subject, user_prompt)).or_insert(reply);
            }
        };
        let subject = |question: &Value, models: Vec<String>, judge: &str, template: &str, order: u8| Subject {
            question: super::question::key_of(question),
            models,
            judge: judge.to_owned(),
            template: template.to_owned(),
            order,
        };
        match rows {
            Rows::Single(rows) => rows.iter().for_each(|row| {
                let (judge, template) = (&row.judge.0, &row.judge.1);
                let subject = subject(&row.question_id, vec![row.model.clone()], judge, template, 1);
                add(subject, &row.user_prompt, &row.judgment);
            }),
            Rows::Pair(rows) => rows.iter().for_each(|row| {
                let models = vec![row.model_1.clone(), row.model_2.clone()];
                let of = |order| subject(&row.question_id, models.clone(), &row.judge.0, &row.judge.1, order);
                add(of(1), &row.g1_user_prompt, &row.g1_judgment);
                add(of(2), &row.g2_user_prompt, &row.g2_judgment);
            }),
            Rows::Arena(rows) => rows.iter().for_each(|row| {
                let base = match (baseline, row.baseline.as_str()) {
                    ("", "") => default_baseline(protocol, &row.category),
                    ("", of_row) => of_row,
                    (given, _) => given,
                };
                let models = vec![row.model.clone(), base.to_owned()];
                for (order, game) in (1..).zip(&row.games) {
                    let Some(game) = game else { continue };
                    add(subject(&row.uid, models.clone(), &row.judge, "arena-hard", order), game.asked(), game.said());
                }
            }),
            // Their prompts are not recorded; they can only be counted.
            Rows::Alpaca(_) => {}
        }
    }
}

/// The rows of a tool's judgment file.
///
/// # Errors
/// If the file cannot be read, or is no such file of this protocol.
pub(super) fn rows(path: &Path, protocol: Protocol) -> anyhow::Result<Rows> {
    Ok(match protocol {
        Protocol::MtBenchSingle => Rows::Single(parsed(path, "model_judgment/JUDGE_single.jsonl of FastChat")?),
        Protocol::MtBenchPair | Protocol::Pairwise => {
            Rows::Pair(parsed(path, "model_judgment/JUDGE_pair.jsonl of FastChat")?)
        }
        Protocol::ArenaHardV01 | Protocol::ArenaHardV2 => {
            Rows::Arena(parsed(path, "model_judgment/JUDGE/MODEL.jsonl of Arena-Hard-Auto")?)
        }
        Protocol::AlpacaEval2 => Rows::Alpaca(parsed(path, "annotations.json of AlpacaEval")?),
    })
}

fn parsed<T: DeserializeOwned>(path: &Path, what: &str) -> anyhow::Result<Vec<T>> {
    files::rows(path)?.try_map(|row| {
        serde_json::from_value(Value::Object(row.object.clone()))
            .with_context(|| format!("this is no row of {what}, nor of a judgments.jsonl of salsa"))
    })
}

/// The concatenated rows of several files.
///
/// # Errors
/// As [`rows`]; and if one is a journal of this program, which is useless without the answers.
pub(super) fn all_rows<'a>(paths: impl IntoIterator<Item = &'a Path>, protocol: Protocol) -> anyhow::Result<Rows> {
    let mut all: Option<Rows> = None;
    for path in paths {
        if journal::is_journal(path)? {
            bail!(
                "{} is a journal of salsa, which is counted together with the answers it is about: give answers, or the \
                 files of the folder model_judgment beside it",
                path.display()
            );
        }
        match (&mut all, rows(path, protocol)?) {
            (None, rows) => all = Some(rows),
            (Some(Rows::Single(all)), Rows::Single(more)) => all.extend(more),
            (Some(Rows::Pair(all)), Rows::Pair(more)) => all.extend(more),
            (Some(Rows::Arena(all)), Rows::Arena(more)) => all.extend(more),
            (Some(Rows::Alpaca(all)), Rows::Alpaca(more)) => all.extend(more),
            _ => unreachable!("all files are read by one protocol"),
        }
    }
    all.context("no judgments are given")
}
