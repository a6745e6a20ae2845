//! Whole models: forward, backward and steps, adapters, responses.

use super::*;
use salsa_engine::*;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Variants of every family, and every head.
fn kinds() -> Vec<(&'static str, ModelSpec)> {
    let plain = ModelSpec {
        vocab_size: 211,
        hidden_size: 64,
        intermediate_size: 176,
        layers: 3,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        max_positions: 512,
        ..tiny()
    };
    let gemma = ModelSpec {
        norm: NormWeight::OnePlus,
        activation: Activation::GeluTanh,
        embedding_scale: 8.0,
        head_dim: 64,
        kv_heads: 1,
        tied_embeddings: true,
        ..plain.clone()
    };
    vec![
        ("llama", plain.clone()),
        ("odd head", ModelSpec { head_dim: 24, ..plain.clone() }),
        ("mistral", ModelSpec { sliding_window: Some(9), ..plain.clone() }),
        ("gemma", gemma.clone()),
        ("qwen2", ModelSpec { qkv_bias: true, ..plain.clone() }),
        ("qwen3", ModelSpec { qk_norm: true, head_dim: 32, ..plain.clone() }),
        ("value head", plain.with_head(Head::LanguageModelWithValue)),
        ("reward model", gemma.with_head(Head::Scalar)),
    ]
}

fn weights(spec: &ModelSpec) -> Vec<f32> {
    spec.init(3).iter().zip(normal(spec.parameters(), 77)).map(|(w, n)| w + 0.05 * n).collect()
}

fn batch_and_query(spec: &ModelSpec) -> (Batch, Query) {
    let (mut batch, mut query) = (Batch::new(), Query { temperature: 0.8, ..Query::default() });
    for (i, len) in [40usize, 1, 17, 90].into_iter().enumerate() {
        let tokens: Vec<u32> = (0..len).map(|t| ((t * 31 + i * 7) % spec.vocab_size) as u32).collect();
        let rows = batch.push(&tokens);
        if spec.head != Head::Scalar {
            query.push_logprobs(rows.clone(), &tokens, 1);
        }
        if spec.head != Head::LanguageModel {
            query.value_rows.extend(rows.map(|row| row as u32));
        }
    }
    (batch, query)
}

/// The allowed error of a whole model.
fn whole(cuda: &Cuda) -> f64 {
    match cuda.dtype() {
        Dtype::F32 => 1e-4,
        Dtype::Bf16 => 5e-2,
    }
}

#[test]
fn whole_models() {
    let mut report = Report::default();
    for (cuda, _) in cards() {
        for (name, spec) in kinds() {
            let case = format!("{name} {}", cuda.dtype().name());
            let on_cpu = train(CPU, &spec, Recompute::KeepActivations);
            let on_gpu = train(cuda.clone(), &spec, Recompute::KeepActivations);
            report.compare(&case, &on_gpu, &on_cpu, whole(&cuda));
            assert_eq!(on_gpu, train(cuda.clone(), &spec, Recompute::PerLayer), "{case}: recompute changes bits");
        }
    }

    fn train<B: Backend>(b: B, spec: &ModelSpec, recompute: Recompute) -> Vec<Named> {
        let mut model = TrainableTransformer::new(spec.clone(), weights(spec), b, recompute).unwrap();
        let (batch, query) = batch_and_query(spec);
        let (c, d) = (normal(query.rows.len(), 5), normal(query.value_rows.len(), 6));
        let (output, tape) = model.forward_train(&batch, &query);
        model.backward(tape, &OutputGradient { d_logprobs: &c, d_values: &d });
        let gradients = model.gradients().into_owned();
        for _ in 0..2 {
            let (_, tape) = model.forward_train(&batch, &query);
            model.backward(tape, &OutputGradient { d_logprobs: &c, d_values: &d });
            model.adamw_step(&AdamW::default(), 1e-3).unwrap();
        }
        let after = model.forward(&batch, &query);
        vec![
            ("log-probs", output.logprobs),
            ("entropies", output.entropies),
            ("values", output.values),
            ("gradients", gradients),
            ("log-probs after two steps", after.logprobs),
            ("values after two steps", after.values),
        ]
    }
}

#[test]
fn adapters() {
    let mut report = Report::default();
    for (cuda, _) in cards() {
        for (name, spec) in kinds() {
            for targets in [&Target::ALL[..], &[Target::Query, Target::Value]] {
                let case = format!("{name} {} {} targets", cuda.dtype().name(), targets.len());
                let on_cpu = train(CPU, &spec, targets);
                report.compare(&case, &train(cuda.clone(), &spec, targets), &on_cpu, whole(&cuda));
            }
        }
    }

    fn train<B: Backend>(b: B, spec: &ModelSpec, targets: &[Target]) -> Vec<Named> {
        let lora =
            LoraSpec { rank: 8, alpha: 16.0, rslora: false, targets: BTreeSet::from_iter(targets.iter().copied()) };
        let language = spec.with_head(Head::LanguageModel);
        let base = Arc::new(Base::new(language.clone(), &weights(&language), b).unwrap());
        let factors: Vec<f32> = normal(lora.parameters(spec), 8).iter().map(|x| x * 0.1).collect();
        let mut model = TrainableTransformer::on(base, spec.head, &lora, factors, Recompute::PerLayer).unwrap();
        let (batch, query) = batch_and_query(spec);
        let (c, d) = (normal(query.rows.len(), 5), normal(query.value_rows.len(), 6));
        let (output, tape) = model.forward_train(&batch, &query);
        model.backward(tape, &OutputGradient { d_logprobs: &c, d_values: &d });
        let gradients = model.gradients().into_owned();
        model.adamw_step(&AdamW::default(), 1e-3).unwrap();
        let after = model.forward(&batch, &query);
        vec![
            ("log-probs", output.logprobs),
            ("values", output.values),
            ("gradients", gradients),
            ("log-probs after a step", after.logprobs),
        ]
    }
}

#[test]
fn responses() {
    for (cuda, _) in cards() {
        for (name, spec) in kinds().into_iter().filter(|(_, spec)| spec.head != Head::Scalar) {
            let case = format!("{name} {}", cuda.dtype().name());
            let prompts: Vec<Prompt> = (0..7)
                .map(|i| Prompt { tokens: (0..3 + 5 * (i / 2)).map(|t| t * 13 % 211).collect(), id: 1, sample: i })
                .collect();
            let model = Transformer::new(spec.clone(), &weights(&spec), cuda.clone()).unwrap();
            let sampling = Sampling { max_new_tokens: 30, slots: 3, seed: 5, ..Sampling::default() };
            let responses = model.generate(&prompts, &sampling, &mut |_| ());
            assert_eq!(responses, model.generate(&prompts, &sampling, &mut |_| ()), "{case}: not repeatable");
            let oracle = Transformer::new(spec.clone(), &weights(&spec), CPU).unwrap();
            for (prompt, response) in prompts.iter().zip(&responses) {
                let tokens = [&prompt.tokens[..], &response.tokens].concat();
                let (mut batch, mut query) = (Batch::new(), Query::default());
                let rows = batch.push(&tokens);
                query.push_logprobs(rows, &tokens, prompt.tokens.len());
                let far = distance(&response.logprobs, &oracle.forward(&batch, &query).logprobs);
                assert!(far < whole(&cuda), "{case}: log-probs while sampling are off by {far:.2e}");
            }
            if cuda.dtype() == Dtype::F32 {
                let greedy = Sampling { temperature: 0.0, ..sampling };
                let tokens = |responses: Vec<Response>| responses.into_iter().map(|r| r.tokens).collect::<Vec<_>>();
                let [a, b] =
                    [model.generate(&prompts, &greedy, &mut |_| ()), oracle.generate(&prompts, &greedy, &mut |_| ())];
                assert_eq!(tokens(a), tokens(b), "{case}: greedy tokens differ");
            }
        }
    }
}

#[test]
fn shapes_that_the_gpu_cannot_take_are_refused() {
    let Some(cuda) = cuda(Dtype::F32) else { return };
    let spec = ModelSpec { head_dim: 6, ..tiny() };
    let error = Transformer::new(spec.clone(), &spec.init(1), cuda).err().expect("a head of 6 numbers").to_string();
    assert!(error.contains("head_dim") && error.contains("multiple of 8"), "{error}");
}
