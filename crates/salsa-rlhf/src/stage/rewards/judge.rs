//! A language model behind an OpenAI-compatible server as the judge of a response: it reads prompt and response, and
//! replies with a text that ends in a grade.
//!
//! Every reply is appended to a file of the run on arrival, so that a resumed run asks for none of them again.
use std::{
    collections::{HashMap, HashSet},
    path::Path,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use regex::Regex;
use sha2::{Digest, Sha256};

use self::journal::{Entry, Journal};
use super::{Answered, Exceptions, RewardSource, Unavailable};
use crate::{
    chat::Message,
    data::Content,
    stage::{
        StageContext,
        endpoint::{
            Answer, Settings,
            http::{Access, Endpoint},
            secret::Secret,
        },
    },
};

mod journal;
mod template;

pub(super) use template::Template;

/// The largest size of a compiled expression, in bytes.
const LARGEST_EXPRESSION: usize = 1 << 22;

/// How grades are read from replies.
pub(super) struct Grades {
    pattern: Regex,
    lowest: f64,
    highest: f64,
}

impl Grades {
    /// The grades of a judge.
    ///
    /// # Errors
    /// As [`Grades::new`].
    pub(super) fn of(source: &RewardSource) -> anyhow::Result<Grades> {
        let RewardSource::Judge { pattern, lowest, highest, .. } = source else { bail!("this reward is no judge") };
        Grades::new(pattern, *lowest, *highest)
    }

    /// # Errors
    /// If the pattern is no expression with a group, or the range is empty.
    pub(super) fn new(pattern: &str, lowest: f64, highest: f64) -> anyhow::Result<Grades> {
        let compiled = regex::RegexBuilder::new(pattern).size_limit(LARGEST_EXPRESSION).build();
        let compiled = compiled.with_context(|| format!("pattern {pattern:?} is no regular expression"))?;
        ensure!(compiled.captures_len() > 1, "pattern {pattern:?} has no group for the grade; say ({pattern})");
        ensure!(lowest < highest, "lowest is {lowest} and highest {highest}; say a range in which grades can differ");
        Ok(Grades { pattern: compiled, lowest, highest })
    }

    /// The grade in a reply: the last match behind the judge's thoughts, if it is a number of the range.
    pub(super) fn read(&self, reply: &str) -> Option<f64> {
        let said = reply.rsplit("</think>").next().unwrap_or(reply);
        let last = self.pattern.captures_iter(said).last()?;
        let grade: f64 = last.get(1)?.as_str().trim().parse().ok()?;
        (self.lowest..=self.highest).contains(&grade).then_some(grade)
    }
}

/// What a judge is asked.
struct Question {
    /// The model's name on the server.
    model: String,
    /// The system message; empty: none.
    system_prompt: String,
    /// The user's message.
    template: Template,
    /// Temperature and limit.
    settings: Settings,
}

impl Question {
    fn messages(&self, one: &Answered<'_>) -> Vec<Message> {
        let system = Some(&self.system_prompt).filter(|text| !text.is_empty());
        let system = system.map(|text| Message::new("system", text));
        system.into_iter().chain([Message::new("user", self.template.fill(one))]).collect()
    }

    /// The identity of a question: 32 hexadecimal digits of all that changes the reply.
    fn id(&self, messages: &[Message]) -> String {
        let Settings { temperature, top_logprobs: _, max_tokens } = &self.settings;
        let mut hash = Sha256::new();
        let mut add = |part: &[u8]| {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        };
        [self.model.as_bytes(), &temperature.to_le_bytes(), &(*max_tokens as u64).to_le_bytes()]
            .into_iter()
            .for_each(&mut add);
        for message in messages {
            [message.role.as_bytes(), message.content.as_bytes()].into_iter().for_each(&mut add);
        }
        hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A judge, ready to be asked.
pub(super) struct Judge {
    name: String,
    endpoint: Endpoint,
    question: Question,
    grades: Grades,
    journal: Option<Journal>,
    /// Calls at a time.
    concurrency: usize,
    /// How often a reply without a grade is asked for again.
    retries: u32,
    /// The reward of a response without a grade.
    fallback: Option<f64>,
}

/// Why a response has no grade.
struct Fault {
    what: String,
    /// Whether the judge replied.
    has_reply: bool,
}

impl Judge {
    /// Prepares the calls, and reads the replies that a run in `dir` has received. Asks nothing.
    ///
    /// # Errors
    /// If the key cannot be read or is missing, the address is invalid, or the file of replies is damaged.
    pub(super) fn new(source: &RewardSource, dir: &Path, context: &StageContext) -> anyhow::Result<Judge> {
        let (name, _) = source.name_and_weight();
        let (grades, template) = (Grades::of(source)?, Template::of(source)?);
        let RewardSource::Judge { judge_model, system_prompt, temperature, max_tokens, fallback, .. } = source else {
            bail!("reward {name} is no judge")
        };
        let RewardSource::Judge { base_url, api_key_env, api_key_file, concurrency, timeout, max_retries, .. } = source
        else {
            bail!("reward {name} is no judge")
        };
        let secret = Secret::read(api_key_file, api_key_env).with_context(|| format!("reward {name}"))?;
        let endpoint = Endpoint::new(Access {
            base_url,
            model: judge_model,
            secret,
            timeout: Duration::from_secs_f64(**timeout),
            retries: **max_retries,
        });
        Ok(Judge {
            name: name.to_owned(),
            endpoint: endpoint.with_context(|| format!("reward {name}"))?,
            question: Question {
                model: judge_model.clone(),
                system_prompt: system_prompt.clone(),
                template,
                settings: Settings { temperature: *temperature, top_logprobs: 0, max_tokens: *max_tokens },
            },
            journal: (context.ranks.is_first())
                .then(|| Journal::open(&dir.join(format!("judgments-{name}.jsonl")), &grades, context))
                .transpose()?,
            grades,
            concurrency: **concurrency,
            retries: **max_retries,
            fallback: *fallback,
        })
    }

    /// The grades of the responses of an update, and the share that got the fallback.
    ///
    /// # Errors
    /// [`Unavailable`] if a response has no grade after all retries and there is no fallback, or the run was
    /// interrupted.
    pub(super) fn rewards(
        &mut self,
        answered: &[Answered<'_>],
        context: &StageContext,
    ) -> anyhow::Result<(Vec<f64>, Exceptions)> {
        let asked: Vec<Vec<Message>> = answered.iter().map(|one| self.question.messages(one)).collect();
        let ids: Vec<String> = asked.iter().map(|messages| self.question.id(messages)).collect();
        let mut faults: HashMap<usize, Fault> = HashMap::new();
        let mut missing = self.missing(&ids);
        for _ in 0..=self.retries {
            if missing.is_empty() || context.interrupted() {
                break;
            }
            faults.extend(self.ask(&missing, answered, &asked, &ids, context)?);
            // A call without a reply was repeated by the endpoint already; a reply without a grade is asked for again.
            missing.retain(|at| {
                let was_read = self.grade(&ids[*at]).is_some();
                !was_read && faults.get(at).is_some_and(|fault| fault.has_reply)
            });
        }
        let mut failed = 0;
        let mut grade = |at: usize| match (self.grade(&ids[at]), self.fallback) {
            (Some(grade), _) => Ok(grade),
            (None, Some(fallback)) if !context.interrupted() => {
                failed += 1;
                Ok(fallback)
            }
            (None, _) => {
                let first = ids.iter().position(|id| *id == ids[at]).expect("it is one of them");
                let fault = faults.get(&first).map_or("was not asked", |fault| &fault.what);
                Err(self.unavailable(fault, answered[at].prompt))
            }
        };
        let rewards = (0..answered.len()).map(&mut grade).collect::<Result<Vec<f64>, Unavailable>>()?;
        if failed > 0 {
            let value = self.fallback.unwrap_or_default();
            context.say(&format!("reward {}: {failed} responses without a grade get {value}", self.name));
        }
        Ok((rewards, Exceptions::Failed(failed as f64 / answered.len().max(1) as f64)))
    }

    /// The grade of a question, if the judge has given one.
    fn grade(&self, id: &str) -> Option<f64> {
        self.journal.as_ref().and_then(|journal| journal.grade(id))
    }

    fn unavailable(&self, what: &str, prompt: &Content) -> Unavailable {
        Unavailable::new(format!("reward {}: the judge {} {what}", self.name, self.question.model), Some(prompt))
    }

    /// The first response of each question without a grade.
    fn missing(&self, ids: &[String]) -> Vec<usize> {
        let mut seen = HashSet::new();
        let is_new = |at: &usize| self.grade(&ids[*at]).is_none() && seen.insert(&ids[*at]);
        (0..ids.len()).filter(is_new).collect()
    }

    /// Asks about these responses. Returns why each of them has no grade.
    fn ask(
        &mut self,
        missing: &[usize],
        answered: &[Answered<'_>],
        asked: &[Vec<Message>],
        ids: &[String],
        context: &StageContext,
    ) -> anyhow::Result<HashMap<usize, Fault>> {
        let Judge { endpoint, question, grades, journal, concurrency, .. } = self;
        let journal = journal.as_mut().expect("the first process alone asks");
        let calls: Vec<&[Message]> = missing.iter().map(|&at| &asked[at][..]).collect();
        let (mut faults, mut broken) = (HashMap::new(), None);
        let mut take = |number: usize, answer: Answer| {
            let at = missing[number];
            match answer {
                Ok(reply) => {
                    let grade = grades.read(&reply.text);
                    if grade.is_none() {
                        let start: String = reply.text.chars().take(120).collect();
                        let what = format!("replied without a grade: {start:?}");
                        faults.insert(at, Fault { what, has_reply: true });
                    }
                    let one = &answered[at];
                    let entry = Entry {
                        id: ids[at].clone(),
                        prompt: one.prompt.last_words().to_owned(),
                        response: one.text.clone(),
                        reply,
                        grade,
                    };
                    journal.add(entry).inspect_err(|error| broken = Some(format!("{error:#}")))
                }
                Err(failure) => {
                    let what = format!("gave no reply ({}): {}", failure.kind.name(), failure.message);
                    faults.insert(at, Fault { what, has_reply: false });
                    Ok(())
                }
            }
        };
        let result = endpoint.ask(&calls, &question.settings, *concurrency, &mut take, context);
        match (result, broken) {
            (Ok(_), _) => Ok(faults),
            (Err(error), Some(_)) => Err(error),
            // The server cannot be used at all: the key, the address, the model.
            (Err(error), None) => {
                let what = format!("cannot be asked: {error:#}");
                Err(self.unavailable(&what, answered[missing[0]].prompt).into())
            }
        }
    }
}
