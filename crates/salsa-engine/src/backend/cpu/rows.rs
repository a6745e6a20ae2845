//! Operations on rows: embedding, norms, rotary positions, gates, sums.

use std::ops::Range;

use super::Buffer;
use super::attention::Columns;
use super::isa::multiversion;
use super::math::{LANES, dot, dot3, exp, sigmoid, tanh};
use crate::backend::{AttentionShape, RotaryTable};
use crate::pool;
use crate::spec::{Activation, NormWeight};
use crate::weights::Numbers;

/// Row operations on fewer numbers stay on the calling thread.
const SMALL: usize = 1 << 14;
/// Reductions over rows add partial sums over this many rows each, in order.
pub(crate) const ROW_BLOCK: usize = 64;

/// Runs `f(row index, row of out)` over all rows, in parallel when it pays.
pub(super) fn each_row(out: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    if out.len() < SMALL {
        out.chunks_exact_mut(width).enumerate().for_each(|(r, row)| f(r, row));
    } else {
        // Several parts for each thread, none too short to be worth distributing.
        let part = (out.len() / (8 * pool::threads())).max(SMALL / 4);
        let rows = part.div_ceil(width);
        pool::each(out.chunks_mut(rows * width), |block, chunk| {
            chunk.chunks_exact_mut(width).enumerate().for_each(|(r, row)| f(block * rows + r, row));
        });
    }
}

/// `x[rows[i]] += y[i]`, in order; threads divide the columns.
pub(super) fn scatter_add(x: &mut [f32], width: usize, rows: &[u32], y: &[f32]) {
    let strip = if y.len() < SMALL { width } else { width.div_ceil(2 * pool::threads()).next_multiple_of(LANES) };
    let target = Columns::new(x, width);
    pool::run(width.div_ceil(strip), |task| {
        let (from, count) = (task * strip, strip.min(width - task * strip));
        for (&row, y) in rows.iter().zip(y.chunks_exact(width)) {
            // SAFETY: only this task has these columns.
            let x = unsafe { target.part(row as usize, from, count) };
            x.iter_mut().zip(&y[from..from + count]).for_each(|(x, y)| *x += y);
        }
    });
}

/// `total[width] += sum over rows of what f(row, partial) adds to partial`, in fixed blocks of rows.
pub(super) fn sum_rows(rows: usize, total: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync) {
    let width = total.len();
    let block = |b: usize| {
        let mut partial = Buffer::zeros(width);
        (b * ROW_BLOCK..rows.min((b + 1) * ROW_BLOCK)).for_each(|row| f(row, &mut partial));
        partial
    };
    let blocks = rows.div_ceil(ROW_BLOCK);
    let partials: Vec<Buffer> =
        if rows * width < SMALL { (0..blocks).map(block).collect() } else { pool::map(blocks, block) };
    for partial in partials {
        total.iter_mut().zip(partial.iter()).for_each(|(t, p)| *t += p);
    }
}

pub(super) fn copy(out: &mut [f32], numbers: Numbers<'_>) {
    let part = (out.len() / (8 * pool::threads())).max(SMALL);
    pool::each(out.chunks_mut(part), |i, out| numbers.part(i * part..i * part + out.len()).widen(out));
}

pub(super) fn embed(table: &[f32], tokens: &[u32], hidden: usize, scale: f32) -> Buffer {
    let mut out = Buffer::uninitialized(tokens.len() * hidden);
    each_row(&mut out, hidden, |t, row| {
        let from = tokens[t] as usize * hidden;
        for (out, x) in row.iter_mut().zip(&table[from..from + hidden]) {
            *out = x * scale;
        }
    });
    out
}

pub(super) fn embed_backward(d_out: &[f32], tokens: &[u32], hidden: usize, scale: f32, d_table: &mut [f32]) {
    // Each task has a range of the vocabulary and adds its tokens in order.
    let vocabulary = d_table.len() / hidden;
    let run = vocabulary.div_ceil(4 * pool::threads()).max(1);
    pool::each(d_table.chunks_mut(run * hidden), |task, chunk| {
        let first = task * run;
        let mine = first..first + chunk.len() / hidden;
        for (t, token) in
            tokens.iter().map(|&token| token as usize).enumerate().filter(|(_, token)| mine.contains(token))
        {
            let row = &mut chunk[(token - first) * hidden..][..hidden];
            for (sum, d) in row.iter_mut().zip(&d_out[t * hidden..(t + 1) * hidden]) {
                *sum += d * scale;
            }
        }
    });
}

/// Returns what is added to the weight of a norm: 0 or 1.
fn offset(kind: NormWeight) -> f32 {
    match kind {
        NormWeight::Plain => 0.0,
        NormWeight::OnePlus => 1.0,
    }
}

pub(super) fn rms_norm(x: &[f32], weight: &[f32], kind: NormWeight, eps: f32) -> (Buffer, Buffer) {
    let width = weight.len();
    let mut out = Buffer::uninitialized(x.len());
    let mut inverse = Buffer::uninitialized(x.len() / width);
    each_row(&mut inverse, 1, |r, inverse| inverse[0] = inverse_norm(&x[r * width..(r + 1) * width], eps));
    each_row(&mut out, width, |r, out| norm_row(&x[r * width..(r + 1) * width], weight, offset(kind), inverse[r], out));
    (out, inverse)
}

multiversion! {
    fn inverse_norm(x: &[f32], eps: f32) -> f32 {
        1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
    }
}

multiversion! {
    fn norm_row(x: &[f32], weight: &[f32], offset: f32, inverse: f32, out: &mut [f32]) {
        for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
            *out = x * inverse * (w + offset);
        }
    }
}

pub(super) fn rms_norm_backward(
    d_out: &[f32],
    x: &[f32],
    inverse: &[f32],
    weight: &[f32],
    kind: NormWeight,
    d_x: &mut [f32],
) {
    let width = weight.len();
    let row = |data: &'_ [f32], r: usize| -> Range<usize> {
        debug_assert!(data.len() >= (r + 1) * width);
        r * width..(r + 1) * width
    };
    each_row(d_x, width, |r, d_x| {
        norm_row_backward(&d_out[row(d_out, r)], &x[row(x, r)], weight, offset(kind), inverse[r], d_x);
    });
}

pub(super) fn rms_norm_backward_weight(d_out: &[f32], x: &[f32], inverse: &[f32], d_weight: &mut [f32]) {
    let width = d_weight.len();
    sum_rows(inverse.len(), d_weight, |r, sum| {
        let row = r * width..(r + 1) * width;
        norm_weight_gradient(&d_out[row.clone()], &x[row], inverse[r], sum)
    });
}

multiversion! {
    /// `d_x += inverse * (g - x * inverse^2 * mean(g * x))` with `g = d_out * w`.
    fn norm_row_backward(d_out: &[f32], x: &[f32], weight: &[f32], offset: f32, inverse: f32, d_x: &mut [f32]) {
        let n = x.len();
        let (d_out, weight) = (&d_out[..n], &weight[..n]);
        let along = dot3(d_out, (weight, offset), x);
        let shrink = along / n as f32 * inverse * inverse;
        for i in 0..n {
            d_x[i] += inverse * (d_out[i] * (weight[i] + offset) - x[i] * shrink);
        }
    }
}

multiversion! {
    fn norm_weight_gradient(d_out: &[f32], x: &[f32], inverse: f32, sum: &mut [f32]) {
        for ((sum, d), x) in sum.iter_mut().zip(d_out).zip(x) {
            *sum += d * x * inverse;
        }
    }
}

pub(super) fn head_norm(
    fused: &mut [f32],
    shape: &AttentionShape,
    heads: Range<usize>,
    weight: &[f32],
    kind: NormWeight,
    eps: f32,
) -> Buffer {
    let (stride, width) = (shape.fused(), weight.len());
    let columns = heads.start * shape.head_dim..heads.end * shape.head_dim;
    let norms = columns.len() / width;
    let mut inverse = Buffer::uninitialized(fused.len() / stride * norms);
    let source: &[f32] = fused;
    each_row(&mut inverse, norms, |t, out| {
        let row = &source[t * stride..][columns.clone()];
        out.iter_mut().zip(row.chunks_exact(width)).for_each(|(out, x)| *out = inverse_norm(x, eps));
    });
    each_row(fused, stride, |t, row| {
        for (x, inverse) in row[columns.clone()].chunks_exact_mut(width).zip(&inverse[t * norms..]) {
            x.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * inverse * (w + offset(kind)));
        }
    });
    inverse
}

pub(super) fn head_norm_backward_weight(
    d_fused: &[f32],
    raw: &[f32],
    inverse: &[f32],
    shape: &AttentionShape,
    heads: Range<usize>,
    d_weight: &mut [f32],
) {
    let (stride, width) = (shape.fused(), d_weight.len());
    let columns = heads.start * shape.head_dim..heads.end * shape.head_dim;
    let norms = columns.len() / width;
    sum_rows(raw.len() / stride, d_weight, |t, sum| {
        let [d, x] = [d_fused, raw].map(|all| all[t * stride..][columns.clone()].chunks_exact(width));
        for ((d, x), inverse) in d.zip(x).zip(&inverse[t * norms..]) {
            norm_weight_gradient(d, x, *inverse, sum);
        }
    });
}

pub(super) fn head_norm_backward(
    d_fused: &mut [f32],
    raw: &[f32],
    inverse: &[f32],
    shape: &AttentionShape,
    heads: Range<usize>,
    weight: &[f32],
    kind: NormWeight,
) {
    let (stride, width) = (shape.fused(), weight.len());
    let columns = heads.start * shape.head_dim..heads.end * shape.head_dim;
    let norms = columns.len() / width;
    each_row(d_fused, stride, |t, row| {
        let mut d_raw = vec![0f32; width];
        let d = row[columns.clone()].chunks_exact_mut(width);
        let x = raw[t * stride..][columns.clone()].chunks_exact(width);
        for ((d, x), inverse) in d.zip(x).zip(&inverse[t * norms..]) {
            d_raw.fill(0.0);
            norm_row_backward(d, x, weight, offset(kind), *inverse, &mut d_raw);
            d.copy_from_slice(&d_raw);
        }
    });
}

pub(super) fn add_bias(x: &mut [f32], bias: &[f32]) {
    each_row(x, bias.len(), |_, row| row.iter_mut().zip(bias).for_each(|(x, b)| *x += b));
}

pub(super) fn add_bias_backward(d_out: &[f32], d_bias: &mut [f32]) {
    let width = d_bias.len();
    sum_rows(d_out.len() / width, d_bias, |r, sum| {
        sum.iter_mut().zip(&d_out[r * width..(r + 1) * width]).for_each(|(s, d)| *s += d);
    });
}

/// Rotates by `direction * angle`: 1 forward, -1 for gradients.
pub(super) fn rotary(
    fused: &mut [f32],
    positions: &[u32],
    table: &RotaryTable,
    shape: &AttentionShape,
    direction: f32,
) {
    let half = table.half;
    each_row(fused, shape.fused(), |t, row| {
        let at = positions[t] as usize * half;
        let (cos, sin) = (&table.cos[at..at + half], &table.sin[at..at + half]);
        let rotated = (shape.heads + shape.kv_heads) * shape.head_dim;
        rotate_heads(&mut row[..rotated], shape.head_dim, cos, sin, direction);
    });
}

multiversion! {
    fn rotate_heads(heads: &mut [f32], dim: usize, cos: &[f32], sin: &[f32], direction: f32) {
        let half = cos.len();
        for head in heads.chunks_exact_mut(dim) {
            let (low, high) = head[..2 * half].split_at_mut(half);
            for i in 0..half {
                let (x, y, s) = (low[i], high[i], sin[i] * direction);
                low[i] = x * cos[i] - y * s;
                high[i] = y * cos[i] + x * s;
            }
        }
    }
}

pub(super) fn gated(x: &[f32], width: usize, activation: Activation) -> Buffer {
    let mut out = Buffer::uninitialized(x.len() / 2);
    each_row(&mut out, width, |r, out| {
        let (gate, up) = x[2 * r * width..2 * (r + 1) * width].split_at(width);
        match activation {
            Activation::Silu => silu_row(gate, up, out),
            Activation::GeluTanh => gelu_row(gate, up, out),
        }
    });
    out
}

pub(super) fn gated_backward(d_out: &[f32], x: &[f32], width: usize, activation: Activation) -> Buffer {
    let mut d_x = Buffer::uninitialized(x.len());
    each_row(&mut d_x, 2 * width, |r, d_x| {
        let (gate, up) = x[2 * r * width..2 * (r + 1) * width].split_at(width);
        let (d_gate, d_up) = d_x.split_at_mut(width);
        let d_out = &d_out[r * width..(r + 1) * width];
        match activation {
            Activation::Silu => silu_row_backward(d_out, gate, up, d_gate, d_up),
            Activation::GeluTanh => gelu_row_backward(d_out, gate, up, d_gate, d_up),
        }
    });
    d_x
}

/// Calls `f` with sixteen numbers of each array at a time and stores the results; the remainder is zero-padded, so that
/// it costs one call and not one for each number.
#[inline(always)]
fn in_lanes<const IN: usize, const OUT: usize>(
    inputs: [&[f32]; IN],
    outputs: [&mut [f32]; OUT],
    f: impl Fn([&[f32; LANES]; IN]) -> [[f32; LANES]; OUT],
) {
    let n = inputs[0].len();
    let whole = n / LANES;
    let inputs = inputs.map(|x| x[..n].as_chunks::<LANES>());
    let mut outputs = outputs.map(|x| x[..n].as_chunks_mut::<LANES>());
    for i in 0..whole {
        let results = f(inputs.map(|(lanes, _)| &lanes[i]));
        for ((lanes, _), result) in outputs.iter_mut().zip(results) {
            lanes[i] = result;
        }
    }
    let rest = n - whole * LANES;
    if rest > 0 {
        let mut padded = [[0f32; LANES]; IN];
        for (padded, (_, x)) in padded.iter_mut().zip(inputs) {
            padded[..rest].copy_from_slice(x);
        }
        let results = f(padded.each_ref());
        for ((_, x), result) in outputs.into_iter().zip(results) {
            x.copy_from_slice(&result[..rest]);
        }
    }
}

multiversion! {
    fn silu_row(gate: &[f32], up: &[f32], out: &mut [f32]) {
        in_lanes([gate, up], [out], silu_lanes);
    }
}

// A function and not a closure: a closure that is not inlined loses the instruction set of its caller.
#[inline(always)]
fn silu_lanes([g, u]: [&[f32; LANES]; 2]) -> [[f32; LANES]; 1] {
    let mut out = [0f32; LANES];
    for i in 0..LANES {
        out[i] = g[i] * sigmoid(g[i]) * u[i];
    }
    [out]
}

multiversion! {
    /// `silu'(g) = s + g s (1 - s)` with `s = sigmoid(g)`.
    fn silu_row_backward(d_out: &[f32], gate: &[f32], up: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
        in_lanes([d_out, gate, up], [d_gate, d_up], silu_lanes_backward);
    }
}

#[inline(always)]
fn silu_lanes_backward([d, g, u]: [&[f32; LANES]; 3]) -> [[f32; LANES]; 2] {
    let (mut d_gate, mut d_up) = ([0f32; LANES], [0f32; LANES]);
    for i in 0..LANES {
        let s = sigmoid(g[i]);
        d_gate[i] = d[i] * u[i] * (s + g[i] * s * (1.0 - s));
        d_up[i] = d[i] * g[i] * s;
    }
    [d_gate, d_up]
}

/// `sqrt(2 / pi)` and the cubic coefficient of GELU's tanh form.
const GELU: (f32, f32) = (0.797_884_6, 0.044_715);

multiversion! {
    fn gelu_row(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, &g), u) in out.iter_mut().zip(gate).zip(up) {
            *out = 0.5 * g * (1.0 + tanh(GELU.0 * (g + GELU.1 * g * g * g))) * u;
        }
    }
}

multiversion! {
    fn gelu_row_backward(d_out: &[f32], gate: &[f32], up: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
        let n = d_out.len();
        let (gate, up, d_gate, d_up) = (&gate[..n], &up[..n], &mut d_gate[..n], &mut d_up[..n]);
        for i in 0..n {
            let g = gate[i];
            let t = tanh(GELU.0 * (g + GELU.1 * g * g * g));
            let inner = GELU.0 * (1.0 + 3.0 * GELU.1 * g * g);
            d_up[i] = d_out[i] * 0.5 * g * (1.0 + t);
            d_gate[i] = d_out[i] * up[i] * 0.5 * (1.0 + t + g * (1.0 - t * t) * inner);
        }
    }
}

pub(super) fn add(x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    let add = |x: &mut [f32], y: &[f32]| x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    if x.len() < SMALL {
        add(x, y)
    } else {
        pool::each(x.chunks_mut(SMALL / 4).zip(y.chunks(SMALL / 4)), |_, (x, y)| add(x, y))
    }
}

multiversion! {
    /// `x = cap * tanh(factor * x / cap)`.
    pub(super) fn cap(x: &mut [f32], factor: f32, cap: f32) {
        let inner = factor / cap;
        for x in x.iter_mut() {
            *x = cap * tanh(*x * inner);
        }
    }
}

multiversion! {
    /// Multiplies by the slope of [`cap`], `1 - (y / cap)^2`, at its results `y`.
    pub(super) fn cap_backward(d: &mut [f32], y: &[f32], cap: f32) {
        let inverse = 1.0 / cap;
        for (d, y) in d.iter_mut().zip(y) {
            let t = y * inverse;
            *d *= 1.0 - t * t;
        }
    }
}

multiversion! {
    /// Turns logits (a whole row or a part of it) into `-g * softmax`, divided by the temperature.
    pub(super) fn softmax_gradient(logits: &mut [f32], d_logprob: f32, log_sum: f32, inverse_temperature: f32) {
        let factor = -d_logprob * inverse_temperature;
        for x in logits.iter_mut() {
            *x = factor * exp(*x * inverse_temperature - log_sum);
        }
    }
}
