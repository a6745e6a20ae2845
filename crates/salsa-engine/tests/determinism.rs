//! The engine's guarantees, bit for bit: decoding equals training; neighbours and threads do not matter.

use proptest::prelude::*;
use salsa_engine::random::Random;
use salsa_engine::*;
use shapes::*;
use std::sync::Arc;

mod shapes;

/// Every second model has options of the families beyond the basic form.
fn spec_of(choice: u64) -> ModelSpec {
    let basic = basic_spec_of(choice);
    let mut random = Random::new(choice, 3);
    if random.below(2) == 1 {
        return basic;
    }
    let mut maybe = |value: f32| [None, Some(value)][random.below(2)];
    let [attention_scale, attention_softcap, logit_softcap] = [maybe(0.4), maybe(2.0), maybe(5.0)];
    let rotary_dim = (2 * (1 + random.below(basic.head_dim / 2))).min(basic.head_dim);
    let layer = |random: &mut Random| LayerOptions {
        windowed: random.below(2) == 1,
        rotary: [Rotary::Main, Rotary::Local, Rotary::None][random.below(3)],
    };
    let fused_projections = !(basic.qk_norm || basic.qkv_bias) && random.below(2) == 1;
    let options = Options {
        norms: [BlockNorms::Before, BlockNorms::Both, BlockNorms::After][random.below(3)],
        qk_norm_span: [NormSpan::Head, NormSpan::Projection][random.below(2)],
        output_bias: random.below(2) == 1,
        fused_projections,
        attention_scale,
        attention_softcap,
        logit_softcap,
        logit_divisor: [1.0, 0.3][random.below(2)],
        residual_scale: [1.0, 0.3][random.below(2)],
        rotary_dim: Some(rotary_dim),
        local_rope: Some(yarn()),
        layers: (0..basic.layers).map(|_| layer(&mut random)).collect(),
    };
    let norm = [NormWeight::Plain, NormWeight::OnePlus][random.below(2)];
    ModelSpec { norm, options, ..basic }
}

fn basic_spec_of(choice: u64) -> ModelSpec {
    let mut random = Random::new(choice, 0);
    let kv_heads = 1 + random.below(3);
    ModelSpec {
        vocab_size: [11, 257, 1500][random.below(3)],
        hidden_size: 4 * (2 + random.below(20)),
        intermediate_size: 3 + random.below(90),
        layers: 1 + random.below(3),
        heads: kv_heads * (1 + random.below(3)),
        kv_heads,
        head_dim: 2 * (1 + random.below(20)),
        max_positions: 400,
        sliding_window: [None, Some(1 + random.below(9))][random.below(2)],
        qk_norm: random.below(2) == 1,
        qkv_bias: random.below(2) == 1,
        tied_embeddings: random.below(2) == 1,
        ..tiny()
    }
}

/// Every second model has an adapter.
fn model_of(spec: &ModelSpec, choice: u64, dtype: Dtype) -> Model {
    let mut random = Random::new(5, 5);
    let weights: Vec<f32> = spec.init(4).iter().map(|w| w + 0.2 * random.normal() as f32).collect();
    let base = Arc::new(Base::new(spec.clone(), &weights, Cpu { dtype }.into()).unwrap());
    if choice.is_multiple_of(2) {
        return Model::bare(base);
    }
    let mut chosen = Random::new(choice, 1);
    let targets = Target::ALL
        .into_iter()
        .filter(|_| chosen.below(2) == 1)
        .chain([Target::Down])
        .filter(|t| Target::of(spec).any(|own| own == *t))
        .collect();
    let lora = LoraSpec { rank: 1 + chosen.below(20), alpha: 7.0, rslora: false, targets };
    let factors: Vec<f32> = (0..lora.parameters(spec)).map(|_| 0.2 * random.normal() as f32).collect();
    Model::on(base, spec.head, &lora, &factors).unwrap()
}

fn tokens(spec: &ModelSpec, len: usize, stream: u64) -> Vec<u32> {
    let mut random = Random::new(8, stream);
    (0..len).map(|_| random.below(spec.vocab_size) as u32).collect()
}

fn logprobs(model: &Model, sequences: &[(&[u32], usize)], temperature: f32) -> Vec<Vec<f32>> {
    let (mut batch, mut query) = (Batch::new(), Query { temperature, ..Query::default() });
    for (sequence, from) in sequences {
        let rows = batch.push(sequence);
        query.push_logprobs(rows, sequence, *from);
    }
    let mut rest = &model.forward(&batch, &query).logprobs[..];
    let mut parts = Vec::new();
    for (sequence, from) in sequences {
        let (part, next) = rest.split_at(sequence.len() - from);
        parts.push(part.to_vec());
        rest = next;
    }
    parts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn sampled_logprobs_are_those_of_the_training_forward(choice: u64, bf16: bool, slots in 1usize..9, long in 1usize..70) {
        let spec = spec_of(choice);
        let model = model_of(&spec, choice, if bf16 { Dtype::Bf16 } else { Dtype::F32 });
        // Prompts of several lengths, the second one three times.
        let lengths = [3, long, long, long, 1, 40];
        let prompt = |i: usize| Prompt { tokens: tokens(&spec, lengths[i], [0, 1, 1, 1, 4, 5][i]), id: lengths[i] as u64, sample: i as u32 };
        let prompts: Vec<Prompt> = (0..6).map(prompt).collect();
        let sampling = Sampling { temperature: 0.9, max_new_tokens: 40, stop_tokens: vec![1, 2], slots, seed: choice, ..Sampling::default() };
        let responses = model.generate(&prompts, &sampling, &mut |_| ());
        let alone = Sampling { slots: 1, ..sampling.clone() };
        let joined: Vec<(Vec<u32>, usize)> =
            prompts.iter().zip(&responses).map(|(p, r)| ([&p.tokens[..], &r.tokens].concat(), p.tokens.len())).collect();
        let views: Vec<(&[u32], usize)> = joined.iter().map(|(t, from)| (&t[..], *from)).collect();
        let together = logprobs(&model, &views, 0.9);
        for (i, response) in responses.iter().enumerate() {
            prop_assert_eq!(&response.logprobs, &together[i], "decoding and training differ");
            prop_assert_eq!(&together[i], &logprobs(&model, &views[i..=i], 0.9)[0], "company matters");
            prop_assert_eq!(response, &model.generate(&prompts[i..=i], &alone, &mut |_| ())[0], "slots matter");
            let stopped = response.tokens.last().is_some_and(|t| [1, 2].contains(t));
            prop_assert_eq!(response.finish == Finish::Stop, stopped);
            prop_assert!(stopped || response.tokens.len() == 40);
        }
    }
}

/// Requests that arrive late, are cancelled or have other settings leave the others' bits unchanged.
#[test]
fn requests_that_come_and_go_leave_the_others_alone() {
    let spec = spec_of(3);
    let model = model_of(&spec, 3, Dtype::F32);
    let settings = [(0.9, 0, 1.0), (0.0, 0, 1.0), (0.7, 5, 1.0), (1.2, 0, 0.8)];
    let sampling = |i: usize| {
        let (temperature, top_k, top_p) = settings[i % settings.len()];
        Sampling { temperature, top_k, top_p, max_new_tokens: 6 + i, seed: i as u64, ..Sampling::default() }
    };
    let prompt = |i: usize| Prompt { tokens: tokens(&spec, 2 + 3 * i, i as u64), id: i as u64, sample: 0 };
    let mut decoding = model.decoding(3, 64);
    let mut tickets = Vec::new();
    let mut found: Vec<(Vec<u32>, Vec<f32>)> = vec![Default::default(); 8];
    let mut ends = [None; 8];
    for round in 0.. {
        if round % 2 == 0 && tickets.len() < 8 {
            tickets.push(decoding.submit(prompt(tickets.len()), &sampling(tickets.len()).into()));
        }
        if round == 5 {
            // One being continued, one queued or not, and one twice.
            [1, 2, 1].iter().for_each(|&i| decoding.cancel(tickets[i]));
        }
        for event in decoding.step() {
            let i = tickets.iter().position(|ticket| *ticket == event.ticket).unwrap();
            assert!(ends[i].is_none() && !(round >= 5 && [1, 2].contains(&i)), "request {i} is over");
            found[i].0.push(event.token);
            found[i].1.push(event.logprob);
            ends[i] = event.finish;
        }
        if tickets.len() == 8 && decoding.is_idle() {
            break;
        }
        assert!(round < 200, "decoding does not end");
    }
    for i in (0..8).filter(|i| ![1, 2].contains(i)) {
        let alone = &model.generate(&[prompt(i)], &sampling(i), &mut |_| ())[0];
        assert_eq!((&found[i].0, &found[i].1, ends[i]), (&alone.tokens, &alone.logprobs, Some(alone.finish)), "{i}");
    }
    for i in [1, 2] {
        let alone = &model.generate(&[prompt(i)], &sampling(i), &mut |_| ())[0];
        assert!(ends[i].is_none() && alone.tokens.starts_with(&found[i].0), "{i}");
    }
}

/// Rankings have the log-probs of a forward pass, independent of other requests, and do not change the tokens drawn.
#[test]
fn rankings_while_decoding_are_those_of_a_forward_pass() {
    for (choice, dtype) in (0..6).flat_map(|choice| [(choice, Dtype::F32), (choice, Dtype::Bf16)]) {
        let spec = spec_of(choice);
        let model = model_of(&spec, choice, dtype);
        let prompt = |i: usize| Prompt { tokens: tokens(&spec, 2 + 5 * i, i as u64), id: i as u64, sample: 0 };
        let sampling = |i: usize| {
            let temperature = [0.0, 0.7, 1.0][i % 3];
            Sampling { temperature, max_new_tokens: 8, seed: choice, ..Sampling::default() }
        };
        let mut decoding = model.decoding(4, 64);
        let asked = [Some(3), None, Some(0), Some(spec.vocab_size + 1), Some(1)];
        let tickets: Vec<Ticket> = (0..5)
            .map(|i| match asked[i] {
                Some(count) => decoding.submit_ranked(prompt(i), &sampling(i).into(), count),
                None => decoding.submit(prompt(i), &sampling(i).into()),
            })
            .collect();
        let mut events: Vec<Vec<Event>> = vec![Vec::new(); 5];
        while !decoding.is_idle() {
            for event in decoding.step() {
                events[tickets.iter().position(|ticket| *ticket == event.ticket).unwrap()].push(event);
            }
        }
        for i in 0..5 {
            let drawn: Vec<u32> = events[i].iter().map(|event| event.token).collect();
            assert_eq!(drawn, model.generate(&[prompt(i)], &sampling(i), &mut |_| ())[0].tokens, "{choice} {i}");
            let Some(count) = asked[i] else {
                assert!(events[i].iter().all(|event| event.ranking.is_none()), "{choice} {i}");
                continue;
            };
            let whole = [prompt(i).tokens, drawn].concat();
            let from = prompt(i).tokens.len();
            let (mut batch, mut query) = (Batch::new(), Query::default());
            let rows = batch.push(&whole);
            query.push_logprobs(rows, &whole, from);
            let ranked = model.rank(&batch, &query, count);
            let told: Vec<&Ranking> = events[i].iter().filter_map(|event| event.ranking.as_ref()).collect();
            assert_eq!(told, ranked.iter().collect::<Vec<_>>(), "{choice} {i} {dtype:?}");
            let logprobs: Vec<f32> = ranked.iter().map(|ranking| ranking.logprob).collect();
            assert_eq!(logprobs, logprobs_of(&model, &whole, from), "{choice} {i} {dtype:?}");
            assert!(ranked.iter().all(|ranking| ranking.top.len() == count.min(spec.vocab_size)));
            if i == 0 {
                assert!(ranked.iter().all(|ranking| ranking.top[0].1 == ranking.logprob), "greedy takes the first");
            }
        }
    }
}

#[test]
fn rows_computed_once_have_the_bits_of_all_their_copies() {
    for choice in 0..40 {
        let spec = spec_of(choice);
        let model = model_of(&spec, choice, if choice % 4 < 2 { Dtype::Bf16 } else { Dtype::F32 });
        let (prompt, other) = (tokens(&spec, 60, 1), tokens(&spec, 9, 2));
        let run = |mut batch: Batch| {
            let mut query = Query { temperature: 0.7, ..Query::default() };
            // Neighbours have their prompt in common, the whole of the shorter one, or nothing.
            for (begin, own) in [(&prompt, 30), (&prompt, 3), (&prompt, 0), (&other, 5), (&other, 5), (&prompt, 2)] {
                let sequence = [&begin[..], &tokens(&spec, own, own as u64)].concat();
                let rows = batch.push(&sequence);
                query.push_logprobs(rows, &sequence, 1);
            }
            let means = geometric_logprobs(&[&model, &model], &[0.25, 0.75], &batch, &query);
            (batch.distinct_rows(), model.forward(&batch, &query), model.rank(&batch, &query, 3), means)
        };
        let (apart, once) = (run(Batch::new()), run(Batch::sharing_prefixes()));
        assert_eq!((apart.0, once.0), (90 + 63 + 60 + 14 + 14 + 62, 90 + 3 + 14 + 62), "choice {choice}");
        assert!(apart.1 == once.1, "choice {choice}: other log-probs");
        assert!(apart.2 == once.2 && apart.3 == once.3, "choice {choice}: other rankings or means");
    }
}

fn logprobs_of(model: &Model, sequence: &[u32], from: usize) -> Vec<f32> {
    logprobs(model, &[(sequence, from)], 1.0).remove(0)
}

#[test]
fn threads_do_not_matter() {
    let spec = ModelSpec { vocab_size: 1500, hidden_size: 64, intermediate_size: 90, head_dim: 16, ..tiny() };
    let run = |threads: usize, dtype: Dtype| {
        with_threads(threads, || {
            let mut model =
                Trainable::new(spec.clone(), spec.init(1), Cpu { dtype }.into(), Recompute::KeepActivations).unwrap();
            for step in 0..3 {
                let (mut batch, mut query) = (Batch::new(), Query::default());
                for sequence in 0..20 {
                    let tokens = tokens(&spec, 5 + 2 * sequence, step * 100 + sequence as u64);
                    let rows = batch.push(&tokens);
                    query.push_logprobs(rows, &tokens, 1);
                }
                let (output, tape) = model.forward_train(&batch, &query);
                let d = vec![-1.0 / output.logprobs.len() as f32; output.logprobs.len()];
                model.backward(tape, &OutputGradient { d_logprobs: &d, d_values: &[] });
                model.adamw_step(&AdamW::default(), 1e-2).unwrap();
            }
            let prompts = [Prompt { tokens: vec![3, 4], id: 0, sample: 0 }];
            (model.weights().to_vec(), model.generate(&prompts, &Sampling::default(), &mut |_| ()))
        })
    };
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let one = run(1, dtype);
        for threads in [2, 3, 8] {
            assert!(one == run(threads, dtype), "{threads} threads give other bits than one in {}", dtype.name());
        }
    }
}

#[test]
fn the_geometric_mean_of_one_model_is_that_model() {
    let spec = spec_of(3);
    let (a, b) = (model_of(&spec, 3, Dtype::F32), Model::new(spec.clone(), &spec.init(9), Device::default()).unwrap());
    let tokens = tokens(&spec, 30, 1);
    let (mut batch, mut query) = (Batch::new(), Query::default());
    let rows = batch.push(&tokens);
    query.push_logprobs(rows, &tokens, 1);
    let alone = a.forward(&batch, &query);
    let mean = |weights: &[f32]| geometric_logprobs(&[&a, &b], weights, &batch, &query);
    let near = |x: &[f32], y: &[f32]| x.iter().zip(y).all(|(x, y)| (x - y).abs() < 1e-4);
    assert!(near(&mean(&[1.0, 0.0]).logprobs, &alone.logprobs));
    assert!(near(&mean(&[0.0, 1.0]).logprobs, &b.forward(&batch, &query).logprobs));
    // Hoelder: the normaliser of the mean is at most 1, so its log-prob is at least the mean of the log-probs.
    let half = mean(&[0.5, 0.5]);
    let other = b.forward(&batch, &query);
    for i in 0..half.logprobs.len() {
        assert!(half.logprobs[i] >= 0.5 * (alone.logprobs[i] + other.logprobs[i]) - 1e-4);
    }
}

#[test]
fn wrong_weights_are_refused_by_name() {
    let spec = tiny();
    let mut weights = spec.init(1);
    let at = spec.tensors().iter().find(|t| t.name.ends_with("1.mlp.up_proj.weight")).unwrap().range.start + 2;
    weights[at] = f32::NAN;
    let error = Model::new(spec.clone(), &weights, Device::default()).err().unwrap().to_string();
    assert!(error.contains("model.layers.1.mlp.up_proj.weight: element 2 is NaN"), "{error}");
    let error = Model::new(spec.clone(), &[0.0; 3][..], Device::default()).err().unwrap().to_string();
    assert!(error.contains("3 weights given"), "{error}");
}

#[test]
fn a_response_depends_on_every_part_of_its_place_in_the_random_numbers() {
    let model = Model::new(tiny(), &tiny().init(4), Device::default()).unwrap();
    let sampling = |seed| Sampling { seed, max_new_tokens: 24, ..Sampling::default() };
    let response = |seed, id, sample| {
        let prompt = Prompt { tokens: vec![1, 2], id, sample };
        model.generate(&[prompt], &sampling(seed), &mut |_| ()).remove(0).tokens
    };
    let base = response(1, 1, 1);
    assert_eq!(base, response(1, 1, 1));
    assert!(base != response(2, 1, 1) && base != response(1, 2, 1) && base != response(1, 1, 2));
    assert!(base.windows(2).any(|pair| pair[0] != pair[1]), "every position draws anew");
}

#[test]
fn a_step_on_a_gradient_that_is_not_finite_changes_nothing() {
    let spec = tiny();
    let mut model = Trainable::new(spec.clone(), spec.init(1), Device::default(), Recompute::KeepActivations).unwrap();
    let (mut batch, mut query) = (Batch::new(), Query::default());
    let rows = batch.push(&[1, 2]);
    query.push_logprobs(rows, &[1, 2], 1);
    let before = model.weights().to_vec();
    let (_, tape) = model.forward_train(&batch, &query);
    model.backward(tape, &OutputGradient { d_logprobs: &[f32::NAN], d_values: &[] });
    assert!(matches!(model.adamw_step(&AdamW::default(), 0.1), Err(ModelError::NonFiniteGradient { .. })));
    assert_eq!((&model.weights()[..], model.optimizer_state().step), (&before[..], 0));
}

/// Weights stored as bfloat16.
struct Stored(Vec<[u8; 2]>);

impl Weights for Stored {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn read<'a>(&'a self, range: std::ops::Range<usize>, room: &'a mut Vec<f32>) -> Result<&'a [f32], ModelError> {
        room.resize(range.len(), 0.0);
        Numbers::Bf16(&self.0[range]).widen(room);
        Ok(room)
    }

    fn read_stored<'a>(&'a self, range: std::ops::Range<usize>, _: &'a mut Room) -> Result<Numbers<'a>, ModelError> {
        Ok(Numbers::Bf16(&self.0[range]))
    }
}

#[test]
fn weights_stored_as_bfloat16_make_the_same_model_as_the_same_numbers_in_f32() {
    let high_bytes = |x: &f32| ((x.to_bits() >> 16) as u16).to_le_bytes();
    for (choice, dtype) in (0..16).flat_map(|choice| [(choice, Dtype::F32), (choice, Dtype::Bf16)]) {
        let spec = ModelSpec { embedding_scale: 1.5, ..spec_of(choice) };
        let stored = Stored(spec.init(choice).iter().map(high_bytes).collect());
        let mut wide = vec![0.0; stored.count()];
        Numbers::Bf16(&stored.0).widen(&mut wide);
        let text = tokens(&spec, 30, choice);
        let asked = |model: &Model| logprobs(model, &[(&text, 1)], 1.0);
        let mut model = Model::new(spec.clone(), &stored, Cpu { dtype }.into()).unwrap();
        assert_eq!(
            asked(&model),
            asked(&Model::new(spec.clone(), &wide, Cpu { dtype }.into()).unwrap()),
            "{choice} {dtype:?}"
        );
        // New weights that are not representable in bfloat16.
        let other: Vec<f32> = wide.iter().map(|w| w * 1.001).collect();
        model.set_weights(&other).unwrap();
        let fresh = Model::new(spec.clone(), &other, Cpu { dtype }.into()).unwrap();
        assert_eq!(asked(&model), asked(&fresh), "{choice} {dtype:?}");
        // A number that is not finite is named, in either type.
        let last = stored.count() - 1;
        let broken = Stored([&stored.0[..last], &[[0x80, 0x7f]]].concat());
        let error = Model::new(spec.clone(), &broken, Cpu { dtype }.into()).err().unwrap();
        assert!(matches!(error, ModelError::NonFinite { value, .. } if value == f32::INFINITY), "{error}");
    }
}
