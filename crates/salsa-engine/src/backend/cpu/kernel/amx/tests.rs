//! The tiles against a portable reference, bit for bit. Without AMX they are skipped: `cargo test -- --nocapture amx`.

use super::super::super::pack::pair;
use super::super::{Isa, STEPS};
use super::*;
use crate::random::Random;

/// Nothing to prefetch.
const NOWHERE: Prefetch = Prefetch { from: std::ptr::null(), stride: 0 };
/// Distance between rows of a left factor.
const LEFT: usize = STEPS + 16;

/// Runs `test` on a configured thread; prints that it is skipped where there is no AMX.
fn with_tiles(test: impl FnOnce()) {
    if !Isa::Amx.available() {
        println!("skipped: this machine has no AMX tiles for bfloat16, or the system does not permit their use");
        return;
    }
    // SAFETY: they are available.
    let _tiles = unsafe { Tiles::set_up() };
    test();
}

/// Flushes subnormal numbers to zero.
fn normal(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

/// One element by the definition of the instruction: `a` and `b` return the words along the sum.
fn twin(steps: usize, a: impl Fn(usize) -> f32, b: impl Fn(usize) -> f32) -> f32 {
    let low = |word: f32| normal(f32::from_bits(word.to_bits() << 16));
    let high = |word: f32| normal(f32::from_bits(word.to_bits() & 0xffff_0000));
    let mut sum = 0f32;
    for from in (0..steps).step_by(GROUP) {
        let (mut first, mut second) = (0f32, 0f32);
        for s in from..steps.min(from + GROUP) {
            first = normal(low(a(s)).mul_add(low(b(s)), first));
            second = normal(high(a(s)).mul_add(high(b(s)), second));
        }
        sum = normal(sum + normal(first + second));
    }
    sum
}

/// A left tile of words from `word`, with zeros after `steps` in the rows that count and NaN in all others.
fn left(rows: usize, steps: usize, mut word: impl FnMut() -> f32) -> Vec<f32> {
    let mut tile = vec![f32::from_bits(0x7fc0_7fc0); ROWS * LEFT];
    for row in tile.chunks_mut(LEFT).take(rows) {
        row[..steps].fill_with(&mut word);
        row[steps..steps.next_multiple_of(GROUP)].fill(0.0);
    }
    tile
}

/// Computes a tile and compares every element, and every surrounding place, which must be unchanged.
fn check(rows: usize, steps: usize, store: Store, mut word: impl FnMut() -> f32) {
    let a = left(rows, steps, &mut word);
    let mut b: Vec<f32> = (0..steps * WIDTH).map(|_| word()).collect();
    // Words after the sum must not matter.
    b.resize((steps + GROUP) * WIDTH, f32::NAN);
    let (stride, before) = (WIDTH + 5, 0.375f32);
    let mut out = vec![before; (ROWS + 1) * stride];
    // SAFETY: `with_tiles` has configured the thread; the left tile has room for all rows, the panel `steps` words and
    // more, and `out` more than `rows` rows.
    unsafe { TILES[rows - 1](steps, a.as_ptr(), LEFT, b.as_ptr(), NOWHERE, out.as_mut_ptr(), stride, store) };
    for (i, found) in out.iter().enumerate() {
        let (r, c) = (i / stride, i % stride);
        let expected = if r >= rows || c >= WIDTH {
            before
        } else {
            let sum = twin(steps, |s| a[r * LEFT + s], |s| b[s * WIDTH + c]);
            if store == Store::Add { before + sum } else { sum }
        };
        let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
        assert!(same, "{rows} rows, {steps} steps, {store:?}: row {r}, column {c}: {found:e}, the twin {expected:e}");
    }
}

#[test]
fn amx_tiles_of_every_height_are_the_twin() {
    with_tiles(|| {
        let mut random = Random::new(3, 1);
        let mut word = || pair(random.normal() as f32, random.normal() as f32);
        for rows in 1..=ROWS {
            check(rows, 37, if rows.is_multiple_of(2) { Store::Add } else { Store::Replace }, &mut word);
        }
        check(16, 37, Store::Add, &mut word);
        check(32, 37, Store::Replace, &mut word);
    });
}

#[test]
fn amx_sums_of_every_length_are_the_twin() {
    with_tiles(|| {
        let mut random = Random::new(3, 2);
        let mut word = || pair(random.normal() as f32, random.normal() as f32);
        for steps in (1..=34).chain([48, 255, 256]) {
            check(1, steps, Store::Replace, &mut word);
        }
        for steps in [1, 15, 16, 17, 32, 256] {
            check(32, steps, Store::Replace, &mut word);
        }
    });
}

#[test]
fn amx_numbers_at_the_ends_of_the_range_are_the_twin() {
    with_tiles(|| {
        let mut random = Random::new(3, 3);
        // Products from subnormal numbers to infinity and NaN.
        let special = [0.0, -0.0, 1e-38, -1e-30, 1e-20, -3.0, 1e19, -1e19, f32::MAX, f32::INFINITY, f32::NAN];
        for count in [6, 8, special.len()] {
            let mut one = || special[random.below(count)] * (1.0 + random.below(8) as f32 / 8.0);
            for _ in 0..4 {
                check(5, 3, Store::Replace, || pair(one(), one()));
            }
        }
    });
}

#[test]
fn amx_rows_and_columns_do_not_depend_on_their_neighbours() {
    with_tiles(|| {
        let mut random = Random::new(3, 4);
        let steps = 41;
        let mut word = || pair(random.normal() as f32, random.normal() as f32);
        let (a, b) = (left(ROWS, steps, &mut word), (0..steps * WIDTH).map(|_| word()).collect::<Vec<f32>>());
        let product = |first: usize, rows: usize| {
            let mut out = vec![0f32; rows * WIDTH];
            // SAFETY: the thread is configured; the tile begins at a row of `a` with enough rows after it.
            unsafe {
                let a = a.as_ptr().add(first * LEFT);
                TILES[rows - 1](steps, a, LEFT, b.as_ptr(), NOWHERE, out.as_mut_ptr(), WIDTH, Store::Replace);
            }
            out
        };
        let all = product(0, ROWS);
        for row in 0..=GROUP {
            assert_eq!(product(row, 1), all[row * WIDTH..(row + 1) * WIDTH], "row {row}");
        }
    });
}
