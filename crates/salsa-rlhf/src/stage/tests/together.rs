//! Stages that several processes run together, played by threads: the same bytes on 1, 2 and 4 of them.
use std::{collections::BTreeMap, sync::Arc};

use salsa_engine::{comm::in_process, with_threads};

use super::*;
use crate::{
    config::paths::Places,
    recipe::{Changes, Recipe, Source},
    stage::{
        Outcome, Stage,
        eval::{
            evaluate::config::{EvalSet, EvaluateConfig},
            landscape::LandscapeConfig,
        },
        optimizer::OptimizerArguments,
        rl::{
            arguments::{RunArguments, SamplingArguments},
            grpo::config::GrpoConfig,
            online_dpo::OnlineDpoConfig,
            ppo::config::{CriticKind, PpoConfig},
        },
        run_stage,
        table::STAGES,
    },
};

/// Runs `f` on so many processes; the results are in the order of processes.
fn together<R: Send>(processes: usize, f: impl Fn(&StageContext) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let play = |comm| scope.spawn(|| with_threads(1, || f(&quiet().with_ranks(Arc::new(comm)))));
        let threads: Vec<_> = in_process(processes).into_iter().map(play).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// All files below a directory but those with times in them.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut files, mut dirs) = (BTreeMap::new(), vec![dir.to_owned()]);
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if path.is_dir() {
                dirs.push(path);
            } else if !name.contains("tfevents") {
                files.insert(path.strip_prefix(dir).unwrap().display().to_string(), fs::read(path).unwrap());
            }
        }
    }
    files
}

fn assert_equal(found: &Path, expected: &Path, what: &str) {
    let (found, expected) = (files(found), files(expected));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    for (name, bytes) in &expected {
        assert!(found[name] == *bytes, "{name} differs: {what}");
    }
}

/// A larger base than that of the other tests: several slices of the flat weights have something in them.
fn base(dir: &Path) -> std::path::PathBuf {
    fixture::base(dir);
    let config = PretrainConfig {
        dataset: DataSource::Path(dir.join("texts.jsonl").into()),
        output_dir: dir.join("wide"),
        tokenizer_name_or_path: Some(dir.join("base").into()),
        hidden_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        max_position_embeddings: 96,
        max_length: 48,
        learning_rate: 0.01,
        training: TrainingArguments { max_steps: 4, ..TrainingArguments::default() },
        ..PretrainConfig::default()
    };
    pretrain::run(&config, &quiet()).unwrap();
    config.output_dir
}

/// Six steps in four gradient units, with a checkpoint after every third.
fn units(units: impl Into<Option<usize>>) -> TrainingArguments {
    TrainingArguments {
        per_device_train_batch_size: 6,
        gradient_accumulation_steps: 2,
        per_device_eval_batch_size: 5,
        optimizer: OptimizerArguments { gradient_units: units.into(), ..OptimizerArguments::default() },
        ..arguments(6)
    }
}

/// Runs a stage on 1, 2 and 4 processes, then resumes it from its first checkpoint on another number, and compares all
/// files: weights, moments, metrics, samples.
fn is_the_same_on_any_number<C: Clone + Sync>(
    dir: &Path,
    name: &str,
    config: &C,
    run: impl Fn(&C, &StageContext) -> Result<Value> + Sync,
    at: impl Fn(&C, &Path) -> C + Sync,
) {
    let out = |processes: usize| dir.join(format!("{name}-on-{processes}"));
    for processes in [1, 2, 4] {
        let config = at(config, &out(processes));
        together(processes, |context| run(&config, context).unwrap());
        if processes > 1 {
            assert_equal(&out(processes), &out(1), &format!("{name} on {processes}"));
        }
    }
    // As after a kill: what came after the first checkpoint is not whole.
    let checkpoints = out(4).join("checkpoints");
    let last = fs::read_dir(&checkpoints).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
    fs::write(last.join("state.json"), "{").unwrap();
    let config = at(config, &out(4));
    together(2, |context| run(&config, context).unwrap());
    assert_equal(&out(4), &out(1), &format!("{name}, begun on 4 and ended on 2"));
}

#[test]
fn supervised_stages_are_the_same_on_any_number() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path());
    let to = Path::to_owned;
    let sft = SftConfig { training: units(4), ..sft_config(dir.path(), &base) };
    let at = |config: &SftConfig, dir: &Path| SftConfig { output_dir: to(dir), ..config.clone() };
    is_the_same_on_any_number(dir.path(), "sft", &sft, sft::run, at);
    let packed = SftConfig { packing: true, ..sft };
    is_the_same_on_any_number(dir.path(), "packed", &packed, sft::run, at);
    let reward = RewardConfig { training: units(4), ..reward_config(dir.path(), &base) };
    is_the_same_on_any_number(dir.path(), "reward", &reward, reward::run, |config, dir| RewardConfig {
        output_dir: to(dir),
        ..config.clone()
    });
    let dpo = DpoConfig { training: units(4), ..dpo_config(dir.path(), &base, LossType::Sigmoid) };
    is_the_same_on_any_number(dir.path(), "dpo", &dpo, dpo::run, |config, dir| DpoConfig {
        output_dir: to(dir),
        ..config.clone()
    });
    let kto = KtoConfig { training: units(4), ..kto_config(dir.path(), &base) };
    is_the_same_on_any_number(dir.path(), "kto", &kto, kto::run, |config, dir| KtoConfig {
        output_dir: to(dir),
        ..config.clone()
    });
}

/// A base, a reward model and prompts of unequal length.
fn world(dir: &Path) -> SamplingArguments {
    let base = base(dir);
    let reward = RewardConfig { training: arguments(4), ..reward_config(dir, &base) };
    reward::run(&reward, &quiet()).unwrap();
    let prompt = |i: usize| json!({"prompt": fixture::SENTENCES[..=i % 4].join(" ")});
    fixture::write_lines(&dir.join("prompts.jsonl"), &(0..7).map(prompt).collect::<Vec<_>>());
    SamplingArguments {
        total_episodes: 36,
        batch_size: 12,
        response_length: 6,
        temperature: 1.0,
        ..SamplingArguments::default()
    }
}

fn four_units() -> OptimizerArguments {
    OptimizerArguments { gradient_units: Some(4), ..OptimizerArguments::default() }
}

#[test]
fn ppo_is_the_same_on_any_number() {
    let dir = tempfile::tempdir().unwrap();
    let sampling = world(dir.path());
    let source = |name: &str| dir.path().join(name).into();
    let soup = json!({"kind": "soup", "models": [dir.path().join("wide"), dir.path().join("wide")]});
    for (name, critic, reference) in
        [("ppo", CriticKind::Separate, soup), ("ppo-shared", CriticKind::Shared, json!({"kind": "ema", "decay": 0.5}))]
    {
        let config = PpoConfig {
            model_name_or_path: ModelSource::Path(source("wide")),
            reward_model_path: source("reward"),
            dataset: DataSource::Path(dir.path().join("prompts.jsonl").into()),
            reference: serde_json::from_value(reference).unwrap(),
            anchors: [("start".to_owned(), ModelSource::Path(source("wide")))].into(),
            sampling: sampling.clone(),
            num_ppo_epochs: 2,
            num_mini_batches: 2,
            whiten_rewards: true,
            critic,
            learning_rate: 3e-3,
            optimizer: four_units(),
            run: RunArguments { save_steps: 1.into(), ..RunArguments::default() },
            ..PpoConfig::default()
        };
        is_the_same_on_any_number(dir.path(), name, &config, Stage::run, |config, dir| PpoConfig {
            output_dir: dir.to_owned(),
            ..config.clone()
        });
    }
}

#[test]
fn group_methods_are_the_same_on_any_number() {
    let dir = tempfile::tempdir().unwrap();
    let sampling = world(dir.path());
    let source = |name: &str| dir.path().join(name).into();
    let config = GrpoConfig {
        model_name_or_path: ModelSource::Path(source("wide")),
        reward_model_path: source("reward"),
        dataset: DataSource::Path(dir.path().join("prompts.jsonl").into()),
        sampling,
        num_generations: 2,
        max_sampling_rounds: 3,
        num_iterations: 2,
        num_mini_batches: 2,
        learning_rate: 3e-3,
        optimizer: four_units(),
        run: RunArguments { save_steps: 1.into(), ..RunArguments::default() },
        ..GrpoConfig::default()
    };
    let online = OnlineDpoConfig {
        model_name_or_path: config.model_name_or_path.clone(),
        reward_model_path: config.reward_model_path.clone(),
        dataset: config.dataset.clone(),
        sampling: config.sampling.clone(),
        num_mini_batches: 2,
        learning_rate: config.learning_rate,
        optimizer: four_units(),
        run: config.run.clone(),
        ..OnlineDpoConfig::default()
    };
    is_the_same_on_any_number(dir.path(), "grpo", &config, Stage::run, |config, dir| GrpoConfig {
        output_dir: dir.to_owned(),
        ..config.clone()
    });
    is_the_same_on_any_number(dir.path(), "online_dpo", &online, Stage::run, |config, dir| OnlineDpoConfig {
        output_dir: dir.to_owned(),
        ..config.clone()
    });
}

#[test]
fn answers_and_scores_are_the_same_on_any_number() {
    let dir = tempfile::tempdir().unwrap();
    world(dir.path());
    sft::run(&sft_config(dir.path(), &dir.path().join("wide")), &quiet()).unwrap();
    let source = |name: &str| dir.path().join(name).into();
    let out = |processes: usize| dir.path().join(format!("on-{processes}"));
    for processes in [1, 4] {
        let at = |name: &str| out(processes).join(name);
        let generate = GenerateConfig {
            model: source("wide"),
            input: dir.path().join("prompts.jsonl").into(),
            output: at("answers.jsonl"),
            max_new_tokens: 8,
            num_return_sequences: 3,
            ..GenerateConfig::default()
        };
        let reading = ReadingArguments { max_tokens_per_batch: 40.into(), ..ReadingArguments::default() };
        let input = at("answers.jsonl").into();
        let logprobs = LogprobsConfig { model: source("wide"), input, output: at("logprobs.jsonl"), reading };
        let LogprobsConfig { input, reading, .. } = logprobs.clone();
        let score = ScoreConfig { model: source("reward"), input, output: at("scores.jsonl"), reading };
        let evaluate = EvaluateConfig {
            arms: [("base".to_owned(), ModelSource::Path(source("wide")))].into(),
            baseline: "base".to_owned(),
            anchors: [("small".to_owned(), ModelSource::Path(source("wide")))].into(),
            reward_model_path: source("reward"),
            datasets: vec![EvalSet {
                name: "test".to_owned(),
                dataset: DataSource::Path(dir.path().join("prompts.jsonl").into()),
                max_prompts: None,
            }],
            max_new_tokens: 8,
            output_dir: at("evaluation"),
            ..EvaluateConfig::default()
        };
        let landscape = LandscapeConfig {
            models: vec![source("wide"), source("sft")],
            reward_model_path: source("reward"),
            prompts: DataSource::Path(dir.path().join("prompts.jsonl").into()),
            steps: 3,
            max_new_tokens: 8,
            output_dir: at("landscape"),
            ..LandscapeConfig::default()
        };
        let results = together(processes, |context| {
            landscape.run(context).unwrap();
            let results = (generate::run(&generate, context).unwrap(), {
                // The files of one command are there for the next.
                context.ranks.barrier().unwrap();
                logprobs::run(&logprobs, context).unwrap()
            });
            (results, score::run(&score, context).unwrap(), evaluate.run(context).unwrap())
        });
        assert!(results.iter().all(|(lines, scores, _)| (lines, scores) == (&results[0].0, &results[0].1)));
    }
    assert_equal(&out(4), &out(1), "answers on 4");
}

/// Runs a stage as the command line does.
fn staged<S: Stage>(config: &S, dir: &Path, context: &StageContext) -> Result<Outcome> {
    let keys = (serde_json::to_value(config).unwrap(), Places::of(config).unwrap());
    run_stage(S::NAME, dir, keys, context, |context| config.run(context))
}

#[test]
fn an_interruption_of_one_process_stops_all_at_one_step() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path());
    let sft = |name: &str| SftConfig {
        output_dir: dir.path().join(name),
        training: units(4),
        ..sft_config(dir.path(), &base)
    };
    let (whole, torn) = (sft("whole"), sft("torn"));
    staged(&whole, &whole.output_dir, &quiet()).unwrap();
    for (processes, steps) in [(4, 1), (2, 2), (1, 3)] {
        let stopped = together(processes, |context| {
            if context.ranks.rank() + 1 == processes {
                context.interrupt();
            }
            let error = staged(&torn, &torn.output_dir, context).unwrap_err();
            error.downcast::<Interrupted>().unwrap().step
        });
        assert_eq!(stopped, vec![steps; processes]);
    }
    let outcomes = together(4, |context| staged(&torn, &torn.output_dir, context).unwrap());
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Done { .. }) && *outcome == outcomes[0]));
    for name in ["model.safetensors", "metrics.jsonl", "trainer_state.json"] {
        let read = |config: &SftConfig| fs::read(config.output_dir.join(name)).unwrap();
        assert!(read(&whole) == read(&torn), "{name} differs");
    }
    let again = together(2, |context| staged(&torn, &torn.output_dir, context).unwrap());
    assert!(again.iter().all(|outcome| matches!(outcome, Outcome::Skipped { .. })));
    let other = SftConfig { learning_rate: 0.5, ..torn.clone() };
    let refused = together(2, |context| format!("{:#}", staged(&other, &torn.output_dir, context).unwrap_err()));
    assert!(refused.iter().all(|error| error.contains("learning_rate was 0.01 and is 0.5 now")), "{refused:?}");
}

#[test]
fn a_checkpoint_goes_on_with_its_own_units_alone() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path());
    let config = SftConfig { training: units(None), ..sft_config(dir.path(), &base) };
    // Two processes: two units, as nothing else is said.
    together(2, |context| {
        context.interrupt();
        sft::run(&config, context).unwrap_err().downcast::<Interrupted>().unwrap()
    });
    let refused = together(4, |context| format!("{:#}", sft::run(&config, context).unwrap_err()));
    assert!(refused[3].contains("the checkpoint has 2 gradient units a step, and 4 processes"), "{}", refused[3]);
    let other = SftConfig { training: units(4), ..config.clone() };
    let refused = format!("{:#}", sft::run(&other, &quiet()).unwrap_err());
    assert!(refused.contains("gradient_units was null and is now 4"), "{refused}");
    let results = sft::run(&config, &quiet()).unwrap();
    assert_eq!(results["training"]["gradient_units"], 2, "the number is in stage.json");
    let whole = SftConfig { output_dir: dir.path().join("whole"), ..config.clone() };
    together(2, |context| sft::run(&whole, context).unwrap());
    assert_equal(&config.output_dir, &whole.output_dir, "begun on 2 and ended on 1");
}

#[test]
fn a_program_sees_each_response_once_and_its_failure_stops_all() {
    let dir = tempfile::tempdir().unwrap();
    let sampling = world(dir.path());
    let script = dir.path().join("reward.sh");
    let of = |name: &str| GrpoConfig {
        model_name_or_path: ModelSource::Path(dir.path().join("wide").into()),
        rewards: serde_json::from_value(json!([
            {"kind": "command", "command": ["sh", script, dir.path().join(format!("{name}.seen"))], "max_retries": 0},
        ]))
        .unwrap(),
        dataset: DataSource::Path(dir.path().join("prompts.jsonl").into()),
        sampling: sampling.clone(),
        num_generations: 2,
        learning_rate: 3e-3,
        optimizer: four_units(),
        output_dir: dir.path().join(name),
        ..GrpoConfig::default()
    };
    let reads = "while read -r line; do id=${line#*:}; id=${id%%,*}; [ -n \"$id\" ] || continue; echo $id >> $1";
    fs::write(&script, format!("{reads}\n echo \"{{\\\"id\\\": $id, \\\"reward\\\": $((id % 3))}}\"; done\n")).unwrap();
    for (processes, name) in [(1, "alone"), (4, "four")] {
        together(processes, |context| of(name).run(context).unwrap());
        let seen = fs::read_to_string(dir.path().join(format!("{name}.seen"))).unwrap();
        assert_eq!(seen.lines().count(), 36, "one line for each of 36 responses: {seen}");
    }
    for name in ["model.safetensors", "metrics.jsonl", "samples.jsonl"] {
        let read = |run: &str| fs::read(dir.path().join(run).join(name)).unwrap();
        assert!(read("alone") == read("four"), "{name} differs");
    }
    fs::write(
        &script,
        format!("{reads}\n [ $id -lt 20 ] || exit 3\n echo \"{{\\\"id\\\": $id, \\\"reward\\\": 1}}\"; done\n"),
    )
    .unwrap();
    let errors = together(2, |context| format!("{:#}", of("stopped").run(context).unwrap_err()));
    assert!(errors.iter().all(|error| error.contains("update 2 of 3") && error.contains("step-1")), "{errors:?}");
    assert!(errors[1].contains("reward command"), "{errors:?}");
}

#[test]
fn a_recipe_is_the_same_on_any_number() {
    const RECIPE: &str = include_str!("../../../../../recipes/quickstart.yaml");
    let dir = tempfile::tempdir().unwrap();
    let small = [
        "world.pretrain=120 world.sft=60 world.preferences=80 world.prompts_train=8 world.prompts_test=6 world.prompts_ood=6",
        "base.vocab_size=400 base.hidden_size=32 base.num_hidden_layers=1 base.num_attention_heads=2 base.max_steps=2",
        "sft-a.max_steps=2 sft-b.max_steps=2 reward.max_steps=2 ppo.total_episodes=8 ppo.batch_size=4",
        "ppo.response_length=8 salsa.total_episodes=8 salsa.batch_size=4 salsa.response_length=8 eval.max_new_tokens=8",
        "base.gradient_units=2 sft-a.gradient_units=2 sft-b.gradient_units=2 reward.gradient_units=2",
        "ppo.gradient_units=2 salsa.gradient_units=2",
    ];
    let set: Vec<(String, String)> = small
        .iter()
        .flat_map(|line| line.split(' '))
        .map(|set| set.split_once('=').map(|(key, value)| (format!("stages.{key}"), value.to_owned())).unwrap())
        .collect();
    let run = |out: &Path, context: &StageContext| {
        let source = Source { text: RECIPE, path: Path::new("quickstart.yaml"), base: Path::new("") };
        let recipe = Recipe::new(source, Changes { out: Some(out), set: &set, ..Changes::default() }, STAGES).unwrap();
        recipe.run(context).unwrap().into_iter().map(|outcome| outcome.results().clone()).collect::<Vec<_>>()
    };
    let (alone, two) = (dir.path().join("alone"), dir.path().join("two"));
    let results = run(&alone, &quiet());
    for found in together(2, |context| run(&two, context)) {
        assert_eq!(found.len(), results.len());
        let digests = |results: &[Value]| results.iter().map(|result| result["training"].clone()).collect::<Vec<_>>();
        assert_eq!(digests(&found), digests(&results));
    }
    let (alone, two) = (files(&alone), files(&two));
    assert_eq!(alone.keys().collect::<Vec<_>>(), two.keys().collect::<Vec<_>>());
    let compared: Vec<&String> = alone
        .keys()
        .filter(|name| name.ends_with(".safetensors") || (name.ends_with(".jsonl") && !name.starts_with("world")))
        .collect();
    assert!(compared.len() > 12, "{compared:?}");
    for name in compared {
        assert!(alone[name] == two[name], "{name} differs");
    }
}
