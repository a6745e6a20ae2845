//! Ingredients stored in different ways: tied and untied, with adapters, with templates, in a run that was moved.
use salsa_engine::LoraSpec;

use super::*;
use crate::{
    checkpoint::{AdapterToSave, save_adapter},
    config::paths::ModelPath,
    stage::lifecycle::inputs::Input,
};

/// Converts the weights of a tied model to those of one with an output layer.
fn untied(spec: &ModelSpec, weights: &[f32]) -> Vec<f32> {
    let embedding = spec.tensors().into_iter().find(|view| view.name == "model.embed_tokens.weight").unwrap();
    [weights, &weights[embedding.range]].concat()
}

#[test]
fn a_soup_of_tied_and_untied_twins_has_an_output_layer() {
    let kitchen = Kitchen::new();
    let own = ModelSpec { tied_embeddings: false, ..small() };
    let tied = ModelSpec { tied_embeddings: true, ..small() };
    assert_eq!(own.tensors().last().unwrap().name, "lm_head.weight");
    for style in [F32, Style { dtype: Dtype::BF16, ..F32 }] {
        let (a, b) = (kitchen.random("a", &tied, style), kitchen.random("bb", &own, style));
        let wide = untied(&tied, &read(&a));
        for (models, parts) in [([&a, &b], [&wide, &read(&b)]), ([&b, &a], [&read(&b), &wide])] {
            let config = SoupConfig { weights: numbers(&[0.25, 0.75]), ..kitchen.config(&models) };
            write_new_directory(&config, &StageContext::quiet()).unwrap();
            let soup = Checkpoint::open(&config.output_dir).unwrap();
            assert!(!soup.spec.tied_embeddings);
            let mean = parts[0].iter().zip(parts[1]).map(|(x, y)| round(0.75f32.mul_add(*y, 0.25 * x), style.dtype));
            assert!(soup.read_weights().unwrap() == mean.collect::<Vec<f32>>(), "{:?}", style.dtype);
            let record = json_file(&config.output_dir.join("soup.json"));
            for (described, dir) in record["ingredients"].as_array().unwrap().iter().zip(models) {
                let digest = blake3::hash(&fs::read(dir.join("model.safetensors")).unwrap()).to_string();
                assert_eq!(described["files"][0]["blake3"], digest);
            }
            fs::remove_dir_all(&config.output_dir).unwrap();
        }
        // If all models are tied, the soup is, and one of weight 1 is unchanged.
        let alone = SoupConfig { weights: numbers(&[1.0]), ..kitchen.config(&[&a]) };
        assert!(kitchen.soup(&alone) == read(&a));
        [a, b].iter().for_each(|dir| fs::remove_dir_all(dir).unwrap());
    }
}

fn adapter(kitchen: &Kitchen, base: &Path, spec: &ModelSpec) -> PathBuf {
    use salsa_engine::Target;
    let targets = [Target::Query, Target::Down].into_iter().collect();
    let lora = LoraSpec { rank: 3, alpha: 6.0, rslora: false, targets };
    let saved = AdapterToSave {
        base,
        spec,
        lora: &lora,
        weights: &(0..lora.parameters(spec) as u64).map(|i| uniform(5, 5, i) as f32 - 0.5).collect::<Vec<f32>>(),
        dtype: Dtype::F32,
        companions: &Companions::none(),
        scores: &[],
    };
    save_adapter(&kitchen.path("lora"), &saved).unwrap();
    kitchen.path("lora")
}

#[test]
fn an_adapter_is_merged_into_its_model_while_it_is_read() {
    // Rows of the matrices span several pieces.
    let (kitchen, spec) = (Kitchen::new(), ModelSpec { intermediate_size: 70_001, layers: 1, ..small() });
    let [base, other] = ["base", "other"].map(|name| kitchen.random(name, &spec, F32));
    let lora = adapter(&kitchen, &base, &spec);
    let merged = read(&lora);
    assert!(merged != read(&base));
    let named = |model: &Path| ModelPath::from(format!("{}+{}", model.display(), lora.display()));
    let config = SoupConfig { models: vec![named(&base), other.clone().into()], ..kitchen.config(&[]) };
    let config = config.with_adapters_apart().unwrap();
    assert_eq!(
        (&config.models, &config.adapters),
        (&vec![base.clone().into(), other.clone().into()], &vec![lora.clone().into(), "".into()])
    );
    let expected: Vec<f32> = merged.iter().zip(read(&other)).map(|(x, y)| (x + y) / 2.0).collect();
    assert!(kitchen.soup(&config) == expected);
    // The adapter is applied to the named model, not to the one in its configuration.
    let moved = SoupConfig { method: Method::Passthrough, models: vec![named(&other)], ..kitchen.config(&[]) };
    let moved = moved.with_adapters_apart().unwrap();
    let shift = |at: usize| merged[at] - read(&base)[at];
    let (soup, plain) = (kitchen.soup(&moved), read(&other));
    let at = (0..plain.len()).find(|at| shift(*at) != 0.0).unwrap();
    assert!((soup[at] - plain[at] - shift(at)).abs() < 1e-6 && soup != plain);

    write_new_directory(&config, &StageContext::quiet()).unwrap();
    let record = json_file(&config.output_dir.join("soup.json"));
    assert_eq!(record["ingredients"][0]["path"], json!(base));
    assert_eq!(record["ingredients"][0]["adapter"]["path"], json!(lora));
    assert_eq!(record["ingredients"][0]["adapter"]["sha256"].as_str().unwrap().len(), 64);
    assert!(record["ingredients"][1].get("adapter").is_none());
}

#[test]
fn an_adapter_that_cannot_be_merged_is_refused_by_name() {
    let (kitchen, spec) = (Kitchen::new(), small());
    let [base, other] = ["base", "other"].map(|name| kitchen.random(name, &spec, F32));
    let lora = adapter(&kitchen, &base, &spec);
    let apart = |models: &[&str]| {
        let models = models.iter().map(|&model| model.into()).collect();
        SoupConfig { models, ..SoupConfig::default() }.with_adapters_apart().map_err(|error| format!("{error:#}"))
    };
    assert!(apart(&["a+b+c"]).unwrap_err().contains("a model takes one adapter"));
    assert_eq!(apart(&["a", "b"]).unwrap().adapters, [] as [ModelPath; 0]);
    let with_base = SoupConfig { base_model: Some("x+y".into()), ..SoupConfig::default() };
    assert!(with_base.with_adapters_apart().unwrap_err().to_string().contains("salsa merge y --output DIR"));
    // A folder with such a name is a model.
    let plus = kitchen.random("plus+minus", &spec, F32);
    assert_eq!(kitchen.config(&[&plus]).with_adapters_apart().unwrap().models, [ModelPath::from(plus.clone())]);

    let config = |adapters: &[&Path]| SoupConfig {
        adapters: adapters.iter().map(|&path| path.into()).collect(),
        ..kitchen.config(&[&base, &other])
    };
    let count = config(&[&lora]).check().unwrap_err().to_string();
    assert!(count.starts_with("1 adapters for 2 models"), "{count}");
    let error = kitchen.refused(&config(&[&other, Path::new("")]));
    assert!(error.contains("other: there is no adapter_config.json: give a PEFT directory"), "{error}");
    let narrow = kitchen.random("narrow", &ModelSpec { intermediate_size: 32, ..spec }, F32);
    let error =
        kitchen.refused(&SoupConfig { models: vec![narrow.into()], adapters: vec![lora.into()], ..config(&[]) });
    assert!(error.contains("does not fit its base model"), "{error}");
}

#[test]
fn the_chat_template_is_the_one_that_was_asked_for() {
    let (kitchen, spec) = (Kitchen::new(), small());
    let dirs = ["a", "bb", "ccc"].map(|name| kitchen.random(name, &spec, F32));
    let template = |choice: &str| -> Option<String> {
        let config = SoupConfig { chat_template: Some(choice.into()), ..kitchen.config(&dirs.each_ref()) };
        write_new_directory(&config, &StageContext::quiet()).unwrap();
        let found = fs::read_to_string(config.output_dir.join("chat_template.jinja")).ok();
        fs::remove_dir_all(&config.output_dir).unwrap();
        found
    };
    assert_eq!(template("auto"), None);
    for (dir, source) in dirs.iter().zip(["{{ 1 }}", "{{ 2 }}\n", "{{ 2 }}"]) {
        fs::write(dir.join("chat_template.jinja"), source).unwrap();
    }
    assert_eq!(template("auto").unwrap(), "{{ 2 }}");
    assert_eq!(template("chatml").unwrap(), crate::chat::CHATML);
    assert!(template("llama3").unwrap().contains("<|start_header_id|>"));
    assert_eq!(template("{{ messages[0] }}").unwrap(), "{{ messages[0] }}");
    fs::write(kitchen.path("t.jinja"), "{{ 3 }}").unwrap();
    assert_eq!(template(kitchen.path("t.jinja").to_str().unwrap()).unwrap(), "{{ 3 }}");
    for (choice, message) in [("{% if %}", "chat_template: "), ("exaone", "there is no chat template \"exaone\"")] {
        let config = SoupConfig { chat_template: Some(choice.into()), ..kitchen.config(&[&dirs[0]]) };
        assert!(kitchen.refused(&config).contains(message), "{choice}");
    }
}

#[test]
fn a_soup_made_anew_in_a_run_that_was_moved_is_the_same_input() {
    let kitchen = Kitchen::new();
    let run = |name: &str| {
        let run = kitchen.path(name);
        fs::create_dir(&run).unwrap();
        let dirs = ["a", "bb"].map(|model| kitchen.random(model, &small(), F32));
        let moved = dirs.map(|dir| {
            let to = run.join(dir.file_name().unwrap());
            fs::rename(dir, &to).unwrap();
            to
        });
        let config = SoupConfig {
            output_dir: run.join("soup"),
            base_model: Some(moved[0].clone().into()),
            report: true,
            ..kitchen.config(&moved.each_ref())
        };
        write_new_directory(&config, &StageContext::quiet()).unwrap();
        config.output_dir
    };
    let (first, second) = (run("here"), run("there"));
    assert_ne!(json_file(&first.join("soup.json")), json_file(&second.join("soup.json")));
    let digest = |dir: &Path| Input::read(dir).unwrap().sha256;
    assert_eq!(digest(&first), digest(&second));
    fs::write(second.join("config.json"), "{}").unwrap();
    assert_ne!(digest(&first), digest(&second));
}
