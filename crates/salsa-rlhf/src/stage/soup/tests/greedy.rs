//! Greedy soups.
use super::*;

#[test]
fn a_greedy_soup_keeps_what_helps_and_tells_its_steps() {
    let (place, context) = (tempfile::tempdir().unwrap(), StageContext::quiet());
    let base = fixture::base(place.path());
    let checkpoint = Checkpoint::open(&base).unwrap();
    let weights = checkpoint.read_weights().unwrap();
    let companions = Companions::from_dir(&base).unwrap();
    // A model, the same with a small and a large perturbation, and one perturbed in the opposite direction.
    let disturbed = |name: &str, by: f32| {
        let noise = |i: usize| (uniform(7, 0, i as u64) - 0.5) as f32 * by;
        let weights: Vec<f32> = weights.iter().enumerate().map(|(i, w)| w + noise(i)).collect();
        let dir = place.path().join(name);
        save(&dir, &checkpoint.spec, &weights, &companions, &[], &SaveOptions::like(&checkpoint)).unwrap();
        dir
    };
    let models = [disturbed("much", 2.0), disturbed("little", 0.3), disturbed("opposite", -0.3)];
    let texts: Vec<Value> = fixture::SENTENCES.iter().map(|text| json!({"text": text})).collect();
    fixture::write_lines(&place.path().join("held-out.jsonl"), &texts);
    let greedy = |reward_model_path| {
        let dataset = crate::stage::text::source::DataSource::Path(place.path().join("held-out.jsonl").into());
        MeasureConfig { dataset, reward_model_path, max_length: 48, max_new_tokens: 4, ..MeasureConfig::default() }
    };
    let config = SoupConfig {
        models: models.iter().map(Into::into).collect(),
        method: Method::Greedy,
        greedy: Some(greedy(None)),
        output_dir: place.path().join("soup"),
        ..SoupConfig::default()
    };
    config.check().unwrap();
    let summary = write_new_directory(&config, &context).unwrap().summary;
    let record = json_file(&config.output_dir.join("soup.json"));
    let steps = record["greedy"]["steps"].as_array().unwrap();
    let loss = |value: &Value| value["mean"].as_f64().unwrap();
    let alone: Vec<f64> = record["greedy"]["alone"].as_array().unwrap().iter().map(loss).collect();
    assert!(alone[0] > alone[1] && alone[0] > alone[2], "{alone:?}");
    assert_eq!((record["method"].as_str(), record["greedy"]["measure"].as_str()), (Some("greedy"), Some("loss")));
    // The two small perturbations cancel out; the large one makes it worse.
    assert_eq!(steps.iter().map(|step| step["kept"].as_bool().unwrap()).collect::<Vec<_>>(), [true, true, false]);
    assert_eq!(steps[2]["ingredient"], 0);
    assert!(loss(&steps[1]["soup"]) < alone[1].min(alone[2]) && loss(&steps[2]["soup"]) > loss(&steps[1]["soup"]));
    let mut kept: Vec<u64> = summary["kept"].as_array().unwrap().iter().map(|i| i.as_u64().unwrap()).collect();
    kept.sort_unstable();
    assert_eq!(kept, [1, 2]);
    let shares: Vec<f64> = (0..3).map(|i| record["ingredients"][i]["weight"].as_f64().unwrap()).collect();
    assert_eq!(shares, [0.0, 0.5, 0.5]);
    let plain = SoupConfig {
        models: models[1..].iter().map(Into::into).collect(),
        method: Method::Linear,
        greedy: None,
        output_dir: place.path().join("plain"),
        ..config.clone()
    };
    write_new_directory(&plain, &context).unwrap();
    assert!(read(&config.output_dir) == read(&plain.output_dir));

    // By a reward model's score of answers: same procedure, other numbers, reproducible.
    let reward = fixture::reward_model(&base);
    let prompts: Vec<Value> = fixture::SENTENCES.iter().map(|text| json!({"prompt": text})).collect();
    fixture::write_lines(&place.path().join("held-out.jsonl"), &prompts);
    let once = |name: &str| {
        let output_dir = place.path().join(name);
        let config = SoupConfig { greedy: Some(greedy(Some(reward.clone().into()))), output_dir, ..config.clone() };
        write_new_directory(&config, &context).unwrap();
        json_file(&config.output_dir.join("soup.json"))["greedy"].clone()
    };
    let scored = once("scored");
    assert_eq!(scored["measure"], "score");
    let best = scored["steps"][0]["soup"]["mean"].as_f64().unwrap();
    let singles: Vec<f64> = scored["alone"].as_array().unwrap().iter().map(loss).collect();
    assert!(singles.iter().all(|score| *score <= best) && singles.contains(&best), "{scored}");
    assert_eq!(once("again"), scored);

    // A single prompt gives a score too.
    fixture::write_lines(&place.path().join("held-out.jsonl"), &prompts[..1]);
    assert!(once("one")["alone"][0]["mean"].is_f64());

    let refused = |change: fn(&mut SoupConfig)| {
        let mut config = config.clone();
        change(&mut config);
        config.check().unwrap_err().to_string()
    };
    let none = refused(|c| c.greedy.as_mut().unwrap().max_examples = Some(0));
    assert!(none.contains("greedy.max_examples is 0"), "{none}");
    assert!(refused(|c| c.greedy = None).contains("say greedy.dataset"));
    assert!(refused(|c| c.weights = numbers(&[1.0; 3])).contains("does not use weights"));
    assert!(refused(|c| c.method = Method::Linear).contains("does not use greedy"));
    let error = refused(|c| c.greedy = Some(MeasureConfig::default()));
    assert!(error.contains("greedy.dataset") && error.contains("greedy.reward_model_path"), "{error}");
}
