//! Landscapes between tiny models, compared with separate measurements of the models at their points.
use std::fs;

use serde_json::json;

use super::*;
use crate::{
    config::paths::ModelPath,
    report::Landscape,
    stage::{Outcome, fixture, run_stage, soup, table},
};

/// Three models and a reward model from one base.
struct World(tempfile::TempDir);

impl World {
    fn new() -> World {
        let world = World(tempfile::tempdir().unwrap());
        let base = fixture::base(world.0.path());
        fixture::variants(&base, &[("a", 0, |_| ()), ("b", 1, |_| ()), ("c", 2, |_| ())]);
        fixture::reward_model(&base);
        let prompts: Vec<Value> = fixture::SENTENCES.iter().map(|text| json!({"prompt": text})).collect();
        fixture::write_lines(&world.path("prompts.jsonl"), &prompts);
        let texts: Vec<Value> = fixture::SENTENCES.iter().map(|text| json!({"text": text})).collect();
        fixture::write_lines(&world.path("texts.jsonl"), &texts);
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn config(&self, models: &[&str]) -> LandscapeConfig {
        LandscapeConfig {
            models: models.iter().map(|name| self.path(name).into()).collect(),
            reward_model_path: self.path("reward").into(),
            prompts: DataSource::Path(self.path("prompts.jsonl").into()),
            eval_dataset: Some(DataSource::Path(self.path("texts.jsonl").into())),
            gold: Some(Gold::Kitchen),
            steps: 5,
            divisions: 1,
            margin: 1.0,
            max_new_tokens: 6,
            output_dir: self.path("out"),
            ..LandscapeConfig::default()
        }
    }

    /// Runs the stage as the command does.
    fn run(&self, config: &LandscapeConfig, context: &StageContext) -> anyhow::Result<Outcome> {
        let given = serde_json::to_value(config).unwrap();
        let kind = table::find("landscape").unwrap();
        let planned =
            (kind.from_mapping)(given.as_object().unwrap(), &crate::config::Origin::CommandLine, &mut |_, _, _| {
                Ok(None)
            })
            .unwrap();
        let given = (planned.config.clone(), planned.places.clone());
        run_stage("landscape", &config.output_dir, given, context, &planned.work)
    }
}

fn written(config: &LandscapeConfig) -> Landscape {
    serde_json::from_slice(&fs::read(config.output_dir.join(LANDSCAPE)).unwrap()).unwrap()
}

#[test]
fn further_rewards_are_measured_by_themselves_and_drawn_against_the_first() {
    let world = World::new();
    let alone = world.config(&["a", "b"]);
    world.run(&alone, &fixture::quiet()).unwrap();
    let rewards = json!([
        {"kind": "length", "target": 3, "weight": 5},
        {"kind": "model", "name": "again", "models": [world.path("reward")]},
    ]);
    let output_dir = world.path("rewards");
    let config = LandscapeConfig { rewards: serde_json::from_value(rewards).unwrap(), output_dir, ..alone.clone() };
    world.run(&config, &fixture::quiet()).unwrap();
    let (plain, found) = (written(&alone), written(&config));
    for (plain, found) in plain.points.iter().zip(&found.points) {
        assert_eq!(plain.proxy_score, found.proxy_score, "the first reward is measured as without the others");
        assert_eq!(found.rewards["again"], found.proxy_score);
        // Minus the distance to three tokens, a share of three, without its weight.
        let length = &found.rewards["length"];
        assert!((-1.0..=0.0).contains(&length.mean) && plain.rewards.is_empty(), "{length:?}");
    }
    let (plain, page) = (plain.html(), found.html());
    assert!(!plain.contains("Rewards against each other"));
    for title in ["<figcaption>Length</figcaption>", "<figcaption>Again</figcaption>", "Rewards against each other"] {
        assert!(page.contains(title), "{title}");
    }
    let error = LandscapeConfig { rewards: vec![config.rewards[0].clone(); 2], ..config }.check().unwrap_err();
    assert!(format!("{error:#}").starts_with("rewards[1]: an earlier reward is called \"length\""), "{error:#}");
}

#[test]
fn a_point_of_the_line_is_the_soup_of_its_weights() {
    let world = World::new();
    let config = world.config(&["a", "b"]);
    let Outcome::Done { results, .. } = world.run(&config, &fixture::quiet()).unwrap() else { panic!("not done") };
    assert_eq!(results["points"], 5);
    let landscape = written(&config);
    let places: Vec<f64> = landscape.points.iter().map(|spot| spot.weights[1]).collect();
    assert_eq!(
        (places, &landscape.models[..]),
        (vec![-0.5, 0.0, 0.5, 1.0, 1.5], &["a".to_owned(), "b".to_owned()][..])
    );
    assert!(config.output_dir.join("landscape.html").exists() && !config.output_dir.join("checkpoints").exists());

    // The soup written to disk, measured separately.
    let soup = soup::SoupConfig {
        models: config.models.clone(),
        output_dir: world.path("soup"),
        ..soup::SoupConfig::default()
    };
    soup::write_new_directory(&soup, &fixture::quiet()).unwrap();
    let alone = LandscapeConfig {
        models: vec![world.path("soup").into(), world.path("a").into()],
        steps: 2,
        start: 0.0,
        end: 1.0,
        output_dir: world.path("alone"),
        ..config.clone()
    };
    world.run(&alone, &fixture::quiet()).unwrap();
    let (middle, soup) = (&landscape.points[2], &written(&alone).points[0]);
    assert_eq!(middle.proxy_score, soup.proxy_score);
    assert_eq!((middle.loss, middle.gold_reward), (soup.loss, soup.gold_reward));
    assert!(middle.loss.unwrap().mean > 0.0 && middle.gold_reward.is_some());

    // Differences are from the first model, which has none.
    let (first, last) = (&landscape.points[1], &landscape.points[4]);
    assert!(first.proxy_difference.is_none());
    let difference = last.proxy_score.mean - first.proxy_score.mean;
    assert!((last.proxy_difference.unwrap().mean - difference).abs() < 1e-9);
    assert!(landscape.points.iter().any(|spot| spot.proxy_score != first.proxy_score));
    let lost = last.loss.unwrap().mean - first.loss.unwrap().mean;
    assert!((last.loss_difference.unwrap().mean - lost).abs() < 1e-9 && lost != 0.0);
}

#[test]
fn a_plane_holds_its_three_lines() {
    let world = World::new();
    let config = world.config(&["a", "b", "c"]);
    world.run(&config, &fixture::quiet()).unwrap();
    let plane = written(&config);
    assert_eq!(plane.points.len(), 15);
    let line = LandscapeConfig {
        models: vec![world.path("a").into(), world.path("c").into()],
        start: -1.0,
        end: 2.0,
        steps: 4,
        output_dir: world.path("line"),
        ..config.clone()
    };
    world.run(&line, &fixture::quiet()).unwrap();
    let mut found = 0;
    for on_line in written(&line).points {
        let [a, c] = on_line.weights[..] else { panic!("two weights") };
        for spot in plane.points.iter().filter(|spot| spot.weights == [a, 0.0, c]) {
            assert_eq!((spot.proxy_score, spot.loss), (on_line.proxy_score, on_line.loss));
            found += 1;
        }
    }
    assert_eq!(found, 4);
}

#[test]
fn an_interrupted_run_keeps_its_points_and_goes_on() {
    let world = World::new();
    let config = world.config(&["a", "b"]);
    let context = fixture::quiet();
    context.interrupt();
    let error = world.run(&config, &context).unwrap_err();
    assert!(error.to_string().starts_with("interrupted after step 0 of 5"), "{error}");

    // Recognisable points of an earlier process, to show that they are not measured again.
    world.run(&LandscapeConfig { output_dir: world.path("whole"), ..config.clone() }, &fixture::quiet()).unwrap();
    let point = Measured { scores: vec![7.0; 4], others: Vec::new(), gold: None, losses: None, lengths: vec![1.0; 4] };
    let out = world.path("out");
    world
        .run(&config, &{
            fs::create_dir_all(&out).unwrap();
            let context = fixture::quiet();
            context.interrupt();
            context
        })
        .unwrap_err();
    let record = |dir: &Path| fs::read(dir.join("stage.json"));
    assert!(record(&out).is_err());
    fs::create_dir_all(out.join("checkpoints")).unwrap();
    for i in [0, 3] {
        let text = serde_json::to_string(&point).unwrap();
        fs::write(out.join(format!("checkpoints/point-{i}.json")), text).unwrap();
    }
    let given = serde_json::to_value(&config).unwrap();
    let kind = table::find("landscape").unwrap();
    let planned =
        (kind.from_mapping)(given.as_object().unwrap(), &crate::config::Origin::CommandLine, &mut |_, _, _| Ok(None))
            .unwrap();
    (planned.work)(&fixture::quiet()).unwrap();
    let (resumed, whole) = (written(&config), written(&LandscapeConfig { output_dir: world.path("whole"), ..config }));
    for i in [0, 3] {
        assert_eq!(resumed.points[i].proxy_score.mean, 7.0);
    }
    for i in [1, 2, 4] {
        assert_eq!(resumed.points[i].proxy_score, whole.points[i].proxy_score);
    }
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let world = World::new();
    let refused = |change: fn(&mut LandscapeConfig)| {
        let mut config = world.config(&["a", "b"]);
        change(&mut config);
        config.check().unwrap_err().to_string()
    };
    assert!(refused(|c| c.models.truncate(1)).starts_with("models names 1 checkpoints"));
    assert!(refused(|c| c.reward_model_path = ModelPath::new()).contains("reward_model: DIR"));
    assert!(refused(|c| c.prompts = DataSource::default()).contains("prompts: FILE"));
    assert!(refused(|c| c.end = -1.0).contains("start is -0.5, which is not below end, -1"));
    assert!(refused(|c| c.steps = 1).contains("steps is 1"));
    assert!(refused(|c| c.margin = f64::NAN).contains("margin is NaN"));
    assert!(refused(|c| c.max_prompts = Some(0)).contains("max_prompts is 0"));
    assert!(refused(|c| c.max_examples = Some(0)).contains("max_examples is 0"));
    assert!(refused(|c| c.steps = 100_000).contains("at most 10000"));
    let mixed = LandscapeConfig {
        models: vec![world.path("a").into(), world.path("reward").into()],
        ..world.config(&["a", "b"])
    };
    assert!(format!("{:#}", world.run(&mixed, &fixture::quiet()).unwrap_err()).contains("is a reward model"));
}
