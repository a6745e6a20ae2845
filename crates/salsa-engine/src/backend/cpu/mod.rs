//! The CPU backend: all cores, the fastest available instruction set, products in f32 or bfloat16.

pub(crate) mod adamw;
mod attention;
mod buffer;
mod cache;
mod dtype;
mod gemm;
mod head;
pub mod isa;
mod kernel;
mod low_rank;
mod math;
mod pack;
mod rows;
mod sampler;
mod view;

pub(crate) use attention::{backward_scratch as attention_backward_scratch, scratch as attention_scratch};
pub use buffer::Buffer;
pub(crate) use buffer::POOLED;
pub use cache::Cache;
pub use dtype::Dtype;
pub use gemm::Packed;
pub(crate) use head::{token_stats_backward_block, token_stats_tasks};
pub(crate) use rows::ROW_BLOCK;
pub(crate) use sampler::rank;

use super::{
    AdamWStep, AttentionShape, Backend, Choice, Columns, Decay, LogprobQuery, Moments, Part, Ranking, RotaryTable,
    TokenStats,
};
use crate::memory;
use crate::spec::{Activation, NormWeight};
use crate::weights::Numbers;
use gemm::gemm;
use kernel::Store;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::OnceLock;
use view::View;

/// The CPU, through a pool of threads. Results do not depend on their number.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// The number type of products.
    pub dtype: Dtype,
}

impl Cpu {
    /// The instruction set of the matrix kernels in use: `amx-bf16`, `avx512-bf16`, `avx512`, `avx2`, `neon` or `scalar`.
    pub fn isa(&self) -> &'static str {
        match (isa::isa(), self.dtype) {
            (isa::Isa::Amx | isa::Isa::Avx512Bf16, Dtype::F32) => isa::Isa::Avx512.name(),
            (isa, _) => isa.name(),
        }
    }
}

impl Part<'_, Vec<f32>> {
    fn numbers(&mut self) -> &mut [f32] {
        &mut self.flat[self.range.clone()]
    }
}

impl Backend for Cpu {
    type Buffer = Buffer;
    type Matrix = Packed;
    type Cache = Cache;
    type Flat = Vec<f32>;
    type Angles = RotaryTable;

    fn shares_prefixes(&self) -> bool {
        true
    }

    fn flat(&self, numbers: Vec<f32>) -> Vec<f32> {
        memory::settled(numbers)
    }

    fn flat_zeros(&self, len: usize) -> Vec<f32> {
        memory::zeros(len)
    }

    fn numbers<'a>(&self, flat: &'a Vec<f32>) -> Cow<'a, [f32]> {
        Cow::Borrowed(flat)
    }

    fn host<'a>(&self, flat: &'a mut Vec<f32>) -> Option<&'a mut [f32]> {
        Some(flat)
    }

    fn clear(&self, flat: &mut Vec<f32>) {
        flat.fill(0.0);
    }

    fn copy(&self, flat: &Vec<f32>, range: Range<usize>) -> Buffer {
        self.upload(&flat[range])
    }

    fn refresh_from(&self, matrix: &mut Packed, flat: &Vec<f32>, range: Range<usize>) {
        self.refresh(matrix, 0, flat[range].into());
    }

    fn angles(&self, table: RotaryTable) -> RotaryTable {
        table
    }

    fn upload(&self, data: &[f32]) -> Buffer {
        let mut buffer = Buffer::lasting(data.len());
        buffer.copy_from_slice(data);
        buffer
    }

    fn download(&self, buffer: &Buffer) -> Vec<f32> {
        buffer.to_vec()
    }

    fn room(&self, len: usize) -> Buffer {
        Buffer::lasting(len)
    }

    fn store(&self, buffer: &mut Buffer, at: usize, numbers: Numbers<'_>) {
        rows::copy(&mut buffer[at..at + numbers.len()], numbers);
    }

    fn allocate_matrix(&self, out: usize, input: usize) -> Packed {
        Packed::room(self.dtype, input, out)
    }

    fn refresh(&self, matrix: &mut Packed, first: usize, weights: Numbers<'_>) {
        matrix.pack_weights(first, weights);
    }

    fn packs_losslessly(&self, numbers: Numbers<'_>) -> bool {
        self.dtype == Dtype::F32 || matches!(numbers, Numbers::Bf16(_))
    }

    fn embed(&self, table: &Buffer, tokens: &[u32], hidden: usize, scale: f32) -> Buffer {
        rows::embed(table, tokens, hidden, scale)
    }

    fn embed_packed(&self, table: &Packed, tokens: &[u32], scale: f32) -> Buffer {
        let hidden = table.depth();
        let mut out = Buffer::uninitialized(tokens.len() * hidden);
        rows::each_row(&mut out, hidden, |t, row| {
            table.column(tokens[t] as usize, row);
            row.iter_mut().for_each(|x| *x *= scale);
        });
        out
    }

    fn embed_backward(
        &self,
        d_out: &Buffer,
        tokens: &[u32],
        hidden: usize,
        scale: f32,
        mut d_table: Part<'_, Vec<f32>>,
    ) {
        rows::embed_backward(d_out, tokens, hidden, scale, d_table.numbers());
    }

    fn rms_norm(&self, x: &Buffer, weight: &Buffer, kind: NormWeight, eps: f32) -> (Buffer, Buffer) {
        rows::rms_norm(x, weight, kind, eps)
    }

    fn rms_norm_backward(
        &self,
        d_out: &Buffer,
        x: &Buffer,
        inverse: &Buffer,
        weight: &Buffer,
        kind: NormWeight,
        d_x: &mut Buffer,
        d_weight: Option<Part<'_, Vec<f32>>>,
    ) {
        rows::rms_norm_backward(d_out, x, inverse, weight, kind, d_x);
        if let Some(mut d_weight) = d_weight {
            rows::rms_norm_backward_weight(d_out, x, inverse, d_weight.numbers());
        }
    }

    fn linear(&self, x: &Buffer, weight: &Packed) -> Buffer {
        let (out, input) = (weight.columns(), weight.depth());
        let rows = x.len() / input;
        let mut y = Buffer::uninitialized(rows * out);
        gemm((rows, out, input), View::rows(x, input), weight.panels(), &mut y, out, Store::Replace);
        y
    }

    fn linear_onto(&self, x: &Buffer, weight: &Packed, residual: &Buffer) -> Buffer {
        let mut y = self.linear(x, weight);
        rows::add(&mut y, residual);
        y
    }

    fn linear_backward_input(&self, d_out: &Buffer, weight: &Packed) -> Buffer {
        let (out, input) = (weight.columns(), weight.depth());
        let rows = d_out.len() / out;
        let mut transposed = Packed::default();
        transposed.transpose_of(weight, 0, out);
        let mut d_x = Buffer::uninitialized(rows * input);
        gemm((rows, input, out), View::rows(d_out, out), transposed.panels(), &mut d_x, input, Store::Replace);
        d_x
    }

    fn linear_backward_weight(
        &self,
        d_out: &Buffer,
        x: &Buffer,
        out: usize,
        input: usize,
        mut d_weight: Part<'_, Vec<f32>>,
    ) {
        let rows = d_out.len() / out;
        let packed = Packed::new(self.dtype, View::rows(x, input), rows, input);
        gemm((out, input, rows), View::rows(d_out, out).t(), packed.panels(), d_weight.numbers(), input, Store::Add);
    }

    fn linear_columns(&self, x: &Buffer, from: Columns, weight: &Packed, y: &mut Buffer, to: Columns) {
        low_rank::linear(x, from, weight, y, to);
    }

    fn linear_columns_backward_input(
        &self,
        d_out: &Buffer,
        from: Columns,
        weight: &Packed,
        d_x: &mut Buffer,
        to: Columns,
    ) {
        low_rank::backward_input(d_out, from, weight, d_x, to);
    }

    fn linear_columns_backward_weight(
        &self,
        d_out: &Buffer,
        from: Columns,
        x: &Buffer,
        of: Columns,
        mut d_weight: Part<'_, Vec<f32>>,
    ) {
        low_rank::backward_weight(self.dtype, d_out, from, x, of, d_weight.numbers());
    }

    fn scale(&self, x: &mut Buffer, factor: f32) {
        low_rank::scale(x, factor);
    }

    fn add(&self, x: &mut Buffer, y: &Buffer, _: usize) {
        rows::add(x, y);
    }

    fn add_bias(&self, x: &mut Buffer, bias: &Buffer) {
        rows::add_bias(x, bias);
    }

    fn add_bias_backward(&self, d_out: &Buffer, mut d_bias: Part<'_, Vec<f32>>) {
        rows::add_bias_backward(d_out, d_bias.numbers());
    }

    fn head_norm(
        &self,
        fused: &mut Buffer,
        shape: &AttentionShape,
        heads: Range<usize>,
        weight: &Buffer,
        kind: NormWeight,
        eps: f32,
    ) -> Buffer {
        rows::head_norm(fused, shape, heads, weight, kind, eps)
    }

    fn head_norm_backward(
        &self,
        d_fused: &mut Buffer,
        raw: &Buffer,
        inverse: &Buffer,
        shape: &AttentionShape,
        heads: Range<usize>,
        weight: &Buffer,
        kind: NormWeight,
        d_weight: Option<Part<'_, Vec<f32>>>,
    ) {
        if let Some(mut d_weight) = d_weight {
            rows::head_norm_backward_weight(d_fused, raw, inverse, shape, heads.clone(), d_weight.numbers());
        }
        rows::head_norm_backward(d_fused, raw, inverse, shape, heads, weight, kind);
    }

    fn rotary(&self, fused: &mut Buffer, positions: &[u32], table: &RotaryTable, shape: &AttentionShape) {
        rows::rotary(fused, positions, table, shape, 1.0);
    }

    fn rotary_backward(&self, d_fused: &mut Buffer, positions: &[u32], table: &RotaryTable, shape: &AttentionShape) {
        rows::rotary(d_fused, positions, table, shape, -1.0);
    }

    fn attention(&self, fused: &Buffer, cu_seqlens: &[usize], shape: &AttentionShape) -> (Buffer, Buffer) {
        (attention::forward(self.dtype, fused, cu_seqlens, shape), Buffer::default())
    }

    fn attention_backward(
        &self,
        d_out: &Buffer,
        _: (&Buffer, &Buffer),
        fused: &Buffer,
        cu_seqlens: &[usize],
        shape: &AttentionShape,
    ) -> Buffer {
        attention::backward(self.dtype, d_out, fused, cu_seqlens, shape)
    }

    fn gated(&self, x: &Buffer, width: usize, activation: Activation) -> Buffer {
        rows::gated(x, width, activation)
    }

    fn gated_backward(&self, d_out: &Buffer, x: &Buffer, width: usize, activation: Activation) -> Buffer {
        rows::gated_backward(d_out, x, width, activation)
    }

    fn gather(&self, x: &Buffer, width: usize, rows: &[u32]) -> Buffer {
        let mut out = Buffer::uninitialized(rows.len() * width);
        rows::each_row(&mut out, width, |i, out| out.copy_from_slice(&x[rows[i] as usize * width..][..width]));
        out
    }

    fn scatter_add(&self, x: &mut Buffer, width: usize, rows: &[u32], y: &Buffer) {
        rows::scatter_add(x, width, rows, y);
    }

    fn len(&self, x: &Buffer) -> usize {
        x.len()
    }

    fn zeros(&self, len: usize) -> Buffer {
        Buffer::zeros(len)
    }

    fn token_stats(&self, heads: &[(&Buffer, &Packed, f32)], query: LogprobQuery<'_>) -> TokenStats {
        head::token_stats(heads, query)
    }

    fn token_stats_backward(
        &self,
        d_logprobs: &[f32],
        hidden: &Buffer,
        head: &Packed,
        query: LogprobQuery<'_>,
        log_sums: &[f32],
        mut d_weight: Option<Part<'_, Vec<f32>>>,
    ) -> Buffer {
        let d_weight = d_weight.as_mut().map(Part::numbers);
        head::token_stats_backward(d_logprobs, hidden, head, query, log_sums, d_weight)
    }

    fn draw(
        &self,
        hidden: &Buffer,
        head: &Packed,
        softcap: Option<f32>,
        choice: &Choice,
        uniforms: &[f32],
    ) -> Vec<(u32, f32)> {
        let drawn: Vec<OnceLock<(u32, f32)>> = uniforms.iter().map(|_| OnceLock::new()).collect();
        let temperature = if choice.temperature == 0.0 { 1.0 } else { choice.temperature };
        head::logits(hidden, head, softcap, temperature, &|row, logits| {
            drawn[row].set(sampler::draw(logits, choice, uniforms[row])).expect("each row is drawn once");
        });
        drawn.into_iter().map(|drawn| drawn.into_inner().expect("every row was drawn")).collect()
    }

    fn rank(
        &self,
        hidden: &Buffer,
        head: &Packed,
        softcap: Option<f32>,
        targets: &[u32],
        count: usize,
    ) -> Vec<Ranking> {
        let ranked: Vec<OnceLock<Ranking>> = targets.iter().map(|_| OnceLock::new()).collect();
        head::logits(hidden, head, softcap, 1.0, &|row, logits| {
            ranked[row].set(sampler::rank(logits, targets[row], count)).expect("each row is ranked once");
        });
        ranked.into_iter().map(|ranked| ranked.into_inner().expect("every row was ranked")).collect()
    }

    fn scalar_head(&self, x: &Buffer, weight: &Buffer) -> Vec<f32> {
        x.chunks_exact(weight.len()).map(|row| math::dot(row, weight)).collect()
    }

    fn scalar_head_backward(
        &self,
        d_values: &[f32],
        x: &Buffer,
        weight: &Buffer,
        d_weight: Option<Part<'_, Vec<f32>>>,
    ) -> Buffer {
        let width = weight.len();
        if let Some(mut d_weight) = d_weight {
            rows::sum_rows(d_values.len(), d_weight.numbers(), |r, sum| {
                sum.iter_mut().zip(&x[r * width..]).for_each(|(s, x)| *s += d_values[r] * x);
            });
        }
        let mut d_x = Buffer::uninitialized(x.len());
        rows::each_row(&mut d_x, width, |r, d| d.iter_mut().zip(weight.iter()).for_each(|(d, w)| *d = d_values[r] * w));
        d_x
    }

    fn cache(&self, slots: usize, capacity: usize, shape: &AttentionShape) -> Cache {
        Cache::new(self.dtype, slots, capacity, shape)
    }

    fn cache_store(&self, cache: &mut Cache, fused: &Buffer, entries: &[(usize, usize, usize)]) {
        cache.store(fused, entries);
    }

    fn cache_copy(&self, cache: &mut Cache, from: usize, to: usize, len: usize) {
        cache.copy(from, to, len);
    }

    fn cached_attention(&self, cache: &Cache, fused: &Buffer, entries: &[(usize, usize)]) -> Buffer {
        cache.attention(fused, entries)
    }

    fn sum_of_squares(&self, gradients: &Vec<f32>) -> f64 {
        adamw::sum_of_squares(gradients)
    }

    fn adamw(&self, of: Moments<'_, Vec<f32>>, range: Range<usize>, decay: Decay, step: &AdamWStep) {
        let [weights, gradients, m, v] = [of.weights, of.gradients, of.m, of.v].map(|flat| &mut flat[range.clone()]);
        adamw::update(weights, gradients, m, v, decay, step);
    }
}
