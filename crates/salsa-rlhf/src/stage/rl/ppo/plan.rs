//! The memory plan of a PPO run: its models before any is read, and what they and the run will take.
use anyhow::Context;
use salsa_engine::{Head, ModelSpec};

use super::config::{CriticKind, PpoConfig};
use crate::{
    checkpoint::Checkpoint,
    stage::{
        StageContext,
        memory::{self, Knobs, Need, Responses, Saving, part, shape},
        models::{frozen::trained_adapter, model_source::ModelSource, roles::Roles},
        rl::reference::ReferenceConfig,
        rollout,
        text::prompts::TextPrompt,
    },
};

/// The checkpoints of a run, opened.
pub(super) struct Plan<'a> {
    policy: Vec<Checkpoint>,
    reward: &'a Checkpoint,
    /// The frozen language models, each once: the ingredients of each.
    frozen: Vec<Vec<Checkpoint>>,
}

impl<'a> Plan<'a> {
    /// Opens what the configuration names, and holds soups' ingredients against each other.
    ///
    /// # Errors
    /// If one is incomplete or no language model, or ingredients do not fit together.
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

    /// Says what memory the run needs, and refuses it if that is too much.
    ///
    /// # Errors
    /// As [`memory::check`].
    pub(super) fn check_memory(
        &self,
        config: &PpoConfig,
        prompts: &[TextPrompt],
        context: &StageContext,
    ) -> anyhow::Result<()> {
        let knobs = Knobs {
            adapter: trained_adapter(&self.policy[0], &config.lora)?,
            recompute: config.recompute(),
            pass: config.per_device_train_batch_size.min(config.batch_size),
            slots: (*config.decode_slots).min(config.batch_size),
            ..Knobs::default()
        };
        let savings = [Saving::TRAINING, &[Saving::Slots("decode_slots")]].concat();
        let need = |knobs: &Knobs| {
            let mut need = self.models(config, knobs).need();
            self.add_passes(config, prompts, knobs, &mut need);
            need
        };
        memory::check("ppo", &knobs, &savings, &need, context)
    }

    /// The models, in the order in which the run reads them.
    fn models(&self, config: &PpoConfig, knobs: &Knobs) -> Roles {
        let (mut roles, policy, lora) = (Roles::new(knobs.dtype), &self.policy[0], knobs.adapter.as_ref());
        let head = match config.critic {
            CriticKind::Separate => Head::LanguageModel,
            CriticKind::Shared => Head::LanguageModelWithValue,
        };
        // A policy that is an adapter comes first: its base serves all others.
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

    /// Generation and passes, responses being as long as they may.
    fn add_passes(&self, config: &PpoConfig, prompts: &[TextPrompt], knobs: &Knobs, need: &mut Need) {
        let spec: &ModelSpec = &self.policy[0].spec;
        let responses = Responses::new(prompts.iter().map(|prompt| &prompt.tokens), config.response_length);
        need.add(part::GENERATION, responses.generation(spec, knobs.dtype, knobs.slots));
        let episodes = (config.updates() as usize).saturating_mul(config.batch_size);
        let learning = responses.learning(episodes.saturating_mul(config.num_ppo_epochs), knobs.pass);
        let scoring = responses.scoring(episodes, config.batch_size, rollout::PASS as u64).beside(&learning);
        let reading = responses.reading(knobs.slots).beside(&learning).beside(&scoring);
        // Policy and critic keep a pass at the same time, but work one after the other.
        let critic = match config.critic {
            CriticKind::Separate => shape::kept_per_token(&self.reward.spec, knobs.recompute),
            CriticKind::Shared => 0,
        };
        need.add(part::ACTIVATIONS, shape::training_pass(spec, knobs, learning.tokens()));
        need.add(part::ACTIVATIONS, learning.tokens() * critic);
        need.add(part::ACTIVATIONS, shape::forward_pass(spec, scoring.tokens() + reading.tokens()));
    }
}
