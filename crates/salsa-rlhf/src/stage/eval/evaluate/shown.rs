//! Presentation keys of an evaluation. They may change after it is done, since no result depends on them.
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{EvalSet, EvaluateConfig, config::answers_file, in_order};
use crate::{
    metrics,
    report::{Answer, Report, Run, Sample},
    stage::{lifecycle::record::Record, text::rows::Rows},
};

impl EvaluateConfig {
    /// Updates title, description, training curves and samples in the report of an evaluation that was made with other
    /// values of these keys. `dir` is the evaluation's directory; `place` maps a configured directory to its current
    /// location.
    ///
    /// # Errors
    /// If the answers cannot be read.
    pub fn shown_now(&self, report: &mut Report, dir: &Path, place: &dyn Fn(&Path) -> PathBuf) -> anyhow::Result<()> {
        report.title.clone_from(&self.title);
        report.description.clone_from(&self.description);
        report.runs = self.runs.iter().filter_map(|(arm, run)| curves(report, arm, &place(run))).collect();
        let then = Record::read(&dir.join("stage.json"))?.and_then(|record| record.config["samples"].as_u64());
        if then.is_some_and(|then| then != *self.samples as u64) {
            report.samples = self.samples_of(dir)?;
        }
        Ok(())
    }

    /// The first prompts of each set with the answers of all arms, read from the evaluation's files.
    pub(super) fn samples_of(&self, dir: &Path) -> anyhow::Result<Vec<Sample>> {
        let arms = in_order(self.arms.keys().map(String::as_str));
        let mut all: Vec<Sample> = Vec::new();
        for EvalSet { name, .. } in &self.datasets {
            let first = all.len();
            for arm in &arms {
                let rows = Rows::read(&dir.join(answers_file(arm, name)))?;
                for (i, row) in rows.rows.iter().take(*self.samples).enumerate() {
                    if all.len() == first + i {
                        let prompt = row.prompt().with_context(|| rows.place(row))?.last_words().to_owned();
                        all.push(Sample { split: name.clone(), prompt, answers: Vec::new() });
                    }
                    let text = row.object.get("response").and_then(|text| text.as_str()).unwrap_or_default();
                    let number = |key: &str| row.object.get(key).and_then(|number| number.as_f64());
                    let (gold, score) = (number("gold"), number("score"));
                    let answer = Answer { arm: (*arm).to_owned(), text: text.to_owned(), gold, score };
                    all[first + i].answers.push(answer);
                }
            }
        }
        Ok(all)
    }
}

/// The current curves of a training run, or, if they cannot be read, those in the report.
fn curves(report: &Report, arm: &str, run: &Path) -> Option<Run> {
    match metrics::read(run) {
        Ok(rows) => Some(Run::from_metrics(arm, &rows)),
        Err(_) => report.runs.iter().find(|known| known.arm == arm).cloned(),
    }
}
