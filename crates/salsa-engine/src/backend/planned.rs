//! A backend without numbers: running a model on it finds how much memory it takes on the CPU.
//!
//! Each operation takes arrays of the same sizes as [`super::cpu`] does, results and scratch, from the same kind of
//! pool (`ArrayPool`), but without memory behind them. So a plan is computed by the code that will run.

use super::cpu::{self, Cache, Dtype, Packed};
use super::{
    AdamWStep, AttentionShape, Backend, Choice, Columns, Decay, LogprobQuery, Moments, Part, Ranking, RotaryTable,
    TokenStats,
};
use crate::memory::{ArrayPool, Taken};
use crate::pool;
use crate::spec::{Activation, NormWeight};
use crate::weights::Numbers;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

/// Accounts for memory without allocating it. Clones share one account. Weights, gradients and moments are not counted:
/// their sizes follow from the shape alone.
#[derive(Clone, Debug)]
pub struct Planned {
    dtype: Dtype,
    account: Arc<Mutex<Account>>,
}

/// The account of memory.
#[derive(Debug)]
struct Account {
    arrays: ArrayPool<()>,
    /// Bytes of all arrays, including free ones; `peak` is the maximum.
    resident: usize,
    peak: usize,
}

impl Account {
    fn grow(&mut self, bytes: usize) {
        self.resident += bytes;
        self.peak = self.peak.max(self.resident);
    }
}

/// An array without content.
#[derive(Debug)]
pub struct Buffer {
    len: usize,
    held: Held,
    account: Arc<Mutex<Account>>,
}

#[derive(Debug)]
enum Held {
    /// Not counted.
    Nothing,
    /// The allocator's memory.
    Own,
    /// The pool's, of that capacity. All of it counts: huge pages span adjacent arrays.
    Pooled(usize),
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Ok(mut account) = self.account.lock() else { return };
        match self.held {
            Held::Nothing => {}
            Held::Own => account.resident -= self.len * size_of::<f32>(),
            Held::Pooled(capacity) => account.arrays.put(capacity, ()),
        }
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Buffer {
        match self.held {
            Held::Nothing => Buffer { len: self.len, held: Held::Nothing, account: self.account.clone() },
            _ => take(&self.account, self.len),
        }
    }
}

fn locked(account: &Mutex<Account>) -> MutexGuard<'_, Account> {
    account.lock().expect("no code panics while it holds the account")
}

/// An array of `len` numbers.
fn take(account: &Arc<Mutex<Account>>, len: usize) -> Buffer {
    let mut book = locked(account);
    let held = if len < cpu::POOLED {
        book.grow(len * size_of::<f32>());
        Held::Own
    } else {
        match book.arrays.take(len) {
            Taken::Free(capacity, ()) => Held::Pooled(capacity),
            Taken::New(capacity, gone) => {
                let gone: usize = gone.into_iter().map(|(capacity, ())| capacity).sum();
                book.resident -= gone * size_of::<f32>();
                book.grow(capacity * size_of::<f32>());
                Held::Pooled(capacity)
            }
        }
    };
    drop(book);
    Buffer { len, held, account: account.clone() }
}

/// Keys and values without content.
#[derive(Debug)]
pub struct PlannedCache {
    shape: AttentionShape,
    _keys_and_values: [Buffer; 2],
}

/// The shape of a matrix of weights.
#[derive(Debug)]
pub struct Matrix {
    out: usize,
    input: usize,
}

impl Planned {
    /// An empty account of a CPU with this number type.
    pub fn new(dtype: Dtype) -> Planned {
        let account = Account { arrays: ArrayPool::new(), resident: 0, peak: 0 };
        Planned { dtype, account: Arc::new(Mutex::new(account)) }
    }

    /// The peak of the bytes held.
    pub fn peak(&self) -> u64 {
        locked(&self.account).peak as u64
    }

    /// Gives up the free arrays, as [`crate::release_memory`] does.
    pub fn trim(&self) {
        let mut book = locked(&self.account);
        let [in_use, _] = book.arrays.in_use();
        book.arrays.trim();
        book.resident = in_use * size_of::<f32>();
    }

    /// The peak of the bytes of large arrays in use, as [`cpu::Buffer::in_use`] counts them.
    pub fn most_in_use(&self) -> usize {
        locked(&self.account).arrays.in_use()[1] * size_of::<f32>()
    }

    fn buffer(&self, len: usize) -> Buffer {
        take(&self.account, len)
    }

    fn weights(&self, len: usize) -> Buffer {
        Buffer { len, held: Held::Nothing, account: self.account.clone() }
    }

    /// A temporary packed right factor of an operation.
    fn packed(&self, depth: usize, columns: usize) -> Buffer {
        self.buffer(Packed::words(self.dtype, depth, columns))
    }

    /// Scratch of tasks: each thread runs one at a time.
    fn scratch(&self, tasks: usize, lengths: &[usize]) {
        let at_once = tasks.min(pool::threads());
        let _all: Vec<Buffer> = (0..at_once).flat_map(|_| lengths.iter().map(|&len| self.buffer(len))).collect();
    }

    /// Partial sums of rows.
    fn sum_rows(&self, rows: usize, width: usize) {
        let _partials: Vec<Buffer> = (0..rows.div_ceil(cpu::ROW_BLOCK)).map(|_| self.buffer(width)).collect();
    }

    /// Scratch of attention over these sequences; `of` returns that of a key head of a sequence of a given length.
    fn attention_scratch(&self, cu_seqlens: &[usize], shape: &AttentionShape, of: impl Fn(usize) -> Vec<usize>) {
        let longest = cu_seqlens.windows(2).map(|ends| ends[1] - ends[0]).max().unwrap_or(0);
        self.scratch((cu_seqlens.len() - 1) * shape.kv_heads, &of(longest));
    }
}

impl Backend for Planned {
    type Buffer = Buffer;
    type Matrix = Matrix;
    type Cache = PlannedCache;
    type Flat = ();
    type Angles = Buffer;

    fn shares_prefixes(&self) -> bool {
        true
    }

    fn flat(&self, _: Vec<f32>) {}

    fn flat_zeros(&self, _: usize) {}

    fn numbers<'a>(&self, (): &'a ()) -> Cow<'a, [f32]> {
        Cow::Borrowed(&[])
    }

    fn clear(&self, (): &mut ()) {}

    fn copy(&self, (): &(), range: Range<usize>) -> Buffer {
        self.weights(range.len())
    }

    fn refresh_from(&self, _: &mut Matrix, (): &(), _: Range<usize>) {}

    fn angles(&self, table: RotaryTable) -> Buffer {
        self.buffer(table.cos.len() + table.sin.len())
    }

    fn upload(&self, data: &[f32]) -> Buffer {
        self.weights(data.len())
    }

    fn download(&self, buffer: &Buffer) -> Vec<f32> {
        vec![0.0; buffer.len]
    }

    fn room(&self, len: usize) -> Buffer {
        self.weights(len)
    }

    fn store(&self, _: &mut Buffer, _: usize, _: Numbers<'_>) {}

    fn allocate_matrix(&self, out: usize, input: usize) -> Matrix {
        Matrix { out, input }
    }

    fn refresh(&self, _: &mut Matrix, _: usize, _: Numbers<'_>) {}

    fn packs_losslessly(&self, numbers: Numbers<'_>) -> bool {
        self.dtype == Dtype::F32 || matches!(numbers, Numbers::Bf16(_))
    }

    fn embed(&self, _: &Buffer, tokens: &[u32], hidden: usize, _: f32) -> Buffer {
        self.buffer(tokens.len() * hidden)
    }

    fn embed_packed(&self, table: &Matrix, tokens: &[u32], _: f32) -> Buffer {
        self.buffer(tokens.len() * table.input)
    }

    fn embed_backward(&self, _: &Buffer, _: &[u32], _: usize, _: f32, _: Part<'_, ()>) {}

    fn rms_norm(&self, x: &Buffer, weight: &Buffer, _: NormWeight, _: f32) -> (Buffer, Buffer) {
        (self.buffer(x.len), self.buffer(x.len / weight.len))
    }

    fn rms_norm_backward(
        &self,
        _: &Buffer,
        x: &Buffer,
        _: &Buffer,
        weight: &Buffer,
        _: NormWeight,
        _: &mut Buffer,
        d_weight: Option<Part<'_, ()>>,
    ) {
        if d_weight.is_some() {
            self.sum_rows(x.len / weight.len, weight.len);
        }
    }

    fn linear(&self, x: &Buffer, weight: &Matrix) -> Buffer {
        self.buffer(x.len / weight.input * weight.out)
    }

    fn linear_onto(&self, x: &Buffer, weight: &Matrix, _: &Buffer) -> Buffer {
        self.linear(x, weight)
    }

    fn linear_backward_input(&self, d_out: &Buffer, weight: &Matrix) -> Buffer {
        let _transposed = self.packed(weight.out, weight.input);
        self.buffer(d_out.len / weight.out * weight.input)
    }

    fn linear_backward_weight(&self, d_out: &Buffer, _: &Buffer, out: usize, input: usize, _: Part<'_, ()>) {
        self.packed(d_out.len / out, input);
    }

    fn linear_columns(&self, _: &Buffer, _: Columns, _: &Matrix, _: &mut Buffer, _: Columns) {}

    fn linear_columns_backward_input(&self, _: &Buffer, _: Columns, weight: &Matrix, _: &mut Buffer, _: Columns) {
        self.packed(weight.out, weight.input);
    }

    fn linear_columns_backward_weight(&self, _: &Buffer, _: Columns, x: &Buffer, of: Columns, _: Part<'_, ()>) {
        self.packed(x.len / of.of, of.count);
    }

    fn scale(&self, _: &mut Buffer, _: f32) {}

    fn add(&self, _: &mut Buffer, _: &Buffer, _: usize) {}

    fn add_bias(&self, _: &mut Buffer, _: &Buffer) {}

    fn add_bias_backward(&self, d_out: &Buffer, d_bias: Part<'_, ()>) {
        self.sum_rows(d_out.len / d_bias.range.len(), d_bias.range.len());
    }

    fn head_norm(
        &self,
        fused: &mut Buffer,
        shape: &AttentionShape,
        heads: Range<usize>,
        weight: &Buffer,
        _: NormWeight,
        _: f32,
    ) -> Buffer {
        self.buffer(fused.len / shape.fused() * (heads.len() * shape.head_dim / weight.len))
    }

    fn head_norm_backward(
        &self,
        d_fused: &mut Buffer,
        _: &Buffer,
        _: &Buffer,
        shape: &AttentionShape,
        _: Range<usize>,
        weight: &Buffer,
        _: NormWeight,
        d_weight: Option<Part<'_, ()>>,
    ) {
        if d_weight.is_some() {
            self.sum_rows(d_fused.len / shape.fused(), weight.len);
        }
    }

    fn rotary(&self, _: &mut Buffer, _: &[u32], _: &Buffer, _: &AttentionShape) {}

    fn rotary_backward(&self, _: &mut Buffer, _: &[u32], _: &Buffer, _: &AttentionShape) {}

    fn attention(&self, fused: &Buffer, cu_seqlens: &[usize], shape: &AttentionShape) -> (Buffer, Buffer) {
        let out = self.buffer(fused.len / shape.fused() * shape.output());
        self.attention_scratch(cu_seqlens, shape, |len| cpu::attention_scratch(self.dtype, len, shape));
        (out, self.buffer(0))
    }

    fn attention_backward(
        &self,
        _: &Buffer,
        _: (&Buffer, &Buffer),
        fused: &Buffer,
        cu_seqlens: &[usize],
        shape: &AttentionShape,
    ) -> Buffer {
        let d_fused = self.buffer(fused.len);
        self.attention_scratch(cu_seqlens, shape, |len| cpu::attention_backward_scratch(self.dtype, len, shape));
        d_fused
    }

    fn gated(&self, x: &Buffer, _: usize, _: Activation) -> Buffer {
        self.buffer(x.len / 2)
    }

    fn gated_backward(&self, _: &Buffer, x: &Buffer, _: usize, _: Activation) -> Buffer {
        self.buffer(x.len)
    }

    fn gather(&self, _: &Buffer, width: usize, rows: &[u32]) -> Buffer {
        self.buffer(rows.len() * width)
    }

    fn scatter_add(&self, _: &mut Buffer, _: usize, _: &[u32], _: &Buffer) {}

    fn len(&self, x: &Buffer) -> usize {
        x.len
    }

    fn zeros(&self, len: usize) -> Buffer {
        self.buffer(len)
    }

    fn token_stats(&self, heads: &[(&Buffer, &Matrix, f32)], query: LogprobQuery<'_>) -> TokenStats {
        let rows = query.targets.len();
        let (tasks, logits) = cpu::token_stats_tasks(rows);
        self.scratch(tasks, &vec![logits; heads.len().min(2)]);
        TokenStats { logprobs: vec![0.0; rows], entropies: vec![0.0; rows], log_sums: vec![0.0; rows] }
    }

    fn token_stats_backward(
        &self,
        d_logprobs: &[f32],
        _: &Buffer,
        head: &Matrix,
        _: LogprobQuery<'_>,
        _: &[f32],
        _: Option<Part<'_, ()>>,
    ) -> Buffer {
        let d_hidden = self.buffer(d_logprobs.len() * head.input);
        let [rows, columns] = cpu::token_stats_backward_block(d_logprobs.len());
        let _d_logits = self.buffer(rows * columns);
        let (_packed_hidden, _packed_weight) = (self.packed(rows, head.input), self.packed(columns, head.input));
        d_hidden
    }

    fn draw(&self, hidden: &Buffer, head: &Matrix, _: Option<f32>, _: &Choice, uniforms: &[f32]) -> Vec<(u32, f32)> {
        self.buffer(hidden.len / head.input * head.out);
        vec![(0, 0.0); uniforms.len()]
    }

    fn rank(&self, hidden: &Buffer, head: &Matrix, _: Option<f32>, targets: &[u32], _: usize) -> Vec<Ranking> {
        self.buffer(hidden.len / head.input * head.out);
        vec![Ranking::default(); targets.len()]
    }

    fn scalar_head(&self, x: &Buffer, weight: &Buffer) -> Vec<f32> {
        vec![0.0; x.len / weight.len]
    }

    fn scalar_head_backward(
        &self,
        d_values: &[f32],
        x: &Buffer,
        weight: &Buffer,
        d_weight: Option<Part<'_, ()>>,
    ) -> Buffer {
        if d_weight.is_some() {
            self.sum_rows(d_values.len(), weight.len);
        }
        self.buffer(x.len)
    }

    fn cache(&self, slots: usize, capacity: usize, shape: &AttentionShape) -> PlannedCache {
        let numbers = Cache::numbers(self.dtype, slots, capacity, shape);
        PlannedCache { shape: *shape, _keys_and_values: numbers.map(|len| self.buffer(len)) }
    }

    fn cache_store(&self, _: &mut PlannedCache, _: &Buffer, _: &[(usize, usize, usize)]) {}

    fn cache_copy(&self, _: &mut PlannedCache, _: usize, _: usize, _: usize) {}

    fn cached_attention(&self, cache: &PlannedCache, fused: &Buffer, _: &[(usize, usize)]) -> Buffer {
        self.buffer(fused.len / cache.shape.fused() * cache.shape.output())
    }

    fn sum_of_squares(&self, (): &()) -> f64 {
        0.0
    }

    fn adamw(&self, _: Moments<'_, ()>, _: Range<usize>, _: Decay, _: &AdamWStep) {}
}
