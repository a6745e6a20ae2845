//! Every gradient against finite differences: each operation separately, then whole models of every kind.

use salsa_engine::backend::cpu::Buffer;
use salsa_engine::backend::{AttentionShape, Backend, LogprobQuery, RotaryTable};
use salsa_engine::random::Random;
use salsa_engine::*;
use shapes::*;

mod shapes;

/// Products in f32: precise enough for finite differences.
const CPU: Cpu = Cpu { dtype: Dtype::F32 };

fn normal(len: usize, stream: u64) -> Vec<f32> {
    let mut random = Random::new(11, stream);
    (0..len).map(|_| random.normal() as f32).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// The slope of `f` at `x` along several random directions must be `gradient . direction`.
fn assert_gradient(what: &str, x: &[f32], gradient: &[f32], f: impl Fn(&[f32]) -> f64) {
    let size = dot(gradient, gradient).sqrt();
    assert!(size > 1e-6, "{what}: the gradient is zero, so the test would say nothing");
    for trial in 0..3 {
        let mut direction = normal(x.len(), 1000 + trial);
        // Mostly along the gradient, so that the slope is not small by chance.
        for (d, g) in direction.iter_mut().zip(gradient) {
            *d = *d / (x.len() as f32).sqrt() + g / size as f32;
        }
        let step = 4e-3f32;
        let at = |sign: f32| f(&x.iter().zip(&direction).map(|(x, d)| x + sign * step * d).collect::<Vec<_>>());
        let slope = (at(1.0) - at(-1.0)) / f64::from(2.0 * step);
        let expected = dot(gradient, &direction);
        let error = (slope - expected).abs() / (expected.abs() + 0.05 * size);
        assert!(error < 0.02, "{what}: slope {slope}, gradient says {expected}");
    }
}

const T: usize = 7;
const H: usize = 20;

#[test]
fn rms_norm() {
    for kind in [NormWeight::Plain, NormWeight::OnePlus] {
        let (x, w, c) = (normal(T * H, 1), normal(H, 2), normal(T * H, 3));
        let loss = |x: &[f32], w: &[f32]| dot(&CPU.rms_norm(&x.to_vec().into(), &w.to_vec().into(), kind, 1e-5).0, &c);
        let (buffer, weight): (Buffer, Buffer) = (x.clone().into(), w.clone().into());
        let (_, inverse) = CPU.rms_norm(&buffer, &weight, kind, 1e-5);
        let (mut d_x, mut d_w) = (Buffer::zeros(T * H), vec![0.0; H]);
        CPU.rms_norm_backward(&c.clone().into(), &buffer, &inverse, &weight, kind, &mut d_x, Some((&mut d_w).into()));
        assert_gradient("rms_norm d_x", &x, &d_x, |x| loss(x, &w));
        assert_gradient("rms_norm d_w", &w, &d_w, |w| loss(&x, w));
    }
}

#[test]
fn linear() {
    let (out, input) = (37, H);
    let (x, w, c) = (normal(T * input, 1), normal(out * input, 2), normal(T * out, 3));
    let loss = |x: &[f32], w: &[f32]| dot(&CPU.linear(&x.to_vec().into(), &CPU.matrix(w, out, input)), &c);
    let d_out: Buffer = c.clone().into();
    let d_x = CPU.linear_backward_input(&d_out, &CPU.matrix(&w, out, input));
    let mut d_w = vec![0.0; out * input];
    CPU.linear_backward_weight(&d_out, &x.clone().into(), out, input, (&mut d_w).into());
    assert_gradient("linear d_x", &x, &d_x, |x| loss(x, &w));
    assert_gradient("linear d_w", &w, &d_w, |w| loss(&x, w));
}

#[test]
fn bias_embedding_and_scalar_head() {
    let (b, c) = (normal(H, 1), normal(T * H, 2));
    let mut d_b = vec![0.0; H];
    CPU.add_bias_backward(&c.clone().into(), (&mut d_b).into());
    let zeros = vec![0.0; T * H];
    assert_gradient("bias", &b, &d_b, |b| {
        let mut x: Buffer = zeros.clone().into();
        CPU.add_bias(&mut x, &b.to_vec().into());
        dot(&x, &c)
    });

    let (table, tokens) = (normal(5 * H, 3), [4, 0, 4, 2, 1, 4, 0]);
    let mut d_table = vec![0.0; 5 * H];
    CPU.embed_backward(&c.clone().into(), &tokens, H, 1.5, (&mut d_table).into());
    assert_gradient("embedding", &table, &d_table, |t| dot(&CPU.embed(&t.to_vec().into(), &tokens, H, 1.5), &c));

    let (x, w, c) = (normal(T * H, 4), normal(H, 5), normal(T, 6));
    let loss = |x: &[f32], w: &[f32]| dot(&CPU.scalar_head(&x.to_vec().into(), &w.to_vec().into()), &c);
    let mut d_w = vec![0.0; H];
    let d_x = CPU.scalar_head_backward(&c, &x.clone().into(), &w.clone().into(), Some((&mut d_w).into()));
    assert_gradient("scalar head d_x", &x, &d_x, |x| loss(x, &w));
    assert_gradient("scalar head d_w", &w, &d_w, |w| loss(&x, w));
}

#[test]
fn gated_activations() {
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let (x, c) = (normal(T * 2 * H, 1), normal(T * H, 2));
        let d_x = CPU.gated_backward(&c.clone().into(), &x.clone().into(), H, activation);
        assert_gradient("gated", &x, &d_x, |x| dot(&CPU.gated(&x.to_vec().into(), H, activation), &c));
    }
}

fn attention_shape(window: Option<usize>) -> AttentionShape {
    AttentionShape { window, ..AttentionShape::new(4, 2, 6) }
}

#[test]
fn rotary_positions() {
    let shape = attention_shape(None);
    let angles = normal(T * 3, 9);
    let table = RotaryTable {
        half: 3,
        cos: angles.iter().map(|a| a.cos()).collect(),
        sin: angles.iter().map(|a| a.sin()).collect(),
    };
    let positions: Vec<u32> = (0..T as u32).collect();
    let (x, c) = (normal(T * shape.fused(), 1), normal(T * shape.fused(), 2));
    let mut d_x: Buffer = c.clone().into();
    CPU.rotary_backward(&mut d_x, &positions, &table, &shape);
    assert_gradient("rotary", &x, &d_x, |x| {
        let mut x: Buffer = x.to_vec().into();
        CPU.rotary(&mut x, &positions, &table, &shape);
        dot(&x, &c)
    });
}

#[test]
fn head_norms() {
    let shape = attention_shape(None);
    // A norm for each head, and one for all; both multipliers.
    let cases = [(0..4, 6, NormWeight::Plain), (4..6, 6, NormWeight::OnePlus), (4..6, 12, NormWeight::Plain)];
    for (heads, width, kind) in cases {
        let (x, w, c) = (normal(T * shape.fused(), 1), normal(width, 2), normal(T * shape.fused(), 3));
        let loss = |x: &[f32], w: &[f32]| {
            let mut x: Buffer = x.to_vec().into();
            CPU.head_norm(&mut x, &shape, heads.clone(), &w.to_vec().into(), kind, 1e-5);
            dot(&x, &c)
        };
        let inverse = CPU.head_norm(&mut x.clone().into(), &shape, heads.clone(), &w.clone().into(), kind, 1e-5);
        let (mut d_x, mut d_w): (Buffer, _) = (c.clone().into(), vec![0.0; width]);
        let (raw, weight): (Buffer, Buffer) = (x.clone().into(), w.clone().into());
        CPU.head_norm_backward(&mut d_x, &raw, &inverse, &shape, heads.clone(), &weight, kind, Some((&mut d_w).into()));
        assert_gradient("head norm d_x", &x, &d_x, |x| loss(x, &w));
        assert_gradient("head norm d_w", &w, &d_w, |w| loss(&x, w));
    }
}

#[test]
fn attention() {
    // Sequences longer than a block of queries, and a window shorter than a sequence.
    let plain = attention_shape(None);
    let capped = AttentionShape { scale: 0.9, softcap: Some(1.5), ..plain };
    let cases = [
        (vec![0, 3, 4, 9], plain),
        (vec![0, 60, 61], plain),
        (vec![0, 9], attention_shape(Some(4))),
        (vec![0, 60, 61], capped),
        (vec![0, 9], AttentionShape { window: Some(4), ..capped }),
    ];
    for (cu_seqlens, shape) in cases {
        let rows = *cu_seqlens.last().unwrap();
        let (x, c) = (normal(rows * shape.fused(), 1), normal(rows * shape.output(), 2));
        let fused: Buffer = x.clone().into();
        let (out, softmax) = CPU.attention(&fused, &cu_seqlens, &shape);
        let d_x = CPU.attention_backward(&c.clone().into(), (&out, &softmax), &fused, &cu_seqlens, &shape);
        assert_gradient("attention", &x, &d_x, |x| dot(&CPU.attention(&x.to_vec().into(), &cu_seqlens, &shape).0, &c));
    }
}

#[test]
fn token_logprobs() {
    // A vocabulary of more than one block, the last one incomplete.
    let (vocabulary, temperature) = (1100, 0.7);
    let (x, w, c) = (normal(T * H, 1), normal(vocabulary * H, 2), normal(T, 3));
    let targets: Vec<u32> = (0..T as u32).map(|t| t * 170).collect();
    for softcap in [None, Some(4.0)] {
        let query = LogprobQuery { targets: &targets, temperature, softcap };
        let stats = |x: &[f32], w: &[f32]| {
            let (x, w) = (Buffer::from(x.to_vec()), CPU.matrix(w, vocabulary, H));
            CPU.token_stats(&[(&x, &w, 1.0)], query)
        };
        let mut d_w = vec![0.0; vocabulary * H];
        let head = CPU.matrix(&w, vocabulary, H);
        let log_sums = stats(&x, &w).log_sums;
        let d_x = CPU.token_stats_backward(&c, &x.clone().into(), &head, query, &log_sums, Some((&mut d_w).into()));
        assert_gradient("log-probs d_x", &x, &d_x, |x| dot(&stats(x, &w).logprobs, &c));
        assert_gradient("log-probs d_w", &w, &d_w, |w| dot(&stats(&x, w).logprobs, &c));
    }
}

#[test]
fn log_probs_and_entropies_are_those_of_the_definition() {
    let vocabulary = 1100;
    let (x, w) = (normal(H, 1), normal(vocabulary * H, 2));
    let (buffer, head) = (Buffer::from(x.clone()), CPU.matrix(&w, vocabulary, H));
    for softcap in [None, Some(3.0f32)] {
        let query = LogprobQuery { targets: &[1050], temperature: 2.0, softcap };
        let stats = CPU.token_stats(&[(&buffer, &head, 1.0)], query);
        let cap = |logit: f64| softcap.map(f64::from).map_or(logit, |cap| cap * (logit / cap).tanh());
        let logits: Vec<f64> = w.chunks(H).map(|row| cap(dot(row, &x)) / 2.0).collect();
        let log_sum = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
        let entropy: f64 = logits.iter().map(|l| -(l - log_sum) * (l - log_sum).exp()).sum();
        assert!((f64::from(stats.logprobs[0]) - (logits[1050] - log_sum)).abs() < 1e-4);
        assert!((f64::from(stats.entropies[0]) - entropy).abs() < 1e-4, "{} {entropy}", stats.entropies[0]);
    }
}

/// Every kind of model that the shape can describe.
fn kinds() -> Vec<(&'static str, ModelSpec)> {
    let scaling =
        RopeScaling::Llama3 { factor: 4.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 16 };
    vec![
        ("llama", tiny()),
        ("llama3", ModelSpec { rope: Rope { theta: 500.0, scaling }, ..tiny() }),
        ("tied", ModelSpec { tied_embeddings: true, ..tiny() }),
        ("mistral", ModelSpec { sliding_window: Some(3), ..tiny() }),
        (
            "gemma",
            ModelSpec {
                norm: NormWeight::OnePlus,
                activation: Activation::GeluTanh,
                embedding_scale: 8f32.sqrt(),
                head_dim: 6,
                tied_embeddings: true,
                ..tiny()
            },
        ),
        ("qwen2", ModelSpec { qkv_bias: true, ..tiny() }),
        ("qwen3", ModelSpec { qk_norm: true, ..tiny() }),
        ("gemma2", gemma2()),
        ("gemma3", gemma3()),
        ("olmo2", olmo2()),
        ("granite", granite()),
        ("smollm3", smollm3()),
        ("phi3", phi3()),
        ("yarn", ModelSpec { rope: yarn(), ..tiny() }),
        ("dynamic", ModelSpec { rope: dynamic(), ..tiny() }),
        ("value head", tiny().with_head(Head::LanguageModelWithValue)),
        ("reward model", tiny().with_head(Head::Scalar)),
    ]
}

/// Larger than `init`'s weights, so that every part of the model matters.
fn strong(spec: &ModelSpec) -> Vec<f32> {
    spec.init(3).iter().zip(normal(spec.parameters(), 77)).map(|(w, n)| w + 0.3 * n).collect()
}

fn batch_and_query(spec: &ModelSpec) -> (Batch, Query) {
    let (mut batch, mut query) = (Batch::new(), Query { temperature: 0.8, ..Query::default() });
    for tokens in [&[1, 4, 9, 2, 7, 3][..], &[5], &[8, 1, 0, 10]] {
        let rows = batch.push(tokens);
        if spec.head != Head::Scalar {
            query.push_logprobs(rows.clone(), tokens, 1);
        }
        if spec.head != Head::LanguageModel {
            query.value_rows.extend(rows.map(|row| row as u32));
        }
    }
    (batch, query)
}

#[test]
fn whole_models() {
    for (name, spec) in kinds() {
        let weights = strong(&spec);
        let (batch, query) = batch_and_query(&spec);
        let (c, d) = (normal(query.rows.len(), 5), normal(query.value_rows.len(), 6));
        let loss = |weights: &[f32]| {
            let output = Model::new(spec.clone(), weights, Device::default()).unwrap().forward(&batch, &query);
            dot(&output.logprobs, &c) + dot(&output.values, &d)
        };
        let gradient = |recompute| {
            let mut model = Trainable::new(spec.clone(), weights.clone(), Device::default(), recompute).unwrap();
            let (_, tape) = model.forward_train(&batch, &query);
            model.backward(tape, &OutputGradient { d_logprobs: &c, d_values: &d });
            model.gradients().to_vec()
        };
        let full = gradient(Recompute::KeepActivations);
        assert_eq!(full, gradient(Recompute::PerLayer), "{name}: recompute changes bits");
        for tensor in spec.tensors() {
            let range = tensor.range.clone();
            assert_gradient(
                &format!("{name} {}", tensor.name),
                &weights[range.clone()],
                &full[range.clone()],
                |part| {
                    let mut weights = weights.clone();
                    weights[range.clone()].copy_from_slice(part);
                    loss(&weights)
                },
            );
        }
    }
}

#[test]
fn rows_computed_once_have_the_gradients_of_all_their_copies() {
    let sequences = [&[1, 4, 9, 2, 7, 3][..], &[1, 4, 9, 5], &[1, 4, 9, 5, 0], &[8, 1], &[8, 1], &[1, 4]];
    for (name, spec) in kinds() {
        let gradient = |mut batch: Batch, recompute| {
            let mut query = Query { temperature: 0.8, ..Query::default() };
            for tokens in sequences {
                let rows = batch.push(tokens);
                if spec.head != Head::Scalar {
                    query.push_logprobs(rows.clone(), tokens, 1);
                }
                if spec.head != Head::LanguageModel {
                    query.value_rows.extend(rows.map(|row| row as u32));
                }
            }
            let (c, d) = (normal(query.rows.len(), 5), normal(query.value_rows.len(), 6));
            let mut model = Trainable::new(spec.clone(), strong(&spec), Device::default(), recompute).unwrap();
            let (output, tape) = model.forward_train(&batch, &query);
            model.backward(tape, &OutputGradient { d_logprobs: &c, d_values: &d });
            (output, model.gradients().to_vec())
        };
        let (output, apart) = gradient(Batch::new(), Recompute::KeepActivations);
        let once = gradient(Batch::sharing_prefixes(), Recompute::KeepActivations);
        assert!(once == gradient(Batch::sharing_prefixes(), Recompute::PerLayer), "{name}: recompute changes bits");
        assert!(once.0 == output, "{name}: the outputs differ");
        let far = apart.iter().zip(&once.1).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
        let size = dot(&apart, &apart).sqrt();
        assert!(far < 1e-5 * size, "{name}: {far} of {size}");
        // Angles that depend on the length of a sequence leave nothing to share.
        assert_eq!(far > 0.0, spec.has_fixed_angles(), "{name}");
    }
}

#[test]
fn gradients_accumulate() {
    let spec = tiny();
    let (batch, query) = batch_and_query(&spec);
    let c = normal(query.rows.len(), 5);
    let mut model = Trainable::new(spec.clone(), strong(&spec), Device::default(), Recompute::KeepActivations).unwrap();
    let mut pass = || {
        let (_, tape) = model.forward_train(&batch, &query);
        model.backward(tape, &OutputGradient { d_logprobs: &c, d_values: &[] });
        model.gradient_norm().unwrap()
    };
    let (once, twice) = (pass(), pass());
    assert!((twice / once - 2.0).abs() < 1e-6);
}

#[test]
fn bf16_gradients_are_those_of_f32_within_its_rounding() {
    // bfloat16 keeps 8 bits: each operand has a relative error of at most 2^-9, and errors of many terms partly cancel.
    for (name, spec) in kinds() {
        let weights: Vec<f32> =
            spec.init(3).iter().zip(normal(spec.parameters(), 78)).map(|(w, n)| w + 0.05 * n).collect();
        let (batch, query) = batch_and_query(&spec);
        let (c, d) = (normal(query.rows.len(), 5), normal(query.value_rows.len(), 6));
        let pass = |dtype| {
            let mut model =
                Trainable::new(spec.clone(), weights.clone(), Cpu { dtype }.into(), Recompute::KeepActivations)
                    .unwrap();
            let (output, tape) = model.forward_train(&batch, &query);
            model.backward(tape, &OutputGradient { d_logprobs: &c, d_values: &d });
            (output, model.gradients().to_vec())
        };
        let ((exact, exact_gradient), (near, near_gradient)) = (pass(Dtype::F32), pass(Dtype::Bf16));
        let logprobs = exact.logprobs.iter().zip(&near.logprobs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(logprobs < 0.02, "{name}: log-probs differ by {logprobs}");
        let difference: Vec<f32> = exact_gradient.iter().zip(&near_gradient).map(|(a, b)| a - b).collect();
        let relative = (dot(&difference, &difference) / dot(&exact_gradient, &exact_gradient)).sqrt();
        assert!(relative > 0.0 && relative < 0.02, "{name}: gradients differ by {relative} of their norm");
    }
}
