//! Products of some columns of a matrix, added to some columns of another, as adapters need them.

use super::gemm::{Packed, gemm};
use super::isa::multiversion;
use super::kernel::Store;
use super::view::View;
use super::{Buffer, Dtype};
use crate::backend::Columns;
use crate::pool;

/// Numbers scaled by a task.
const BLOCK: usize = 1 << 14;

/// `y[:, to] += x[:, from] * W^T`.
pub(super) fn linear(x: &Buffer, from: Columns, weight: &Packed, y: &mut Buffer, to: Columns) {
    let rows = x.len() / from.of;
    if rows > 0 {
        let shape = (rows, to.count, from.count);
        gemm(shape, view(x, from), weight.panels(), &mut y[to.first..], to.of, Store::Add);
    }
}

/// `d_x[:, to] += d_out[:, from] * W`.
pub(super) fn backward_input(d_out: &Buffer, from: Columns, weight: &Packed, d_x: &mut Buffer, to: Columns) {
    let rows = d_out.len() / from.of;
    if rows > 0 {
        let mut transposed = Packed::default();
        transposed.transpose_of(weight, 0, from.count);
        let shape = (rows, to.count, from.count);
        gemm(shape, view(d_out, from), transposed.panels(), &mut d_x[to.first..], to.of, Store::Add);
    }
}

/// `d_weight += d_out[:, from]^T * x[:, of]`.
pub(super) fn backward_weight(
    dtype: Dtype,
    d_out: &Buffer,
    from: Columns,
    x: &Buffer,
    of: Columns,
    d_weight: &mut [f32],
) {
    let rows = x.len() / of.of;
    if rows > 0 {
        let packed = Packed::new(dtype, view(x, of), rows, of.count);
        let shape = (from.count, of.count, rows);
        gemm(shape, view(d_out, from).t(), packed.panels(), d_weight, of.count, Store::Add);
    }
}

/// `x *= factor`.
pub(super) fn scale(x: &mut Buffer, factor: f32) {
    if factor != 1.0 {
        pool::each(x.chunks_mut(BLOCK), |_, part| scale_part(part, factor));
    }
}

multiversion! {
    fn scale_part(x: &mut [f32], factor: f32) {
        for x in x.iter_mut() {
            *x *= factor;
        }
    }
}

fn view(x: &Buffer, columns: Columns) -> View<'_> {
    View::rows(&x[columns.first..], columns.of)
}
