//! `recipe.yaml` in a run's directory: the recipe as it was run, runnable from there.
use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::{Recipe, Step};
use crate::{
    config::{
        names,
        paths::{PathKind, visit_strings},
    },
    hub,
};

/// Header comment of the file.
const HEADING: &str = "\
# What was run here: variables are filled in, `--set` is worked in, paths are those of the stages, absolute, or seen from
# this directory. `salsa run` on this file goes on with this run, with `--out OTHER` it makes the same again elsewhere.
";

impl Recipe {
    /// The recipe with variables and changes applied, as YAML for a file in the run's directory.
    ///
    /// # Errors
    /// If the current directory is unknown, or a value has no form in YAML.
    pub fn as_run(&self) -> anyhow::Result<String> {
        let mut stages = Map::new();
        for (i, step) in self.steps.iter().enumerate() {
            stages.insert(step.name.clone(), Value::Object(self.keys_of(i, step)?));
        }
        let mut root = json!({"name": self.name, "out": ".", "seed": self.seed, "stages": stages});
        if self.seed.is_none() {
            root.as_object_mut().expect("it is a mapping").shift_remove("seed");
        }
        Ok(format!("{HEADING}{}", serde_saphyr::to_string(&root).context("the recipe as YAML")?))
    }

    /// The keys that the recipe sets for a stage, under the names it uses.
    fn keys_of(&self, position: usize, step: &Step) -> anyhow::Result<Map<String, Value>> {
        let mut keys = Map::from_iter([("kind".to_owned(), step.kind.name.into())]);
        let mut config = step.planned.config.clone();
        let inputs = &step.planned.places.inputs;
        visit_strings(&mut config, "", &mut |place, text| {
            Ok(Some(match inputs.get(place) {
                Some(kind) => self.path_in_words(*kind, position, Path::new(text))?.into(),
                None => escaped(text).into(),
            }))
        })?;
        for given in &step.given {
            let key = config.as_object().and_then(|config| names::resolve(given, config).ok());
            keys.insert(given.clone(), config[key.as_ref().unwrap_or(given)].clone());
        }
        Ok(keys)
    }

    /// The notation of a path in a recipe: an earlier stage, something in its directory or in that of the run, an id of
    /// the hub, or else an absolute path.
    fn path_in_words(&self, kind: PathKind, position: usize, path: &Path) -> anyhow::Result<String> {
        for other in &self.steps[..position] {
            let product = match kind {
                PathKind::Model => other.dir.clone(),
                PathKind::Data => other.kind.product.path(&other.dir),
            };
            if path == product {
                return Ok(other.name.clone());
            }
            if let Ok(inside) = path.strip_prefix(&other.dir) {
                let stage = format!("${{stages.{}}}", other.name);
                let is_all = inside.as_os_str().is_empty();
                return Ok(if is_all { stage } else { format!("{stage}/{}", escaped(&inside.to_string_lossy())) });
            }
        }
        if let Ok(inside) = path.strip_prefix(&self.out) {
            return Ok(escaped(&inside.to_string_lossy()));
        }
        if let Some(id) = hub::id_of_snapshot(path).filter(|_| kind == PathKind::Model) {
            return Ok(id.to_string());
        }
        if !path.exists() && path.to_str().is_some_and(hub::is_id) {
            return Ok(path.to_string_lossy().into_owned());
        }
        let absolute = std::path::absolute(path).with_context(|| format!("cannot tell where {} is", path.display()))?;
        Ok(escaped(&absolute.to_string_lossy()))
    }
}

/// Escapes `${`, so that the text stands for itself.
fn escaped(text: &str) -> String {
    text.replace("${", "$${")
}
