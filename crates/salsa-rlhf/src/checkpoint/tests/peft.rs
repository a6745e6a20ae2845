//! PEFT directories: saving and loading, merging, and errors for unsupported features.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use safetensors::{SafeTensors, tensor::TensorView};
use salsa_engine::{Base, Batch, Device, LoraSpec, Model, Query, Target};

use super::*;

fn lora() -> LoraSpec {
    LoraSpec { rank: 2, alpha: 3.0, rslora: false, targets: [Target::Query, Target::Value, Target::Down].into() }
}

/// Numbers that bfloat16 represents exactly.
fn factors(lora: &LoraSpec, spec: &ModelSpec) -> Vec<f32> {
    (0..lora.parameters(spec)).map(|i| ((i * 29 + 5) % 61) as f32 / 256.0 - 0.125).collect()
}

/// A base and an adapter on it, with this head.
struct Place {
    dir: tempfile::TempDir,
    spec: ModelSpec,
    base_weights: Vec<f32>,
    weights: Vec<f32>,
}

impl Place {
    fn new(family: Family, head: Head, lora: &LoraSpec, dtype: Dtype) -> Place {
        let dir = tempfile::tempdir().unwrap();
        let (spec, base_weights) = save_tiny(&dir.path().join("base"), family, Head::LanguageModel);
        let spec = spec.with_head(head);
        let place = Place { weights: factors(lora, &spec), dir, spec, base_weights };
        place.save(lora, dtype);
        place
    }

    fn save(&self, lora: &LoraSpec, dtype: Dtype) {
        let scores = [("score_mean", json!(0.5)), ("score_std", json!(2.0))];
        let adapter = AdapterToSave {
            base: &self.dir.path().join("base"),
            spec: &self.spec,
            lora,
            weights: &self.weights,
            dtype,
            companions: &Companions::none(),
            scores: if self.spec.head == Head::Scalar { &scores } else { &[] },
        };
        save_adapter(&self.adapter(), &adapter).unwrap();
    }

    fn adapter(&self) -> PathBuf {
        self.dir.path().join("adapter")
    }

    fn edit(&self, edit: impl FnOnce(&mut Value)) -> String {
        edit_json(&self.adapter().join("adapter_config.json"), edit);
        refusal(&self.adapter())
    }

    /// Edits the tensors of the weights file.
    fn rewrite(&self, edit: impl FnOnce(&mut BTreeMap<String, (Vec<usize>, Vec<u8>)>)) {
        let path = self.adapter().join("adapter_model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = read.tensors().into_iter();
        let mut tensors = tensors.map(|(name, view)| (name, (view.shape().to_vec(), view.data().to_vec()))).collect();
        edit(&mut tensors);
        let views = tensors.iter().map(|(name, (shape, data))| {
            (name, TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
        });
        fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }
}

fn outputs(model: &Model) -> Vec<f32> {
    let (mut batch, mut query) = (Batch::new(), Query::default());
    let rows = batch.push(&[1, 5, 9, 2, 7, 3]);
    if model.spec().head == Head::Scalar {
        query.value_rows.extend(rows.map(|row| row as u32));
    } else {
        query.push_logprobs(rows, &[1, 5, 9, 2, 7, 3], 1);
    }
    let output = model.forward(&batch, &query);
    [output.logprobs, output.values].concat()
}

#[test]
fn every_family_head_and_type_comes_back_and_is_the_same_model_merged() {
    for family in Family::ALL {
        for head in [Head::LanguageModel, Head::Scalar] {
            for dtype in [Dtype::F32, Dtype::BF16] {
                let fused = [Target::FusedQkv, Target::FusedGateUp, Target::Down].into();
                let targets = if family == Family::Phi3 { fused } else { lora().targets };
                let lora = LoraSpec { rslora: dtype == Dtype::BF16, targets, ..lora() };
                let place = Place::new(family, head, &lora, dtype);
                let opened = Checkpoint::open(&place.adapter()).unwrap();
                let adapter = opened.adapter().unwrap();
                assert_eq!((&opened.spec, &adapter.lora, adapter.head), (&place.spec, &lora, head));
                assert_eq!(adapter.read(&opened.spec).unwrap(), place.weights, "{family} {head:?} {dtype}");
                assert_eq!(opened.score_normalization(), (head == Head::Scalar).then_some((0.5, 2.0)));
                assert_eq!(opened.tokens, tokens());

                let merged = place.dir.path().join("merged");
                merge(&opened, &merged, None, 700).unwrap();
                let whole = Checkpoint::open(&merged).unwrap();
                assert!(whole.adapter().is_none() && whole.score_normalization() == opened.score_normalization());
                assert_eq!((&whole.spec, &whole.tokens), (&opened.spec, &opened.tokens));
                let weights = whole.read_weights().unwrap();
                assert_eq!(weights, opened.read_weights().unwrap());

                let stored = opened.stored_weights(Head::LanguageModel).unwrap();
                let base = Arc::new(Base::new(stored.spec.clone(), &stored, Device::default()).unwrap());
                let adapted = outputs(&Model::on(base, head, &lora, &place.weights).unwrap());
                let dense = outputs(&Model::new(whole.spec.clone(), &weights, Device::default()).unwrap());
                for (a, b) in adapted.iter().zip(&dense) {
                    assert!((a - b).abs() < 2e-5 * (1.0 + b.abs()), "{family} {head:?}: {a} and {b}");
                }
            }
        }
    }
}

#[test]
fn merging_adds_the_scaled_product_and_nothing_else() {
    let place = Place::new(Family::Llama, Head::LanguageModel, &lora(), Dtype::F32);
    let merged = Checkpoint::open(&place.adapter()).unwrap().read_weights().unwrap();
    let (spec, factors) = (&place.spec, lora().tensors(&place.spec));
    let part = |name: &str| factors.iter().find(|t| t.name == name).map(|t| &place.weights[t.range.clone()]);
    let mut changed = 0;
    for tensor in spec.tensors() {
        let (was, is) = (&place.base_weights[tensor.range.clone()], &merged[tensor.range.clone()]);
        let factor = |letter: &str| part(&tensor.name.replace(".weight", &format!(".lora_{letter}.weight")));
        let (Some(a), Some(b)) = (factor("A"), factor("B")) else {
            assert_eq!(was, is, "{}", tensor.name);
            continue;
        };
        changed += 1;
        let columns = tensor.shape[1];
        for (i, (was, is)) in was.iter().zip(is).enumerate() {
            let (row, column) = (i / columns, i % columns);
            // alpha 3 over rank 2 is 1.5.
            let product: f32 = (0..2).map(|k| b[row * 2 + k] * a[k * columns + column]).sum();
            assert!((was + 1.5 * product - is).abs() < 1e-6, "{} {i}", tensor.name);
        }
    }
    assert_eq!(changed, 3 * spec.layers);
}

#[test]
fn saving_again_gives_the_same_bytes() {
    let place = Place::new(Family::Llama, Head::Scalar, &lora(), Dtype::F32);
    let read = || {
        ["adapter_config.json", "adapter_model.safetensors", "score_normalization.json"]
            .map(|n| fs::read(place.adapter().join(n)).unwrap())
    };
    let first = read();
    place.save(&lora(), Dtype::F32);
    assert!(read() == first);
}

#[test]
fn other_spellings_are_read() {
    let place = Place::new(Family::Llama, Head::Scalar, &lora(), Dtype::F32);
    let expected = Checkpoint::open(&place.adapter()).unwrap().read_weights().unwrap();
    // The format of old versions: the adapter's name in tensor names, the head under modules_to_save, no task type.
    place.rewrite(|tensors| {
        *tensors = std::mem::take(tensors)
            .into_iter()
            .map(|(name, tensor)| {
                let name = name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default.");
                (name.replace("score.", "score.modules_to_save.default."), tensor)
            })
            .collect();
    });
    edit_json(&place.adapter().join("adapter_config.json"), |config| {
        let keys = config.as_object_mut().unwrap();
        for key in ["task_type", "use_dora", "use_rslora", "rank_pattern", "alpha_pattern"] {
            keys.shift_remove(key);
        }
        config["target_modules"] = json!(".*(q_proj|v_proj|down_proj)$");
        config["lora_dropout"] = json!(0.05);
        config["peft_version"] = json!("0.99");
    });
    assert_eq!(Checkpoint::open(&place.adapter()).unwrap().read_weights().unwrap(), expected);
}

#[test]
fn the_base_is_found_from_the_working_directory_the_adapter_and_its_neighbours() {
    let place = Place::new(Family::Llama, Head::LanguageModel, &lora(), Dtype::F32);
    for written in ["../base", "/somewhere/else/base"] {
        edit_json(&place.adapter().join("adapter_config.json"), |c| c["base_model_name_or_path"] = json!(written));
        let opened = Checkpoint::open(&place.adapter()).unwrap();
        assert_eq!(opened.base_dir().canonicalize().unwrap(), place.dir.path().join("base").canonicalize().unwrap());
    }
    let error = place.edit(|c| c["base_model_name_or_path"] = json!("/no/such/model"));
    assert_has(&error, &["adapter", "\"/no/such/model\" is not there", "set base_model_name_or_path in"]);
}

#[test]
fn options_that_are_not_supported_are_named() {
    let cases: Vec<(&str, Value, &str)> = vec![
        ("use_dora", json!(true), "use_dora is true"),
        ("bias", json!("all"), "bias is \"all\""),
        ("rank_pattern", json!({ "q_proj": 4 }), "rank_pattern is"),
        ("alpha_pattern", json!({ "q_proj": 4 }), "alpha_pattern is"),
        ("layers_to_transform", json!([0]), "layers_to_transform is"),
        ("layers_pattern", json!("h"), "layers_pattern is"),
        ("modules_to_save", json!(["score", "lm_head"]), "score, can be trained beside an adapter; merge it"),
        ("init_lora_weights", json!("pissa_niter_4"), "init_lora_weights is \"pissa_niter_4\""),
        ("peft_type", json!("IA3"), "peft_type \"IA3\""),
        ("peft_type", json!(null), "peft_type is missing"),
        ("task_type", json!("SEQ_2_SEQ_LM"), "task_type \"SEQ_2_SEQ_LM\""),
        ("r", json!(0), "r is 0"),
        ("r", json!(1u64 << 63), "r is 9223372036854775808"),
        ("lora_alpha", json!(1e300), "lora_alpha is 1e+300"),
        ("r", json!(3), "[2, 12], but"),
        ("lora_alpha", json!("x"), "lora_alpha is \"x\""),
        ("base_model_name_or_path", json!(null), "base_model_name_or_path is missing"),
    ];
    for (key, value, expected) in cases {
        let place = Place::new(Family::Llama, Head::LanguageModel, &lora(), Dtype::F32);
        assert_has(&place.edit(|config| config[key] = value), &[expected]);
    }
}

/// PEFT also saves embedding and head if the vocabulary was resized, or it cannot access the base.
#[test]
fn whole_layers_beside_the_factors_are_taken_if_they_are_the_base_s() {
    let place = || Place::new(Family::Llama, Head::LanguageModel, &lora(), Dtype::F32);
    let add = |place: &Place, layer: &str, shape: &[usize], numbers: &[f32]| {
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        place.rewrite(|tensors| drop(tensors.insert(format!("base_model.model.{layer}"), (shape.to_vec(), bytes))));
    };
    let of_base = |place: &Place, layer: &str| {
        let view = place.spec.tensors().into_iter().find(|view| view.name == layer).unwrap();
        place.base_weights[view.range].to_vec()
    };
    let layers = ["model.embed_tokens.weight", "lm_head.weight"];
    let one = place();
    let expected = Checkpoint::open(&one.adapter()).unwrap().read_weights().unwrap();
    layers.iter().for_each(|layer| add(&one, layer, &[11, 12], &of_base(&one, layer)));
    assert_eq!(Checkpoint::open(&one.adapter()).unwrap().read_weights().unwrap(), expected);

    for layer in layers {
        let mut numbers = of_base(&one, layer);
        numbers[131] += 0.5;
        let one = place();
        add(&one, layer, &[11, 12], &numbers);
        assert_has(&refusal(&one.adapter()), &[layer, "differs from that of the base", "merge_and_unload"]);
        let one = place();
        add(&one, layer, &[12, 12], &vec![0.0; 144]);
        assert_has(&refusal(&one.adapter()), &[layer, "[12, 12]", "[11, 12]", "resized", "merge_and_unload"]);
    }
    // With tied embeddings the head is the embedding; a reward adapter's base has an unused head.
    for (family, head) in [(Family::Gemma, Head::LanguageModel), (Family::Llama, Head::Scalar)] {
        let one = Place::new(family, head, &lora(), Dtype::F32);
        let base = Checkpoint::open(&one.dir.path().join("base")).unwrap();
        let of = if base.spec.tied_embeddings { layers[0] } else { layers[1] };
        add(&one, layers[1], &[11, 12], &base.read_tensor(of).unwrap());
        Checkpoint::open(&one.adapter()).unwrap().read_weights().unwrap();
    }
}

#[test]
fn broken_weights_are_one_clear_error() {
    let place = || Place::new(Family::Llama, Head::LanguageModel, &lora(), Dtype::F32);
    let name = |rest: &str| format!("base_model.model.model.layers.1.{rest}.weight");

    let one = place();
    one.rewrite(|tensors| drop(tensors.remove(&name("self_attn.v_proj.lora_B"))));
    assert_has(&refusal(&one.adapter()), &["model.layers.1.self_attn.v_proj.lora_B.weight is missing", "all 2 blocks"]);

    let one = place();
    one.rewrite(|tensors| {
        let tensor = tensors[&name("self_attn.q_proj.lora_A")].clone();
        tensors.insert("base_model.model.lm_head.lora_A.weight".to_owned(), tensor);
    });
    assert_has(&refusal(&one.adapter()), &["lm_head.lora_A.weight is not supported", "q_proj", "merge_and_unload"]);

    let one = place();
    one.rewrite(|tensors| {
        let tensor = tensors[&name("self_attn.q_proj.lora_A")].clone();
        tensors.insert("base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight".to_owned(), tensor);
    });
    assert_has(&refusal(&one.adapter()), &["layers.2.self_attn.q_proj.lora_A.weight belongs to no part", "2 blocks"]);

    let one = place();
    one.rewrite(|tensors| {
        let (shape, data) = &mut tensors.get_mut(&name("mlp.down_proj.lora_B")).unwrap();
        assert_eq!(*shape, [12, 2]);
        data[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    assert_has(&refusal(&one.adapter()), &["number 1 of model.layers.1.mlp.down_proj.lora_B.weight is NaN"]);

    let one = place();
    let path = one.adapter().join("adapter_model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
    assert_has(&refusal(&one.adapter()), &["adapter_model.safetensors", "cut off"]);
    fs::remove_file(&path).unwrap();
    assert_has(&refusal(&one.adapter()), &["no adapter_model.safetensors"]);
    fs::write(one.adapter().join("adapter_model.bin"), b"").unwrap();
    assert_has(&refusal(&one.adapter()), &["a pickle file", "save_file"]);
}

#[test]
fn heads_that_do_not_fit_are_named() {
    let place = Place::new(Family::Llama, Head::LanguageModel, &lora(), Dtype::F32);
    let error = place.edit(|config| config["task_type"] = json!("SEQ_CLS"));
    assert_has(&error, &["without score.weight", "modules_to_save"]);

    let place = Place::new(Family::Llama, Head::LanguageModel, &lora(), Dtype::F32);
    save_tiny(&place.dir.path().join("base"), Family::Llama, Head::Scalar);
    assert_has(&refusal(&place.adapter()), &["an adapter for a language model", "is a reward model"]);

    let place = Place::new(Family::Llama, Head::LanguageModel, &lora(), Dtype::F32);
    let error = place.edit(|config| config["base_model_name_or_path"] = json!("../adapter"));
    assert_has(&error, &["is an adapter itself", "salsa merge"]);

    let whole = Checkpoint::open(&place.dir.path().join("base")).unwrap();
    let error = format!("{:#}", merge(&whole, &place.dir.path().join("m"), None, 1000).unwrap_err());
    assert_has(&error, &["is no adapter"]);
}
