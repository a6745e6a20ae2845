//! Published judgments of the three families, recounted: prompts byte for byte, verdicts and scores to the digit. The
//! files are outside the tree (`SALSA_DATA`, or `../shared/data` next to it); tests of absent files are skipped with a
//! message.
use std::{
    collections::HashMap,
    env,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    JudgeConfig, Protocol, Transport, files,
    protocol::{
        Inputs, Prompts,
        mt_bench::{PairRow, SingleRow},
    },
    question,
    question::key_of,
    recorded, run,
    score::Rows,
    style::{self, Encoding},
    template, verdict,
};
use crate::stage::fixture::quiet;

/// The path of a data file; if absent, prints a message and returns `None`.
fn data(name: &str) -> Option<PathBuf> {
    let folder = env::var_os("SALSA_DATA").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"));
    let path = folder.join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: there is no {}", path.display());
    None
}

/// The path of a data file; skips the test with a message if it is absent.
macro_rules! data {
    ($name:expr) => {
        match data($name) {
            Some(path) => path,
            None => return,
        }
    };
}

const GRIFFIN: &str = "Meta-Llama-3-8B-Instruct-Griffin";

fn single(judgments: &Path) -> JudgeConfig {
    JudgeConfig {
        dry_run: true.into(),
        protocol: Protocol::MtBenchSingle,
        judgments: vec![judgments.into()],
        resamples: 50,
        ..JudgeConfig::default()
    }
}

fn mt_bench(protocol: Protocol, models: &[(&str, PathBuf)]) -> Option<Inputs> {
    let answers = models.iter().map(|(name, path)| ((*name).to_owned(), question::answers(path).unwrap())).collect();
    Some(Inputs {
        protocol,
        judge: "gpt-4".to_owned(),
        questions: question::questions(&data("mt_bench/question.jsonl")?).unwrap(),
        answers,
        baseline: String::new(),
        prompts: Prompts::FastChat(template::read(&data("mt_bench/judge_prompts.jsonl")?).unwrap(), String::new()),
        references: Some(question::answers(&data("mt_bench/reference_answer/gpt-4.jsonl")?).unwrap()),
    })
}

#[test]
fn all_prompts_and_grades_of_a_published_file() {
    let judgments = data!("mt_bench/model_judgment/gpt-4_single.jsonl");
    let answers = data!(&format!("mt_bench/model_answer/{GRIFFIN}.jsonl"));
    let Some(inputs) = mt_bench(Protocol::MtBenchSingle, &[(GRIFFIN, answers)]) else { return };
    let Rows::Single(rows) = recorded::rows(&judgments, Protocol::MtBenchSingle).unwrap() else { panic!() };
    let found: HashMap<(String, u32), &SingleRow> =
        rows.iter().map(|row| ((key_of(&row.question_id), row.turn), row)).collect();
    let matches = inputs.plan().unwrap();
    assert_eq!((matches.len(), rows.len()), (160, 160));
    let mut templates: HashMap<&str, usize> = HashMap::new();
    for planned in &matches {
        let row = found[&(inputs.questions[planned.question].key(), planned.turn)];
        assert_eq!(planned.games[0].user_prompt(), row.user_prompt, "question {}", row.question_id);
        assert_eq!(planned.template, row.judge.1);
        assert_eq!(verdict::score(&row.judgment).and_then(|score| score.as_f64()), row.grade());
        *templates.entry(&planned.template).or_default() += 1;
    }
    let counts =
        ["single-v1", "single-v1-multi-turn", "single-math-v1", "single-math-v1-multi-turn"].map(|t| templates[t]);
    assert_eq!(counts, [50, 50, 30, 30]);
    let results = run::run(&single(&judgments), &quiet()).unwrap();
    let means = &results["models"][GRIFFIN];
    assert_eq!((&means["turn_1"], &means["turn_2"], &means["score"]), (&3.1375.into(), &2.2625.into(), &2.7.into()));
}

#[test]
fn a_run_over_recorded_judgments_writes_the_file_again() {
    let judgments = data!("mt_bench/model_judgment/gpt-4_single.jsonl");
    let answers = data!(&format!("mt_bench/model_answer/{GRIFFIN}.jsonl"));
    let dir = tempfile::tempdir().unwrap();
    let config = JudgeConfig {
        answers: [(GRIFFIN.to_owned(), answers.into())].into(),
        questions: Some(data!("mt_bench/question.jsonl").into()),
        templates: Some(data!("mt_bench/judge_prompts.jsonl").into()),
        reference_answers: Some(data!("mt_bench/reference_answer/gpt-4.jsonl").into()),
        transport: Transport::Recorded,
        output_dir: dir.path().to_owned(),
        dry_run: false.into(),
        ..single(&judgments)
    };
    let results = run::run(&config, &quiet()).unwrap();
    assert_eq!(results["models"][GRIFFIN]["score"], 2.7);
    assert_eq!(results["models"][GRIFFIN]["categories"]["writing"], 4.075);
    assert_eq!((&results["calls"], &results["failures"]), (&160.into(), &serde_json::json!({})));
    let objects = |path: &Path| -> Vec<Value> {
        let rows = files::rows(path).unwrap().rows;
        rows.into_iter().map(|mut row| (row.object.remove("tstamp"), Value::Object(row.object)).1).collect()
    };
    let (ours, theirs) = (objects(&dir.path().join("model_judgment/gpt-4_single.jsonl")), objects(&judgments));
    let sorted = |mut rows: Vec<Value>| {
        rows.sort_by_key(|row| (row["turn"].as_u64(), row["question_id"].as_u64()));
        rows
    };
    for (ours, theirs) in sorted(ours).iter().zip(&sorted(theirs)) {
        assert_eq!(ours, theirs);
    }
}

#[test]
fn all_prompts_and_verdicts_of_published_pairs() {
    let judgments = data!("mt_bench/phi3/model_judgment/gpt-4_pair.jsonl");
    let models = ["phi-3", "phi-3-dpo"].map(|name| (name, data(&format!("mt_bench/phi3/model_answer/{name}.jsonl"))));
    let [(first, Some(one)), (second, Some(other))] = models else { return };
    let Some(inputs) = mt_bench(Protocol::MtBenchPair, &[(first, one), (second, other)]) else { return };
    let Rows::Pair(rows) = recorded::rows(&judgments, Protocol::MtBenchPair).unwrap() else { panic!() };
    let found: HashMap<String, &PairRow> = rows.iter().map(|row| (key_of(&row.question_id), row)).collect();
    assert_eq!((rows.len(), found.len()), (75, 75));
    let mut compared = 0;
    for planned in inputs.plan().unwrap().iter().filter(|planned| planned.turn == 1) {
        let Some(row) = found.get(&inputs.questions[planned.question].key()) else { continue };
        assert_eq!(planned.models, [row.model_1.clone(), row.model_2.clone()]);
        assert_eq!(planned.template, row.judge.1);
        for (call, prompt, judgment, winner, shown) in [
            (&planned.games[0], &row.g1_user_prompt, &row.g1_judgment, &row.g1_winner, ["model_1", "model_2"]),
            (&planned.games[1], &row.g2_user_prompt, &row.g2_judgment, &row.g2_winner, ["model_2", "model_1"]),
        ] {
            assert_eq!(call.user_prompt(), prompt, "question {}", row.question_id);
            let read = match verdict::preferred(judgment) {
                Some(verdict::Preferred::A) => shown[0],
                Some(verdict::Preferred::B) => shown[1],
                Some(verdict::Preferred::Tie) => "tie",
                None => "error",
            };
            assert_eq!(read, winner, "question {}", row.question_id);
            compared += 1;
        }
    }
    assert_eq!(compared, 150);
    let config = JudgeConfig { protocol: Protocol::MtBenchPair, ..single(&judgments) };
    let results = run::run(&config, &quiet()).unwrap();
    let model = &results["models"]["phi-3"];
    assert_eq!((&model["wins"], &model["losses"], &model["ties"]), (&18.into(), &20.into(), &35.into()));
    assert_eq!((&model["dropped"], model["win_rate_adjusted"].as_f64()), (&2.into(), Some(0.486_301_369_863_013_7)));
    assert_eq!(results["models"]["phi-3-dpo"]["win_rate_adjusted"].as_f64(), Some(0.513_698_630_136_986_4));
    assert_eq!(results["position_bias"]["first_shown_won_both"], 16);
}

#[test]
fn the_grades_of_another_published_file() {
    let results = run::run(&single(&data!("mt_bench/phi3/model_judgment/gpt-4_single.jsonl")), &quiet()).unwrap();
    let means = &results["models"]["phi-3-dpo"];
    assert_eq!((&means["turn_1"], &means["turn_2"], &means["score"]), (&8.3625.into(), &8.0375.into(), &8.2.into()));
}

/// Grades of an early Arena-Hard, and prose without a verdict.
#[test]
fn grades_in_prose_are_found_and_none_is_made_up() {
    let folder = "arena_hard/arena-bench-v1/model_judgment";
    for name in ["gpt-4_single.sample", "vicuna-33b-v1.3.sample"] {
        let rows = files::rows(&data!(&format!("{folder}/{name}.jsonl"))).unwrap();
        assert_eq!(rows.rows.len(), 75);
        for row in &rows.rows {
            let written = row.object["score"].as_f64();
            let read = verdict::score(row.object["judgment"].as_str().unwrap()).and_then(|score| score.as_f64());
            assert!(read == written || written.is_none(), "{}: {read:?} {written:?}", rows.place(row));
        }
    }
    let rows = files::rows(&data!(&format!("{folder}/null_scores.jsonl"))).unwrap();
    let double = regex::Regex::new(r"\[\[([0-9]+\.?[0-9]*)\]\]").unwrap();
    let text = |row: &crate::stage::text::rows::Row| row.object["judgment"].as_str().unwrap().to_owned();
    let found = rows.rows.iter().filter(|row| double.is_match(&text(row))).count();
    let read = rows.rows.iter().filter(|row| verdict::score(&text(row)).is_some()).count();
    assert_eq!((rows.rows.len(), found, read), (40, 4, 11));
}

#[test]
fn a_published_arena_hard_file_gives_its_win_rate() {
    let judgments = data!("arena_hard/v0.1/model_judgment/gpt-3.5-turbo-0125/Nexusflow__Athene-V2-Chat.jsonl");
    let Rows::Arena(rows) = recorded::rows(&judgments, Protocol::ArenaHardV01).unwrap() else { panic!() };
    assert_eq!(rows.len(), 108);
    for row in &rows {
        for game in row.games.iter().flatten() {
            let read = match verdict::only_label(game.said()) {
                verdict::Found::Label(label) => Some(label),
                _ => None,
            };
            assert_eq!(read, game.score, "question {}", row.uid);
        }
    }
    let config = JudgeConfig { protocol: Protocol::ArenaHardV01, ..single(&judgments) };
    let results = run::run(&config, &quiet()).unwrap();
    let model = &results["categories"]["arena-hard-v0.1"]["models"]["Nexusflow__Athene-V2-Chat"];
    assert!((model["score"].as_f64().unwrap() - 2.039_007_092_198_582).abs() < 1e-12, "{model}");
    assert_eq!((&model["battles"], &model["games_without_label"]), (&564.into(), &2.into()));
}

#[test]
fn mean_token_counts_are_the_published_ones() {
    let questions = question::questions(&data!("arena_hard/v0.1/question.jsonl")).unwrap();
    for (name, total) in [("gpt-4-0314", 211_631), ("gpt-3.5-turbo-0125", 164_864), ("gpt-4-0613", 177_443)] {
        let answers = question::answers(&data!(&format!("arena_hard/v0.1/model_answer/{name}.jsonl"))).unwrap();
        assert_eq!(
            (answers.len(), questions.iter().all(|question| answers.contains_key(&question.key()))),
            (500, true)
        );
        let tokens: usize = answers.values().map(|answer| Encoding::Cl100k.tokens(&answer.turns[0])).sum();
        assert_eq!(tokens, total, "{name}: a mean of {}", tokens as f64 / 500.0);
    }
}

#[test]
fn all_style_counts_of_a_published_file() {
    let answers = question::answers(&data!("arena_hard/v2.0/model_answer/o3-mini-2025-01-31.jsonl.gz")).unwrap();
    assert_eq!(answers.len(), 750);
    for (key, answer) in &answers {
        assert_eq!(Some(style::of(&answer.turns[0], Encoding::O200k)), answer.style, "{key}");
    }
}
