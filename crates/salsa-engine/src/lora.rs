//! Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) as data: the adapted matrices and the layout of the factors.
//!
//! ```text
//! y = x W^T + scale * (x A^T) B^T,   A [rank, in],  B [out, rank],   scale = alpha / rank, or alpha / sqrt(rank)
//! ```

use crate::error::ModelError;
use crate::random::Random;
use crate::spec::{ModelSpec, TensorView, Tensors};
use std::collections::BTreeSet;

/// A matrix of a block that can have an adapter, in the order of adapters in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
    /// The output of attention.
    Output,
    /// The gate of the MLP.
    Gate,
    /// The second MLP projection, which is multiplied by the gate.
    Up,
    /// The output of the MLP.
    Down,
    /// Queries, keys and values of a model where they are one matrix (Phi-3).
    FusedQkv,
    /// Gate and second projection of a model where they are one matrix (Phi-3).
    FusedGateUp,
}

/// The adapted matrices, and the rank and scale of the adapters. PEFT's `LoraConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraSpec {
    /// Rows of A and columns of B. PEFT: `r`.
    pub rank: usize,
    /// The numerator of the scale. PEFT: `lora_alpha`.
    pub alpha: f64,
    /// Divide by the root of the rank instead of the rank (Kalajdzievski 2023). PEFT: `use_rslora`.
    pub rslora: bool,
    /// The matrices, in every block.
    pub targets: BTreeSet<Target>,
}

impl Target {
    /// All of them: PEFT's `all-linear`. A model has some of them, see [`Target::of`].
    pub const ALL: [Target; 9] = [
        Target::Query,
        Target::Key,
        Target::Value,
        Target::Output,
        Target::Gate,
        Target::Up,
        Target::Down,
        Target::FusedQkv,
        Target::FusedGateUp,
    ];

    /// The matrices of a model's blocks.
    pub fn of(spec: &ModelSpec) -> impl Iterator<Item = Target> {
        Group::ALL.into_iter().flat_map(|group| group.members(spec).iter().copied())
    }

    /// PEFT's name, such as `q_proj`.
    pub fn name(self) -> &'static str {
        self.path().rsplit('.').next().expect("a split has at least one part")
    }

    /// The target of this name.
    pub fn of_name(name: &str) -> Option<Target> {
        Target::ALL.into_iter().find(|target| target.name() == name)
    }

    /// The name inside a block, such as `self_attn.q_proj`.
    pub fn path(self) -> &'static str {
        match self {
            Target::Query => "self_attn.q_proj",
            Target::Key => "self_attn.k_proj",
            Target::Value => "self_attn.v_proj",
            Target::Output => "self_attn.o_proj",
            Target::Gate => "mlp.gate_proj",
            Target::Up => "mlp.up_proj",
            Target::Down => "mlp.down_proj",
            Target::FusedQkv => "self_attn.qkv_proj",
            Target::FusedGateUp => "mlp.gate_up_proj",
        }
    }

    /// Rows and columns of the matrix: `[out, in]`.
    pub fn shape(self, spec: &ModelSpec) -> [usize; 2] {
        let (hidden, wide) = (spec.hidden_size, spec.intermediate_size);
        let (query, key) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        match self {
            Target::Query => [query, hidden],
            Target::Key | Target::Value => [key, hidden],
            Target::Output => [hidden, query],
            Target::Gate | Target::Up => [wide, hidden],
            Target::Down => [hidden, wide],
            Target::FusedQkv => [query + 2 * key, hidden],
            Target::FusedGateUp => [2 * wide, hidden],
        }
    }
}

/// Matrices of a block that are computed as one product because they read the same input, in forward order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    Qkv,
    Output,
    GateUp,
    Down,
}

impl Group {
    pub(crate) const ALL: [Group; 4] = [Group::Qkv, Group::Output, Group::GateUp, Group::Down];

    /// The members, in the order of their columns in the product.
    pub(crate) fn members(self, spec: &ModelSpec) -> &'static [Target] {
        match self {
            Group::Qkv if spec.options.fused_projections => &[Target::FusedQkv],
            Group::Qkv => &[Target::Query, Target::Key, Target::Value],
            Group::Output => &[Target::Output],
            Group::GateUp if spec.options.fused_projections => &[Target::FusedGateUp],
            Group::GateUp => &[Target::Gate, Target::Up],
            Group::Down => &[Target::Down],
        }
    }

    /// Rows and columns of the joint matrix.
    pub(crate) fn shape(self, spec: &ModelSpec) -> [usize; 2] {
        let parts = self.members(spec).iter().map(|target| target.shape(spec));
        parts.fold([0, 0], |[sum, _], [out, input]| [sum + out, input])
    }
}

impl Default for LoraSpec {
    /// TRL's values: rank 16, alpha 32; on all matrices, as in "LoRA Without Regret" (Schulman et al. 2025).
    fn default() -> LoraSpec {
        LoraSpec { rank: 16, alpha: 32.0, rslora: false, targets: Target::ALL.into() }
    }
}

impl LoraSpec {
    /// The factor of the low-rank product.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }

    /// The factors in the order of the flat buffer, without gaps, named as in a block of [`ModelSpec::tensors`] with
    /// `lora_A.weight` or `lora_B.weight` at the end; last, the scalar head of `spec`, if it has one. The A's of
    /// matrices that are one product are adjacent, and so form one matrix.
    pub fn tensors(&self, spec: &ModelSpec) -> Vec<TensorView> {
        let mut list = Tensors::default();
        for layer in 0..spec.layers {
            for group in Group::ALL {
                let members = || group.members(spec).iter().filter(|target| self.targets.contains(target));
                for target in members() {
                    let name = format!("model.layers.{layer}.{}.lora_A.weight", target.path());
                    list.add(&name, &[self.rank, target.shape(spec)[1]]);
                }
                for target in members() {
                    let name = format!("model.layers.{layer}.{}.lora_B.weight", target.path());
                    list.add(&name, &[target.shape(spec)[0], self.rank]);
                }
            }
        }
        if spec.head.has_scalar() {
            list.add("score.weight", &[1, spec.hidden_size]);
        }
        list.views
    }

    /// The number of trained parameters.
    pub fn parameters(&self, spec: &ModelSpec) -> usize {
        self.tensors(spec).last().map_or(0, |tensor| tensor.range.end)
    }

    /// Initial factors as in PEFT: A uniform in `+-1 / sqrt(in)` and B zero, so that the adapter has no effect yet; a
    /// scalar head as in [`ModelSpec::init`]. Each tensor has its own random stream.
    pub fn init(&self, spec: &ModelSpec, seed: u64) -> Vec<f32> {
        let mut weights = vec![0f32; self.parameters(spec)];
        for (index, tensor) in self.tensors(spec).iter().enumerate() {
            let (out, mut random) = (&mut weights[tensor.range.clone()], Random::new(seed, STREAM + index as u64));
            if tensor.name.ends_with("lora_A.weight") {
                let bound = 1.0 / (tensor.shape[1] as f64).sqrt();
                out.iter_mut().for_each(|w| *w = (bound * (2.0 * random.uniform() - 1.0)) as f32);
            } else if !tensor.name.ends_with("lora_B.weight") {
                spec.init_tensor(tensor, out, &mut random);
            }
        }
        weights
    }

    /// The targets that a model has.
    pub fn targets_in(&self, spec: &ModelSpec) -> Vec<Target> {
        Target::of(spec).filter(|target| self.targets.contains(target)).collect()
    }

    /// As [`LoraSpec::validate`]; also checks that the model has the targets. All targets mean all that it has.
    ///
    /// # Errors
    ///
    /// Names the invalid value.
    pub fn validate_for(&self, spec: &ModelSpec) -> Result<(), ModelError> {
        self.validate()?;
        let missing = self.targets.iter().find(|target| !Target::of(spec).any(|own| own == **target));
        let Some(missing) = missing.filter(|_| !Target::of(spec).all(|target| self.targets.contains(&target))) else {
            return Ok(());
        };
        let known = Target::of(spec).map(Target::name).collect::<Vec<_>>().join(", ");
        Err(ModelError::Spec(format!("the model has no {} to adapt; it has {known}", missing.name())))
    }

    /// Checks that the values are valid.
    ///
    /// # Errors
    ///
    /// Names the invalid value.
    pub fn validate(&self) -> Result<(), ModelError> {
        let fail = |message: String| Err(ModelError::Spec(message));
        if self.rank == 0 {
            return fail("the rank of an adapter is 0; it must be at least 1".into());
        }
        if self.targets.is_empty() {
            return fail("an adapter has no target; name at least one, such as q_proj".into());
        }
        if !self.scale().is_finite() {
            return fail(format!("alpha {} of an adapter is not a number", self.alpha));
        }
        Ok(())
    }
}

/// Random streams of adapters ("LORA" in ASCII, then a counter); distinct from those of base weights.
const STREAM: u64 = 0x4c4f_5241_0000_0000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Head;
    use crate::tiny;

    #[test]
    fn the_scale_is_that_of_the_pencil() {
        let spec = LoraSpec { rank: 16, alpha: 8.0, ..LoraSpec::default() };
        assert_eq!(spec.scale(), 0.5);
        assert_eq!(LoraSpec { rslora: true, ..spec }.scale(), 2.0);
    }

    #[test]
    fn factors_of_one_product_are_neighbours_and_the_count_is_that_of_the_pencil() {
        // tiny: hidden 8, wide 12, 4 heads and 2 key heads of 4.
        let lora =
            LoraSpec { rank: 3, targets: [Target::Query, Target::Value, Target::Down].into(), ..LoraSpec::default() };
        let tensors = lora.tensors(&tiny());
        let names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).take(6).collect();
        assert_eq!(
            names,
            [
                "model.layers.0.self_attn.q_proj.lora_A.weight",
                "model.layers.0.self_attn.v_proj.lora_A.weight",
                "model.layers.0.self_attn.q_proj.lora_B.weight",
                "model.layers.0.self_attn.v_proj.lora_B.weight",
                "model.layers.0.mlp.down_proj.lora_A.weight",
                "model.layers.0.mlp.down_proj.lora_B.weight",
            ]
        );
        let layer = 3 * 8 + 3 * 8 + 16 * 3 + 8 * 3 + 3 * 12 + 8 * 3;
        assert_eq!(lora.parameters(&tiny()), 2 * layer);
        assert_eq!(lora.parameters(&tiny().with_head(Head::Scalar)), 2 * layer + 8);
    }

    #[test]
    fn fresh_factors_are_bounded_spread_and_without_effect() {
        let (lora, spec) = (LoraSpec::default(), tiny().with_head(Head::Scalar));
        let weights = lora.init(&spec, 3);
        for tensor in lora.tensors(&spec) {
            let part = &weights[tensor.range.clone()];
            let largest = part.iter().fold(0f32, |m, w| m.max(w.abs()));
            if tensor.name.ends_with("lora_B.weight") {
                assert_eq!(largest, 0.0);
            } else if tensor.name.ends_with("lora_A.weight") {
                let bound = 1.0 / (tensor.shape[1] as f32).sqrt();
                assert!(largest <= bound && largest > 0.9 * bound, "{}: {largest}", tensor.name);
            } else {
                assert!(largest > 0.0);
            }
        }
        assert_eq!(weights, lora.init(&spec, 3));
        assert_ne!(weights, lora.init(&spec, 4));
    }

    #[test]
    fn names_are_those_of_peft() {
        let names: Vec<&str> = Target::ALL.iter().map(|target| target.name()).collect();
        assert_eq!(names[..7], ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]);
        assert_eq!(names[7..], ["qkv_proj", "gate_up_proj"]);
        assert!(Target::ALL.iter().all(|target| Target::of_name(target.name()) == Some(*target)));
        assert_eq!(Target::of_name("lm_head"), None);
    }

    #[test]
    fn targets_are_those_that_the_model_has() {
        let plain = crate::tiny();
        let options = crate::Options { fused_projections: true, ..crate::Options::default() };
        let fused = ModelSpec { options, ..plain.clone() };
        let all = LoraSpec::default();
        assert!(all.validate_for(&plain).is_ok() && all.validate_for(&fused).is_ok());
        let names = |spec| all.targets_in(spec).into_iter().map(Target::name).collect::<Vec<_>>();
        assert_eq!(names(&plain).len(), 7);
        assert_eq!(names(&fused), ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]);
        let query = LoraSpec { targets: [Target::Query, Target::Down].into(), ..all };
        let error = query.validate_for(&fused).unwrap_err().to_string();
        assert!(
            query.validate_for(&plain).is_ok() && error.contains("q_proj") && error.contains("qkv_proj"),
            "{error}"
        );
    }

    #[test]
    fn what_cannot_be_is_named() {
        let error = |lora: LoraSpec| lora.validate().unwrap_err().to_string();
        assert!(error(LoraSpec { rank: 0, ..LoraSpec::default() }).contains("rank"));
        assert!(error(LoraSpec { targets: BTreeSet::new(), ..LoraSpec::default() }).contains("target"));
        assert!(error(LoraSpec { alpha: f64::NAN, ..LoraSpec::default() }).contains("alpha"));
    }
}
