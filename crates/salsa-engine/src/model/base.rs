//! The weights of a model in the form used by operations. Frozen, they can be shared by many models.

use super::rotation::Table;
use crate::backend::planned::Planned;
use crate::backend::{AttentionShape, Backend, PACKED_ROWS};
use crate::error::ModelError;
use crate::lora::Group;
use crate::pool;
use crate::spec::{BlockNorms, Head, ModelSpec, TensorView};
use crate::weights::{Numbers, Room, Weights};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

/// Weights packed for multiplication, and data derived from them. Any number of models can share one base: each adds an
/// adapter and a head, see [`super::Transformer::on`].
pub struct Base<B: Backend> {
    pub(super) spec: ModelSpec,
    pub(super) backend: B,
    pub(super) parameters: Parameters<B>,
    pub(super) places: Places,
    /// Tables of angles: of the main rope and of the local one.
    pub(super) rotary: [Mutex<Option<Table<B>>>; 2],
}

impl<B: Backend> Base<B> {
    /// Packs weights in the layout of [`ModelSpec::tensors`]. They are read some rows at a time, each once (a tied
    /// embedding twice), so that memory holds little more than the packed weights.
    ///
    /// # Errors
    ///
    /// When the shape is impossible, the count is wrong, a weight is not finite, or the source cannot be read.
    pub fn new<W: Weights + ?Sized>(spec: ModelSpec, weights: &W, backend: B) -> Result<Base<B>, ModelError> {
        spec.validate()?;
        backend.check(&spec)?;
        check_count(&spec, weights.count())?;
        let places = Places::of(&spec);
        let source = Source { spec: &spec, weights, room: RefCell::default() };
        let parameters = Parameters::new(&spec, &places, &backend, &source)?;
        Ok(Base { spec, backend, parameters, places, rotary: Default::default() })
    }

    /// The shape of the model whose weights these are.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Loads new weights of the same shape.
    pub(super) fn refresh(&mut self, weights: &Fresh<'_, B>) {
        self.parameters.refresh(&self.places, &self.backend, weights);
    }
}

impl Base<Planned> {
    /// A base of this shape without weights, for planning memory.
    pub(super) fn planned(spec: ModelSpec, backend: Planned) -> Base<Planned> {
        let places = Places::of(&spec);
        let parameters = Parameters::new(&spec, &places, &backend, &Unread).expect("nothing is read");
        Base { spec, backend, parameters, places, rotary: Default::default() }
    }
}

/// New weights for a model: on the host, or in the device's flat memory.
pub(super) enum Fresh<'a, B: Backend> {
    Host(&'a [f32]),
    Flat(&'a B::Flat),
}

impl<B: Backend> Fresh<'_, B> {
    fn copy(&self, backend: &B, range: &Range<usize>) -> B::Buffer {
        match self {
            Fresh::Host(weights) => backend.upload(&weights[range.clone()]),
            Fresh::Flat(weights) => backend.copy(weights, range.clone()),
        }
    }

    fn refresh(&self, backend: &B, matrix: &mut B::Matrix, range: &Range<usize>) {
        match self {
            Fresh::Host(weights) => backend.refresh(matrix, 0, weights[range.clone()].into()),
            Fresh::Flat(weights) => backend.refresh_from(matrix, weights, range.clone()),
        }
    }
}

/// The source of the weights of a new base.
trait Rows {
    /// Calls `each` with the index of the first row and the numbers, some rows at a time.
    fn rows(
        &self,
        range: &Range<usize>,
        width: usize,
        each: &mut dyn FnMut(usize, Numbers<'_>),
    ) -> Result<(), ModelError>;
}

/// No weights: only the shape matters.
struct Unread;

impl Rows for Unread {
    fn rows(&self, _: &Range<usize>, _: usize, _: &mut dyn FnMut(usize, Numbers<'_>)) -> Result<(), ModelError> {
        Ok(())
    }
}

/// Weights that are checked as they are read.
struct Source<'a, W: ?Sized> {
    spec: &'a ModelSpec,
    weights: &'a W,
    room: RefCell<Room>,
}

impl<W: Weights + ?Sized> Rows for Source<'_, W> {
    fn rows(
        &self,
        range: &Range<usize>,
        width: usize,
        each: &mut dyn FnMut(usize, Numbers<'_>),
    ) -> Result<(), ModelError> {
        let room = &mut *self.room.borrow_mut();
        let step = PACKED_ROWS * (PIECE / (PACKED_ROWS * width)).max(1);
        for first in (0..range.len() / width).step_by(step) {
            let start = range.start + first * width;
            let numbers = self.weights.read_stored(start..range.end.min(start + step * width), room)?;
            if let Some((at, value)) = first_not_finite(numbers) {
                return Err(not_finite(&self.spec.tensors(), start + at, value));
            }
            each(first, numbers);
        }
        Ok(())
    }
}

/// The weights in the form used by operations.
pub(super) struct Parameters<B: Backend> {
    /// None where the packed head has the same numbers; rows are then read from it.
    pub(super) embedding: Option<B::Buffer>,
    pub(super) layers: Vec<LayerParameters<B>>,
    pub(super) norm: B::Buffer,
    pub(super) head: Option<B::Matrix>,
    pub(super) score: Option<B::Buffer>,
}

pub(super) struct LayerParameters<B: Backend> {
    /// Of what attention reads.
    pub(super) input_norm: Option<B::Buffer>,
    pub(super) qkv: B::Matrix,
    pub(super) qkv_bias: Option<B::Buffer>,
    pub(super) query_norm: Option<B::Buffer>,
    pub(super) key_norm: Option<B::Buffer>,
    pub(super) output: B::Matrix,
    pub(super) output_bias: Option<B::Buffer>,
    /// Of what attention adds.
    pub(super) attention_norm: Option<B::Buffer>,
    /// Of what the MLP reads.
    pub(super) mlp_norm: Option<B::Buffer>,
    pub(super) gate_up: B::Matrix,
    pub(super) down: B::Matrix,
    /// Of what the MLP adds.
    pub(super) branch_norm: Option<B::Buffer>,
}

/// Ranges of the weights in the flat buffer.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub(super) embedding: Range<usize>,
    pub(super) layers: Vec<LayerPlaces>,
    pub(super) norm: Range<usize>,
    /// The language-model head's own matrix or, if tied, the embedding.
    pub(super) head: Option<Range<usize>>,
    pub(super) score: Option<Range<usize>>,
}

#[derive(Clone, Debug)]
pub(super) struct LayerPlaces {
    pub(super) input_norm: Option<Range<usize>>,
    pub(super) qkv: Range<usize>,
    pub(super) qkv_bias: Option<Range<usize>>,
    pub(super) query_norm: Option<Range<usize>>,
    pub(super) key_norm: Option<Range<usize>>,
    pub(super) output: Range<usize>,
    pub(super) output_bias: Option<Range<usize>>,
    pub(super) attention_norm: Option<Range<usize>>,
    pub(super) mlp_norm: Option<Range<usize>>,
    pub(super) gate_up: Range<usize>,
    pub(super) down: Range<usize>,
    pub(super) branch_norm: Option<Range<usize>>,
}

impl Places {
    /// Whether the language-model head shares the embedding's weights.
    fn is_tied(&self) -> bool {
        self.head.as_ref() == Some(&self.embedding)
    }

    fn of(spec: &ModelSpec) -> Places {
        let all: BTreeMap<String, Range<usize>> = spec.tensors().into_iter().map(|t| (t.name, t.range)).collect();
        // Transformers' names say where a norm stands in Llama's block; in others the same name stands elsewhere.
        let [attention_norm, mlp_norm] = match spec.options.norms {
            BlockNorms::Before => [None, Some("post_attention_layernorm.weight")],
            BlockNorms::Both => [Some("post_attention_layernorm.weight"), Some("pre_feedforward_layernorm.weight")],
            BlockNorms::After => [Some("post_attention_layernorm.weight"), None],
        };
        let layer = |layer: usize| {
            let get = |name: &str| all.get(&format!("model.layers.{layer}.{name}")).cloned();
            let must = |name: &str| get(name).expect("`tensors` lists it for every layer");
            let span = |first: &str, last: &str| must(first).start..must(last).end;
            LayerPlaces {
                input_norm: get("input_layernorm.weight"),
                qkv: get("self_attn.qkv_proj.weight")
                    .unwrap_or_else(|| span("self_attn.q_proj.weight", "self_attn.v_proj.weight")),
                qkv_bias: spec.qkv_bias.then(|| span("self_attn.q_proj.bias", "self_attn.v_proj.bias")),
                query_norm: get("self_attn.q_norm.weight"),
                key_norm: get("self_attn.k_norm.weight"),
                output: must("self_attn.o_proj.weight"),
                output_bias: get("self_attn.o_proj.bias"),
                attention_norm: attention_norm.and_then(get),
                mlp_norm: mlp_norm.and_then(get),
                gate_up: get("mlp.gate_up_proj.weight")
                    .unwrap_or_else(|| span("mlp.gate_proj.weight", "mlp.up_proj.weight")),
                down: must("mlp.down_proj.weight"),
                branch_norm: get("post_feedforward_layernorm.weight"),
            }
        };
        let embedding = all["model.embed_tokens.weight"].clone();
        let tied = (spec.tied_embeddings && spec.head != Head::Scalar).then(|| embedding.clone());
        Places {
            layers: (0..spec.layers).map(layer).collect(),
            norm: all["model.norm.weight"].clone(),
            head: all.get("lm_head.weight").cloned().or(tied),
            score: all.get("score.weight").cloned(),
            embedding,
        }
    }
}

impl<B: Backend> Parameters<B> {
    /// Reads and packs the weights, matrix by matrix.
    fn new(spec: &ModelSpec, places: &Places, backend: &B, source: &dyn Rows) -> Result<Parameters<B>, ModelError> {
        let vector = |range: &Range<usize>| {
            let mut buffer = backend.room(range.len());
            source.rows(range, 1, &mut |at, numbers| backend.store(&mut buffer, at, numbers))?;
            Ok::<_, ModelError>(buffer)
        };
        let vector_if = |range: &Option<Range<usize>>| range.as_ref().map(vector).transpose();
        let kept = Cell::new(true);
        let matrix = |range: &Range<usize>, [out, input]: [usize; 2]| {
            let mut matrix = backend.allocate_matrix(out, input);
            kept.set(true);
            source.rows(range, input, &mut |first, numbers| {
                kept.set(kept.get() && backend.packs_losslessly(numbers));
                backend.refresh(&mut matrix, first, numbers);
            })?;
            Ok::<_, ModelError>(matrix)
        };
        let layer = |p: &LayerPlaces| {
            Ok(LayerParameters {
                input_norm: vector_if(&p.input_norm)?,
                qkv: matrix(&p.qkv, Group::Qkv.shape(spec))?,
                qkv_bias: vector_if(&p.qkv_bias)?,
                query_norm: vector_if(&p.query_norm)?,
                key_norm: vector_if(&p.key_norm)?,
                output: matrix(&p.output, Group::Output.shape(spec))?,
                output_bias: vector_if(&p.output_bias)?,
                attention_norm: vector_if(&p.attention_norm)?,
                mlp_norm: vector_if(&p.mlp_norm)?,
                gate_up: matrix(&p.gate_up, Group::GateUp.shape(spec))?,
                down: matrix(&p.down, Group::Down.shape(spec))?,
                branch_norm: vector_if(&p.branch_norm)?,
            })
        };
        let head = places.head.as_ref().map(|range| matrix(range, [spec.vocab_size, spec.hidden_size])).transpose()?;
        let in_head = places.is_tied() && kept.get();
        Ok(Parameters {
            embedding: (!in_head).then(|| vector(&places.embedding)).transpose()?,
            layers: places.layers.iter().map(layer).collect::<Result<_, ModelError>>()?,
            norm: vector(&places.norm)?,
            head,
            score: vector_if(&places.score)?,
        })
    }

    /// Loads new weights of the same shape.
    pub(super) fn refresh(&mut self, places: &Places, backend: &B, weights: &Fresh<'_, B>) {
        let copy = |buffer: &mut B::Buffer, range: &Range<usize>| *buffer = weights.copy(backend, range);
        let pack = |matrix: &mut B::Matrix, range: &Range<usize>| weights.refresh(backend, matrix, range);
        let copy_if = |buffer: &mut Option<B::Buffer>, range: &Option<Range<usize>>| {
            if let (Some(buffer), Some(range)) = (buffer, range) {
                copy(buffer, range);
            }
        };
        // New weights are f32: a head packed in a narrower type no longer has the embedding's numbers.
        if self.embedding.is_some() || !backend.packs_losslessly(Numbers::F32(&[])) {
            // Drop the old one first, so that its memory is reused.
            self.embedding = None;
            self.embedding = Some(weights.copy(backend, &places.embedding));
        }
        copy(&mut self.norm, &places.norm);
        copy_if(&mut self.score, &places.score);
        if let (Some(head), Some(range)) = (&mut self.head, &places.head) {
            pack(head, range);
        }
        for (layer, p) in self.layers.iter_mut().zip(&places.layers) {
            copy_if(&mut layer.input_norm, &p.input_norm);
            copy_if(&mut layer.attention_norm, &p.attention_norm);
            copy_if(&mut layer.mlp_norm, &p.mlp_norm);
            copy_if(&mut layer.branch_norm, &p.branch_norm);
            copy_if(&mut layer.output_bias, &p.output_bias);
            copy_if(&mut layer.qkv_bias, &p.qkv_bias);
            copy_if(&mut layer.query_norm, &p.query_norm);
            copy_if(&mut layer.key_norm, &p.key_norm);
            pack(&mut layer.qkv, &p.qkv);
            pack(&mut layer.output, &p.output);
            pack(&mut layer.gate_up, &p.gate_up);
            pack(&mut layer.down, &p.down);
        }
    }
}

impl<B: Backend> LayerParameters<B> {
    /// Bias and norm of what a product adds to the residual stream.
    pub(super) fn added(&self, group: Group) -> (Option<&B::Buffer>, Option<&B::Buffer>) {
        match group {
            Group::Output => (self.output_bias.as_ref(), self.attention_norm.as_ref()),
            Group::Down => (None, self.branch_norm.as_ref()),
            Group::Qkv | Group::GateUp => (None, None),
        }
    }

    pub(super) fn matrix(&self, group: Group) -> &B::Matrix {
        match group {
            Group::Qkv => &self.qkv,
            Group::Output => &self.output,
            Group::GateUp => &self.gate_up,
            Group::Down => &self.down,
        }
    }
}

impl LayerPlaces {
    /// Places of what [`LayerParameters::added`] returns.
    pub(super) fn added(&self, group: Group) -> (Option<&Range<usize>>, Option<&Range<usize>>) {
        match group {
            Group::Output => (self.output_bias.as_ref(), self.attention_norm.as_ref()),
            Group::Down => (None, self.branch_norm.as_ref()),
            Group::Qkv | Group::GateUp => (None, None),
        }
    }

    pub(super) fn matrix(&self, group: Group) -> Range<usize> {
        match group {
            Group::Qkv => self.qkv.clone(),
            Group::Output => self.output.clone(),
            Group::GateUp => self.gate_up.clone(),
            Group::Down => self.down.clone(),
        }
    }
}

impl ModelSpec {
    pub(super) fn attention_shape(&self, layer: usize) -> AttentionShape {
        let shape = AttentionShape::new(self.heads, self.kv_heads, self.head_dim);
        AttentionShape {
            window: self.sliding_window.filter(|_| self.layer(layer).windowed),
            scale: self.options.attention_scale.unwrap_or(shape.scale),
            softcap: self.options.attention_softcap,
            ..shape
        }
    }
}

/// Checks that trained weights match their tensors in number and are finite.
pub(super) fn check(tensors: &[TensorView], weights: &[f32]) -> Result<(), ModelError> {
    let expected = tensors.last().map_or(0, |tensor| tensor.range.end);
    if weights.len() != expected {
        return Err(ModelError::WeightCount { expected, found: weights.len() });
    }
    first_not_finite(weights.into()).map_or(Ok(()), |(at, value)| Err(not_finite(tensors, at, value)))
}

fn check_count(spec: &ModelSpec, found: usize) -> Result<(), ModelError> {
    let expected = spec.parameters();
    if found == expected { Ok(()) } else { Err(ModelError::WeightCount { expected, found }) }
}

/// Approximate number of weights read at once: enough work for all threads, in little memory.
const PIECE: usize = 1 << 22;

/// Numbers per task of the check.
const BLOCK: usize = 1 << 18;

fn first_not_finite(numbers: Numbers<'_>) -> Option<(usize, f32)> {
    let block = |i: usize| {
        let first = i * BLOCK;
        let found = numbers.part(first..numbers.len().min(first + BLOCK)).first_not_finite();
        found.map(|(at, value)| (first + at, value))
    };
    pool::map(numbers.len().div_ceil(BLOCK), block).into_iter().flatten().next()
}

fn not_finite(tensors: &[TensorView], at: usize, value: f32) -> ModelError {
    let tensor = tensors.iter().find(|t| t.range.contains(&at)).expect("tensors cover the buffer");
    ModelError::NonFinite { index: at - tensor.range.start, tensor: tensor.name.clone(), value }
}
