//! Matrix products of layers, through cuBLASLt.

use super::buffer::Buffer;
use super::card::Card;
use super::error::{DeviceError, fail, locked, must};
use super::gemm::{self, Gemm};
use super::kind::Kind;
use crate::backend::{Columns, LowRank};
use std::ops::Range;

impl Card {
    /// Starts a product of matrices.
    ///
    /// Results are the same in each run: sums that are split over blocks are combined in a fixed order.
    pub(super) fn gemm(&self, g: Gemm) {
        if g.m == 0 || g.n == 0 {
            return;
        }
        g.check();
        if g.k == 0 || g.alpha == 0.0 {
            return self.scale_rows(&g);
        }
        self.bind();
        self.measured(|| g.name(), || must(locked(&self.products).run(&g)));
    }

    /// `d = beta * c`, for `beta` 0 or 1.
    fn scale_rows(&self, g: &Gemm) {
        let bytes = g.d.kind.bytes();
        let place = |matrix: gemm::Matrix| (matrix.pointer, matrix.stride * bytes);
        if g.beta == 0.0 {
            self.clear_rows(place(g.d), g.n * bytes, g.m);
        } else if g.beta == 1.0 {
            if let Some(c) = g.c.filter(|c| c.pointer != g.d.pointer) {
                self.copy_rows(place(c), place(g.d), g.n * bytes, g.m);
            }
        } else {
            let error = "an empty product with beta other than 0 and 1".into();
            fail(DeviceError::Product { call: "gemm".into(), error, shape: g.describe() });
        }
    }

    /// Whether to time several algorithms for each new shape. Results may then differ from run to run.
    pub fn tune_products(&self, tune: bool) {
        locked(&self.products).tunes = tune;
    }
}

/// A weight matrix `[out, in]`, row-major, in the type of products.
pub struct Matrix {
    pub(super) numbers: Buffer,
    pub(super) out: usize,
    pub(super) input: usize,
}

impl Matrix {
    pub(super) fn kind(&self) -> Kind {
        self.numbers.kind()
    }

    fn operand(&self) -> gemm::Matrix {
        gemm::Matrix::at(self.numbers.pointer(), 0, self.kind(), self.input)
    }
}

/// Some columns of an array.
fn columns(pointer: u64, kind: Kind, columns: Columns) -> gemm::Matrix {
    gemm::Matrix::at(pointer, columns.first, kind, columns.of)
}

/// `x W^T`, as `kind`.
pub(super) fn linear(x: &Buffer, weight: &Matrix, kind: Kind) -> Buffer {
    let rows = x.len() / weight.input;
    let mut y = x.card().room(rows * weight.out, kind);
    some_rows(x, 0..rows, weight, 1.0, 0.0, &mut y);
    y
}

/// `to = alpha * x[rows] W^T + beta * to`.
pub(super) fn some_rows(x: &Buffer, rows: Range<usize>, weight: &Matrix, alpha: f32, beta: f32, to: &mut Buffer) {
    let x = x.as_kind(weight.kind());
    let (m, n, k) = (rows.len(), weight.out, weight.input);
    let a = gemm::Matrix::at(x.pointer(), rows.start * k, x.kind(), k);
    let kind = to.kind();
    let d = gemm::Matrix::at(to.pointer_mut(), 0, kind, n);
    x.card().gemm(Gemm { m, n, k, alpha, beta, a, b: weight.operand().transposed(), c: None, d });
}

/// `d_x[rows] = d_out W`; `d_out` has only those rows.
pub(super) fn some_rows_backward_input(d_out: &Buffer, weight: &Matrix, d_x: &mut Buffer, rows: Range<usize>) {
    let d_out = d_out.as_kind(weight.kind());
    let (m, n, k) = (rows.len(), weight.input, weight.out);
    let a = gemm::Matrix::at(d_out.pointer(), 0, d_out.kind(), k);
    let kind = d_x.kind();
    let d = gemm::Matrix::at(d_x.pointer_mut(), rows.start * n, kind, n);
    d_out.card().gemm(Gemm { m, n, k, alpha: 1.0, beta: 0.0, a, b: weight.operand(), c: None, d });
}

/// `d_weight += d_out^T x[rows]`, at an address of f32; `d_out` has only those rows.
pub(super) fn some_rows_backward_weight(
    d_out: &Buffer,
    x: &Buffer,
    rows: Range<usize>,
    weight: &Matrix,
    d_weight: u64,
) {
    let (d_out, x) = (d_out.as_kind(weight.kind()), x.as_kind(weight.kind()));
    let (m, n, k) = (weight.out, weight.input, rows.len());
    let a = gemm::Matrix::at(d_out.pointer(), 0, d_out.kind(), m).transposed();
    let b = gemm::Matrix::at(x.pointer(), rows.start * n, x.kind(), n);
    let d = gemm::Matrix::at(d_weight, 0, Kind::F32, n);
    x.card().gemm(Gemm { m, n, k, alpha: 1.0, beta: 1.0, a, b, c: None, d });
}

/// `residual + x W^T`, f32.
pub(super) fn linear_onto(x: &Buffer, weight: &Matrix, residual: &Buffer) -> Buffer {
    let x = x.as_kind(weight.kind());
    let mut y = x.card().room(residual.len(), Kind::F32);
    let residual = residual.converted(Kind::F32);
    let a = gemm::Matrix::at(x.pointer(), 0, x.kind(), weight.input);
    let (m, n, k) = (x.len() / weight.input, weight.out, weight.input);
    let c = Some(gemm::Matrix::at(residual.pointer(), 0, Kind::F32, n));
    let d = gemm::Matrix::at(y.pointer_mut(), 0, Kind::F32, n);
    x.card().gemm(Gemm { m, n, k, alpha: 1.0, beta: 1.0, a, b: weight.operand().transposed(), c, d });
    y
}

/// `d_out W` in the type of products.
pub(super) fn backward_input(d_out: &Buffer, weight: &Matrix) -> Buffer {
    let rows = d_out.len() / weight.out;
    let mut d_x = d_out.card().room(rows * weight.input, weight.kind());
    let to = Columns::all(weight.input);
    onto_columns(d_out, Columns::all(weight.out), weight.operand(), (weight.out, weight.input), &mut d_x, to, 0.0);
    d_x
}

/// `y[:, to] += x[:, from] W^T`.
pub(super) fn linear_columns(x: &Buffer, from: Columns, weight: &Matrix, y: &mut Buffer, to: Columns) {
    onto_columns(x, from, weight.operand().transposed(), (weight.input, weight.out), y, to, 1.0);
}

/// `x W^T`, plus the products of the factors with `z`, plus the residual if there is one. The factors go first: they
/// write what the large product then adds to, which saves one pass over the result.
pub(super) fn linear_low_rank(
    x: &Buffer,
    weight: &Matrix,
    z: &Buffer,
    factors: &[LowRank<'_, Matrix>],
    residual: Option<&Buffer>,
) -> Buffer {
    let (x, z) = (x.as_kind(weight.kind()), z.as_kind(weight.kind()));
    let (rows, n, k) = (x.len() / weight.input, weight.out, weight.input);
    let kind = if residual.is_some() { Kind::F32 } else { weight.kind() };
    let covered: usize = factors.iter().map(|factor| factor.outer.count).sum();
    let mut y = match residual {
        Some(residual) if covered == n => {
            debug_assert_eq!(residual.kind(), kind);
            x.card().room(rows * n, kind)
        }
        Some(residual) => residual.clone(),
        None if covered == n => x.card().room(rows * n, kind),
        None => x.card().zeros(rows * n, kind),
    };
    let to = y.pointer_mut();
    for LowRank { weight, inner, outer } in factors {
        let (a, b) = (columns(z.pointer(), z.kind(), *inner), weight.operand().transposed());
        let d = columns(to, kind, *outer);
        let c = residual.map(|residual| columns(residual.pointer(), kind, *outer));
        let beta = if residual.is_some() { 1.0 } else { 0.0 };
        x.card().gemm(Gemm { m: rows, n: outer.count, k: inner.count, alpha: 1.0, beta, a, b, c, d });
    }
    let a = gemm::Matrix::at(x.pointer(), 0, x.kind(), k);
    let d = gemm::Matrix::at(to, 0, kind, n);
    x.card().gemm(Gemm { m: rows, n, k, alpha: 1.0, beta: 1.0, a, b: weight.operand().transposed(), c: None, d });
    y
}

/// `d_out W + d_z A`, in the type of products.
pub(super) fn low_rank_backward_input(d_out: &Buffer, weight: &Matrix, d_z: &Buffer, a: LowRank<'_, Matrix>) -> Buffer {
    let rows = d_out.len() / weight.out;
    let mut d_x = d_out.card().room(rows * weight.input, weight.kind());
    let sizes = |weight: &Matrix| (weight.out, weight.input);
    onto_columns(d_z, a.inner, a.weight.operand(), sizes(a.weight), &mut d_x, a.outer, 0.0);
    onto_columns(
        d_out,
        Columns::all(weight.out),
        weight.operand(),
        sizes(weight),
        &mut d_x,
        Columns::all(weight.input),
        1.0,
    );
    d_x
}

/// `d_x[:, to] += d_out[:, from] W`.
pub(super) fn columns_backward_input(d_out: &Buffer, from: Columns, weight: &Matrix, d_x: &mut Buffer, to: Columns) {
    onto_columns(d_out, from, weight.operand(), (weight.out, weight.input), d_x, to, 1.0);
}

/// `y[:, to] = x[:, from] b + beta * y[:, to]`, `b` of `k` rows and `n` columns.
fn onto_columns(
    x: &Buffer,
    from: Columns,
    b: gemm::Matrix,
    (k, n): (usize, usize),
    y: &mut Buffer,
    to: Columns,
    beta: f32,
) {
    let x = x.as_kind(b.kind);
    let (m, kind) = (x.len() / from.of, y.kind());
    let a = columns(x.pointer(), x.kind(), from);
    let d = columns(y.pointer_mut(), kind, to);
    x.card().gemm(Gemm { m, n, k, alpha: 1.0, beta, a, b, c: None, d });
}

/// `d_weight[from.count, of.count] += d_out[:, from]^T x[:, of]` at an address of f32.
pub(super) fn backward_weight(d_out: &Buffer, from: Columns, x: &Buffer, of: Columns, kind: Kind, d_weight: u64) {
    let (d_out, x) = (d_out.as_kind(kind), x.as_kind(kind));
    let a = columns(d_out.pointer(), kind, from).transposed();
    let b = columns(x.pointer(), kind, of);
    let d = gemm::Matrix::at(d_weight, 0, Kind::F32, of.count);
    let (m, n, k) = (from.count, of.count, x.len() / of.of);
    x.card().gemm(Gemm { m, n, k, alpha: 1.0, beta: 1.0, a, b, c: None, d });
}
