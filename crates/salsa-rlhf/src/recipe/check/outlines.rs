//! Outlines of models that earlier stages will write: shape and tokenizer, with weights that are a sparse hole in a
//! file. They allow planning the memory of a stage before the stages it depends on have run.
use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use salsa_engine::{Head, LoraSpec};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    chat,
    checkpoint::{self, AdapterToSave, Checkpoint, Companions, Dtype, SaveOptions, save_adapter},
    config::{Origin, paths::PathKind},
    recipe::{Recipe, Selected, Step},
    stage::{
        kind::{Planned, Produces},
        models::{frozen::trained_adapter, lora::LoraArguments},
    },
};

/// The outlines of a recipe's models; deleted on drop.
pub(super) struct Outlines<'a> {
    recipe: &'a Recipe,
    selected: &'a Selected,
    folder: Option<Folder>,
    made: HashMap<usize, Option<PathBuf>>,
}

impl<'a> Outlines<'a> {
    pub(super) fn new(recipe: &'a Recipe, selected: &'a Selected) -> Outlines<'a> {
        Outlines { recipe, selected, folder: None, made: HashMap::new() }
    }

    /// The stage with outlines in place of models that are still to be written; none if another input does not exist
    /// yet.
    ///
    /// # Errors
    /// If an outline cannot be written.
    pub(super) fn planned(&mut self, step: &Step) -> anyhow::Result<Option<Planned>> {
        let (mut config, mut is_whole) = (step.planned.config.clone(), true);
        step.planned.places.visit(&mut config, &mut |kind, _, text| {
            let here = self.here(step, kind, Path::new(text))?;
            is_whole &= here.is_some();
            Ok(here.map(|path| path.to_string_lossy().into_owned().into()))
        })?;
        let (true, Value::Object(config)) = (is_whole, config) else { return Ok(None) };
        let origin = Origin::File { path: step.dir.clone(), prefix: String::new() };
        (step.kind.from_mapping)(&config, &origin, &mut |_, _, _| Ok(None)).map(Some)
    }

    /// Replaces the path of an outline in a message by that of the stage that will write the model.
    pub(super) fn in_words(&self, text: &str) -> String {
        match &self.folder {
            Some(folder) => text.replace(&*folder.0.to_string_lossy(), &self.recipe.out.to_string_lossy()),
            None => text.to_owned(),
        }
    }

    /// The path of an existing input, or of its outline; none if it has neither.
    fn here(&mut self, reader: &Step, kind: PathKind, path: &Path) -> anyhow::Result<Option<PathBuf>> {
        let mut earlier = self.recipe.steps.iter().take_while(|other| other.name != reader.name);
        let writer =
            earlier.position(|other| path.starts_with(&other.dir) && self.recipe.remains(other, self.selected));
        match writer {
            None => Ok(path.exists().then(|| path.to_owned())),
            Some(writer) if kind == PathKind::Model && path == self.recipe.steps[writer].dir => self.of(writer),
            Some(_) => Ok(None),
        }
    }

    /// The outline of a stage's product; none if that depends on more than an existing model.
    fn of(&mut self, writer: usize) -> anyhow::Result<Option<PathBuf>> {
        if let Some(made) = self.made.get(&writer) {
            return Ok(made.clone());
        }
        let made = self.make(writer)?;
        self.made.insert(writer, made.clone());
        Ok(made)
    }

    fn make(&mut self, writer: usize) -> anyhow::Result<Option<PathBuf>> {
        let step = &self.recipe.steps[writer];
        let head = match step.kind.leaves {
            Produces::LanguageModel => Some(Head::LanguageModel),
            Produces::RewardModel => Some(Head::Scalar),
            Produces::SameModel => None,
            Produces::Data | Produces::Results => return Ok(None),
        };
        let Some(start) = step.planned.reads.reader.clone() else { return Ok(None) };
        let Some(start) = self.here(step, PathKind::Model, &start)? else { return Ok(None) };
        // Errors of this model are reported where it is read.
        let Ok(source) = Checkpoint::open(&start) else { return Ok(None) };
        let dir = self.folder()?.join(&step.name);
        outline(step, &source, head.unwrap_or(source.spec.head), &dir)
            .with_context(|| format!("the outline of {}", step.name))?;
        Ok(Some(dir))
    }

    fn folder(&mut self) -> anyhow::Result<&Path> {
        if self.folder.is_none() {
            self.folder = Some(Folder::new()?);
        }
        Ok(&self.folder.as_ref().expect("it has just been made").0)
    }
}

/// Writes a model of the shape that a stage starting from `source` will write, with zero weights.
fn outline(step: &Step, source: &Checkpoint, head: Head, dir: &Path) -> anyhow::Result<()> {
    let config = &step.planned.config;
    let companions = Companions::from_dir(source.dir())?;
    let companions = match &*step.planned.reads.template {
        "" => companions,
        choice => companions.with_chat_template(&chat::source_of(choice)?),
    };
    let spec = source.spec.with_head(head);
    let scores = match head {
        Head::Scalar => vec![("score_mean", json!(0.0)), ("score_std", json!(1.0))],
        _ => Vec::new(),
    };
    let is_soup = step.kind.leaves == Produces::SameModel;
    let key = if is_soup { "dtype" } else { "save_dtype" };
    let dtype = Dtype::deserialize(&config[key]).unwrap_or(source.dtype);
    let trained = trained_adapter(source, &LoraArguments::deserialize(config)?)?;
    let lora = trained.or_else(|| source.adapter().filter(|_| is_soup).map(|adapter| mean_of(&adapter.lora, config)));
    let Some(lora) = lora else {
        let options = SaveOptions { dtype, ..SaveOptions::like(source) };
        return checkpoint::outline(dir, &spec, &companions, &scores, &options);
    };
    let adapter = AdapterToSave {
        base: source.base_dir(),
        spec: &spec,
        weights: &vec![0.0; lora.parameters(&spec)],
        lora: &lora,
        dtype,
        companions: &companions,
        scores: &scores,
    };
    save_adapter(dir, &adapter)
}

/// The shape of the mean of adapters like the first: of the exact rank, or of the configured one.
fn mean_of(first: &LoraSpec, config: &Value) -> LoraSpec {
    let exact = first.rank * config["models"].as_array().map_or(1, Vec::len);
    let rank = config["svd_rank"].as_u64().map_or(exact, |rank| exact.min(rank as usize));
    LoraSpec { rank, ..first.clone() }
}

/// A new temporary folder, deleted on drop with its contents.
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Folder> {
        for count in 0.. {
            let path = std::env::temp_dir().join(format!("salsa-outlines-{}-{count}", std::process::id()));
            match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => {
                    return made
                        .map(|()| Folder(path.clone()))
                        .with_context(|| format!("cannot make {}, which memory plans need", path.display()));
                }
            }
        }
        unreachable!("some number is free")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Errors are ignored: a few kilobytes remain at most.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        recipe::Changes,
        stage::{StageContext, fixture, table::STAGES},
    };

    /// The memory of a stage in a line of output, without the memory of this process.
    fn memory(line: &str) -> String {
        let (_, memory) = line.split_once("memory ").unwrap_or_else(|| panic!("no plan: {line}"));
        let parts = memory.split_once('(').unwrap().1.split(", ");
        parts.filter(|part| !part.starts_with("program")).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn memory_is_planned_for_stages_whose_models_are_still_to_be_made() {
        let dir = tempfile::tempdir().unwrap();
        let base = fixture::base(dir.path());
        fixture::preferences(&dir.path().join("pairs.jsonl"));
        let training = "max_steps: 1, max_length: 48";
        for peft in ["", ", use_peft: true, lora_r: 4"] {
            let recipe = dir.path().join("recipe.yaml");
            let text = format!(
                "stages:\n  \
                 sft-a: &sft {{kind: sft, model: {base}, dataset: pairs.jsonl, {training}{peft}}}\n  \
                 sft-b: {{<<: *sft, seed: 3}}\n  \
                 reward: {{kind: reward, model: sft-a, dataset: pairs.jsonl, eval_dataset: pairs.jsonl, {training}{peft}}}\n  \
                 soup: {{kind: soup, models: [sft-a, sft-b]}}\n  \
                 ppo: {{kind: ppo, model: sft-a, reward_model: reward, dataset: pairs.jsonl, total_episodes: 4, \
                 batch_size: 4, response_length: 8, reference: {{kind: sft, model: soup}}{peft}}}\n  \
                 dpo: {{kind: dpo, model: soup, dataset: pairs.jsonl, {training}{peft}}}\n",
                base = base.display()
            );
            fs::write(&recipe, text).unwrap();
            let out = dir.path().join(format!("run{}", peft.len()));
            let read = || Recipe::read(&recipe, Changes { out: Some(&out), ..Changes::default() }, STAGES).unwrap();
            let check = || {
                let checked = read().check(&read().all());
                assert!(checked.faults.is_empty(), "{:?}", checked.faults);
                checked.stages
            };
            let before = check();
            assert!(!out.exists(), "nothing is written there");
            assert!(before[4].contains("model_name_or_path: what sft-a will write"), "{}", before[4]);
            let only = crate::recipe::Selection {
                only: ["sft-a", "sft-b", "reward", "soup"].map(str::to_owned).to_vec(),
                ..Default::default()
            };
            read().run_selected(&read().select(&only).unwrap(), &StageContext::quiet()).unwrap();
            let after = check();
            assert!(after[2].contains("done already in "), "{}", after[2]);
            for stage in [4, 5] {
                assert_eq!(memory(&before[stage]), memory(&after[stage]), "{peft}");
            }
        }
        let left = fs::read_dir(std::env::temp_dir()).unwrap().map(|entry| entry.unwrap().file_name());
        let ours = format!("salsa-outlines-{}-", std::process::id());
        assert!(!left.into_iter().any(|name| name.to_string_lossy().starts_with(&ours)));
    }

    #[test]
    fn a_soup_that_its_ingredients_do_not_allow_is_refused_before_they_are_made() {
        let dir = tempfile::tempdir().unwrap();
        let base = fixture::base(dir.path());
        fixture::preferences(&dir.path().join("pairs.jsonl"));
        let refused = |training: &str, soup: &str| {
            let recipe = dir.path().join("recipe.yaml");
            let text = format!(
                "stages:\n  sft-a: &sft {{kind: sft, model: {base}, dataset: pairs.jsonl, max_length: 48{training}}}\n  \
                 sft-b: {{<<: *sft, seed: 3}}\n  soup: {{kind: soup, models: [sft-a, sft-b], {soup}}}\n",
                base = base.display()
            );
            fs::write(&recipe, text).unwrap();
            let out = dir.path().join("run");
            let read = Recipe::read(&recipe, Changes { out: Some(&out), ..Changes::default() }, STAGES).unwrap();
            read.check(&read.all()).faults.none_or(()).map_or_else(|faults| faults.to_string(), |()| String::new())
        };
        assert_eq!(refused(", use_peft: true", "weights: [0.5, 0.5]"), "");
        let error = refused(", use_peft: true", "report: true");
        assert!(error.contains("stages.soup") && error.contains("there is no report on adapters"), "{error}");
        assert!(refused(", use_peft: true", "method: slerp").contains("only be mixed with method linear, not slerp"));
        assert!(refused("", "svd_rank: 4").contains("svd_rank is for soups of adapters"));
    }
}
