//! Rewards: reward models, programs, servers and rules, and their weighted sum.
//!
//! [`config`] has their keys, [`Rewards`] the sum, [`program`], [`remote`] and [`judge`] those outside this process.
//!
//! May import `models`, `text`, `lifecycle`, `endpoint` and modules directly in `stage`.
use std::path::{Path, PathBuf};

use anyhow::{anyhow, ensure};
use serde_json::{Map, Value};

use super::{
    StageContext,
    models::{
        bases::Bases,
        reward_model::{RewardModel, ScoreScale},
    },
    ranks,
    rollout::Rollouts,
};
use crate::{
    checkpoint::Checkpoint,
    data::{Content, Records},
    metrics::Metrics,
};

pub(in crate::stage) mod config;
mod judge;
mod program;
mod remote;
mod rules;
#[cfg(test)]
mod tests;
mod unavailable;

use config::Combine;
pub(in crate::stage) use config::RewardSource;
use judge::Judge;
use program::Program;
use remote::Remote;
use rules::{Rule, Ruled};
pub(in crate::stage) use unavailable::Unavailable;

/// A response, as rewards see it.
pub(in crate::stage) struct Answered<'a> {
    /// The prompt.
    pub prompt: &'a Content,
    /// The columns of its record.
    pub columns: &'a Map<String, Value>,
    /// The response as text, without special tokens and surrounding white space.
    pub text: String,
    /// Its tokens, the end token included.
    pub tokens: &'a [u32],
    /// Prompt and response with special tokens; empty unless [`Rewards::reads_rendered`].
    pub rendered: String,
    /// The prompt with special tokens, likewise.
    pub rendered_prompt: String,
}

/// Rewards whose checkpoints are open. No weights are read yet.
pub(in crate::stage) struct FoundRewards {
    sources: Vec<RewardSource>,
    /// The reward models of each source.
    models: Vec<Vec<Checkpoint>>,
    /// Directory of the run, in which replies of judges are kept.
    dir: PathBuf,
    context: StageContext,
}

/// The rewards of a run.
pub(in crate::stage) struct Rewards {
    list: Vec<Reward>,
    context: StageContext,
}

struct Reward {
    name: String,
    weight: f64,
    by: By,
}

/// What computes a reward; with programs and reward servers the fallback, if there is one.
enum By {
    /// Reward models, how their scores become one, and the deviations that are subtracted.
    Models(Vec<RewardModel>, Combine, f64),
    Program(Program, Option<f64>),
    Remote(Remote, Option<f64>),
    Judge(Box<Judge>),
    Rule(Rule),
}

/// The rewards of the responses of an update.
pub(in crate::stage) struct Scores {
    /// The weighted sum for each response.
    pub total: Vec<f64>,
    /// Each reward by itself.
    each: Vec<Part>,
}

/// One reward of the responses of an update.
struct Part {
    name: String,
    /// A number per response.
    rewards: Vec<f64>,
    exceptions: Exceptions,
}

/// The share of responses whose reward is no ordinary one.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Exceptions {
    /// No reward could be had: they got the fallback.
    Failed(f64),
    /// No rule could read them.
    Unreadable(f64),
}

impl Exceptions {
    const NONE: Exceptions = Exceptions::Failed(0.0);

    fn share(self) -> f64 {
        match self {
            Exceptions::Failed(share) | Exceptions::Unreadable(share) => share,
        }
    }

    fn with(self, share: f64) -> Exceptions {
        match self {
            Exceptions::Failed(_) => Exceptions::Failed(share),
            Exceptions::Unreadable(_) => Exceptions::Unreadable(share),
        }
    }
}

impl FoundRewards {
    /// Opens the checkpoints of all reward models and checks them against the policy's. `dir` is the directory of the run.
    ///
    /// # Errors
    /// If there is no reward, or a reward model cannot score responses of the policy.
    pub(in crate::stage) fn open(
        sources: Vec<RewardSource>,
        policy: &Checkpoint,
        dir: &Path,
        context: &StageContext,
    ) -> anyhow::Result<FoundRewards> {
        ensure!(
            !sources.is_empty(),
            "no reward is given; say reward_model_path: DIR (or --reward_model DIR), or list others under rewards"
        );
        let open = |source: &RewardSource| match source {
            RewardSource::Model { models, .. } => {
                models.iter().map(|path| RewardModel::find(path, policy, context)).collect()
            }
            _ => Ok(Vec::new()),
        };
        let models = sources.iter().map(open).collect::<anyhow::Result<_>>()?;
        Ok(FoundRewards { sources, models, dir: dir.to_owned(), context: context.clone() })
    }

    /// All reward models.
    pub(in crate::stage) fn models(&self) -> impl Iterator<Item = &Checkpoint> {
        self.models.iter().flatten()
    }

    /// Whether a reward reads the records of the data.
    pub(in crate::stage) fn records(&self) -> Records {
        if self.sources.iter().any(RewardSource::reads_text) { Records::Keep } else { Records::Drop }
    }

    /// Checks that every record has the columns that a reward reads, and that a rule can read them.
    ///
    /// # Errors
    /// If one is missing or cannot be read; the error names reward, column and prompt.
    pub(in crate::stage) fn check_columns<'p>(
        &self,
        prompts: impl Iterator<Item = (&'p Content, &'p Map<String, Value>)> + Clone,
    ) -> anyhow::Result<()> {
        for source in &self.sources {
            let (name, _) = source.name_and_weight();
            for column in source.columns() {
                if let Some((prompt, _)) = prompts.clone().find(|(_, columns)| !columns.contains_key(&column)) {
                    let what = format!("reward {name} reads the column {column:?}, which a record of the data lacks");
                    return Err(Unavailable::new(what, Some(prompt)).into());
                }
            }
            let Some(rule) = Rule::of(source)? else { continue };
            for (prompt, columns) in prompts.clone() {
                if let Err(error) = rule.check(columns) {
                    return Err(Unavailable::new(format!("reward {name}: {error:#}"), Some(prompt)).into());
                }
            }
        }
        Ok(())
    }

    /// Reads the weights. Programs are started with the first responses.
    ///
    /// # Errors
    /// If weights cannot be read, a server's key is missing, or the replies of a judge cannot be kept.
    pub(in crate::stage) fn load(self, scale: ScoreScale, bases: &mut Bases) -> anyhow::Result<Rewards> {
        let mut list = Vec::new();
        for (source, models) in self.sources.into_iter().zip(self.models) {
            let (name, weight) = source.name_and_weight();
            let (name, weight) = (name.to_owned(), weight);
            let by = match source {
                RewardSource::Model { combine, deviations, .. } => {
                    let load = |checkpoint| RewardModel::load(checkpoint, scale, bases);
                    By::Models(models.into_iter().map(load).collect::<anyhow::Result<_>>()?, combine, deviations)
                }
                RewardSource::Command { command, timeout, max_retries, fallback, .. } => {
                    By::Program(Program::new(&name, command, *timeout, *max_retries), fallback)
                }
                RewardSource::Http { url, labels, api_key_env, batch_size, timeout, max_retries, fallback, .. } => {
                    let remote = Remote::new(&name, url, labels, &api_key_env)?;
                    By::Remote(remote.with_limits(*batch_size, *timeout, *max_retries), fallback)
                }
                RewardSource::Judge { .. } => By::Judge(Box::new(Judge::new(&source, &self.dir, &self.context)?)),
                ref rule => By::Rule(Rule::of(rule)?.expect("all other kinds are rules")),
            };
            list.push(Reward { name, weight, by });
        }
        Ok(Rewards { list, context: self.context })
    }
}

impl Rewards {
    /// The first reward model.
    #[cfg(test)]
    pub(in crate::stage) fn first_model(&self) -> &salsa_engine::Model {
        let models = self.list.iter().filter_map(|reward| match &reward.by {
            By::Models(models, ..) => models.first(),
            _ => None,
        });
        &models.into_iter().next().expect("a test has a reward model").model
    }

    /// Whether a reward reads [`Answered::text`].
    pub(in crate::stage) fn reads_text(&self) -> bool {
        self.list.iter().any(|reward| !matches!(reward.by, By::Models(..)))
    }

    /// Whether a reward reads [`Answered::rendered`].
    pub(in crate::stage) fn reads_rendered(&self) -> bool {
        self.list.iter().any(|reward| matches!(reward.by, By::Remote(..)))
    }

    /// The rewards of the responses of one update. `first` is the index of the first one in the run; `answered` may be
    /// empty if no reward reads text.
    ///
    /// # Errors
    /// If a reward cannot be had ([`Unavailable`]), or is not finite.
    pub(in crate::stage) fn of(
        &mut self,
        rollouts: &Rollouts,
        answered: &[Answered<'_>],
        first: u64,
    ) -> anyhow::Result<Scores> {
        let mut scores = Scores { total: vec![0.0; rollouts.len()], each: Vec::new() };
        for reward in &mut self.list {
            let (own, exceptions) = reward.by.rewards(rollouts, answered, first, &self.context)?;
            if let Some(at) = own.iter().position(|number| !number.is_finite()) {
                let what = format!("reward {} is {}", reward.name, own[at]);
                return Err(Unavailable::new(what, answered.get(at).map(|one| one.prompt)).into());
            }
            for (total, own) in scores.total.iter_mut().zip(&own) {
                *total += reward.weight * own;
            }
            scores.each.push(Part { name: reward.name.clone(), rewards: own, exceptions });
        }
        Ok(scores)
    }
}

impl By {
    /// A number per response.
    fn rewards(
        &mut self,
        rollouts: &Rollouts,
        answered: &[Answered<'_>],
        first: u64,
        context: &StageContext,
    ) -> anyhow::Result<(Vec<f64>, Exceptions)> {
        match self {
            By::Models(models, combine, deviations) => {
                let each: Vec<Vec<f64>> =
                    models.iter().map(|model| model.scores(rollouts)).collect::<Result<_, _>>()?;
                let of =
                    |at| combine.of(*deviations, &each.iter().map(|scores: &Vec<f64>| scores[at]).collect::<Vec<_>>());
                // One model's scores are not recomputed: `Mean` of one number is that number, bit by bit.
                Ok(((0..rollouts.len()).map(of).collect(), Exceptions::NONE))
            }
            By::Program(program, fallback) => asked_once(context, || {
                or_fallback(program.rewards(answered, first, context), *fallback, answered.len(), context)
            }),
            By::Remote(remote, fallback) => asked_once(context, || {
                or_fallback(remote.rewards(answered, context), *fallback, answered.len(), context)
            }),
            By::Judge(judge) => asked_once(context, || judge.rewards(answered, context)),
            By::Rule(rule) => {
                let ruled: Vec<Ruled> = answered.iter().map(|one| rule.reward(one)).collect();
                let unreadable = ruled.iter().filter(|ruled| **ruled == Ruled::Unreadable).count() as f64;
                let reward = |ruled| if let Ruled::Reward(reward) = ruled { reward } else { 0.0 };
                let share = unreadable / ruled.len().max(1) as f64;
                Ok((ruled.into_iter().map(reward).collect(), Exceptions::Unreadable(share)))
            }
        }
    }
}

/// Rewards that the first process alone asks for, so that a program or server sees each response once and in order.
/// Others get its numbers, or the same kind of error.
fn asked_once(
    context: &StageContext,
    ask: impl FnOnce() -> anyhow::Result<(Vec<f64>, Exceptions)>,
) -> anyhow::Result<(Vec<f64>, Exceptions)> {
    if context.ranks.size() == 1 {
        return ask();
    }
    let mut own = None;
    // As bits: a number that is not finite has no JSON form.
    let said: Result<(Vec<u64>, f64), String> = ranks::from_first(&*context.ranks, || {
        own = Some(ask());
        match own.as_ref().expect("just set") {
            Ok((rewards, exceptions)) => Ok(Ok((rewards.iter().map(|x| x.to_bits()).collect(), exceptions.share()))),
            Err(error) if error.is::<Unavailable>() => Ok(Err(format!("{error:#}"))),
            Err(error) => Err(anyhow!("{error:#}")),
        }
    })?;
    match (own, said) {
        (Some(own), _) => own,
        (None, Ok((bits, share))) => Ok((bits.into_iter().map(f64::from_bits).collect(), Exceptions::NONE.with(share))),
        (None, Err(what)) => Err(Unavailable::new(what, None).into()),
    }
}

/// Replaces a failure by the fallback, if there is one and the run was not interrupted.
fn or_fallback(
    rewards: anyhow::Result<Vec<f64>>,
    fallback: Option<f64>,
    count: usize,
    context: &StageContext,
) -> anyhow::Result<(Vec<f64>, Exceptions)> {
    match (rewards, fallback) {
        (Ok(rewards), _) => Ok((rewards, Exceptions::NONE)),
        (Err(error), Some(value)) if error.is::<Unavailable>() && !context.interrupted() => {
            context.say(&format!("{error:#}; {count} responses get {value}"));
            Ok((vec![value; count], Exceptions::Failed(1.0)))
        }
        (Err(error), _) => Err(error),
    }
}

impl Scores {
    /// Each reward by itself, without its weight, by name.
    pub(in crate::stage) fn each(&self) -> Vec<(String, Vec<f64>)> {
        self.each.iter().map(|part| (part.name.clone(), part.rewards.clone())).collect()
    }

    /// The rewards of the responses with these indices, in their order.
    pub(in crate::stage) fn select(&self, indices: &[usize]) -> Scores {
        let of = |numbers: &[f64]| indices.iter().map(|&i| numbers[i]).collect::<Vec<_>>();
        let each = self.each.iter().map(|part| Part {
            name: part.name.clone(),
            rewards: of(&part.rewards),
            exceptions: part.exceptions,
        });
        Scores { total: of(&self.total), each: each.collect() }
    }

    /// Appends the rewards of more responses.
    pub(in crate::stage) fn append(&mut self, other: Scores) {
        let (own, others) = (self.total.len() as f64, other.total.len() as f64);
        self.total.extend(other.total);
        for (part, more) in self.each.iter_mut().zip(other.each) {
            part.rewards.extend(more.rewards);
            let exceptional = part.exceptions.share() * own + more.exceptions.share() * others;
            part.exceptions = part.exceptions.with(exceptional / (own + others).max(1.0));
        }
    }

    /// Adds mean and standard deviation of each reward to the metrics of an update, under TRL's names.
    pub(in crate::stage) fn observe(&self, metrics: &mut Metrics) {
        if let [part] = &self.each[..]
            && part.name == "model"
        {
            // The only reward is a model's: its mean and deviation are those of the score.
            return;
        }
        for Part { name, rewards, exceptions } in &self.each {
            let count = rewards.len() as f64;
            let mean = rewards.iter().sum::<f64>() / count;
            let variance = rewards.iter().map(|reward| (reward - mean).powi(2)).sum::<f64>() / count;
            metrics.set(format!("rewards/{name}/mean"), mean);
            metrics.set(format!("rewards/{name}/std"), variance.sqrt());
            let kind = match exceptions {
                Exceptions::Failed(_) => "failed",
                Exceptions::Unreadable(_) => "unreadable",
            };
            if exceptions.share() > 0.0 {
                metrics.set(format!("rewards/{name}/{kind}"), exceptions.share());
            }
        }
    }
}
