//! Soups of small random checkpoints, held against plain arithmetic.
use std::{collections::BTreeMap, fs, path::Path};

use half::{bf16, f16};
use salsa_algo::{
    random::{bits, uniform},
    soup::{TaskMerge, slerp, slerp_from},
};
use salsa_engine::{Head, ModelSpec};
use serde_json::{Value, json};

use super::*;
use crate::{
    checkpoint::{Checkpoint, Companions, Dtype, Family, SaveOptions, SpecialTokens, save},
    stage::{
        Outcome, fixture, kinds,
        reference::{ModelSource, SoupSource},
        run_stage,
    },
};

/// A folder for the checkpoints of one test.
struct Kitchen(tempfile::TempDir);

/// How a test wants its checkpoints.
#[derive(Clone, Copy)]
struct Style {
    dtype: Dtype,
    shard: u64,
}

const F32: Style = Style { dtype: Dtype::F32, shard: u64::MAX };

impl Kitchen {
    fn new() -> Kitchen {
        Kitchen(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A checkpoint with these weights, rounded to the style's type.
    fn put(&self, name: &str, spec: &ModelSpec, weights: &[f32], style: Style) -> PathBuf {
        let tokens = SpecialTokens { bos: Some(1), eos: vec![2], pad: Some(0) };
        let mut options = SaveOptions::new(Family::Llama, tokens, style.dtype);
        options.max_shard_bytes = style.shard;
        save(&self.path(name), spec, weights, &Companions::none(), &[], &options).unwrap();
        self.path(name)
    }

    fn random(&self, name: &str, spec: &ModelSpec, style: Style) -> PathBuf {
        self.put(name, spec, &weights(spec, bits(0, 0, name.len() as u64) ^ u64::from(name.as_bytes()[0])), style)
    }

    fn config(&self, models: &[&PathBuf]) -> SoupConfig {
        let models = models.iter().map(|path| (*path).clone()).collect();
        SoupConfig { models, output_dir: self.path("soup"), ..SoupConfig::default() }
    }

    /// Makes the soup, reads it back, and removes it.
    fn soup(&self, config: &SoupConfig) -> Vec<f32> {
        write_new_directory(config, &StageContext::quiet()).unwrap();
        let weights = Checkpoint::open(&config.output_dir).unwrap().read_weights().unwrap();
        fs::remove_dir_all(&config.output_dir).unwrap();
        weights
    }

    /// The error of a soup that is refused, after which nothing may be there.
    fn refused(&self, config: &SoupConfig) -> String {
        let error = write_new_directory(config, &StageContext::quiet()).unwrap_err();
        assert!(!config.output_dir.exists() && !self.path("soup.tmp").exists());
        format!("{error:#}")
    }
}

/// Enough rows that the embedding is more than two pieces.
fn big() -> ModelSpec {
    ModelSpec { layers: 1, ..fixture::spec(20_000, Head::LanguageModel) }
}

fn small() -> ModelSpec {
    fixture::spec(50, Head::LanguageModel)
}

fn weights(spec: &ModelSpec, seed: u64) -> Vec<f32> {
    (0..spec.parameters() as u64).map(|i| (uniform(seed, 1, i) * 2.0 - 1.0) as f32).collect()
}

fn numbers(values: &[f64]) -> Vec<Setting> {
    values.iter().map(|value| Setting::number(*value)).collect()
}

fn read(dir: &Path) -> Vec<f32> {
    Checkpoint::open(dir).unwrap().read_weights().unwrap()
}

fn round(x: f32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F32 => x,
        Dtype::BF16 => bf16::from_f32(x).to_f32(),
        Dtype::F16 => f16::from_f32(x).to_f32(),
    }
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn linear_is_plain_f32_arithmetic_rounded_once() {
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
        for shard in [u64::MAX, 100_000] {
            let (kitchen, spec, style) = (Kitchen::new(), big(), Style { dtype, shard });
            let dirs = ["a", "bb", "ccc"].map(|name| kitchen.random(name, &spec, style));
            let [a, b, c] = dirs.each_ref().map(|dir| read(dir));
            let config = kitchen.config(&[&dirs[0], &dirs[1]]);
            let soup = kitchen.soup(&SoupConfig { weights: numbers(&[0.25, 0.75]), ..config });
            let expected: Vec<f32> =
                a.iter().zip(&b).map(|(a, b)| round(0.75f32.mul_add(*b, 0.25 * a), dtype)).collect();
            assert!(soup == expected, "{dtype} {shard}");

            // Equal weights are a sum that is divided once.
            let soup = kitchen.soup(&kitchen.config(&dirs.each_ref()));
            let expected: Vec<f32> =
                a.iter().zip(&b).zip(&c).map(|((a, b), c)| round((a + b + c) / 3.0, dtype)).collect();
            assert!(soup == expected, "{dtype} {shard}");

            let config = SoupConfig {
                weights: numbers(&[2.0, -1.0, 0.5]),
                normalize: Some(false),
                ..kitchen.config(&dirs.each_ref())
            };
            let expected: Vec<f32> =
                a.iter().zip(&b).zip(&c).map(|((a, b), c)| round((2.0 * a + -1.0 * b) + 0.5 * c, dtype)).collect();
            assert!(kitchen.soup(&config) == expected, "{dtype} {shard}");
        }
    }
}

#[test]
fn a_soup_in_memory_is_the_one_on_the_disk() {
    let kitchen = Kitchen::new();
    let dirs = ["a", "bb", "ccc"].map(|name| kitchen.random(name, &small(), F32));
    for weights in [vec![], vec![0.2, 0.5, 0.3], vec![1.5, -0.4, -0.1], vec![0.0, 1.0, 0.0]] {
        let source = SoupSource { models: dirs.to_vec(), weights: weights.clone() };
        let (_, in_memory) = ModelSource::Soup(source).read().unwrap();
        let config = SoupConfig { weights: numbers(&weights), ..kitchen.config(&dirs.each_ref()) };
        assert!(kitchen.soup(&config) == in_memory, "{weights:?}");
        assert!((in_memory == read(&dirs[1])) == (weights.contains(&1.0)), "{weights:?}");
    }
}

#[test]
fn one_ingredient_or_equal_ones_come_out_byte_for_byte() {
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
        for shard in [u64::MAX, 3000] {
            let (kitchen, style) = (Kitchen::new(), Style { dtype, shard });
            let (a, b) = (kitchen.random("a", &small(), style), kitchen.random("bb", &small(), style));
            let copy = kitchen.random("a", &small(), style);
            for (models, weights, expected) in [
                ([&a, &b], vec![1.0, 0.0], &a),
                ([&a, &b], vec![0.0, 3.0], &b),
                ([&a, &copy], vec![0.3, 0.7], &a),
                ([&b, &b], vec![], &b),
                ([&b, &b], vec![2.5, -1.5], &b),
            ] {
                let config = SoupConfig {
                    weights: numbers(&weights),
                    max_shard_size: ByteSize(shard),
                    ..kitchen.config(&models)
                };
                write_new_directory(&config, &StageContext::quiet()).unwrap();
                let (soup, expected) = (files(&config.output_dir), files(expected));
                let is_weights = |name: &&String| name.contains("safetensors");
                assert!(expected.keys().filter(is_weights).count() >= 1);
                for name in expected.keys().chain(soup.keys()).filter(is_weights) {
                    assert!(soup.get(name) == expected.get(name), "{name} {dtype} {:?}", config.weights);
                }
                fs::remove_dir_all(&config.output_dir).unwrap();
            }
        }
    }
}

/// Base, first and second ingredient, result.
type Apply<'a> = dyn Fn(&[f32], &[f32], &[f32], &mut [f32]) + 'a;

/// The arithmetic is tested where it lives; here, that whole tensors reach it, and the right ones.
#[test]
fn the_other_methods_work_on_whole_tensors() {
    let (kitchen, spec) = (Kitchen::new(), big());
    let [base, a, b] = ["base", "a", "bb"].map(|name| kitchen.random(name, &spec, F32));
    let [w0, wa, wb] = [&base, &a, &b].map(|dir| read(dir));
    let config = |method| SoupConfig { method, base_model: Some(base.clone()), ..kitchen.config(&[&a, &b]) };
    let by_tensor = |apply: &Apply<'_>| -> Vec<f32> {
        let mut out = vec![0.0; w0.len()];
        for view in spec.tensors() {
            let range = view.range;
            apply(&w0[range.clone()], &wa[range.clone()], &wb[range.clone()], &mut out[range]);
        }
        out
    };
    let ties = SoupConfig {
        density: Setting::number(0.4),
        scale: Setting::number(0.9),
        weights: numbers(&[1.0, 2.0]),
        ..config(Method::Ties)
    };
    let expected = by_tensor(&|base, a, b, out| {
        TaskMerge::ties(0.4).unwrap().with_scale(0.9).apply(base, &[a, b], &[1.0, 2.0], out);
    });
    assert!(kitchen.soup(&ties) == expected);
    let sum = SoupConfig { weights: numbers(&[1.0, 0.5]), ..config(Method::TaskArithmetic) };
    let expected = by_tensor(&|base, a, b, out| TaskMerge::task_arithmetic().apply(base, &[a, b], &[1.0, 0.5], out));
    assert!(kitchen.soup(&sum) == expected);
    let arc = SoupConfig { t: Setting::number(0.3), ..config(Method::Slerp) };
    assert!(kitchen.soup(&arc) == by_tensor(&|base, a, b, out| slerp_from(base, a, b, 0.3, out)));
    let arc = SoupConfig { base_model: None, ..arc };
    assert!(kitchen.soup(&arc) == by_tensor(&|_, a, b, out| slerp(a, b, 0.3, out)));
    assert!(kitchen.soup(&SoupConfig { t: Setting::number(1.0), ..arc }) == wb);
}

/// The tensor's name and place, base, first and second ingredient, result.
type ApplyNamed<'a> = dyn Fn(&str, f64, [&[f32]; 3], &mut [f32]) + 'a;

/// What mergekit's files can say: other numbers for other tensors and models.
#[test]
fn numbers_may_differ_from_tensor_to_tensor() {
    let (kitchen, spec) = (Kitchen::new(), ModelSpec { layers: 3, ..small() });
    let [base, a, b] = ["base", "a", "bb"].map(|name| kitchen.random(name, &spec, F32));
    let [w0, wa, wb] = [&base, &a, &b].map(|dir| read(dir));
    let setting = |value: Value| -> Setting { serde_json::from_value(value).unwrap() };
    let by_tensor = |apply: &ApplyNamed<'_>| -> Vec<f32> {
        let mut out = vec![0.0; w0.len()];
        for view in spec.tensors() {
            let layer = view.name.strip_prefix("model.layers.").map(|rest| f64::from(rest.as_bytes()[0] - b'0') / 2.0);
            let parts = [&w0, &wa, &wb].map(|w| &w[view.range.clone()]);
            apply(&view.name, layer.unwrap_or(0.0), parts, &mut out[view.range]);
        }
        out
    };
    let mlp = |name: &str, place: f64| if name.contains("mlp") { place } else { 0.25 };
    let t = setting(json!([{"filter": "mlp", "value": [0, 1]}, {"value": 0.25}]));
    let arc = SoupConfig { method: Method::Slerp, t: t.clone(), ..kitchen.config(&[&a, &b]) };
    let expected = by_tensor(&|name, place, [_, a, b], out| slerp(a, b, mlp(name, place), out));
    assert!(kitchen.soup(&arc) == expected);

    let mean = SoupConfig { weights: vec![Setting::number(1.0), t.clone()], ..kitchen.config(&[&a, &b]) };
    let expected = by_tensor(&|name, place, [_, a, b], out| {
        let w = mlp(name, place) as f32;
        out.iter_mut().zip(a).zip(b).for_each(|((out, a), b)| *out = w.mul_add(*b, *a) / (1.0 + w));
    });
    assert!(kitchen.soup(&mean) == expected);

    let ties = SoupConfig {
        method: Method::Ties,
        base_model: Some(base.clone()),
        weights: vec![Setting::number(1.0), setting(json!([0.5, 2.0]))],
        densities: vec![Setting::number(0.3), t],
        scale: setting(json!([{"filter": "norm", "value": 0.5}])),
        ..kitchen.config(&[&a, &b])
    };
    let expected = by_tensor(&|name, place, [base, a, b], out| {
        let merge = TaskMerge::ties(1.0).unwrap().with_scale(if name.contains("norm") { 0.5 } else { 1.0 });
        let weights = [1.0, 0.5 + 1.5 * place];
        let mut stream = merge.stream_with_densities(out.len(), &weights, &[0.3, mlp(name, place)]).unwrap();
        while stream.wants_a_look() {
            stream.look(base, &[a, b]);
            stream.looked();
        }
        stream.apply(base, &[a, b], out);
    });
    write_new_directory(&ties, &StageContext::quiet()).unwrap();
    let record = json_file(&ties.output_dir.join("soup.json"));
    assert_eq!(record["ingredients"][1]["weight"], json!([0.5, 2.0]));
    assert!(read(&ties.output_dir) == expected);
    fs::remove_dir_all(&ties.output_dir).unwrap();

    let gap =
        SoupConfig { weights: vec![setting(json!([{"filter": "mlp", "value": 1}])); 2], ..kitchen.config(&[&a, &b]) };
    let error = kitchen.refused(&gap);
    assert!(error.starts_with("model.embed_tokens.weight: no filter of a weight fits"), "{error}");
}

#[test]
fn a_greedy_soup_keeps_what_helps_and_tells_its_steps() {
    let (place, context) = (tempfile::tempdir().unwrap(), StageContext::quiet());
    let base = fixture::base(place.path());
    let checkpoint = Checkpoint::open(&base).unwrap();
    let weights = checkpoint.read_weights().unwrap();
    let companions = Companions::from_dir(&base).unwrap();
    // A model, the same a little and much disturbed, and one disturbed the other way.
    let disturbed = |name: &str, by: f32| {
        let noise = |i: usize| (uniform(7, 0, i as u64) - 0.5) as f32 * by;
        let weights: Vec<f32> = weights.iter().enumerate().map(|(i, w)| w + noise(i)).collect();
        let dir = place.path().join(name);
        save(&dir, &checkpoint.spec, &weights, &companions, &[], &SaveOptions::like(&checkpoint)).unwrap();
        dir
    };
    let models = vec![disturbed("much", 2.0), disturbed("little", 0.3), disturbed("opposite", -0.3)];
    let texts: Vec<Value> = fixture::SENTENCES.iter().map(|text| json!({"text": text})).collect();
    fixture::write_lines(&place.path().join("held-out.jsonl"), &texts);
    let greedy = |reward_model_path| {
        let dataset = crate::stage::source::DataSource::Path(place.path().join("held-out.jsonl"));
        GreedyConfig { dataset, reward_model_path, max_length: 48, max_new_tokens: 4, ..GreedyConfig::default() }
    };
    let config = SoupConfig {
        models: models.clone(),
        method: Method::Greedy,
        greedy: Some(greedy(None)),
        output_dir: place.path().join("soup"),
        ..SoupConfig::default()
    };
    config.validate().unwrap();
    let summary = write_new_directory(&config, &context).unwrap().summary;
    let record = json_file(&config.output_dir.join("soup.json"));
    let steps = record["greedy"]["steps"].as_array().unwrap();
    let loss = |value: &Value| value["mean"].as_f64().unwrap();
    let alone: Vec<f64> = record["greedy"]["alone"].as_array().unwrap().iter().map(loss).collect();
    assert!(alone[0] > alone[1] && alone[0] > alone[2], "{alone:?}");
    assert_eq!((record["method"].as_str(), record["greedy"]["measure"].as_str()), (Some("greedy"), Some("loss")));
    // The two small disturbances cancel out; with the large one it gets worse.
    assert_eq!(steps.iter().map(|step| step["kept"].as_bool().unwrap()).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(steps[2]["ingredient"], 0);
    assert!(loss(&steps[1]["soup"]) < alone[1].min(alone[2]) && loss(&steps[2]["soup"]) > loss(&steps[1]["soup"]));
    let mut kept: Vec<u64> = summary["kept"].as_array().unwrap().iter().map(|i| i.as_u64().unwrap()).collect();
    kept.sort_unstable();
    assert_eq!(kept, [1, 2]);
    let shares: Vec<f64> = (0..3).map(|i| record["ingredients"][i]["weight"].as_f64().unwrap()).collect();
    assert_eq!(shares, [0.0, 0.5, 0.5]);
    let plain = SoupConfig {
        models: models[1..].to_vec(),
        method: Method::Linear,
        greedy: None,
        output_dir: place.path().join("plain"),
        ..config.clone()
    };
    write_new_directory(&plain, &context).unwrap();
    assert!(read(&config.output_dir) == read(&plain.output_dir));

    // By a reward model's score of answers: the same work, other numbers, as often as it is asked.
    let spec = checkpoint.spec.with_head(Head::Scalar);
    let reward = place.path().join("reward");
    let head = checkpoint.spec.convert(&weights, &spec, 3);
    save(&reward, &spec, &head, &companions, &[], &SaveOptions::like(&checkpoint)).unwrap();
    let prompts: Vec<Value> = fixture::SENTENCES.iter().map(|text| json!({"prompt": text})).collect();
    fixture::write_lines(&place.path().join("held-out.jsonl"), &prompts);
    let once = |name: &str| {
        let output_dir = place.path().join(name);
        let config = SoupConfig { greedy: Some(greedy(Some(reward.clone()))), output_dir, ..config.clone() };
        write_new_directory(&config, &context).unwrap();
        json_file(&config.output_dir.join("soup.json"))["greedy"].clone()
    };
    let scored = once("scored");
    assert_eq!(scored["measure"], "score");
    let best = scored["steps"][0]["soup"]["mean"].as_f64().unwrap();
    let singles: Vec<f64> = scored["alone"].as_array().unwrap().iter().map(loss).collect();
    assert!(singles.iter().all(|score| *score <= best) && singles.contains(&best), "{scored}");
    assert_eq!(once("again"), scored);

    let refused = |change: fn(&mut SoupConfig)| {
        let mut config = config.clone();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    };
    assert!(refused(|c| c.greedy = None).contains("say greedy.dataset"));
    assert!(refused(|c| c.weights = numbers(&[1.0; 3])).contains("does not use weights"));
    assert!(refused(|c| c.method = Method::Linear).contains("does not use greedy"));
}

#[test]
fn dare_is_the_same_each_time_and_differs_by_seed_and_tensor() {
    let (kitchen, spec) = (Kitchen::new(), small());
    let zeros = vec![0.0; spec.parameters()];
    let base = kitchen.put("base", &spec, &zeros, F32);
    let ones = kitchen.put("ones", &spec, &vec![1.0; zeros.len()], F32);
    for method in [Method::DareLinear, Method::DareTies] {
        let config = |seed| SoupConfig {
            method,
            seed,
            density: Setting::number(0.5),
            weights: numbers(&[1.0]),
            base_model: Some(base.clone()),
            ..kitchen.config(&[&ones])
        };
        let soup = kitchen.soup(&config(1));
        assert!(soup.iter().all(|x| *x == 0.0 || *x == 2.0));
        assert_eq!(soup, kitchen.soup(&config(1)));
        assert_ne!(soup, kitchen.soup(&config(2)));
        let views = spec.tensors();
        let tensor = |name: &str| &soup[views.iter().find(|view| view.name.contains(name)).unwrap().range.clone()];
        assert_ne!(tensor("layers.0.mlp.up"), tensor("layers.1.mlp.up"));
    }
}

#[test]
fn the_type_can_be_chosen_and_is_the_wider_of_two() {
    let (kitchen, spec) = (Kitchen::new(), small());
    let a = kitchen.random("a", &spec, F32);
    let b = kitchen.random("bb", &spec, Style { dtype: Dtype::BF16, ..F32 });
    let c = kitchen.random("ccc", &spec, Style { dtype: Dtype::F16, ..F32 });
    let dtype_of = |config: SoupConfig| {
        write_new_directory(&config, &StageContext::quiet()).unwrap();
        let opened = Checkpoint::open(&config.output_dir).unwrap();
        assert_eq!(opened.config["dtype"], opened.dtype.config_name());
        fs::remove_dir_all(&config.output_dir).unwrap();
        opened.dtype
    };
    assert_eq!(dtype_of(kitchen.config(&[&a, &b])), Dtype::F32);
    assert_eq!(dtype_of(kitchen.config(&[&b, &c])), Dtype::F32);
    assert_eq!(dtype_of(kitchen.config(&[&b, &b])), Dtype::BF16);
    let half = SoupConfig { dtype: Some(WeightType::Float16), ..kitchen.config(&[&a, &b]) };
    assert_eq!(dtype_of(half), Dtype::F16);
}

#[test]
fn what_does_not_fit_together_is_refused_by_name() {
    let kitchen = Kitchen::new();
    let a = kitchen.random("a", &small(), F32);
    let refused = |other: &PathBuf| kitchen.refused(&kitchen.config(&[&a, other]));
    let wide = kitchen.random("wide", &ModelSpec { intermediate_size: 32, ..small() }, F32);
    assert!(refused(&wide).ends_with("cannot be mixed: intermediate_size is 24 and 32"), "{}", refused(&wide));
    let words = kitchen.random("words", &fixture::spec(51, Head::LanguageModel), F32);
    assert!(refused(&words).ends_with("cannot be mixed: vocab_size is 50 and 51"));
    let reward = kitchen.random("reward", &fixture::spec(50, Head::Scalar), F32);
    assert!(refused(&reward).ends_with("cannot be mixed: head is LanguageModel and Scalar"));
    let longer = kitchen.random("longer", &ModelSpec { max_positions: 99, ..small() }, F32);
    kitchen.soup(&kitchen.config(&[&a, &longer]));

    let b = kitchen.random("b", &small(), F32);
    let tokenizer = |dir: &Path, id: u32| {
        let json = json!({"model": {"type": "BPE", "vocab": {"soup": id}, "merges": []}, "added_tokens": []});
        fs::write(dir.join("tokenizer.json"), json.to_string()).unwrap();
    };
    tokenizer(&a, 1);
    tokenizer(&b, 2);
    assert!(refused(&b).ends_with("tokenizer.json differs: the token \"soup\" is 1 and 2"), "{}", refused(&b));
    let base = SoupConfig { base_model: Some(b), ..kitchen.config(&[&a]) };
    assert!(kitchen.refused(&base).contains("tokenizer.json differs"));

    fs::write(kitchen.path("wide/adapter_config.json"), "{}").unwrap();
    assert!(refused(&wide).contains("adapter_config.json: peft_type is missing"), "{}", refused(&wide));
    assert!(refused(&kitchen.path("nowhere")).contains("there is no model at"));
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let dirs = [PathBuf::from("a"), PathBuf::from("b")];
    let two = || SoupConfig { models: dirs.to_vec(), ..SoupConfig::default() };
    let refused = |config: SoupConfig| config.validate().unwrap_err().to_string();
    assert!(refused(SoupConfig::default()).starts_with("models is empty"));
    assert!(refused(SoupConfig { weights: numbers(&[1.0]), ..two() }).starts_with("1 weights for 2 models"));
    assert!(refused(SoupConfig { weights: numbers(&[1.0, -1.0]), ..two() }).contains("sum to 0"));
    assert!(refused(SoupConfig { weights: numbers(&[0.0, 0.0]), ..two() }).starts_with("all weights are 0"));
    assert!(refused(SoupConfig { weights: numbers(&[1.0, f64::NAN]), ..two() }).contains("NaN"));
    assert!(refused(SoupConfig { t: Setting::number(0.2), ..two() }).starts_with("method linear does not use t"));
    assert!(
        refused(SoupConfig { density: Setting::number(0.2), ..two() })
            .starts_with("method linear does not use density")
    );
    assert!(refused(SoupConfig { max_shard_size: ByteSize(0), ..two() }).starts_with("max_shard_size is 0"));
    for method in [Method::Ties, Method::DareLinear, Method::DareTies, Method::TaskArithmetic] {
        assert!(refused(SoupConfig { method, ..two() }).contains("give it with base_model"), "{method:?}");
        let config = SoupConfig { method, base_model: Some("c".into()), ..two() };
        config.validate().unwrap();
        if method != Method::TaskArithmetic {
            assert!(refused(SoupConfig { density: Setting::number(1.5), ..config }).contains("density"), "{method:?}");
        }
    }
    let slerp = |models: &[PathBuf], weights: &[f64]| SoupConfig {
        method: Method::Slerp,
        models: models.to_vec(),
        weights: numbers(weights),
        ..two()
    };
    slerp(&dirs, &[]).validate().unwrap();
    assert!(refused(slerp(&dirs[..1], &[])).contains("exactly 2 models"));
    assert!(refused(slerp(&dirs, &[0.5, 0.5])).contains("does not use weights"));
}

#[test]
fn broken_ingredients_are_named_and_leave_nothing() {
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
        let (kitchen, spec) = (Kitchen::new(), small());
        let style = Style { dtype, ..F32 };
        let (a, b) = (kitchen.random("a", &spec, style), kitchen.random("bb", &spec, style));
        // All bits set is NaN in each type; the file ends with the last tensor.
        let path = b.join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let end = bytes.len();
        bytes[end - 4..].fill(0xff);
        fs::write(&path, bytes).unwrap();
        let config = kitchen.config(&[&a, &b]);
        let error = kitchen.refused(&config);
        let last = spec.tensors().pop().unwrap();
        assert!(error.contains("bb/model.safetensors: number") && error.contains(&last.name), "{error}");
        assert!(error.contains("NaN: the model is broken"), "{error}");
        // Of weight 0, it is not even read.
        assert_eq!(kitchen.soup(&SoupConfig { weights: numbers(&[1.0, 0.0]), ..config.clone() }), read(&a));

        // As a stage: the directory stays, without anything that looks like a model.
        fs::create_dir(&config.output_dir).unwrap();
        run(&config, &StageContext::quiet()).unwrap_err();
        assert_eq!(fs::read_dir(&config.output_dir).unwrap().count(), 0);
    }
}

#[test]
fn a_number_beyond_the_type_is_refused() {
    let (kitchen, spec) = (Kitchen::new(), small());
    let a = kitchen.put("a", &spec, &vec![60_000.0; spec.parameters()], F32);
    let half = SoupConfig {
        dtype: Some(WeightType::Float16),
        weights: numbers(&[2.0]),
        normalize: Some(false),
        ..kitchen.config(&[&a])
    };
    let error = kitchen.refused(&half);
    assert!(error.contains("is 120000 in the soup, which float16 cannot hold"), "{error}");
    let huge = kitchen.put("huge", &spec, &vec![3e38; spec.parameters()], Style { dtype: Dtype::BF16, ..F32 });
    let sum = SoupConfig { weights: numbers(&[1.0, 1.0]), normalize: Some(false), ..kitchen.config(&[&huge, &huge]) };
    let error = kitchen.refused(&sum);
    assert!(error.contains("is inf in the soup, which bfloat16 cannot hold"), "{error}");
}

#[test]
fn an_interrupted_soup_leaves_nothing_and_can_be_made_again() {
    let kitchen = Kitchen::new();
    let a = kitchen.random("a", &small(), F32);
    let (config, context) = (kitchen.config(&[&a]), StageContext::quiet());
    context.interrupt();
    assert!(write_new_directory(&config, &context).unwrap_err().to_string().starts_with("interrupted"));
    assert!(!config.output_dir.exists() && !kitchen.path("soup.tmp").exists());

    // What a killed process leaves behind.
    fs::create_dir(kitchen.path("soup.tmp")).unwrap();
    fs::write(kitchen.path("soup.tmp/model.safetensors.tmp"), "half").unwrap();
    fs::create_dir(&config.output_dir).unwrap();
    assert_eq!(kitchen.soup(&config), read(&a));
    assert!(!kitchen.path("soup.tmp").exists());

    fs::create_dir(&config.output_dir).unwrap();
    fs::write(config.output_dir.join("precious"), "1").unwrap();
    let error = write_new_directory(&config, &StageContext::quiet()).unwrap_err().to_string();
    assert!(error.contains("is not empty") && config.output_dir.join("precious").exists(), "{error}");
}

#[test]
fn soup_json_tells_what_it_was_made_of_and_companions_come_along() {
    let (kitchen, spec) = (Kitchen::new(), small());
    let (a, b) = (kitchen.random("a", &spec, F32), kitchen.random("bb", &spec, Style { shard: 5000, ..F32 }));
    fs::write(b.join("tokenizer.json"), "{}").unwrap();
    fs::write(b.join("chat_template.jinja"), "{{ messages }}").unwrap();
    let config = SoupConfig { weights: numbers(&[1.0, 3.0]), base_model: Some(a.clone()), ..kitchen.config(&[&a, &b]) };
    write_new_directory(&config, &StageContext::quiet()).unwrap();
    let record = json_file(&config.output_dir.join("soup.json"));
    assert_eq!((&record["method"], &record["ingredients"][1]["weight"]), (&json!("linear"), &json!(0.75)));
    for (described, dir) in [(&record["ingredients"][0], &a), (&record["ingredients"][1], &b), (&record["base"], &a)] {
        assert_eq!(described["path"], json!(dir));
        let shards: Vec<Value> = described["files"].as_array().unwrap().clone();
        let count = files(dir).keys().filter(|name| name.ends_with(".safetensors")).count();
        assert_eq!(shards.len(), count);
        for shard in shards {
            let path = dir.join(shard["name"].as_str().unwrap());
            assert_eq!(shard["blake3"], blake3::hash(&fs::read(&path).unwrap()).to_string());
            assert_eq!(shard["bytes"], path.metadata().unwrap().len());
        }
    }
    let soup = config.output_dir.join("model.safetensors");
    assert_eq!(record["files"][0]["name"], "model.safetensors");
    assert_eq!(record["files"][0]["bytes"], soup.metadata().unwrap().len());
    assert_eq!(record["files"][0]["blake3"], blake3::hash(&fs::read(&soup).unwrap()).to_string());
    assert_eq!(fs::read(config.output_dir.join("chat_template.jinja")).unwrap(), b"{{ messages }}");
    fs::remove_dir_all(&config.output_dir).unwrap();
    let quick = SoupConfig { digests: false, ..config };
    write_new_directory(&quick, &StageContext::quiet()).unwrap();
    let record = json_file(&quick.output_dir.join("soup.json"));
    assert!(record["ingredients"][0]["files"][0].get("blake3").is_none());
    assert!(record["files"][0].get("blake3").is_none());
}

#[test]
fn numbers_of_one_reward_model_are_not_passed_off_as_the_soups() {
    let (kitchen, spec) = (Kitchen::new(), fixture::spec(50, Head::Scalar));
    let dirs = ["a", "bb"].map(|name| kitchen.random(name, &spec, F32));
    for (dir, mean) in dirs.iter().zip([0.5, 0.7]) {
        let mut config = json_file(&dir.join("config.json"));
        config["score_mean"] = json!(mean);
        config["score_std"] = json!(2.0);
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
    }
    let config = kitchen.config(&dirs.each_ref());
    write_new_directory(&config, &StageContext::quiet()).unwrap();
    let soup = json_file(&config.output_dir.join("config.json"));
    assert!(soup.get("score_mean").is_none());
    assert_eq!(soup["score_std"], 2.0);
}

#[test]
fn the_report_measures_what_was_written() {
    let (kitchen, spec) = (Kitchen::new(), big());
    let [base, a, b] = ["base", "a", "bb"].map(|name| kitchen.random(name, &spec, F32));
    let config = SoupConfig {
        weights: numbers(&[0.25, 0.75]),
        base_model: Some(base.clone()),
        report: true,
        dtype: Some(WeightType::BFloat16),
        ..kitchen.config(&[&a, &b])
    };
    let cooked = write_new_directory(&config, &StageContext::quiet()).unwrap();
    let report = json_file(&config.output_dir.join("geometry.json"));
    let [w0, wa, wb, soup] = [&base, &a, &b, &config.output_dir].map(|dir| read(dir));
    let dot = |range: std::ops::Range<usize>, x: &[f32], y: &[f32]| -> f64 {
        range.map(|i| f64::from(x[i] - w0[i]) * f64::from(y[i] - w0[i])).sum()
    };
    let near = |value: &Value, expected: f64| {
        let value = value.as_f64().unwrap();
        assert!((value / expected - 1.0).abs() < 1e-6, "{value} {expected}");
    };
    let check = |part: &Value, range: std::ops::Range<usize>| {
        let dot = |x: &[f32], y: &[f32]| dot(range.clone(), x, y);
        let (aa, bb, ab, ss) = (dot(&wa, &wa), dot(&wb, &wb), dot(&wa, &wb), dot(&soup, &soup));
        near(&part["task_vector_norms"][1], bb.sqrt());
        near(&part["cosines"][0][1], ab / (aa * bb).sqrt());
        near(&part["distances"][1][0], (aa + bb - 2.0 * ab).sqrt());
        near(&part["soup_norm"], ss.sqrt());
        near(&part["soup_distances"][0], (aa + ss - 2.0 * dot(&wa, &soup)).sqrt());
        near(&part["shrinkage"], ss.sqrt() / (0.25 * aa.sqrt() + 0.75 * bb.sqrt()));
        // Of a mean, up to the rounding of what was written.
        let (found, predicted) = (part["shrinkage"].as_f64().unwrap(), part["predicted_shrinkage"].as_f64().unwrap());
        assert!((found - predicted).abs() < 1e-3, "{found} {predicted}");
        assert_eq!(part["parameters"], range.len());
    };
    check(&report["overall"], 0..w0.len());
    for (part, view) in report["tensors"].as_array().unwrap().iter().zip(spec.tensors()) {
        assert_eq!(part["name"], view.name);
        check(part, view.range);
    }
    let groups: Vec<&str> = report["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
    assert_eq!(groups, ["embed_tokens", "layer 0", "norm", "lm_head"]);
    let table = cooked.geometry.unwrap().table();
    assert!(table.contains("cos(A,B)") && table.lines().any(|line| line.starts_with("all ")), "{table}");

    // Without a base there are distances all the same.
    fs::remove_dir_all(&config.output_dir).unwrap();
    let config = SoupConfig { base_model: None, dtype: None, ..config };
    write_new_directory(&config, &StageContext::quiet()).unwrap();
    let overall = &json_file(&config.output_dir.join("geometry.json"))["overall"];
    near(&overall["soup_distances"][1], overall["distances"][0][1].as_f64().unwrap() * 0.25);
    assert!(overall.get("cosines").is_none());
}

#[test]
fn as_a_stage_it_runs_once() {
    let kitchen = Kitchen::new();
    let (a, b) = (kitchen.random("a", &small(), F32), kitchen.random("bb", &small(), F32));
    let given = json!({"models": [a, b], "weights": [0.5, 0.5], "output_dir": kitchen.path("soup")});
    let kind = kinds::find("soup").unwrap();
    let planned = (kind.from_mapping)(given.as_object().unwrap(), &crate::config::Origin::CommandLine).unwrap();
    assert_eq!(planned.inputs, [a, b]);
    let context = StageContext::quiet();
    let once = || {
        let work = || (planned.work)(&context);
        run_stage("soup", &kitchen.path("soup"), planned.config.clone(), &planned.inputs, work).unwrap()
    };
    let Outcome::Done { results, .. } = once() else { panic!("not done") };
    assert_eq!(results["parameters"], small().parameters());
    assert!(matches!(once(), Outcome::Skipped { .. }));
    Checkpoint::open(&kitchen.path("soup")).unwrap();
}
