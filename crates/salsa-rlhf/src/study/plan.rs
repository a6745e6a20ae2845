//! The plan of a study: its cells, and the stages they need, without duplicates.
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{
    cells::{Arm, Base},
    config::{Measure, StudyFile},
    factors::{Factor, Role, Setting, path_of, settings},
};
use crate::{
    config::{
        Origin, names,
        paths::{Places, below},
    },
    hub::Network,
    recipe::{self, Recipe, Step},
    stage::{
        kind::{Kind, Planned},
        lifecycle::inputs::Input,
    },
};

/// More cells would take years; such a number is an error in the file.
const MOST_CELLS: usize = 100_000;

/// A study, checked and planned.
pub struct Study {
    /// The study file.
    pub file: StudyFile,
    /// The directory of the study.
    pub out: PathBuf,
    /// The base recipe.
    pub base: Base,
    /// The factors.
    pub factors: Vec<Factor>,
    /// The arms.
    pub arms: Vec<Arm>,
    /// Every arm at every setting.
    pub cells: Vec<Cell>,
    /// Every stage of every cell once, after its inputs.
    pub nodes: Vec<Node>,
    /// The measured quantities.
    pub measured: Measured,
}

/// What the evaluations of the cells measure.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The sets of prompts, in the order of the recipe.
    pub sets: Vec<String>,
    /// The set on which settings are chosen; none if nothing is chosen.
    pub validation: Option<String>,
    /// The indices of the factors whose values are chosen.
    pub chosen: Vec<usize>,
    /// The compared quantity, which also chooses settings on the validation set.
    pub measure: Measure,
    /// The anchor that KL is measured to; none if KL is not measured.
    pub anchor: Option<String>,
}

/// One arm at one value of every factor.
pub struct Cell {
    /// The index of its arm.
    pub arm: usize,
    /// The values of the factors.
    pub setting: Setting,
    /// Its recipe, in its own directory.
    pub recipe: Recipe,
    /// Its stages by name, each with the index of its node.
    pub stages: Vec<(String, usize)>,
}

/// A stage that is run once, for all cells that need it.
pub struct Node {
    /// Its identity: a digest of its kind, configuration and inputs.
    pub key: String,
    /// Its name in the first cell that needs it.
    pub name: String,
    /// Its kind.
    pub kind: &'static Kind,
    /// Its directory.
    pub dir: PathBuf,
    /// Its configuration and work function.
    pub planned: Planned,
    /// The indices of the nodes it reads.
    pub needs: Vec<usize>,
}

impl Study {
    /// Reads and plans a study.
    ///
    /// # Errors
    /// Any error in the file or in a cell's recipe, a factor that changes nothing.
    pub fn read(path: &Path, out: Option<&Path>, network: Network) -> anyhow::Result<Study> {
        let file = StudyFile::read(path)?;
        let shown = file.path.display().to_string();
        Study::plan(file, out, network).context(shown)
    }

    fn plan(file: StudyFile, out: Option<&Path>, network: Network) -> anyhow::Result<Study> {
        let mut base = Base::read(&file)?;
        let arms = base.arms(&file.config.arms)?;
        let factor = |(name, given): (&String, &Value)| {
            ensure!(!name.eq_ignore_ascii_case("arm"), "factors.{name}: this name means the arm; choose another");
            names::check_component("factors", name)?;
            Factor::new(name, given, |name| base.meant(name, &arms)).with_context(|| format!("factors.{name}"))
        };
        let factors = file.config.factors.iter().map(factor).collect::<anyhow::Result<Vec<_>>>()?;
        for (a, b) in &file.config.compare {
            for name in [a, b] {
                let known = arms.iter().map(|arm| arm.name.as_str());
                ensure!(
                    known.clone().any(|arm| arm == name),
                    "compare: there is no arm {name:?}; {}",
                    names::hint(name, known)
                );
            }
            ensure!(a != b, "compare: {a:?} is compared with itself");
        }
        let out = match (out, file.config.out.as_str()) {
            (Some(out), _) => out.to_owned(),
            (None, "") => {
                names::check_component("name", &file.config.name)?;
                Path::new("runs").join(&file.config.name)
            }
            (None, out) => recipe::resolve::join(file.base(), out),
        };
        let size = factors.iter().fold(arms.len(), |size, factor| size.saturating_mul(factor.values.len()));
        ensure!(size <= MOST_CELLS, "{size} cells are too many; at most {MOST_CELLS}");
        let mut planner = Planner { out: &out, nodes: Vec::new(), known: HashMap::new(), read: HashMap::new() };
        let mut cells = Vec::new();
        for setting in settings(&factors) {
            for (at, arm) in arms.iter().enumerate() {
                let dir = out.join("cells").join(&arm.name).join(path_of(&factors, &setting));
                let recipe = base.cell((arm, &factors, &setting), &dir, network)?;
                let stages = planner.add(&recipe).with_context(|| format!("arm {}", arm.name))?;
                cells.push(Cell { arm: at, setting: setting.clone(), recipe, stages });
            }
        }
        let nodes = planner.nodes;
        every_factor_matters(&factors, &cells)?;
        let measured = Measured::of(&file, &factors, &cells, &base.evaluate)?;
        Ok(Study { file, out, base, factors, arms, cells, nodes, measured })
    }

    /// The node of a cell's stage.
    pub fn node_of(&self, cell: &Cell, stage: &str) -> Option<&Node> {
        cell.stages.iter().find(|(name, _)| name == stage).map(|(_, node)| &self.nodes[*node])
    }

    /// The name of a cell: `salsa, world_seed=1,kl_coef=0.1`.
    pub fn name_of(&self, cell: &Cell) -> String {
        format!("{}/{}", self.arms[cell.arm].name, path_of(&self.factors, &cell.setting))
    }
}

impl Node {
    /// Whether it has run.
    pub fn is_done(&self) -> bool {
        self.dir.join("stage.json").exists()
    }

    /// The stages that its results depend on: all inputs except the anchors, which KL is only measured to.
    pub fn trained_from(&self, nodes: &[Node]) -> Vec<usize> {
        let mut read: Vec<PathBuf> = Vec::new();
        let found = self.planned.places.visit(&mut self.planned.config.clone(), &mut |_, place, text| {
            if !place.starts_with("anchors.") {
                read.push(text.into());
            }
            Ok(None)
        });
        found.expect("this visit cannot fail");
        let is_read = |need: &usize| read.iter().any(|path| path.starts_with(&nodes[*need].dir));
        self.needs.iter().copied().filter(is_read).collect()
    }
}

/// Finds identical stages of different cells.
struct Planner<'a> {
    out: &'a Path,
    nodes: Vec<Node>,
    known: HashMap<String, usize>,
    /// Digests of inputs from outside.
    read: HashMap<PathBuf, String>,
}

impl Planner<'_> {
    fn add(&mut self, recipe: &Recipe) -> anyhow::Result<Vec<(String, usize)>> {
        let mut stages: Vec<(String, usize)> = Vec::new();
        for step in &recipe.steps {
            let node = self.node(recipe, step, &stages).with_context(|| format!("stage {}", step.name))?;
            stages.push((step.name.clone(), node));
        }
        Ok(stages)
    }

    fn node(&mut self, recipe: &Recipe, step: &Step, stages: &[(String, usize)]) -> anyhow::Result<usize> {
        let (mut told, mut placed, mut needs) = (step.planned.config.clone(), step.planned.config.clone(), Vec::new());
        let places = &step.planned.places;
        places.visit(&mut told, &mut |_, _, text| match self.made(recipe, stages, text) {
            Some((node, rest)) => {
                if !needs.contains(&node) {
                    needs.push(node);
                }
                Ok(Some(format!("{}/{}", self.nodes[node].key, rest.display()).into()))
            }
            None => self.outside(Path::new(text)).map(|digest| Some(digest.into())),
        })?;
        places.visit(&mut placed, &mut |_, _, text| {
            let made = self.made(recipe, stages, text);
            Ok(made.map(|(node, rest)| place(&self.nodes[node].dir, &rest).to_string_lossy().into_owned().into()))
        })?;
        let key = key_of(step.kind, &told, places);
        if let Some(node) = self.known.get(&key) {
            return Ok(*node);
        }
        let dir = self.out.join("stages").join(format!("{}-{key}", step.kind.name));
        if let (Some(key), Value::Object(placed)) = (step.kind.product.key(), &mut placed) {
            let product = step.kind.product.path(&dir).to_string_lossy().into_owned();
            placed.insert(key.to_owned(), product.into());
        }
        let Value::Object(config) = placed else { bail!("the configuration is no mapping") };
        let origin = Origin::File { path: dir.clone(), prefix: String::new() };
        let planned = (step.kind.from_mapping)(&config, &origin, &mut |_, _, _| Ok(None))?;
        let node = Node { key: key.clone(), name: step.name.clone(), kind: step.kind, dir, planned, needs };
        self.nodes.push(node);
        self.known.insert(key, self.nodes.len() - 1);
        Ok(self.nodes.len() - 1)
    }

    /// The stage of the cell whose directory contains this path, and the path inside it.
    fn made(&self, recipe: &Recipe, stages: &[(String, usize)], text: &str) -> Option<(usize, PathBuf)> {
        let inside = Path::new(text).strip_prefix(&recipe.out).ok()?;
        let (name, node) = stages.iter().find(|(name, _)| inside.starts_with(name))?;
        Some((*node, inside.strip_prefix(name).ok()?.to_owned()))
    }

    fn outside(&mut self, path: &Path) -> anyhow::Result<String> {
        if let Some(known) = self.read.get(path) {
            return Ok(known.clone());
        }
        // An id of the hub that is not in the cache identifies itself.
        let digest = if path.exists() { Input::read(path)?.sha256 } else { format!("hub {}", path.display()) };
        self.read.insert(path.to_owned(), digest.clone());
        Ok(digest)
    }
}

/// `dir/rest`, without a trailing slash if `rest` is empty.
fn place(dir: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() { dir.to_owned() } else { dir.join(rest) }
}

/// The identity of a stage: its kind and the configuration values that differ from the defaults, with inputs replaced
/// by their digests. Its directory and values without effect do not count.
fn key_of(kind: &Kind, config: &Value, places: &Places) -> String {
    let defaults = (kind.defaults)();
    let mut told = Map::new();
    for (key, value) in config.as_object().into_iter().flatten() {
        if kind.product.key() == Some(key) || places.no_effect.contains(key) || defaults.get(key) == Some(value) {
            continue;
        }
        told.insert(key.clone(), with_effect(value, key, places));
    }
    let text = format!("{} {}", kind.name, Value::Object(told));
    Sha256::digest(text.as_bytes())[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn with_effect(value: &Value, place: &str, places: &Places) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(key, _)| !places.no_effect.contains(&below(place, key)));
            Value::Object(
                kept.map(|(key, value)| (key.clone(), with_effect(value, &below(place, key), places))).collect(),
            )
        }
        Value::Array(items) => {
            let items = items.iter().enumerate();
            items.map(|(i, item)| with_effect(item, &format!("{place}[{i}]"), places)).collect()
        }
        other => other.clone(),
    }
}

/// # Errors
/// If a factor has two values that make the same stages in every arm.
fn every_factor_matters(factors: &[Factor], cells: &[Cell]) -> anyhow::Result<()> {
    for (at, factor) in factors.iter().enumerate() {
        let others = |cell: &Cell| {
            let mut setting = cell.setting.clone();
            setting.remove(at);
            (cell.arm, setting)
        };
        let stages = |value: &Value| {
            let of_value = cells.iter().filter(|cell| cell.setting[at] == *value);
            let of_value = of_value.map(|cell| (others(cell), cell.stages.iter().map(|(_, node)| *node).collect()));
            of_value.collect::<Vec<(_, Vec<usize>)>>()
        };
        let made: Vec<_> = factor.values.iter().map(stages).collect();
        for (i, value) in factor.values.iter().enumerate().skip(1) {
            if let Some(same) = made[..i].iter().position(|earlier| *earlier == made[i]) {
                let keys: Vec<&str> = factor.set.iter().map(|(key, _)| key.as_str()).collect();
                let sets = if keys.is_empty() {
                    "it stands in an arm".to_owned()
                } else {
                    format!("it sets {}", keys.join(", "))
                };
                bail!(
                    "factors.{} changes nothing: with {} and with {value} every arm's stages are the same; {sets}, which no \
                     stage of a cell reads",
                    factor.name,
                    factor.values[same],
                );
            }
        }
    }
    Ok(())
}

impl Measured {
    fn of(file: &StudyFile, factors: &[Factor], cells: &[Cell], evaluate: &str) -> anyhow::Result<Measured> {
        let step = cells.first().and_then(|cell| cell.recipe.steps.iter().find(|step| step.name == evaluate));
        let config = &step.context("there is no cell")?.planned.config;
        let sets = config["datasets"].as_array().into_iter().flatten();
        let sets: Vec<String> = sets.filter_map(|set| set["name"].as_str().map(str::to_owned)).collect();
        let select = file.config.select.as_ref();
        let keys = select.map(|select| select.key.list()).unwrap_or_default();
        let is_setting = |factor: &Factor| factor.role == Role::Setting;
        let mut chosen = Vec::new();
        for key in &keys {
            let known = || factors.iter().filter(|factor| is_setting(factor)).map(|factor| factor.name.as_str());
            match factors.iter().position(|factor| factor.name == *key) {
                Some(at) if is_setting(&factors[at]) => chosen.push(at),
                Some(_) => bail!("select.key: {key:?} is a seed; results are averaged over seeds, none is chosen"),
                None => bail!("select.key: there is no factor {key:?}; {}", names::hint(key, known())),
            }
        }
        if keys.is_empty() {
            chosen = factors.iter().enumerate().filter(|(_, factor)| is_setting(factor)).map(|(at, _)| at).collect();
        }
        let gold = if config["gold"].is_null() { Measure::ProxyScore } else { Measure::GoldReward };
        let measure = select.and_then(|select| select.by).unwrap_or(gold);
        ensure!(
            measure == Measure::ProxyScore || gold == Measure::GoldReward,
            "select.by: the evaluation of the recipe has no gold reward; say by: proxy_score"
        );
        let validation = match select.and_then(|select| select.on.as_deref()).unwrap_or("validation") {
            _ if chosen.is_empty() => None,
            "test" => bail!("select.on: settings are never chosen on the test set; choose them on a set of their own"),
            on if sets.iter().any(|set| set == on) => Some(on.to_owned()),
            on => bail!(
                "select.on: the evaluation has no set {on:?} on which to choose {}; {}; add it to the datasets of the stage \
                 {evaluate}",
                chosen.iter().map(|&at| factors[at].name.as_str()).collect::<Vec<_>>().join(", "),
                names::hint(on, sets.iter().map(String::as_str))
            ),
        };
        ensure!(
            sets.iter().any(|set| Some(set) != validation.as_ref()),
            "the evaluation has no other set than {:?}, on which settings are chosen; add one to report on",
            validation.as_deref().unwrap_or_default()
        );
        let anchors: Vec<&str> = config["anchors"].as_object().into_iter().flatten().map(|(k, _)| k.as_str()).collect();
        let anchor = match file.config.anchor.as_str() {
            "" => {
                let before = cells[0].recipe.steps.iter().find(|step| step.name == format!("{evaluate}-before"));
                let baseline = before.and_then(|step| step.planned.config["baseline"].as_str());
                anchors.iter().find(|name| Some(**name) == baseline).or(anchors.first()).map(|name| (*name).to_owned())
            }
            name if anchors.contains(&name) => Some(name.to_owned()),
            name => bail!("anchor: the evaluation has no anchor {name:?}; {}", names::hint(name, anchors.into_iter())),
        };
        Ok(Measured { sets, validation, chosen, measure, anchor })
    }
}
