//! Matrix multiplication: packing, blocking, threads.
//!
//! The right factor is packed into panels of as many columns as a tile is wide, `[panel][word of the sum][width]`;
//! weights stay packed between calls. The left factor is packed block by block. Sums are cut at multiples of [`STEPS`]
//! words, always the same places, so that the order of summation of an element is a function of the depth alone.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::Dtype;
use super::buffer::Buffer;
use super::isa::isa;
use super::kernel::{HEIGHT, Kernel, Prefetch, STEPS, Store, WIDTH};
use super::view::View;
use super::{pack, rows};
use crate::pool;
use crate::weights::Numbers;

/// Products of less work (rows * columns * steps, in words) stay on the calling thread: waking others costs more.
const SMALL: usize = 1 << 17;
/// Cost of packing a number of the left factor, in numbers of panels read; estimated from profiles on AMX.
const PACKING: usize = 4;
/// Rows of the source transposed at a time: with fewer, too little of each contiguous run is read at once.
const TRANSPOSED: usize = 128;

/// Columns packed at a time from contiguous rows.
const TOGETHER: usize = 128;

/// A right factor in panels. `panel_stride` is at least the words of a panel; the rest is spare capacity.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    pub data: &'a [f32],
    pub panel_stride: usize,
    pub dtype: Dtype,
}

/// A packed right factor of `depth` rows and `columns` columns, zero-padded to whole words and panels.
#[derive(Clone, Debug, Default)]
pub struct Packed {
    data: Buffer,
    dtype: Dtype,
    depth: usize,
    columns: usize,
}

impl Packed {
    /// Packs the matrix `b[depth][columns]`.
    pub(crate) fn new(dtype: Dtype, b: View<'_>, depth: usize, columns: usize) -> Packed {
        let mut packed = Packed::empty(dtype);
        packed.pack(b, depth, columns);
        packed
    }

    /// An empty matrix, to be packed later.
    pub(crate) fn empty(dtype: Dtype) -> Packed {
        Packed { dtype, ..Packed::default() }
    }

    /// Allocates a matrix `[depth][columns]`; its content is unspecified until all columns are packed.
    pub(crate) fn room(dtype: Dtype, depth: usize, columns: usize) -> Packed {
        let data = Buffer::lasting(Packed::words(dtype, depth, columns));
        Packed { data, dtype, depth, columns }
    }

    /// Packs again, reusing the memory.
    pub(crate) fn pack(&mut self, b: View<'_>, depth: usize, columns: usize) {
        self.reshape(depth, columns);
        self.pack_columns(0, b, columns);
    }

    /// Packs `columns` columns from column `first` on, which starts a panel; they end a panel or the matrix.
    pub(crate) fn pack_columns(&mut self, first: usize, b: View<'_>, columns: usize) {
        let (dtype, width, depth) = (self.dtype, self.kernel().width, self.depth);
        // Several panels at a time, so that adjacent memory is read together, but enough runs for every thread.
        let run = if b.column_stride == 1 {
            (TOGETHER / width).min(columns.div_ceil(width).div_ceil(pool::threads()))
        } else {
            1
        };
        self.each_panel_of(first, columns, run, |p, out| {
            pack::panels(dtype, b, depth, p * width - first, columns, width, out);
        });
    }

    /// Packs rows of weights `[columns][depth]` as columns from column `first` on, as [`Packed::pack_columns`] does.
    pub(crate) fn pack_weights(&mut self, first: usize, weights: Numbers<'_>) {
        let (width, depth) = (self.kernel().width, self.depth);
        let columns = weights.len() / depth;
        match (weights, self.dtype) {
            (Numbers::F32(weights), _) => self.pack_columns(first, View::rows(weights, depth).t(), columns),
            (Numbers::Bf16(_), Dtype::F32) => {
                let mut wide = Buffer::uninitialized(weights.len());
                rows::copy(&mut wide, weights);
                self.pack_columns(first, View::rows(&wide, depth).t(), columns);
            }
            (Numbers::Bf16(weights), Dtype::Bf16) => {
                self.each_panel_of(first, columns, 1, |p, panel| {
                    let rows = p * width - first..columns.min((p + 1) * width - first);
                    pack::panel_of_bf16(&weights[rows.start * depth..rows.end * depth], depth, panel);
                });
            }
        }
    }

    /// Writes one column.
    pub(crate) fn column(&self, column: usize, out: &mut [f32]) {
        let (width, stride) = (self.kernel().width, self.stride());
        let words = &self.data[column / width * stride..][..stride];
        let words = words[column % width..].iter().step_by(width);
        match self.dtype {
            Dtype::F32 => out.iter_mut().zip(words).for_each(|(out, &word)| *out = word),
            Dtype::Bf16 => {
                for (out, word) in out.chunks_mut(2).zip(words) {
                    out[0] = f32::from_bits(word.to_bits() << 16);
                    if let Some(second) = out.get_mut(1) {
                        *second = f32::from_bits(word.to_bits() & 0xffff_0000);
                    }
                }
            }
        }
    }

    /// Packs the transpose of `columns` columns of another packed matrix, from column `first` on, which starts a panel.
    pub(crate) fn transpose_of(&mut self, other: &Packed, first: usize, columns: usize) {
        let panels = other.panels_from(first);
        let (depth, width) = (other.depth, other.kernel().width);
        self.dtype = other.dtype;
        self.reshape(columns, depth);
        let count = depth.div_ceil(width);
        // Enough runs for every thread.
        let run = (TRANSPOSED / width).min(count.div_ceil(pool::threads())).max(1);
        self.each_run(0..count, run, |p, out| {
            pack::transposed_panels(other.dtype, panels.data, panels.panel_stride, (depth, columns, width), p, out);
        });
    }

    /// Allocates for `[depth][columns]`, unless the size is unchanged.
    fn reshape(&mut self, depth: usize, columns: usize) {
        (self.depth, self.columns) = (depth, columns);
        let len = Packed::words(self.dtype, depth, columns);
        if self.data.len() != len {
            self.data = Buffer::uninitialized(len);
        }
    }

    /// Calls `fill(index, words)` for the panels of `columns` columns from column `first` on, `run` panels at a time.
    fn each_panel_of(&mut self, first: usize, columns: usize, run: usize, fill: impl Fn(usize, &mut [f32]) + Sync) {
        let (width, end) = (self.kernel().width, first + columns);
        assert!(first.is_multiple_of(width), "column {first} does not start a panel of {width}");
        assert!(end.is_multiple_of(width) || end == self.columns, "column {end} does not end a panel of {width}");
        self.each_run(first / width..end.div_ceil(width), run.max(1), fill);
    }

    /// Calls `fill(first, words)` for these panels, up to `run` at a time.
    fn each_run(&mut self, panels: Range<usize>, run: usize, fill: impl Fn(usize, &mut [f32]) + Sync) {
        let stride = self.stride();
        if stride == 0 {
            return;
        }
        let words = &mut self.data[panels.start * stride..panels.end * stride];
        if words.len() < 1 << 15 {
            words.chunks_mut(run * stride).enumerate().for_each(|(i, words)| fill(panels.start + i * run, words));
        } else {
            pool::each(words.chunks_mut(run * stride), |i, words| fill(panels.start + i * run, words));
        }
    }

    /// Words of a packed matrix `[depth][columns]`.
    pub(crate) fn words(dtype: Dtype, depth: usize, columns: usize) -> usize {
        depth.div_ceil(dtype.terms()) * columns.next_multiple_of(Kernel::of(isa(), dtype).width)
    }

    fn kernel(&self) -> &'static Kernel {
        Kernel::of(isa(), self.dtype)
    }

    /// Words of a panel.
    fn stride(&self) -> usize {
        self.depth.div_ceil(self.dtype.terms()) * self.kernel().width
    }

    pub(crate) fn panels(&self) -> Panels<'_> {
        Panels { data: &self.data, panel_stride: self.stride(), dtype: self.dtype }
    }

    /// The panels from column `first` on; it must be a multiple of every kernel's width.
    pub(crate) fn panels_from(&self, first: usize) -> Panels<'_> {
        let width = self.kernel().width;
        assert!(first.is_multiple_of(width), "column {first} does not start a panel of {width}");
        let stride = self.stride();
        Panels { data: &self.data[first / width * stride..], panel_stride: stride, dtype: self.dtype }
    }

    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }
}

/// `out[rows][columns] (=|+=) a[rows][depth] * b[depth][columns]`, on all threads; `out`'s rows are `stride` apart.
pub(crate) fn gemm(
    (rows, columns, depth): (usize, usize, usize),
    a: View<'_>,
    b: Panels<'_>,
    out: &mut [f32],
    stride: usize,
    store: Store,
) {
    let threads = pool::threads();
    if rows * columns * depth.div_ceil(b.dtype.terms()) < SMALL || threads == 1 {
        return gemm_here((rows, columns, depth), a, b, out, stride, store);
    }
    let kernel = Kernel::of(isa(), b.dtype);
    let panels = columns.div_ceil(kernel.width);
    let (block, run) = tasks(rows, panels, kernel, b.dtype, threads);
    let (row_blocks, runs) = (rows.div_ceil(block), panels.div_ceil(run));
    let product = Product::new((rows, columns, depth), a, b, out, stride, store);
    pool::run(row_blocks * runs, |task| {
        let (first, part) = (task / runs * block, task % runs);
        product.block(first..rows.min(first + block), part * run..panels.min((part + 1) * run));
    });
}

/// The rows and the panels of a task: enough tasks to share, each long enough to pay for packing.
///
/// Rows are packed once for each run of panels, and panels read once for each block of rows. In bfloat16 the sum of both
/// decides; f32 rows are mostly read where they lie, and panels stay in the cache for as many rows as can be.
fn tasks(rows: usize, panels: usize, kernel: &Kernel, dtype: Dtype, threads: usize) -> (usize, usize) {
    let (enough, fewest) = (4 * threads, rows.div_ceil(kernel.block));
    let cut = |blocks: usize| {
        let block = rows.div_ceil(blocks).next_multiple_of(kernel.height());
        (block, panels.div_ceil(enough.div_ceil(rows.div_ceil(block)).min(panels)))
    };
    let cost = |blocks: &usize| {
        let (block, run) = cut(*blocks);
        PACKING * rows * panels.div_ceil(run) + rows.div_ceil(block) * panels * kernel.width
    };
    let most = if dtype == Dtype::Bf16 { enough.max(fewest) } else { fewest };
    cut((fewest..=most).min_by_key(cost).unwrap_or(fewest))
}

/// As [`gemm`], on the calling thread alone, with the same bits.
pub(crate) fn gemm_here(
    (rows, columns, depth): (usize, usize, usize),
    a: View<'_>,
    b: Panels<'_>,
    out: &mut [f32],
    stride: usize,
    store: Store,
) {
    let panels = columns.div_ceil(Kernel::of(isa(), b.dtype).width);
    let product = Product::new((rows, columns, depth), a, b, out, stride, store);
    let block = product.kernel.block;
    for first in (0..rows).step_by(block) {
        product.block(first..rows.min(first + block), 0..panels);
    }
}

/// A product whose disjoint parts are computed by tasks.
struct Product<'a> {
    kernel: &'static Kernel,
    a: View<'a>,
    b: Panels<'a>,
    columns: usize,
    depth: usize,
    out: *mut f32,
    len: usize,
    stride: usize,
    store: Store,
}

// SAFETY: only `out` is written, and every task writes its own rows and columns; see `block`.
unsafe impl Sync for Product<'_> {}

impl<'a> Product<'a> {
    fn new(
        (rows, columns, depth): (usize, usize, usize),
        a: View<'a>,
        b: Panels<'a>,
        out: &'a mut [f32],
        stride: usize,
        store: Store,
    ) -> Product<'a> {
        assert!(rows == 0 || columns <= stride, "rows of the product overlap");
        let kernel = Kernel::of(isa(), b.dtype);
        Product { kernel, a, b, columns, depth, out: out.as_mut_ptr(), len: out.len(), stride, store }
    }

    /// Rows `rows` and panels `panels` of the product.
    fn block(&self, rows: Range<usize>, panels: Range<usize>) {
        if rows.is_empty() || panels.is_empty() {
            return;
        }
        let (dtype, width) = (self.b.dtype, self.kernel.width);
        let words = self.depth.div_ceil(dtype.terms());
        let height = self.kernel.height_for(rows.len());
        let last_column = self.columns.min(panels.end * width);
        assert!((rows.end - 1) * self.stride + last_column <= self.len, "the product does not fit its output");
        assert!((panels.end - 1) * self.b.panel_stride + words * width <= self.b.data.len(), "too few panels");
        if words == 0 {
            return self.clear(&rows, panels.start * width..last_column);
        }
        let _ready = self.kernel.ready();
        pool::with_scratch(|room| {
            for from in (0..words).step_by(STEPS) {
                let steps = STEPS.min(words - from);
                let store = if from == 0 { self.store } else { Store::Add };
                let (kernel, depth) = (self.kernel, self.depth);
                let count = panels.len();
                let left =
                    pack::left_block(kernel.left, dtype, self.a, rows.clone(), from, steps, depth, height, count, room);
                for panel in panels.clone() {
                    let b = &self.b.data[panel * self.b.panel_stride + from * width..][..steps * width];
                    let tiles = rows.len().div_ceil(height);
                    let share = (steps * width).div_ceil(tiles);
                    for first in (0..rows.len()).step_by(height) {
                        let count = height.min(rows.len() - first);
                        let tile = kernel.tile(count, left.layout);
                        let next = b.as_ptr().wrapping_add(self.b.panel_stride + first / height * share);
                        let ahead = Prefetch { from: next, stride: width.div_ceil(tiles) };
                        let compute = |out: *mut f32, stride: usize, store: Store| {
                            // SAFETY: the thread is ready, the block has `count` rows from `first` on with the items of
                            // `steps` words, `b` `steps * width` words, and `out` room for the tile: see below.
                            unsafe {
                                tile(steps, left.tile(first), left.stride, b.as_ptr(), ahead, out, stride, store);
                            }
                        };
                        // SAFETY: the assertions above keep rows and columns inside `out`; no other task has these.
                        unsafe { self.put(compute, rows.start + first, count, panel * width, store) };
                    }
                }
            }
        });
    }

    /// Calls `compute(out, stride, store)` to write a tile; one past the last column goes through a local buffer.
    ///
    /// # Safety
    ///
    /// The rows and columns that exist must lie inside `out` and belong to the caller.
    #[inline(always)]
    unsafe fn put(
        &self,
        compute: impl Fn(*mut f32, usize, Store),
        row: usize,
        count: usize,
        column: usize,
        store: Store,
    ) {
        let width = self.kernel.width;
        // SAFETY: guaranteed by the caller.
        let at = unsafe { self.out.add(row * self.stride + column) };
        if column + width <= self.columns {
            return compute(at, self.stride, store);
        }
        let mut edge = MaybeUninit::<[f32; HEIGHT * WIDTH]>::uninit();
        let edge = edge.as_mut_ptr().cast::<f32>();
        compute(edge, width, Store::Replace);
        for r in 0..count {
            for c in 0..self.columns - column {
                // SAFETY: guaranteed by the caller; `compute` has written `count` rows of `edge`.
                let (at, new) = unsafe { (&mut *at.add(r * self.stride + c), *edge.add(r * width + c)) };
                *at = if store == Store::Add { *at + new } else { new };
            }
        }
    }

    /// The result of an empty sum: zeros, unless adding.
    fn clear(&self, rows: &Range<usize>, columns: Range<usize>) {
        if self.store == Store::Replace {
            for r in rows.clone() {
                for c in columns.clone() {
                    // SAFETY: the caller checked that these rows and columns lie inside `out`, and owns them.
                    unsafe { *self.out.add(r * self.stride + c) = 0.0 };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::PACKED_ROWS;
    use crate::random::Random;

    /// `a * b` in f64, of operands rounded as the number type does.
    fn exact(dtype: Dtype, (rows, columns, depth): (usize, usize, usize), a: View<'_>, b: View<'_>) -> Vec<f64> {
        let at = |m: View<'_>, i: usize, j: usize| {
            let x = m.data[i * m.row_stride + j * m.column_stride];
            f64::from(if dtype == Dtype::F32 { x } else { f32::from_bits(pack::bf16(x) << 16) })
        };
        let element = |i: usize| (0..depth).map(|k| at(a, i / columns, k) * at(b, k, i % columns)).sum();
        (0..rows * columns).map(element).collect()
    }

    #[test]
    fn products_of_every_layout_are_those_of_the_definition() {
        let mut random = Random::new(1, 1);
        let shapes = [(1, 1, 1), (5, 7, 3), (13, 33, 17), (96, 32, 64), (100, 70, 300), (7, 40, 1030), (33, 95, 513)];
        for dtype in [Dtype::F32, Dtype::Bf16] {
            for (rows, columns, depth) in shapes {
                let mut numbers = |count: usize| (0..count).map(|_| random.normal() as f32).collect::<Vec<f32>>();
                let (a, b) = (numbers(rows * depth), numbers(depth * columns));
                let lefts = [View::rows(&a, depth), View::rows(&a, rows).t()];
                let rights = [View::rows(&b, columns), View::rows(&b, depth).t()];
                for (left, right) in lefts.into_iter().flat_map(|left| rights.map(|right| (left, right))) {
                    let packed = Packed::new(dtype, right, depth, columns);
                    let mut found = vec![1.0; rows * columns];
                    gemm((rows, columns, depth), left, packed.panels(), &mut found, columns, Store::Add);
                    let expected = exact(dtype, (rows, columns, depth), left, right);
                    let tolerance = 1e-6 * (depth as f64).sqrt() * 4.0;
                    for (found, expected) in found.iter().zip(expected) {
                        let error = (f64::from(*found) - 1.0 - expected).abs();
                        assert!(error < tolerance * 4.0, "{dtype:?} {rows} {columns} {depth}: off by {error}");
                    }
                    let mut transposed = Packed::default();
                    transposed.transpose_of(&packed, 0, columns);
                    assert_eq!((transposed.depth(), transposed.columns()), (columns, depth));
                }
            }
        }
    }

    #[test]
    fn tasks_are_enough_for_all_threads_and_pack_little() {
        let kernel = Kernel::of(isa(), Dtype::Bf16);
        for (rows, panels) in [(256, 8), (256, 22), (1376, 8), (768, 8), (2048, 43), (31, 90), (5, 1), (70_000, 3)] {
            for dtype in [Dtype::F32, Dtype::Bf16] {
                let (block, run) = tasks(rows, panels, kernel, dtype, 2);
                assert!(0 < block && 0 < run && run <= panels, "{rows} {panels}");
                let most = rows.div_ceil(kernel.height()) * panels;
                let (blocks, runs) = (rows.div_ceil(block), panels.div_ceil(run));
                assert!(blocks * runs >= most.min(8) / 2, "{rows} {panels}: {blocks} blocks and {runs} runs");
            }
            let packed = |dtype| panels.div_ceil(tasks(rows, panels, kernel, dtype, 2).1);
            assert!(packed(Dtype::Bf16) <= packed(Dtype::F32), "{rows} {panels}: packed more often");
        }
        // The gradient of a weight of 256 rows: packed twice, or once, instead of eight times.
        assert!(8usize.div_ceil(tasks(256, 8, kernel, Dtype::Bf16, 2).1) <= 2);
    }

    #[test]
    fn a_row_alone_or_in_a_pair_has_the_bits_it_has_among_many() {
        let mut random = Random::new(3, 1);
        for dtype in [Dtype::F32, Dtype::Bf16] {
            // Up to nine panels of sixteen columns, the last one whole or not, and sums that are cut.
            for (columns, depth) in [(16, 5), (31, 64), (47, 300), (64, 33), (96, 600), (113, 40), (144, 1030)] {
                let rows = 7;
                let mut numbers = |count: usize| (0..count).map(|_| random.normal() as f32).collect::<Vec<f32>>();
                let (a, b) = (numbers(rows * depth), numbers(depth * columns));
                let packed = Packed::new(dtype, View::rows(&b, columns), depth, columns);
                for store in [Store::Replace, Store::Add] {
                    let product = |count: usize| {
                        let mut out = vec![0.25; rows * columns];
                        for (a, out) in a.chunks(count * depth).zip(out.chunks_mut(count * columns)) {
                            let shape = (a.len() / depth, columns, depth);
                            gemm_here(shape, View::rows(a, depth), packed.panels(), out, columns, store);
                        }
                        out
                    };
                    for count in [1, 2] {
                        assert_eq!(product(count), product(rows), "{dtype:?} {columns} {depth} {store:?} {count}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_matrix_packed_in_pieces_is_that_packed_at_once() {
        let mut random = Random::new(2, 1);
        for (dtype, depth, columns) in [(Dtype::F32, 7, 600), (Dtype::Bf16, 40, 513), (Dtype::Bf16, 300, 256)] {
            let weights: Vec<f32> = (0..depth * columns).map(|_| random.normal() as f32).collect();
            let whole = Packed::new(dtype, View::rows(&weights, depth).t(), depth, columns);
            let mut pieces = Packed::room(dtype, depth, columns);
            pieces.data.fill(f32::NAN);
            for (i, rows) in weights.chunks(PACKED_ROWS * depth).enumerate() {
                pieces.pack_columns(i * PACKED_ROWS, View::rows(rows, depth).t(), rows.len() / depth);
            }
            let bits = |packed: &Packed| packed.data.iter().map(|word| word.to_bits()).collect::<Vec<_>>();
            assert!(bits(&whole) == bits(&pieces), "{dtype:?} {depth} {columns}");
        }
    }

    #[test]
    fn columns_come_back_from_the_panels() {
        for (dtype, depth, columns) in [(Dtype::F32, 5, 40), (Dtype::Bf16, 8, 70), (Dtype::Bf16, 9, 33)] {
            // Integers up to 256 are bfloat16 numbers.
            let weights: Vec<f32> = (0..depth * columns).map(|i| (i % 251) as f32 - 99.0).collect();
            let stored: Vec<[u8; 2]> = weights.iter().map(|&x| (pack::bf16(x) as u16).to_le_bytes()).collect();
            for numbers in [Numbers::F32(&weights), Numbers::Bf16(&stored)] {
                let mut packed = Packed::room(dtype, depth, columns);
                packed.pack_weights(0, numbers);
                for (c, row) in weights.chunks(depth).enumerate() {
                    let mut column = vec![0.0; depth];
                    packed.column(c, &mut column);
                    assert_eq!(column, row, "{dtype:?} {depth} {c}");
                }
            }
        }
    }
}
