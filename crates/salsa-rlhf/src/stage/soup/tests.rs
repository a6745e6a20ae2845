//! Soups of small random checkpoints, compared with plain arithmetic.
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
        Outcome, fixture,
        models::model_source::{ModelSource, SoupSource},
        run_stage, table,
    },
};

mod greedy;
mod methods;
mod refused;
mod search;
mod twins;

/// A folder for the checkpoints of one test.
struct Kitchen(tempfile::TempDir);

/// File format of a test checkpoint.
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

    /// Saves a checkpoint with these weights, rounded to the style's type.
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
        let models = models.iter().map(|path| (*path).into()).collect();
        SoupConfig { models, output_dir: self.path("soup"), ..SoupConfig::default() }
    }

    /// Makes the soup, reads it, and removes it.
    fn soup(&self, config: &SoupConfig) -> Vec<f32> {
        write_new_directory(config, &StageContext::quiet()).unwrap();
        let weights = Checkpoint::open(&config.output_dir).unwrap().read_weights().unwrap();
        fs::remove_dir_all(&config.output_dir).unwrap();
        weights
    }

    /// The error of a refused soup, which must leave no files.
    fn refused(&self, config: &SoupConfig) -> String {
        let error = write_new_directory(config, &StageContext::quiet()).unwrap_err();
        assert!(!config.output_dir.exists() && !self.path("soup.tmp").exists());
        format!("{error:#}")
    }
}

/// A model whose embedding has more than two pieces.
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

/// All files except the timings.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let entries = entries.filter(|entry| entry.file_name() != "timings.json");
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

            // Equal weights: a sum that is divided once.
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
        let source = SoupSource { models: dirs.iter().map(Into::into).collect(), weights: weights.clone() };
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

/// The arithmetic has its own tests; this one checks that complete and correct tensors reach it.
#[test]
fn the_other_methods_work_on_whole_tensors() {
    let (kitchen, spec) = (Kitchen::new(), big());
    let [base, a, b] = ["base", "a", "bb"].map(|name| kitchen.random(name, &spec, F32));
    let [w0, wa, wb] = [&base, &a, &b].map(|dir| read(dir));
    let config = |method| SoupConfig { method, base_model: Some(base.clone().into()), ..kitchen.config(&[&a, &b]) };
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

/// As in mergekit's files: different numbers for different tensors and models.
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
        base_model: Some(base.clone().into()),
        weights: vec![Setting::number(1.0), setting(json!([0.5, 2.0]))],
        densities: vec![Setting::number(0.3), t],
        scale: setting(json!([{"filter": "norm", "value": 0.5}])),
        ..kitchen.config(&[&a, &b])
    };
    let expected = by_tensor(&|name, place, [base, a, b], out| {
        let merge = TaskMerge::ties(1.0).unwrap().with_scale(if name.contains("norm") { 0.5 } else { 1.0 });
        let weights = [1.0, 0.5 + 1.5 * place];
        let mut stream = merge.stream_with_densities(out.len(), &weights, &[0.3, mlp(name, place)]).unwrap();
        while stream.needs_scan() {
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
            base_model: Some(base.clone().into()),
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
    let half = SoupConfig { dtype: Some(Dtype::F16), ..kitchen.config(&[&a, &b]) };
    assert_eq!(dtype_of(half), Dtype::F16);
}

#[test]
fn soup_json_tells_what_it_was_made_of_and_companions_come_along() {
    let (kitchen, spec) = (Kitchen::new(), small());
    let (a, b) = (kitchen.random("a", &spec, F32), kitchen.random("bb", &spec, Style { shard: 5000, ..F32 }));
    fs::write(b.join("tokenizer.json"), "{}").unwrap();
    fs::write(b.join("chat_template.jinja"), "{{ messages }}").unwrap();
    let config =
        SoupConfig { weights: numbers(&[1.0, 3.0]), base_model: Some(a.clone().into()), ..kitchen.config(&[&a, &b]) };
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
    // One half of the pair alone would be wrong too.
    assert!(soup.get("score_mean").is_none() && soup.get("score_std").is_none());
}

#[test]
fn the_report_measures_what_was_written() {
    let (kitchen, spec) = (Kitchen::new(), big());
    let [base, a, b] = ["base", "a", "bb"].map(|name| kitchen.random(name, &spec, F32));
    let config = SoupConfig {
        weights: numbers(&[0.25, 0.75]),
        base_model: Some(base.clone().into()),
        report: true,
        dtype: Some(Dtype::BF16),
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
        // For a mean, up to the rounding of the result.
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

    // Distances are reported without a base, too.
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
    let kind = table::find("soup").unwrap();
    let planned =
        (kind.from_mapping)(given.as_object().unwrap(), &crate::config::Origin::CommandLine, &mut |_, _, _| Ok(None))
            .unwrap();
    assert_eq!(planned.inputs, [a, b]);
    let context = StageContext::quiet();
    let once = || {
        let config = (planned.config.clone(), planned.places.clone());
        run_stage("soup", &kitchen.path("soup"), config, &context, &planned.work).unwrap()
    };
    let Outcome::Done { results, .. } = once() else { panic!("not done") };
    assert_eq!(results["parameters"], small().parameters());
    assert!(matches!(once(), Outcome::Skipped { .. }));
    Checkpoint::open(&kitchen.path("soup")).unwrap();
}
