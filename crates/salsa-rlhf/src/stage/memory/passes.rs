//! Memory of passes and generation: on the CPU by running them without numbers, on a GPU from the models' shapes.
use std::{cell::Cell, sync::Arc};

use salsa_engine::{
    Batch, Head, LoraSpec, ModelSpec, OutputGradient, Planned, Prompt, Query, Recompute, Sampling,
    TrainableTransformer, Transformer,
};

use super::{MemorySettings, Place, shape};

/// The passes of a run, which reuse each other's memory.
pub(crate) struct Passes {
    knobs: MemorySettings,
    cpu: Planned,
    /// Bytes of the largest pass on a GPU; `None` on the CPU.
    gpu: Option<Cell<u64>>,
}

/// The model of a pass.
#[derive(Clone, Copy)]
pub(crate) struct Passed<'a> {
    spec: &'a ModelSpec,
    lora: Option<&'a LoraSpec>,
    prefixes: Prefixes,
}

/// What adjacent sequences of a pass have in common.
#[derive(Clone, Copy)]
enum Prefixes {
    /// Nothing.
    Apart,
    /// Their first token, computed once: the most memory that [`Batch::sharing_prefixes`] takes beside the rows.
    Shared,
}

impl<'a> Passed<'a> {
    /// A model of this shape, with an adapter of the shape `lora` if given.
    pub(crate) fn new(spec: &'a ModelSpec, lora: Option<&'a LoraSpec>) -> Passed<'a> {
        Passed { spec, lora, prefixes: Prefixes::Apart }
    }

    /// The same model in passes that compute common beginnings once.
    pub(crate) fn sharing(self) -> Passed<'a> {
        Passed { prefixes: Prefixes::Shared, ..self }
    }

    /// Batch and query for sequences of these lengths: all log-probs and, at a scalar head, the last value of each.
    fn asked(self, lengths: &[u64]) -> (Batch, Query) {
        let (mut batch, mut query) = (Batch::sharing_prefixes(), Query::default());
        for (index, &length) in lengths.iter().enumerate().filter(|(_, length)| **length > 0) {
            let mut tokens = tokens(index, length, self.spec);
            if matches!(self.prefixes, Prefixes::Shared) {
                tokens[0] = 0;
            }
            let rows = batch.push(&tokens);
            if self.spec.head.has_scalar() {
                query.value_rows.push(rows.end as u32 - 1);
            }
            if self.spec.head.has_language_model() {
                query.push_logprobs(rows, &tokens, 1);
            }
        }
        (batch, query)
    }

    /// The same with the values at all positions.
    fn asked_for_values(self, lengths: &[u64]) -> (Batch, Query) {
        let (batch, mut query) = self.asked(lengths);
        if self.spec.head.has_scalar() {
            query.value_rows = (0..batch.rows() as u32).collect();
        }
        (batch, query)
    }
}

/// `length` equal tokens; adjacent sequences differ.
fn tokens(index: usize, length: u64, spec: &ModelSpec) -> Vec<u32> {
    vec![(index % spec.vocab_size.min(2)) as u32; length as usize]
}

impl Passes {
    /// An empty set.
    pub(crate) fn new(knobs: &MemorySettings) -> Passes {
        let gpu = (knobs.place == Place::Gpu).then(|| Cell::new(0));
        Passes { knobs: knobs.clone(), cpu: Planned::new(knobs.dtype), gpu }
    }

    /// Bytes of the largest pass.
    pub(crate) fn bytes(&self) -> u64 {
        self.gpu.as_ref().map_or_else(|| self.cpu.peak(), Cell::get)
    }

    /// Returns free arrays to the system, as [`salsa_engine::release_memory`] does between two pieces of work.
    pub(crate) fn release(&self) {
        self.cpu.trim();
    }

    /// Adds a forward pass over sequences of these lengths, which may have beginnings in common.
    pub(crate) fn forward(&self, model: Passed<'_>, lengths: &[u64]) {
        if self.on_gpu(|| shape::forward_pass(model.spec, &self.knobs, lengths.iter().sum())) {
            return;
        }
        for model in [model, model.sharing()] {
            let (batch, query) = model.asked_for_values(lengths);
            if batch.rows() > 0 {
                Transformer::planned(model.spec, model.lora, &self.cpu).forward(&batch, &query);
            }
        }
    }

    /// Adds a forward pass over sequences of these lengths, and one that also ranks the tokens at every position.
    pub(crate) fn rank(&self, model: Passed<'_>, lengths: &[u64]) {
        self.forward(model, lengths);
        let (batch, query) = model.asked(lengths);
        if self.gpu.is_none() && batch.rows() > 0 {
            Transformer::planned(model.spec, model.lora, &self.cpu).rank(&batch, &query, 1);
        }
    }

    /// Adds a training pass over sequences of these lengths; `reference` is a model that the loss runs on them too.
    pub(crate) fn train(
        &self,
        model: Passed<'_>,
        reference: Option<Passed<'_>>,
        knobs: &MemorySettings,
        lengths: &[u64],
    ) {
        let tokens = lengths.iter().sum();
        let beside = || reference.map_or(0, |model| shape::forward_pass(model.spec, knobs, tokens));
        if self.on_gpu(|| shape::training_pass(model.spec, knobs, tokens) + beside()) {
            return;
        }
        let (batch, query) = model.asked(lengths);
        if batch.rows() == 0 {
            return;
        }
        let mut trained = self.trained(model, knobs.recompute);
        let (output, tape) = trained.forward_train(&batch, &query);
        if let Some(reference) = reference {
            Transformer::planned(reference.spec, reference.lora, &self.cpu).forward(&batch, &query);
        }
        trained.backward(tape, &OutputGradient { d_logprobs: &output.logprobs, d_values: &output.values });
    }

    /// Adds a training pass of a policy and of its critic, if that is separate: both store their activations at the
    /// same time.
    pub(crate) fn train_together(
        &self,
        policy: Passed<'_>,
        critic: Option<Passed<'_>>,
        knobs: &MemorySettings,
        lengths: &[u64],
    ) {
        let tokens: u64 = lengths.iter().sum();
        let kept = || critic.map_or(0, |critic| tokens * shape::kept_per_token(critic.spec, knobs));
        if self.on_gpu(|| shape::training_pass(policy.spec, knobs, tokens) + kept()) || tokens == 0 {
            return;
        }
        let trained = |model: Passed<'_>| {
            let (batch, query) = model.asked_for_values(lengths);
            let trained = self.trained(model, knobs.recompute);
            let (output, tape) = trained.forward_train(&batch, &query);
            (trained, output, tape)
        };
        let all: Vec<_> = [Some(policy), critic].into_iter().flatten().map(trained).collect();
        for (mut model, output, tape) in all {
            model.backward(tape, &OutputGradient { d_logprobs: &output.logprobs, d_values: &output.values });
        }
    }

    /// Adds generation for prompts of these lengths, all prefilled at once, in `slots` slots; `longest` is the maximum
    /// length of a prompt with its response.
    pub(crate) fn generate(&self, model: Passed<'_>, prompts: &[u64], slots: usize, longest: u64) {
        let spec = &model.spec.with_head(Head::LanguageModel);
        let generated = || shape::generation(spec, self.knobs.dtype, slots as u64, longest);
        if self.on_gpu(|| generated() + shape::forward_pass(spec, &self.knobs, prompts.iter().sum())) {
            return;
        }
        let (model, longest) =
            (Transformer::planned(spec, model.lora, &self.cpu), longest.min(spec.max_positions as u64));
        let mut decoding = model.decoding(slots.max(1), longest as usize);
        let sampling = Arc::new(Sampling { max_new_tokens: 2, ..Sampling::default() });
        for (id, &length) in prompts.iter().enumerate().filter(|(_, length)| **length > 0 && **length < longest) {
            decoding.submit(Prompt { tokens: tokens(id, length, spec), id: id as u64, sample: 0 }, &sampling);
        }
        decoding.step();
    }

    fn trained(&self, model: Passed<'_>, recompute: Recompute) -> TrainableTransformer<Planned> {
        TrainableTransformer::planned(model.spec, model.lora, &self.cpu, recompute)
    }

    /// On a GPU, records the bytes of a pass. Returns whether the device is a GPU.
    fn on_gpu(&self, bytes: impl FnOnce() -> u64) -> bool {
        if let Some(most) = &self.gpu {
            most.set(most.get().max(bytes()));
        }
        self.gpu.is_some()
    }
}
