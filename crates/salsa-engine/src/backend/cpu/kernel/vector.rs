//! Tiles of AVX-512 and AVX2: two vectors to a row, f32 or bfloat16.

use super::{Prefetch, Store, at};

/// Words of the sum per loop iteration, so that the loop counters cost nothing beside the multiplications.
const UNROLL: usize = 8;
/// Words between two prefetches, where many tiles share them.
const SPARE: usize = 4;
/// Numbers of a cache line.
const LINE: usize = 16;

/// A tile kernel on vectors of `$lanes` numbers, two to a row. A step of the sum is one or two multiplications:
/// `$load(b)` makes a vector of the right factor from its words, `$left(a)` fills one with the matching item of the
/// left factor, `$offset` items after the first of the step.
///
/// # Safety
///
/// The instruction set must be available; `a` must hold a left factor of R rows for `steps` words, `b` `steps` times two
/// vectors, and `out` R rows of two vectors.
macro_rules! vector_tile {
    ($name:ident, $feature:literal, $lanes:literal, items: $items:literal,
     [$(($offset:literal, $load:expr, $left:expr, $multiply:expr)),+], $zero:ident, $get:ident, $add:ident, $put:ident) => {
        #[doc = "# Safety\n\nAs `vector_tile` says."]
        #[target_feature(enable = $feature)]
        pub(super) unsafe fn $name<const R: usize, const BY_ROW: bool>(
            steps: usize,
            a: *const f32,
            a_stride: usize,
            b: *const f32,
            ahead: Prefetch,
            out: *mut f32,
            stride: usize,
            store: Store,
        ) {
            use std::arch::x86_64::*;
            // The output is not in the CPU cache: prefetch it now, for use at the end.
            for r in 0..R {
                _mm_prefetch::<_MM_HINT_T0>(out.wrapping_add(r * stride).cast());
                _mm_prefetch::<_MM_HINT_T0>(out.wrapping_add(r * stride + 2 * $lanes - 1).cast());
            }
            let mut sum = [[$zero(); 2]; R];
            let step = |s: usize, sum: &mut [[_; 2]; R]| {
                // SAFETY: guaranteed by the caller for the lengths of `a` and `b`.
                unsafe {
                    let words = b.add(2 * $lanes * s);
                    $(
                        let right = [$load(words), $load(words.add($lanes))];
                        for (r, sum) in sum.iter_mut().enumerate() {
                            let left = $left(a.add(at::<BY_ROW>(r, $items * s + $offset, a_stride)));
                            sum[0] = $multiply(left, right[0], sum[0]);
                            sum[1] = $multiply(left, right[1], sum[1]);
                        }
                    )+
                }
            };
            let mut run = |every: usize| {
                let mut s = 0;
                while s + UNROLL <= steps {
                    for u in 0..UNROLL {
                        if u % every == 0 {
                            let next = ahead.from.wrapping_add(ahead.stride * (s + u));
                            _mm_prefetch::<_MM_HINT_T1>(next.cast());
                            if every == 1 && 2 * $lanes > LINE {
                                _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(LINE).cast());
                            }
                        }
                        step(s + u, &mut sum);
                    }
                    s += UNROLL;
                }
                (s..steps).for_each(|s| step(s, &mut sum));
            };
            // At least one prefetch for every line of the share.
            if ahead.stride > LINE / SPARE { run(1) } else { run(SPARE) }
            for (r, sum) in sum.iter().enumerate() {
                // SAFETY: guaranteed by the caller for `out`.
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

vector_tile!(
    avx512_f32,
    "avx512f",
    16,
    items: 1,
    [(0, |b| _mm512_loadu_ps(b), |a: *const f32| _mm512_set1_ps(*a), |a, b, sum| _mm512_fmadd_ps(a, b, sum))],
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_add_ps,
    _mm512_storeu_ps
);

vector_tile!(
    avx512_bf16_native,
    "avx512f,avx512bf16",
    16,
    items: 1,
    [(
        0,
        |b: *const f32| bf16_pairs(_mm512_loadu_si512(b.cast())),
        |a: *const f32| bf16_pairs(_mm512_set1_epi32(a.cast::<i32>().read())),
        |a, b, sum| _mm512_dpbf16_ps(sum, a, b)
    )],
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_add_ps,
    _mm512_storeu_ps
);

/// Reinterprets the bits as the type that the dot product takes.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn bf16_pairs(words: std::arch::x86_64::__m512i) -> std::arch::x86_64::__m512bh {
    // SAFETY: both are 512 bits without invalid values.
    unsafe { std::mem::transmute(words) }
}

/// Mask of the high half of a word, which is an f32 number once the low half is zero.
const HIGH: i32 = 0xffff_0000_u32 as i32;

vector_tile!(
    avx512_bf16,
    "avx512f",
    16,
    items: 2,
    [
        (
            1,
            |b: *const f32| _mm512_castsi512_ps(_mm512_and_si512(
                _mm512_loadu_si512(b.cast()),
                _mm512_set1_epi32(HIGH)
            )),
            |a: *const f32| _mm512_set1_ps(*a),
            |a, b, sum| _mm512_fmadd_ps(a, b, sum)
        ),
        (
            0,
            |b: *const f32| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_loadu_si512(b.cast()))),
            |a: *const f32| _mm512_set1_ps(*a),
            |a, b, sum| _mm512_fmadd_ps(a, b, sum)
        )
    ],
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_add_ps,
    _mm512_storeu_ps
);

vector_tile!(
    avx2_f32,
    "avx2,fma",
    8,
    items: 1,
    [(0, |b| _mm256_loadu_ps(b), |a: *const f32| _mm256_set1_ps(*a), |a, b, sum| _mm256_fmadd_ps(a, b, sum))],
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_add_ps,
    _mm256_storeu_ps
);

vector_tile!(
    avx2_bf16,
    "avx2,fma",
    8,
    items: 2,
    [
        (
            1,
            |b: *const f32| _mm256_castsi256_ps(_mm256_and_si256(
                _mm256_loadu_si256(b.cast()),
                _mm256_set1_epi32(HIGH)
            )),
            |a: *const f32| _mm256_set1_ps(*a),
            |a, b, sum| _mm256_fmadd_ps(a, b, sum)
        ),
        (
            0,
            |b: *const f32| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_loadu_si256(b.cast()))),
            |a: *const f32| _mm256_set1_ps(*a),
            |a, b, sum| _mm256_fmadd_ps(a, b, sum)
        )
    ],
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_add_ps,
    _mm256_storeu_ps
);
