//! A model in training, with flat master weights, gradients and optimizer state.

use super::backward::Sink;
use super::base::{Fresh, check};
use super::forward::Tape;
use super::parallel::{Parallel, host};
use super::{Base, Transformer};
use crate::backend::cpu::adamw;
use crate::backend::planned::Planned;
use crate::backend::{AdamWStep, Backend, Decay, Moments};
use crate::batch::{Batch, Output, OutputGradient, Query};
use crate::comm::{Comm, Solo};
use crate::error::ModelError;
use crate::lora::LoraSpec;
use crate::spec::{Head, ModelSpec, TensorView};
use std::borrow::Cow;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// What the forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recompute {
    /// All inner values: fastest.
    #[default]
    KeepActivations,
    /// The input of each block, which is recomputed in the backward pass: a third more work, a tenth of the memory.
    /// The gradients have the same bits.
    PerLayer,
}

/// AdamW (Loshchilov and Hutter 2019) with clipping by the global norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay of matrices, times the learning rate. Norms and biases are not decayed.
    pub weight_decay: f64,
    /// Gradients of a larger norm are scaled down to this norm; infinity for no clipping.
    pub max_grad_norm: f64,
}

impl AdamW {
    /// The factor of a gradient whose norm is `norm`: at most 1.
    fn gradient_scale(&self, norm: f64) -> f64 {
        if norm > self.max_grad_norm { self.max_grad_norm / (norm + 1e-6) } else { 1.0 }
    }

    /// The constants of a step, counted from 1.
    fn at(&self, step: u64, learning_rate: f64, gradient_scale: f64) -> AdamWStep {
        let power = i32::try_from(step).unwrap_or(i32::MAX);
        AdamWStep {
            learning_rate: learning_rate as f32,
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            eps: self.eps as f32,
            weight_decay: self.weight_decay as f32,
            bias_correction1: (1.0 - self.beta1.powi(power)) as f32,
            bias_correction2: (1.0 - self.beta2.powi(power)) as f32,
            gradient_scale: gradient_scale as f32,
        }
    }
}

impl Default for AdamW {
    /// transformers' defaults.
    fn default() -> AdamW {
        AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 }
    }
}

/// One of the moments of AdamW.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The mean of gradients.
    First,
    /// The mean of squared gradients.
    Second,
}

/// The state of AdamW; see [`TrainableTransformer::each_moment`] for that of several processes.
#[derive(Clone, Debug)]
pub struct OptimizerState<'a> {
    /// Steps taken.
    pub step: u64,
    /// First moments, in the order of the weights: those that this process keeps.
    pub m: Cow<'a, [f32]>,
    /// Second moments.
    pub v: Cow<'a, [f32]>,
}

/// A model in training: all its weights, or an adapter on a frozen base. Includes the methods of [`Transformer`].
pub struct TrainableTransformer<B: Backend> {
    model: Transformer<B>,
    trained: Trained,
    weights: B::Flat,
    gradients: B::Flat,
    m: B::Flat,
    v: B::Flat,
    step: u64,
    recompute: Recompute,
    /// The units of a step; `None`: one, on this process.
    parallel: Option<Parallel<B::Flat>>,
    /// The norm of the whole gradient, once it is complete.
    norm: Option<f64>,
}

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trained {
    /// Every weight. The base is then not shared.
    All,
    /// The adapter, including its head.
    Adapter,
}

impl<B: Backend> Deref for TrainableTransformer<B> {
    type Target = Transformer<B>;
    fn deref(&self) -> &Transformer<B> {
        &self.model
    }
}

impl TrainableTransformer<Planned> {
    /// A model in training without numbers, for planning memory: trains an adapter of shape `lora`, or all weights.
    pub fn planned(spec: &ModelSpec, lora: Option<&LoraSpec>, backend: &Planned, recompute: Recompute) -> Self {
        let trained = if lora.is_some() { Trained::Adapter } else { Trained::All };
        Self::of(Transformer::planned(spec, lora, backend), trained, Vec::new(), recompute)
    }
}

impl<B: Backend> TrainableTransformer<B> {
    /// A model whose weights are all trained, starting from these flat ones.
    ///
    /// # Errors
    ///
    /// As [`Transformer::new`].
    pub fn new(spec: ModelSpec, weights: Vec<f32>, backend: B, recompute: Recompute) -> Result<Self, ModelError> {
        let model = Transformer::new(spec, &weights, backend)?;
        Ok(Self::of(model, Trained::All, weights, recompute))
    }

    /// A model whose adapter is trained, including its scalar head. The base does not change; gradients and optimizer
    /// state are those of the adapter.
    ///
    /// # Errors
    ///
    /// As [`Transformer::on`].
    pub fn on(
        base: Arc<Base<B>>,
        head: Head,
        lora: &LoraSpec,
        weights: Vec<f32>,
        recompute: Recompute,
    ) -> Result<Self, ModelError> {
        let model = Transformer::on(base, head, lora, &weights)?;
        Ok(Self::of(model, Trained::Adapter, weights, recompute))
    }

    fn of(model: Transformer<B>, trained: Trained, weights: Vec<f32>, recompute: Recompute) -> Self {
        let (backend, len) = (&model.base.backend, weights.len());
        let [gradients, m, v] = [(); 3].map(|()| backend.flat_zeros(len));
        let weights = backend.flat(weights);
        TrainableTransformer {
            gradients,
            m,
            v,
            model,
            trained,
            weights,
            step: 0,
            recompute,
            parallel: None,
            norm: None,
        }
    }

    /// Trains this model together with the other processes of `comm`, which have made the same one. Before the first
    /// step, or before [`TrainableTransformer::restore`].
    ///
    /// A step then has `units` units, of which each process computes its own: backward passes, and
    /// [`TrainableTransformer::finish_unit`] after the last one of each unit. Weights, moments and norm have the same
    /// bits on any number of processes, which [`TrainableTransformer::adamw_step`] keeps in step.
    ///
    /// # Errors
    ///
    /// If `units` is no power of two or no multiple of the number of processes, or the model is on a GPU.
    ///
    /// # Panics
    ///
    /// After the first step.
    pub fn share(&mut self, comm: Arc<dyn Comm>, units: usize) -> Result<(), ModelError> {
        assert_eq!(self.step, 0, "a model is shared before its first step");
        if units == 1 && comm.size() == 1 {
            return Ok(());
        }
        let backend = &self.model.base.backend;
        let Some(weights) = backend.host(&mut self.weights) else {
            return Err(ModelError::Shared(
                "several processes, and gradient_units above 1, train on the CPU alone; say device: cpu".into(),
            ));
        };
        let parallel = Parallel::new(comm, units, weights.len())?;
        [self.m, self.v] = [(); 2].map(|()| backend.flat_zeros(parallel.own().len()));
        self.parallel = Some(parallel);
        Ok(())
    }

    /// The number of gradient units of a step.
    pub fn units(&self) -> usize {
        self.parallel.as_ref().map_or(1, Parallel::units)
    }

    /// Those that this process computes.
    pub fn own_units(&self) -> Range<usize> {
        self.parallel.as_ref().map_or(0..1, Parallel::own_units)
    }

    /// The processes that train this model.
    pub fn comm(&self) -> &dyn Comm {
        self.parallel.as_ref().map_or(&Solo, Parallel::comm)
    }

    /// The flat master weights of the trained parameters: in the layout of [`ModelSpec::tensors`], or for an adapter of
    /// [`LoraSpec::tensors`].
    pub fn weights(&self) -> Cow<'_, [f32]> {
        self.model.base.backend.numbers(&self.weights)
    }

    /// Names and ranges of the trained tensors.
    pub fn tensors(&self) -> Vec<TensorView> {
        match &self.model.adapter {
            Some(adapter) => adapter.tensors.clone(),
            None => self.model.spec.tensors(),
        }
    }

    /// [`Transformer::forward`] that keeps what [`TrainableTransformer::backward`] needs.
    ///
    /// # Panics
    ///
    /// As [`Transformer::forward`].
    pub fn forward_train(&self, batch: &Batch, query: &Query) -> (Output, Tape<B>) {
        self.model.forward_tape(batch, query, self.recompute)
    }

    /// Adds the gradient of a loss to the gradient buffer, given its gradient with respect to the output.
    ///
    /// # Panics
    ///
    /// If the number of gradients differs from the number of outputs.
    pub fn backward(&mut self, tape: Tape<B>, gradient: &OutputGradient<'_>) {
        let mut sink = match self.trained {
            Trained::All => Sink::All { gradients: &mut self.gradients },
            Trained::Adapter => Sink::Adapter { gradients: &mut self.gradients },
        };
        self.model.backward_into(tape, gradient, &mut sink);
        self.norm = None;
    }

    /// Ends a unit of the step: the next backward pass begins another one. Without effect unless the model is shared.
    pub fn finish_unit(&mut self) {
        if let Some(parallel) = &mut self.parallel {
            parallel.finish(&self.model.base.backend, &mut self.gradients);
        }
    }

    /// The accumulated gradient: of a shared model, that of the current unit.
    pub fn gradients(&self) -> Cow<'_, [f32]> {
        self.model.base.backend.numbers(&self.gradients)
    }

    /// Zeroes the accumulated gradient.
    pub fn zero_gradients(&mut self) {
        self.model.base.backend.clear(&mut self.gradients);
        self.parallel.iter_mut().for_each(Parallel::forget);
        self.norm = None;
    }

    /// The Euclidean norm of the accumulated gradient: of a shared model, that of all units of the step, which all
    /// processes ask for.
    ///
    /// # Errors
    ///
    /// If the processes cannot exchange bytes.
    ///
    /// # Panics
    ///
    /// If a unit of this process is not finished.
    pub fn gradient_norm(&mut self) -> Result<f64, ModelError> {
        let (backend, gradients) = (&self.model.base.backend, &mut self.gradients);
        let norm = match (self.norm, &mut self.parallel) {
            (Some(norm), _) => norm,
            (None, None) => backend.sum_of_squares(gradients).sqrt(),
            (None, Some(parallel)) => parallel.reduce(host(backend, gradients))?,
        };
        self.norm = Some(norm);
        Ok(norm)
    }

    /// Clips, takes one AdamW step, and zeroes the gradient. Returns the norm before clipping. All processes of a
    /// shared model take it together.
    ///
    /// # Errors
    ///
    /// If the norm is not finite, nothing is changed then; or if the processes cannot exchange bytes.
    pub fn adamw_step(&mut self, adamw: &AdamW, learning_rate: f64) -> Result<f64, ModelError> {
        let norm = self.gradient_norm()?;
        if !norm.is_finite() {
            return Err(ModelError::NonFiniteGradient { norm });
        }
        self.step += 1;
        let step = adamw.at(self.step, learning_rate, adamw.gradient_scale(norm));
        match self.parallel.take() {
            None => self.update(0..usize::MAX, &step),
            Some(parallel) => {
                self.update_slice(parallel.own(), &step);
                let parallel = self.parallel.insert(parallel);
                parallel.gather(host(&self.model.base.backend, &mut self.weights))?;
                self.zero_gradients();
            }
        }
        self.norm = None;
        self.refresh();
        Ok(norm)
    }

    /// As [`Self::update`], where the moments are those of the range `slice` alone.
    fn update_slice(&mut self, slice: Range<usize>, step: &AdamWStep) {
        let runs = runs(self.tensors());
        let TrainableTransformer { weights, gradients, m, v, model, .. } = self;
        let backend = &model.base.backend;
        let [weights, gradients, m, v] = [weights, gradients, m, v].map(|flat| host(backend, flat));
        for (range, decay) in runs {
            let range = range.start.max(slice.start)..range.end.min(slice.end);
            if range.start < range.end {
                let own = range.start - slice.start..range.end - slice.start;
                let [weights, gradients] = [&mut *weights, &mut *gradients].map(|flat| &mut flat[range.clone()]);
                let [m, v] = [&mut *m, &mut *v].map(|flat| &mut flat[own.clone()]);
                adamw::update(weights, gradients, m, v, decay, step);
            }
        }
    }

    /// Calls `each` with a moment of all weights in order, piece by piece, on the first process; all processes of a
    /// shared model call this together.
    ///
    /// # Errors
    ///
    /// If `each` fails, or the processes cannot exchange bytes.
    pub fn each_moment<E: From<ModelError>>(
        &self,
        moment: Moment,
        mut each: impl FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let own = match moment {
            Moment::First => &self.m,
            Moment::Second => &self.v,
        };
        let own = self.model.base.backend.numbers(own);
        match &self.parallel {
            None => each(&own),
            Some(parallel) => parallel.to_first(&own, each),
        }
    }

    /// Moves the weights of one range of the flat buffers and zeroes their gradient. Every weight is updated from its
    /// own numbers alone, so ranges may be updated apart, in any order.
    fn update(&mut self, within: Range<usize>, step: &AdamWStep) {
        for (range, decay) in runs(self.tensors()) {
            let range = range.start.max(within.start)..range.end.min(within.end);
            if range.start >= range.end {
                continue;
            }
            let TrainableTransformer { weights, gradients, m, v, .. } = self;
            self.model.base.backend.adamw(Moments { weights, gradients, m, v }, range, decay, step);
        }
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// The state of AdamW.
    pub fn optimizer_state(&self) -> OptimizerState<'_> {
        let numbers = |flat| self.model.base.backend.numbers(flat);
        OptimizerState { step: self.step, m: numbers(&self.m), v: numbers(&self.v) }
    }

    /// The weights whose moments this process keeps: all, or of a shared model its slice.
    pub fn kept_moments(&self) -> Range<usize> {
        match &self.parallel {
            Some(parallel) => parallel.own(),
            None => 0..self.tensors().iter().map(|tensor| tensor.range.end).max().unwrap_or(0),
        }
    }

    /// Restores weights and optimizer state from a checkpoint; the moments are those of
    /// [`TrainableTransformer::kept_moments`].
    ///
    /// # Errors
    ///
    /// When a buffer does not fit, or a weight is not finite.
    pub fn restore(&mut self, weights: Vec<f32>, step: u64, m: Vec<f32>, v: Vec<f32>) -> Result<(), ModelError> {
        check(&self.tensors(), &weights)?;
        let kept = self.kept_moments().len();
        for buffer in [&m, &v] {
            if buffer.len() != kept {
                return Err(ModelError::WeightCount { expected: kept, found: buffer.len() });
            }
        }
        let flat = |numbers| self.model.base.backend.flat(numbers);
        (self.weights, self.step, self.m, self.v) = (flat(weights), step, flat(m), flat(v));
        self.refresh();
        self.zero_gradients();
        Ok(())
    }

    /// Packs the current master weights.
    fn refresh(&mut self) {
        let Transformer { base, adapter, .. } = &mut self.model;
        match (self.trained, adapter) {
            (Trained::Adapter, Some(adapter)) => adapter.refresh(&base.backend, &self.weights),
            _ => Arc::get_mut(base).expect("a trained base is never shared").refresh(&Fresh::Flat(&self.weights)),
        }
    }
}

/// Ranges of adjacent weights with the same decay: matrices decay, norms and biases do not.
fn runs(tensors: Vec<TensorView>) -> Vec<(Range<usize>, Decay)> {
    let mut runs: Vec<(Range<usize>, Decay)> = Vec::new();
    for TensorView { shape, range, .. } in tensors {
        let decay = if shape.len() > 1 { Decay::Yes } else { Decay::No };
        match runs.last_mut() {
            Some((before, alike)) if *alike == decay && before.end == range.start => before.end = range.end,
            _ => runs.push((range, decay)),
        }
    }
    runs
}
