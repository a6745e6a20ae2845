//! Operands of products in the order in which tiles read them.
//!
//! Every layout is made of words (see [`super::kernel`]): `s` counts words along the sum, [`Dtype::terms`] terms each.
//! A sum that ends inside a word, and columns that end inside a panel, are zero-padded.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod left;

pub(crate) use left::block as left_block;

use super::Dtype;
use super::isa::multiversion;
#[cfg(target_arch = "x86_64")]
use super::isa::{Isa, isa};
use super::kernel::{WIDTH, prefetch};
use super::view::View;

/// How many rows ahead of packing a row is prefetched.
const ROWS_AHEAD: usize = 8;

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

/// Replaces the second term of a word.
#[inline(always)]
pub(crate) fn with_high(word: f32, high: f32) -> f32 {
    f32::from_bits(word.to_bits() & 0xffff | bf16(high) << 16)
}

/// Two terms as a word.
#[inline(always)]
pub(crate) fn pair(low: f32, high: f32) -> f32 {
    f32::from_bits(bf16(low) | bf16(high) << 16)
}

/// Writes columns of `b` from `first` on into the panels of `out`, `[panel][steps][width]`; `depth` terms, the rest zero.
pub(crate) fn panels(
    dtype: Dtype,
    b: View<'_>,
    depth: usize,
    first: usize,
    columns: usize,
    width: usize,
    out: &mut [f32],
) {
    let b = View { data: &b.data[first * b.column_stride..], ..b };
    let left = columns - first;
    #[cfg(target_arch = "x86_64")]
    let vectors = matches!((isa(), dtype), (Isa::Amx | Isa::Avx512Bf16, _) | (Isa::Avx512, Dtype::F32));
    #[cfg(not(target_arch = "x86_64"))]
    let vectors = false;
    if b.column_stride == 1 && !vectors {
        return panels_by_rows(dtype, b, depth, left, width, out);
    }
    for (i, panel) in out.chunks_exact_mut(depth.div_ceil(dtype.terms()) * width).enumerate() {
        let b = View { data: &b.data[i * width * b.column_stride..], ..b };
        one_panel(dtype, b, depth, width.min(left - i * width), width, panel);
    }
}

/// As [`panels`], for one panel of `here` columns.
fn one_panel(dtype: Dtype, b: View<'_>, depth: usize, here: usize, width: usize, panel: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    match (isa(), dtype) {
        // SAFETY: `isa` returns only what this machine has; the bounds are checked inside.
        (Isa::Amx | Isa::Avx512Bf16, Dtype::Bf16) => return unsafe { avx512::panel_bf16(b, depth, here, panel) },
        (Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512, Dtype::F32) => {
            // SAFETY: as above.
            return unsafe { avx512::panel_f32(b, depth, here, panel) };
        }
        // SAFETY: as above.
        (Isa::Avx2, Dtype::F32) if b.row_stride == 1 => return unsafe { avx2::panel_f32(b, depth, here, panel) },
        // SAFETY: as above.
        (Isa::Avx2, Dtype::Bf16) if b.row_stride == 1 => return unsafe { avx2::panel_bf16(b, depth, here, panel) },
        _ => {}
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

/// Writes `rows` of `depth` bfloat16 numbers each as columns of a panel, as [`panels`] packs the same numbers from f32.
pub(crate) fn panel_of_bf16(rows: &[[u8; 2]], depth: usize, panel: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    match isa() {
        // SAFETY: `isa` returns only what this machine has; the bounds are checked inside.
        Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 => unsafe { avx512::panel_of_bf16(rows, depth, panel) },
        // SAFETY: as above.
        Isa::Avx2 => unsafe { avx2::panel_of_bf16(rows, depth, panel) },
        _ => panel_of_bf16_by_words(rows, depth, panel),
    }
    #[cfg(not(target_arch = "x86_64"))]
    panel_of_bf16_by_words(rows, depth, panel);
    flush(panel);
}

fn panel_of_bf16_by_words(rows: &[[u8; 2]], depth: usize, panel: &mut [f32]) {
    let width = panel.len() / depth.div_ceil(2);
    fill(panel, width, rows.len() / depth, |s, c| {
        let row = &rows[c * depth..(c + 1) * depth];
        let ([a, b], [c, d]) = (row[2 * s], row.get(2 * s + 1).copied().unwrap_or_default());
        f32::from_bits(u32::from_le_bytes([a, b, c, d]))
    });
}

multiversion! {
    /// Flushes subnormal bfloat16 numbers to zero, as [`bf16`] does.
    fn flush(words: &mut [f32]) {
        for word in words.iter_mut() {
            let bits = word.to_bits();
            let low = if bits & 0x7f80 == 0 { bits & 0x8000 } else { bits & 0xffff };
            let high = if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits & 0xffff_0000 };
            *word = f32::from_bits(low | high);
        }
    }
}

/// [`panels`] of a source with contiguous rows. Rows are far apart in memory, so they are prefetched.
fn panels_by_rows(dtype: Dtype, b: View<'_>, depth: usize, left: usize, width: usize, out: &mut [f32]) {
    let stride = depth.div_ceil(dtype.terms()) * width;
    let used = left.min(out.len() / stride * width);
    let row = |k: usize| &b.data[k * b.row_stride..][..used];
    for s in 0..stride / width {
        let k = s * dtype.terms();
        for k in k + ROWS_AHEAD..depth.min(k + ROWS_AHEAD + dtype.terms()) {
            prefetch(row(k));
        }
        let high = (dtype == Dtype::Bf16).then(|| if k + 1 < depth { row(k + 1) } else { &[] });
        for (panel, first) in out.chunks_exact_mut(stride).zip((0..used).step_by(width)) {
            let here = first..used.min(first + width);
            let (words, beyond) = panel[s * width..][..width].split_at_mut(here.len());
            match high {
                None => words.copy_from_slice(&row(k)[here]),
                Some([]) => pairs(&row(k)[here], &[0.0; WIDTH][..words.len()], words),
                Some(high) => pairs(&row(k)[here.clone()], &high[here], words),
            }
            beyond.fill(0.0);
        }
    }
}

multiversion! {
    fn pairs(low: &[f32], high: &[f32], words: &mut [f32]) {
        for ((word, &low), &high) in words.iter_mut().zip(low).zip(high) {
            *word = pair(low, high);
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

/// Packs the transpose of a packed matrix: `panels` holds columns `0..columns` of `b[depth][columns]`, panels
/// `panel_stride` apart; fills `out` with panels `first..` of `b^T[columns][depth]`, `[words of columns][width]` each.
/// Several panels at a time, so that every cache line read is used for several of them.
pub(crate) fn transposed_panels(
    dtype: Dtype,
    panels: &[f32],
    panel_stride: usize,
    (depth, columns, width): (usize, usize, usize),
    first: usize,
    out: &mut [f32],
) {
    let first = first * width;
    #[cfg(target_arch = "x86_64")]
    {
        type Transposed = unsafe fn(&[f32], usize, (usize, usize), usize, &mut [f32]);
        let vector: Option<Transposed> = match (isa(), dtype) {
            (Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512, Dtype::Bf16) => Some(avx512::transposed_bf16),
            (Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512, Dtype::F32) => Some(avx512::transposed_f32),
            (Isa::Avx2, Dtype::Bf16) => Some(avx2::transposed_bf16),
            (Isa::Avx2, Dtype::F32) => Some(avx2::transposed_f32),
            _ => None,
        };
        if let Some(transposed) = vector {
            // SAFETY: `isa` returns only what this machine has; the bounds are checked inside.
            return unsafe { transposed(panels, panel_stride, (depth, columns), first, out) };
        }
    }
    // Element (k, n) of b as bits.
    let word = |s: usize, n: usize| panels[n / width * panel_stride + s * width + n % width];
    let half = |k: usize, n: usize| {
        if n < columns { word(k / 2, n).to_bits() >> (16 * (k % 2)) & 0xffff } else { 0 }
    };
    for (i, out) in out.chunks_exact_mut(columns.div_ceil(dtype.terms()) * width).enumerate() {
        let first = first + i * width;
        let here = width.min(depth - first);
        match dtype {
            Dtype::F32 => fill(out, width, here, |n, c| word(first + c, n)),
            Dtype::Bf16 => fill(out, width, here, |op, c| {
                f32::from_bits(half(first + c, 2 * op) | half(first + c, 2 * op + 1) << 16)
            }),
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

    #[test]
    fn stored_bfloat16_packs_as_the_same_numbers_in_f32() {
        // Every exponent, subnormal numbers and both zeros among them; infinities too.
        let number = |i: usize| ((i * 211 % 0x1_0000) as u16 & !0x7f).to_le_bytes();
        for (depth, columns) in [(1, 1), (7, 5), (32, 32), (33, 16), (64, 20), (75, 31), (300, 32)] {
            let width = Kernel::of(isa(), Dtype::Bf16).width;
            let columns = columns.min(width);
            let stored: Vec<[u8; 2]> =
                (0..depth * columns).map(|i| if i % 9 == 0 { [i as u8, 0x80] } else { number(i) }).collect();
            let mut wide = vec![0.0; stored.len()];
            crate::weights::Numbers::Bf16(&stored).widen(&mut wide);
            let mut panels = [vec![7.0; depth.div_ceil(2) * width], vec![9.0; depth.div_ceil(2) * width]];
            panel_of_bf16(&stored, depth, &mut panels[0]);
            super::panels(Dtype::Bf16, View::rows(&wide, depth).t(), depth, 0, columns, width, &mut panels[1]);
            let [found, expected] = panels.map(|panel| panel.iter().map(|word| word.to_bits()).collect::<Vec<_>>());
            assert_eq!(found, expected, "{depth} {columns}");
        }
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
                    for (run, out) in panels.chunks_mut(2 * steps * width).enumerate() {
                        super::panels(dtype, view, depth, 2 * run * width, columns, width, out);
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
                // The transpose of the transpose, packed from rows, must equal the original.
                let back_steps = columns.div_ceil(dtype.terms());
                let mut back = vec![7.0; depth.div_ceil(width) * back_steps * width];
                for (run, out) in back.chunks_mut(2 * back_steps * width).enumerate() {
                    transposed_panels(dtype, &panels, steps * width, (depth, columns, width), 2 * run, out);
                }
                let mut expected = vec![7.0; back.len()];
                for (p, out) in expected.chunks_exact_mut(back_steps * width).enumerate() {
                    super::panels(dtype, View::rows(&by_rows, columns).t(), columns, p * width, depth, width, out);
                }
                assert_eq!(bits(&back), bits(&expected), "{dtype:?} {depth} {columns}");
            }
        }
    }
}
