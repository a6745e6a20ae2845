//! The inner kernels of matrix multiplication: one tile of the product, for each instruction set.
//!
//! Every kernel computes, for `r < R` and `c < NR`,
//!
//! ```text
//! out[r][c]  (=|+=)  ((a[0][r]*b[0][c] + a[1][r]*b[1][c]) + a[2][r]*b[2][c]) + ...
//! ```
//!
//! with one accumulator per output element and the summation index ascending. So an element has the same bits whatever
//! the tile height, the neighbours and the number of threads, and whether it is computed one row at a time (decoding)
//! or a thousand (training). With fused multiply-add (`avx512`, `avx2`, `neon`) the bits are even the same across
//! instruction sets.

use super::isa::Isa;

/// Whether a tile replaces what is in memory or adds to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    Replace,
    Add,
}

/// `fn(depth, a, b, out, out_stride, store)`: `a` is `[depth][R]`, `b` is `[depth][NR]`, `out` has `R` rows of `NR`.
pub(crate) type Tile = unsafe fn(usize, *const f32, *const f32, *mut f32, usize, Store);

/// The kernels of one instruction set: `tiles[R - 1]` computes `R` rows of `width` columns.
pub(crate) struct Kernel {
    pub width: usize,
    pub tiles: &'static [Tile],
}

impl Kernel {
    pub(crate) fn of(isa: Isa) -> &'static Kernel {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &AVX512,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &AVX2,
            _ => &PORTABLE,
        }
    }

    /// The most rows a tile has.
    pub(crate) fn height(&self) -> usize {
        self.tiles.len()
    }
}

#[cfg(target_arch = "x86_64")]
static AVX512: Kernel = Kernel {
    width: 32,
    tiles: &[
        avx512::<1>,
        avx512::<2>,
        avx512::<3>,
        avx512::<4>,
        avx512::<5>,
        avx512::<6>,
        avx512::<7>,
        avx512::<8>,
        avx512::<9>,
        avx512::<10>,
        avx512::<11>,
        avx512::<12>,
    ],
};

#[cfg(target_arch = "x86_64")]
static AVX2: Kernel = Kernel { width: 16, tiles: &[avx2::<1>, avx2::<2>, avx2::<3>, avx2::<4>, avx2::<5>, avx2::<6>] };

static PORTABLE: Kernel = Kernel { width: 16, tiles: &[portable::<1>, portable::<2>, portable::<3>, portable::<4>] };

/// # Safety
///
/// AVX-512F must be available; `a` must hold `depth * R` numbers, `b` `depth * 32`, and `out` `R` rows of 32.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512<const R: usize>(
    depth: usize,
    a: *const f32,
    b: *const f32,
    out: *mut f32,
    stride: usize,
    store: Store,
) {
    use std::arch::x86_64::*;
    let mut sum = [[_mm512_setzero_ps(); 2]; R];
    let (mut a, mut b) = (a, b);
    for _ in 0..depth {
        // SAFETY: the caller's promise on the lengths of `a` and `b`.
        unsafe {
            let b0 = _mm512_loadu_ps(b);
            let b1 = _mm512_loadu_ps(b.add(16));
            for (r, sum) in sum.iter_mut().enumerate() {
                let a = _mm512_set1_ps(*a.add(r));
                sum[0] = _mm512_fmadd_ps(a, b0, sum[0]);
                sum[1] = _mm512_fmadd_ps(a, b1, sum[1]);
            }
            a = a.add(R);
            b = b.add(32);
        }
    }
    for (r, sum) in sum.iter().enumerate() {
        // SAFETY: the caller's promise on `out`.
        unsafe {
            let row = out.add(r * stride);
            for (half, &sum) in sum.iter().enumerate() {
                let at = row.add(16 * half);
                let value = match store {
                    Store::Replace => sum,
                    Store::Add => _mm512_add_ps(_mm512_loadu_ps(at), sum),
                };
                _mm512_storeu_ps(at, value);
            }
        }
    }
}

/// # Safety
///
/// AVX2 and FMA must be available; `a` must hold `depth * R` numbers, `b` `depth * 16`, and `out` `R` rows of 16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const R: usize>(depth: usize, a: *const f32, b: *const f32, out: *mut f32, stride: usize, store: Store) {
    use std::arch::x86_64::*;
    let mut sum = [[_mm256_setzero_ps(); 2]; R];
    let (mut a, mut b) = (a, b);
    for _ in 0..depth {
        // SAFETY: the caller's promise on the lengths of `a` and `b`.
        unsafe {
            let b0 = _mm256_loadu_ps(b);
            let b1 = _mm256_loadu_ps(b.add(8));
            for (r, sum) in sum.iter_mut().enumerate() {
                let a = _mm256_set1_ps(*a.add(r));
                sum[0] = _mm256_fmadd_ps(a, b0, sum[0]);
                sum[1] = _mm256_fmadd_ps(a, b1, sum[1]);
            }
            a = a.add(R);
            b = b.add(16);
        }
    }
    for (r, sum) in sum.iter().enumerate() {
        // SAFETY: the caller's promise on `out`.
        unsafe {
            let row = out.add(r * stride);
            for (half, &sum) in sum.iter().enumerate() {
                let at = row.add(8 * half);
                let value = match store {
                    Store::Replace => sum,
                    Store::Add => _mm256_add_ps(_mm256_loadu_ps(at), sum),
                };
                _mm256_storeu_ps(at, value);
            }
        }
    }
}

/// # Safety
///
/// `a` must hold `depth * R` numbers, `b` `depth * 16`, and `out` `R` rows of 16.
unsafe fn portable<const R: usize>(
    depth: usize,
    a: *const f32,
    b: *const f32,
    out: *mut f32,
    stride: usize,
    store: Store,
) {
    let mut sum = [[0f32; 16]; R];
    for k in 0..depth {
        // SAFETY: the caller's promise on the lengths of `a` and `b`.
        let (a, b) =
            unsafe { (std::slice::from_raw_parts(a.add(k * R), R), std::slice::from_raw_parts(b.add(k * 16), 16)) };
        for (sum, &a) in sum.iter_mut().zip(a) {
            for (sum, &b) in sum.iter_mut().zip(b) {
                *sum = multiply_add(a, b, *sum);
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
