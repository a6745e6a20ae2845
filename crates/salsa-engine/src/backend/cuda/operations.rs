//! The operations of [`Backend`] on a GPU: which kernels and products each starts, in which order.

use super::kind::Kind;
use super::{Angles, Buffer, Cache, Cuda, Flat, Matrix, adamw, attention, head, products, rows};
use crate::backend::cpu::Dtype;
use crate::backend::{
    AdamWStep, AttentionShape, Backend, Choice, Columns, Decay, LogprobQuery, LowRank, Moments, Part, Ranking,
    RotaryTable, TokenStats,
};
use crate::error::ModelError;
use crate::spec::{Activation, BlockNorms, ModelSpec, NormSpan, NormWeight};
use crate::weights::Numbers;
use std::borrow::Cow;
use std::ops::Range;

/// Head sizes must be a multiple of this, so that heads are read sixteen bytes at a time.
const HEAD_STEP: usize = 8;
/// The largest size of a head.
const LARGEST_HEAD: usize = 256;

/// An option of a model that the kernels do not have, by its name in `config.json` where there is one. Scales of scores,
/// windows and rotary positions of single layers, scaled rotary positions and fused projections are only other
/// arguments of the kernels.
fn unsupported(spec: &ModelSpec) -> Option<&'static str> {
    let options = &spec.options;
    let cases = [
        (options.attention_softcap.is_some(), "attn_logit_softcapping"),
        (options.logit_softcap.is_some(), "final_logit_softcapping"),
        (options.norms != BlockNorms::Before, "norms of what attention and MLP add"),
        (options.output_bias, "attention_bias"),
        (options.logit_divisor != 1.0, "logits_scaling"),
        (options.residual_scale != 1.0, "residual_multiplier"),
        (spec.rotary_dim() != spec.head_dim, "partial_rotary_factor"),
        (spec.qk_norm && spec.norm != NormWeight::Plain, "query and key norms of one plus the weight"),
        (spec.qk_norm && options.qk_norm_span != NormSpan::Head, "query and key norms over all heads"),
    ];
    cases.into_iter().find_map(|(has, name)| has.then_some(name))
}

impl Backend for Cuda {
    type Buffer = Buffer;
    type Matrix = Matrix;
    type Cache = Cache;
    type Flat = Flat;
    type Angles = Angles;

    fn check(&self, spec: &ModelSpec) -> Result<(), ModelError> {
        if let Some(option) = unsupported(spec) {
            return Err(ModelError::Spec(format!("{option}: not supported on a GPU; use the CPU (device: cpu)")));
        }
        let size = spec.head_dim;
        if size.is_multiple_of(HEAD_STEP) && size <= LARGEST_HEAD {
            return Ok(());
        }
        let message = format!("on a GPU head_dim is a multiple of {HEAD_STEP} up to {LARGEST_HEAD}, not {size}");
        Err(ModelError::Spec(message))
    }

    // Its copies of rows have been run on no card.
    fn shares_prefixes(&self) -> bool {
        false
    }

    fn flat(&self, numbers: Vec<f32>) -> Flat {
        Flat(self.card.upload_f32(&numbers))
    }

    fn flat_zeros(&self, len: usize) -> Flat {
        Flat(self.card.zeros(len, Kind::F32))
    }

    fn numbers<'a>(&self, flat: &'a Flat) -> Cow<'a, [f32]> {
        Cow::Owned(self.card.download(&flat.0))
    }

    fn clear(&self, flat: &mut Flat) {
        let (to, bytes) = (flat.0.pointer_new(), flat.0.bytes());
        self.card.clear(to, bytes);
    }

    fn copy(&self, flat: &Flat, range: Range<usize>) -> Buffer {
        let mut copy = self.card.room(range.len(), Kind::F32);
        let from = flat.0.pointer() + (range.start * Kind::F32.bytes()) as u64;
        self.card.copy(from, copy.pointer_mut(), copy.bytes());
        copy
    }

    fn refresh_from(&self, matrix: &mut Matrix, flat: &Flat, range: Range<usize>) {
        let from = flat.0.pointer() + (range.start * Kind::F32.bytes()) as u64;
        let to = matrix.numbers.pointer_new();
        match matrix.numbers.kind() {
            Kind::F32 => self.card.copy(from, to, range.len() * Kind::F32.bytes()),
            Kind::Bf16 => self.card.convert(from, Kind::F32, to, range.len()),
        }
    }

    fn angles(&self, table: RotaryTable) -> Angles {
        Angles { cos: self.card.upload_f32(&table.cos), sin: self.card.upload_f32(&table.sin) }
    }

    fn upload(&self, data: &[f32]) -> Buffer {
        self.card.upload_f32(data)
    }

    fn download(&self, buffer: &Buffer) -> Vec<f32> {
        self.card.download(buffer)
    }

    fn room(&self, len: usize) -> Buffer {
        self.card.room(len, Kind::F32)
    }

    fn store(&self, buffer: &mut Buffer, at: usize, numbers: Numbers<'_>) {
        self.card.store(buffer, at, numbers);
    }

    fn allocate_matrix(&self, out: usize, input: usize) -> Matrix {
        Matrix { numbers: self.card.room(out * input, self.kind()), out, input }
    }

    fn refresh(&self, matrix: &mut Matrix, first: usize, weights: Numbers<'_>) {
        let at = first * matrix.input;
        self.card.store(&mut matrix.numbers, at, weights);
    }

    fn packs_losslessly(&self, numbers: Numbers<'_>) -> bool {
        self.dtype == Dtype::F32 || matches!(numbers, Numbers::Bf16(_))
    }

    fn embed(&self, table: &Buffer, tokens: &[u32], hidden: usize, scale: f32) -> Buffer {
        rows::embed(&self.card, table, tokens, hidden, scale)
    }

    fn embed_packed(&self, table: &Matrix, tokens: &[u32], scale: f32) -> Buffer {
        rows::embed(&self.card, &table.numbers, tokens, table.input, scale)
    }

    fn embed_backward(&self, d_out: &Buffer, tokens: &[u32], hidden: usize, scale: f32, d_table: Part<'_, Flat>) {
        rows::embed_backward(&self.card, d_out, tokens, hidden, scale, d_table.place());
    }

    fn rms_norm(&self, x: &Buffer, weight: &Buffer, kind: NormWeight, eps: f32) -> (Buffer, Buffer) {
        rows::rms_norm(&self.card, x, weight, kind, eps, self.kind())
    }

    fn rms_norm_backward(
        &self,
        d_out: &Buffer,
        x: &Buffer,
        inverse: &Buffer,
        weight: &Buffer,
        kind: NormWeight,
        d_x: &mut Buffer,
        d_weight: Option<Part<'_, Flat>>,
    ) {
        let d_weight = d_weight.map(Part::place);
        let copy = self.kind() == Kind::Bf16;
        let copied = rows::rms_norm_backward(&self.card, d_out, x, inverse, weight, kind, d_x, d_weight, copy);
        if let Some(copied) = copied {
            d_x.remember_rounded(copied);
        }
    }

    fn linear(&self, x: &Buffer, weight: &Matrix) -> Buffer {
        products::linear(x, weight, weight.kind())
    }

    fn linear_onto(&self, x: &Buffer, weight: &Matrix, residual: &Buffer) -> Buffer {
        products::linear_onto(x, weight, residual)
    }

    fn linear_backward_input(&self, d_out: &Buffer, weight: &Matrix) -> Buffer {
        products::backward_input(d_out, weight)
    }

    fn linear_backward_weight(&self, d_out: &Buffer, x: &Buffer, out: usize, input: usize, d_weight: Part<'_, Flat>) {
        products::backward_weight(d_out, Columns::all(out), x, Columns::all(input), self.kind(), d_weight.place());
    }

    fn linear_columns(&self, x: &Buffer, from: Columns, weight: &Matrix, y: &mut Buffer, to: Columns) {
        products::linear_columns(x, from, weight, y, to);
    }

    fn linear_columns_backward_input(
        &self,
        d_out: &Buffer,
        from: Columns,
        weight: &Matrix,
        d_x: &mut Buffer,
        to: Columns,
    ) {
        products::columns_backward_input(d_out, from, weight, d_x, to);
    }

    fn linear_columns_backward_weight(
        &self,
        d_out: &Buffer,
        from: Columns,
        x: &Buffer,
        of: Columns,
        d_weight: Part<'_, Flat>,
    ) {
        products::backward_weight(d_out, from, x, of, self.kind(), d_weight.place());
    }

    fn linear_low_rank(
        &self,
        x: &Buffer,
        weight: &Matrix,
        z: &Buffer,
        factors: &[LowRank<'_, Matrix>],
        residual: Option<&Buffer>,
    ) -> Buffer {
        products::linear_low_rank(x, weight, z, factors, residual)
    }

    fn linear_low_rank_backward_input(
        &self,
        d_out: &Buffer,
        weight: &Matrix,
        d_z: &Buffer,
        a: LowRank<'_, Matrix>,
    ) -> Buffer {
        products::low_rank_backward_input(d_out, weight, d_z, a)
    }

    fn scale(&self, x: &mut Buffer, factor: f32) {
        rows::scale(&self.card, x, factor);
    }

    fn add_bias(&self, x: &mut Buffer, bias: &Buffer) {
        rows::add_bias(&self.card, x, bias);
    }

    fn add_bias_backward(&self, d_out: &Buffer, d_bias: Part<'_, Flat>) {
        let width = d_bias.range.len();
        rows::add_bias_backward(&self.card, d_out, width, d_bias.place());
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
        assert!(kind == NormWeight::Plain && weight.len() == shape.head_dim, "`check` refuses other norms of heads");
        rows::head_norm(&self.card, fused, shape, heads, weight, eps)
    }

    fn head_norm_backward(
        &self,
        d_fused: &mut Buffer,
        raw: &Buffer,
        inverse: &Buffer,
        shape: &AttentionShape,
        heads: Range<usize>,
        weight: &Buffer,
        _: NormWeight,
        d_weight: Option<Part<'_, Flat>>,
    ) {
        let d_weight = d_weight.map(Part::place);
        rows::head_norm_backward(&self.card, d_fused, raw, inverse, shape, heads, weight, d_weight);
    }

    fn rotary(&self, fused: &mut Buffer, positions: &[u32], angles: &Angles, shape: &AttentionShape) {
        let positions = self.words(positions);
        rows::rotary(&self.card, fused, &positions, (&angles.cos, &angles.sin), shape, 1.0);
    }

    fn rotary_backward(&self, d_fused: &mut Buffer, positions: &[u32], angles: &Angles, shape: &AttentionShape) {
        let positions = self.words(positions);
        rows::rotary(&self.card, d_fused, &positions, (&angles.cos, &angles.sin), shape, -1.0);
    }

    fn attention(&self, fused: &Buffer, cu_seqlens: &[usize], shape: &AttentionShape) -> (Buffer, Buffer) {
        let tiles = self.recent.tiles(&self.card, cu_seqlens);
        attention::forward(&self.card, fused, &tiles, shape)
    }

    fn attention_backward(
        &self,
        d_out: &Buffer,
        attended: (&Buffer, &Buffer),
        fused: &Buffer,
        cu_seqlens: &[usize],
        shape: &AttentionShape,
    ) -> Buffer {
        let tiles = self.recent.tiles(&self.card, cu_seqlens);
        attention::backward(&self.card, d_out, attended, fused, &tiles, shape)
    }

    fn gated(&self, x: &Buffer, width: usize, activation: Activation) -> Buffer {
        rows::gated(&self.card, x, width, activation)
    }

    fn gated_backward(&self, d_out: &Buffer, x: &Buffer, width: usize, activation: Activation) -> Buffer {
        rows::gated_backward(&self.card, &d_out.as_kind(x.kind()), x, width, activation)
    }

    fn gather(&self, x: &Buffer, width: usize, rows: &[u32]) -> Buffer {
        rows::gather(&self.card, x, width, rows)
    }

    fn scatter_add(&self, x: &mut Buffer, width: usize, rows: &[u32], y: &Buffer) {
        rows::scatter_add(&self.card, x, width, rows, y);
    }

    fn len(&self, x: &Buffer) -> usize {
        x.len()
    }

    fn zeros(&self, len: usize) -> Buffer {
        self.card.zeros(len, Kind::F32)
    }

    fn token_stats(&self, heads: &[(&Buffer, &Matrix, f32)], query: LogprobQuery<'_>) -> TokenStats {
        head::token_stats(&self.card, heads, query)
    }

    fn token_stats_backward(
        &self,
        d_logprobs: &[f32],
        hidden: &Buffer,
        head: &Matrix,
        query: LogprobQuery<'_>,
        log_sums: &[f32],
        d_weight: Option<Part<'_, Flat>>,
    ) -> Buffer {
        let d_weight = d_weight.map(Part::place);
        head::token_stats_backward(&self.card, d_logprobs, hidden, head, query, log_sums, d_weight)
    }

    fn draw(
        &self,
        hidden: &Buffer,
        head: &Matrix,
        softcap: Option<f32>,
        choice: &Choice,
        uniforms: &[f32],
    ) -> Vec<(u32, f32)> {
        assert!(softcap.is_none(), "`check` refuses capped logits");
        head::draw(&self.card, hidden, head, choice, uniforms)
    }

    fn rank(
        &self,
        hidden: &Buffer,
        head: &Matrix,
        softcap: Option<f32>,
        targets: &[u32],
        count: usize,
    ) -> Vec<Ranking> {
        assert!(softcap.is_none(), "`check` refuses capped logits");
        head::rank(&self.card, hidden, head, targets, count)
    }

    fn scalar_head(&self, x: &Buffer, weight: &Buffer) -> Vec<f32> {
        self.card.download(&rows::scalar_head(&self.card, x, weight))
    }

    fn scalar_head_backward(
        &self,
        d_values: &[f32],
        x: &Buffer,
        weight: &Buffer,
        d_weight: Option<Part<'_, Flat>>,
    ) -> Buffer {
        let d_values = self.card.upload_f32(d_values);
        rows::scalar_head_backward(&self.card, &d_values, x, weight, d_weight.map(Part::place), x.kind())
    }

    fn cache(&self, slots: usize, capacity: usize, shape: &AttentionShape) -> Cache {
        Cache::new(&self.card, slots, capacity, shape, self.kind())
    }

    fn cache_store(&self, cache: &mut Cache, fused: &Buffer, entries: &[(usize, usize, usize)]) {
        let [rows, slots, positions] = self.entries(entries.iter().map(|&(row, slot, at)| [row, slot, at]));
        cache.store(&self.card, fused, &rows, &slots, &positions);
    }

    fn cache_copy(&self, cache: &mut Cache, from: usize, to: usize, len: usize) {
        cache.copy(&self.card, from, to, len);
    }

    fn cached_attention(&self, cache: &Cache, fused: &Buffer, entries: &[(usize, usize)]) -> Buffer {
        let [slots, positions] = self.entries(entries.iter().map(|&(slot, at)| [slot, at]));
        let longest = entries.iter().map(|entry| entry.1 + 1).max().unwrap_or(0);
        cache.attention(&self.card, fused, &slots, &positions, longest)
    }

    fn sum_of_squares(&self, gradients: &Flat) -> f64 {
        adamw::sum_of_squares(&self.card, gradients.0.pointer(), gradients.0.len())
    }

    fn adamw(&self, of: Moments<'_, Flat>, range: Range<usize>, decay: Decay, step: &AdamWStep) {
        let places = [of.weights, of.gradients, of.m, of.v].map(|flat| flat.place(range.start));
        adamw::adamw(&self.card, places, 0, range.len(), decay, step);
    }
}

impl Part<'_, Flat> {
    /// The address of the first number.
    fn place(self) -> u64 {
        self.flat.place(self.range.start)
    }
}
