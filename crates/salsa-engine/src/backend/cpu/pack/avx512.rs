//! Packing with AVX-512: sixteen words at a time.

use super::super::view::View;
use std::arch::x86_64::*;

/// A mask of the first `count` lanes.
fn mask(count: usize) -> __mmask16 {
    if count >= 16 { 0xffff } else { (1u16 << count) - 1 }
}

/// Returns the `count` numbers from `at` on, followed by zeros.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(data: &[f32], at: usize, count: usize) -> __m512 {
    if count == 0 {
        return _mm512_setzero_ps();
    }
    let part = &data[at..at + count.min(16)];
    // SAFETY: the mask keeps the load inside the part.
    unsafe { _mm512_maskz_loadu_ps(mask(count), part.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(data: &mut [f32], at: usize, x: __m512i) {
    let part = &mut data[at..at + 16];
    // SAFETY: the part has sixteen numbers.
    unsafe { _mm512_storeu_si512(part.as_mut_ptr().cast(), x) }
}

/// Rounds 32 numbers to sixteen words: `low` in the first half of the result, `high` in the second.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn narrow(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both are 512 bits without invalid values.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

/// Returns word i, `(low[i], high[i])`, from the result of [`narrow`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn interleave(narrowed: __m512i) -> __m512i {
    _mm512_permutexvar_epi16(INTERLEAVE.load(), narrowed)
}

#[repr(align(64))]
struct Lanes16([u16; 32]);
impl Lanes16 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(&self) -> __m512i {
        // SAFETY: 64 bytes.
        unsafe { _mm512_loadu_si512(self.0.as_ptr().cast()) }
    }
}
#[repr(align(64))]
struct Lanes32([u32; 16]);
impl Lanes32 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(&self) -> __m512i {
        // SAFETY: 64 bytes.
        unsafe { _mm512_loadu_si512(self.0.as_ptr().cast()) }
    }
}

const fn lanes16(even: usize, odd: usize) -> Lanes16 {
    let mut lanes = [0u16; 32];
    let mut i = 0;
    while i < 16 {
        lanes[2 * i] = (i + even) as u16;
        lanes[2 * i + 1] = (i + odd) as u16;
        i += 1;
    }
    Lanes16(lanes)
}
static INTERLEAVE: Lanes16 = lanes16(0, 16);
/// All low halves, then all high halves.
static HALVES: Lanes16 = {
    let mut lanes = [0u16; 32];
    let mut i = 0;
    while i < 16 {
        lanes[i] = 2 * i as u16;
        lanes[16 + i] = 2 * i as u16 + 1;
        i += 1;
    }
    Lanes16(lanes)
};
/// Lanes 0..8 (8..16) of two vectors, alternating.
const fn zip(from: usize) -> Lanes32 {
    let mut lanes = [0u32; 16];
    let mut i = 0;
    while i < 8 {
        lanes[2 * i] = (from + i) as u32;
        lanes[2 * i + 1] = (16 + from + i) as u32;
        i += 1;
    }
    Lanes32(lanes)
}
static ZIP_LOW: Lanes32 = zip(0);
static ZIP_HIGH: Lanes32 = zip(8);

/// Transposes 16 x 16.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(m: &mut [__m512i; 16]) {
    let mut t = *m;
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(m[2 * i], m[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(m[2 * i], m[2 * i + 1]);
    }
    // Columns 4j + c of rows 4i..4i + 4 meet in m[4i + c], 128-bit lane j.
    for i in 0..4 {
        m[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        m[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        m[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        m[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for c in 0..4 {
        let (a, b, x, y) = (m[c], m[4 + c], m[8 + c], m[12 + c]);
        let even_ab = _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b);
        let odd_ab = _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b);
        let even_xy = _mm512_shuffle_i32x4::<0b10_00_10_00>(x, y);
        let odd_xy = _mm512_shuffle_i32x4::<0b11_01_11_01>(x, y);
        t[c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(even_ab, even_xy);
        t[8 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(even_ab, even_xy);
        t[4 + c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(odd_ab, odd_xy);
        t[12 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(odd_ab, odd_xy);
    }
    *m = t;
}

#[target_feature(enable = "avx512f")]
pub(super) fn panel_f32(b: View<'_>, depth: usize, here: usize, panel: &mut [f32]) {
    if b.column_stride == 1 {
        for (k, row) in panel.chunks_exact_mut(32).enumerate() {
            let from = k * b.row_stride;
            for half in 0..2 {
                let x = load(b.data, from + 16 * half, here.saturating_sub(16 * half));
                store(row, 16 * half, _mm512_castps_si512(x));
            }
        }
        return;
    }
    let word = |c: usize, s: usize| _mm512_castps_si512(load(b.data, c * b.column_stride + s, depth - s));
    panel_by_columns(depth, here, panel, word);
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn panel_bf16(b: View<'_>, depth: usize, here: usize, panel: &mut [f32]) {
    if b.column_stride == 1 {
        let mut panel = panel;
        if here == 32 {
            let whole = depth / 2;
            let used = &b.data[..if depth == 0 { 0 } else { (depth - 1) * b.row_stride + 32 }];
            let (words, rest) = panel.split_at_mut(whole * 32);
            for (s, row) in words.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                // SAFETY: 32 numbers of rows 2s and 2s + 1 lie inside `used`; 32 words are written.
                unsafe {
                    let (low, to) = (used.as_ptr().add(2 * s * b.row_stride), row.as_mut_ptr());
                    let high = low.add(b.row_stride);
                    let first = narrow(_mm512_loadu_ps(low), _mm512_loadu_ps(high));
                    let second = narrow(_mm512_loadu_ps(low.add(16)), _mm512_loadu_ps(high.add(16)));
                    _mm512_storeu_si512(to.cast(), interleave(first));
                    _mm512_storeu_si512(to.add(16).cast(), interleave(second));
                }
            }
            panel = rest;
        }
        let done = depth.div_ceil(2) - panel.len() / 32;
        for (s, row) in panel.chunks_exact_mut(32).enumerate() {
            let s = s + done;
            let from = 2 * s * b.row_stride;
            let odd = if 2 * s + 1 < depth { here } else { 0 };
            for half in 0..2 {
                let low = load(b.data, from + 16 * half, here.saturating_sub(16 * half));
                let high = load(b.data, from + b.row_stride + 16 * half, odd.saturating_sub(16 * half));
                store(row, 16 * half, interleave(narrow(low, high)));
            }
        }
        return;
    }
    let word = |c: usize, s: usize| {
        let (at, left) = (c * b.column_stride + 2 * s, depth - 2 * s);
        narrow(load(b.data, at, left), load(b.data, at + 16, left.saturating_sub(16)))
    };
    panel_by_columns(depth.div_ceil(2), here, panel, word);
}

/// As [`super::panel_of_bf16`], but keeps subnormal numbers.
#[target_feature(enable = "avx512f")]
pub(super) fn panel_of_bf16(rows: &[[u8; 2]], depth: usize, panel: &mut [f32]) {
    panel_by_columns(depth.div_ceil(2), rows.len() / depth, panel, |c, s| {
        let row = &rows[c * depth + 2 * s..(c + 1) * depth];
        if row.len() >= 32 {
            // SAFETY: sixteen words of two numbers.
            return unsafe { _mm512_loadu_si512(row.as_ptr().cast()) };
        }
        let mut part = [[0u8; 2]; 32];
        part[..row.len()].copy_from_slice(row);
        // SAFETY: as above.
        unsafe { _mm512_loadu_si512(part.as_ptr().cast()) }
    });
}

/// Panels from a source whose columns are contiguous: `words(c, s)` are words `s..s + 16` of column c.
#[inline]
#[target_feature(enable = "avx512f")]
fn panel_by_columns(steps: usize, here: usize, panel: &mut [f32], words: impl Fn(usize, usize) -> __m512i) {
    for s in (0..steps).step_by(16) {
        for half in 0..2 {
            let mut block = [_mm512_setzero_si512(); 16];
            let count = here.saturating_sub(16 * half).min(16);
            for (c, row) in block[..count].iter_mut().enumerate() {
                *row = words(16 * half + c, s);
            }
            transpose(&mut block);
            for (i, row) in block[..16.min(steps - s)].iter().enumerate() {
                store(panel, (s + i) * 32 + 16 * half, *row);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn left_rows_bf16(a: View<'_>, rows: usize, depth: usize, stride: usize, copy: &mut [f32]) {
    for r in 0..rows {
        let (from, to) = (&a.data[r * a.row_stride..][..depth], &mut copy[r * stride..][..stride]);
        let (whole, rest) = from.as_chunks::<32>();
        let (words, _) = to.as_chunks_mut::<16>();
        for (from, to) in whole.iter().zip(words.iter_mut()) {
            // SAFETY: 32 numbers are read, sixteen words written.
            unsafe {
                let (low, high) = (_mm512_loadu_ps(from.as_ptr()), _mm512_loadu_ps(from.as_ptr().add(16)));
                _mm512_storeu_si512(to.as_mut_ptr().cast(), narrow(low, high));
            }
        }
        if !rest.is_empty() {
            let (low, high) = (load(rest, 0, rest.len()), load(rest, 16, rest.len().saturating_sub(16)));
            store(&mut words[whole.len()], 0, narrow(low, high));
        }
    }
}

/// Transposes columns to rows, sixteen of both at a time, zero-padded to a multiple of sixteen words.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn left_rows_of_columns_bf16(a: View<'_>, rows: usize, depth: usize, stride: usize, copy: &mut [f32]) {
    for first in (0..rows).step_by(16) {
        let count = (rows - first).min(16);
        let term = |k: usize| load(a.data, k * a.column_stride + first, if k < depth { count } else { 0 });
        for from in (0..depth.div_ceil(2)).step_by(16) {
            let mut block: [__m512i; 16] =
                std::array::from_fn(|s| interleave(narrow(term(2 * (from + s)), term(2 * (from + s) + 1))));
            transpose(&mut block);
            for (r, row) in block[..count].iter().enumerate() {
                store(copy, (first + r) * stride + from, *row);
            }
        }
    }
}

/// Word `s` of row `r` of a tile at `s * height + r`. A tile has at most sixteen rows.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn left_columns_bf16(
    a: View<'_>,
    rows: usize,
    depth: usize,
    (height, tile_stride): (usize, usize),
    copy: &mut [f32],
) {
    let line = |k: usize, first: usize, count: usize| {
        if k < depth { load(a.data, k * a.column_stride + first, count) } else { _mm512_setzero_ps() }
    };
    for s in 0..depth.div_ceil(2) {
        for (first, tile) in (0..rows).step_by(height).zip(copy.chunks_exact_mut(tile_stride)) {
            let count = height.min(rows - first);
            // The lanes past the last row are overwritten by the next step, or are spare.
            let words = narrow(line(2 * s, first, count), line(2 * s + 1, first, count));
            store(tile, s * height, interleave(words));
        }
    }
}

#[target_feature(enable = "avx512f")]
pub(super) fn transposed_f32(
    panels: &[f32],
    panel_stride: usize,
    (depth, columns): (usize, usize),
    first: usize,
    out: &mut [f32],
) {
    for n in (0..columns).step_by(16) {
        for c in (0..out.len() / columns).step_by(16) {
            let mut block = [_mm512_setzero_si512(); 16];
            for (row, k) in block.iter_mut().zip(first + c..depth) {
                let at = n / 32 * panel_stride + k * 32 + n % 32;
                *row = _mm512_castps_si512(load(panels, at, 16));
            }
            transpose(&mut block);
            let to = c / 32 * columns * 32 + c % 32;
            for (row, n) in block.iter().zip(n..columns) {
                store(out, to + n * 32, *row);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn transposed_bf16(
    panels: &[f32],
    panel_stride: usize,
    (depth, columns): (usize, usize),
    first: usize,
    out: &mut [f32],
) {
    let steps = columns.div_ceil(2);
    for n in (0..columns).step_by(16) {
        for (i, out) in out.chunks_exact_mut(steps * 32).enumerate() {
            // Row s holds terms 2s and 2s + 1 of sixteen columns: eight words of each once the halves are split.
            let mut block = [_mm512_setzero_si512(); 16];
            for (row, s) in block.iter_mut().zip(first / 2 + 16 * i..depth.div_ceil(2)) {
                let at = n / 32 * panel_stride + s * 32 + n % 32;
                let words = _mm512_castps_si512(load(panels, at, 16));
                *row = _mm512_permutexvar_epi16(HALVES.load(), words);
            }
            transpose(&mut block);
            for (op, step) in (n / 2..steps).take(8).enumerate() {
                let (even, odd) = (block[op], block[8 + op]);
                store(out, step * 32, _mm512_permutex2var_epi32(even, ZIP_LOW.load(), odd));
                store(out, step * 32 + 16, _mm512_permutex2var_epi32(even, ZIP_HIGH.load(), odd));
            }
        }
    }
}
