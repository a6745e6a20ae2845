//! An adapter in the form used by operations: packed factors, those of one product joined.

use super::Transformer;
use crate::backend::{self, Backend, Columns, LowRank};
use crate::lora::{Group, LoraSpec};
use crate::spec::{ModelSpec, TensorView};
use std::ops::Range;

/// The factors of all blocks, and the adapter's scalar head, if any.
pub(super) struct Adapter<B: Backend> {
    pub spec: LoraSpec,
    pub tensors: Vec<TensorView>,
    pub layers: Vec<LayerAdapter<B>>,
    pub score: Option<B::Buffer>,
    pub score_place: Option<Range<usize>>,
    scale: f32,
}

/// The factors of one block, in the order of [`Group::ALL`].
pub(super) struct LayerAdapter<B: Backend>([Option<Factors<B>>; 4]);

/// The factors of one product. The A's of its parts are one matrix `[parts * rank, in]`.
pub(super) struct Factors<B: Backend> {
    pub a: B::Matrix,
    pub a_place: Range<usize>,
    pub a_shape: [usize; 2],
    pub parts: Vec<Part<B>>,
}

/// One B: it reads its columns of `x A^T` and adds to its columns of the product.
pub(super) struct Part<B: Backend> {
    pub b: B::Matrix,
    pub b_place: Range<usize>,
    pub inner: Columns,
    pub outer: Columns,
}

impl<B: Backend> Adapter<B> {
    pub(super) fn new(spec: &ModelSpec, lora: &LoraSpec, backend: &B, weights: &[f32]) -> Adapter<B> {
        let tensors = lora.tensors(spec);
        let mut places = tensors.iter().map(|tensor| tensor.range.clone());
        let mut layer =
            || LayerAdapter(Group::ALL.map(|group| Factors::new(spec, lora, group, backend, weights, &mut places)));
        let layers = (0..spec.layers).map(|_| layer()).collect();
        let score_place = places.next();
        let score = score_place.as_ref().map(|range| backend.upload(&weights[range.clone()]));
        Adapter { spec: lora.clone(), layers, score, score_place, scale: lora.scale(), tensors }
    }

    /// Loads new weights of the same shape.
    pub(super) fn refresh(&mut self, backend: &B, weights: &B::Flat) {
        for factors in self.layers.iter_mut().flat_map(|layer| layer.0.iter_mut().flatten()) {
            backend.refresh_from(&mut factors.a, weights, factors.a_place.clone());
            for part in &mut factors.parts {
                backend.refresh_from(&mut part.b, weights, part.b_place.clone());
            }
        }
        if let Some(place) = &self.score_place {
            self.score = Some(backend.copy(weights, place.clone()));
        }
    }

    /// The lowest group with factors in the first block.
    pub(super) fn lowest(&self) -> Option<Group> {
        let first = self.layers.first()?;
        Group::ALL.into_iter().find(|&group| first.get(group).is_some())
    }
}

impl<B: Backend> LayerAdapter<B> {
    pub(super) fn get(&self, group: Group) -> Option<&Factors<B>> {
        self.0[group as usize].as_ref()
    }
}

impl<B: Backend> Part<B> {
    /// B as the factor that adds to its columns of the product.
    fn forth(&self) -> LowRank<'_, B::Matrix> {
        LowRank { weight: &self.b, inner: self.inner, outer: self.outer }
    }
}

impl<B: Backend> Factors<B> {
    /// A as the factor that maps the gradient of `x A^T` to that of `x`.
    pub(super) fn back(&self) -> LowRank<'_, B::Matrix> {
        let [inner, input] = self.a_shape;
        LowRank { weight: &self.a, inner: Columns::all(inner), outer: Columns::all(input) }
    }

    /// Takes the ranges of its tensors from `places`.
    fn new(
        spec: &ModelSpec,
        lora: &LoraSpec,
        group: Group,
        backend: &B,
        weights: &[f32],
        places: &mut impl Iterator<Item = Range<usize>>,
    ) -> Option<Factors<B>> {
        let [width, input] = group.shape(spec);
        let (mut outer, mut first) = (Vec::new(), 0);
        for target in group.members(spec) {
            let count = target.shape(spec)[0];
            if lora.targets.contains(target) {
                outer.push(Columns { first, count, of: width });
            }
            first += count;
        }
        let mut place = || places.next().expect("`tensors` lists every factor");
        let spans: Vec<Range<usize>> = outer.iter().map(|_| place()).collect();
        let a_place = spans.first()?.start..spans.last()?.end;
        let inner = outer.len() * lora.rank;
        let part = |(i, outer): (usize, Columns)| {
            let b_place = place();
            Part {
                b: backend.matrix(&weights[b_place.clone()], outer.count, lora.rank),
                b_place,
                inner: Columns { first: i * lora.rank, count: lora.rank, of: inner },
                outer,
            }
        };
        let parts = outer.into_iter().enumerate().map(part).collect();
        let a = backend.matrix(&weights[a_place.clone()], inner, input);
        Some(Factors { a, a_place, a_shape: [inner, input], parts })
    }
}

impl<B: Backend> Transformer<B> {
    /// The factors of a product of a block.
    pub(super) fn factors(&self, layer: usize, group: Group) -> Option<&Factors<B>> {
        self.adapter.as_ref().and_then(|adapter| adapter.layers[layer].get(group))
    }

    /// `x W^T`, plus the adapter's term, plus the residual if there is one. Also returns the scaled `x A^T`, for
    /// [`Transformer::factors_backward`].
    pub(super) fn product(
        &self,
        layer: usize,
        group: Group,
        x: &B::Buffer,
        residual: Option<&B::Buffer>,
    ) -> (B::Buffer, Option<B::Buffer>) {
        let (backend, matrix) = (&self.base.backend, self.base.parameters.layers[layer].matrix(group));
        match (self.factors(layer, group), residual) {
            (Some(factors), residual) => {
                let mut z = backend.linear(x, &factors.a);
                backend.scale(&mut z, self.scale());
                let parts: Vec<_> = factors.parts.iter().map(Part::forth).collect();
                (backend.linear_low_rank(x, matrix, &z, &parts, residual), Some(z))
            }
            (None, Some(residual)) => (backend.linear_onto(x, matrix, residual), None),
            (None, None) => (backend.linear(x, matrix), None),
        }
    }

    fn scale(&self) -> f32 {
        self.adapter.as_ref().map_or(0.0, |adapter| adapter.scale)
    }

    /// Adds the gradients of the factors of a product with input `x`, `z = scale * x A^T` and gradient `d_y`. Returns the
    /// gradient with respect to `x A^T`.
    pub(super) fn factors_backward(
        &self,
        factors: &Factors<B>,
        d_y: &B::Buffer,
        (x, z): (&B::Buffer, &B::Buffer),
        gradients: &mut B::Flat,
    ) -> B::Buffer {
        let backend = &self.base.backend;
        let [inner, input] = factors.a_shape;
        let mut d_z = backend.zeros(backend.len(z));
        for part in &factors.parts {
            backend.linear_columns_backward_weight(
                d_y,
                part.outer,
                z,
                part.inner,
                backend::Part::new(gradients, part.b_place.clone()),
            );
            backend.linear_columns_backward_input(d_y, part.outer, &part.b, &mut d_z, part.inner);
        }
        backend.scale(&mut d_z, self.scale());
        backend.linear_backward_weight(&d_z, x, inner, input, backend::Part::new(gradients, factors.a_place.clone()));
        d_z
    }
}
