use std::{fs, path::Path};

use salsa_engine::{Device, Head};
use serde_json::json;

use super::*;
use crate::{
    metrics,
    stage::{
        Interrupted, StageContext, fixture,
        memory::{MemorySettings, Passed, Passes},
        supervised::{arguments::TrainingArguments, order::Batching},
    },
};

const VOCAB: usize = 16;

fn arguments() -> TrainingArguments {
    TrainingArguments {
        per_device_train_batch_size: 4,
        gradient_accumulation_steps: 2,
        warmup_steps: 2,
        logging_steps: 3.into(),
        eval_steps: 4.into(),
        save_steps: 5.into(),
        ..TrainingArguments::default()
    }
}

fn job<'a>(
    dir: &'a Path,
    arguments: &'a TrainingArguments,
    context: &'a StageContext,
    stop: &'a dyn Fn(u64) -> bool,
) -> Job<'a> {
    Job {
        title: "test",
        output_dir: dir,
        arguments,
        learning_rate: 0.02,
        batching: Batching::Examples(arguments.per_device_train_batch_size),
        num_train_epochs: 4.0,
        fingerprint: json!({"stage": "test"}).into(),
        context,
        stop,
    }
}

fn run(dir: &Path, stop: &dyn Fn(u64) -> bool) -> anyhow::Result<(Outcome, Vec<u32>)> {
    let mut model = fixture::trainable(VOCAB, Head::LanguageModel);
    let (data, eval) = (fixture::counting(31), fixture::counting(5));
    let quiet = StageContext::quiet();
    let outcome = train(&job(dir, &arguments(), &quiet, stop), &mut model, &data, Some(&eval))?;
    Ok((outcome, model.weights().iter().map(|weight| weight.to_bits()).collect()))
}

#[test]
fn the_loss_falls_and_the_log_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (outcome, _) = run(dir.path(), &|_| false).unwrap();
    assert_eq!(outcome.steps, 16, "31 examples in steps of 8, four epochs");
    assert_eq!(outcome.epoch, 4.0);
    let log = metrics::read(dir.path()).unwrap();
    let losses: Vec<f64> = log.iter().filter_map(|(_, line)| line.get("loss")).collect();
    assert!(losses[0] > 2.0, "an untrained model knows nothing: {losses:?}");
    assert!(*losses.last().unwrap() < 0.5 * losses[0], "{losses:?}");
    let steps = |name: &str| -> Vec<u64> {
        log.iter().filter(|(_, line)| line.get(name).is_some()).map(|(step, _)| *step).collect()
    };
    assert_eq!(steps("loss"), [3, 6, 9, 12, 15, 16]);
    assert_eq!(steps("eval_loss"), [4, 8, 12, 16]);
    let last = &log.iter().rfind(|(_, line)| line.get("loss").is_some()).unwrap().1;
    assert_eq!(last.get("epoch"), Some(4.0));
    let tokens: usize = (0..31).map(|example| fixture::counting(31).length(example)).sum();
    assert_eq!(last.get("num_tokens"), Some(4.0 * tokens as f64));
    assert_eq!(outcome.eval.get("loss"), log.last().unwrap().1.get("eval_loss"));
}

#[test]
fn a_stopped_run_goes_on_to_the_same_bytes() {
    let whole = tempfile::tempdir().unwrap();
    let (undisturbed, weights) = run(whole.path(), &|_| false).unwrap();
    let log = fs::read(whole.path().join("metrics.jsonl")).unwrap();

    // Stopped after steps 1, 7 and 15, each time reset to the last periodic checkpoint, as after a kill.
    let dir = tempfile::tempdir().unwrap();
    for stop in [1, 7, 15] {
        let error = run(dir.path(), &|step| step == stop).err().unwrap();
        assert_eq!(error.downcast_ref::<Interrupted>().unwrap().step, stop);
    }
    fs::remove_dir_all(dir.path().join("checkpoints/step-15")).unwrap();
    let (resumed, resumed_weights) = run(dir.path(), &|_| false).unwrap();
    assert_eq!(resumed_weights, weights);
    assert_eq!(resumed.to_json(), undisturbed.to_json());
    assert_eq!(fs::read(dir.path().join("metrics.jsonl")).unwrap(), log);

    // No steps left.
    let (again, again_weights) = run(dir.path(), &|_| false).unwrap();
    assert_eq!((again.to_json(), again_weights), (undisturbed.to_json(), weights));
}

#[test]
fn accumulation_weighs_tokens_not_passes() {
    let gradient = |micro_batches: Vec<Vec<usize>>| {
        let mut model = fixture::trainable(VOCAB, Head::LanguageModel);
        let (data, step) = (fixture::counting(8), Step { micro_batches, epoch: 1.0 });
        let (arguments, quiet, lengths) = (arguments(), StageContext::quiet(), job::lengths(&data));
        let job = job(Path::new(""), &arguments, &quiet, &|_| false);
        optimizer_step(&job, &mut model, &data, (&step, &lengths), 0.0).unwrap()
    };
    let (one, four) =
        (gradient(vec![(0..8).collect()]), gradient(vec![vec![0], vec![1, 2, 3], vec![4, 5], vec![6, 7]]));
    for name in ["loss", "grad_norm"] {
        let (one, four) = (one.get(name).unwrap(), four.get(name).unwrap());
        assert!((one - four).abs() < 1e-5 * one, "{name}: {one} in one pass, {four} in four");
    }
}

#[test]
fn packing_changes_no_log_probability() {
    let model = fixture::trainable(VOCAB, Head::LanguageModel);
    let data = fixture::counting(9);
    let logprobs = |examples: &[usize]| {
        let pass = data.assemble(examples);
        model.forward(&pass.batch, &pass.query).logprobs
    };
    let alone: Vec<f32> = (0..9).flat_map(|example| logprobs(&[example])).collect();
    assert_eq!(logprobs(&(0..9).collect::<Vec<_>>()), alone);
}

#[test]
fn a_run_that_goes_astray_stops_and_names_the_step() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = fixture::trainable(VOCAB, Head::LanguageModel);
    let quiet = StageContext::quiet();
    let (arguments, never) = (TrainingArguments { save_steps: 1.into(), warmup_steps: 0, ..arguments() }, |_| false);
    let job = Job { learning_rate: 1e30, ..job(dir.path(), &arguments, &quiet, &never) };
    let error = format!("{:#}", train(&job, &mut model, &fixture::counting(31), None).err().unwrap());
    assert!(error.starts_with("test stopped at step 2 of 16"), "{error}");
    assert!(error.contains("smaller learning_rate") && error.contains("step-1, is of step 1"), "{error}");
    assert!(dir.path().join("checkpoints/step-1/state.json").exists(), "the checkpoint before it stays");
}

#[test]
fn nothing_to_do_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = fixture::trainable(VOCAB, Head::LanguageModel);
    let quiet = StageContext::quiet();
    let (arguments, never) = (arguments(), |_| false);
    let job = Job { num_train_epochs: 0.0, ..job(dir.path(), &arguments, &quiet, &never) };
    let error = train(&job, &mut model, &fixture::counting(3), None).err().unwrap().to_string();
    assert!(error.contains("nothing to do"), "{error}");
}

#[test]
fn an_evaluation_counts_where_its_passes_are_larger() {
    let dir = tempfile::tempdir().unwrap();
    let (arguments, spec) = (TrainingArguments { max_steps: 2, ..arguments() }, fixture::spec(VOCAB, Head::Scalar));
    let quiet = StageContext::quiet();
    let job = job(dir.path(), &arguments, &quiet, &|_| false);
    let need = |pass, eval_pass, evaluation: &[usize]| {
        let knobs = MemorySettings { pass, eval_pass, ..MemorySettings::on(&Device::default()) };
        let lengths = Lengths { training: vec![16; 12], evaluation: evaluation.to_vec(), sequences: Sequences::Apart };
        let passes = Passes::new(&knobs);
        job.add_passes(Passed::new(&spec, None), None, &knobs, Batching::Examples(pass), &lengths, &passes);
        passes.bytes()
    };
    assert_eq!(need(2, 8, &[]), need(2, 2, &[16; 6]), "a training pass keeps more than a forward pass needs");
    assert!(need(2, 60, &[16; 600]) > need(2, 8, &[]), "a larger forward pass counts");
    assert!(need(4, 2, &[]) > need(2, 2, &[]), "and a larger training pass");
}

#[test]
fn the_largest_pass_is_the_one_with_the_most_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = TrainingArguments { max_steps: 2, gradient_accumulation_steps: 1, ..arguments() };
    let quiet = StageContext::quiet();
    let job = job(dir.path(), &arguments, &quiet, &|_| false);
    let lengths = [9, 1, 1, 1, 8, 1, 1, 7];
    let plan = job.plan(&lengths).unwrap();
    let passes = plan.from(0).flat_map(|step| step.micro_batches);
    let most = passes.map(|pass| pass.iter().map(|&at| lengths[at] as u64).sum::<u64>()).max();
    let largest = job.largest_pass(Batching::Examples(4), &lengths);
    assert_eq!((largest.len(), Some(largest.iter().sum())), (4, most));
    let arguments = TrainingArguments { max_steps: 1_000_000, ..arguments.clone() };
    let job = Job { arguments: &arguments, ..job };
    assert_eq!(job.largest_pass(Batching::Examples(4), &lengths), [9, 8, 7, 1], "of very many steps some has these");
}
