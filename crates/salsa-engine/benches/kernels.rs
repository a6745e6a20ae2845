//! Speed of the engine's operations at training shapes. Throughput is in floating-point operations ("elements").
//!
//! ```text
//! cargo bench -p salsa-engine                      # everything
//! cargo bench -p salsa-engine -- linear/bf16       # what the name contains
//! ```

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use salsa_engine::backend::cpu::Buffer;
use salsa_engine::backend::{AttentionShape, Backend, LogprobQuery};
use salsa_engine::*;
use std::time::Duration;

const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];

/// Rows of a training batch.
const ROWS: usize = 2048;

/// Numbers from -0.1 to 0.1, evenly spread and cheap to make: data are also made for benchmarks that a filter skips.
fn numbers(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 8) as f32 / (1 << 24) as f32 * 0.2 - 0.1).collect()
}

/// The Llamas of `salsa bench`: `(name, hidden, layers, vocabulary, head_dim)`.
const SHAPES: [(&str, usize, usize, usize, usize); 2] = [("S", 256, 8, 4096, 32), ("M", 768, 12, 8192, 64)];

fn spec((_, hidden, layers, vocab_size, head_dim): (&str, usize, usize, usize, usize)) -> ModelSpec {
    ModelSpec {
        vocab_size,
        hidden_size: hidden,
        intermediate_size: hidden * 8 / 3 / 8 * 8,
        layers,
        heads: hidden / head_dim,
        kv_heads: hidden / head_dim,
        head_dim,
        max_positions: 4096,
        ..tiny()
    }
}

/// The three products of a linear layer: forward, gradient of the input, gradient of the weight.
fn linear(c: &mut Criterion) {
    let mut group = c.benchmark_group("linear");
    for dtype in DTYPES {
        let cpu = Cpu { dtype };
        for (out, input) in [(768, 256), (1360, 256), (256, 680), (2304, 768), (4096, 768), (768, 2048)] {
            let (x, d): (Buffer, Buffer) = (numbers(ROWS * input).into(), numbers(ROWS * out).into());
            let weight = cpu.matrix(&numbers(out * input), out, input);
            group.throughput(Throughput::Elements((2 * ROWS * out * input) as u64));
            let name = |what: &str| format!("{}/{what}/{out}x{input}", dtype.name());
            group.bench_function(name("forward"), |b| b.iter(|| cpu.linear(&x, &weight)));
            group.bench_function(name("input"), |b| b.iter(|| cpu.linear_backward_input(&d, &weight)));
            let mut d_weight = vec![0.0; out * input];
            let mut gradient = || cpu.linear_backward_weight(&d, &x, out, input, (&mut d_weight).into());
            group.bench_function(name("weight"), |b| b.iter(&mut gradient));
        }
    }
}

/// One token of each of sixteen sequences: products with weights that stay in the cache and with weights read from
/// memory, and attention to a past of 160 tokens.
fn decode(c: &mut Criterion) {
    const ROWS: usize = 16;
    let mut group = c.benchmark_group("decode");
    for dtype in DTYPES {
        let cpu = Cpu { dtype };
        for (out, input, count) in [(1360, 256, 1), (256, 680, 1), (4096, 768, 1), (4096, 768, 24), (768, 2048, 24)] {
            let x: Buffer = numbers(ROWS * input).into();
            let weights: Vec<_> = (0..count).map(|_| cpu.matrix(&numbers(out * input), out, input)).collect();
            group.throughput(Throughput::Elements((2 * ROWS * out * input * count) as u64));
            group.bench_function(format!("{}/linear/{out}x{input}/{count}", dtype.name()), |b| {
                b.iter(|| weights.iter().map(|weight| cpu.linear(&x, weight)).collect::<Vec<_>>())
            });
        }
        for (heads, head_dim) in [(8, 32), (12, 64)] {
            let shape = AttentionShape::new(heads, heads, head_dim);
            let mut cache = cpu.cache(ROWS, 160, &shape);
            let fused: Buffer = numbers(ROWS * shape.fused()).into();
            for position in 0..160 {
                let entries: Vec<_> = (0..ROWS).map(|row| (row, row, position)).collect();
                cpu.cache_store(&mut cache, &fused, &entries);
            }
            let entries: Vec<_> = (0..ROWS).map(|row| (row, 159)).collect();
            group.throughput(Throughput::Elements((4 * ROWS * 160 * shape.output()) as u64));
            group.bench_function(format!("{}/attention/{heads}x{head_dim}", dtype.name()), |b| {
                b.iter(|| cpu.cached_attention(&cache, &fused, &entries))
            });
        }
    }
}

/// Causal attention over eight sequences of 256 tokens.
fn attention(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    let cu_seqlens: Vec<usize> = (0..=8).map(|i| i * 256).collect();
    for dtype in DTYPES {
        let cpu = Cpu { dtype };
        for (heads, head_dim) in [(8, 32), (12, 64)] {
            let shape = AttentionShape::new(heads, heads, head_dim);
            let fused: Buffer = numbers(ROWS * shape.fused()).into();
            let d: Buffer = numbers(ROWS * shape.output()).into();
            // Half the squares of the sequences, two products forward, five backward.
            let products = (8 * 256 * 256 * shape.output()) as u64;
            group.throughput(Throughput::Elements(2 * products));
            let name = |what: &str| format!("{}/{what}/{heads}x{head_dim}", dtype.name());
            group.bench_function(name("forward"), |b| b.iter(|| cpu.attention(&fused, &cu_seqlens, &shape)));
            group.throughput(Throughput::Elements(5 * products));
            let (out, softmax) = cpu.attention(&fused, &cu_seqlens, &shape);
            let backward = || cpu.attention_backward(&d, (&out, &softmax), &fused, &cu_seqlens, &shape);
            group.bench_function(name("backward"), |b| b.iter(backward));
        }
    }
}

/// Log-prob, entropy and their gradient.
fn head(c: &mut Criterion) {
    let mut group = c.benchmark_group("head");
    for dtype in DTYPES {
        let cpu = Cpu { dtype };
        for (vocabulary, hidden) in [(4096, 256), (8192, 768)] {
            let x: Buffer = numbers(ROWS * hidden).into();
            let weight = cpu.matrix(&numbers(vocabulary * hidden), vocabulary, hidden);
            let targets: Vec<u32> = (0..ROWS as u32).collect();
            let query = LogprobQuery { targets: &targets, temperature: 1.0, softcap: None };
            let products = (2 * ROWS * vocabulary * hidden) as u64;
            let name = |what: &str| format!("{}/{what}/{vocabulary}x{hidden}", dtype.name());
            group.throughput(Throughput::Elements(products));
            group.bench_function(name("forward"), |b| b.iter(|| cpu.token_stats(&[(&x, &weight, 1.0)], query)));
            let log_sums = cpu.token_stats(&[(&x, &weight, 1.0)], query).log_sums;
            let (d, mut d_weight) = (vec![1e-3; ROWS], vec![0.0; vocabulary * hidden]);
            group.throughput(Throughput::Elements(3 * products));
            let mut backward =
                || cpu.token_stats_backward(&d, &x, &weight, query, &log_sums, Some((&mut d_weight).into()));
            group.bench_function(name("backward"), |b| b.iter(&mut backward));
        }
    }
}

/// A whole training step, and sixteen tokens decoded for each of sixteen prompts.
fn model(c: &mut Criterion) {
    let mut group = c.benchmark_group("model");
    for dtype in DTYPES {
        for shape in SHAPES {
            let spec = spec(shape);
            let mut kept = None;
            let new = || {
                Trainable::new(spec.clone(), spec.init(1), Cpu { dtype }.into(), Recompute::KeepActivations)
                    .expect("valid")
            };
            let (mut batch, mut query) = (Batch::new(), Query::default());
            for i in 0..ROWS / 256 {
                let tokens: Vec<u32> = (0..256).map(|t| ((i * 31 + t * 17) % spec.vocab_size) as u32).collect();
                let rows = batch.push(&tokens);
                query.push_logprobs(rows, &tokens, 1);
            }
            let d_logprobs = vec![-1.0 / query.rows.len() as f32; query.rows.len()];
            group.throughput(Throughput::Elements(
                (6 * ROWS * (spec.parameters() - spec.vocab_size * spec.hidden_size)) as u64,
            ));
            group.bench_function(format!("{}/train/{}", dtype.name(), shape.0), |b| {
                let model = kept.get_or_insert_with(new);
                b.iter(|| {
                    let (_, tape) = model.forward_train(&batch, &query);
                    model.backward(tape, &OutputGradient { d_logprobs: &d_logprobs, d_values: &[] });
                    model.adamw_step(&AdamW::default(), 1e-4).expect("finite")
                })
            });
            let prompt = |id: u64| Prompt { tokens: (0..32).map(|t| t + id as u32).collect(), id, sample: 0 };
            let prompts: Vec<Prompt> = (0..16).map(prompt).collect();
            let sampling = Sampling { max_new_tokens: 16, ..Sampling::default() };
            group.throughput(Throughput::Elements(256));
            group.bench_function(format!("{}/decode/{}", dtype.name(), shape.0), |b| {
                let model = kept.get_or_insert_with(new);
                b.iter(|| model.generate(&prompts, &sampling, &mut |_| ()))
            });
        }
    }
}

criterion_group! {
    name = kernels;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    targets = linear, decode, attention, head, model
}
criterion_main!(kernels);
