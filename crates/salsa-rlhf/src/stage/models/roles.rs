//! Memory of all models of a run: shared bases are counted once.
use salsa_engine::{Dtype, Head, LoraSpec, ModelSpec};

use crate::{
    checkpoint::Checkpoint,
    stage::{
        memory::{Need, Sharing, part, shape},
        models::{adapters, bases::PlannedBases},
    },
};

/// Sums the memory needs of a run's models, in the order in which the run opens them.
#[derive(Clone)]
pub(crate) struct Roles {
    dtype: Dtype,
    sharing: Sharing,
    bases: PlannedBases,
    need: Need,
}

impl Roles {
    /// An empty sum.
    pub(crate) fn new(dtype: Dtype) -> Roles {
        Roles { dtype, sharing: Sharing::ALONE, bases: PlannedBases::default(), need: Need::default() }
    }

    /// The sum where training is shared like this.
    pub(crate) fn shared(self, sharing: Sharing) -> Roles {
        Roles { sharing, ..self }
    }

    /// Adds a model for inference.
    pub(crate) fn frozen(&mut self, checkpoint: &Checkpoint, head: Head) {
        let base = self.bases.frozen(checkpoint, head);
        self.add_base(base, checkpoint.embedding_is_bf16());
        if let Some(adapter) = checkpoint.adapter() {
            self.add_adapter(&checkpoint.spec.with_head(head), &adapter.lora);
        }
    }

    /// Adds the weighted mean of models: for adapters on one base an adapter, otherwise a whole model.
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

    /// Adds models held one at a time: only the largest counts.
    pub(crate) fn in_turn<T>(&mut self, models: &[T], add: impl Fn(&mut Roles, &T)) {
        let held = self.need.total();
        let more = |model: &T| {
            let mut with = self.clone();
            add(&mut with, model);
            with.need.total() - held
        };
        self.need.add(part::FROZEN, models.iter().map(more).max().unwrap_or(0));
    }

    /// Adds a model from any source: a checkpoint, or the weighted mean of several.
    pub(crate) fn source(&mut self, models: &[Checkpoint]) {
        match models {
            [model] => self.frozen(model, Head::LanguageModel),
            ingredients => self.soup(ingredients),
        }
    }

    /// Adds a model whose weights are replaced repeatedly.
    pub(crate) fn changing(&mut self, spec: &ModelSpec) {
        self.need.add(part::FROZEN, shape::weights(spec, self.dtype));
    }

    /// Adds the flat weights of `models` models, from which others are made.
    pub(crate) fn ingredients(&mut self, spec: &ModelSpec, models: usize) {
        self.need.add(part::INGREDIENTS, shape::flat(spec, models) + shape::read_and_kept(spec));
    }

    /// Adds a trained model: an adapter of the given shape, or all weights for `None`.
    pub(crate) fn trained(&mut self, checkpoint: &Checkpoint, head: Head, lora: Option<&LoraSpec>) {
        let spec = checkpoint.spec.with_head(head);
        let bytes = match lora {
            None => shape::trained(&spec, self.dtype, self.sharing) + shape::read_and_kept(&spec),
            Some(lora) => {
                let base = self.bases.adapted(checkpoint, head);
                self.add_base(base, checkpoint.embedding_is_bf16());
                shape::trained_adapter(&spec, lora, self.dtype, self.sharing)
            }
        };
        self.need.add(part::TRAINED, bytes);
    }

    /// Adds a reference that follows the policy: f32 and packed weights; for an adapter, those of its factors.
    pub(crate) fn moving(&mut self, spec: &ModelSpec, lora: Option<&LoraSpec>) {
        let (numbers, packed) = match lora {
            None => (spec.parameters(), shape::weights(spec, self.dtype)),
            Some(lora) => (lora.parameters(spec), shape::adapter(spec, lora, self.dtype)),
        };
        self.need.add(part::FROZEN, numbers as u64 * shape::F32 + packed);
    }

    /// Returns the sum.
    pub(crate) fn need(self) -> Need {
        self.need
    }

    fn add_base(&mut self, base: Option<ModelSpec>, file_is_bf16: bool) {
        self.need.add(part::FROZEN, base.map_or(0, |spec| shape::stored(&spec, self.dtype, file_is_bf16)));
    }

    fn add_adapter(&mut self, spec: &ModelSpec, lora: &LoraSpec) {
        self.need.add(part::FROZEN, shape::frozen_adapter(spec, lora, self.dtype));
    }
}
