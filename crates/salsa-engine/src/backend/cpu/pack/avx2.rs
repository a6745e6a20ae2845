//! Packing with AVX2: eight words at a time. Covers only transposing copies; the rest is plain copying.

use super::super::view::View;
use std::arch::x86_64::*;

/// Columns of a panel.
const WIDTH: usize = 16;

/// Returns the eight numbers from `at` on, with zeros past the first `count`.
#[inline]
#[target_feature(enable = "avx2")]
fn load(data: &[f32], at: usize, count: usize) -> __m256 {
    if count >= 8 {
        let part = &data[at..at + 8];
        // SAFETY: eight numbers.
        return unsafe { _mm256_loadu_ps(part.as_ptr()) };
    }
    let mut part = [0f32; 8];
    part[..count].copy_from_slice(&data[at..at + count]);
    // SAFETY: eight numbers.
    unsafe { _mm256_loadu_ps(part.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(data: &mut [f32], at: usize, x: __m256) {
    let part = &mut data[at..at + 8];
    // SAFETY: the part has eight numbers.
    unsafe { _mm256_storeu_ps(part.as_mut_ptr(), x) }
}

/// Transposes 8 x 8.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(m: [__m256; 8]) -> [__m256; 8] {
    let mut t = m;
    for i in 0..4 {
        t[2 * i] = _mm256_unpacklo_ps(m[2 * i], m[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(m[2 * i], m[2 * i + 1]);
    }
    let mut u = t;
    for i in 0..2 {
        u[4 * i] = _mm256_shuffle_ps::<0b01_00_01_00>(t[4 * i], t[4 * i + 2]);
        u[4 * i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(t[4 * i], t[4 * i + 2]);
        u[4 * i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(t[4 * i + 1], t[4 * i + 3]);
        u[4 * i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(t[4 * i + 1], t[4 * i + 3]);
    }
    let mut out = u;
    for i in 0..4 {
        out[i] = _mm256_permute2f128_ps::<0x20>(u[i], u[4 + i]);
        out[4 + i] = _mm256_permute2f128_ps::<0x31>(u[i], u[4 + i]);
    }
    out
}

/// Rounds to bfloat16 in the high halves of lanes; the low halves are zero. As [`super::bf16`].
#[inline]
#[target_feature(enable = "avx2")]
fn round(x: __m256) -> __m256i {
    let bits = _mm256_castps_si256(x);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let nearest = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    let exponent = _mm256_and_si256(bits, _mm256_set1_epi32(0x7f80_0000));
    let small = _mm256_cmpeq_epi32(exponent, _mm256_setzero_si256());
    let sign = _mm256_and_si256(bits, _mm256_set1_epi32(i32::MIN));
    let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
    let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
    let rounded = _mm256_blendv_epi8(_mm256_blendv_epi8(nearest, sign, small), quiet, nan);
    _mm256_and_si256(rounded, _mm256_set1_epi32(0xffff_0000_u32 as i32))
}

/// Eight words from sixteen terms.
#[inline]
#[target_feature(enable = "avx2")]
fn words(first: __m256, second: __m256) -> __m256 {
    let (first, second) = (_mm256_castsi256_ps(round(first)), _mm256_castsi256_ps(round(second)));
    let even = _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(first, second));
    let odd = _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(first, second));
    let words = _mm256_or_si256(_mm256_srli_epi32::<16>(even), odd);
    _mm256_castsi256_ps(_mm256_permute4x64_epi64::<0b11_01_10_00>(words))
}

/// A panel of f32 from a source whose columns are contiguous.
#[target_feature(enable = "avx2")]
pub(super) fn panel_f32(b: View<'_>, depth: usize, here: usize, panel: &mut [f32]) {
    by_columns(depth, here, panel, |c, s| load(b.data, c * b.column_stride + s, depth - s));
}

/// As [`panel_f32`], in bfloat16.
#[target_feature(enable = "avx2")]
pub(super) fn panel_bf16(b: View<'_>, depth: usize, here: usize, panel: &mut [f32]) {
    by_columns(depth.div_ceil(2), here, panel, |c, s| {
        let (at, left) = (c * b.column_stride + 2 * s, depth - 2 * s);
        let rest = left.saturating_sub(8);
        words(load(b.data, at, left), if rest == 0 { _mm256_setzero_ps() } else { load(b.data, at + 8, rest) })
    });
}

/// As [`super::panel_of_bf16`], but keeps subnormal numbers.
#[target_feature(enable = "avx2")]
pub(super) fn panel_of_bf16(rows: &[[u8; 2]], depth: usize, panel: &mut [f32]) {
    by_columns(depth.div_ceil(2), rows.len() / depth, panel, |c, s| {
        let row = &rows[c * depth + 2 * s..(c + 1) * depth];
        if row.len() >= 16 {
            // SAFETY: eight words of two numbers.
            return unsafe { _mm256_loadu_ps(row.as_ptr().cast()) };
        }
        let mut part = [[0u8; 2]; 16];
        part[..row.len()].copy_from_slice(row);
        // SAFETY: as above.
        unsafe { _mm256_loadu_ps(part.as_ptr().cast()) }
    });
}

/// `words(c, s)` are words `s..s + 8` of column c.
#[inline]
#[target_feature(enable = "avx2")]
fn by_columns(steps: usize, here: usize, panel: &mut [f32], words: impl Fn(usize, usize) -> __m256) {
    for s in (0..steps).step_by(8) {
        for first in [0, 8] {
            let mut block = [_mm256_setzero_ps(); 8];
            for (c, row) in block.iter_mut().enumerate().take(here.saturating_sub(first)) {
                *row = words(first + c, s);
            }
            for (i, row) in transpose(block).into_iter().enumerate().take(steps - s) {
                store(panel, (s + i) * WIDTH + first, row);
            }
        }
    }
}

/// As [`super::transposed_panels`], from column `first` of the transpose on.
#[target_feature(enable = "avx2")]
pub(super) fn transposed_f32(
    panels: &[f32],
    panel_stride: usize,
    (depth, columns): (usize, usize),
    first: usize,
    out: &mut [f32],
) {
    let out_stride = columns * WIDTH;
    for n in (0..columns).step_by(8) {
        for c in (0..out.len() / columns).step_by(8) {
            let mut block = [_mm256_setzero_ps(); 8];
            for (row, k) in block.iter_mut().zip(first + c..depth) {
                *row = load(panels, n / WIDTH * panel_stride + k * WIDTH + n % WIDTH, 8);
            }
            let to = c / WIDTH * out_stride + c % WIDTH;
            for (row, n) in transpose(block).into_iter().zip(n..columns) {
                store(out, to + n * WIDTH, row);
            }
        }
    }
}

/// As [`transposed_f32`], in bfloat16.
#[target_feature(enable = "avx2")]
pub(super) fn transposed_bf16(
    panels: &[f32],
    panel_stride: usize,
    (depth, columns): (usize, usize),
    first: usize,
    out: &mut [f32],
) {
    let high = _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32));
    let steps = columns.div_ceil(2);
    for n in (0..columns).step_by(8) {
        for c in (0..out.len() / steps).step_by(8) {
            // Eight terms of eight columns: four words, split into halves.
            let mut block = [_mm256_setzero_ps(); 8];
            for (rows, s) in block.as_chunks_mut::<2>().0.iter_mut().zip((first + c) / 2..depth.div_ceil(2)) {
                let words = load(panels, n / WIDTH * panel_stride + s * WIDTH + n % WIDTH, 8);
                let low = _mm256_slli_epi32::<16>(_mm256_castps_si256(words));
                *rows = [_mm256_castsi256_ps(low), _mm256_and_ps(words, high)];
            }
            let terms = transpose(block);
            let to = c / WIDTH * steps * WIDTH + c % WIDTH;
            // Columns past the last are zero in the panels, so a word may end with one.
            for (pair, step) in terms.as_chunks::<2>().0.iter().zip(n / 2..steps) {
                let low = _mm256_srli_epi32::<16>(_mm256_castps_si256(pair[0]));
                store(out, to + step * WIDTH, _mm256_or_ps(_mm256_castsi256_ps(low), pair[1]));
            }
        }
    }
}
