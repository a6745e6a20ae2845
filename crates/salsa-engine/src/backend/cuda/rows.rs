//! Operations on rows: embedding, norms, rotary positions, gates, sums.
//!
//! C is f32 or bfloat16. A `u64` that takes a gradient is an address in an array of f32 on the GPU.

use super::buffer::{Buffer, Words};
use super::card::{Argument, Card, Launch};
use super::kind::Kind;
use crate::backend::AttentionShape;
use crate::spec::{Activation, NormWeight};
use std::ops::Range;
use std::sync::Arc;

/// Numbers per thread.
const AT_ONCE: usize = 8;
/// Rows summed by one block: `GROUP` of the kernels.
const GROUP: usize = 64;
/// Partial sums added by one thread.
const GROUPS: usize = 256;
/// Threads of a block where the shape does not determine them.
const THREADS: usize = 256;

/// The name of a kernel for a kind of numbers, or for two.
macro_rules! kernel {
    ($name:literal, $a:expr) => {
        match $a {
            Kind::F32 => concat!($name, "_f32"),
            Kind::Bf16 => concat!($name, "_bf16"),
        }
    };
    ($name:literal, $a:expr, $b:expr) => {
        match ($a, $b) {
            (Kind::F32, Kind::F32) => concat!($name, "_f32_f32"),
            (Kind::F32, Kind::Bf16) => concat!($name, "_f32_bf16"),
            (Kind::Bf16, Kind::F32) => concat!($name, "_bf16_f32"),
            (Kind::Bf16, Kind::Bf16) => concat!($name, "_bf16_bf16"),
        }
    };
}

pub(super) use kernel;

/// Starts a kernel, unless there is nothing to do.
pub(super) fn start(
    card: &Arc<Card>,
    kernel: &'static str,
    blocks: [usize; 2],
    threads: usize,
    arguments: &[&dyn Argument],
) {
    if blocks[0] > 0 && blocks[1] > 0 {
        let blocks = [blocks[0] as u32, blocks[1] as u32, 1];
        card.launch(kernel, Launch { blocks, threads: threads as u32, shared: 0 }, arguments);
    }
}

/// Threads of a block that processes one row.
fn for_row(width: usize) -> usize {
    width.div_ceil(AT_ONCE).next_multiple_of(32).clamp(32, 1024)
}

/// Blocks and threads where the columns of a row are distributed over blocks.
pub(super) fn for_parts(rows: usize, width: usize) -> ([usize; 2], usize) {
    let threads = for_row(width).min(THREADS);
    ([rows, width.div_ceil(AT_ONCE * threads)], threads)
}

/// `out[i] = scale * x[rows[i]]`, as numbers of `kind`.
fn take(card: &Arc<Card>, x: &Buffer, width: usize, rows: &[u32], scale: f32, kind: Kind) -> Buffer {
    let rows = card.upload_words(rows);
    let mut out = card.room(rows.len() * width, kind);
    start(
        card,
        kernel!("take_rows", x.kind(), kind),
        [rows.len(), 1],
        for_row(width),
        &[&x.pointer(), &rows.pointer(), &out.pointer_mut(), &(width as i32), &scale],
    );
    out
}

/// `to[rows[i]] += scale * y[i]`, in order.
fn put(card: &Arc<Card>, (to, kind): (u64, Kind), y: &Buffer, width: usize, rows: &[u32], scale: f32) {
    // One block adds everything that goes to one row.
    let mut order: Vec<u32> = (0..rows.len() as u32).collect();
    order.sort_by_key(|&i| rows[i as usize]);
    let (mut targets, mut starts) = (Vec::new(), Vec::new());
    for (at, &i) in order.iter().enumerate() {
        let row = rows[i as usize];
        if targets.last() != Some(&row) {
            targets.push(row);
            starts.push(at as u32);
        }
    }
    starts.push(order.len() as u32);
    let [targets, starts, order] = [targets, starts, order].map(|words| card.upload_words(&words));
    start(
        card,
        kernel!("add_rows", kind, y.kind()),
        [targets.len(), 1],
        for_row(width),
        &[&to, &y.pointer(), &targets.pointer(), &starts.pointer(), &order.pointer(), &(width as i32), &scale],
    );
}

/// `out[t] = scale * table[tokens[t]]`, f32.
pub(super) fn embed(card: &Arc<Card>, table: &Buffer, tokens: &[u32], hidden: usize, scale: f32) -> Buffer {
    take(card, table, hidden, tokens, scale, Kind::F32)
}

/// `d_table[tokens[t]] += scale * d_out[t]`.
pub(super) fn embed_backward(
    card: &Arc<Card>,
    d_out: &Buffer,
    tokens: &[u32],
    hidden: usize,
    scale: f32,
    d_table: u64,
) {
    put(card, (d_table, Kind::F32), d_out, hidden, tokens, scale);
}

/// Returns the given rows of `x`.
pub(super) fn gather(card: &Arc<Card>, x: &Buffer, width: usize, rows: &[u32]) -> Buffer {
    take(card, x, width, rows, 1.0, x.kind())
}

/// `x[rows[i]] += y[i]`, in order.
pub(super) fn scatter_add(card: &Arc<Card>, x: &mut Buffer, width: usize, rows: &[u32], y: &Buffer) {
    let kind = x.kind();
    put(card, (x.pointer_mut(), kind), y, width, rows, 1.0);
}

/// Returns what is added to the weight of a norm: 0 or 1.
fn offset(kind: NormWeight) -> f32 {
    match kind {
        NormWeight::Plain => 0.0,
        NormWeight::OnePlus => 1.0,
    }
}

/// Rows of `x[T, H]` (f32) normed, as numbers of `out`, and the inverse norms `[T]`.
pub(super) fn rms_norm(
    card: &Arc<Card>,
    x: &Buffer,
    weight: &Buffer,
    kind: NormWeight,
    eps: f32,
    out: Kind,
) -> (Buffer, Buffer) {
    let width = weight.len();
    let rows = x.len() / width;
    let (mut y, mut inverse) = (card.room(x.len(), out), card.room(rows, Kind::F32));
    start(
        card,
        kernel!("rms_norm", out),
        [rows, 1],
        for_row(width),
        &[
            &x.pointer(),
            &weight.pointer(),
            &y.pointer_mut(),
            &inverse.pointer_mut(),
            &(width as i32),
            &offset(kind),
            &eps,
        ],
    );
    (y, inverse)
}

/// `d_x += ...` (f32), and `d_weight += ...` unless the norm is frozen; `d_out` is C. With `copy`, also returns the new
/// `d_x` as bfloat16.
pub(super) fn rms_norm_backward(
    card: &Arc<Card>,
    d_out: &Buffer,
    x: &Buffer,
    inverse: &Buffer,
    weight: &Buffer,
    kind: NormWeight,
    d_x: &mut Buffer,
    d_weight: Option<u64>,
    copy: bool,
) -> Option<Buffer> {
    let width = weight.len();
    let rows = inverse.len();
    let mut copied = copy.then(|| card.room(d_x.len(), Kind::Bf16));
    start(
        card,
        kernel!("rms_norm_backward", d_out.kind()),
        [rows, 1],
        for_row(width),
        &[
            &d_out.pointer(),
            &x.pointer(),
            &inverse.pointer(),
            &weight.pointer(),
            &d_x.pointer_mut(),
            &copied.as_mut().map_or(0, Buffer::pointer_mut),
            &(width as i32),
            &offset(kind),
        ],
    );
    if let Some(to) = d_weight {
        sum_columns(card, Some(d_out), Some(x), Some(inverse), Lines::plain(rows, width), to);
    }
    copied
}

/// Rows inside lines of `stride` numbers: `heads` in each, adjacent, starting at `offset`.
struct Lines {
    rows: usize,
    width: usize,
    heads: usize,
    stride: usize,
    offset: usize,
}

impl Lines {
    fn plain(rows: usize, width: usize) -> Lines {
        Lines { rows, width, heads: 1, stride: width, offset: 0 }
    }
}

/// `to[c] += sum_r d[r, c] * x[r, c] * scale[r]`, where missing factors are 1. Sums groups of rows, then groups of
/// these until few are left, and then those in order.
fn sum_columns(
    card: &Arc<Card>,
    d: Option<&Buffer>,
    x: Option<&Buffer>,
    scale: Option<&Buffer>,
    lines: Lines,
    to: u64,
) {
    if lines.rows == 0 {
        return;
    }
    let width = lines.width;
    let threads = width.next_multiple_of(32).min(THREADS);
    let pass = |d: Option<&Buffer>, x: Option<&Buffer>, scale: Option<&Buffer>, lines: &Lines| {
        let groups = lines.rows.div_ceil(GROUP);
        let mut partial = card.room(groups * width, Kind::F32);
        let kinds = [d, x].map(|buffer| buffer.map(Buffer::kind));
        let d_kind = kinds[0].or(kinds[1]).unwrap_or(Kind::F32);
        start(
            card,
            kernel!("sum_columns", d_kind, kinds[1].unwrap_or(d_kind)),
            [groups, width.div_ceil(threads)],
            threads,
            &[
                &d.map_or(0, Buffer::pointer),
                &x.map_or(0, Buffer::pointer),
                &scale.map_or(0, Buffer::pointer),
                &partial.pointer_mut(),
                &(lines.rows as i64),
                &(width as i32),
                &(lines.heads as i32),
                &(lines.stride as i32),
                &(lines.offset as i32),
            ],
        );
        (partial, groups)
    };
    let (mut partial, mut groups) = pass(d, x, scale, &lines);
    while groups > GROUPS {
        (partial, groups) = pass(Some(&partial), None, None, &Lines::plain(groups, width));
    }
    start(
        card,
        "finish_columns",
        [width.div_ceil(threads), 1],
        threads,
        &[&partial.pointer(), &to, &(groups as i32), &(width as i32)],
    );
}

/// `x[t] += bias`, row by row; `x` is C.
pub(super) fn add_bias(card: &Arc<Card>, x: &mut Buffer, bias: &Buffer) {
    let width = bias.len();
    let (blocks, threads) = for_parts(x.len() / width, width);
    let kind = x.kind();
    start(card, kernel!("add_bias", kind), blocks, threads, &[&x.pointer_mut(), &bias.pointer(), &(width as i32)]);
}

/// `d_bias += sum_t d_out[t]`, rows of `width`.
pub(super) fn add_bias_backward(card: &Arc<Card>, d_out: &Buffer, width: usize, d_bias: u64) {
    sum_columns(card, Some(d_out), None, None, Lines::plain(d_out.len() / width, width), d_bias);
}

/// RMSNorm of the given heads inside fused rows, in place. Returns the inverse norms, `[T, heads]`.
pub(super) fn head_norm(
    card: &Arc<Card>,
    fused: &mut Buffer,
    shape: &AttentionShape,
    heads: Range<usize>,
    weight: &Buffer,
    eps: f32,
) -> Buffer {
    let total = fused.len() / shape.fused() * heads.len();
    let mut inverse = card.room(total, Kind::F32);
    let kind = fused.kind();
    start(
        card,
        kernel!("head_norm", kind),
        [total.div_ceil(THREADS / 32), 1],
        THREADS,
        &[
            &fused.pointer_mut(),
            &weight.pointer(),
            &inverse.pointer_mut(),
            &(total as i64),
            &(heads.len() as i32),
            &(heads.start as i32),
            &(shape.head_dim as i32),
            &(shape.fused() as i32),
            &eps,
        ],
    );
    inverse
}

/// Turns the gradient with respect to normed heads, in `d_fused`, into that with respect to raw ones; `raw` is of the
/// same kind.
pub(super) fn head_norm_backward(
    card: &Arc<Card>,
    d_fused: &mut Buffer,
    raw: &Buffer,
    inverse: &Buffer,
    shape: &AttentionShape,
    heads: Range<usize>,
    weight: &Buffer,
    d_weight: Option<u64>,
) {
    let total = inverse.len();
    let (width, stride) = (shape.head_dim, shape.fused());
    if let Some(to) = d_weight {
        let lines = Lines { rows: total, width, heads: heads.len(), stride, offset: heads.start * width };
        sum_columns(card, Some(d_fused), Some(raw), Some(inverse), lines, to);
    }
    let kind = d_fused.kind();
    start(
        card,
        kernel!("head_norm_backward", kind),
        [total.div_ceil(THREADS / 32), 1],
        THREADS,
        &[
            &d_fused.pointer_mut(),
            &raw.pointer(),
            &inverse.pointer(),
            &weight.pointer(),
            &(total as i64),
            &(heads.len() as i32),
            &(heads.start as i32),
            &(width as i32),
            &(stride as i32),
        ],
    );
}

/// Rotates queries and keys by `direction * angle`: 1 forward, -1 for gradients. The tables are
/// `[positions, head_dim / 2]`.
pub(super) fn rotary(
    card: &Arc<Card>,
    fused: &mut Buffer,
    positions: &Words,
    (cosines, sines): (&Buffer, &Buffer),
    shape: &AttentionShape,
    direction: f32,
) {
    let heads = shape.heads + shape.kv_heads;
    let half = shape.head_dim / 2;
    let items = heads * half.div_ceil(AT_ONCE);
    let threads = items.next_multiple_of(32).min(THREADS);
    let kind = fused.kind();
    start(
        card,
        kernel!("rotary", kind),
        [positions.len(), items.div_ceil(threads)],
        threads,
        &[
            &fused.pointer_mut(),
            &positions.pointer(),
            &cosines.pointer(),
            &sines.pointer(),
            &(heads as i32),
            &(half as i32),
            &(shape.fused() as i32),
            &direction,
        ],
    );
}

/// `out = activation(gate) * up`, where rows of `x` are `[gate, up]`.
pub(super) fn gated(card: &Arc<Card>, x: &Buffer, width: usize, activation: Activation) -> Buffer {
    let mut out = card.room(x.len() / 2, x.kind());
    let (blocks, threads) = for_parts(x.len() / (2 * width), width);
    let gelu = i32::from(matches!(activation, Activation::GeluTanh));
    start(
        card,
        kernel!("gated", x.kind()),
        blocks,
        threads,
        &[&x.pointer(), &out.pointer_mut(), &(width as i32), &gelu],
    );
    out
}

/// Returns the gradient with respect to `[gate, up]`; `d_out` is of the kind of `x`.
pub(super) fn gated_backward(
    card: &Arc<Card>,
    d_out: &Buffer,
    x: &Buffer,
    width: usize,
    activation: Activation,
) -> Buffer {
    assert_eq!(d_out.kind(), x.kind());
    let mut d_x = card.room(x.len(), x.kind());
    let (blocks, threads) = for_parts(x.len() / (2 * width), width);
    let gelu = i32::from(matches!(activation, Activation::GeluTanh));
    start(
        card,
        kernel!("gated_backward", x.kind()),
        blocks,
        threads,
        &[&d_out.pointer(), &x.pointer(), &d_x.pointer_mut(), &(width as i32), &gelu],
    );
    d_x
}

/// `x *= factor`.
pub(super) fn scale(card: &Arc<Card>, x: &mut Buffer, factor: f32) {
    if factor == 1.0 {
        return;
    }
    let (len, kind) = (x.len(), x.kind());
    start(
        card,
        kernel!("scale", kind),
        [len.div_ceil(AT_ONCE * THREADS), 1],
        THREADS,
        &[&x.pointer_mut(), &(len as i64), &factor],
    );
}

/// `values[t] = x[t] . w`, f32.
pub(super) fn scalar_head(card: &Arc<Card>, x: &Buffer, weight: &Buffer) -> Buffer {
    let width = weight.len();
    let rows = x.len() / width;
    let mut values = card.room(rows, Kind::F32);
    start(
        card,
        kernel!("scalar_head", x.kind()),
        [rows, 1],
        for_row(width),
        &[&x.pointer(), &weight.pointer(), &values.pointer_mut(), &(width as i32)],
    );
    values
}

/// Returns `d_x` as numbers of `kind`; `d_weight += sum_t d_values[t] * x[t]`.
pub(super) fn scalar_head_backward(
    card: &Arc<Card>,
    d_values: &Buffer,
    x: &Buffer,
    weight: &Buffer,
    d_weight: Option<u64>,
    kind: Kind,
) -> Buffer {
    let (rows, width) = (d_values.len(), weight.len());
    let mut d_x = card.room(rows * width, kind);
    start(
        card,
        kernel!("scalar_head_backward", kind),
        [rows, 1],
        for_row(width),
        &[&d_values.pointer(), &weight.pointer(), &d_x.pointer_mut(), &(width as i32)],
    );
    if let Some(to) = d_weight {
        sum_columns(card, None, Some(x), Some(d_values), Lines::plain(rows, width), to);
    }
    d_x
}
