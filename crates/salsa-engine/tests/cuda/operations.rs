//! Each operation separately.

use super::*;
use salsa_engine::backend::{
    AdamWStep, AttentionShape, Choice, Columns, Decay, LogprobQuery, Moments, Part, RotaryTable,
};
use salsa_engine::{Activation, NormWeight};
use std::ops::Range;

fn add_up<B: Backend>(backend: &B, len: usize, add: impl FnOnce(Part<'_, B::Flat>)) -> Vec<f32> {
    let mut flat = backend.flat(normal(len + 3, 99));
    add(Part::new(&mut flat, 3..len + 3));
    let numbers = backend.numbers(&flat);
    assert_eq!(numbers[..3], normal(3, 99)[..], "an operation wrote before its place");
    numbers[3..].to_vec()
}

#[test]
fn rows() {
    let mut report = Report::default();
    for (cuda, tolerance) in cards() {
        for (rows, width) in [(1, 8), (5, 20), (67, 256), (33, 4096), (9, 9216)] {
            for kind in [NormWeight::Plain, NormWeight::OnePlus] {
                let case = format!("{} {rows}x{width} {kind:?}", cuda.dtype().name());
                let cpu = norm(&CPU, rows, width, kind);
                report.compare(&case, &norm(&cuda, rows, width, kind), &cpu, tolerance);
            }
            let case = format!("{} {rows}x{width}", cuda.dtype().name());
            report.compare(&case, &simple(&cuda, rows, width), &simple(&CPU, rows, width), tolerance);
        }
    }

    fn norm<B: Side>(b: &B, rows: usize, width: usize, kind: NormWeight) -> Vec<Named> {
        let (x, w) = (b.upload(&normal(rows * width, 1)), b.upload(&normal(width, 2)));
        let (out, inverse) = b.rms_norm(&x, &w, kind, 1e-5);
        let d = b.activations(&normal(rows * width, 3));
        let mut d_x = b.upload(&normal(rows * width, 4));
        let d_w = add_up(b, width, |part| b.rms_norm_backward(&d, &x, &inverse, &w, kind, &mut d_x, Some(part)));
        let mut frozen = b.upload(&normal(rows * width, 4));
        b.rms_norm_backward(&d, &x, &inverse, &w, kind, &mut frozen, None);
        vec![
            ("norm", b.download(&out)),
            ("inverse", b.download(&inverse)),
            ("norm d_x", b.download(&d_x)),
            ("norm d_w", d_w),
            ("norm d_x, weight frozen", b.download(&frozen)),
        ]
    }

    fn simple<B: Side>(b: &B, rows: usize, width: usize) -> Vec<Named> {
        let mut out = Vec::new();
        let tokens: Vec<u32> = (0..rows as u32).map(|r| r * 7 % 5).collect();
        let table = normal(5 * width, 5);
        out.push(("embed", b.download(&b.embed(&b.upload(&table), &tokens, width, 1.5))));
        let d = b.upload(&normal(rows * width, 6));
        let d_table = add_up(b, 5 * width, |part| b.embed_backward(&d, &tokens, width, 1.5, part));
        out.push(("embed d_table", d_table));
        let mut x = b.activations(&normal(rows * width, 7));
        b.add_bias(&mut x, &b.upload(&normal(width, 8)));
        out.push(("bias", b.download(&x)));
        let d = b.activations(&normal(rows * width, 9));
        out.push(("bias d_bias", add_up(b, width, |part| b.add_bias_backward(&d, part))));
        b.scale(&mut x, 0.75);
        out.push(("scale", b.download(&x)));
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let x = b.activations(&normal(rows * 2 * width, 10));
            out.push(("gated", b.download(&b.gated(&x, width, activation))));
            out.push(("gated d_x", b.download(&b.gated_backward(&d, &x, width, activation))));
        }
        let some: Vec<u32> = (0..rows as u32).rev().step_by(2).collect();
        let part = b.gather(&d, width, &some);
        out.push(("gather", b.download(&part)));
        let mut sum = b.zeros(rows * width);
        b.scatter_add(&mut sum, width, &some, &part);
        b.scatter_add(&mut sum, width, &some, &part);
        out.push(("scatter", b.download(&sum)));
        let (x, w) = (b.activations(&normal(rows * width, 11)), b.upload(&normal(width, 12)));
        out.push(("values", b.scalar_head(&x, &w)));
        let d = normal(rows, 13);
        let mut d_x = None;
        let d_w = add_up(b, width, |part| d_x = Some(b.scalar_head_backward(&d, &x, &w, Some(part))));
        out.push(("values d_x", b.download(&d_x.expect("it was computed"))));
        out.push(("values d_w", d_w));
        out
    }
}

#[test]
fn products() {
    let mut report = Report::default();
    for (cuda, tolerance) in cards() {
        for (rows, out, input) in [(1, 8, 8), (7, 37, 20), (64, 256, 136), (130, 1000, 512)] {
            let case = format!("{} {rows}: {out}x{input}", cuda.dtype().name());
            report.compare(&case, &linear(&cuda, rows, out, input), &linear(&CPU, rows, out, input), tolerance);
        }
        for (rows, width, input, rank) in [(5, 24, 16, 4), (70, 136, 64, 16)] {
            let case = format!("{} columns {rows}: {width}x{input}/{rank}", cuda.dtype().name());
            let on_cpu = columns(&CPU, rows, width, input, rank);
            report.compare(&case, &columns(&cuda, rows, width, input, rank), &on_cpu, tolerance);
        }
    }

    fn linear<B: Side>(b: &B, rows: usize, out: usize, input: usize) -> Vec<Named> {
        let x = b.activations(&normal(rows * input, 1));
        let w = b.matrix(&normal(out * input, 2), out, input);
        let residual = b.upload(&normal(rows * out, 3));
        let d = b.activations(&normal(rows * out, 4));
        let d_w = add_up(b, out * input, |part| b.linear_backward_weight(&d, &x, out, input, part));
        let table = b.embed_packed(&w, &[out as u32 - 1, 0, 3], 2.0);
        vec![
            ("linear", b.download(&b.linear(&x, &w))),
            ("linear onto", b.download(&b.linear_onto(&x, &w, &residual))),
            ("linear of f32", b.download(&b.linear(&b.upload(&normal(rows * input, 5)), &w))),
            ("linear d_x", b.download(&b.linear_backward_input(&d, &w))),
            ("linear d_w", d_w),
            ("embed packed", b.download(&table)),
        ]
    }

    /// Two adjacent factors, the second one added to the last columns.
    fn columns<B: Side>(b: &B, rows: usize, width: usize, input: usize, rank: usize) -> Vec<Named> {
        let x = b.activations(&normal(rows * input, 1));
        let a = b.matrix(&normal(2 * rank * input, 2), 2 * rank, input);
        let z = b.linear(&x, &a);
        let (inner, count) = (Columns { first: rank, count: rank, of: 2 * rank }, width / 2);
        let outer = Columns { first: width - count, count, of: width };
        let w = b.matrix(&normal(count * rank, 3), count, rank);
        let mut onto_f32 = b.upload(&normal(rows * width, 4));
        b.linear_columns(&z, inner, &w, &mut onto_f32, outer);
        let mut onto = b.activations(&normal(rows * width, 4));
        b.linear_columns(&z, inner, &w, &mut onto, outer);
        let d = b.activations(&normal(rows * width, 5));
        let mut d_z = b.zeros(rows * 2 * rank);
        b.linear_columns_backward_input(&d, outer, &w, &mut d_z, inner);
        let d_w = add_up(b, count * rank, |part| b.linear_columns_backward_weight(&d, outer, &z, inner, part));
        let from_residual = b.upload(&normal(rows * width, 5));
        let d_w_f32 =
            add_up(b, count * rank, |part| b.linear_columns_backward_weight(&from_residual, outer, &z, inner, part));
        vec![
            ("columns onto f32", b.download(&onto_f32)),
            ("columns", b.download(&onto)),
            ("columns d_z", b.download(&d_z)),
            ("columns d_w", d_w),
            ("columns d_w of f32", d_w_f32),
        ]
    }
}

/// Sequence lengths around the sizes of tiles; one long sequence; enough sequences for blocks on every multiprocessor.
const LENGTHS: [&[usize]; 4] = [&[1, 5, 17], &[63, 64, 65, 1, 130], &[300], &[20; 140]];

fn cu_seqlens(lengths: &[usize]) -> Vec<usize> {
    let mut ends = vec![0];
    lengths.iter().for_each(|len| ends.push(ends.last().expect("it begins with one") + len));
    ends
}

fn attention_shapes() -> Vec<AttentionShape> {
    let shape =
        |heads, kv_heads, head_dim, window| AttentionShape { window, ..AttentionShape::new(heads, kv_heads, head_dim) };
    vec![
        shape(4, 2, 8, None),
        shape(2, 1, 24, Some(4)),
        shape(4, 4, 16, None),
        shape(4, 1, 32, Some(20)),
        shape(4, 2, 64, None),
        shape(4, 1, 64, Some(33)),
        shape(4, 4, 128, None),
        shape(8, 1, 256, None),
        shape(2, 2, 256, Some(70)),
    ]
}

#[test]
fn attention() {
    let mut report = Report::default();
    for (cuda, tolerance) in cards() {
        for shape in attention_shapes() {
            for lengths in LENGTHS {
                let case = format!("{} {shape:?} {lengths:?}", cuda.dtype().name());
                let on_cpu = forward_and_back(&CPU, &shape, &cu_seqlens(lengths));
                let on_gpu = forward_and_back(&cuda, &shape, &cu_seqlens(lengths));
                report.compare(&case, &on_gpu, &on_cpu, 2.0 * tolerance);
                assert_eq!(on_gpu, forward_and_back(&cuda, &shape, &cu_seqlens(lengths)), "{case}: not repeatable");
            }
        }
    }

    fn forward_and_back<B: Side>(b: &B, shape: &AttentionShape, cu_seqlens: &[usize]) -> Vec<Named> {
        let rows = *cu_seqlens.last().expect("it begins with one");
        let fused = b.activations(&normal(rows * shape.fused(), 1));
        let d = b.activations(&normal(rows * shape.output(), 2));
        let (out, softmax) = b.attention(&fused, cu_seqlens, shape);
        let d_fused = b.attention_backward(&d, (&out, &softmax), &fused, cu_seqlens, shape);
        vec![("attention", b.download(&out)), ("attention d_fused", b.download(&d_fused))]
    }
}

#[test]
fn heads_before_attention() {
    let mut report = Report::default();
    for (cuda, tolerance) in cards() {
        for shape in attention_shapes() {
            let case = format!("{} {shape:?}", cuda.dtype().name());
            report.compare(&case, &all(&cuda, &shape), &all(&CPU, &shape), tolerance);
        }
    }

    fn all<B: Side>(b: &B, shape: &AttentionShape) -> Vec<Named> {
        let (rows, half) = (29, shape.head_dim / 2);
        let positions: Vec<u32> = (0..rows as u32).map(|r| r * 5 % 23).collect();
        let angle = normal(23 * half, 1);
        let (cos, sin) = angle.iter().map(|a| (a.cos(), a.sin())).unzip();
        let angles = b.angles(RotaryTable { half, cos, sin });
        let numbers = normal(rows * shape.fused(), 2);
        let (mut there, mut back) = (b.activations(&numbers), b.activations(&numbers));
        b.rotary(&mut there, &positions, &angles, shape);
        b.rotary_backward(&mut back, &positions, &angles, shape);
        let mut out = vec![("rotary", b.download(&there)), ("rotary back", b.download(&back))];
        let heads: [Range<usize>; 2] = [0..shape.heads, shape.heads..shape.heads + shape.kv_heads];
        for heads in heads {
            let (raw, weight) = (b.activations(&numbers), b.upload(&normal(shape.head_dim, 3)));
            let mut normed = raw.clone();
            let inverse = b.head_norm(&mut normed, shape, heads.clone(), &weight, NormWeight::Plain, 1e-5);
            let mut d = b.activations(&normal(rows * shape.fused(), 4));
            let d_weight = add_up(b, shape.head_dim, |part| {
                b.head_norm_backward(
                    &mut d,
                    &raw,
                    &inverse,
                    shape,
                    heads.clone(),
                    &weight,
                    NormWeight::Plain,
                    Some(part),
                );
            });
            out.extend([("head norm", b.download(&normed)), ("head norm inverse", b.download(&inverse))]);
            out.extend([("head norm d", b.download(&d)), ("head norm d_w", d_weight)]);
        }
        out
    }
}

#[test]
fn decoding_attends_to_what_was_stored() {
    let mut report = Report::default();
    for (cuda, tolerance) in cards() {
        for shape in attention_shapes() {
            let case = format!("{} {shape:?}", cuda.dtype().name());
            report.compare(&case, &decode(&cuda, &shape), &decode(&CPU, &shape), 2.0 * tolerance);
        }
    }

    fn decode<B: Side>(b: &B, shape: &AttentionShape) -> Vec<Named> {
        let (slots, capacity) = (4, 700);
        let mut cache = b.cache(slots, capacity, shape);
        let lengths = [1usize, 40, 257, 699];
        let rows: usize = lengths.iter().sum();
        let fused = b.activations(&normal(rows * shape.fused(), 1));
        let mut entries = Vec::new();
        for (slot, len) in lengths.into_iter().enumerate() {
            let first = entries.len();
            entries.extend((0..len).map(|position| (first + position, slot, position)));
        }
        b.cache_store(&mut cache, &fused, &entries);
        let mut out = Vec::new();
        let new = b.activations(&normal(4 * shape.fused(), 2));
        b.cache_store(&mut cache, &new, &[(0, 0, 1), (1, 1, 40), (2, 2, 257), (3, 3, 699)]);
        let at = b.cached_attention(&cache, &new, &[(0, 1), (1, 40), (2, 257), (3, 699)]);
        out.push(("all slots", b.download(&at)));
        b.cache_copy(&mut cache, 2, 0, 200);
        b.cache_store(&mut cache, &new, &[(1, 0, 200)]);
        let some = b.activations(&normal(2 * shape.fused(), 3));
        out.push(("copied", b.download(&b.cached_attention(&cache, &some, &[(1, 39), (0, 200)]))));
        out
    }
}

#[test]
fn log_probs_and_their_gradient() {
    let mut report = Report::default();
    for (cuda, tolerance) in cards() {
        for (rows, hidden, vocabulary) in [(1, 8, 11), (37, 64, 1003), (300, 128, 32000)] {
            let case = format!("{} {rows}x{hidden}x{vocabulary}", cuda.dtype().name());
            let on_cpu = all(&CPU, rows, hidden, vocabulary);
            report.compare(&case, &all(&cuda, rows, hidden, vocabulary), &on_cpu, 2.0 * tolerance);
        }
    }

    fn all<B: Side>(b: &B, rows: usize, hidden: usize, vocabulary: usize) -> Vec<Named> {
        let small = |len, stream| normal(len, stream).iter().map(|x| x * 0.25).collect::<Vec<_>>();
        let x = b.activations(&small(rows * hidden, 1));
        let head = b.matrix(&small(vocabulary * hidden, 2), vocabulary, hidden);
        let targets: Vec<u32> = (0..rows).map(|r| (r * 97 % vocabulary) as u32).collect();
        let query = LogprobQuery { targets: &targets, temperature: 0.7, softcap: None };
        let stats = b.token_stats(&[(&x, &head, 1.0)], query);
        let d = normal(rows, 3);
        let mut d_x = None;
        let d_w = add_up(b, vocabulary * hidden, |part| {
            d_x = Some(b.token_stats_backward(&d, &x, &head, query, &stats.log_sums, Some(part)));
        });
        let frozen = b.token_stats_backward(&d, &x, &head, query, &stats.log_sums, None);
        let other = b.activations(&small(rows * hidden, 4));
        let mixed = b.token_stats(&[(&x, &head, 0.75), (&other, &head, 0.25)], query);
        vec![
            ("log-probs", stats.logprobs),
            ("entropies", stats.entropies),
            ("log-sums", stats.log_sums),
            ("log-probs d_x", b.download(&d_x.expect("it was computed"))),
            ("log-probs d_w", d_w),
            ("log-probs d_x, head frozen", b.download(&frozen)),
            ("geometric mean", mixed.logprobs),
        ]
    }
}

#[test]
fn draws() {
    for (cuda, _) in cards() {
        let (rows, hidden, vocabulary) = (500, 16, 300);
        // Every row has the same logits, so that all tokens are drawn from one distribution.
        let x = normal(hidden, 1).repeat(rows);
        let weights: Vec<f32> = normal(vocabulary * hidden, 2).iter().map(|w| w * 0.5).collect();
        let uniforms: Vec<f32> = (0..rows).map(|r| (r as f32 + 0.5) / rows as f32).collect();
        for (temperature, top_k, top_p) in
            [(0.0, 0, 1.0), (1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 7, 1.0), (1.0, 0, 0.5), (1.3, 20, 0.8)]
        {
            let choice = Choice { temperature, top_k, top_p };
            let [on_cpu, on_gpu] =
                [draw(&CPU, &x, &weights, &choice, &uniforms), draw(&cuda, &x, &weights, &choice, &uniforms)];
            let case = format!("{} {choice:?}", cuda.dtype().name());
            let shares = |drawn: &[(u32, f32)]| {
                let mut shares = vec![0f64; vocabulary];
                drawn.iter().for_each(|(token, _)| shares[*token as usize] += 1.0 / rows as f64);
                shares
            };
            // Equal up to the order of the tokens along the uniform number.
            let (a, b) = (shares(&on_gpu), shares(&on_cpu));
            let far: f64 = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).sum();
            assert!(far < 0.12, "{case}: the tokens drawn differ by {far:.3}");
            for (token, logprob) in &on_gpu {
                if let Some((_, expected)) = on_cpu.iter().find(|(other, _)| other == token) {
                    assert!((logprob - expected).abs() < 0.05, "{case}: token {token} has {logprob}, not {expected}");
                }
            }
        }
    }

    fn draw<B: Side>(b: &B, x: &[f32], w: &[f32], choice: &Choice, uniforms: &[f32]) -> Vec<(u32, f32)> {
        let hidden = x.len() / uniforms.len();
        let head = b.matrix(w, w.len() / hidden, hidden);
        b.draw(&b.activations(x), &head, None, choice, uniforms)
    }
}

#[test]
fn rankings() {
    let mut report = Report::default();
    for (cuda, tolerance) in cards() {
        for (rows, hidden, vocabulary) in [(1, 16, 30), (70, 64, 3000)] {
            let case = format!("{} {rows}: {vocabulary}x{hidden}", cuda.dtype().name());
            let on_cpu = rank(&CPU, rows, hidden, vocabulary);
            report.compare(&case, &rank(&cuda, rows, hidden, vocabulary), &on_cpu, tolerance);
        }
    }

    fn rank<B: Side>(b: &B, rows: usize, hidden: usize, vocabulary: usize) -> Vec<Named> {
        let head = b.matrix(&normal(vocabulary * hidden, 2), vocabulary, hidden);
        let targets: Vec<u32> = (0..rows as u32).map(|row| row * 7 % vocabulary as u32).collect();
        let ranked = b.rank(&b.activations(&normal(rows * hidden, 1)), &head, None, &targets, 5);
        let likeliest = ranked.iter().flat_map(|ranking| ranking.top.iter().map(|(_, logprob)| *logprob));
        vec![
            ("log-probs of the targets", ranked.iter().map(|ranking| ranking.logprob).collect()),
            ("log-probs of the likeliest", likeliest.collect()),
        ]
    }
}

#[test]
fn optimizer_steps() {
    let mut report = Report::default();
    for (cuda, _) in cards() {
        for len in [1, 1000, 70_001] {
            report.compare(&format!("{len}"), &steps(&cuda, len), &steps(&CPU, len), 2e-6);
        }
    }

    fn steps<B: Side>(b: &B, len: usize) -> Vec<Named> {
        let (mut weights, mut gradients) = (b.flat(normal(len + 5, 1)), b.flat(normal(len + 5, 2)));
        let (mut m, mut v) = (b.flat_zeros(len + 5), b.flat_zeros(len + 5));
        let squares = b.sum_of_squares(&gradients) as f32;
        let step = AdamWStep {
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.1,
            bias_correction1: 0.1,
            bias_correction2: 0.01,
            gradient_scale: 0.5,
        };
        for decay in [Decay::Yes, Decay::No] {
            let of = Moments { weights: &mut weights, gradients: &mut gradients, m: &mut m, v: &mut v };
            b.adamw(of, 2..len + 2, decay, &step);
        }
        let mut matrix = b.allocate_matrix(1, len + 5);
        b.refresh_from(&mut matrix, &weights, 0..len + 5);
        let copy = b.download(&b.copy(&weights, 1..len + 1));
        let numbers = |flat| b.numbers(flat).into_owned();
        let (weights, gradients) = (numbers(&weights), numbers(&gradients));
        assert!(gradients[2..len + 2].iter().all(|g| *g == 0.0), "the gradient was not cleared");
        vec![
            ("weights", weights),
            ("gradients", gradients),
            ("m", numbers(&m)),
            ("v", numbers(&v)),
            ("copy", copy),
            ("squares", vec![squares]),
        ]
    }
}
