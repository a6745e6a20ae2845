//! The memory plan of a PPO run, made from its checkpoints before any weight is read.
use anyhow::Context;
use salsa_engine::{Head, ModelSpec};

use super::{
    config::{CriticKind, PpoConfig},
    order,
};
use crate::{
    checkpoint::Checkpoint,
    stage::{
        StageContext,
        memory::{self, MemorySettings, Need, Order, Passed, Passes, Responses, Saving, part},
        models::{frozen::trained_adapter, model_source::ModelSource, roles::Roles},
        rl::reference::ReferenceConfig,
        rollout,
        text::prompts::TextPrompt,
    },
};

/// The opened checkpoints of a run.
pub(super) struct Plan<'a> {
    policy: Vec<Checkpoint>,
    reward: &'a Checkpoint,
    /// The frozen language models without repetition, each as a list of ingredients.
    frozen: Vec<Vec<Checkpoint>>,
}

impl<'a> Plan<'a> {
    /// Opens every configured checkpoint and checks that soup ingredients are compatible.
    ///
    /// # Errors
    /// If one is incomplete or no language model, or ingredients are incompatible.
    pub(super) fn open(config: &PpoConfig, reward: &'a Checkpoint) -> anyhow::Result<Plan<'a>> {
        let reference = config.reference.frozen(&config.model_name_or_path).context("reference")?;
        let sources = reference.into_iter().map(|(source, _)| source).chain(config.anchors.values().cloned());
        let mut once: Vec<ModelSource> = Vec::new();
        for source in sources {
            if !once.contains(&source) {
                once.push(source);
            }
        }
        let open_frozen = |source: &ModelSource| source.open().with_context(|| format!("model {source}"));
        Ok(Plan {
            policy: config.model_name_or_path.open().context("policy")?,
            reward,
            frozen: once.iter().map(open_frozen).collect::<anyhow::Result<_>>()?,
        })
    }

    /// Reports the memory that the run needs, and fails if that is too much.
    ///
    /// # Errors
    /// As [`memory::check`].
    pub(super) fn check_memory(
        &self,
        config: &PpoConfig,
        prompts: &[TextPrompt],
        context: &StageContext,
    ) -> anyhow::Result<()> {
        let knobs = MemorySettings {
            adapter: trained_adapter(&self.policy[0], &config.lora)?,
            recompute: config.recompute(),
            pass: config.per_device_train_batch_size.min(config.sampling.batch_size),
            slots: (*config.sampling.decode_slots).min(config.sampling.batch_size),
            ..MemorySettings::on(&context.device)
        };
        let savings = [Saving::TRAINING, &[Saving::Slots("decode_slots")]].concat();
        let need = |knobs: &MemorySettings| {
            let mut need = self.models(config, knobs).need();
            self.add_passes(config, prompts, knobs, &mut need);
            need
        };
        memory::check("ppo", &knobs, &savings, &need, context)
    }

    /// The models, in the order in which the run reads them.
    fn models(&self, config: &PpoConfig, knobs: &MemorySettings) -> Roles {
        let (mut roles, policy, lora) = (Roles::new(knobs.dtype), &self.policy[0], knobs.adapter.as_ref());
        let head = match config.critic {
            CriticKind::Separate => Head::LanguageModel,
            CriticKind::Shared => Head::LanguageModelWithValue,
        };
        // A policy that is an adapter is counted first: its base serves all others.
        roles.trained(policy, head, lora);
        roles.frozen(self.reward, Head::Scalar);
        if config.critic == CriticKind::Separate {
            roles.trained(self.reward, Head::Scalar, lora);
        }
        for models in &self.frozen {
            roles.source(models);
        }
        if matches!(config.reference, ReferenceConfig::Ema { .. } | ReferenceConfig::Sync { .. }) {
            roles.moving(&policy.spec.with_head(Head::LanguageModel), lora);
        }
        roles
    }

    /// Adds the largest passes of the run, in the order of an update, with responses of maximum length.
    fn add_passes(&self, config: &PpoConfig, prompts: &[TextPrompt], knobs: &MemorySettings, need: &mut Need) {
        let lora = knobs.adapter.as_ref();
        let (policy, reward) = (self.policy_spec(config), self.reward.spec.with_head(Head::Scalar));
        let (policy, passes) = (Passed::new(&policy, lora), Passes::new(knobs));
        let Largest { reading, longest, scoring, learning } = Largest::of(config, prompts, knobs);
        passes.generate(policy, &reading, knobs.slots, longest);
        passes.forward(Passed::new(&reward, self.reward.adapter().map(|adapter| &adapter.lora)), &scoring);
        passes.forward(policy, &scoring);
        let critic = Passed::new(&reward, lora);
        let critic = (config.critic == CriticKind::Separate).then_some(critic);
        critic.iter().for_each(|critic| passes.forward(*critic, &scoring));
        passes.train_together(policy, critic, knobs, &learning);
        let kept = held(config.sampling.batch_size, longest, config.sampling.response_length, self.frozen.len());
        need.add(part::GENERATION, passes.bytes() + passes.bytes() / HOST_SHARE + kept);
    }

    fn policy_spec(&self, config: &PpoConfig) -> ModelSpec {
        self.policy[0].spec.with_head(match config.critic {
            CriticKind::Separate => Head::LanguageModel,
            CriticKind::Shared => Head::LanguageModelWithValue,
        })
    }
}

/// One byte of so many of the passes is added for the vectors of a pass outside the engine, which the allocator keeps
/// after they are freed; measured with `crates/salsa-rlhf/tests/memory.py`.
const HOST_SHARE: u64 = 16;

/// Bytes of the data of an update: of each response its tokens twice (prompt and sequence), of each of its tokens
/// log-probs, KL, reward, value, advantage, return and two copies on the way, and a log-prob of each frozen model.
fn held(batch: usize, longest: u64, response: usize, frozen: usize) -> u64 {
    let of_response = 2 * 4 * longest + 8 * (8 + frozen as u64) * response as u64;
    (batch as u64).saturating_mul(of_response)
}

/// Sequence lengths of the largest passes, by number of tokens.
#[derive(Default)]
struct Largest {
    /// Prompts prefilled together.
    reading: Vec<u64>,
    /// Length of the longest prompt with its response.
    longest: u64,
    /// Prompts with responses in one pass of frozen models.
    scoring: Vec<u64>,
    /// Prompts with responses in one training pass.
    learning: Vec<u64>,
}

impl Largest {
    /// The largest passes of the run; the seed determines which prompts are in the same pass.
    fn of(config: &PpoConfig, prompts: &[TextPrompt], knobs: &MemorySettings) -> Largest {
        // For longer runs, the longest prompts give an upper limit.
        const LOOKED_AT: u64 = 10_000_000;
        let (updates, batch, new) =
            (config.sampling.updates(), config.sampling.batch_size as u64, config.sampling.response_length);
        let work = batch.saturating_mul(config.num_ppo_epochs as u64).saturating_add(prompts.len() as u64);
        if prompts.is_empty() || updates.saturating_mul(work) > LOOKED_AT {
            let all = prompts.iter().map(|prompt| &prompt.tokens);
            let any = Responses::new(all, new, Order::Shuffled);
            return Largest {
                reading: any.reading(knobs.slots),
                longest: any.longest(),
                scoring: any.scoring(config.sampling.batch_size, rollout::PASS as u64),
                learning: any.learning(knobs.pass),
            };
        }
        let mut largest = Largest::default();
        for update in 0..updates {
            let chosen = order::visit(prompts.len(), config.run.seed, update * batch..(update + 1) * batch);
            let responses = Responses::new(chosen.iter().map(|&at| &prompts[at].tokens), new, Order::Given);
            keep(&mut largest.reading, responses.reading(knobs.slots));
            largest.longest = largest.longest.max(responses.longest());
            keep(&mut largest.scoring, responses.scoring(config.sampling.batch_size, rollout::PASS as u64));
            let length = |&response: &usize| (prompts[chosen[response]].tokens.len() + new) as u64;
            for epoch in 0..config.num_ppo_epochs as u64 {
                for part in order::minibatches(config, chosen.len(), update, epoch) {
                    let passes = part.chunks(knobs.pass.max(1));
                    passes.for_each(|pass| keep(&mut largest.learning, pass.iter().map(length).collect()));
                }
            }
        }
        largest
    }
}

/// Keeps the pass with more tokens.
fn keep(largest: &mut Vec<u64>, lengths: Vec<u64>) {
    if lengths.iter().sum::<u64>() > largest.iter().sum() {
        *largest = lengths;
    }
}
