//! Operands of products in the order in which tiles read them.
//!
//! Every layout is made of words (see [`super::kernel`]): `s` counts words along the sum, [`Dtype::terms`] terms each. A
//! sum that ends inside a word, and columns that end inside a panel, are filled up with zeros.

use super::Dtype;
use super::gemm::View;
#[cfg(target_arch = "x86_64")]
use super::isa::Isa;
use super::isa::isa;
use super::kernel::{LEFT_STRIDE, Left};

/// The nearest bfloat16, ties to even, as its 16 bits. Subnormal numbers become zero, as in the conversion instruction.
#[inline(always)]
pub(crate) fn bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let (exponent, fraction) = (bits & 0x7f80_0000, bits & 0x007f_ffff);
    match (exponent, fraction) {
        (0, _) => bits >> 31 << 15,
        (0x7f80_0000, 1..) => bits >> 16 | 0x40,
        _ => rounded,
    }
}

/// A word with a new second term.
#[inline(always)]
pub(crate) fn with_high(word: f32, high: f32) -> f32 {
    f32::from_bits(word.to_bits() & 0xffff | bf16(high) << 16)
}

/// Two terms as a word.
#[inline(always)]
pub(crate) fn pair(low: f32, high: f32) -> f32 {
    f32::from_bits(bf16(low) | bf16(high) << 16)
}

/// Writes columns `first..first + width` of `b` into `panel`, `[steps][width]`; `depth` terms, the rest zero.
pub(crate) fn panel(
    dtype: Dtype,
    b: View<'_>,
    depth: usize,
    first: usize,
    columns: usize,
    width: usize,
    panel: &mut [f32],
) {
    let here = width.min(columns - first);
    let b = View { data: &b.data[first * b.column_stride..], ..b };
    #[cfg(target_arch = "x86_64")]
    if width == 32 {
        match (isa(), dtype) {
            // SAFETY: `isa` returns only what this machine has; the bounds are checked inside.
            (Isa::Amx | Isa::Avx512Bf16, Dtype::Bf16) => return unsafe { vector::panel_bf16(b, depth, here, panel) },
            // SAFETY: as above.
            (Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512, Dtype::F32) => {
                return unsafe { vector::panel_f32(b, depth, here, panel) };
            }
            _ => {}
        }
    }
    match dtype {
        Dtype::F32 => fill(panel, width, here, |s, c| b.data[s * b.row_stride + c * b.column_stride]),
        Dtype::Bf16 => {
            let term = |k: usize, c: usize| {
                if k < depth { b.data[k * b.row_stride + c * b.column_stride] } else { 0.0 }
            };
            fill(panel, width, here, |s, c| pair(term(2 * s, c), term(2 * s + 1, c)));
        }
    }
}

/// `panel[s][c] = word(s, c)` for the `here` columns that exist, in blocks that stay in the first-level cache.
fn fill(panel: &mut [f32], width: usize, here: usize, word: impl Fn(usize, usize) -> f32) {
    for (block, rows) in panel.chunks_mut(64 * width).enumerate() {
        for c in 0..here {
            for (s, row) in rows.chunks_exact_mut(width).enumerate() {
                row[c] = word(block * 64 + s, c);
            }
        }
        rows.chunks_exact_mut(width).for_each(|row| row[here..].fill(0.0));
    }
}

/// Packs rows `first..first + rows` of `a`, words `from..from + steps` of each, as one left tile; returns its layout.
/// `depth` is where the sum ends. The tile must have room for [`left_room`] words.
pub(crate) fn left(
    dtype: Dtype,
    a: View<'_>,
    first: usize,
    rows: usize,
    from: usize,
    steps: usize,
    depth: usize,
    tile: &mut [f32],
) -> Left {
    let terms = dtype.terms();
    let a = View { data: &a.data[first * a.row_stride + from * terms * a.column_stride..], ..a };
    let depth = (depth - from * terms).min(steps * terms);
    let layout = if a.column_stride == 1 { Left::Rows } else { Left::Columns };
    assert!(tile.len() >= left_room(rows), "a left tile has room for its rows");
    #[cfg(target_arch = "x86_64")]
    match (isa(), dtype) {
        // SAFETY: `isa` returns only what this machine has; the bounds are checked inside.
        (Isa::Amx, Dtype::Bf16) => unsafe {
            match layout {
                Left::Rows => vector::left_rows_bf16(a, rows, depth, tile),
                Left::Columns => vector::left_rows_of_columns_bf16(a, rows, depth, tile),
            }
            // Tiles take their left factor by rows.
            return Left::Rows;
        },
        // SAFETY: as above.
        (Isa::Avx512Bf16, Dtype::Bf16) => unsafe {
            match layout {
                Left::Rows => vector::left_rows_bf16(a, rows, depth, tile),
                Left::Columns => vector::left_columns_bf16(a, rows, depth, tile),
            }
            return layout;
        },
        // SAFETY: as above.
        (Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512, Dtype::F32) if layout == Left::Columns => unsafe {
            vector::left_columns_f32(a, rows, depth, tile);
            return layout;
        },
        _ => {}
    }
    let term = |r: usize, k: usize| if k < depth { a.data[r * a.row_stride + k * a.column_stride] } else { 0.0 };
    for r in 0..rows {
        let at = |s: usize| match layout {
            Left::Rows => r * LEFT_STRIDE + s,
            Left::Columns => s * rows + r,
        };
        match dtype {
            Dtype::F32 if layout == Left::Rows => {
                tile[at(0)..at(steps)].copy_from_slice(&a.data[r * a.row_stride..][..steps]);
            }
            Dtype::F32 => (0..steps).for_each(|s| tile[at(s)] = term(r, s)),
            Dtype::Bf16 => (0..steps).for_each(|s| tile[at(s)] = pair(term(r, 2 * s), term(r, 2 * s + 1))),
        }
    }
    layout
}

/// Words that a left tile of `rows` rows may touch.
pub(crate) const fn left_room(rows: usize) -> usize {
    rows * LEFT_STRIDE + 16
}

/// From the panels of a matrix to those of its transpose: `panels` holds columns `0..columns` of `b[depth][columns]`, panels
/// `panel_stride` apart; writes panel `index` of `b^T[columns][depth]`, `[words of columns][width]`.
pub(crate) fn transposed_panel(
    dtype: Dtype,
    panels: &[f32],
    panel_stride: usize,
    (depth, columns, width): (usize, usize, usize),
    index: usize,
    out: &mut [f32],
) {
    let first = index * width;
    let here = width.min(depth - first);
    #[cfg(target_arch = "x86_64")]
    if width == 32 {
        match (isa(), dtype) {
            (Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512, Dtype::Bf16) => {
                // SAFETY: `isa` returns only what this machine has; the bounds are checked inside.
                return unsafe { vector::transposed_bf16(panels, panel_stride, (depth, columns), first, out) };
            }
            (Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512, Dtype::F32) => {
                // SAFETY: as above.
                return unsafe { vector::transposed_f32(panels, panel_stride, (depth, columns), first, out) };
            }
            _ => {}
        }
    }
    // Element (k, n) of b as bits.
    let word = |s: usize, n: usize| panels[n / width * panel_stride + s * width + n % width];
    let half = |k: usize, n: usize| {
        if n < columns { word(k / 2, n).to_bits() >> (16 * (k % 2)) & 0xffff } else { 0 }
    };
    match dtype {
        Dtype::F32 => fill(out, width, here, |n, c| word(first + c, n)),
        Dtype::Bf16 => {
            fill(out, width, here, |op, c| f32::from_bits(half(first + c, 2 * op) | half(first + c, 2 * op + 1) << 16))
        }
    }
}

/// The same with AVX-512: sixteen words at a time.
#[cfg(target_arch = "x86_64")]
mod vector {
    use super::super::gemm::View;
    use super::LEFT_STRIDE;
    use std::arch::x86_64::*;

    /// The first `count` lanes.
    fn mask(count: usize) -> __mmask16 {
        if count >= 16 { 0xffff } else { (1u16 << count) - 1 }
    }

    /// The `count` numbers from `at` on, zeros after them.
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

    /// Sixteen words from 32 numbers: `low` in lanes 0..16 of the result's halves, then `high`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn narrow(low: __m512, high: __m512) -> __m512i {
        // SAFETY: both are 512 bits without invalid values.
        unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
    }

    /// Word i = (low[i], high[i]) from what [`narrow`] gives.
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

    /// Rows become columns.
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
    pub(super) fn left_rows_bf16(a: View<'_>, rows: usize, depth: usize, tile: &mut [f32]) {
        for r in 0..rows {
            let (from, to) = (&a.data[r * a.row_stride..][..depth], &mut tile[r * LEFT_STRIDE..][..LEFT_STRIDE]);
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

    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) fn left_columns_bf16(a: View<'_>, rows: usize, depth: usize, tile: &mut [f32]) {
        let (mask, stride) = (mask(rows), a.column_stride);
        let used = &a.data[..(depth - 1) * stride + rows];
        assert!(depth.div_ceil(2) * rows + 16 <= tile.len());
        for s in 0..depth / 2 {
            // The lanes past the last row are overwritten by the next step, or are room to spare.
            // SAFETY: rows 2s and 2s + 1 of `rows` numbers lie inside `used`, sixteen words from s * rows inside `tile`.
            unsafe {
                let from = used.as_ptr().add(2 * s * stride);
                let (low, high) = (_mm512_maskz_loadu_ps(mask, from), _mm512_maskz_loadu_ps(mask, from.add(stride)));
                _mm512_storeu_si512(tile.as_mut_ptr().add(s * rows).cast(), interleave(narrow(low, high)));
            }
        }
        if depth % 2 == 1 {
            let low = load(used, (depth - 1) * stride, rows);
            store(tile, depth / 2 * rows, interleave(narrow(low, _mm512_setzero_ps())));
        }
    }

    /// A source of contiguous columns, packed by rows: a step and sixteen words at a time.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) fn left_rows_of_columns_bf16(a: View<'_>, rows: usize, depth: usize, tile: &mut [f32]) {
        for first in (0..rows).step_by(16) {
            let count = (rows - first).min(16);
            let term = |k: usize| load(a.data, k * a.column_stride + first, if k < depth { count } else { 0 });
            for from in (0..depth.div_ceil(2)).step_by(16) {
                let mut block: [__m512i; 16] =
                    std::array::from_fn(|s| interleave(narrow(term(2 * (from + s)), term(2 * (from + s) + 1))));
                transpose(&mut block);
                for (r, row) in block[..count].iter().enumerate() {
                    store(tile, (first + r) * LEFT_STRIDE + from, *row);
                }
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn left_columns_f32(a: View<'_>, rows: usize, depth: usize, tile: &mut [f32]) {
        for k in 0..depth {
            store(tile, k * rows, _mm512_castps_si512(load(a.data, k * a.column_stride, rows)));
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
            for half in 0..2 {
                let mut block = [_mm512_setzero_si512(); 16];
                let from = first + 16 * half;
                for (row, k) in block.iter_mut().zip(from..depth) {
                    let at = n / 32 * panel_stride + k * 32 + n % 32;
                    *row = _mm512_castps_si512(load(panels, at, 16));
                }
                transpose(&mut block);
                for (row, n) in block.iter().zip(n..columns) {
                    store(out, n * 32 + 16 * half, *row);
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
        for n in (0..columns).step_by(16) {
            // Row s holds terms 2s and 2s + 1 of sixteen columns: eight words of each once the halves are apart.
            let mut block = [_mm512_setzero_si512(); 16];
            for (row, s) in block.iter_mut().zip(first / 2..depth.div_ceil(2)) {
                let at = n / 32 * panel_stride + s * 32 + n % 32;
                let words = _mm512_castps_si512(load(panels, at, 16));
                *row = _mm512_permutexvar_epi16(HALVES.load(), words);
            }
            transpose(&mut block);
            for (op, step) in (n / 2..columns.div_ceil(2)).take(8).enumerate() {
                let (even, odd) = (block[op], block[8 + op]);
                store(out, step * 32, _mm512_permutex2var_epi32(even, ZIP_LOW.load(), odd));
                store(out, step * 32 + 16, _mm512_permutex2var_epi32(even, ZIP_HIGH.load(), odd));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernel::Kernel;
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_even() {
        // 1 + 2^-8 lies between 1 and 1 + 2^-7; the even one is 1. 1 + 3 * 2^-8 goes up to 1 + 2^-6.
        for (x, expected) in [(1.0, 1.0), (1.0 + 2f32.powi(-8), 1.0), (1.0 + 3.0 * 2f32.powi(-8), 1.0 + 2f32.powi(-6))]
        {
            assert_eq!(f32::from_bits(bf16(x) << 16), expected);
        }
        assert_eq!((bf16(1e-40), bf16(-1e-40)), (0, 0x8000));
        assert!(f32::from_bits(bf16(f32::NAN) << 16).is_nan());
        assert_eq!(f32::from_bits(bf16(f32::MAX) << 16), f32::INFINITY);
    }

    /// `b[depth][columns]`, each number its own place.
    fn numbered(depth: usize, columns: usize) -> Vec<f32> {
        (0..depth * columns).map(|i| (i % 251) as f32 - 120.0).collect()
    }

    #[test]
    fn every_way_into_a_panel_gives_the_same_words() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            for (depth, columns) in [(1usize, 1usize), (5, 7), (16, 32), (33, 40), (64, 96), (70, 65), (96, 64)] {
                let width = Kernel::of(isa(), dtype).width;
                let steps = depth.div_ceil(dtype.terms());
                let by_rows = numbered(depth, columns);
                let by_columns: Vec<f32> =
                    (0..columns * depth).map(|i| by_rows[i % depth * columns + i / depth]).collect();
                let count = columns.div_ceil(width);
                let pack = |view: View<'_>| -> Vec<f32> {
                    let mut panels = vec![7.0; count * steps * width];
                    for (p, out) in panels.chunks_exact_mut(steps * width).enumerate() {
                        panel(dtype, view, depth, p * width, columns, width, out);
                    }
                    panels
                };
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                let panels = pack(View::rows(&by_rows, columns));
                assert_eq!(
                    bits(&panels),
                    bits(&pack(View::rows(&by_columns, depth).t())),
                    "{dtype:?} {depth} {columns}"
                );
                // The transpose of the transpose, packed from rows, is where we began.
                let back_steps = columns.div_ceil(dtype.terms());
                let mut back = vec![7.0; depth.div_ceil(width) * back_steps * width];
                for (p, out) in back.chunks_exact_mut(back_steps * width).enumerate() {
                    transposed_panel(dtype, &panels, steps * width, (depth, columns, width), p, out);
                }
                let mut expected = vec![7.0; back.len()];
                for (p, out) in expected.chunks_exact_mut(back_steps * width).enumerate() {
                    panel(dtype, View::rows(&by_rows, columns).t(), columns, p * width, depth, width, out);
                }
                assert_eq!(bits(&back), bits(&expected), "{dtype:?} {depth} {columns}");
            }
        }
    }
}
