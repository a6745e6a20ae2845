//! Every operation, dispatched to the backend that holds the arrays.
use super::arguments::{Argument, Returned};
use super::{Angles, Buffer, Cache, Device, Flat, Matrix};
use crate::backend::{
    AdamWStep, AttentionShape, Backend, Choice, Columns, Decay, LogprobQuery, LowRank, Moments, Part, Ranking,
    RotaryTable, TokenStats,
};
use crate::error::ModelError;
use crate::spec::{Activation, ModelSpec, NormWeight};
use crate::weights::Numbers;
use std::borrow::Cow;
use std::ops::Range;

/// Calls the operation of the backend and returns its result.
macro_rules! dispatch {
    ($self:ident.$operation:ident($($argument:ident),*)) => {
        match $self {
            Device::Cpu(b) => b.$operation($(Argument::on_cpu($argument)),*).returned(),
            Device::Cuda(b) => b.$operation($(Argument::on_cuda($argument)),*).returned(),
        }
    };
}

impl Backend for Device {
    type Buffer = Buffer;
    type Matrix = Matrix;
    type Cache = Cache;
    type Flat = Flat;
    type Angles = Angles;

    fn check(&self, spec: &ModelSpec) -> Result<(), ModelError> {
        dispatch!(self.check(spec))
    }

    fn shares_prefixes(&self) -> bool {
        dispatch!(self.shares_prefixes())
    }

    fn flat(&self, numbers: Vec<f32>) -> Self::Flat {
        dispatch!(self.flat(numbers))
    }

    fn flat_zeros(&self, len: usize) -> Self::Flat {
        dispatch!(self.flat_zeros(len))
    }

    fn numbers<'a>(&self, flat: &'a Self::Flat) -> Cow<'a, [f32]> {
        dispatch!(self.numbers(flat))
    }

    fn host<'a>(&self, flat: &'a mut Self::Flat) -> Option<&'a mut [f32]> {
        match self {
            Device::Cpu(cpu) => cpu.host(flat.cpu_mut()),
            Device::Cuda(cuda) => cuda.host(flat.cuda_mut()),
        }
    }

    fn clear(&self, flat: &mut Self::Flat) {
        dispatch!(self.clear(flat))
    }

    fn copy(&self, flat: &Self::Flat, range: Range<usize>) -> Self::Buffer {
        dispatch!(self.copy(flat, range))
    }

    fn refresh_from(&self, matrix: &mut Self::Matrix, flat: &Self::Flat, range: Range<usize>) {
        dispatch!(self.refresh_from(matrix, flat, range))
    }

    fn angles(&self, table: RotaryTable) -> Self::Angles {
        dispatch!(self.angles(table))
    }

    fn upload(&self, data: &[f32]) -> Self::Buffer {
        dispatch!(self.upload(data))
    }

    fn download(&self, buffer: &Self::Buffer) -> Vec<f32> {
        dispatch!(self.download(buffer))
    }

    fn room(&self, len: usize) -> Self::Buffer {
        dispatch!(self.room(len))
    }

    fn store(&self, buffer: &mut Self::Buffer, at: usize, numbers: Numbers<'_>) {
        dispatch!(self.store(buffer, at, numbers))
    }

    fn allocate_matrix(&self, out: usize, input: usize) -> Self::Matrix {
        dispatch!(self.allocate_matrix(out, input))
    }

    fn refresh(&self, matrix: &mut Self::Matrix, first: usize, weights: Numbers<'_>) {
        dispatch!(self.refresh(matrix, first, weights))
    }

    fn packs_losslessly(&self, numbers: Numbers<'_>) -> bool {
        dispatch!(self.packs_losslessly(numbers))
    }

    fn embed(&self, table: &Self::Buffer, tokens: &[u32], hidden: usize, scale: f32) -> Self::Buffer {
        dispatch!(self.embed(table, tokens, hidden, scale))
    }

    fn embed_packed(&self, table: &Self::Matrix, tokens: &[u32], scale: f32) -> Self::Buffer {
        dispatch!(self.embed_packed(table, tokens, scale))
    }

    fn embed_backward(
        &self,
        d_out: &Self::Buffer,
        tokens: &[u32],
        hidden: usize,
        scale: f32,
        d_table: Part<'_, Self::Flat>,
    ) {
        dispatch!(self.embed_backward(d_out, tokens, hidden, scale, d_table))
    }

    fn rms_norm(
        &self,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        kind: NormWeight,
        eps: f32,
    ) -> (Self::Buffer, Self::Buffer) {
        dispatch!(self.rms_norm(x, weight, kind, eps))
    }

    fn rms_norm_backward(
        &self,
        d_out: &Self::Buffer,
        x: &Self::Buffer,
        inverse: &Self::Buffer,
        weight: &Self::Buffer,
        kind: NormWeight,
        d_x: &mut Self::Buffer,
        d_weight: Option<Part<'_, Self::Flat>>,
    ) {
        dispatch!(self.rms_norm_backward(d_out, x, inverse, weight, kind, d_x, d_weight))
    }

    fn linear(&self, x: &Self::Buffer, weight: &Self::Matrix) -> Self::Buffer {
        dispatch!(self.linear(x, weight))
    }

    fn linear_onto(&self, x: &Self::Buffer, weight: &Self::Matrix, residual: &Self::Buffer) -> Self::Buffer {
        dispatch!(self.linear_onto(x, weight, residual))
    }

    fn linear_backward_input(&self, d_out: &Self::Buffer, weight: &Self::Matrix) -> Self::Buffer {
        dispatch!(self.linear_backward_input(d_out, weight))
    }

    fn linear_backward_weight(
        &self,
        d_out: &Self::Buffer,
        x: &Self::Buffer,
        out: usize,
        input: usize,
        d_weight: Part<'_, Self::Flat>,
    ) {
        dispatch!(self.linear_backward_weight(d_out, x, out, input, d_weight))
    }

    fn linear_columns(
        &self,
        x: &Self::Buffer,
        from: Columns,
        weight: &Self::Matrix,
        y: &mut Self::Buffer,
        to: Columns,
    ) {
        dispatch!(self.linear_columns(x, from, weight, y, to))
    }

    fn linear_columns_backward_input(
        &self,
        d_out: &Self::Buffer,
        from: Columns,
        weight: &Self::Matrix,
        d_x: &mut Self::Buffer,
        to: Columns,
    ) {
        dispatch!(self.linear_columns_backward_input(d_out, from, weight, d_x, to))
    }

    fn linear_columns_backward_weight(
        &self,
        d_out: &Self::Buffer,
        from: Columns,
        x: &Self::Buffer,
        of: Columns,
        d_weight: Part<'_, Self::Flat>,
    ) {
        dispatch!(self.linear_columns_backward_weight(d_out, from, x, of, d_weight))
    }

    fn linear_low_rank(
        &self,
        x: &Self::Buffer,
        weight: &Self::Matrix,
        z: &Self::Buffer,
        factors: &[LowRank<'_, Self::Matrix>],
        residual: Option<&Self::Buffer>,
    ) -> Self::Buffer {
        match self {
            Device::Cpu(b) => {
                let factors: Vec<_> = factors.iter().map(|factor| factor.of(Matrix::cpu)).collect();
                b.linear_low_rank(x.on_cpu(), weight.on_cpu(), z.on_cpu(), &factors, residual.on_cpu()).returned()
            }
            Device::Cuda(b) => {
                let factors: Vec<_> = factors.iter().map(|factor| factor.of(Matrix::cuda)).collect();
                b.linear_low_rank(x.on_cuda(), weight.on_cuda(), z.on_cuda(), &factors, residual.on_cuda()).returned()
            }
        }
    }

    fn linear_low_rank_backward_input(
        &self,
        d_out: &Self::Buffer,
        weight: &Self::Matrix,
        d_z: &Self::Buffer,
        a: LowRank<'_, Self::Matrix>,
    ) -> Self::Buffer {
        dispatch!(self.linear_low_rank_backward_input(d_out, weight, d_z, a))
    }

    fn add(&self, x: &mut Self::Buffer, y: &Self::Buffer, width: usize) {
        dispatch!(self.add(x, y, width))
    }

    fn scale(&self, x: &mut Self::Buffer, factor: f32) {
        dispatch!(self.scale(x, factor))
    }

    fn add_bias(&self, x: &mut Self::Buffer, bias: &Self::Buffer) {
        dispatch!(self.add_bias(x, bias))
    }

    fn add_bias_backward(&self, d_out: &Self::Buffer, d_bias: Part<'_, Self::Flat>) {
        dispatch!(self.add_bias_backward(d_out, d_bias))
    }

    fn head_norm(
        &self,
        fused: &mut Self::Buffer,
        shape: &AttentionShape,
        heads: Range<usize>,
        weight: &Self::Buffer,
        kind: NormWeight,
        eps: f32,
    ) -> Self::Buffer {
        dispatch!(self.head_norm(fused, shape, heads, weight, kind, eps))
    }

    fn head_norm_backward(
        &self,
        d_fused: &mut Self::Buffer,
        raw: &Self::Buffer,
        inverse: &Self::Buffer,
        shape: &AttentionShape,
        heads: Range<usize>,
        weight: &Self::Buffer,
        kind: NormWeight,
        d_weight: Option<Part<'_, Self::Flat>>,
    ) {
        dispatch!(self.head_norm_backward(d_fused, raw, inverse, shape, heads, weight, kind, d_weight))
    }

    fn rotary(&self, fused: &mut Self::Buffer, positions: &[u32], angles: &Self::Angles, shape: &AttentionShape) {
        dispatch!(self.rotary(fused, positions, angles, shape))
    }

    fn rotary_backward(
        &self,
        d_fused: &mut Self::Buffer,
        positions: &[u32],
        angles: &Self::Angles,
        shape: &AttentionShape,
    ) {
        dispatch!(self.rotary_backward(d_fused, positions, angles, shape))
    }

    fn attention(
        &self,
        fused: &Self::Buffer,
        cu_seqlens: &[usize],
        shape: &AttentionShape,
    ) -> (Self::Buffer, Self::Buffer) {
        dispatch!(self.attention(fused, cu_seqlens, shape))
    }

    fn attention_backward(
        &self,
        d_out: &Self::Buffer,
        attended: (&Self::Buffer, &Self::Buffer),
        fused: &Self::Buffer,
        cu_seqlens: &[usize],
        shape: &AttentionShape,
    ) -> Self::Buffer {
        dispatch!(self.attention_backward(d_out, attended, fused, cu_seqlens, shape))
    }

    fn gated(&self, x: &Self::Buffer, width: usize, activation: Activation) -> Self::Buffer {
        dispatch!(self.gated(x, width, activation))
    }

    fn gated_backward(
        &self,
        d_out: &Self::Buffer,
        x: &Self::Buffer,
        width: usize,
        activation: Activation,
    ) -> Self::Buffer {
        dispatch!(self.gated_backward(d_out, x, width, activation))
    }

    fn gather(&self, x: &Self::Buffer, width: usize, rows: &[u32]) -> Self::Buffer {
        dispatch!(self.gather(x, width, rows))
    }

    fn scatter_add(&self, x: &mut Self::Buffer, width: usize, rows: &[u32], y: &Self::Buffer) {
        dispatch!(self.scatter_add(x, width, rows, y))
    }

    fn len(&self, x: &Self::Buffer) -> usize {
        dispatch!(self.len(x))
    }

    fn zeros(&self, len: usize) -> Self::Buffer {
        dispatch!(self.zeros(len))
    }

    fn token_stats(&self, heads: &[(&Self::Buffer, &Self::Matrix, f32)], query: LogprobQuery<'_>) -> TokenStats {
        match self {
            Device::Cpu(b) => {
                let heads: Vec<_> = heads.iter().map(|(x, w, mix)| (x.cpu(), w.cpu(), *mix)).collect();
                b.token_stats(&heads, query)
            }
            Device::Cuda(b) => {
                let heads: Vec<_> = heads.iter().map(|(x, w, mix)| (x.cuda(), w.cuda(), *mix)).collect();
                b.token_stats(&heads, query)
            }
        }
    }

    fn token_stats_backward(
        &self,
        d_logprobs: &[f32],
        hidden: &Self::Buffer,
        head: &Self::Matrix,
        query: LogprobQuery<'_>,
        log_sums: &[f32],
        d_weight: Option<Part<'_, Self::Flat>>,
    ) -> Self::Buffer {
        dispatch!(self.token_stats_backward(d_logprobs, hidden, head, query, log_sums, d_weight))
    }

    fn draw(
        &self,
        hidden: &Self::Buffer,
        head: &Self::Matrix,
        softcap: Option<f32>,
        choice: &Choice,
        uniforms: &[f32],
    ) -> Vec<(u32, f32)> {
        dispatch!(self.draw(hidden, head, softcap, choice, uniforms))
    }

    fn rank(
        &self,
        hidden: &Self::Buffer,
        head: &Self::Matrix,
        softcap: Option<f32>,
        targets: &[u32],
        count: usize,
    ) -> Vec<Ranking> {
        dispatch!(self.rank(hidden, head, softcap, targets, count))
    }

    fn scalar_head(&self, x: &Self::Buffer, weight: &Self::Buffer) -> Vec<f32> {
        dispatch!(self.scalar_head(x, weight))
    }

    fn scalar_head_backward(
        &self,
        d_values: &[f32],
        x: &Self::Buffer,
        weight: &Self::Buffer,
        d_weight: Option<Part<'_, Self::Flat>>,
    ) -> Self::Buffer {
        dispatch!(self.scalar_head_backward(d_values, x, weight, d_weight))
    }

    fn cache(&self, slots: usize, capacity: usize, shape: &AttentionShape) -> Self::Cache {
        dispatch!(self.cache(slots, capacity, shape))
    }

    fn cache_store(&self, cache: &mut Self::Cache, fused: &Self::Buffer, entries: &[(usize, usize, usize)]) {
        dispatch!(self.cache_store(cache, fused, entries))
    }

    fn cache_copy(&self, cache: &mut Self::Cache, from: usize, to: usize, len: usize) {
        dispatch!(self.cache_copy(cache, from, to, len))
    }

    fn cached_attention(&self, cache: &Self::Cache, fused: &Self::Buffer, entries: &[(usize, usize)]) -> Self::Buffer {
        dispatch!(self.cached_attention(cache, fused, entries))
    }

    fn sum_of_squares(&self, gradients: &Self::Flat) -> f64 {
        dispatch!(self.sum_of_squares(gradients))
    }

    fn adamw(&self, of: Moments<'_, Self::Flat>, range: Range<usize>, decay: Decay, step: &AdamWStep) {
        dispatch!(self.adamw(of, range, decay, step))
    }
}
