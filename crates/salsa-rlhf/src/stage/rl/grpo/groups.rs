//! The groups of an update: sampled, scored and, with dynamic sampling, chosen.
use salsa_engine::Model;

use super::GrpoConfig;
use crate::metrics::Metrics;
use crate::stage::{rewards::Scores, rl::environment::Environment, rollout::Rollouts};

/// The responses of an update, in groups, with their scores.
pub(super) struct Groups {
    /// The prompt of each response.
    pub prompt_indices: Vec<usize>,
    /// The responses.
    pub rollouts: Rollouts,
    /// Their rewards.
    pub scores: Scores,
}

/// What an update has sampled.
pub(super) struct Sampled {
    /// The groups to learn from.
    pub groups: Groups,
    /// Prompts sampled so far in the run.
    pub asked: u64,
    /// What dynamic sampling did.
    pub rounds: Rounds,
}

/// What dynamic sampling did in an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rounds {
    /// Rounds of sampling.
    count: usize,
    /// Groups that were replaced.
    replaced: usize,
}

impl Rounds {
    /// Adds the numbers to the metrics of an update; nothing if there was one round.
    pub(super) fn observe(self, metrics: &mut Metrics) {
        if self.count > 1 {
            metrics.set("sampling/rounds", self.count as f64);
            metrics.set("sampling/replaced_groups", self.replaced as f64);
        }
    }
}

impl Groups {
    /// Samples and scores groups for the prompts from the `first` one of the run on, `asked` of them.
    fn of(
        config: &GrpoConfig,
        world: &mut Environment,
        policy: &Model,
        first: u64,
        asked: u64,
    ) -> anyhow::Result<Groups> {
        let (prompt_indices, rollouts) = world.sample_from(&config.setup(), policy, first, asked)?;
        let scores = world.score(&prompt_indices, &rollouts, first * config.num_generations as u64)?;
        Ok(Groups { prompt_indices, rollouts, scores })
    }

    fn select(&self, indices: &[usize]) -> Groups {
        Groups {
            prompt_indices: indices.iter().map(|&i| self.prompt_indices[i]).collect(),
            rollouts: self.rollouts.select(indices),
            scores: self.scores.select(indices),
        }
    }

    fn append(&mut self, other: Groups) {
        self.prompt_indices.extend(other.prompt_indices);
        self.rollouts.append(other.rollouts);
        self.scores.append(other.scores);
    }

    /// The responses of groups with unequal rewards, and of the others.
    fn parted(&self, config: &GrpoConfig) -> [Vec<usize>; 2] {
        let (rule, group) = (config.scores.rule(), config.num_generations);
        let reward = |i: usize| rule.apply(self.scores.total[i], self.rollouts.endings[i]);
        let mut parts = [Vec::new(), Vec::new()];
        for first in (0..self.rollouts.len()).step_by(group) {
            let differ = (first + 1..first + group).any(|i| reward(i) != reward(first));
            parts[usize::from(!differ)].extend(first..first + group);
        }
        parts
    }
}

/// Samples and scores the groups of an update, which begins with the prompt `first` of the run.
///
/// With more than one round, groups with equal rewards are replaced by groups of the next prompts. If the rounds do not
/// give enough groups, the last ones with equal rewards fill the batch: they teach nothing, but the batch keeps its size.
///
/// # Errors
/// As [`Environment::score`].
pub(super) fn sample(
    config: &GrpoConfig,
    world: &mut Environment,
    policy: &Model,
    first: u64,
) -> anyhow::Result<Sampled> {
    let group = config.num_generations;
    let wanted = (config.sampling.batch_size / group) as u64;
    let mut groups = Groups::of(config, world, policy, first, wanted)?;
    let (mut asked, mut rounds) = (first + wanted, Rounds { count: 1, replaced: 0 });
    while rounds.count < config.max_sampling_rounds {
        let [kept, equal] = groups.parted(config);
        if equal.is_empty() {
            break;
        }
        let missing = (equal.len() / group) as u64;
        let more = Groups::of(config, world, policy, asked, missing)?;
        let mut next = groups.select(&kept);
        next.append(more);
        groups = next;
        asked += missing;
        rounds = Rounds { count: rounds.count + 1, replaced: rounds.replaced + missing as usize };
    }
    Ok(Sampled { groups, asked, rounds })
}
