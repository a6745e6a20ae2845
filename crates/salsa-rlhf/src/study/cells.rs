//! The recipe of a cell: the base recipe with the values of the factors, the arm's stage, its evaluation, and only the
//! stages that these need.
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value, json};

use super::{
    config::StudyFile,
    factors::{Factor, Role, Setting, fill, path_of, placeholder},
};
use crate::{
    config::{self, names, paths::visit_strings},
    hub::Network,
    input,
    recipe::{self, Changes, Recipe, Source},
    report::label,
    stage::{
        kind::Kind,
        table::{self, STAGES},
    },
};

/// The base recipe of a study and the changes common to all cells.
pub struct Base {
    /// Its path.
    pub path: PathBuf,
    root: Map<String, Value>,
    /// The name of the stage that evaluates.
    pub evaluate: String,
    /// The kinds of the stages that arms are made from.
    trained: Vec<String>,
    /// The names of stages that the study adds.
    added: Vec<String>,
}

/// An arm: a stage of the recipe and the keys that differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Arm {
    /// Its name, also that of its stage in the cells.
    pub name: String,
    /// The stage of the recipe that it is made from.
    pub stage: String,
    /// Keys of that stage with their values.
    keys: Map<String, Value>,
    /// Key paths of the recipe with their values.
    set: Map<String, Value>,
}

/// A stage of the recipe with some other keys.
struct Variant {
    /// The stage of the recipe.
    stage: String,
    kind: &'static Kind,
    keys: Map<String, Value>,
}

/// Suffix of the name of the stage that evaluates the models before RL.
const BEFORE: &str = "-before";

impl Base {
    /// Reads the base recipe.
    ///
    /// # Errors
    /// If it cannot be read, has no evaluation, or a key path of `set` does not exist.
    pub fn read(study: &StudyFile) -> anyhow::Result<Base> {
        let path = recipe::resolve::join(study.base(), &study.config.recipe);
        let shown = path.display().to_string();
        let text = input::read_to_string(&path).context("recipe")?;
        let Value::Object(root) = config::parse(&text).map_err(|message| anyhow::anyhow!("{shown}: {message}"))? else {
            bail!("{shown}: expected `name:` and `stages:`");
        };
        ensure!(root.get("stages").is_some_and(Value::is_object), "{shown}: it has no stages");
        let mut base = Base { path, root, evaluate: String::new(), trained: Vec::new(), added: Vec::new() };
        for (name, given) in &study.config.stages {
            base.add(name, given).with_context(|| format!("stages.{name}"))?;
        }
        for (key, value) in &study.config.set {
            set(&mut base.root, key, value).with_context(|| format!("set.{key}"))?;
        }
        base.evaluate = base.evaluation(&study.config.evaluate)?;
        Ok(base)
    }

    /// Adds a stage behind the one whose keys it has.
    fn add(&mut self, name: &str, given: &Value) -> anyhow::Result<()> {
        names::check_component("stages", name)?;
        ensure!(!self.stages().contains_key(name), "the recipe has a stage of this name; choose another");
        let Variant { stage, kind: _, keys } = self.variant(name, given)?;
        let mut own = self.stages()[&stage].clone();
        if let Value::Object(own) = &mut own {
            keys.iter().for_each(|(key, value)| put(own, key, value.clone()));
        }
        let mut stages = Map::new();
        for (known, value) in self.stages() {
            stages.insert(known.clone(), value.clone());
            if *known == stage {
                stages.insert(name.to_owned(), own.clone());
            }
        }
        self.root.insert("stages".to_owned(), stages.into());
        self.added.push(name.to_owned());
        Ok(())
    }

    fn evaluation(&self, wanted: &str) -> anyhow::Result<String> {
        let is_one = |name: &str| self.kind(name) == Some("evaluate");
        let known = || self.stages().keys().map(String::as_str).filter(|name| is_one(name));
        match wanted {
            "" => match known().next_back() {
                Some(last) => Ok(last.to_owned()),
                None => bail!("{}: no stage evaluates; add one of kind evaluate", self.path.display()),
            },
            name if is_one(name) => Ok(name.to_owned()),
            name => bail!("evaluate: no stage {name:?} of kind evaluate; {}", names::hint(name, known())),
        }
    }

    /// The directory of a run of the base recipe by itself, from its `out` or its name.
    pub fn own_run(&self) -> Option<PathBuf> {
        let text = |key: &str| self.root.get(key).and_then(Value::as_str);
        let base = self.path.parent().unwrap_or(Path::new(""));
        let named = || Some(Path::new("runs").join(text("name")?));
        text("out").map(|out| recipe::resolve::join(base, out)).or_else(named)
    }

    fn stages(&self) -> &Map<String, Value> {
        self.root["stages"].as_object().expect("checked when it was read")
    }

    fn kind(&self, stage: &str) -> Option<&str> {
        self.stages().get(stage)?["kind"].as_str()
    }

    /// Builds the arms from their entries in the study file.
    ///
    /// # Errors
    /// As [`Base::arm`], with the arm's name.
    pub fn arms(&mut self, given: &Map<String, Value>) -> anyhow::Result<Vec<Arm>> {
        let arm = |(name, given): (&String, &Value)| self.arm(name, given).with_context(|| format!("arms.{name}"));
        let arms = given.iter().map(arm).collect::<anyhow::Result<Vec<_>>>()?;
        self.trained = arms.iter().filter_map(|arm| self.kind(&arm.stage)).map(str::to_owned).collect();
        Ok(arms)
    }

    /// Builds an arm from its entry in the study file.
    ///
    /// # Errors
    /// A stage that does not exist, a key that it does not have.
    fn arm(&self, name: &str, given: &Value) -> anyhow::Result<Arm> {
        names::check_component("arms", name)?;
        let mut given = given.clone();
        let set = match given.as_object_mut().and_then(|keys| keys.shift_remove("set")) {
            None => Map::new(),
            Some(Value::Object(set)) => set,
            Some(other) => bail!("set: expected key paths with values, got {other}"),
        };
        let Variant { stage, kind, keys } = self.variant(name, &given)?;
        ensure!(kind.name != "evaluate", "stage {stage:?} evaluates; an arm is made from a stage that trains");
        ensure!(
            stage == name || !self.stages().contains_key(name),
            "the recipe has another stage of this name; choose another name, or leave out `stage: {stage}`"
        );
        Ok(Arm { name: name.to_owned(), stage, keys, set })
    }

    /// Reads a stage that differs in some keys from a stage of the recipe: that of `stage`, or of its own name.
    ///
    /// # Errors
    /// A stage that does not exist, a key that it does not have.
    fn variant(&self, name: &str, given: &Value) -> anyhow::Result<Variant> {
        let mut keys = match given {
            Value::Object(keys) => keys.clone(),
            Value::Null => Map::new(),
            other => bail!("expected the keys in which it differs, as in `{{stage: ppo, kl_coef: 0.1}}`, got {other}"),
        };
        let stage = match keys.shift_remove("stage") {
            None => names::existing(self.stages(), name),
            Some(Value::String(stage)) => names::existing(self.stages(), &stage),
            Some(other) => bail!("stage: expected the name of a stage, got {other}"),
        };
        let Some(kind) = self.kind(&stage) else {
            let hint = names::hint(&stage, self.stages().keys().map(String::as_str));
            bail!("there is no stage {stage:?} in {}; {hint} or say `stage: NAME`", self.path.display());
        };
        let Some(kind) = table::find(kind) else { bail!("stage {stage:?} is of no kind that there is: {kind:?}") };
        let defaults = (kind.defaults)();
        for key in keys.keys() {
            if let Err(hint) = names::resolve(key, &defaults) {
                bail!("{key}: unknown key of {}; {hint}", kind.name);
            }
        }
        Ok(Variant { stage, kind, keys })
    }

    /// The target of a factor without `set`: none if an arm uses its value; else the factor's name as a key path, the
    /// recipe's seed, a variable of the recipe, or a key of the arms' stages.
    ///
    /// # Errors
    /// If the name is none of these.
    pub fn meant(&self, factor: &str, arms: &[Arm]) -> anyhow::Result<Vec<(String, Value)>> {
        let value = placeholder(factor);
        let stands_in = |arm: &Arm| [&arm.keys, &arm.set].iter().any(|keys| hold(keys, &value));
        if arms.iter().any(stands_in) {
            return Ok(Vec::new());
        }
        Ok(vec![(self.target(factor, arms)?, value.into())])
    }

    fn target(&self, factor: &str, arms: &[Arm]) -> anyhow::Result<String> {
        let mut variables = self.root.get("vars").and_then(Value::as_object).into_iter().flatten();
        if factor.contains('.') || factor == "seed" {
            return Ok(factor.to_owned());
        }
        if variables.any(|(name, _)| name == factor) {
            return Ok(format!("vars.{factor}"));
        }
        let kinds = arms.iter().filter_map(|arm| table::find(self.kind(&arm.stage)?)).map(|kind| (kind.defaults)());
        let hints: Vec<String> = kinds.filter_map(|keys| names::resolve(factor, &keys).err()).collect();
        match hints.first() {
            None => Ok(format!("arm.{factor}")),
            Some(hint) => bail!(
                "it is neither a variable of the recipe nor a key of every arm's stage; {hint} (or say what it sets, as in \
                 `{{values: […], set: {{stages.NAME.KEY: \"${{{factor}}}\"}}}}`)"
            ),
        }
    }

    /// Builds and checks the recipe of a cell, with only the stages it needs, to run in `out`.
    ///
    /// # Errors
    /// Any error of the recipe.
    pub fn cell(
        &self,
        (arm, factors, setting): (&Arm, &[Factor], &Setting),
        out: &Path,
        network: Network,
    ) -> anyhow::Result<Recipe> {
        let mut root = self.with_values(arm, factors, setting)?;
        let title = title(arm, factors, setting);
        self.evaluate_the_arm(&mut root, arm, &title)?;
        let base = self.path.parent().unwrap_or(Path::new(""));
        let text = yaml(&root)?;
        let source = Source { text: &text, path: &self.path, base };
        let changes = Changes { network, out: Some(out), set: &[] };
        let mut recipe = Recipe::new(source, changes, STAGES)?;
        let before = format!("{}{BEFORE}", self.evaluate);
        let targets = [arm.name.as_str(), &self.evaluate, &before];
        keep_needed(&mut recipe, &targets);
        Ok(recipe)
    }

    /// The base recipe with the arm's stage inserted before the evaluation, and the values of the factors set.
    fn with_values(&self, arm: &Arm, factors: &[Factor], setting: &Setting) -> anyhow::Result<Map<String, Value>> {
        let mut root = self.root.clone();
        let mut stages = Map::new();
        for (name, stage) in self.stages() {
            if *name == self.evaluate {
                let mut own = self.stages()[&arm.stage].clone();
                if let Value::Object(own) = &mut own {
                    arm.keys.iter().for_each(|(key, value)| put(own, key, fill(value, factors, setting)));
                }
                stages.insert(arm.name.clone(), own);
            }
            if *name != arm.name {
                let is_added = self.added.contains(name);
                let stage = if is_added { fill(stage, factors, setting) } else { stage.clone() };
                stages.insert(name.clone(), stage);
            }
        }
        root.insert("stages".to_owned(), stages.into());
        for (key, value) in &arm.set {
            let value = fill(value, factors, setting);
            set(&mut root, &of_arm(key, arm), &value).with_context(|| format!("arms.{}.set.{key}", arm.name))?;
        }
        for factor in factors {
            for (key, template) in &factor.set {
                let place = || format!("factors.{}.set.{key}", factor.name);
                let path = of_arm(key, arm);
                let own = path.strip_prefix("stages.").and_then(|rest| rest.strip_prefix(&arm.name)?.strip_prefix('.'));
                if let Some(own) = own.filter(|own| arm.keys.keys().any(|key| names::are_same(key, own))) {
                    bail!("arms.{}.{own}: the factor {} sets this too; leave one of them out", arm.name, factor.name);
                }
                set(&mut root, &path, &fill(template, factors, setting)).with_context(place)?;
            }
        }
        Ok(root)
    }

    /// Splits the recipe's evaluation in two: one of the models before RL, which all arms share, and one of the arm.
    fn evaluate_the_arm(&self, root: &mut Map<String, Value>, arm: &Arm, title: &str) -> anyhow::Result<()> {
        let Some(stages) = root.get_mut("stages").and_then(Value::as_object_mut) else { return Ok(()) };
        let Some(Value::Object(given)) = stages.shift_remove(&self.evaluate) else { return Ok(()) };
        let name_of_before = format!("{}{BEFORE}", self.evaluate);
        ensure!(!stages.contains_key(&name_of_before), "the recipe has a stage {name_of_before:?}; rename it");
        let trained = self.after_training(stages);
        let arms = get(&given, "arms").and_then(Value::as_object).cloned().unwrap_or_default();
        let before: Map<String, Value> = arms.into_iter().filter(|(_, source)| !names_any(source, &trained)).collect();
        if let Some(first) = before.keys().next() {
            let mut evaluation = given.clone();
            let baseline = get(&given, "baseline").and_then(Value::as_str).filter(|name| before.contains_key(*name));
            let baseline = baseline.unwrap_or(first).to_owned();
            put(&mut evaluation, "arms", before.clone().into());
            put(&mut evaluation, "baseline", baseline.into());
            put(&mut evaluation, "comparisons", json!([]));
            put(&mut evaluation, "runs", json!({}));
            put(&mut evaluation, "title", "Before RL".into());
            put(&mut evaluation, "description", "".into());
            stages.insert(name_of_before, evaluation.into());
        }
        let mut evaluation = given;
        put(&mut evaluation, "arms", json!({ arm.name.as_str(): arm.name.as_str() }));
        put(&mut evaluation, "baseline", arm.name.as_str().into());
        put(&mut evaluation, "comparisons", json!([]));
        put(&mut evaluation, "runs", json!({ arm.name.as_str(): arm.name.as_str() }));
        put(&mut evaluation, "landscape", Value::Null);
        put(&mut evaluation, "title", title.into());
        put(&mut evaluation, "description", "One cell of a study.".into());
        stages.insert(self.evaluate.clone(), evaluation.into());
        Ok(())
    }

    /// Every stage of the kinds that arms are made from, i.e. those that only some cells have.
    fn after_training<'a>(&self, stages: &'a Map<String, Value>) -> Vec<&'a str> {
        let is_trained = |stage: &Value| self.trained.iter().any(|kind| stage["kind"] == kind.as_str());
        stages.iter().filter(|(_, stage)| is_trained(stage)).map(|(name, _)| name.as_str()).collect()
    }
}

/// Expands `arm.KEY` to a key of the arm's own stage.
fn of_arm(key: &str, arm: &Arm) -> String {
    key.strip_prefix("arm.").map_or_else(|| key.to_owned(), |rest| format!("stages.{}.{rest}", arm.name))
}

/// Sets a key path of a recipe, replacing the same key of a stage under another name.
fn set(root: &mut Map<String, Value>, path: &str, value: &Value) -> anyhow::Result<()> {
    let mut parts = path.splitn(4, '.');
    let (first, second, third, rest) = (parts.next(), parts.next(), parts.next(), parts.next());
    let path = match (first, second, third) {
        (Some("stages"), Some(stage), Some(key)) => {
            let known = root.get("stages").and_then(Value::as_object);
            let stage = known.map_or_else(|| stage.to_owned(), |stages| names::existing(stages, stage));
            let keys = known.and_then(|stages| stages.get(&stage)).and_then(Value::as_object);
            let key =
                keys.and_then(|keys| keys.keys().find(|known| names::are_same(known, key))).map_or(key, |key| key);
            [Some("stages"), Some(&stage), Some(key), rest].into_iter().flatten().collect::<Vec<_>>().join(".")
        }
        _ => path.to_owned(),
    };
    recipe::set(root, &path, &value.to_string())
}

/// Sets a key of a stage, under the name that the stage already uses for it.
fn put(stage: &mut Map<String, Value>, key: &str, value: Value) {
    let known = stage.keys().find(|known| names::are_same(known, key)).cloned();
    stage.insert(known.unwrap_or_else(|| key.to_owned()), value);
}

fn get<'a>(stage: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    stage.iter().find(|(known, _)| names::are_same(known, key)).map(|(_, value)| value)
}

/// Whether a model source names one of these stages.
fn names_any(source: &Value, stages: &[&str]) -> bool {
    match source {
        Value::String(text) => {
            let plain = text.strip_prefix("${stages.").and_then(|rest| rest.split('}').next()).unwrap_or(text);
            stages.contains(&plain)
        }
        Value::Array(items) => items.iter().any(|item| names_any(item, stages)),
        Value::Object(fields) => fields.values().any(|field| names_any(field, stages)),
        _ => false,
    }
}

/// Whether one of these values contains a text.
fn hold(keys: &Map<String, Value>, text: &str) -> bool {
    let mut found = false;
    let visited = visit_strings(&mut keys.clone().into(), "", &mut |_, value| {
        found |= value.contains(text);
        Ok(None)
    });
    visited.expect("this visit cannot fail");
    found
}

/// Drops the stages that no target depends on.
fn keep_needed(recipe: &mut Recipe, targets: &[&str]) {
    let mut needed: Vec<bool> = recipe.steps.iter().map(|step| targets.contains(&step.name.as_str())).collect();
    for i in (0..recipe.steps.len()).rev() {
        if needed[i] {
            for path in &recipe.steps[i].planned.inputs {
                if let Some(from) = recipe.steps.iter().position(|step| path.starts_with(&step.dir)) {
                    needed[from] = true;
                }
            }
        }
    }
    let mut needed = needed.into_iter();
    recipe.steps.retain(|_| needed.next().unwrap_or(false));
}

fn title(arm: &Arm, factors: &[Factor], setting: &Setting) -> String {
    let of = |role: Role| -> (Vec<Factor>, Setting) {
        factors.iter().cloned().zip(setting.iter().cloned()).filter(|(factor, _)| factor.role == role).unzip()
    };
    let (settings, values) = of(Role::Setting);
    let (seeds, repeated) = of(Role::Seed);
    let parts = [(settings, values), (seeds, repeated)].into_iter().filter(|(factors, _)| !factors.is_empty());
    let parts = parts.map(|(factors, values)| path_of(&factors, &values).replace(',', ", ").replace('=', " "));
    [label(&arm.name)].into_iter().chain(parts).collect::<Vec<_>>().join(", ")
}

fn yaml(root: &Map<String, Value>) -> anyhow::Result<String> {
    serde_saphyr::to_string(root).context("the cell's recipe as YAML")
}
