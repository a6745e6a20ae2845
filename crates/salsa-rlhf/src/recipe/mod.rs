//! Recipes: several stages in one YAML file.
//!
//! ```yaml
//! name: hh-small
//! out: ../runs/hh-small              # `runs/NAME` if absent; --out wins
//! seed: 1                            # of every stage without its own
//! vars: {data: ../../data}           # --set vars.data=/elsewhere
//! stages:
//!   base:   {kind: pretrain, dataset: "${vars.data}/text.txt"}
//!   sft-a:  {kind: sft, model: base, dataset: "${vars.data}/chat.jsonl", seed: 1}
//!   sft-b:  {kind: sft, model: base, dataset: "${vars.data}/chat.jsonl", seed: 2}
//!   soup:   {kind: soup, models: [sft-a, sft-b]}
//!   gen:    {kind: generate, model: soup, input: prompts.jsonl}
//!   score:  {kind: score, model: "${stages.base}", input: gen}
//! ```
//!
//! Stages run in the order given, each in its own directory `OUT/NAME`. Where a key takes a model or data path, the
//! name of an earlier stage means the product of that stage. `${vars.x}`, `${stages.x}`, `${out}`, `${name}` and
//! `${seed}` are replaced in any value (`$${` is a plain `${`). Relative paths start at the recipe's directory. The
//! whole recipe is checked, including the existence of files, before any work starts.
//!
//! ```
//! use salsa_rlhf::{
//!     recipe::{Changes, Recipe},
//!     stage::{Outcome, STAGES, StageContext},
//! };
//! # let dir = tempfile::tempdir()?;
//! let path = dir.path().join("recipe.yaml");
//! std::fs::write(&path, "out: out\nstages:\n  world: {kind: kitchen, pretrain: 9, sft: 4, preferences: 20}\n")?;
//!
//! let changes = [("stages.world.pretrain".to_owned(), "12".to_owned())]; // as --set on the command line
//! let recipe = Recipe::read(&path, Changes { set: &changes, ..Changes::default() }, STAGES)?;
//! let outcomes = recipe.run(&StageContext::quiet())?;
//! assert!(matches!(&outcomes[0], Outcome::Done { .. }));
//! let lines = std::fs::read_to_string(dir.path().join("out/world/pretrain.jsonl"))?;
//! assert_eq!(lines.lines().count(), 12);
//!
//! // What is done is not done again.
//! assert!(matches!(&recipe.run(&StageContext::quiet())?[0], Outcome::Skipped { .. }));
//! # Ok::<(), anyhow::Error>(())
//! ```
use std::path::{Path, PathBuf};

use anyhow::bail;
use serde_json::{Map, Value};

use crate::{
    atomic,
    config::{self, Origin, Usage, names, paths::PathKind},
    hub::Network,
    input,
    stage::kind::{Kind, Planned, Product},
};

mod as_run;
mod aside;
mod check;
mod facts;
mod faults;
mod leaves;
mod pipeline;
pub(crate) mod report;
pub(crate) mod resolve;
mod run;
pub(crate) mod schema;
mod selection;

pub use faults::ErrorList;
use resolve::{Names, Resolver, StageName};
pub use selection::{Selected, Selection};

/// A checked recipe.
pub struct Recipe {
    /// Its name.
    pub name: String,
    /// The directory of its stages.
    pub out: PathBuf,
    /// The seed of stages without their own seed.
    pub seed: Option<u64>,
    /// Its stages, in order.
    pub steps: Vec<Step>,
    /// Names of stages with errors, which are not in `steps`.
    faulty: Vec<String>,
}

/// One stage of a recipe.
pub struct Step {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: &'static Kind,
    /// Its directory.
    pub dir: PathBuf,
    /// The keys that the recipe sets, under the names used there.
    pub given: Vec<String>,
    /// Its configuration and work function.
    pub planned: Planned,
}

/// The text of a recipe and its origin.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// YAML.
    pub text: &'a str,
    /// Its path in error messages.
    pub path: &'a Path,
    /// The base of relative paths.
    pub base: &'a Path,
}

/// Command-line options of a recipe.
#[derive(Clone, Copy, Default)]
pub struct Changes<'a> {
    /// Whether models and data sets of the hub are downloaded.
    pub network: Network,
    /// The directory of the stages, overriding the recipe's `out`.
    pub out: Option<&'a Path>,
    /// Key paths with their new values: `("stages.ppo.kl_coef", "0.1")`.
    pub set: &'a [(String, String)],
}

/// Files that a run writes beside the directories of its stages.
const RUN_FILES: &[&str] = &["recipe.yaml", "resolved.json", "summary.json", "report.html"];

const KEYS: &[&str] = &["name", "out", "seed", "vars", "stages"];

impl Recipe {
    /// Reads and checks a recipe file.
    ///
    /// # Errors
    /// Any error in the recipe: see [`Recipe::new`].
    pub fn read(path: &Path, changes: Changes<'_>, kinds: &'static [Kind]) -> anyhow::Result<Recipe> {
        let (recipe, faults) = Recipe::read_what_can_be(path, changes, kinds)?;
        Ok(faults.none_or(recipe)?)
    }

    /// Reads a recipe file; returns its valid stages, and the errors of the others.
    ///
    /// # Errors
    /// An error that leaves no stage to check, such as bad syntax.
    pub fn read_what_can_be(
        path: &Path,
        changes: Changes<'_>,
        kinds: &'static [Kind],
    ) -> anyhow::Result<(Recipe, ErrorList)> {
        let text = input::read_to_string(path)?;
        let base = path.parent().unwrap_or(Path::new(""));
        Recipe::what_can_be(Source { text: &text, path, base }, changes, kinds)
    }

    /// Checks a recipe.
    ///
    /// # Errors
    /// Bad syntax, unknown keys, kinds and variables, references to later stages, values of wrong type or range, files
    /// that do not exist; of every stage.
    pub fn new(source: Source<'_>, changes: Changes<'_>, kinds: &'static [Kind]) -> anyhow::Result<Recipe> {
        let (recipe, faults) = Recipe::what_can_be(source, changes, kinds)?;
        Ok(faults.none_or(recipe)?)
    }

    fn what_can_be(
        source: Source<'_>,
        changes: Changes<'_>,
        kinds: &'static [Kind],
    ) -> anyhow::Result<(Recipe, ErrorList)> {
        let file = source.path.display();
        let mut root = match config::parse(source.text).map_err(|message| anyhow::anyhow!("{file}: {message}"))? {
            Value::Object(root) => root,
            _ => bail!("{file}: expected `name:` and `stages:`"),
        };
        for key in root.keys() {
            if !KEYS.contains(&key.as_str()) {
                bail!("{file}: {key}: unknown key; {}", names::hint(key, KEYS.iter().copied()));
            }
        }
        for (path, text) in changes.set {
            set(&mut root, path, text).map_err(|error| Usage(format!("--set {path}: {error:#}")))?;
        }
        let within = |error: anyhow::Error| error.context(file.to_string());
        let name = name(&root, source.path).map_err(within)?;
        let seed = seed(&root).map_err(within)?;
        let out = out(&root, &name, source.base, changes.out).map_err(within)?;
        let vars = vars(&root).map_err(within)?;
        let stages = stages(&root).map_err(within)?;
        let known = Names { out: &out, name: &name, seed, vars: &vars, stages: stage_names(&stages, kinds, &out) };
        let (mut steps, mut faulty, mut faults) = (Vec::new(), Vec::new(), ErrorList::default());
        for (position, (stage, given)) in stages.iter().enumerate() {
            let origin = Origin::File { path: source.path.to_owned(), prefix: format!("stages.{stage}") };
            let resolver = Resolver::new(&known, position, source.base, changes.network);
            match step(stage, given, &resolver, &origin, kinds) {
                Ok(step) => steps.push(step),
                Err(wrong) => {
                    faulty.push(stage.clone());
                    faults.extend(wrong, |fault| fault);
                }
            }
        }
        if let Err(unfit) = leaves::check(&steps) {
            faults.extend(unfit, within);
        }
        Ok((Recipe { name, out, seed, steps, faulty }, faults))
    }
}

/// Resolves and checks one stage.
fn step(
    name: &str,
    given: &Map<String, Value>,
    resolver: &Resolver<'_>,
    origin: &Origin,
    kinds: &'static [Kind],
) -> Result<Step, ErrorList> {
    let kind = kind(given, kinds).map_err(|error| origin.within(error))?;
    let mut given = given.clone();
    given.shift_remove("kind");
    let place = kind.product.key();
    if let Some(key) = given.keys().find(|key| place.is_some_and(|place| names::are_same(key, place))) {
        let fault = anyhow::anyhow!("{key} cannot be set; the stage's place is its name under `out`");
        return Err(origin.within(fault).into());
    }
    if let Err(wrong) = resolver.variables(&mut given) {
        let mut faults = ErrorList::default();
        faults.extend(wrong, |fault| origin.within(fault));
        return Err(faults);
    }
    let dir = resolver.names.out.join(name);
    let keys = given.keys().cloned().collect();
    let defaults = (kind.defaults)();
    if let Some(seed) = resolver.names.seed.filter(|_| defaults.contains_key("seed") && !given.contains_key("seed")) {
        given.insert("seed".to_owned(), seed.into());
    }
    if let Some(place) = place {
        let product = kind.product.path(&dir).to_string_lossy().into_owned();
        given.insert(place.to_owned(), product.into());
    }
    let mut faults = ErrorList::default();
    let mut find = |kind: PathKind, place: &str, text: &str| {
        let found = resolver.input(kind, text).map_err(|error| origin.within(error.context(as_given(place, &given))));
        Ok(faults.take(found))
    };
    let planned = (kind.from_mapping)(&given, origin, &mut find);
    // An invalid value that results from a missing input is not reported in addition.
    let planned = faults.none_or(planned)??;
    Ok(Step { name: name.to_owned(), kind, dir, given: keys, planned })
}

/// A place, with the name of its key as used in the recipe.
fn as_given(place: &str, given: &Map<String, Value>) -> String {
    let (root, rest) = place.split_at(place.find(['.', '[']).unwrap_or(place.len()));
    let key = given.keys().find(|key| names::are_same(key, root)).map_or(root, String::as_str);
    format!("{key}{rest}")
}

fn kind(given: &Map<String, Value>, kinds: &'static [Kind]) -> anyhow::Result<&'static Kind> {
    let known = kinds.iter().map(|kind| kind.name);
    let name = match given.get("kind") {
        Some(Value::String(name)) => name,
        Some(other) => bail!("kind: expected the name of a stage, got {other}"),
        None => bail!("the key \"kind\" is missing; {}", names::hint("", known)),
    };
    match kinds.iter().find(|kind| kind.name == name) {
        Some(kind) => Ok(kind),
        None => bail!("kind: there is no stage {name:?}; {}", names::hint(name, known)),
    }
}

/// The names of all stages. A stage without a valid kind is reported separately; references to it are checked
/// nevertheless.
fn stage_names(stages: &[(String, Map<String, Value>)], kinds: &'static [Kind], out: &Path) -> Vec<StageName> {
    let product = |given: &Map<String, Value>| kind(given, kinds).map_or(Product::Directory, |kind| kind.product);
    let name = |(name, given): &(String, Map<String, Value>)| {
        let dir = out.join(name);
        StageName { name: name.clone(), product: product(given).path(&dir), dir }
    };
    stages.iter().map(name).collect()
}

fn stages(root: &Map<String, Value>) -> anyhow::Result<Vec<(String, Map<String, Value>)>> {
    let stages = match root.get("stages") {
        Some(Value::Object(stages)) if !stages.is_empty() => stages,
        _ => bail!("stages: expected at least one stage, as in `sft-a: {{kind: sft, model: …}}`"),
    };
    // Some file systems are case-insensitive, and a file is first written under a temporary name.
    let is_run_file = |name: &str| {
        let name = name.to_lowercase();
        RUN_FILES.iter().any(|file| name == *file || atomic::is_temporary_of(name.as_ref(), file))
    };
    let stage = |(name, given): (&String, &Value)| match given {
        _ if is_run_file(name) => bail!("stages: {name:?} is a file that the run itself writes; choose another name"),
        Value::Object(given) => names::check_component("stages", name).map(|()| (name.clone(), given.clone())),
        other => bail!("stages.{name}: expected `kind: …` and the stage's keys, got {other}"),
    };
    stages.iter().map(stage).collect()
}

fn name(root: &Map<String, Value>, path: &Path) -> anyhow::Result<String> {
    match root.get("name") {
        Some(Value::String(name)) if !name.is_empty() => Ok(name.clone()),
        Some(other) => bail!("name: expected a string, got {other}"),
        None => Ok(path.file_stem().map_or("run".to_owned(), |stem| stem.to_string_lossy().into_owned())),
    }
}

fn seed(root: &Map<String, Value>) -> anyhow::Result<Option<u64>> {
    match root.get("seed") {
        None | Some(Value::Null) => Ok(None),
        Some(seed) => match seed.as_u64() {
            Some(seed) => Ok(Some(seed)),
            None => bail!("seed: expected a whole number, 0 or more, got {seed}"),
        },
    }
}

fn out(root: &Map<String, Value>, name: &str, base: &Path, wanted: Option<&Path>) -> anyhow::Result<PathBuf> {
    match (wanted, root.get("out")) {
        (Some(out), _) => Ok(out.to_owned()),
        (None, Some(Value::String(out))) if !out.is_empty() => Ok(resolve::join(base, out)),
        (None, Some(other)) => bail!("out: expected a directory, got {other}"),
        (None, None) => names::check_component("name", name).map(|()| Path::new("runs").join(name)),
    }
}

/// The variables in order; each may use earlier ones.
fn vars(root: &Map<String, Value>) -> anyhow::Result<Map<String, Value>> {
    match root.get("vars") {
        Some(Value::Object(vars)) => resolve::vars(vars),
        None | Some(Value::Null) => Ok(Map::new()),
        Some(other) => bail!("vars: expected a mapping (key: value), got {other}"),
    }
}

/// `--set a.b=c`: changes an existing value or adds a key to a stage; does not create stages or variables.
pub(crate) fn set(root: &mut Map<String, Value>, path: &str, text: &str) -> anyhow::Result<()> {
    let value = config::parse(text).unwrap_or_else(|_| text.into());
    let mut parts = path.splitn(3, '.');
    let (first, second) = (parts.next().unwrap_or_default(), parts.next());
    if !KEYS.contains(&first) {
        bail!("a recipe has no key {first:?}; {}", names::hint(first, KEYS.iter().copied()));
    }
    if let (Some(second), Some(Value::Object(known))) = (second, root.get(first))
        && !known.contains_key(&names::existing(known, second))
    {
        bail!("there is no {second:?} in {first}; {}", names::hint(second, known.keys().map(String::as_str)));
    }
    config::set_path(root, path, value)
}

#[cfg(test)]
mod tests;
