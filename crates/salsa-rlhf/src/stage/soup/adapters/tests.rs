//! The soup of adapters equals the soup of the merged models.
use salsa_engine::{Activation, Batch, Device, Model, NormWeight, Query, Target, random::Random};

use super::*;
use crate::{
    checkpoint::{Family, SaveOptions, SpecialTokens, save},
    config::paths::ModelPath,
    stage::{
        fixture::{quiet, spec},
        models::{
            bases::Bases,
            model_source::{ModelSource, SoupSource},
        },
        soup::{setting::Setting, write_new_directory},
    },
};

fn numbers(len: usize, deviation: f64, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed, 9);
    (0..len).map(|_| (deviation * random.normal()) as f32).collect()
}

/// A base in `base` and adapters of these ranks and targets in `0`, `1`, ….
fn place(head: Head, family: Family, shapes: &[LoraSpec], seed: u64) -> (tempfile::TempDir, ModelSpec) {
    let dir = tempfile::tempdir().unwrap();
    let gemma = family == Family::Gemma;
    let base = ModelSpec {
        sliding_window: (family == Family::Mistral).then_some(5),
        qkv_bias: family == Family::Qwen2,
        norm: if gemma { NormWeight::OnePlus } else { NormWeight::Plain },
        activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
        embedding_scale: if gemma { 4.0 } else { 1.0 },
        tied_embeddings: gemma,
        ..spec(40, Head::LanguageModel)
    };
    let options = SaveOptions::new(family, SpecialTokens { eos: vec![2], ..SpecialTokens::default() }, Dtype::F32);
    save(&dir.path().join("base"), &base, &base.init(seed), &Companions::none(), &[], &options).unwrap();
    let spec = base.with_head(head);
    for (i, lora) in shapes.iter().enumerate() {
        let adapter = AdapterToSave {
            base: &dir.path().join("base"),
            spec: &spec,
            lora,
            weights: &numbers(lora.parameters(&spec), 0.05, seed + 10 + i as u64),
            dtype: Dtype::F32,
            companions: &Companions::none(),
            scores: &[],
        };
        save_adapter(&dir.path().join(i.to_string()), &adapter).unwrap();
    }
    (dir, spec)
}

fn lora(rank: usize, alpha: f64, rslora: bool, targets: &[Target]) -> LoraSpec {
    LoraSpec { rank, alpha, rslora, targets: targets.iter().copied().collect() }
}

fn outputs(model: &Model) -> Vec<f32> {
    let (mut batch, mut query) = (Batch::new(), Query::default());
    for sequence in 0..4u32 {
        let tokens: Vec<u32> = (0..12).map(|i| (i * 7 + sequence * 11) % 40).collect();
        let rows = batch.push(&tokens);
        if model.spec().head == Head::Scalar {
            query.value_rows.extend(rows.map(|row| row as u32));
        } else {
            query.push_logprobs(rows, &tokens, 1);
        }
    }
    let output = model.forward(&batch, &query);
    [output.logprobs, output.values].concat()
}

fn config(dir: &Path, count: usize, weights: &[f64]) -> SoupConfig {
    SoupConfig {
        models: (0..count).map(|i| dir.join(i.to_string()).into()).collect(),
        weights: weights.iter().copied().map(Setting::number).collect(),
        output_dir: dir.join("soup"),
        ..SoupConfig::default()
    }
}

fn open(dir: &Path, head: Head) -> Model {
    Bases::on(&Device::default()).frozen(&Checkpoint::open(dir).unwrap(), head).unwrap()
}

/// The mean of the merged weights, in f64.
fn dense(dir: &Path, spec: &ModelSpec, weights: &[f64]) -> Model {
    let merged =
        (0..weights.len()).map(|i| Checkpoint::open(&dir.join(i.to_string())).unwrap().read_weights().unwrap());
    let merged: Vec<Vec<f32>> = merged.collect();
    let at = |i: usize| merged.iter().zip(weights).map(|(m, w)| w * f64::from(m[i])).sum::<f64>() as f32;
    let mean: Vec<f32> = (0..spec.parameters()).map(at).collect();
    Model::new(spec.clone(), &mean, Device::default()).unwrap()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn the_soup_of_adapters_is_the_soup_of_the_merged_models() {
    let some = [Target::Query, Target::Key, Target::Down];
    let cases: Vec<(Vec<LoraSpec>, Vec<f64>)> = vec![
        (vec![lora(4, 8.0, false, &Target::ALL), lora(4, 8.0, false, &Target::ALL)], vec![0.5, 0.5]),
        (vec![lora(1, 3.0, true, &some), lora(7, 2.0, false, &[Target::Value, Target::Down])], vec![0.3, 0.7]),
        (
            vec![lora(2, 2.0, false, &some), lora(3, 5.0, true, &Target::ALL), lora(5, 1.0, false, &[Target::Gate])],
            vec![0.2, 0.5, 0.3],
        ),
    ];
    let mut worst = 0f32;
    for (seed, family) in [Family::Llama, Family::Mistral, Family::Gemma, Family::Qwen2].into_iter().enumerate() {
        for (shapes, weights) in &cases {
            for head in [Head::LanguageModel, Head::Scalar] {
                let (dir, spec) = place(head, family, shapes, seed as u64);
                let config = config(dir.path(), shapes.len(), weights);
                let cooked = write_new_directory(&config, &quiet()).unwrap();
                assert_eq!(cooked.summary["rank"], json!(shapes.iter().map(|s| s.rank).sum::<usize>()));
                let soup = outputs(&open(&config.output_dir, head));
                let error = distance(&soup, &outputs(&dense(dir.path(), &spec, weights)));
                assert!(error < 1e-6, "{family} {head:?}: {error}");
                worst = worst.max(error);
                assert!(distance(&soup, &outputs(&open(&dir.path().join("0"), head))) > 1e-4, "nothing was mixed");
                if head == Head::LanguageModel {
                    let source = SoupSource { models: config.models.clone(), weights: weights.clone() };
                    let memory = ModelSource::Soup(source).load(&mut Bases::on(&Device::default())).unwrap();
                    assert_eq!(outputs(&memory), soup, "the soup in memory is that on disk");
                }
            }
        }
    }
    assert!(worst > 0.0);
}

#[test]
fn all_weight_on_one_is_that_one_and_a_smaller_rank_says_what_it_lost() {
    let shapes = [lora(3, 6.0, false, &Target::ALL), lora(2, 2.0, false, &Target::ALL)];
    let (dir, spec) = place(Head::Scalar, Family::Llama, &shapes, 5);
    let one = config(dir.path(), 2, &[0.0, 1.0]);
    assert_eq!(write_new_directory(&one, &quiet()).unwrap().summary["rank"], json!(2));
    assert_eq!(outputs(&open(&one.output_dir, Head::Scalar)), outputs(&open(&dir.path().join("1"), Head::Scalar)));

    let exact = outputs(&dense(dir.path(), &spec, &[0.5, 0.5]));
    let mut before = (f64::INFINITY, f32::INFINITY);
    for rank in [1, 3, 5, 9] {
        let config = SoupConfig {
            output_dir: dir.path().join(format!("rank-{rank}")),
            svd_rank: Some(rank),
            ..config(dir.path(), 2, &[])
        };
        let summary = write_new_directory(&config, &quiet()).unwrap().summary;
        assert_eq!(summary["rank"], json!(rank.min(5)), "nothing is gained by a rank above the exact one");
        let lost = summary["relative_error"].as_f64().unwrap_or(0.0);
        let error = distance(&outputs(&open(&config.output_dir, Head::Scalar)), &exact);
        assert!(lost < before.0 || lost == 0.0, "{lost}");
        assert!((lost == 0.0) == (rank >= 5) && (error < 1e-6) == (rank >= 5), "rank {rank}: {lost} {error}");
        before = (lost, error);
    }
}

#[test]
fn what_cannot_be_mixed_is_named() {
    let shape = lora(2, 2.0, false, &[Target::Query]);
    let (dir, _) = place(Head::LanguageModel, Family::Llama, &[shape.clone(), shape.clone()], 1);
    let (other, _) = place(Head::Scalar, Family::Llama, &[shape], 2);
    let refused = |config: SoupConfig| format!("{:#}", write_new_directory(&config, &quiet()).unwrap_err());
    let models = |models: &[&Path]| models.iter().map(|path| ModelPath::from(*path)).collect::<Vec<_>>();
    let (zero, foreign) = (dir.path().join("0"), other.path().join("0"));
    let plain = config(dir.path(), 2, &[]);
    let error = refused(SoupConfig { models: models(&[&zero, &foreign]), ..plain.clone() });
    assert!(error.contains("adapters of different base models") && error.contains("salsa merge"), "{error}");
    let error = refused(SoupConfig { models: models(&[&zero, &dir.path().join("base")]), ..plain.clone() });
    assert!(error.contains("base is a whole model, others are adapters"), "{error}");
    let error = refused(SoupConfig { models: models(&[&dir.path().join("base"), &zero]), ..plain.clone() });
    assert!(error.contains("base is a whole model, others are adapters"), "{error}");
    let error = refused(SoupConfig { method: Method::Slerp, ..plain.clone() });
    assert!(error.contains("only be mixed with method linear, not slerp"), "{error}");
    let error = refused(SoupConfig { normalize: Some(false), weights: vec![Setting::number(1.0); 2], ..plain.clone() });
    assert!(error.contains("sum to 2, not to 1"), "{error}");
    let error = refused(SoupConfig { svd_rank: Some(1), models: models(&[&dir.path().join("base")]), ..plain });
    assert!(error.contains("svd_rank is for soups of adapters"), "{error}");
}
