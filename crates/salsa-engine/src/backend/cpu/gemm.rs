//! Matrix multiplication: packing, blocking, threads.
//!
//! The right factor is packed into panels of as many columns as a tile is wide, `[panel][depth][width]`; weights stay
//! packed between calls. The left factor is packed block by block. The depth is cut at multiples of [`DEPTH`], always
//! the same places, so that the order of summation of an element is a function of the depth alone.

use rayon::prelude::*;
use std::cell::RefCell;

use super::buffer::Buffer;
use super::isa::isa;
use super::kernel::{Kernel, Store};

/// Summation runs in blocks of this many terms. Part of the numerical contract: changing it changes bits.
const DEPTH: usize = 256;
/// Rows of the left factor packed at once: 96 * 256 numbers stay in the second-level cache.
const ROWS: usize = 96;
/// Below this many multiply-adds a product is computed by the calling thread: waking others costs more.
const SMALL: usize = 1 << 21;

/// A read-only matrix anywhere in memory: element `(i, j)` is `data[i * row_stride + j * column_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub data: &'a [f32],
    pub row_stride: usize,
    pub column_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix whose rows are `stride` apart.
    pub(crate) fn rows(data: &'a [f32], stride: usize) -> Self {
        View { data, row_stride: stride, column_stride: 1 }
    }

    /// The transpose.
    pub(crate) fn t(self) -> Self {
        View { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }
}

/// A right factor in panels. `panel_stride` is at least `depth * width`; the rest of a panel is room to grow.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    pub data: &'a [f32],
    pub panel_stride: usize,
}

/// A packed right factor of `depth` rows and `columns` columns, padded with zero columns to whole panels.
#[derive(Clone, Debug, Default)]
pub struct Packed {
    data: Buffer,
    depth: usize,
    columns: usize,
}

impl Packed {
    /// Packs the matrix `b[depth][columns]`.
    pub(crate) fn new(b: View<'_>, depth: usize, columns: usize) -> Packed {
        let mut packed = Packed::default();
        packed.pack(b, depth, columns);
        packed
    }

    /// Packs anew, reusing the memory.
    pub(crate) fn pack(&mut self, b: View<'_>, depth: usize, columns: usize) {
        let width = Kernel::of(isa()).width;
        let panels = columns.div_ceil(width);
        (self.depth, self.columns) = (depth, columns);
        if self.data.len() != panels * depth * width {
            self.data = Buffer::stale(panels * depth * width);
        }
        let stride = depth * width;
        if stride == 0 {
            return;
        }
        let fill = |(p, panel): (usize, &mut [f32])| pack_panel(b, p * width, columns, width, panel);
        if depth * columns < SMALL / 32 {
            self.data.chunks_mut(stride).enumerate().for_each(fill);
        } else {
            self.data.par_chunks_mut(stride).enumerate().for_each(fill);
        }
    }

    pub(crate) fn panels(&self) -> Panels<'_> {
        Panels { data: &self.data, panel_stride: self.depth * Kernel::of(isa()).width }
    }

    /// The panels from column `start` on; `start` must be a multiple of every kernel's width.
    pub(crate) fn panels_from(&self, start: usize) -> Panels<'_> {
        let width = Kernel::of(isa()).width;
        assert!(start.is_multiple_of(width), "column {start} does not start a panel of {width}");
        Panels { data: &self.data[start * self.depth..], panel_stride: self.depth * width }
    }

    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }
}

/// Writes columns `first..first + width` of `b` into `panel`, zero where there are none.
fn pack_panel(b: View<'_>, first: usize, columns: usize, width: usize, panel: &mut [f32]) {
    let here = width.min(columns - first);
    if b.column_stride == 1 {
        for (k, row) in panel.chunks_exact_mut(width).enumerate() {
            let from = k * b.row_stride + first;
            match (row.as_chunks_mut::<16>(), b.data[from..from + here].as_chunks::<16>()) {
                // Whole vectors of a length the compiler knows, instead of a call for every row.
                ((row, []), (whole, [])) if row.len() == whole.len() => row.copy_from_slice(whole),
                _ => {
                    row[..here].copy_from_slice(&b.data[from..from + here]);
                    row[here..].fill(0.0);
                }
            }
        }
    } else {
        if here < width {
            panel.fill(0.0);
        }
        // Column by column in blocks of rows: reads run along memory, writes stay in the first-level cache.
        for (block, rows) in panel.chunks_mut(64 * width).enumerate() {
            let depth = rows.len() / width;
            for c in 0..here {
                let from = (first + c) * b.column_stride + block * 64 * b.row_stride;
                for k in 0..depth {
                    rows[k * width + c] = b.data[from + k * b.row_stride];
                }
            }
        }
    }
}

thread_local! {
    static LEFT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
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
    let kernel = Kernel::of(isa());
    if rows * columns * depth < SMALL || rayon::current_num_threads() == 1 {
        return gemm_here((rows, columns, depth), a, b, out, stride, store);
    }
    // A task is a block of rows times a run of panels: enough tasks to share, each long enough to pay for packing.
    let row_blocks = rows.div_ceil(ROWS);
    let panels = columns.div_ceil(kernel.width);
    let runs = (4 * rayon::current_num_threads()).div_ceil(row_blocks).min(panels);
    let run = panels.div_ceil(runs);
    let runs = panels.div_ceil(run);
    let out = Output { at: out.as_mut_ptr(), len: out.len(), stride };
    (0..row_blocks * runs).into_par_iter().for_each(|task| {
        let (block, part) = (task / runs, task % runs);
        let rows = block * ROWS..rows.min((block + 1) * ROWS);
        let panels = part * run..panels.min((part + 1) * run);
        block_product(kernel, rows, panels, columns, depth, a, b, &out, store);
    });
}

/// The same on the calling thread alone, bit for bit.
pub(crate) fn gemm_here(
    (rows, columns, depth): (usize, usize, usize),
    a: View<'_>,
    b: Panels<'_>,
    out: &mut [f32],
    stride: usize,
    store: Store,
) {
    let kernel = Kernel::of(isa());
    let panels = columns.div_ceil(kernel.width);
    let out = Output { at: out.as_mut_ptr(), len: out.len(), stride };
    for first in (0..rows).step_by(ROWS) {
        let rows = first..rows.min(first + ROWS);
        block_product(kernel, rows, 0..panels, columns, depth, a, b, &out, store);
    }
}

/// Where the product goes. Tasks write disjoint parts of it.
struct Output {
    at: *mut f32,
    len: usize,
    stride: usize,
}

// SAFETY: every task writes only its own rows and columns; see `block_product`.
unsafe impl Sync for Output {}

/// Rows `rows` and panels `panels` of the product.
fn block_product(
    kernel: &Kernel,
    rows: std::ops::Range<usize>,
    panels: std::ops::Range<usize>,
    columns: usize,
    depth: usize,
    a: View<'_>,
    b: Panels<'_>,
    out: &Output,
    store: Store,
) {
    if rows.is_empty() || panels.is_empty() {
        return;
    }
    let width = kernel.width;
    let tiles = rows.len().div_ceil(kernel.height());
    let height = rows.len().div_ceil(tiles);
    let last_column = columns.min(panels.end * width);
    assert!((rows.end - 1) * out.stride + last_column <= out.len, "the product does not fit its output");
    assert!((panels.end - 1) * b.panel_stride + depth * width <= b.data.len(), "too few panels");
    if depth == 0 {
        return clear(&rows, panels.start * width..last_column, out, store);
    }
    LEFT.with_borrow_mut(|left| {
        left.resize(rows.len() * DEPTH, 0.0);
        for from in (0..depth).step_by(DEPTH) {
            let here = DEPTH.min(depth - from);
            let store = if from == 0 { store } else { Store::Add };
            pack_left(a, &rows, height, from, here, left);
            for panel in panels.clone() {
                let b = &b.data[panel * b.panel_stride + from * width..][..here * width];
                let column = panel * width;
                let whole = column + width <= columns;
                let mut edge = [0f32; 12 * 32];
                for first in (0..rows.len()).step_by(height) {
                    let count = height.min(rows.len() - first);
                    let a = &left[first * here..(first + count) * here];
                    let tile = kernel.tiles[count - 1];
                    // SAFETY: `a` holds `here * count` numbers and `b` `here * width`. The assertion above keeps rows
                    // and columns inside `out`; no other task has these rows and panels. A tile that reaches over the
                    // last column goes to `edge` first, which holds the largest tile.
                    unsafe {
                        let at = out.at.add((rows.start + first) * out.stride + column);
                        if whole {
                            tile(here, a.as_ptr(), b.as_ptr(), at, out.stride, store);
                        } else {
                            tile(here, a.as_ptr(), b.as_ptr(), edge.as_mut_ptr(), width, Store::Replace);
                            for r in 0..count {
                                for c in 0..columns - column {
                                    let at = at.add(r * out.stride + c);
                                    *at = if store == Store::Add {
                                        *at + edge[r * width + c]
                                    } else {
                                        edge[r * width + c]
                                    };
                                }
                            }
                        }
                    }
                }
            }
        }
    });
}

/// An empty sum.
fn clear(rows: &std::ops::Range<usize>, columns: std::ops::Range<usize>, out: &Output, store: Store) {
    if store == Store::Replace {
        for r in rows.clone() {
            for c in columns.clone() {
                // SAFETY: the caller checked that these rows and columns lie inside `out`, and owns them.
                unsafe { *out.at.add(r * out.stride + c) = 0.0 };
            }
        }
    }
}

/// Packs `a[rows][from..from + depth]` as tiles of `height` rows, each `[depth][rows of the tile]`.
fn pack_left(a: View<'_>, rows: &std::ops::Range<usize>, height: usize, from: usize, depth: usize, left: &mut [f32]) {
    for first in (0..rows.len()).step_by(height) {
        let count = height.min(rows.len() - first);
        let tile = &mut left[first * depth..(first + count) * depth];
        let start = (rows.start + first) * a.row_stride + from * a.column_stride;
        let pack = [
            pack_rows::<1>,
            pack_rows::<2>,
            pack_rows::<3>,
            pack_rows::<4>,
            pack_rows::<5>,
            pack_rows::<6>,
            pack_rows::<7>,
            pack_rows::<8>,
            pack_rows::<9>,
            pack_rows::<10>,
            pack_rows::<11>,
            pack_rows::<12>,
        ][count - 1];
        pack(a, start, tile);
    }
}

/// One tile of `R` rows, whose first number is `a.data[start]`. The row count is known to the compiler, so that the
/// moves are whole vectors and not calls.
fn pack_rows<const R: usize>(a: View<'_>, start: usize, tile: &mut [f32]) {
    let (tile, _) = tile.as_chunks_mut::<R>();
    if a.row_stride == 1 {
        for (k, out) in tile.iter_mut().enumerate() {
            let at = start + k * a.column_stride;
            out.copy_from_slice(&a.data[at..at + R]);
        }
    } else if a.column_stride == 1 {
        let depth = tile.len();
        let rows: [&[f32]; R] = std::array::from_fn(|r| &a.data[start + r * a.row_stride..][..depth]);
        for (k, out) in tile.iter_mut().enumerate() {
            *out = std::array::from_fn(|r| rows[r][k]);
        }
    } else {
        for (k, out) in tile.iter_mut().enumerate() {
            *out = std::array::from_fn(|r| a.data[start + r * a.row_stride + k * a.column_stride]);
        }
    }
}
