//! The inner kernels of matrix multiplication: one tile of the product, for each instruction set and number type.
//!
//! Operands are *words* of 32 bits: one f32, or two neighbouring terms of the sum as bfloat16, the first in the low half.
//! Every kernel computes, for `r < R` and `c < width`,
//!
//! ```text
//! out[r][c]  (=|+=)  ((a[0][r]*b[0][c] + a[1][r]*b[1][c]) + a[2][r]*b[2][c]) + ...
//! ```
//!
//! with one accumulator in f32 per output element and the steps ascending; the two terms of a bfloat16 word are added
//! high half first. So an element has the same bits whatever the tile height, the neighbours and the number of threads,
//! and whether it is computed one row at a time (decoding) or a thousand (training). With fused multiply-add (all but
//! `scalar`) the bits are even the same across instruction sets, but for products of bfloat16 that underflow: the
//! dot-product instruction takes them as zero. AMX tiles sum bfloat16 products in an order of their own, which is as
//! fixed: see [`amx`].

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;

use super::Dtype;
use super::isa::Isa;

/// Whether a tile replaces what is in memory or adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    Replace,
    Add,
}

/// How the words of a left tile of R rows lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Word `s` of row `r` at `r * LEFT_STRIDE + s`.
    Rows,
    /// At `s * R + r`.
    Columns,
}

/// Words of a row that are packed at once. Part of the numerical contract: sums are cut at multiples of it.
pub(crate) const STEPS: usize = 256;
/// From row to row in [`Left::Rows`]: a little more than the words, so that rows do not share cache sets.
pub(crate) const LEFT_STRIDE: usize = STEPS + 16;
/// Steps by which the right factor is prefetched.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 24;
/// The most rows a tile has, on any instruction set.
pub(crate) const HEIGHT: usize = 32;
/// The most columns.
pub(crate) const WIDTH: usize = 32;

/// `fn(steps, a, b, out, out_stride, store)`: `a` is a left tile of R rows, `b` is `[steps][width]`, `out` has R rows. The
/// calling thread must hold what [`Kernel::ready`] returns.
pub(crate) type Tile = unsafe fn(usize, *const f32, *const f32, *mut f32, usize, Store);

/// The kernels of one instruction set and number type: `rows[R - 1]` and `columns[R - 1]` compute R rows of `width`
/// columns, from a left tile in that layout.
pub(crate) struct Kernel {
    pub width: usize,
    /// Rows of the left factor packed at once: with their words they stay in the second-level cache.
    pub block: usize,
    /// A tile costs as much as one of the next multiple of this many rows, and left tiles have room for them.
    whole: usize,
    registers: Registers,
    rows: &'static [Tile],
    columns: &'static [Tile],
}

/// In which registers a kernel computes.
#[derive(Clone, Copy)]
enum Registers {
    /// Those that every thread has.
    Vector,
    /// AMX tiles.
    #[cfg(target_arch = "x86_64")]
    Tiles,
}

/// While this lives, the kernels may be called on the thread that has it.
pub(crate) struct Ready {
    #[cfg(target_arch = "x86_64")]
    _tiles: Option<amx::Tiles>,
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

    /// The most rows a tile has.
    pub(crate) fn height(&self) -> usize {
        self.rows.len()
    }

    /// The rows of each tile but the last, when `rows` rows are cut into tiles: as few tiles as possible, and these of
    /// about the same height.
    pub(crate) fn height_for(&self, rows: usize) -> usize {
        rows.div_ceil(rows.div_ceil(self.height())).next_multiple_of(self.whole)
    }

    /// Rows of a task when threads share a product of `rows` rows.
    pub(crate) fn task_rows(&self, rows: usize, threads: usize) -> usize {
        let (share, unit) = match self.registers {
            Registers::Vector => (rows.div_ceil(4 * threads), self.height().max(12)),
            // Tiles take words faster than a panel comes from memory: as many rows as there are use it while it is near.
            #[cfg(target_arch = "x86_64")]
            Registers::Tiles => (rows.div_ceil(threads), self.height()),
        };
        if rows <= 96 { self.block } else { share.next_multiple_of(unit).clamp(2 * unit, self.block) }
    }

    /// Sets the calling thread up for the kernels.
    pub(crate) fn ready(&self) -> Ready {
        match self.registers {
            Registers::Vector => Ready {
                #[cfg(target_arch = "x86_64")]
                _tiles: None,
            },
            // SAFETY: this kernel is chosen only where there is AMX and the system permits its use.
            #[cfg(target_arch = "x86_64")]
            Registers::Tiles => Ready { _tiles: Some(unsafe { amx::Tiles::set_up() }) },
        }
    }

    /// The tile of `rows` rows.
    pub(crate) fn tile(&self, rows: usize, left: Left) -> Tile {
        match left {
            Left::Rows => self.rows[rows - 1],
            Left::Columns => self.columns[rows - 1],
        }
    }
}

/// Where word `s` of row `r` lies.
#[inline(always)]
fn at<const R: usize, const BY_ROW: bool>(r: usize, s: usize) -> usize {
    if BY_ROW { r * LEFT_STRIDE + s } else { s * R + r }
}

macro_rules! kernel {
    ($name:ident, $width:expr, $tile:ident, $($height:literal)*) => {
        static $name: Kernel = Kernel {
            width: $width,
            block: 96,
            whole: 1,
            registers: Registers::Vector,
            rows: &[$($tile::<$height, true>),*],
            columns: &[$($tile::<$height, false>),*],
        };
    };
}

/// Blocks of 256 rows: their words take 272 KiB of a second-level cache of 2 MiB, and a panel is read once for all of them.
#[cfg(target_arch = "x86_64")]
static AMX_BF16: Kernel = Kernel {
    width: WIDTH,
    block: 256,
    whole: amx::GROUP,
    registers: Registers::Tiles,
    rows: &amx::TILES,
    // Left factors are packed by rows only, see [`super::pack::left`].
    columns: &[],
};

#[cfg(target_arch = "x86_64")]
kernel!(AVX512_F32, 32, avx512_f32, 1 2 3 4 5 6 7 8 9 10 11 12);
#[cfg(target_arch = "x86_64")]
kernel!(AVX512_BF16_NATIVE, 32, avx512_bf16_native, 1 2 3 4 5 6 7 8 9 10 11 12);
#[cfg(target_arch = "x86_64")]
kernel!(AVX512_BF16, 32, avx512_bf16, 1 2 3 4 5 6 7 8 9 10 11 12);
#[cfg(target_arch = "x86_64")]
kernel!(AVX2_F32, 16, avx2_f32, 1 2 3 4 5 6);
#[cfg(target_arch = "x86_64")]
kernel!(AVX2_BF16, 16, avx2_bf16, 1 2 3 4);
kernel!(PORTABLE_F32, 16, portable_f32, 1 2 3 4);
kernel!(PORTABLE_BF16, 16, portable_bf16, 1 2 3 4);

/// A tile kernel on vectors of `$lanes` numbers, two to a row: `$load` a right word vector, `$broadcast` a left word,
/// `$step` one word into the accumulator.
///
/// # Safety
///
/// The instruction set must be available; `a` must hold a left tile of R rows and `steps` words, `b` `steps` times two
/// vectors, and `out` R rows of two vectors.
#[cfg(target_arch = "x86_64")]
macro_rules! vector_tile {
    ($name:ident, $feature:literal, $lanes:literal, $zero:ident, $load:expr, $broadcast:expr, $step:expr,
     $get:ident, $add:ident, $put:ident) => {
        #[doc = "# Safety\n\nAs `vector_tile` says."]
        #[target_feature(enable = $feature)]
        unsafe fn $name<const R: usize, const BY_ROW: bool>(
            steps: usize,
            a: *const f32,
            b: *const f32,
            out: *mut f32,
            stride: usize,
            store: Store,
        ) {
            use std::arch::x86_64::*;
            let mut sum = [[$zero(); 2]; R];
            for s in 0..steps {
                // SAFETY: the caller's promise on the lengths of `a` and `b`.
                unsafe {
                    // The right factor streams through: it is asked for before it is needed.
                    _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(2 * $lanes * (s + AHEAD)).cast());
                    _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(2 * $lanes * (s + AHEAD) + $lanes).cast());
                    let right = [$load(b.add(2 * $lanes * s)), $load(b.add(2 * $lanes * s + $lanes))];
                    for (r, sum) in sum.iter_mut().enumerate() {
                        let left = $broadcast(a.add(at::<R, BY_ROW>(r, s)));
                        sum[0] = $step(left, right[0], sum[0]);
                        sum[1] = $step(left, right[1], sum[1]);
                    }
                }
            }
            for (r, sum) in sum.iter().enumerate() {
                // SAFETY: the caller's promise on `out`.
                unsafe {
                    for (half, &sum) in sum.iter().enumerate() {
                        let at = out.add(r * stride + $lanes * half);
                        $put(
                            at,
                            match store {
                                Store::Replace => sum,
                                Store::Add => $add($get(at), sum),
                            },
                        );
                    }
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
vector_tile!(
    avx512_f32,
    "avx512f",
    16,
    _mm512_setzero_ps,
    |b| _mm512_loadu_ps(b),
    |a: *const f32| _mm512_set1_ps(*a),
    |a, b, sum| _mm512_fmadd_ps(a, b, sum),
    _mm512_loadu_ps,
    _mm512_add_ps,
    _mm512_storeu_ps
);

#[cfg(target_arch = "x86_64")]
vector_tile!(
    avx512_bf16_native,
    "avx512f,avx512bf16",
    16,
    _mm512_setzero_ps,
    |b: *const f32| bf16_pairs(_mm512_loadu_si512(b.cast())),
    |a: *const f32| bf16_pairs(_mm512_set1_epi32(a.cast::<i32>().read())),
    |a, b, sum| _mm512_dpbf16_ps(sum, a, b),
    _mm512_loadu_ps,
    _mm512_add_ps,
    _mm512_storeu_ps
);

/// The same bits, as the type that the dot product takes.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn bf16_pairs(words: std::arch::x86_64::__m512i) -> std::arch::x86_64::__m512bh {
    // SAFETY: both are 512 bits without invalid values.
    unsafe { std::mem::transmute(words) }
}

/// The two halves of a vector of words as f32: `[low, high]`.
#[cfg(target_arch = "x86_64")]
macro_rules! halves {
    ($words:expr, $shift:ident, $and:ident, $set:ident, $cast:ident) => {{
        let words = $words;
        [$cast($shift::<16>(words)), $cast($and(words, $set(0xffff_0000_u32 as i32)))]
    }};
}

#[cfg(target_arch = "x86_64")]
vector_tile!(
    avx512_bf16,
    "avx512f",
    16,
    _mm512_setzero_ps,
    |b: *const f32| halves!(
        _mm512_loadu_si512(b.cast()),
        _mm512_slli_epi32,
        _mm512_and_si512,
        _mm512_set1_epi32,
        _mm512_castsi512_ps
    ),
    |a: *const f32| halves!(
        _mm512_set1_epi32(a.cast::<i32>().read()),
        _mm512_slli_epi32,
        _mm512_and_si512,
        _mm512_set1_epi32,
        _mm512_castsi512_ps
    ),
    |a: [__m512; 2], b: [__m512; 2], sum| _mm512_fmadd_ps(a[0], b[0], _mm512_fmadd_ps(a[1], b[1], sum)),
    _mm512_loadu_ps,
    _mm512_add_ps,
    _mm512_storeu_ps
);

#[cfg(target_arch = "x86_64")]
vector_tile!(
    avx2_f32,
    "avx2,fma",
    8,
    _mm256_setzero_ps,
    |b| _mm256_loadu_ps(b),
    |a: *const f32| _mm256_set1_ps(*a),
    |a, b, sum| _mm256_fmadd_ps(a, b, sum),
    _mm256_loadu_ps,
    _mm256_add_ps,
    _mm256_storeu_ps
);

#[cfg(target_arch = "x86_64")]
vector_tile!(
    avx2_bf16,
    "avx2,fma",
    8,
    _mm256_setzero_ps,
    |b: *const f32| halves!(
        _mm256_loadu_si256(b.cast()),
        _mm256_slli_epi32,
        _mm256_and_si256,
        _mm256_set1_epi32,
        _mm256_castsi256_ps
    ),
    |a: *const f32| halves!(
        _mm256_set1_epi32(a.cast::<i32>().read()),
        _mm256_slli_epi32,
        _mm256_and_si256,
        _mm256_set1_epi32,
        _mm256_castsi256_ps
    ),
    |a: [__m256; 2], b: [__m256; 2], sum| _mm256_fmadd_ps(a[0], b[0], _mm256_fmadd_ps(a[1], b[1], sum)),
    _mm256_loadu_ps,
    _mm256_add_ps,
    _mm256_storeu_ps
);

/// # Safety
///
/// `a` must hold a left tile of R rows and `steps` words, `b` `steps * 16` words, and `out` R rows of 16.
unsafe fn portable_f32<const R: usize, const BY_ROW: bool>(
    steps: usize,
    a: *const f32,
    b: *const f32,
    out: *mut f32,
    stride: usize,
    store: Store,
) {
    // SAFETY: the caller's promise, passed on.
    unsafe { portable::<R, BY_ROW>(steps, a, b, out, stride, store, multiply_add) }
}

/// # Safety
///
/// As [`portable_f32`].
unsafe fn portable_bf16<const R: usize, const BY_ROW: bool>(
    steps: usize,
    a: *const f32,
    b: *const f32,
    out: *mut f32,
    stride: usize,
    store: Store,
) {
    let low = |word: f32| f32::from_bits(word.to_bits() << 16);
    let high = |word: f32| f32::from_bits(word.to_bits() & 0xffff_0000);
    // SAFETY: the caller's promise, passed on.
    unsafe {
        portable::<R, BY_ROW>(steps, a, b, out, stride, store, |a, b, sum| {
            multiply_add(low(a), low(b), multiply_add(high(a), high(b), sum))
        })
    }
}

/// # Safety
///
/// As [`portable_f32`].
#[inline(always)]
unsafe fn portable<const R: usize, const BY_ROW: bool>(
    steps: usize,
    a: *const f32,
    b: *const f32,
    out: *mut f32,
    stride: usize,
    store: Store,
    step: impl Fn(f32, f32, f32) -> f32,
) {
    let mut sum = [[0f32; 16]; R];
    for s in 0..steps {
        // SAFETY: the caller's promise on the length of `b`.
        let b = unsafe { std::slice::from_raw_parts(b.add(s * 16), 16) };
        for (r, sum) in sum.iter_mut().enumerate() {
            // SAFETY: the caller's promise on the length of `a`.
            let a = unsafe { *a.add(at::<R, BY_ROW>(r, s)) };
            for (sum, &b) in sum.iter_mut().zip(b) {
                *sum = step(a, b, *sum);
            }
        }
    }
    for (r, sum) in sum.iter().enumerate() {
        // SAFETY: the caller's promise on `out`.
        let row = unsafe { std::slice::from_raw_parts_mut(out.add(r * stride), 16) };
        for (out, &sum) in row.iter_mut().zip(sum) {
            match store {
                Store::Replace => *out = sum,
                Store::Add => *out += sum,
            }
        }
    }
}

/// Fused where the base instruction set has it; elsewhere `mul_add` would be a slow library call.
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
        // Numbers whose products neither overflow nor underflow, as bfloat16 pairs and as f32.
        let mut word = |dtype: Dtype| match dtype {
            Dtype::F32 => random.normal() as f32,
            Dtype::Bf16 => super::super::pack::pair(random.normal() as f32, random.normal() as f32),
        };
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let steps = 37;
            // Long enough for a tile of either layout.
            let a: Vec<f32> = (0..HEIGHT * LEFT_STRIDE).map(|_| word(dtype)).collect();
            let b: Vec<f32> = (0..steps * WIDTH).map(|_| word(dtype)).collect();
            for (left, rows) in [(Left::Rows, 1), (Left::Rows, 4), (Left::Columns, 1), (Left::Columns, 3)] {
                // Sixteen columns at a time, the least width there is.
                let narrow =
                    |from: usize| -> Vec<f32> { (0..steps * 16).map(|i| b[i / 16 * WIDTH + from + i % 16]).collect() };
                let product = |isa: Isa| {
                    let kernel = Kernel::of(isa, dtype);
                    let mut out = vec![0.5; rows * WIDTH];
                    let parts = if kernel.width == WIDTH {
                        vec![(0, b.clone())]
                    } else {
                        vec![(0, narrow(0)), (16, narrow(16))]
                    };
                    for (column, b) in parts {
                        // SAFETY: `a` is larger than any tile, `b` has `steps * width` words, `out` has `rows` rows.
                        unsafe {
                            let at = out.as_mut_ptr().add(column);
                            kernel.tile(rows, left)(steps, a.as_ptr(), b.as_ptr(), at, WIDTH, Store::Add);
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
