//! Tests of the GPU itself. Without one they print a line and pass.

use super::buffer::Buffer;
use super::card::Card;
use super::gemm::{Gemm, Matrix};
use super::kind::Kind;
use crate::weights::Numbers;
use std::sync::Arc;

fn card() -> Option<Arc<Card>> {
    Card::open(0).inspect_err(|error| eprintln!("skipped: no GPU ({error})")).ok()
}

/// Numbers that bfloat16 represents exactly, with products and short sums that f32 represents exactly.
fn numbers(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % 33) as f32 / 8.0 - 2.0
        })
        .collect()
}

fn bf16(numbers: &[f32]) -> Vec<[u8; 2]> {
    numbers.iter().map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect()
}

fn upload(card: &Arc<Card>, numbers: &[f32], kind: Kind) -> Buffer {
    let mut buffer = card.room(numbers.len(), kind);
    card.store(&mut buffer, 0, Numbers::F32(numbers));
    buffer
}

#[test]
fn numbers_come_back_as_they_went() {
    let Some(card) = card() else { return };
    for len in [0, 1, 1000, (16 << 20) / 4 + 3, (80 << 20) / 4 + 1] {
        let data = numbers(len as u64, len);
        assert!(card.download(&card.upload_f32(&data)) == data, "{len} numbers");
    }
    // Many small uploads cycle through the segments of the staging memory several times.
    let kept: Vec<_> = (0..400).map(|i| (i, card.upload_f32(&numbers(i, 200_000)))).collect();
    for (i, buffer) in kept {
        assert!(card.download(&buffer) == numbers(i, 200_000), "array {i}");
    }
    let words: Vec<u32> = (0..1000).map(|i| i * 4_000_037).collect();
    assert_eq!(card.download_words(&card.upload_words(&words)), words);
    assert_eq!(card.download(&card.zeros(77, Kind::Bf16)), vec![0.0; 77]);
}

#[test]
fn numbers_of_each_type_are_stored_in_arrays_of_each_type() {
    let Some(card) = card() else { return };
    for len in [5, 20_000_001] {
        let data = numbers(3, len);
        let halves = bf16(&data);
        for kind in [Kind::F32, Kind::Bf16] {
            for given in [Numbers::F32(&data), Numbers::Bf16(&halves)] {
                let mut buffer = card.zeros(len + 9, kind);
                card.store(&mut buffer, 7, given);
                let found = card.download(&buffer);
                assert!(found[7..7 + len] == data, "{len} numbers, {kind:?}");
                assert!(found[..7].iter().chain(&found[7 + len..]).all(|&x| x == 0.0));
            }
        }
    }
}

#[test]
fn rounding_is_to_the_nearest_even() {
    let Some(card) = card() else { return };
    let bits = [0x3f80_8000, 0x3f81_8000, 0x3f80_8001, 0x3f80_7fff, 0xbf80_8001, 0x7f80_0000, 0x7f7f_ffff, 1];
    let expected = [0x3f80, 0x3f82, 0x3f81, 0x3f80, 0xbf81, 0x7f80, 0x7f80, 0];
    let mut data = bits.map(f32::from_bits).to_vec();
    data.push(f32::NAN);
    let rounded = card.download(&card.upload_f32(&data).rounded());
    for (found, expected) in rounded.iter().zip(expected) {
        assert_eq!(found.to_bits(), expected << 16);
    }
    assert!(rounded[8].is_nan());
}

#[test]
fn clones_part_when_one_is_written() {
    let Some(card) = card() else { return };
    let mut first = card.upload_f32(&numbers(1, 100));
    let second = first.clone();
    assert_eq!(first.pointer(), second.pointer());
    let rounded = first.rounded();
    assert_eq!(rounded.pointer(), second.rounded().pointer(), "clones remember it together");
    card.store(&mut first, 0, Numbers::F32(&[9.0]));
    assert_ne!(first.pointer(), second.pointer());
    assert_eq!(card.download(&second), numbers(1, 100));
    assert_eq!(card.download(&first)[0], 9.0);
    assert_eq!(card.download(&first)[1..], numbers(1, 100)[1..]);
    assert_eq!(card.download(&first.rounded())[0], 9.0, "the rounded copy is of the new numbers");
    assert_eq!(card.download(&second.rounded()), numbers(1, 100));
    let pointer = first.pointer();
    assert_eq!(first.pointer_mut(), pointer, "an array that is not shared stays where it is");
}

#[test]
fn memory_is_used_again_and_counted() {
    let Some(card) = card() else { return };
    let first = card.room(1 << 20, Kind::F32);
    let address = first.pointer();
    assert_eq!(card.memory().in_use, 4 << 20);
    drop(first);
    let second = card.room((1 << 20) - 5, Kind::F32);
    assert_eq!(second.pointer(), address);
    let third = card.room(1 << 20, Kind::F32);
    assert_eq!(card.memory().peak, 8 << 20);
    drop((second, third));
    let count = card.memory();
    assert_eq!((count.in_use, count.reserved), (0, 8 << 20));
    assert!(count.total > 8 << 20);
    card.reset_peak();
    card.trim();
    assert_eq!((card.memory().peak, card.memory().reserved), (0, 0));
}

#[test]
fn full_memory_is_an_error_that_says_how_much_was_asked_for() {
    let Some(card) = card() else { return };
    let asked = card.memory().total + (4 << 20);
    let refused = std::panic::catch_unwind(|| card.room(asked / 4, Kind::F32));
    let payload = refused.expect_err("there is not so much memory");
    let error = payload.downcast_ref::<super::DeviceError>().expect("the payload is the error");
    assert!(matches!(error, super::DeviceError::OutOfMemory { .. }), "{error}");
    assert_eq!(card.download(&card.zeros(10, Kind::F32)), [0.0; 10], "the card goes on");
}

#[test]
fn threads_share_a_card() {
    let Some(card) = card() else { return };
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let card = &card;
            scope.spawn(move || {
                for i in 0..50 {
                    let data = numbers(seed * 100 + i, 10_000 + i as usize);
                    assert!(card.download(&card.upload_f32(&data).rounded()) == data);
                }
            });
        }
    });
    assert!(card.time(|| drop(card.zeros(1 << 24, Kind::F32))) > 0.0);
}

/// `d` of a product by plain loops, in f64.
fn plain(g: &Case, a: &[f32], b: &[f32], c: &[f32]) -> Vec<f64> {
    let mut d = Vec::new();
    for i in 0..g.m {
        for j in 0..g.n {
            let of = |data: &[f32], row: usize, column: usize, stride: usize, transposed: bool| {
                f64::from(data[if transposed { column * stride + row } else { row * stride + column }])
            };
            let sum: f64 = (0..g.k)
                .map(|l| of(a, i, l, g.strides[0], g.transposed[0]) * of(b, l, j, g.strides[1], g.transposed[1]))
                .sum();
            d.push(f64::from(g.alpha) * sum + f64::from(g.beta) * f64::from(c[i * g.strides[2] + j]));
        }
    }
    d
}

struct Case {
    m: usize,
    n: usize,
    k: usize,
    strides: [usize; 3],
    /// Numbers before each matrix, which move its address off the alignment of the array.
    first: [usize; 3],
    transposed: [bool; 2],
    kinds: [Kind; 2],
    alpha: f32,
    beta: f32,
    apart: bool,
}

fn check(card: &Arc<Card>, case: &Case) {
    let stored = |rows, columns, transposed| if transposed { columns } else { rows };
    let rows = [stored(case.m, case.k, case.transposed[0]), stored(case.k, case.n, case.transposed[1]), case.m];
    let len = |i: usize| case.first[i] + rows[i] * case.strides[i];
    let [a, b, c] = [0, 1, 2].map(|i| numbers(i as u64 + 5, len(i)));
    let [input, output] = case.kinds;
    let (on_a, on_b) = (upload(card, &a, input), upload(card, &b, input));
    let mut on_d = if case.apart { card.zeros(c.len(), output) } else { upload(card, &c, output) };
    let on_c = upload(card, &c, output);
    let at = |pointer, i: usize, kind| Matrix::at(pointer, case.first[i], kind, case.strides[i]);
    let turned = |matrix: Matrix, turn: bool| if turn { matrix.transposed() } else { matrix };
    let g = Gemm {
        m: case.m,
        n: case.n,
        k: case.k,
        alpha: case.alpha,
        beta: case.beta,
        a: turned(at(on_a.pointer(), 0, input), case.transposed[0]),
        b: turned(at(on_b.pointer(), 1, input), case.transposed[1]),
        c: case.apart.then(|| at(on_c.pointer(), 2, output)),
        d: at(on_d.pointer_mut(), 2, output),
    };
    card.gemm(g);
    let found = card.download(&on_d);
    let expected = plain(case, &a[case.first[0]..], &b[case.first[1]..], &c[case.first[2]..]);
    let tolerance = if output == Kind::Bf16 { 8e-3 } else { 1e-5 };
    let mut outside = if case.apart { vec![0.0; c.len()] } else { c };
    for i in 0..case.m {
        for j in 0..case.n {
            let at = case.first[2] + i * case.strides[2] + j;
            let (found, expected) = (f64::from(found[at]), expected[i * case.n + j]);
            assert!(
                (found - expected).abs() <= tolerance * (1.0 + expected.abs()),
                "[{i}, {j}] {found} {expected}: {g:?}"
            );
            outside[at] = found as f32;
        }
    }
    assert!(found == outside, "numbers beside the result were written: {g:?}");
}

#[test]
fn products_are_those_of_plain_loops() {
    let Some(card) = card() else { return };
    use Kind::{Bf16, F32};
    for kinds in [[F32, F32], [Bf16, F32], [Bf16, Bf16]] {
        for transposed in [[false, false], [false, true], [true, false], [true, true]] {
            // Plain shapes, odd ones, one row (decoding), a long sum, low-rank columns inside wider rows.
            for (m, n, k) in [(64, 128, 96), (7, 33, 5), (1, 256, 64), (8, 8, 4096), (100, 8, 64), (1, 1, 1)] {
                for (wider, first) in [(0, [0; 3]), (3, [1, 2, 3]), (16, [8; 3])] {
                    let row_a = if transposed[0] { m } else { k };
                    let row_b = if transposed[1] { k } else { n };
                    let strides = [row_a + wider, row_b + wider, n + wider];
                    for (alpha, beta, apart) in [(1.0, 0.0, false), (0.5, 1.0, false), (1.0, 1.0, true)] {
                        check(&card, &Case { m, n, k, strides, first, transposed, kinds, alpha, beta, apart });
                    }
                }
            }
        }
        for (m, n, k) in [(0, 5, 5), (5, 0, 5), (5, 5, 0)] {
            for (beta, apart) in [(0.0, false), (1.0, false), (1.0, true)] {
                let (strides, first, transposed) = ([8; 3], [0; 3], [false; 2]);
                let apart = apart && m * n > 0;
                check(&card, &Case { m, n, k, strides, first, transposed, kinds, alpha: 1.0, beta, apart });
            }
        }
    }
}

#[test]
fn products_are_the_same_each_time_and_when_tuned() {
    let Some(card) = card() else { return };
    let (m, n, k) = (16, 64, 1 << 15);
    let data: Vec<f32> = numbers(9, (m + n) * k).iter().map(|x| x * 0.37).collect();
    let operands = card.upload_f32(&data);
    let run = || {
        let mut d = card.room(m * n, Kind::F32);
        let a = Matrix::at(operands.pointer(), 0, Kind::F32, k);
        let b = Matrix::at(operands.pointer(), m * k, Kind::F32, k).transposed();
        let to = Matrix::at(d.pointer_mut(), 0, Kind::F32, n);
        card.gemm(Gemm { m, n, k, alpha: 1.0, beta: 0.0, a, b, c: None, d: to });
        card.download(&d)
    };
    let first = run();
    for _ in 0..20 {
        assert!(run() == first);
    }
    card.tune_products(true);
    for kinds in [[Kind::F32; 2], [Kind::Bf16; 2]] {
        let (strides, first, transposed) = ([96, 96, 128], [0; 3], [false, true]);
        let (m, n, k, alpha, beta, apart) = (64, 128, 96, 1.0, 1.0, false);
        check(&card, &Case { m, n, k, strides, first, transposed, kinds, alpha, beta, apart });
    }
}
