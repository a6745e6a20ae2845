//! The left factor of a product, block by block: where it lies, or a copy of it in a better place.

use std::ops::Range;

use super::super::Dtype;
use super::super::gemm::View;
use super::super::isa::multiversion;
use super::super::kernel::{GROUP, Items, Left, STEPS};
#[cfg(target_arch = "x86_64")]
use super::{Isa, avx512, isa};
use super::{bf16, pair};

/// Rows at a distance that is a multiple of this share sets of the first-level cache, in numbers.
const SAME_SETS: usize = 1024;
/// A factor whose rows are columns in memory is copied when it meets more panels than these: each reads it once.
const FEW_PANELS: usize = 8;

/// Rows of a left factor as tiles read them.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    pub layout: Left,
    pub stride: usize,
    data: &'a [f32],
    rows: usize,
}

impl Block<'_> {
    /// Where the left factor of a tile begins that has `count` rows from `first` on.
    pub(crate) fn tile(&self, first: usize, count: usize) -> *const f32 {
        assert!(first + count <= self.rows);
        let at = match self.layout {
            Left::Rows => first * self.stride,
            Left::Columns => first,
        };
        self.data[at..].as_ptr()
    }
}

/// Rows `rows` of `a`, words `from..from + steps` of each, as such items, for products with so many panels. `depth` is where
/// the sum ends. `room` holds the copy, if there is one.
pub(crate) fn block<'a>(
    form: Items,
    dtype: Dtype,
    a: View<'a>,
    rows: Range<usize>,
    from: usize,
    steps: usize,
    depth: usize,
    panels: usize,
    room: &'a mut Vec<f32>,
) -> Block<'a> {
    let terms = dtype.terms();
    let a = View { data: &a.data[rows.start * a.row_stride + from * terms * a.column_stride..], ..a };
    let (rows, depth) = (rows.len(), (depth - from * terms).min(steps * terms));
    let source = if a.column_stride == 1 { Left::Rows } else { Left::Columns };
    let layout = if form == Items::Groups { Left::Rows } else { source };
    let items = if form == Items::Terms { steps * terms } else { steps };
    if dtype == Dtype::F32 && lies_well(a, layout, rows, panels) {
        let stride = a.row_stride.max(a.column_stride);
        let last = if layout == Left::Rows { (rows - 1) * stride + items } else { (items - 1) * stride + rows };
        return Block { layout, stride, data: &a.data[..last], rows };
    }
    let stride = match layout {
        // A little more than the items, so that rows do not share cache sets.
        Left::Rows if form == Items::Terms => terms * STEPS + 16,
        Left::Rows => STEPS + 16,
        Left::Columns => rows,
    };
    let len = match (layout, form) {
        (Left::Rows, Items::Groups) => rows.next_multiple_of(GROUP) * stride,
        (Left::Rows, _) => rows * stride,
        (Left::Columns, _) => items * stride,
    };
    room.resize(room.len().max(len), 0.0);
    let copy = &mut room[..len];
    match (dtype, form) {
        (Dtype::F32, _) => copy_numbers(a, layout, rows, depth, stride, copy, |from, to| to.copy_from_slice(from)),
        (Dtype::Bf16, Items::Terms) => copy_numbers(a, layout, rows, depth, stride, copy, round),
        (Dtype::Bf16, Items::Words) => copy_words(a, layout, rows, depth, stride, copy),
        (Dtype::Bf16, Items::Groups) => copy_groups(a, source, rows, depth, stride, copy),
    }
    if dtype == Dtype::Bf16 && depth % 2 == 1 && form == Items::Terms {
        match layout {
            Left::Rows => (0..rows).for_each(|r| copy[r * stride + depth] = 0.0),
            Left::Columns => copy[depth * stride..][..rows].fill(0.0),
        }
    }
    Block { layout, stride, data: copy, rows }
}

/// Whether tiles may read f32 numbers from where they are.
fn lies_well(a: View<'_>, layout: Left, rows: usize, panels: usize) -> bool {
    match layout {
        Left::Rows => rows == 1 || !a.row_stride.is_multiple_of(SAME_SETS),
        Left::Columns => panels <= FEW_PANELS && !a.column_stride.is_multiple_of(SAME_SETS),
    }
}

/// Copies `depth` terms of every row, line by line of memory.
fn copy_numbers(
    a: View<'_>,
    layout: Left,
    rows: usize,
    depth: usize,
    stride: usize,
    copy: &mut [f32],
    line: impl Fn(&[f32], &mut [f32]),
) {
    match layout {
        Left::Rows => {
            for r in 0..rows {
                line(&a.data[r * a.row_stride..][..depth], &mut copy[r * stride..][..depth]);
            }
        }
        Left::Columns => {
            for k in 0..depth {
                line(&a.data[k * a.column_stride..][..rows], &mut copy[k * stride..][..rows]);
            }
        }
    }
}

multiversion! {
    /// The nearest bfloat16 numbers.
    fn round(from: &[f32], to: &mut [f32]) {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(bf16(from) << 16);
        }
    }
}

/// The same as words of two terms.
fn copy_words(a: View<'_>, layout: Left, rows: usize, depth: usize, stride: usize, copy: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa() == Isa::Avx512Bf16 {
        // SAFETY: `isa` returns only what this machine has; the bounds are checked inside.
        return unsafe {
            match layout {
                Left::Rows => avx512::left_rows_bf16(a, rows, depth, stride, copy),
                Left::Columns => avx512::left_columns_bf16(a, rows, depth, copy),
            }
        };
    }
    let term = |r: usize, k: usize| if k < depth { a.data[r * a.row_stride + k * a.column_stride] } else { 0.0 };
    for r in 0..rows {
        for s in 0..depth.div_ceil(2) {
            let at = if layout == Left::Rows { r * stride + s } else { s * stride + r };
            copy[at] = pair(term(r, 2 * s), term(r, 2 * s + 1));
        }
    }
}

/// The same by rows, whole groups of words, from rows or columns.
fn copy_groups(a: View<'_>, source: Left, rows: usize, depth: usize, stride: usize, copy: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa() == Isa::Amx {
        // SAFETY: `isa` returns only what this machine has; the bounds are checked inside.
        return unsafe {
            match source {
                Left::Rows => avx512::left_rows_bf16(a, rows, depth, stride, copy),
                Left::Columns => avx512::left_rows_of_columns_bf16(a, rows, depth, stride, copy),
            }
        };
    }
    debug_assert!(source == Left::Columns || a.column_stride == 1);
    let term = |r: usize, k: usize| if k < depth { a.data[r * a.row_stride + k * a.column_stride] } else { 0.0 };
    for (r, words) in copy.chunks_mut(stride).enumerate().take(rows) {
        for (s, word) in words.iter_mut().enumerate().take(depth.div_ceil(2).next_multiple_of(GROUP)) {
            *word = pair(term(r, 2 * s), term(r, 2 * s + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNELS: [(Dtype, Items); 4] = [
        (Dtype::F32, Items::Terms),
        (Dtype::Bf16, Items::Terms),
        (Dtype::Bf16, Items::Words),
        (Dtype::Bf16, Items::Groups),
    ];

    #[test]
    fn every_layout_holds_the_terms_of_the_block_in_place_or_copied() {
        // Integers up to 256 are bfloat16 numbers.
        let numbers: Vec<f32> = (0..200 * SAME_SETS).map(|i| (i % 255) as f32 - 127.0).collect();
        for (dtype, items) in KERNELS {
            for (stride, panels) in [(100, 1), (100, 99), (SAME_SETS, 1)] {
                for view in [View::rows(&numbers, stride), View::rows(&numbers, stride).t()] {
                    let (rows, from, depth, terms) = (3..20, 4, 37, dtype.terms());
                    let steps = (depth - from * terms).div_ceil(terms);
                    let mut room = vec![f32::NAN; 20_000];
                    let block = block(items, dtype, view, rows.clone(), from, steps, depth, panels, &mut room);
                    let term = |r: usize, k: usize| {
                        let k = k + from * terms;
                        let at = (rows.start + r) * view.row_stride + k * view.column_stride;
                        if k < depth { numbers[at] } else { 0.0 }
                    };
                    for (r, i) in (0..rows.len()).flat_map(|r| (0..steps * terms).map(move |i| (r, i))) {
                        let at = |i: usize| match block.layout {
                            Left::Rows => r * block.stride + i,
                            Left::Columns => i * block.stride + r,
                        };
                        let found = match items {
                            Items::Terms => block.data[at(i)],
                            Items::Words | Items::Groups => {
                                f32::from_bits(block.data[at(i / 2)].to_bits() >> (16 * (i % 2)) << 16)
                            }
                        };
                        assert_eq!(found, term(r, i), "{dtype:?} {items:?} {stride} {panels}: {r} {i}");
                    }
                    if items == Items::Groups {
                        let group = |r: usize| &block.data[r * block.stride..][..steps.next_multiple_of(GROUP)];
                        assert_eq!(block.layout, Left::Rows);
                        assert!((0..rows.len()).all(|r| group(r)[steps..].iter().all(|word| word.to_bits() == 0)));
                        assert_eq!(block.data.len(), rows.len().next_multiple_of(GROUP) * block.stride);
                    }
                }
            }
        }
    }
}
