//! The device of a run, chosen when the program runs: the processor or a GPU behind one type.
//!
//! Models are written against [`Backend`]; the program uses this one, which hands each operation to the backend that the
//! arrays live on.

use super::cpu::{self, Cpu, Dtype};
use super::cuda::{self, Cuda};
use super::{
    AdamWStep, AttentionShape, Backend, Choice, Columns, Decay, LogprobQuery, LowRank, Moments, Part, Ranking,
    RotaryTable, TokenStats,
};
use crate::error::ModelError;
use crate::spec::{Activation, ModelSpec, NormWeight};
use crate::weights::Numbers;
use std::borrow::Cow;
use std::ops::Range;

/// Where a model lives and computes.
#[derive(Clone, Debug)]
pub enum Device {
    /// The processor.
    Cpu(Cpu),
    /// An NVIDIA GPU.
    Cuda(Cuda),
}

impl Default for Device {
    /// The processor, in f32.
    fn default() -> Device {
        Device::Cpu(Cpu::default())
    }
}

impl From<Cpu> for Device {
    fn from(cpu: Cpu) -> Device {
        Device::Cpu(cpu)
    }
}

impl Device {
    /// The number type of its products.
    pub fn dtype(&self) -> Dtype {
        match self {
            Device::Cpu(cpu) => cpu.dtype,
            Device::Cuda(cuda) => cuda.dtype(),
        }
    }

    /// The name in metrics and reports: the processor's instruction set, or the GPU's name.
    pub fn name(&self) -> String {
        match self {
            Device::Cpu(cpu) => cpu.isa().to_owned(),
            Device::Cuda(cuda) => cuda.name().to_owned(),
        }
    }

    /// The GPU, if this is one.
    pub fn cuda(&self) -> Option<&Cuda> {
        match self {
            Device::Cpu(_) => None,
            Device::Cuda(cuda) => Some(cuda),
        }
    }

    /// Whether a token's log-prob is the same to the bit in decoding and in a training pass. On a GPU the order of sums goes
    /// by how many rows are computed together.
    pub fn decodes_as_trained(&self) -> bool {
        matches!(self, Device::Cpu(_))
    }
}

/// A value of either backend.
macro_rules! either {
    ($(#[$doc:meta])* $name:ident, $cpu:ty, $cuda:ty, $($derive:ident),*) => {
        $(#[$doc])*
        #[derive($($derive),*)]
        pub enum $name {
            /// On the processor.
            Cpu($cpu),
            /// On a GPU.
            Cuda($cuda),
        }

        impl $name {
            fn cpu(&self) -> &$cpu {
                let $name::Cpu(x) = self else { elsewhere() };
                x
            }
            fn cuda(&self) -> &$cuda {
                let $name::Cuda(x) = self else { elsewhere() };
                x
            }
            #[allow(dead_code, reason = "some kinds of value never change")]
            fn cpu_mut(&mut self) -> &mut $cpu {
                let $name::Cpu(x) = self else { elsewhere() };
                x
            }
            #[allow(dead_code, reason = "some kinds of value never change")]
            fn cuda_mut(&mut self) -> &mut $cuda {
                let $name::Cuda(x) = self else { elsewhere() };
                x
            }
        }
    };
}

/// A model's arrays are made by its own backend.
fn elsewhere() -> ! {
    panic!("an array of one device in an operation of another")
}

either!(
    /// An array of f32.
    Buffer, cpu::Buffer, cuda::Buffer, Clone
);
either!(
    /// A weight matrix.
    Matrix, cpu::Packed, cuda::Matrix,
);
either!(
    /// Keys and values of one layer.
    Cache, cpu::Cache, cuda::Cache,
);
either!(
    /// Flat memory of what is trained.
    Flat, Vec<f32>, cuda::Flat,
);
either!(
    /// Cosines and sines of rotary angles.
    Angles, RotaryTable, cuda::Angles,
);

/// Hands an operation on: `$to` is the backend, `$as` and `$as_mut` take an argument's value of that backend.
macro_rules! on {
    ($self:ident, |$b:ident| $cpu:expr, $cuda:expr) => {
        match $self {
            Device::Cpu($b) => $cpu,
            Device::Cuda($b) => $cuda,
        }
    };
}

impl<'a> LowRank<'a, Matrix> {
    /// The same with a matrix of one backend.
    fn of<M>(&self, matrix: impl FnOnce(&'a Matrix) -> &'a M) -> LowRank<'a, M> {
        LowRank { weight: matrix(self.weight), inner: self.inner, outer: self.outer }
    }
}

fn cpu_part<'a>(part: Part<'a, Flat>) -> Part<'a, Vec<f32>> {
    Part { flat: part.flat.cpu_mut(), range: part.range }
}

fn cuda_part<'a>(part: Part<'a, Flat>) -> Part<'a, cuda::Flat> {
    Part { flat: part.flat.cuda_mut(), range: part.range }
}

fn cpu_moments<'a>(of: Moments<'a, Flat>) -> Moments<'a, Vec<f32>> {
    let Moments { weights, gradients, m, v } = of;
    Moments { weights: weights.cpu_mut(), gradients: gradients.cpu_mut(), m: m.cpu_mut(), v: v.cpu_mut() }
}

fn cuda_moments<'a>(of: Moments<'a, Flat>) -> Moments<'a, cuda::Flat> {
    let Moments { weights, gradients, m, v } = of;
    Moments { weights: weights.cuda_mut(), gradients: gradients.cuda_mut(), m: m.cuda_mut(), v: v.cuda_mut() }
}

fn pair_cpu((a, b): (cpu::Buffer, cpu::Buffer)) -> (Buffer, Buffer) {
    (Buffer::Cpu(a), Buffer::Cpu(b))
}

fn pair_cuda((a, b): (cuda::Buffer, cuda::Buffer)) -> (Buffer, Buffer) {
    (Buffer::Cuda(a), Buffer::Cuda(b))
}

impl Backend for Device {
    type Buffer = Buffer;
    type Matrix = Matrix;
    type Cache = Cache;
    type Flat = Flat;
    type Angles = Angles;

    fn check(&self, spec: &ModelSpec) -> Result<(), ModelError> {
        on!(self, |b| b.check(spec), b.check(spec))
    }

    fn flat(&self, numbers: Vec<f32>) -> Self::Flat {
        on!(self, |b| Flat::Cpu(b.flat(numbers)), Flat::Cuda(b.flat(numbers)))
    }

    fn flat_zeros(&self, len: usize) -> Self::Flat {
        on!(self, |b| Flat::Cpu(b.flat_zeros(len)), Flat::Cuda(b.flat_zeros(len)))
    }

    fn numbers<'a>(&self, flat: &'a Self::Flat) -> Cow<'a, [f32]> {
        on!(self, |b| b.numbers(flat.cpu()), b.numbers(flat.cuda()))
    }

    fn clear(&self, flat: &mut Self::Flat) {
        on!(self, |b| b.clear(flat.cpu_mut()), b.clear(flat.cuda_mut()))
    }

    fn copy(&self, flat: &Self::Flat, range: Range<usize>) -> Self::Buffer {
        on!(self, |b| Buffer::Cpu(b.copy(flat.cpu(), range)), Buffer::Cuda(b.copy(flat.cuda(), range)))
    }

    fn refresh_from(&self, matrix: &mut Self::Matrix, flat: &Self::Flat, range: Range<usize>) {
        on!(
            self,
            |b| b.refresh_from(matrix.cpu_mut(), flat.cpu(), range),
            b.refresh_from(matrix.cuda_mut(), flat.cuda(), range)
        )
    }

    fn angles(&self, table: RotaryTable) -> Self::Angles {
        on!(self, |b| Angles::Cpu(b.angles(table)), Angles::Cuda(b.angles(table)))
    }

    fn upload(&self, data: &[f32]) -> Self::Buffer {
        on!(self, |b| Buffer::Cpu(b.upload(data)), Buffer::Cuda(b.upload(data)))
    }

    fn download(&self, buffer: &Self::Buffer) -> Vec<f32> {
        on!(self, |b| b.download(buffer.cpu()), b.download(buffer.cuda()))
    }

    fn room(&self, len: usize) -> Self::Buffer {
        on!(self, |b| Buffer::Cpu(b.room(len)), Buffer::Cuda(b.room(len)))
    }

    fn store(&self, buffer: &mut Self::Buffer, at: usize, numbers: Numbers<'_>) {
        on!(self, |b| b.store(buffer.cpu_mut(), at, numbers), b.store(buffer.cuda_mut(), at, numbers))
    }

    fn matrix_room(&self, out: usize, input: usize) -> Self::Matrix {
        on!(self, |b| Matrix::Cpu(b.matrix_room(out, input)), Matrix::Cuda(b.matrix_room(out, input)))
    }

    fn refresh(&self, matrix: &mut Self::Matrix, first: usize, weights: Numbers<'_>) {
        on!(self, |b| b.refresh(matrix.cpu_mut(), first, weights), b.refresh(matrix.cuda_mut(), first, weights))
    }

    fn keeps(&self, numbers: Numbers<'_>) -> bool {
        on!(self, |b| b.keeps(numbers), b.keeps(numbers))
    }

    fn embed(&self, table: &Self::Buffer, tokens: &[u32], hidden: usize, scale: f32) -> Self::Buffer {
        on!(
            self,
            |b| Buffer::Cpu(b.embed(table.cpu(), tokens, hidden, scale)),
            Buffer::Cuda(b.embed(table.cuda(), tokens, hidden, scale))
        )
    }

    fn embed_packed(&self, table: &Self::Matrix, tokens: &[u32], scale: f32) -> Self::Buffer {
        on!(
            self,
            |b| Buffer::Cpu(b.embed_packed(table.cpu(), tokens, scale)),
            Buffer::Cuda(b.embed_packed(table.cuda(), tokens, scale))
        )
    }

    fn embed_backward(
        &self,
        d_out: &Self::Buffer,
        tokens: &[u32],
        hidden: usize,
        scale: f32,
        d_table: Part<'_, Self::Flat>,
    ) {
        on!(
            self,
            |b| b.embed_backward(d_out.cpu(), tokens, hidden, scale, cpu_part(d_table)),
            b.embed_backward(d_out.cuda(), tokens, hidden, scale, cuda_part(d_table))
        )
    }

    fn rms_norm(
        &self,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        kind: NormWeight,
        eps: f32,
    ) -> (Self::Buffer, Self::Buffer) {
        on!(
            self,
            |b| pair_cpu(b.rms_norm(x.cpu(), weight.cpu(), kind, eps)),
            pair_cuda(b.rms_norm(x.cuda(), weight.cuda(), kind, eps))
        )
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
        on!(
            self,
            |b| b.rms_norm_backward(
                d_out.cpu(),
                x.cpu(),
                inverse.cpu(),
                weight.cpu(),
                kind,
                d_x.cpu_mut(),
                d_weight.map(cpu_part)
            ),
            b.rms_norm_backward(
                d_out.cuda(),
                x.cuda(),
                inverse.cuda(),
                weight.cuda(),
                kind,
                d_x.cuda_mut(),
                d_weight.map(cuda_part)
            )
        )
    }

    fn linear(&self, x: &Self::Buffer, weight: &Self::Matrix) -> Self::Buffer {
        on!(self, |b| Buffer::Cpu(b.linear(x.cpu(), weight.cpu())), Buffer::Cuda(b.linear(x.cuda(), weight.cuda())))
    }

    fn linear_onto(&self, x: &Self::Buffer, weight: &Self::Matrix, residual: &Self::Buffer) -> Self::Buffer {
        on!(
            self,
            |b| Buffer::Cpu(b.linear_onto(x.cpu(), weight.cpu(), residual.cpu())),
            Buffer::Cuda(b.linear_onto(x.cuda(), weight.cuda(), residual.cuda()))
        )
    }

    fn linear_backward_input(&self, d_out: &Self::Buffer, weight: &Self::Matrix) -> Self::Buffer {
        on!(
            self,
            |b| Buffer::Cpu(b.linear_backward_input(d_out.cpu(), weight.cpu())),
            Buffer::Cuda(b.linear_backward_input(d_out.cuda(), weight.cuda()))
        )
    }

    fn linear_backward_weight(
        &self,
        d_out: &Self::Buffer,
        x: &Self::Buffer,
        out: usize,
        input: usize,
        d_weight: Part<'_, Self::Flat>,
    ) {
        on!(
            self,
            |b| b.linear_backward_weight(d_out.cpu(), x.cpu(), out, input, cpu_part(d_weight)),
            b.linear_backward_weight(d_out.cuda(), x.cuda(), out, input, cuda_part(d_weight))
        )
    }

    fn linear_columns(
        &self,
        x: &Self::Buffer,
        from: Columns,
        weight: &Self::Matrix,
        y: &mut Self::Buffer,
        to: Columns,
    ) {
        on!(
            self,
            |b| b.linear_columns(x.cpu(), from, weight.cpu(), y.cpu_mut(), to),
            b.linear_columns(x.cuda(), from, weight.cuda(), y.cuda_mut(), to)
        )
    }

    fn linear_columns_backward_input(
        &self,
        d_out: &Self::Buffer,
        from: Columns,
        weight: &Self::Matrix,
        d_x: &mut Self::Buffer,
        to: Columns,
    ) {
        on!(
            self,
            |b| b.linear_columns_backward_input(d_out.cpu(), from, weight.cpu(), d_x.cpu_mut(), to),
            b.linear_columns_backward_input(d_out.cuda(), from, weight.cuda(), d_x.cuda_mut(), to)
        )
    }

    fn linear_columns_backward_weight(
        &self,
        d_out: &Self::Buffer,
        from: Columns,
        x: &Self::Buffer,
        of: Columns,
        d_weight: Part<'_, Self::Flat>,
    ) {
        on!(
            self,
            |b| b.linear_columns_backward_weight(d_out.cpu(), from, x.cpu(), of, cpu_part(d_weight)),
            b.linear_columns_backward_weight(d_out.cuda(), from, x.cuda(), of, cuda_part(d_weight))
        )
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
                let factors: Vec<_> = factors.iter().map(|f| f.of(Matrix::cpu)).collect();
                Buffer::Cpu(b.linear_low_rank(x.cpu(), weight.cpu(), z.cpu(), &factors, residual.map(Buffer::cpu)))
            }
            Device::Cuda(b) => {
                let factors: Vec<_> = factors.iter().map(|f| f.of(Matrix::cuda)).collect();
                Buffer::Cuda(b.linear_low_rank(x.cuda(), weight.cuda(), z.cuda(), &factors, residual.map(Buffer::cuda)))
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
        on!(
            self,
            |b| Buffer::Cpu(b.linear_low_rank_backward_input(d_out.cpu(), weight.cpu(), d_z.cpu(), a.of(Matrix::cpu))),
            Buffer::Cuda(b.linear_low_rank_backward_input(d_out.cuda(), weight.cuda(), d_z.cuda(), a.of(Matrix::cuda)))
        )
    }

    fn scale(&self, x: &mut Self::Buffer, factor: f32) {
        on!(self, |b| b.scale(x.cpu_mut(), factor), b.scale(x.cuda_mut(), factor))
    }

    fn add_bias(&self, x: &mut Self::Buffer, bias: &Self::Buffer) {
        on!(self, |b| b.add_bias(x.cpu_mut(), bias.cpu()), b.add_bias(x.cuda_mut(), bias.cuda()))
    }

    fn add_bias_backward(&self, d_out: &Self::Buffer, d_bias: Part<'_, Self::Flat>) {
        on!(
            self,
            |b| b.add_bias_backward(d_out.cpu(), cpu_part(d_bias)),
            b.add_bias_backward(d_out.cuda(), cuda_part(d_bias))
        )
    }

    fn head_norm(
        &self,
        fused: &mut Self::Buffer,
        shape: &AttentionShape,
        heads: Range<usize>,
        weight: &Self::Buffer,
        eps: f32,
    ) -> Self::Buffer {
        on!(
            self,
            |b| Buffer::Cpu(b.head_norm(fused.cpu_mut(), shape, heads, weight.cpu(), eps)),
            Buffer::Cuda(b.head_norm(fused.cuda_mut(), shape, heads, weight.cuda(), eps))
        )
    }

    fn head_norm_backward(
        &self,
        d_fused: &mut Self::Buffer,
        raw: &Self::Buffer,
        inverse: &Self::Buffer,
        shape: &AttentionShape,
        heads: Range<usize>,
        weight: &Self::Buffer,
        d_weight: Option<Part<'_, Self::Flat>>,
    ) {
        on!(
            self,
            |b| b.head_norm_backward(
                d_fused.cpu_mut(),
                raw.cpu(),
                inverse.cpu(),
                shape,
                heads,
                weight.cpu(),
                d_weight.map(cpu_part)
            ),
            b.head_norm_backward(
                d_fused.cuda_mut(),
                raw.cuda(),
                inverse.cuda(),
                shape,
                heads,
                weight.cuda(),
                d_weight.map(cuda_part)
            )
        )
    }

    fn rotary(&self, fused: &mut Self::Buffer, positions: &[u32], angles: &Self::Angles, shape: &AttentionShape) {
        on!(
            self,
            |b| b.rotary(fused.cpu_mut(), positions, angles.cpu(), shape),
            b.rotary(fused.cuda_mut(), positions, angles.cuda(), shape)
        )
    }

    fn rotary_backward(
        &self,
        d_fused: &mut Self::Buffer,
        positions: &[u32],
        angles: &Self::Angles,
        shape: &AttentionShape,
    ) {
        on!(
            self,
            |b| b.rotary_backward(d_fused.cpu_mut(), positions, angles.cpu(), shape),
            b.rotary_backward(d_fused.cuda_mut(), positions, angles.cuda(), shape)
        )
    }

    fn attention(
        &self,
        fused: &Self::Buffer,
        cu_seqlens: &[usize],
        shape: &AttentionShape,
    ) -> (Self::Buffer, Self::Buffer) {
        on!(
            self,
            |b| pair_cpu(b.attention(fused.cpu(), cu_seqlens, shape)),
            pair_cuda(b.attention(fused.cuda(), cu_seqlens, shape))
        )
    }

    fn attention_backward(
        &self,
        d_out: &Self::Buffer,
        attended: (&Self::Buffer, &Self::Buffer),
        fused: &Self::Buffer,
        cu_seqlens: &[usize],
        shape: &AttentionShape,
    ) -> Self::Buffer {
        on!(
            self,
            |b| Buffer::Cpu(b.attention_backward(
                d_out.cpu(),
                (attended.0.cpu(), attended.1.cpu()),
                fused.cpu(),
                cu_seqlens,
                shape
            )),
            Buffer::Cuda(b.attention_backward(
                d_out.cuda(),
                (attended.0.cuda(), attended.1.cuda()),
                fused.cuda(),
                cu_seqlens,
                shape
            ))
        )
    }

    fn gated(&self, x: &Self::Buffer, width: usize, activation: Activation) -> Self::Buffer {
        on!(
            self,
            |b| Buffer::Cpu(b.gated(x.cpu(), width, activation)),
            Buffer::Cuda(b.gated(x.cuda(), width, activation))
        )
    }

    fn gated_backward(
        &self,
        d_out: &Self::Buffer,
        x: &Self::Buffer,
        width: usize,
        activation: Activation,
    ) -> Self::Buffer {
        on!(
            self,
            |b| Buffer::Cpu(b.gated_backward(d_out.cpu(), x.cpu(), width, activation)),
            Buffer::Cuda(b.gated_backward(d_out.cuda(), x.cuda(), width, activation))
        )
    }

    fn gather(&self, x: &Self::Buffer, width: usize, rows: &[u32]) -> Self::Buffer {
        on!(self, |b| Buffer::Cpu(b.gather(x.cpu(), width, rows)), Buffer::Cuda(b.gather(x.cuda(), width, rows)))
    }

    fn scatter_add(&self, x: &mut Self::Buffer, width: usize, rows: &[u32], y: &Self::Buffer) {
        on!(
            self,
            |b| b.scatter_add(x.cpu_mut(), width, rows, y.cpu()),
            b.scatter_add(x.cuda_mut(), width, rows, y.cuda())
        )
    }

    fn len(&self, x: &Self::Buffer) -> usize {
        on!(self, |b| b.len(x.cpu()), b.len(x.cuda()))
    }

    fn zeros(&self, len: usize) -> Self::Buffer {
        on!(self, |b| Buffer::Cpu(b.zeros(len)), Buffer::Cuda(b.zeros(len)))
    }

    fn token_stats(&self, heads: &[(&Self::Buffer, &Self::Matrix, f32)], query: LogprobQuery<'_>) -> TokenStats {
        on!(
            self,
            |b| {
                let heads: Vec<_> = heads.iter().map(|(x, w, mix)| (x.cpu(), w.cpu(), *mix)).collect();
                b.token_stats(&heads, query)
            },
            {
                let heads: Vec<_> = heads.iter().map(|(x, w, mix)| (x.cuda(), w.cuda(), *mix)).collect();
                b.token_stats(&heads, query)
            }
        )
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
        on!(
            self,
            |b| Buffer::Cpu(b.token_stats_backward(
                d_logprobs,
                hidden.cpu(),
                head.cpu(),
                query,
                log_sums,
                d_weight.map(cpu_part)
            )),
            Buffer::Cuda(b.token_stats_backward(
                d_logprobs,
                hidden.cuda(),
                head.cuda(),
                query,
                log_sums,
                d_weight.map(cuda_part)
            ))
        )
    }

    fn draw(&self, hidden: &Self::Buffer, head: &Self::Matrix, choice: &Choice, uniforms: &[f32]) -> Vec<(u32, f32)> {
        on!(
            self,
            |b| b.draw(hidden.cpu(), head.cpu(), choice, uniforms),
            b.draw(hidden.cuda(), head.cuda(), choice, uniforms)
        )
    }

    fn rank(&self, hidden: &Self::Buffer, head: &Self::Matrix, targets: &[u32], count: usize) -> Vec<Ranking> {
        on!(
            self,
            |b| b.rank(hidden.cpu(), head.cpu(), targets, count),
            b.rank(hidden.cuda(), head.cuda(), targets, count)
        )
    }

    fn scalar_head(&self, x: &Self::Buffer, weight: &Self::Buffer) -> Vec<f32> {
        on!(self, |b| b.scalar_head(x.cpu(), weight.cpu()), b.scalar_head(x.cuda(), weight.cuda()))
    }

    fn scalar_head_backward(
        &self,
        d_values: &[f32],
        x: &Self::Buffer,
        weight: &Self::Buffer,
        d_weight: Option<Part<'_, Self::Flat>>,
    ) -> Self::Buffer {
        on!(
            self,
            |b| Buffer::Cpu(b.scalar_head_backward(d_values, x.cpu(), weight.cpu(), d_weight.map(cpu_part))),
            Buffer::Cuda(b.scalar_head_backward(d_values, x.cuda(), weight.cuda(), d_weight.map(cuda_part)))
        )
    }

    fn cache(&self, slots: usize, capacity: usize, shape: &AttentionShape) -> Self::Cache {
        on!(self, |b| Cache::Cpu(b.cache(slots, capacity, shape)), Cache::Cuda(b.cache(slots, capacity, shape)))
    }

    fn cache_store(&self, cache: &mut Self::Cache, fused: &Self::Buffer, entries: &[(usize, usize, usize)]) {
        on!(
            self,
            |b| b.cache_store(cache.cpu_mut(), fused.cpu(), entries),
            b.cache_store(cache.cuda_mut(), fused.cuda(), entries)
        )
    }

    fn cache_copy(&self, cache: &mut Self::Cache, from: usize, to: usize, len: usize) {
        on!(self, |b| b.cache_copy(cache.cpu_mut(), from, to, len), b.cache_copy(cache.cuda_mut(), from, to, len))
    }

    fn cached_attention(&self, cache: &Self::Cache, fused: &Self::Buffer, entries: &[(usize, usize)]) -> Self::Buffer {
        on!(
            self,
            |b| Buffer::Cpu(b.cached_attention(cache.cpu(), fused.cpu(), entries)),
            Buffer::Cuda(b.cached_attention(cache.cuda(), fused.cuda(), entries))
        )
    }

    fn sum_of_squares(&self, gradients: &Self::Flat) -> f64 {
        on!(self, |b| b.sum_of_squares(gradients.cpu()), b.sum_of_squares(gradients.cuda()))
    }

    fn adamw(&self, of: Moments<'_, Self::Flat>, range: Range<usize>, decay: Decay, step: &AdamWStep) {
        on!(self, |b| b.adamw(cpu_moments(of), range, decay, step), b.adamw(cuda_moments(of), range, decay, step))
    }
}
