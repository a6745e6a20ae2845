//! The models of a run together: bases that several stand on are counted once.
use salsa_engine::{Dtype, Head, LoraSpec, ModelSpec};

use crate::{
    checkpoint::Checkpoint,
    stage::{
        memory::{Need, part, shape},
        models::{adapters, bases::PlannedBases},
    },
};

/// Adds up what the models of a run need, in the order in which the run opens them.
#[derive(Clone)]
pub(crate) struct Roles {
    dtype: Dtype,
    bases: PlannedBases,
    need: Need,
}

impl Roles {
    /// None yet.
    pub(crate) fn new(dtype: Dtype) -> Roles {
        Roles { dtype, bases: PlannedBases::default(), need: Need::default() }
    }

    /// A model for use.
    pub(crate) fn frozen(&mut self, checkpoint: &Checkpoint, head: Head) {
        let base = self.bases.frozen(checkpoint, head);
        self.add_base(base, checkpoint.embedding_is_bf16());
        if let Some(adapter) = checkpoint.adapter() {
            self.add_adapter(&checkpoint.spec.with_head(head), &adapter.lora);
        }
    }

    /// The weighted mean of models: of adapters on one base an adapter, else a whole model.
    pub(crate) fn soup(&mut self, ingredients: &[Checkpoint]) {
        let Some(first) = ingredients.first() else { return };
        if !adapters::share_a_base(ingredients) {
            self.add_base(Some(first.spec.with_head(Head::LanguageModel)), false);
            return;
        }
        let base = self.bases.adapted(first, first.spec.head);
        self.add_base(base, first.embedding_is_bf16());
        // Ranks add up.
        for adapter in ingredients.iter().filter_map(Checkpoint::adapter) {
            self.add_adapter(&first.spec, &adapter.lora);
        }
    }

    /// One model after the other, each gone before the next comes: the largest one counts.
    pub(crate) fn in_turn<T>(&mut self, models: &[T], add: impl Fn(&mut Roles, &T)) {
        let held = self.need.total();
        let more = |model: &T| {
            let mut with = self.clone();
            add(&mut with, model);
            with.need.total() - held
        };
        self.need.add(part::FROZEN, models.iter().map(more).max().unwrap_or(0));
    }

    /// A model of any source: a checkpoint, or the weighted mean of several.
    pub(crate) fn source(&mut self, models: &[Checkpoint]) {
        match models {
            [model] => self.frozen(model, Head::LanguageModel),
            ingredients => self.soup(ingredients),
        }
    }

    /// A model whose weights are replaced by others, again and again.
    pub(crate) fn changing(&mut self, spec: &ModelSpec) {
        self.need.add(part::FROZEN, shape::weights(spec, self.dtype));
    }

    /// Flat weights of so many models, from which others are made.
    pub(crate) fn ingredients(&mut self, spec: &ModelSpec, models: usize) {
        self.need.add(part::INGREDIENTS, shape::flat(spec, models) + shape::read_and_kept(spec));
    }

    /// A model that is trained: the adapter of that shape, or without one all weights.
    pub(crate) fn trained(&mut self, checkpoint: &Checkpoint, head: Head, lora: Option<&LoraSpec>) {
        let spec = checkpoint.spec.with_head(head);
        let bytes = match lora {
            None => shape::trained(&spec, self.dtype) + shape::read_and_kept(&spec),
            Some(lora) => {
                let base = self.bases.adapted(checkpoint, head);
                self.add_base(base, checkpoint.embedding_is_bf16());
                shape::trained_adapter(&spec, lora, self.dtype)
            }
        };
        self.need.add(part::TRAINED, bytes);
    }

    /// A reference that follows the policy: its f32 weights, and the packed ones; of an adapter that of its factors.
    pub(crate) fn moving(&mut self, spec: &ModelSpec, lora: Option<&LoraSpec>) {
        let (numbers, packed) = match lora {
            None => (spec.parameters(), shape::weights(spec, self.dtype)),
            Some(lora) => (lora.parameters(spec), shape::adapter(spec, lora, self.dtype)),
        };
        self.need.add(part::FROZEN, numbers as u64 * shape::F32 + packed);
    }

    /// The sum.
    pub(crate) fn need(self) -> Need {
        self.need
    }

    fn add_base(&mut self, base: Option<ModelSpec>, file_is_bf16: bool) {
        self.need.add(part::FROZEN, base.map_or(0, |spec| shape::stored(&spec, self.dtype, file_is_bf16)));
    }

    fn add_adapter(&mut self, spec: &ModelSpec, lora: &LoraSpec) {
        self.need.add(part::FROZEN, shape::adapter(spec, lora, self.dtype));
    }
}
