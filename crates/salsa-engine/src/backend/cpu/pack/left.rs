//! The left factor of a product, block by block: in place, or copied to a better layout.

use std::ops::Range;

use super::super::Dtype;
use super::super::isa::multiversion;
use super::super::kernel::{BLOCK, GROUP, Items, Left, prefetch};
use super::super::math::LANES;
use super::super::view::View;
#[cfg(target_arch = "x86_64")]
use super::{Isa, avx512, isa};
use super::{bf16, pair};

/// Rows whose distance is a multiple of this many numbers share sets of the first-level cache.
const SAME_SETS: usize = 1024;
/// A factor whose rows are columns in memory is copied for products with more panels than this: each reads it once.
const FEW_PANELS: usize = 8;
const HALF: usize = LANES / 2;
/// How many columns ahead of the copy a column is prefetched.
const COLUMNS_AHEAD: usize = 16;

/// Rows of a left factor in the layout that tiles read.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    pub layout: Left,
    pub stride: usize,
    data: &'a [f32],
    /// Rows of a tile; `tile_stride` is the distance of two tiles' first numbers.
    height: usize,
    tile_stride: usize,
}

impl Block<'_> {
    /// The start of the left factor of the tile whose first row is `first`.
    pub(crate) fn tile(&self, first: usize) -> *const f32 {
        debug_assert!(first.is_multiple_of(self.height));
        self.data[first / self.height * self.tile_stride..].as_ptr()
    }
}

/// Returns rows `rows` of `a`, words `from..from + steps` of each, in the layout `form`, for tiles of `height` rows and
/// products with `panels` panels. `depth` is the end of the sum. `room` holds the copy, if one is needed.
pub(crate) fn block<'a>(
    form: Items,
    dtype: Dtype,
    a: View<'a>,
    rows: Range<usize>,
    from: usize,
    steps: usize,
    depth: usize,
    height: usize,
    panels: usize,
    room: &'a mut Vec<f32>,
) -> Block<'a> {
    let terms = dtype.terms();
    let a = View { data: &a.data[rows.start * a.row_stride + from * terms * a.column_stride..], ..a };
    let (rows, depth) = (rows.len(), (depth - from * terms).min(steps * terms));
    let source = if a.column_stride == 1 { Left::Rows } else { Left::Columns };
    let layout = if form == Items::Groups { Left::Rows } else { source };
    let items = if form == Items::Terms { steps * terms } else { steps };
    if dtype == Dtype::F32 && readable_in_place(a, layout, rows, panels) {
        let (stride, tile_stride, last) = match layout {
            Left::Rows => (a.row_stride, height * a.row_stride, (rows - 1) * a.row_stride + items),
            Left::Columns => (a.column_stride, height, (items - 1) * a.column_stride + rows),
        };
        return Block { layout, stride, data: &a.data[..last], height, tile_stride };
    }
    let (stride, tile_stride) = match (layout, form) {
        (Left::Rows, _) => {
            // A little longer than the items, so that rows do not share cache sets.
            let stride = items.next_multiple_of(LANES) + LANES;
            (stride, height * stride)
        }
        // Tile by tile, so that each takes as little of the first-level cache as possible. Writes lane by lane may
        // exceed the last item.
        (Left::Columns, _) => (height, items * height + LANES),
    };
    let len = rows.div_ceil(height) * tile_stride;
    room.resize(room.len().max(len), 0.0);
    let copy = &mut room[..len];
    match (layout, form) {
        (Left::Rows, Items::Terms) => {
            for r in 0..rows {
                let (from, to) = (&a.data[r * a.row_stride..][..depth], &mut copy[r * stride..][..items]);
                take(dtype, from, &mut to[..depth]);
                to[depth..].fill(0.0);
            }
        }
        (Left::Columns, Items::Terms) => copy_columns(dtype, a, (rows, depth, items), (height, tile_stride), copy),
        (_, Items::Groups) => copy_groups(a, source, rows, depth, stride, copy),
        (_, Items::Words) => copy_words(a, layout, rows, depth, (height, stride, tile_stride), copy),
    }
    Block { layout, stride, data: copy, height, tile_stride }
}

/// Whether tiles may read f32 numbers in place.
fn readable_in_place(a: View<'_>, layout: Left, rows: usize, panels: usize) -> bool {
    match layout {
        Left::Rows => rows == 1 || !a.row_stride.is_multiple_of(SAME_SETS),
        Left::Columns => panels <= FEW_PANELS && !a.column_stride.is_multiple_of(SAME_SETS),
    }
}

/// Copies terms by columns, tile by tile. Columns are far apart in memory, so they are prefetched.
fn copy_columns(
    dtype: Dtype,
    a: View<'_>,
    (rows, depth, items): (usize, usize, usize),
    (height, tile_stride): (usize, usize),
    copy: &mut [f32],
) {
    // Whole lanes after the last row, too.
    let mut rounded = [0.0; BLOCK + LANES];
    for k in 0..depth {
        let column = &a.data[k * a.column_stride..];
        if k + COLUMNS_AHEAD < depth {
            prefetch(&column[COLUMNS_AHEAD * a.column_stride..][..rows]);
        }
        let column = match dtype {
            Dtype::F32 => column,
            Dtype::Bf16 => {
                round(&column[..rows], &mut rounded);
                &rounded
            }
        };
        to_tiles(column, rows, height, tile_stride, &mut copy[k * height..]);
    }
    for tile in copy.chunks_mut(tile_stride) {
        tile[depth * height..items * height].fill(0.0);
    }
}

multiversion! {
    /// Copies an item of every row into its place in each tile. Places past the tile's rows are overwritten later.
    fn to_tiles(column: &[f32], rows: usize, height: usize, tile_stride: usize, copy: &mut [f32]) {
        if height <= HALF {
            chunks_to_tiles::<HALF>(column, rows, height, tile_stride, copy);
        } else {
            chunks_to_tiles::<LANES>(column, rows, height, tile_stride, copy);
        }
    }
}

#[inline(always)]
fn chunks_to_tiles<const CHUNK: usize>(
    column: &[f32],
    rows: usize,
    height: usize,
    tile_stride: usize,
    copy: &mut [f32],
) {
    for (first, to) in (0..rows).step_by(height).zip(copy.chunks_mut(tile_stride)) {
        match (column[first..].first_chunk::<CHUNK>(), to.first_chunk_mut::<CHUNK>()) {
            (Some(from), Some(to)) => *to = *from,
            _ => to.iter_mut().zip(&column[first..rows]).take(height).for_each(|(to, &from)| *to = from),
        }
    }
}

/// Copies numbers, rounded as the type requires.
fn take(dtype: Dtype, from: &[f32], to: &mut [f32]) {
    match dtype {
        Dtype::F32 => to.copy_from_slice(from),
        Dtype::Bf16 => round(from, to),
    }
}

multiversion! {
    /// Rounds to bfloat16.
    fn round(from: &[f32], to: &mut [f32]) {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(bf16(from) << 16);
        }
    }
}

/// Copies words of two terms, by rows or columns.
fn copy_words(
    a: View<'_>,
    layout: Left,
    rows: usize,
    depth: usize,
    (height, stride, tile_stride): (usize, usize, usize),
    copy: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    if isa() == Isa::Avx512Bf16 {
        // SAFETY: `isa` returns only what this machine has; the bounds are checked inside.
        return unsafe {
            match layout {
                Left::Rows => avx512::left_rows_bf16(a, rows, depth, stride, copy),
                Left::Columns => avx512::left_columns_bf16(a, rows, depth, (height, tile_stride), copy),
            }
        };
    }
    let term = |r: usize, k: usize| if k < depth { a.data[r * a.row_stride + k * a.column_stride] } else { 0.0 };
    for (r, s) in (0..rows).flat_map(|r| (0..depth.div_ceil(2)).map(move |s| (r, s))) {
        let at = match layout {
            Left::Rows => r * stride + s,
            Left::Columns => r / height * tile_stride + s * height + r % height,
        };
        copy[at] = pair(term(r, 2 * s), term(r, 2 * s + 1));
    }
}

/// Copies whole groups of words by rows, from rows or columns.
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
                    let height = if items == Items::Groups { GROUP } else { 6 };
                    let mut room = vec![f32::NAN; 20_000];
                    let block = block(items, dtype, view, rows.clone(), from, steps, depth, height, panels, &mut room);
                    let term = |r: usize, k: usize| {
                        let k = k + from * terms;
                        let at = (rows.start + r) * view.row_stride + k * view.column_stride;
                        if k < depth { numbers[at] } else { 0.0 }
                    };
                    for (r, i) in (0..rows.len()).flat_map(|r| (0..steps * terms).map(move |i| (r, i))) {
                        let tile = r / height * block.tile_stride;
                        let at = |i: usize| match block.layout {
                            Left::Rows => tile + r % height * block.stride + i,
                            Left::Columns => tile + i * block.stride + r % height,
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
