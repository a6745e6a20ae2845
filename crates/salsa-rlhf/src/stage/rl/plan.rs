//! The memory plan of a run, made from its checkpoints before any weight is read.
use anyhow::Context;
use salsa_engine::{Head, ModelSpec};

use super::{
    environment::{PromptUse, Setup},
    ppo::config::CriticKind,
    reference::ReferenceConfig,
};
use crate::{
    checkpoint::Checkpoint,
    stage::{
        StageContext,
        memory::{self, MemorySettings, Need, Order, Passed, Passes, Responses, Saving, Sharing, part},
        models::{frozen::trained_adapter, model_source::ModelSource, roles::Roles},
        rewards::FoundRewards,
        rollout,
        text::prompts::TextPrompt,
    },
};

/// The opened checkpoints of a run.
pub(super) struct Plan<'a> {
    policy: Vec<Checkpoint>,
    rewards: &'a FoundRewards,
    /// What a separate critic starts from.
    critic: &'a Checkpoint,
    /// The frozen language models without repetition, each as a list of ingredients.
    frozen: Vec<Vec<Checkpoint>>,
}

impl<'a> Plan<'a> {
    /// Opens every configured checkpoint and checks that soup ingredients are compatible.
    ///
    /// # Errors
    /// If one is incomplete or no language model, or ingredients are incompatible.
    pub(super) fn open(
        setup: &Setup<'_>,
        rewards: &'a FoundRewards,
        critic: &'a Checkpoint,
    ) -> anyhow::Result<Plan<'a>> {
        let reference = setup.reference.frozen(setup.model).context("reference")?;
        let sources = reference.into_iter().map(|(source, _)| source).chain(setup.anchors.values().cloned());
        let mut once: Vec<ModelSource> = Vec::new();
        for source in sources {
            if !once.contains(&source) {
                once.push(source);
            }
        }
        let open_frozen = |source: &ModelSource| source.open().with_context(|| format!("model {source}"));
        Ok(Plan {
            policy: setup.model.open().context("policy")?,
            rewards,
            critic,
            frozen: once.iter().map(open_frozen).collect::<anyhow::Result<_>>()?,
        })
    }

    /// Reports the memory that the run needs, and fails if that is too much.
    ///
    /// # Errors
    /// As [`memory::check`].
    pub(super) fn check_memory(
        &self,
        setup: &Setup<'_>,
        prompts: &[TextPrompt],
        context: &StageContext,
    ) -> anyhow::Result<()> {
        let knobs = MemorySettings {
            adapter: trained_adapter(&self.policy[0], setup.lora)?,
            recompute: setup.recompute,
            pass: setup.pass.min(setup.order.count()),
            slots: (*setup.sampling.decode_slots).min(setup.sampling.batch_size),
            sharing: Sharing::of(&*context.ranks, setup.gradient_units),
            ..MemorySettings::on(&context.device)
        };
        let savings = [Saving::TRAINING, &[Saving::Slots("decode_slots")]].concat();
        let need = |knobs: &MemorySettings| {
            let mut need = self.models(setup, knobs).need();
            self.add_passes(setup, prompts, knobs, &mut need);
            need
        };
        memory::check(setup.name, &knobs, &savings, &need, context)
    }

    /// The models, in the order in which the run reads them.
    fn models(&self, setup: &Setup<'_>, knobs: &MemorySettings) -> Roles {
        let (mut roles, policy, lora) =
            (Roles::new(knobs.dtype).shared(knobs.sharing), &self.policy[0], knobs.adapter.as_ref());
        // A policy that is an adapter is counted first: its base serves all others.
        roles.trained(policy, policy_head(setup), lora);
        self.rewards.models().for_each(|model| roles.frozen(model, Head::Scalar));
        if setup.critic == Some(CriticKind::Separate) {
            roles.trained(self.critic, Head::Scalar, lora);
        }
        for models in &self.frozen {
            roles.source(models);
        }
        if matches!(setup.reference, ReferenceConfig::Ema { .. } | ReferenceConfig::Sync { .. }) {
            roles.moving(&policy.spec.with_head(Head::LanguageModel), lora);
        }
        roles
    }

    /// Adds the largest passes of the run, in the order of an update, with responses of maximum length.
    fn add_passes(&self, setup: &Setup<'_>, prompts: &[TextPrompt], knobs: &MemorySettings, need: &mut Need) {
        let lora = knobs.adapter.as_ref();
        let policy: ModelSpec = self.policy[0].spec.with_head(policy_head(setup));
        let critic = self.critic.spec.with_head(Head::Scalar);
        let (policy, passes) = (Passed::new(&policy, lora), Passes::new(knobs));
        let Largest { reading, longest, scoring, learning } = Largest::of(setup, prompts, knobs);
        passes.generate(policy, &reading, knobs.slots, longest);
        for model in self.rewards.models() {
            let adapter = model.adapter().map(|adapter| &adapter.lora);
            passes.forward(Passed::new(&model.spec.with_head(Head::Scalar), adapter), &scoring);
        }
        passes.forward(policy, &scoring);
        let critic = Passed::new(&critic, lora);
        let critic = (setup.critic == Some(CriticKind::Separate)).then_some(critic);
        critic.iter().for_each(|critic| passes.forward(*critic, &scoring));
        passes.train_together(policy, critic, knobs, &learning);
        if setup.order.group > 1 {
            passes.train_together(policy.sharing(), critic.map(Passed::sharing), knobs, &learning);
        }
        let kept = held(setup.sampling.batch_size, longest, setup.sampling.response_length, self.frozen.len());
        need.add(part::GENERATION, passes.bytes() + passes.bytes() / HOST_SHARE + kept);
    }
}

/// The head of the policy: a shared critic is a second one.
fn policy_head(setup: &Setup<'_>) -> Head {
    match setup.critic {
        Some(CriticKind::Shared) => Head::LanguageModelWithValue,
        Some(CriticKind::Separate) | None => Head::LanguageModel,
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
    fn of(setup: &Setup<'_>, prompts: &[TextPrompt], knobs: &MemorySettings) -> Largest {
        // For longer runs, the longest prompts give an upper limit.
        const LOOKED_AT: u64 = 10_000_000;
        let (updates, batch, new) =
            (setup.sampling.updates(), setup.sampling.batch_size, setup.sampling.response_length);
        let work = (batch as u64).saturating_mul(setup.order.epochs).saturating_add(prompts.len() as u64);
        let in_order = setup.prompts == PromptUse::InOrder;
        if !in_order || prompts.is_empty() || updates.saturating_mul(work) > LOOKED_AT {
            let all = prompts.iter().map(|prompt| &prompt.tokens);
            let any = Responses::new(all, new, Order::Shuffled);
            return Largest {
                reading: any.reading(knobs.slots),
                longest: any.longest(),
                scoring: any.scoring(batch, rollout::PASS as u64),
                learning: any
                    .learning(knobs.pass)
                    .into_iter()
                    .flat_map(|length| setup.order.prompts_of(0).map(move |_| length))
                    .collect(),
            };
        }
        let mut largest = Largest::default();
        for update in 0..updates {
            let chosen = setup.order.prompts(prompts.len(), update);
            let responses = Responses::new(chosen.iter().map(|&at| &prompts[at].tokens), new, Order::Given);
            keep(&mut largest.reading, responses.reading(knobs.slots));
            largest.longest = largest.longest.max(responses.longest());
            keep(&mut largest.scoring, responses.scoring(batch, rollout::PASS as u64));
            let length = |response: usize| (prompts[chosen[response]].tokens.len() + new) as u64;
            let lengths = |&at: &usize| setup.order.prompts_of(at).map(length);
            for epoch in 0..setup.order.epochs {
                for part in setup.order.minibatches(update, epoch) {
                    let passes = part.chunks(knobs.pass.max(1));
                    passes.for_each(|pass| keep(&mut largest.learning, pass.iter().flat_map(lengths).collect()));
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
