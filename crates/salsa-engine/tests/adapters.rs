//! Adapters: gradients against finite differences, equality with the merged model, and determinism bit for bit.

use salsa_engine::random::Random;
use salsa_engine::*;
use shapes::*;
use std::collections::BTreeSet;
use std::sync::Arc;

mod shapes;

fn normal(len: usize, stream: u64) -> Vec<f32> {
    let mut random = Random::new(12, stream);
    (0..len).map(|_| random.normal() as f32).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Variants of every family, and every head.
fn kinds() -> Vec<(&'static str, ModelSpec)> {
    let gemma = ModelSpec {
        norm: NormWeight::OnePlus,
        activation: Activation::GeluTanh,
        embedding_scale: 8f32.sqrt(),
        head_dim: 6,
        tied_embeddings: true,
        ..tiny()
    };
    vec![
        ("llama", tiny()),
        ("mistral", ModelSpec { sliding_window: Some(3), ..tiny() }),
        ("gemma", gemma.clone()),
        ("qwen2", ModelSpec { qkv_bias: true, ..tiny() }),
        ("qwen3", ModelSpec { qk_norm: true, ..tiny() }),
        ("gemma2", gemma2()),
        ("gemma3", gemma3()),
        ("olmo2", olmo2()),
        ("granite", granite()),
        ("smollm3", smollm3()),
        ("phi3", phi3()),
        ("value head", tiny().with_head(Head::LanguageModelWithValue)),
        ("reward model", gemma.with_head(Head::Scalar)),
    ]
}

/// Larger than `init`'s weights, so that every part of the model matters.
fn strong(spec: &ModelSpec) -> Vec<f32> {
    spec.init(3).iter().zip(normal(spec.parameters(), 77)).map(|(w, n)| w + 0.3 * n).collect()
}

/// Factors as large as the base's weights.
fn strong_adapter(lora: &LoraSpec, spec: &ModelSpec) -> Vec<f32> {
    normal(lora.parameters(spec), 78).iter().map(|n| 0.25 * n).collect()
}

/// The base of a model, with a language-model head.
fn base_of(spec: &ModelSpec) -> Arc<Base<Device>> {
    let spec = spec.with_head(Head::LanguageModel);
    Arc::new(Base::new(spec.clone(), &strong(&spec), Device::default()).unwrap())
}

fn lora(rank: usize, targets: &[Target]) -> LoraSpec {
    LoraSpec { rank, alpha: 5.0, rslora: false, targets: targets.iter().copied().collect() }
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

/// The gradient of `c . logprobs + d . values`.
fn gradient(
    base: &Arc<Base<Device>>,
    spec: &ModelSpec,
    lora: &LoraSpec,
    weights: &[f32],
    recompute: Recompute,
) -> Vec<f32> {
    let (batch, query) = batch_and_query(spec);
    let (c, d) = (normal(query.rows.len(), 5), normal(query.value_rows.len(), 6));
    let mut model = Trainable::on(base.clone(), spec.head, lora, weights.to_vec(), recompute).unwrap();
    let (_, tape) = model.forward_train(&batch, &query);
    model.backward(tape, &OutputGradient { d_logprobs: &c, d_values: &d });
    model.gradients().to_vec()
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for (name, spec) in kinds() {
        let (base, lora) = (base_of(&spec), lora(3, &Target::ALL));
        let weights = strong_adapter(&lora, &spec);
        let (batch, query) = batch_and_query(&spec);
        let (c, d) = (normal(query.rows.len(), 5), normal(query.value_rows.len(), 6));
        let loss = |weights: &[f32]| {
            let output = Model::on(base.clone(), spec.head, &lora, weights).unwrap().forward(&batch, &query);
            dot(&output.logprobs, &c) + dot(&output.values, &d)
        };
        let full = gradient(&base, &spec, &lora, &weights, Recompute::KeepActivations);
        let again = gradient(&base, &spec, &lora, &weights, Recompute::PerLayer);
        assert_eq!(full, again, "{name}: recompute changes bits");
        for tensor in lora.tensors(&spec) {
            let what = format!("{name} {}", tensor.name);
            let (part, gradient) = (&weights[tensor.range.clone()], &full[tensor.range.clone()]);
            let size = dot(gradient, gradient).sqrt();
            assert!(size > 1e-6, "{what}: the gradient is zero, so the test would say nothing");
            for trial in 0..2 {
                let mut direction = normal(part.len(), 1000 + trial);
                for (d, g) in direction.iter_mut().zip(gradient) {
                    *d = *d / (part.len() as f32).sqrt() + g / size as f32;
                }
                let at = |sign: f32| {
                    let mut weights = weights.clone();
                    weights[tensor.range.clone()].iter_mut().zip(&direction).for_each(|(w, d)| *w += sign * 1.5e-3 * d);
                    loss(&weights)
                };
                let (slope, expected) = ((at(1.0) - at(-1.0)) / 3e-3, dot(gradient, &direction));
                let error = (slope - expected).abs() / (expected.abs() + 0.05 * size);
                assert!(error < 0.02, "{what}: slope {slope}, gradient says {expected}");
            }
        }
    }
}

#[test]
fn the_gradient_of_a_target_does_not_depend_on_which_others_are_trained() {
    // Stops below the lowest target, and passes products without factors. With B zero, as after `init`, factors change
    // no number, so that the gradient of one target is the same with and without the others.
    for spec in [tiny(), gemma2(), olmo2(), granite(), phi3()] {
        let base = base_of(&spec);
        let all = lora(2, &Target::ALL);
        let fresh = all.init(&spec, 7);
        let full = gradient(&base, &spec, &all, &fresh, Recompute::KeepActivations);
        for target in Target::of(&spec) {
            let one = lora(2, &[target]);
            let (here, there) = (one.tensors(&spec), all.tensors(&spec));
            let place = |name: &str| there.iter().find(|tensor| tensor.name == name).unwrap().range.clone();
            let weights: Vec<f32> = here.iter().flat_map(|tensor| fresh[place(&tensor.name)].to_vec()).collect();
            let expected: Vec<f32> = here.iter().flat_map(|tensor| full[place(&tensor.name)].to_vec()).collect();
            assert_eq!(gradient(&base, &spec, &one, &weights, Recompute::KeepActivations), expected, "{target:?}");
            assert!(expected.iter().any(|g| *g != 0.0));
        }
    }
}

/// The flat weights with `scale * B A` added to each matrix, in f64.
fn merged(spec: &ModelSpec, weights: &[f32], lora: &LoraSpec, adapter: &[f32]) -> Vec<f32> {
    let (mut out, mut factors) = (weights.to_vec(), std::collections::BTreeMap::new());
    for tensor in lora.tensors(spec) {
        factors.insert(tensor.name.clone(), &adapter[tensor.range.clone()]);
    }
    for tensor in spec.tensors() {
        let name = |factor: &str| tensor.name.replace(".weight", &format!(".{factor}.weight"));
        if let (Some(a), Some(b)) = (factors.get(&name("lora_A")), factors.get(&name("lora_B"))) {
            let columns = tensor.shape[1];
            for (i, w) in out[tensor.range.clone()].iter_mut().enumerate() {
                let (row, column) = (i / columns, i % columns);
                let product = |k: usize| f64::from(b[row * lora.rank + k]) * f64::from(a[k * columns + column]);
                *w += (f64::from(lora.scale()) * (0..lora.rank).map(product).sum::<f64>()) as f32;
            }
        } else if let Some(head) = factors.get(&tensor.name) {
            out[tensor.range.clone()].copy_from_slice(head);
        }
    }
    out
}

#[test]
fn an_adapter_is_the_same_model_as_the_merged_weights() {
    for (name, spec) in kinds() {
        let base = base_of(&spec);
        for lora in [
            lora(3, &Target::ALL),
            lora(1, &[Target::Key, Target::Up]),
            LoraSpec { rslora: true, ..lora(4, &[Target::Down, Target::Value]) },
            lora(2, &[Target::FusedQkv, Target::Down]),
        ] {
            if lora.validate_for(&spec).is_err() {
                continue;
            }
            let adapter = strong_adapter(&lora, &spec);
            let own = base.spec().convert(&strong(base.spec()), &spec, 0);
            let dense = Model::new(spec.clone(), &merged(&spec, &own, &lora, &adapter), Device::default()).unwrap();
            let model = Model::on(base.clone(), spec.head, &lora, &adapter).unwrap();
            let (batch, query) = batch_and_query(&spec);
            let (a, b) = (model.forward(&batch, &query), dense.forward(&batch, &query));
            let pairs = a.logprobs.iter().chain(&a.values).zip(b.logprobs.iter().chain(&b.values));
            let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(worst < 2e-5, "{name}: {worst}");
            let plain = Model::bare(base.clone());
            assert!(spec.head != Head::LanguageModel || plain.forward(&batch, &query).logprobs != a.logprobs);
        }
    }
}

#[test]
fn without_effect_the_adapter_changes_no_bit() {
    for (name, spec) in kinds().into_iter().filter(|(_, spec)| spec.head == Head::LanguageModel) {
        let (base, lora) = (base_of(&spec), LoraSpec::default());
        let model = Model::on(base.clone(), spec.head, &lora, &lora.init(&spec, 1)).unwrap();
        let plain = Model::new(spec.clone(), &strong(&spec), Device::default()).unwrap();
        let (batch, query) = batch_and_query(&spec);
        assert_eq!(model.forward(&batch, &query), plain.forward(&batch, &query), "{name}");
        assert_eq!(Model::bare(base).forward(&batch, &query), plain.forward(&batch, &query), "{name}");
    }
}

/// Larger than the tiny one, so that work is split over threads.
fn wide() -> ModelSpec {
    ModelSpec { vocab_size: 1500, hidden_size: 96, intermediate_size: 300, head_dim: 32, layers: 2, ..tiny() }
}

fn train(steps: u64) -> (Vec<f32>, Vec<f32>, Vec<Response>) {
    let spec = wide();
    let (base, lora) = (base_of(&spec), LoraSpec::default());
    let mut model = Trainable::on(base, spec.head, &lora, lora.init(&spec, 2), Recompute::KeepActivations).unwrap();
    let mut random = Random::new(4, 4);
    let mut losses = Vec::new();
    for _ in 0..steps {
        let (mut batch, mut query) = (Batch::new(), Query::default());
        for sequence in 0..20 {
            let tokens: Vec<u32> = (0..5 + 2 * sequence).map(|_| random.below(40) as u32).collect();
            let rows = batch.push(&tokens);
            query.push_logprobs(rows, &tokens, 1);
        }
        let (output, tape) = model.forward_train(&batch, &query);
        let count = output.logprobs.len() as f32;
        losses.push(-output.logprobs.iter().sum::<f32>() / count);
        model.backward(tape, &OutputGradient { d_logprobs: &vec![-1.0 / count; count as usize], d_values: &[] });
        model.adamw_step(&AdamW::default(), 1e-2).unwrap();
    }
    let prompt = |i: u64| Prompt { tokens: vec![3, 4, i as u32], id: i, sample: 0 };
    let prompts: Vec<Prompt> = (0..5).map(prompt).collect();
    let responses =
        model.generate(&prompts, &Sampling { max_new_tokens: 30, slots: 3, ..Sampling::default() }, &mut |_| ());
    for (prompt, response) in prompts.iter().zip(&responses) {
        let (mut batch, mut query) = (Batch::new(), Query::default());
        let tokens = [&prompt.tokens[..], &response.tokens].concat();
        batch.push(&[7, 8, 9]);
        let rows = batch.push(&tokens);
        query.push_logprobs(rows, &tokens, prompt.tokens.len());
        assert_eq!(model.forward_train(&batch, &query).0.logprobs, response.logprobs, "decoding and training differ");
    }
    (losses, model.weights().to_vec(), responses)
}

#[test]
fn training_lowers_the_loss_and_threads_do_not_matter() {
    let run = |threads| with_threads(threads, || train(4));
    let one = run(1);
    assert!(one.0.windows(2).all(|pair| pair[1] < pair[0]), "{:?}", one.0);
    for threads in [2, 3] {
        assert!(one == run(threads), "{threads} threads give other bits than one");
    }
}

#[test]
fn roles_on_one_base_are_the_models_they_are_alone() {
    // A policy, a reward model and a critic on one base; training one does not change the others.
    let spec = tiny();
    let (shared, lora) = (base_of(&spec), lora(2, &Target::ALL));
    let scalar = spec.with_head(Head::Scalar);
    let roles = [(spec.clone(), 1u64), (scalar.clone(), 2), (scalar, 3)];
    let weights = |spec: &ModelSpec, seed: u64| -> Vec<f32> {
        normal(lora.parameters(spec), 90 + seed).iter().map(|n| 0.3 * n).collect()
    };
    let learn = |base: &dyn Fn() -> Arc<Base<Device>>| {
        let mut models: Vec<Trainable> = roles
            .iter()
            .map(|(spec, seed)| {
                Trainable::on(base(), spec.head, &lora, weights(spec, *seed), Recompute::KeepActivations).unwrap()
            })
            .collect();
        let mut out = Vec::new();
        for _ in 0..2 {
            for (model, (spec, _)) in models.iter_mut().zip(&roles) {
                let (batch, query) = batch_and_query(spec);
                let (c, d) = (normal(query.rows.len(), 5), normal(query.value_rows.len(), 6));
                let (output, tape) = model.forward_train(&batch, &query);
                model.backward(tape, &OutputGradient { d_logprobs: &c, d_values: &d });
                out.push((output, model.gradients().to_vec()));
                model.adamw_step(&AdamW::default(), 1e-2).unwrap();
            }
        }
        out
    };
    assert!(learn(&|| shared.clone()) == learn(&|| base_of(&spec)), "sharing the base changes bits");
}

#[test]
fn what_cannot_be_is_refused() {
    let spec = tiny();
    let (base, lora) = (base_of(&spec), lora(2, &Target::ALL));
    let error = |lora: &LoraSpec, weights: &[f32]| {
        Model::on(base.clone(), Head::LanguageModel, lora, weights).err().unwrap().to_string()
    };
    let mut weights = lora.init(&spec, 1);
    assert!(error(&lora, &weights[1..]).contains("weights given"));
    assert!(error(&LoraSpec { targets: BTreeSet::new(), ..lora.clone() }, &weights).contains("target"));
    let at = lora.tensors(&spec).iter().find(|t| t.name.ends_with("1.mlp.up_proj.lora_B.weight")).unwrap().range.start;
    weights[at + 1] = f32::INFINITY;
    let message = error(&lora, &weights);
    assert!(message.contains("model.layers.1.mlp.up_proj.lora_B.weight: element 1 is inf"), "{message}");
    let scalar = spec.with_head(Head::Scalar);
    let headless = Arc::new(Base::new(scalar.clone(), &strong(&scalar), Device::default()).unwrap());
    let message = Model::on(headless, Head::LanguageModel, &lora, &lora.init(&spec, 1)).err().unwrap().to_string();
    assert!(message.contains("no language-model head"), "{message}");
}

#[test]
fn an_interrupted_training_goes_on_as_if_it_had_not_been() {
    let spec = tiny();
    let (base, lora) = (base_of(&spec), lora(2, &[Target::Query, Target::Down]));
    let (batch, query) = batch_and_query(&spec);
    let step = |model: &mut Trainable| {
        let c = normal(query.rows.len(), 5);
        let (_, tape) = model.forward_train(&batch, &query);
        model.backward(tape, &OutputGradient { d_logprobs: &c, d_values: &[] });
        model.adamw_step(&AdamW::default(), 1e-2).unwrap();
    };
    let fresh =
        || Trainable::on(base.clone(), spec.head, &lora, lora.init(&spec, 1), Recompute::KeepActivations).unwrap();
    let mut whole = fresh();
    step(&mut whole);
    let (weights, m, v) = {
        let state = whole.optimizer_state();
        (whole.weights().to_vec(), state.m.to_vec(), state.v.to_vec())
    };
    assert_eq!(weights.len(), lora.parameters(&spec), "only the adapter has optimizer state");
    step(&mut whole);
    let mut resumed = fresh();
    resumed.restore(weights, 1, m, v).unwrap();
    step(&mut resumed);
    assert_eq!(resumed.weights(), whole.weights());
    assert_eq!(resumed.forward(&batch, &query), whole.forward(&batch, &query));
}
