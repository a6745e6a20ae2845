//! The searched soup: the weights whose mean measures best, found by CMA-ES within a budget.
//!
//! Every measurement is appended to a journal, so a search that was killed goes on where it stopped. What is measured in
//! order to choose says too much for the chosen weights; a second set, measured at the end, says what they are worth.
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use salsa_algo::soup::search::Search;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    SoupConfig,
    criterion::{Criterion, Mean, MeasureConfig},
    ingredients::Ingredients,
};
use crate::{
    atomic,
    checkpoint::NewTensor,
    progress::Progress,
    report::Estimate,
    stage::{StageContext, keys::check_most, lifecycle::fingerprint::fingerprint, text::source::DataSource},
};

/// The search for the weights of a soup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SearchConfig {
    /// How means are measured while searching.
    #[serde(flatten)]
    pub measure: MeasureConfig,
    /// Other examples or prompts, on which the chosen weights, the equal mean and the best ingredient are measured at the
    /// end: what was chosen by a set measures too well on it.
    pub eval_dataset: DataSource,
    /// Measurements of the search, those of the ingredients alone and of the equal mean included.
    pub budget: usize,
}

impl Default for SearchConfig {
    fn default() -> SearchConfig {
        SearchConfig { measure: MeasureConfig::default(), eval_dataset: DataSource::default(), budget: 60 }
    }
}

/// Upper limit for measurements.
const MOST_MEASUREMENTS: u64 = 1_000_000;

impl SearchConfig {
    /// Checks ranges, for a soup of so many models.
    ///
    /// # Errors
    /// If a value is invalid.
    pub(super) fn validate(&self, models: usize) -> anyhow::Result<()> {
        self.measure.validate("search")?;
        let given = self.eval_dataset.paths().iter().any(|path| !path.as_os_str().is_empty());
        ensure!(
            given,
            "search.eval_dataset is missing: weights chosen by search.dataset measure too well on it; name another set, or \
             another split of it"
        );
        ensure!(
            self.eval_dataset != self.measure.dataset,
            "search.eval_dataset is search.dataset; name another set, or another split of it"
        );
        ensure!(models >= 2, "method search takes 2 models or more, not {models}");
        ensure!(
            self.budget > models + 1,
            "search.budget is {}; {} measurements are those of the {models} ingredients and of their equal mean, so say \
             more, such as {}",
            self.budget,
            models + 1,
            20 * models
        );
        check_most("search.budget", self.budget as u64, MOST_MEASUREMENTS)
    }
}

/// A measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Measured {
    weights: Vec<f64>,
    measured: Estimate,
}

/// The record of a search.
#[derive(Clone, Debug)]
pub(super) struct Found {
    measure: &'static str,
    seed: u64,
    /// In the order of measurement: the ingredients alone, the equal mean, the samples of the search.
    history: Vec<Measured>,
    /// The best of them; of equal ones the first.
    best: usize,
    /// On the second set: the best weights, the equal mean, the best ingredient.
    held_out: Vec<(&'static str, Measured)>,
}

impl Found {
    /// The chosen weights.
    pub(super) fn weights(&self) -> &[f64] {
        &self.history[self.best].weights
    }

    /// The entry in `soup.json`.
    pub(super) fn to_json(&self) -> Value {
        let held_out: serde_json::Map<String, Value> =
            self.held_out.iter().map(|(name, measured)| ((*name).to_owned(), json!(measured))).collect();
        json!({
            "measure": self.measure,
            "seed": self.seed,
            "measurements": self.history.len(),
            "chosen": self.history[self.best],
            "held_out": held_out,
            "history": self.history,
        })
    }
}

/// Searches for the weights. `tensors` are those of the soup: measured means are rounded to their types. `dir` is where the
/// soup is written.
///
/// # Errors
/// If a model, the data or the reward model cannot be used, or the work was interrupted.
pub(super) fn search(
    config: &SoupConfig,
    ingredients: &Ingredients,
    tensors: &[NewTensor],
    dir: &Path,
    context: &StageContext,
) -> anyhow::Result<Found> {
    let keys = config.search.as_ref().context("search.dataset is missing")?;
    let sets = [&keys.measure.dataset, &keys.eval_dataset];
    let criterion = Criterion::open("search", &keys.measure, &sets, ingredients, &config.output_dir, context)?;
    let mut journal = Journal::open(dir, config)?;
    if !journal.known.is_empty() {
        context.say(&format!("search: going on after {} measurements", journal.known.len()));
    }
    let progress = Progress::new("search", keys.budget as u64, "measurements");
    let mut mean = Mean::new(ingredients, tensors, &context.device);
    let mut measure = |weights: &[f64], set: usize, number: usize| -> anyhow::Result<Measured> {
        if let Some(known) = journal.known.get(number) {
            ensure!(
                known.weights == weights,
                "{}: measurement {number} is of other weights; remove the file to search anew",
                journal.path.display()
            );
            return Ok(known.clone());
        }
        ensure!(!context.interrupted(), "interrupted after {number} measurements; the same command goes on from there");
        let members: Vec<(usize, f64)> = weights.iter().copied().enumerate().collect();
        let measured = criterion.measure(mean.of(&members)?, set)?;
        ensure!(measured.mean.is_finite(), "the {} of weights {weights:?} is {}", criterion.name(), measured.mean);
        let measured = Measured { weights: weights.to_vec(), measured };
        journal.add(&measured)?;
        progress.message(&format!("{} {:.4}", criterion.name(), measured.measured.mean));
        progress.set((number as u64 + 1).min(keys.budget as u64));
        Ok(measured)
    };

    let count = ingredients.models.len();
    let alone = |i: usize| (0..count).map(|j| f64::from(u8::from(i == j))).collect::<Vec<f64>>();
    let equal = vec![1.0 / count as f64; count];
    let mut history = Vec::new();
    for weights in (0..count).map(alone).chain([equal]) {
        history.push(measure(&weights, 0, history.len())?);
    }
    let mut searching = Search::new(count, config.seed);
    loop {
        let samples = searching.samples();
        if samples.is_empty() || history.len() + samples.len() > keys.budget {
            break;
        }
        let mut qualities = Vec::with_capacity(samples.len());
        for weights in &samples {
            let measured = measure(weights, 0, history.len())?;
            qualities.push(criterion.quality(&measured.measured));
            history.push(measured);
        }
        searching.learn(&qualities);
    }
    let quality = |at: usize| criterion.quality(&history[at].measured);
    let best_of = |among: std::ops::Range<usize>| {
        among.reduce(|best, at| if quality(at) > quality(best) { at } else { best }).expect("there are measurements")
    };
    let (best, best_alone) = (best_of(0..history.len()), best_of(0..count));
    let mut held_out = Vec::new();
    for (name, at) in [("chosen", best), ("equal", count), ("best_ingredient", best_alone)] {
        held_out.push((name, measure(&history[at].weights, 1, history.len() + held_out.len())?));
    }
    progress.finish(&format!(
        "{} measurements, {} {:.4}, on the other set {:.4}",
        history.len(),
        criterion.name(),
        history[best].measured.mean,
        held_out[0].1.measured.mean
    ));
    Ok(Found { measure: criterion.name(), seed: config.seed, history, best, held_out })
}

/// The measurements so far, one line each below a line that says what is searched.
struct Journal {
    path: PathBuf,
    file: File,
    known: Vec<Measured>,
}

/// The file's name, in the folder of checkpoints, which a stage removes when it is done.
const JOURNAL: &str = "search.jsonl";

impl Journal {
    /// Opens the journal of a soup that is written to `dir`, or begins one. A last line that a killed process left
    /// unfinished is cut off.
    ///
    /// # Errors
    /// If the file cannot be read or written, has a line of another kind, or is of another search.
    fn open(dir: &Path, config: &SoupConfig) -> anyhow::Result<Journal> {
        let folder = dir.join("checkpoints");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(JOURNAL);
        let shown = path.display();
        let mut file = atomic::open_to_continue(&path)?;
        let mut text = String::new();
        file.read_to_string(&mut text).with_context(|| format!("cannot read {shown}"))?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(whole as u64).with_context(|| format!("cannot cut {shown}"))?;
        file.seek(SeekFrom::End(0)).with_context(|| format!("cannot read {shown}"))?;
        let own = fingerprint("soup", config)?.value;
        let mut lines = text[..whole].lines();
        match lines.next() {
            None => writeln!(file, "{own}").with_context(|| format!("cannot write {shown}"))?,
            Some(first) if serde_json::from_str::<Value>(first).is_ok_and(|first| first == own) => {}
            Some(_) => bail!("{shown} is of a search with other settings; remove it to search anew"),
        }
        let read = |line: &str| serde_json::from_str(line).with_context(|| format!("{shown}: this is no measurement"));
        let known = lines.map(read).collect::<anyhow::Result<Vec<Measured>>>()?;
        Ok(Journal { path, file, known })
    }

    /// Appends a measurement.
    ///
    /// # Errors
    /// If the file cannot be written.
    fn add(&mut self, measured: &Measured) -> anyhow::Result<()> {
        let line = format!("{}\n", serde_json::to_string(measured)?);
        self.file.write_all(line.as_bytes()).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Removes what an interrupted soup left in a folder, except for the journal of a search.
///
/// # Errors
/// If something cannot be removed.
pub(super) fn clear_except_journal(dir: &Path) -> anyhow::Result<()> {
    let shown = dir.display();
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    for entry in entries.filter_map(Result::ok).filter(|entry| entry.file_name() != "checkpoints") {
        let path = entry.path();
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.with_context(|| format!("cannot remove {}, left by an interrupted run in {shown}", path.display()))?;
    }
    Ok(())
}
