//! Runs a stage once: skip, resume or start, and mark as done.
//!
//! ```text
//! OUT/stage.json     done: stage, configuration, digests of the inputs, results; written last
//! OUT/running.json   begun: the same without results; a checkpoint of other work is never resumed by mistake
//! OUT/timings.json   seconds, of all the processes that worked on it; the highest resident size of the last one, in MiB
//! OUT/.lock          held while a process works on it
//! ```
use std::{fs, path::Path, time::Instant};

use anyhow::Context;
use serde_json::{Value, json};

use super::{
    agreement,
    inputs::Input,
    lock::Lock,
    record::Record,
    standing::{DirectoryState, has_checkpoints, only_contains, standing},
};
use crate::{
    atomic,
    config::paths::Places,
    input,
    stage::{Interrupted, StageContext, memory::available, ranks},
};

/// How a stage obtained its results.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The stage ran.
    Done {
        /// Its results.
        results: Value,
        /// Wall-clock time, including interrupted runs.
        seconds: f64,
    },
    /// The stage had run before with the same configuration and inputs.
    Skipped {
        /// Its earlier results.
        results: Value,
    },
}

impl Outcome {
    /// The results, new or earlier.
    pub fn results(&self) -> &Value {
        match self {
            Outcome::Done { results, .. } | Outcome::Skipped { results } => results,
        }
    }
}

/// Runs `work` unless `output_dir` already holds its result.
///
/// `config` contains all values of the stage, `places` the places of its inputs. `work` fills `output_dir` and returns
/// its results, which are written to `stage.json`. If `work` fails, its checkpoints are kept and the next call resumes.
///
/// All processes of the context call this together and do the work together; the first alone decides and writes.
///
/// # Errors
/// If the directory holds something else (the error names the difference), another process works on it, an input cannot
/// be read, or `work` fails.
pub(crate) fn run_stage(
    name: &str,
    output_dir: &Path,
    (config, places): (Value, Places),
    context: &StageContext,
    work: impl FnOnce(&StageContext) -> anyhow::Result<Value>,
) -> anyhow::Result<Outcome> {
    let (ranks, mut begun) = (&*context.ranks, None);
    agreement::check(ranks, &config, &places)?;
    let done = ranks::from_first(ranks, || {
        let inputs = places.paths(&config).iter().map(|path| Input::read(path)).collect::<anyhow::Result<Vec<_>>>()?;
        let record = Record::new(name, config, places, inputs);
        let standing = stand(name, output_dir, &record, context)?;
        Ok(match standing {
            Standing::Done(results) => Some(results),
            Standing::Begun(lock) => {
                begun = Some((record, lock));
                None
            }
        })
    })?;
    if let Some(results) = done {
        return Ok(Outcome::Skipped { results });
    }
    let start = Instant::now();
    let result = work(context);
    let seconds = || seconds_of(output_dir).unwrap_or(0.0) + start.elapsed().as_secs_f64();
    match result {
        Ok(results) => {
            let (results, seconds) = ranks::from_first(ranks, || {
                let (record, _lock) = begun.expect("the first process has begun it");
                let seconds = seconds();
                mark_done(output_dir, &Record { results: results.clone(), ..record }, seconds)?;
                tidy(output_dir)?;
                Ok((results, seconds))
            })?;
            Ok(Outcome::Done { results, seconds })
        }
        Err(error) => {
            if let Some((_, lock)) = begun {
                abandon(output_dir, seconds(), lock)?;
            }
            if error.is::<Interrupted>() {
                // All have stopped: none may end the others before the first has written all.
                ranks.barrier()?;
            }
            Err(error)
        }
    }
}

/// How work begins.
enum Standing {
    /// It is done: its results.
    Done(Value),
    /// The directory is locked and marked for it.
    Begun(Lock),
}

/// Finds the results in the directory, or begins the work there.
fn stand(name: &str, output_dir: &Path, record: &Record, context: &StageContext) -> anyhow::Result<Standing> {
    if let DirectoryState::Done(results) = standing(output_dir, record)? {
        if [".lock", "running.json", "checkpoints"].iter().any(|name| output_dir.join(name).exists()) {
            // A process was killed between writing its results and cleaning up.
            let _lock = Lock::take(output_dir)?;
            tidy(output_dir)?;
        }
        return Ok(Standing::Done(results));
    }
    fs::create_dir_all(output_dir).with_context(|| format!("cannot make {}", output_dir.display()))?;
    let lock = Lock::take(output_dir)?;
    // Another process may have finished it while the inputs were read.
    if let DirectoryState::Done(results) = standing(output_dir, record)? {
        return Ok(Standing::Done(results));
    }
    if output_dir.join("running.json").exists() && !has_checkpoints(output_dir) {
        context.say(&format!(
            "{name}: an interrupted run left no checkpoint in {}, so it starts from the beginning (save_steps sets how \
             often one is saved)",
            output_dir.display()
        ));
    }
    begin(output_dir, record)?;
    Ok(Standing::Begun(lock))
}

/// Marks the directory as belonging to this work. Existing files are part of it, or not worth keeping.
fn begin(dir: &Path, record: &Record) -> anyhow::Result<()> {
    remove_leftovers(dir)?;
    write(&dir.join("running.json"), &serde_json::to_value(record).context("stage record")?)
}

/// Marks a directory as the result of a stage that took `seconds`.
///
/// # Errors
/// If a file cannot be written.
pub(crate) fn mark_done(dir: &Path, record: &Record, seconds: f64) -> anyhow::Result<()> {
    let timings = json!({"seconds": seconds, "peak_rss_mib": available::peak_mib()});
    write(&dir.join("timings.json"), &timings)?;
    write(&dir.join("stage.json"), &serde_json::to_value(record).context("stage record")?)
}

/// Removes the files that only unfinished work needs.
fn tidy(dir: &Path) -> anyhow::Result<()> {
    remove(&dir.join("checkpoints"))?;
    remove(&dir.join("running.json"))
}

/// After a failure: keeps a directory with checkpoints or files, and removes one in which nothing was written.
fn abandon(dir: &Path, seconds: f64, lock: Lock) -> anyhow::Result<()> {
    if has_checkpoints(dir) {
        return write(&dir.join("timings.json"), &json!({"seconds": seconds}));
    }
    remove_leftovers(dir)?;
    if only_contains(dir, &[".lock", "running.json"])? {
        remove(&dir.join("running.json"))?;
        drop(lock);
        // Fails, harmlessly, if another process has started to use it.
        let _ = fs::remove_dir(dir);
    }
    Ok(())
}

/// Removes partially written files of a killed process.
fn remove_leftovers(dir: &Path) -> anyhow::Result<()> {
    for folder in [dir.to_owned(), dir.join("checkpoints")] {
        for entry in fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok) {
            if entry.file_name().to_string_lossy().ends_with(".tmp") {
                remove(&entry.path())?;
            }
        }
    }
    Ok(())
}

/// The duration of a stage so far; `None` if its directory has none.
pub(crate) fn seconds_of(dir: &Path) -> Option<f64> {
    let text = input::read(&dir.join("timings.json")).ok()?;
    serde_json::from_slice::<Value>(&text).ok()?["seconds"].as_f64()
}

fn remove(path: &Path) -> anyhow::Result<()> {
    let result = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn write(path: &Path, value: &Value) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value).context("JSON")?;
    text.push('\n');
    atomic::write(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::paths::PathKind;
    use anyhow::anyhow;

    struct Place {
        dir: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Place {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("data"), "1").unwrap();
            fs::write(dir.path().join("other"), "2").unwrap();
            Place { dir }
        }

        fn out(&self) -> PathBuf {
            self.dir.path().join("a/out")
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// Two data sets and the seed.
        fn reading(&self, dataset: &str, eval_dataset: &str) -> Value {
            json!({"dataset": self.path(dataset), "eval_dataset": self.path(eval_dataset), "seed": 1})
        }

        fn run(&self, config: Value, work: impl FnOnce() -> anyhow::Result<Value>) -> anyhow::Result<Outcome> {
            let inputs = ["dataset", "eval_dataset", "model"].map(|key| (key.to_owned(), PathKind::Data));
            let places =
                Places { inputs: inputs.into(), no_effect: ["save_steps".to_owned()].into(), ..Places::default() };
            run_stage("sft", &self.out(), (config, places), &StageContext::quiet(), |_| work())
        }

        fn error(&self, config: Value, work: impl FnOnce() -> anyhow::Result<Value>) -> String {
            format!("{:#}", self.run(config, work).unwrap_err())
        }
    }

    fn never() -> anyhow::Result<Value> {
        panic!("must not run")
    }

    #[test]
    fn done_work_is_skipped_and_other_work_refused() {
        let place = Place::new();
        let done = place.run(json!({"seed": 1}), || Ok(json!({"loss": 0.5}))).unwrap();
        assert!(matches!(done, Outcome::Done { .. }));
        assert!(!place.out().join("running.json").exists());
        assert!(!place.out().join(".lock").exists());
        let again = place.run(json!({"seed": 1}), never).unwrap();
        assert_eq!(again, Outcome::Skipped { results: json!({"loss": 0.5}) });
        let refused = place.error(json!({"seed": 2}), never);
        assert!(refused.contains("a/out holds the result of another configuration: seed was 1 and is 2 now; remove"));
    }

    #[test]
    fn a_finished_model_without_its_weights_is_reported() {
        let place = Place::new();
        let work = || {
            fs::write(place.out().join("config.json"), "{}")?;
            fs::write(place.out().join("model.safetensors"), "")?;
            Ok(json!(7))
        };
        place.run(json!({"seed": 1}), work).unwrap();
        place.run(json!({"seed": 1}), never).unwrap();
        fs::remove_file(place.out().join("model.safetensors")).unwrap();
        let refused = place.error(json!({"seed": 1}), never);
        assert!(refused.contains("a/out is marked as done (stage.json), but"), "{refused}");
        assert!(refused.contains("model.safetensors is gone; remove the directory"), "{refused}");
    }

    #[test]
    fn inputs_count_by_their_place_and_bytes_whether_work_is_done_or_not() {
        for stops in [false, true] {
            let place = Place::new();
            let work = || {
                fs::create_dir_all(place.out().join("checkpoints/step-5"))?;
                if stops { Err(anyhow!("interrupted")) } else { Ok(json!(7)) }
            };
            assert_eq!(place.run(place.reading("data", "other"), work).is_err(), stops);
            let refused = place.error(place.reading("other", "data"), never);
            let (data, other) = (place.path("data"), place.path("other"));
            let swapped = format!("dataset was {} and is {} now", data.display(), other.display());
            assert!(refused.contains(&swapped), "{refused}");

            fs::rename(&data, place.path("moved")).unwrap();
            fs::write(&data, "changed").unwrap();
            let refused = place.error(place.reading("data", "other"), never);
            assert!(refused.contains("data has changed since"), "{refused}");
            let again = place.run(place.reading("moved", "other"), || Ok(json!(8))).unwrap();
            assert_eq!(*again.results(), json!(if stops { 8 } else { 7 }));
        }
    }

    #[test]
    fn a_failure_before_any_checkpoint_leaves_nothing_in_the_way() {
        let place = Place::new();
        assert_eq!(place.error(json!({"seed": 1}), || Err(anyhow!("bad data"))), "bad data");
        assert!(!place.out().exists());
        let out = place.out();
        let logged = || {
            fs::write(out.join("metrics.jsonl"), "")?;
            Err(anyhow!("not finite"))
        };
        assert_eq!(place.error(json!({"seed": 1}), logged), "not finite");
        place.run(json!({"seed": 2}), || Ok(Value::Null)).unwrap();
    }

    #[test]
    fn unfinished_work_resumes_only_as_the_same_work() {
        let place = Place::new();
        let out = place.out();
        let stopped = || {
            fs::create_dir_all(out.join("checkpoints/step-5"))?;
            fs::write(out.join("half.tmp"), "")?;
            Err(anyhow!("interrupted"))
        };
        assert_eq!(place.error(json!({"seed": 1}), stopped), "interrupted");
        let refused = place.error(json!({"seed": 2}), never);
        assert!(refused.contains("unfinished work of another configuration: seed was 1 and is 2 now"), "{refused}");
        let resumed = || {
            assert!(out.join("checkpoints/step-5").exists());
            assert!(!out.join("half.tmp").exists());
            Ok(json!(7))
        };
        assert_eq!(*place.run(json!({"seed": 1}), resumed).unwrap().results(), json!(7));
        assert!(!out.join("checkpoints").exists());
    }

    #[test]
    fn a_kill_while_the_marker_was_written_or_removed_leaves_no_trace() {
        let place = Place::new();
        fs::create_dir_all(place.out()).unwrap();
        fs::write(place.out().join("running.json.tmp"), "{").unwrap();
        place.run(json!({"seed": 1}), || Ok(json!(7))).unwrap();
        fs::create_dir_all(place.out().join("checkpoints/step-5")).unwrap();
        for name in ["running.json", ".lock"] {
            fs::write(place.out().join(name), "{}").unwrap();
        }
        assert_eq!(place.run(json!({"seed": 1}), never).unwrap(), Outcome::Skipped { results: json!(7) });
        let mut names: Vec<_> = fs::read_dir(place.out()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["stage.json", "timings.json"]);
    }

    #[test]
    fn a_directory_of_somebody_else_is_not_touched() {
        let place = Place::new();
        fs::create_dir_all(place.out()).unwrap();
        fs::write(place.out().join("thesis.txt"), "x").unwrap();
        let refused = place.error(json!({}), never);
        assert!(refused.contains("is not empty and not a directory that salsa made"), "{refused}");
        assert_eq!(fs::read_dir(place.out()).unwrap().count(), 1);
    }

    #[test]
    fn two_at_once_are_refused() {
        let place = Place::new();
        fs::create_dir_all(place.out()).unwrap();
        let _lock = Lock::take(&place.out()).unwrap();
        assert!(place.error(json!({}), never).contains("another salsa process"));
    }

    #[test]
    fn a_missing_input_stops_before_anything_is_written() {
        let place = Place::new();
        let error = place.run(json!({"model": place.path("no-such-model")}), never).unwrap_err();
        assert!(format!("{error:#}").contains("no-such-model"), "{error:#}");
        assert!(!place.out().exists());
    }
}
