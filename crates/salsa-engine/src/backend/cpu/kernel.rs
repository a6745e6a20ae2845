//! The inner kernels of matrix multiplication: one tile of the product, for each instruction set and number type.
//!
//! Operands are *words* of 32 bits: one f32, or two adjacent terms of the sum as bfloat16, the first in the low half.
//! Every kernel computes, for `r < R` and `c < width`,
//!
//! ```text
//! out[r][c]  (=|+=)  ((a[0][r]*b[0][c] + a[1][r]*b[1][c]) + a[2][r]*b[2][c]) + ...
//! ```
//!
//! with one accumulator in f32 per output element and the steps ascending; the two terms of a bfloat16 word are added
//! high half first. So an element has the same bits for every tile height, number of columns and threads, and
//! whether it is computed one row at a time (decoding) or a thousand (training). With fused multiply-add (all but
//! `scalar`) the bits are even the same across instruction sets, except for products of bfloat16 that underflow: the
//! dot-product instruction takes them as zero. AMX tiles sum bfloat16 products in another order, which is also fixed:
//! see [`amx`].
//!
//! The right factor always comes in words. The left one comes in words where an instruction multiplies bfloat16; else
//! it is a matrix of f32 numbers anywhere in memory, which for bfloat16 are rounded already ([`Kernel::left`]).

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod vector;

use super::Dtype;
use super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use vector::{avx2_bf16, avx2_f32, avx512_bf16, avx512_bf16_native, avx512_f32};

/// Whether a tile replaces the values in memory or adds to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    Replace,
    Add,
}

/// The memory layout of the items (words, or terms) of a left factor, for the stride given with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Item `i` of row `r` at `r * stride + i`.
    Rows,
    /// At `i * stride + r`.
    Columns,
}

/// Words of a row processed at once. Part of the numerical contract: sums are cut at multiples of it.
pub(crate) const STEPS: usize = 256;
/// Rows of a block of the left factor, except for AMX. A multiple of the height of every other tile.
pub(crate) const BLOCK: usize = 96;
/// The most rows a tile has, on any instruction set.
pub(crate) const HEIGHT: usize = 32;
/// The most columns of a tile.
pub(crate) const WIDTH: usize = 32;

/// `fn(steps, a, a_stride, b, ahead, out, out_stride, store)`: `a` is a left factor of R rows, `b` is `[steps][width]`, `out`
/// has R rows. See [`Prefetch`]. The calling thread must hold what [`Kernel::ready`] returns.
pub(crate) type Tile = unsafe fn(usize, *const f32, usize, *const f32, Prefetch, *mut f32, usize, Store);

/// What to prefetch while a tile is computed: `stride` numbers further on at each step. Several tiles read the same
/// panel one after the other; each prefetches its share of the next one, so that memory is read all the time.
#[derive(Clone, Copy)]
pub(crate) struct Prefetch {
    pub from: *const f32,
    pub stride: usize,
}

/// Prefetches numbers that are read soon.
pub(crate) fn prefetch(numbers: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in numbers.chunks(16) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint, available on every x86-64 CPU.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = numbers;
}

/// The items of a left factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Items {
    /// The terms of the sum as f32 numbers.
    Terms,
    /// Words of two bfloat16 terms.
    Words,
    /// As `Words`, by rows only, zero-padded to a multiple of [`GROUP`] words, with room for whole groups of rows.
    Groups,
}

/// Words and rows of a tile register; see [`Items::Groups`].
pub(crate) const GROUP: usize = 16;

/// While this is alive, its thread may call the kernels.
pub(crate) struct Ready {
    #[cfg(target_arch = "x86_64")]
    _tiles: Option<amx::Tiles>,
}

/// The kernels of one instruction set and number type: `rows[R - 1]` and `columns[R - 1]` compute R rows of `width`
/// columns, from a left factor in that layout.
pub(crate) struct Kernel {
    pub width: usize,
    pub left: Items,
    /// Rows of the left factor processed at once: with their words they fit the second-level cache.
    pub block: usize,
    rows: &'static [Tile],
    columns: &'static [Tile],
}

impl Kernel {
    pub(crate) fn of(isa: Isa, dtype: Dtype) -> &'static Kernel {
        match (isa, dtype) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Amx, Dtype::Bf16) => &AMX_BF16,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512Bf16, Dtype::Bf16) => &AVX512_BF16_NATIVE,
            #[cfg(target_arch = "x86_64")]
            (Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512, Dtype::F32) => &AVX512_F32,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Dtype::Bf16) => &AVX512_BF16,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Dtype::F32) => &AVX2_F32,
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Dtype::Bf16) => &AVX2_BF16,
            (_, Dtype::F32) => &PORTABLE_F32,
            (_, Dtype::Bf16) => &PORTABLE_BF16,
        }
    }

    /// The most rows of a tile.
    pub(crate) fn height(&self) -> usize {
        self.rows.len()
    }

    /// Returns the height of all tiles but the last when `rows` rows are cut into tiles: as few tiles as possible, of
    /// about equal height, rounded up to whole groups where these cost the same.
    pub(crate) fn height_for(&self, rows: usize) -> usize {
        let equal = rows.div_ceil(rows.div_ceil(self.height()));
        if self.left == Items::Groups { equal.next_multiple_of(GROUP) } else { equal }
    }

    /// Prepares the calling thread for the kernels.
    pub(crate) fn ready(&self) -> Ready {
        Ready {
            // SAFETY: this kernel is chosen only where AMX exists and the system permits its use.
            #[cfg(target_arch = "x86_64")]
            _tiles: (self.left == Items::Groups).then(|| unsafe { amx::Tiles::set_up() }),
        }
    }

    /// The kernel for a tile of `rows` rows.
    pub(crate) fn tile(&self, rows: usize, left: Left) -> Tile {
        match left {
            Left::Rows => self.rows[rows - 1],
            Left::Columns => self.columns[rows - 1],
        }
    }
}

/// The offset of item `i` of row `r`.
#[inline(always)]
fn at<const BY_ROW: bool>(r: usize, i: usize, stride: usize) -> usize {
    if BY_ROW { r * stride + i } else { i * stride + r }
}

macro_rules! kernel {
    ($name:ident, $width:expr, $items:ident, $tile:ident, $($height:literal)*) => {
        static $name: Kernel = Kernel {
            width: $width,
            left: Items::$items,
            block: BLOCK,
            rows: &[$($tile::<$height, true>),*],
            columns: &[$($tile::<$height, false>),*],
        };
    };
}

/// Blocks of 256 rows: their words take 272 KiB of a second-level cache of 2 MiB, and a panel is read once for all of them.
#[cfg(target_arch = "x86_64")]
static AMX_BF16: Kernel = Kernel { width: WIDTH, left: Items::Groups, block: 256, rows: &amx::TILES, columns: &[] };
#[cfg(target_arch = "x86_64")]
kernel!(AVX512_F32, 32, Terms, avx512_f32, 1 2 3 4 5 6 7 8 9 10 11 12);
#[cfg(target_arch = "x86_64")]
kernel!(AVX512_BF16_NATIVE, 32, Words, avx512_bf16_native, 1 2 3 4 5 6 7 8 9 10 11 12);
#[cfg(target_arch = "x86_64")]
kernel!(AVX512_BF16, 32, Terms, avx512_bf16, 1 2 3 4 5 6 7 8 9 10 11 12);
#[cfg(target_arch = "x86_64")]
kernel!(AVX2_F32, 16, Terms, avx2_f32, 1 2 3 4 5 6);
#[cfg(target_arch = "x86_64")]
kernel!(AVX2_BF16, 16, Terms, avx2_bf16, 1 2 3 4 5 6);
kernel!(PORTABLE_F32, 16, Terms, portable_f32, 1 2 3 4);
kernel!(PORTABLE_BF16, 16, Terms, portable_bf16, 1 2 3 4);

/// # Safety
///
/// `a` must hold a left factor of R rows for `steps` words, `b` `steps * 16` words, and `out` R rows of 16.
unsafe fn portable_f32<const R: usize, const BY_ROW: bool>(
    steps: usize,
    a: *const f32,
    a_stride: usize,
    b: *const f32,
    _: Prefetch,
    out: *mut f32,
    stride: usize,
    store: Store,
) {
    // SAFETY: guaranteed by the caller.
    unsafe {
        portable::<R>(steps, b, out, stride, store, |r, s, b, sum| {
            multiply_add(*a.add(at::<BY_ROW>(r, s, a_stride)), b, sum)
        })
    }
}

/// # Safety
///
/// As [`portable_f32`].
unsafe fn portable_bf16<const R: usize, const BY_ROW: bool>(
    steps: usize,
    a: *const f32,
    a_stride: usize,
    b: *const f32,
    _: Prefetch,
    out: *mut f32,
    stride: usize,
    store: Store,
) {
    let low = |word: f32| f32::from_bits(word.to_bits() << 16);
    let high = |word: f32| f32::from_bits(word.to_bits() & 0xffff_0000);
    // SAFETY: guaranteed by the caller.
    unsafe {
        let left = |r: usize, term: usize| *a.add(at::<BY_ROW>(r, term, a_stride));
        portable::<R>(steps, b, out, stride, store, |r, s, b, sum| {
            multiply_add(left(r, 2 * s), low(b), multiply_add(left(r, 2 * s + 1), high(b), sum))
        })
    }
}

/// The loop of a portable kernel; `step(row, word, right word, sum)` adds one word.
///
/// # Safety
///
/// As [`portable_f32`], also for what `step` reads.
#[inline(always)]
unsafe fn portable<const R: usize>(
    steps: usize,
    b: *const f32,
    out: *mut f32,
    stride: usize,
    store: Store,
    step: impl Fn(usize, usize, f32, f32) -> f32,
) {
    let mut sum = [[0f32; 16]; R];
    for s in 0..steps {
        // SAFETY: guaranteed by the caller for the length of `b`.
        let b = unsafe { std::slice::from_raw_parts(b.add(s * 16), 16) };
        for (r, sum) in sum.iter_mut().enumerate() {
            for (sum, &b) in sum.iter_mut().zip(b) {
                *sum = step(r, s, b, *sum);
            }
        }
    }
    for (r, sum) in sum.iter().enumerate() {
        // SAFETY: guaranteed by the caller for `out`.
        let row = unsafe { std::slice::from_raw_parts_mut(out.add(r * stride), 16) };
        for (out, &sum) in row.iter_mut().zip(sum) {
            match store {
                Store::Replace => *out = sum,
                Store::Add => *out += sum,
            }
        }
    }
}

/// Fused where the target has it in its base instruction set; elsewhere `mul_add` would be a slow library call.
#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, c) } else { a * b + c }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let mut random = Random::new(2, 2);
        // Numbers whose products neither overflow nor underflow, rounded as the type requires.
        let mut number = |dtype: Dtype| match dtype {
            Dtype::F32 => random.normal() as f32,
            Dtype::Bf16 => f32::from_bits(super::super::pack::bf16(random.normal() as f32) << 16),
        };
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let (steps, terms) = (37, dtype.terms());
            let depth = steps * terms;
            // A left factor of HEIGHT rows, by rows and by columns.
            let a: Vec<f32> = (0..HEIGHT * depth).map(|_| number(dtype)).collect();
            let word = |even: f32, odd: f32| if terms == 1 { even } else { super::super::pack::pair(even, odd) };
            let b: Vec<f32> = (0..steps * WIDTH).map(|_| word(number(dtype), number(dtype))).collect();
            for (left, rows) in [(Left::Rows, 1), (Left::Rows, 4), (Left::Columns, 1), (Left::Columns, 3)] {
                // Sixteen columns at a time, the smallest width of a kernel.
                let narrow =
                    |from: usize| -> Vec<f32> { (0..steps * 16).map(|i| b[i / 16 * WIDTH + from + i % 16]).collect() };
                let product = |isa: Isa| {
                    let kernel = Kernel::of(isa, dtype);
                    let items = if kernel.left == Items::Terms { depth } else { steps };
                    let item = |r: usize, i: usize| match kernel.left {
                        Items::Terms => a[r * depth + i],
                        Items::Words | Items::Groups => {
                            word(a[r * depth + terms * i], a[r * depth + terms * i + terms - 1])
                        }
                    };
                    let (stride, a): (usize, Vec<f32>) = match left {
                        Left::Rows => (items, (0..HEIGHT * items).map(|n| item(n / items, n % items)).collect()),
                        Left::Columns => (HEIGHT, (0..HEIGHT * items).map(|n| item(n % HEIGHT, n / HEIGHT)).collect()),
                    };
                    let mut out = vec![0.5; rows * WIDTH];
                    let parts = if kernel.width == WIDTH {
                        vec![(0, b.clone())]
                    } else {
                        vec![(0, narrow(0)), (16, narrow(16))]
                    };
                    for (column, b) in parts {
                        // SAFETY: `a` has more rows than the tile, `b` has `steps * width` words, `out` has `rows` rows.
                        unsafe {
                            let at = out.as_mut_ptr().add(column);
                            let ahead = Prefetch { from: b.as_ptr(), stride: 0 };
                            kernel.tile(rows, left)(
                                steps,
                                a.as_ptr(),
                                stride,
                                b.as_ptr(),
                                ahead,
                                at,
                                WIDTH,
                                Store::Add,
                            );
                        }
                    }
                    out
                };
                let fused: Vec<Isa> = Isa::ALL
                    .into_iter()
                    .filter(|isa| isa.available() && !matches!(isa, Isa::Amx | Isa::Scalar))
                    .collect();
                for pair in fused.windows(2) {
                    assert_eq!(product(pair[0]), product(pair[1]), "{dtype:?} {left:?} {rows}: {pair:?}");
                }
                // Without fused multiply-add every step rounds twice.
                let scalar = product(Isa::Scalar);
                for (x, y) in scalar.iter().zip(fused.first().map_or(scalar.clone(), |&isa| product(isa))) {
                    assert!((x - y).abs() < 1e-4, "{dtype:?} {left:?} {rows}: {x} {y}");
                }
            }
        }
    }
}
