//! Searched soups.
use super::*;
use crate::stage::text::source::DataSource;

/// Two models disturbed in opposite directions, one three times as much, and one disturbed otherwise; two sets of texts.
fn config(dir: &Path) -> SoupConfig {
    let base = fixture::base(dir);
    let checkpoint = Checkpoint::open(&base).unwrap();
    let (weights, companions) = (checkpoint.read_weights().unwrap(), Companions::from_dir(&base).unwrap());
    let disturbed = |name: &str, stream: u64, by: f32| {
        let noise = |i: usize| (uniform(7, stream, i as u64) - 0.5) as f32 * by;
        let weights: Vec<f32> = weights.iter().enumerate().map(|(i, w)| w + noise(i)).collect();
        let dir = dir.join(name);
        save(&dir, &checkpoint.spec, &weights, &companions, &[], &SaveOptions::like(&checkpoint)).unwrap();
        dir
    };
    let models = [disturbed("far", 0, 1.2), disturbed("near", 0, -0.4), disturbed("other", 1, 1.5)];
    let write = |name: &str, texts: &[&str]| {
        let lines: Vec<Value> = texts.iter().map(|text| json!({"text": text})).collect();
        fixture::write_lines(&dir.join(name), &lines);
        DataSource::Path(dir.join(name).into())
    };
    let (dataset, eval_dataset) =
        (write("chosen-by.jsonl", &fixture::SENTENCES), write("other.jsonl", &["the dog sat"]));
    SoupConfig {
        models: models.iter().map(Into::into).collect(),
        method: Method::Search,
        search: Some(SearchConfig {
            measure: MeasureConfig { dataset, max_length: 48, max_new_tokens: 4, ..MeasureConfig::default() },
            eval_dataset,
            budget: 40,
        }),
        output_dir: dir.join("soup"),
        ..SoupConfig::default()
    }
}

fn mean(value: &Value) -> f64 {
    value["measured"]["mean"].as_f64().unwrap()
}

fn shares(value: &Value) -> Vec<f64> {
    value["weights"].as_array().unwrap().iter().map(|weight| weight.as_f64().unwrap()).collect()
}

#[test]
fn a_searched_soup_is_the_best_that_was_measured_and_says_what_it_is_worth_elsewhere() {
    let place = tempfile::tempdir().unwrap();
    let config = config(place.path());
    config.check().unwrap();
    let summary = write_new_directory(&config, &StageContext::quiet()).unwrap().summary;
    let record = json_file(&config.output_dir.join("soup.json"));
    let found = &record["search"];
    assert_eq!((record["method"].as_str(), found["measure"].as_str()), (Some("search"), Some("loss")));
    let history = found["history"].as_array().unwrap();
    assert!((30..=40).contains(&history.len()), "{}", history.len());
    assert_eq!(shares(&history[2]), [0.0, 0.0, 1.0]);
    assert_eq!(shares(&history[3]), [1.0 / 3.0; 3]);
    let best = mean(&found["chosen"]);
    assert!(history.iter().all(|measured| mean(measured) >= best) && best < mean(&history[3]));
    assert!(history[..3].iter().all(|alone| mean(alone) > best), "a mean is better than each alone: {found}");
    let weights = shares(&found["chosen"]);
    assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12 && weights[1] > weights[0], "{weights:?}");
    // On the other set: other numbers, of the chosen weights, the equal mean, and the best ingredient.
    let held_out = &found["held_out"];
    assert_eq!(shares(&held_out["chosen"]), weights);
    assert_eq!(shares(&held_out["equal"]), [1.0 / 3.0; 3]);
    assert_eq!(shares(&held_out["best_ingredient"]).iter().sum::<f64>(), 1.0);
    assert!(mean(&held_out["chosen"]) != best);
    assert_eq!(summary["weights"], found["chosen"]["weights"]);
    assert!(!config.output_dir.join("checkpoints").exists());

    // What was measured is what is written: the mean with these weights.
    let plain = SoupConfig {
        method: Method::Linear,
        search: None,
        weights: numbers(&weights),
        output_dir: place.path().join("plain"),
        ..config.clone()
    };
    write_new_directory(&plain, &StageContext::quiet()).unwrap();
    assert!(read(&config.output_dir) == read(&plain.output_dir));

    // Another seed measures other weights.
    let other = SoupConfig { seed: 1, output_dir: place.path().join("seed-1"), ..config.clone() };
    write_new_directory(&other, &StageContext::quiet()).unwrap();
    let other = json_file(&other.output_dir.join("soup.json"));
    assert_eq!(other["search"]["history"][3], history[3]);
    assert_ne!(other["search"]["history"][4], history[4]);
}

#[test]
fn a_search_that_was_killed_goes_on_and_ends_alike() {
    let place = tempfile::tempdir().unwrap();
    let whole = config(place.path());
    let run = |config: &SoupConfig| super::run(config, &StageContext::quiet());
    run(&whole).unwrap();
    let journal = fs::read_to_string(whole.output_dir.join("checkpoints/search.jsonl")).unwrap();
    let lines: Vec<&str> = journal.lines().collect();
    for kept in [1, 3, 9, lines.len() - 1] {
        let torn = SoupConfig { output_dir: place.path().join(format!("torn-{kept}")), ..whole.clone() };
        let checkpoints = torn.output_dir.join("checkpoints");
        fs::create_dir_all(&checkpoints).unwrap();
        let text = lines[..kept].join("\n") + "\n" + &lines[kept][..lines[kept].len() / 2];
        fs::write(checkpoints.join("search.jsonl"), text).unwrap();
        run(&torn).unwrap();
        assert!(read(&whole.output_dir) == read(&torn.output_dir));
        let found = |config: &SoupConfig| json_file(&config.output_dir.join("soup.json"))["search"].clone();
        assert_eq!(found(&whole), found(&torn));
        assert_eq!(fs::read_to_string(checkpoints.join("search.jsonl")).unwrap(), journal);
    }
    // The command keeps the journal, too, in the folder beside the result.
    let interrupted = StageContext::quiet();
    interrupted.interrupt();
    let again = SoupConfig { output_dir: place.path().join("again"), ..whole.clone() };
    let error = format!("{:#}", write_new_directory(&again, &interrupted).unwrap_err());
    assert!(error.contains("interrupted after 0 measurements; the same command goes on"), "{error}");
    let tmp = place.path().join("again.tmp/checkpoints/search.jsonl");
    fs::write(&tmp, lines[..9].join("\n") + "\n").unwrap();
    let error = format!("{:#}", write_new_directory(&again, &interrupted).unwrap_err());
    assert!(error.contains("interrupted after 8 measurements"), "{error}");
    write_new_directory(&again, &StageContext::quiet()).unwrap();
    assert!(read(&whole.output_dir) == read(&again.output_dir) && !place.path().join("again.tmp").exists());
    // A journal of another search is refused.
    let other = SoupConfig { seed: 3, ..whole.clone() };
    let error = format!("{:#}", run(&other).unwrap_err());
    assert!(error.contains("is of a search with other settings; remove it"), "{error}");
}

#[test]
fn a_search_by_a_reward_model_maximises_its_score() {
    let place = tempfile::tempdir().unwrap();
    let mut config = config(place.path());
    let reward = fixture::reward_model(&place.path().join("base"));
    config.search.as_mut().unwrap().measure.reward_model_path = Some(reward.into());
    for name in ["chosen-by.jsonl", "other.jsonl"] {
        let prompts: Vec<Value> = fixture::SENTENCES.iter().map(|text| json!({"prompt": text})).collect();
        fixture::write_lines(&place.path().join(name), &prompts);
    }
    write_new_directory(&config, &StageContext::quiet()).unwrap();
    let found = json_file(&config.output_dir.join("soup.json"))["search"].clone();
    let best = mean(&found["chosen"]);
    assert_eq!(found["measure"], "score");
    assert!(found["history"].as_array().unwrap().iter().all(|measured| mean(measured) <= best));
}

#[test]
fn searches_that_say_nothing_are_refused() {
    let place = tempfile::tempdir().unwrap();
    let config = config(place.path());
    let refused = |change: fn(&mut SoupConfig)| {
        let mut config = config.clone();
        change(&mut config);
        config.check().unwrap_err().to_string()
    };
    fn search(config: &mut SoupConfig) -> &mut SearchConfig {
        config.search.as_mut().unwrap()
    }
    assert!(refused(|c| c.search = None).contains("say search.dataset and search.eval_dataset"));
    assert!(refused(|c| search(c).eval_dataset = DataSource::default()).contains("search.eval_dataset is missing"));
    assert!(refused(|c| search(c).eval_dataset = search(c).measure.dataset.clone()).contains("is search.dataset"));
    assert!(refused(|c| search(c).budget = 4).contains("search.budget is 4; 4 measurements are those of the 3"));
    assert!(refused(|c| c.models.truncate(1)).contains("method search takes 2 models or more"));
    assert!(refused(|c| search(c).measure.max_examples = Some(0)).contains("search.max_examples is 0"));
    assert!(refused(|c| c.weights = numbers(&[1.0; 3])).contains("does not use weights; they are searched for"));
    assert!(refused(|c| c.method = Method::Linear).contains("does not use search"));
}
