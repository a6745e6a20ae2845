//! Refused soups, and the absence of files after a failure.
use super::*;

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
    let base = SoupConfig { base_model: Some(b.into()), ..kitchen.config(&[&a]) };
    assert!(kitchen.refused(&base).contains("tokenizer.json differs"));

    fs::write(kitchen.path("wide/adapter_config.json"), "{}").unwrap();
    assert!(refused(&wide).contains("adapter_config.json: peft_type is missing"), "{}", refused(&wide));
    assert!(refused(&kitchen.path("nowhere")).contains("there is no model at"));
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let dirs = [PathBuf::from("a"), PathBuf::from("b")];
    let two = || SoupConfig { models: dirs.iter().map(Into::into).collect(), ..SoupConfig::default() };
    let refused = |config: SoupConfig| config.check().unwrap_err().to_string();
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
        config.check().unwrap();
        if method != Method::TaskArithmetic {
            assert!(refused(SoupConfig { density: Setting::number(1.5), ..config }).contains("density"), "{method:?}");
        }
    }
    let slerp = |models: &[PathBuf], weights: &[f64]| SoupConfig {
        method: Method::Slerp,
        models: models.iter().map(Into::into).collect(),
        weights: numbers(weights),
        ..two()
    };
    slerp(&dirs, &[]).check().unwrap();
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
        // With weight 0, it is not even read.
        assert_eq!(kitchen.soup(&SoupConfig { weights: numbers(&[1.0, 0.0]), ..config.clone() }), read(&a));

        // As a stage: the directory is kept, without any file of a model.
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
        dtype: Some(Dtype::F16),
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

    // Files of a killed process.
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
