//! The interface between a stage and the rest of the program.
use std::{
    path::{Path, PathBuf},
    rc::Rc,
};

use anyhow::{bail, ensure};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{
    StageContext, Until,
    device::{self, Choice as DeviceChoice},
    keys::ComputeType,
    ranks,
    reads::Reads,
};
use crate::{
    config::{
        self, Origin,
        paths::{Places, Visit},
    },
    hub,
};

/// A stage: its configuration, and everything that the rest of the program needs to know about it. The command line,
/// recipes, `--check`, the schema, the skip logic and the report derive from this; [`super::table::STAGES`] has a line
/// for each.
pub trait Stage: Serialize + DeserializeOwned + JsonSchema + Default + 'static {
    /// The name in recipes and on the command line.
    const NAME: &'static str;
    /// One line of help.
    const ABOUT: &'static str;
    /// Flags of an example, appended to the command.
    const EXAMPLE: &'static str;
    /// The kind of output, and the key that sets its path.
    const PRODUCT: Product;
    /// What later stages can use the output for.
    const PRODUCES: Produces;
    /// Suggested next steps: a description, and a command or file in which `OUT` stands for the output path and other
    /// words in capitals are placeholders for the user.
    const NEXT: &'static [(&'static str, &'static str)];
    /// The words of its subcommand.
    const COMMAND: &'static [&'static str] = &[Self::NAME];
    /// How a report shows the results.
    const SHOWN: Shown = Shown::Facts;
    /// Which of several processes run the stage.
    const PROCESSES: Processes = Processes::All;

    /// Checks ranges and relations of the values.
    ///
    /// # Errors
    /// If a value is invalid.
    fn check(&self) -> anyhow::Result<()>;

    /// How the stage uses its inputs. The inputs themselves (read, and compared between runs) follow from the field
    /// types `ModelPath` and `DataPath`.
    fn reads(&self) -> Reads;

    /// Device and number type; `None` for a stage that runs no model.
    fn computes(&self) -> Option<(DeviceChoice, ComputeType)>;

    /// Whether [`Stage::run`] in a rehearsal ([`StageContext::rehearsal`]) ends quickly with the memory estimate,
    /// before anything is written. True for stages that run a model, unless they have work to do before they can plan.
    fn plans_memory(&self) -> bool {
        self.computes().is_some()
    }

    /// Checks that the inputs are compatible, as far as possible without weights and where [`Stage::plans_memory`] does
    /// not cover it.
    ///
    /// # Errors
    /// If they are not.
    fn check_inputs(&self) -> anyhow::Result<()> {
        Ok(())
    }

    /// Whether the stage only prints what it would do, so that nothing is written and nothing follows.
    fn is_dry_run(&self) -> bool {
        false
    }

    /// A short description of a model made by this stage, for an arm of a report.
    fn role(&self) -> String {
        Self::NAME.to_owned()
    }

    /// Runs the stage and returns its results.
    ///
    /// # Errors
    /// If it fails or was interrupted.
    fn run(&self, context: &StageContext) -> anyhow::Result<Value>;
}

/// Which of several processes run a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processes {
    /// All of them, together: [`StageContext::ranks`].
    All,
    /// The first, while the others wait for its results.
    First,
}

/// A type-erased description of a [`Stage`] type.
pub struct Kind {
    /// Name in recipes and on the command line.
    pub name: &'static str,
    /// One line of help.
    pub about: &'static str,
    /// Flags of an example.
    pub example: &'static str,
    /// The words of its subcommand.
    pub command: &'static [&'static str],
    /// The kind of output, and the key that sets its path.
    pub product: Product,
    /// What later stages can use the output for.
    pub leaves: Produces,
    /// Suggested next steps: a description, and a command or file in which `OUT` stands for the output path.
    pub next: &'static [(&'static str, &'static str)],
    /// How a report shows the results.
    pub shown: Shown,
    /// Which of several processes run the stage.
    pub processes: Processes,
    /// Every key with its default.
    pub defaults: fn() -> Map<String, Value>,
    /// JSON schema of its keys.
    pub schema: fn() -> Value,
    /// Plans a stage from the keys of a recipe.
    pub from_mapping: FromMapping,
    /// The inputs among the values of a saved configuration; `None` if it is not a configuration of this kind.
    pub places: fn(&Value) -> Option<Places>,
    /// Short description of an arm with this configuration; empty if it is not one of this kind.
    pub role: fn(&Value) -> String,
    /// Plans a stage from a file and flags.
    pub load: Load,
}

/// How a report shows the results of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// A few numbers in its pipeline box.
    Facts,
    /// In addition, the curves of its metrics.
    Trajectory,
    /// In addition, a plot of its `landscape.json`.
    Landscape,
    /// Its arms in the pipeline box; the report shows its `evaluation.json`.
    Evaluation,
    /// In addition, a section with its scores and their rules.
    Judgments,
}

/// The kind of output of a stage, which determines the key that sets its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// A directory: `output_dir`.
    Directory,
    /// One file: `output`; in recipes, a file of this name in the stage's directory.
    File(&'static str),
    /// No output besides its results.
    Results,
}

/// What later stages can use the output of a stage for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Produces {
    /// A language model, with the metrics of its training.
    LanguageModel,
    /// A reward model, with the metrics of its training.
    RewardModel,
    /// A model of the same kind as its input models.
    SameModel,
    /// Data.
    Data,
    /// Numbers, plots and answers.
    Results,
}

impl Produces {
    /// A noun phrase for messages.
    pub fn in_words(self) -> &'static str {
        match self {
            Produces::LanguageModel => "a language model",
            Produces::RewardModel => "a reward model",
            Produces::SameModel => "a model",
            Produces::Data => "data",
            Produces::Results => "results",
        }
    }
}

/// Plans a stage from a configuration file and `--key value` flags.
pub(crate) type Load = fn(Option<&Path>, &[(String, String)]) -> anyhow::Result<Planned>;

/// Plans a stage from the keys of a recipe; the visitor may replace each input before the values are checked.
pub(crate) type FromMapping = fn(&Map<String, Value>, &Origin, &mut Visit<'_>) -> anyhow::Result<Planned>;

/// Runs a stage.
pub(crate) type Work = Box<dyn Fn(&StageContext) -> anyhow::Result<Value>>;

/// A stage that is ready to run.
pub struct Planned {
    /// All values.
    pub config: Value,
    /// The places of its inputs in `config`.
    pub places: Places,
    /// Paths of its inputs.
    pub inputs: Vec<PathBuf>,
    /// How they are used.
    pub reads: Reads,
    /// Whether a rehearsal ends with the memory estimate.
    pub plans_memory: bool,
    /// Whether the stage only prints what it would do.
    pub is_dry_run: bool,
    /// Checks that the inputs are compatible.
    pub check_inputs: Box<dyn Fn() -> anyhow::Result<()>>,
    /// Runs the stage.
    pub work: Work,
}

impl Kind {
    /// The kind whose configuration is `C`.
    pub const fn of<C: Stage>() -> Kind {
        Kind {
            name: C::NAME,
            about: C::ABOUT,
            example: C::EXAMPLE,
            command: C::COMMAND,
            product: C::PRODUCT,
            leaves: C::PRODUCES,
            next: C::NEXT,
            shown: C::SHOWN,
            processes: C::PROCESSES,
            defaults: defaults::<C>,
            schema: config::schema::of::<C>,
            from_mapping: from_mapping::<C>,
            places: places::<C>,
            role: role::<C>,
            load: load::<C>,
        }
    }

    /// The example for its help page: a whole command line.
    pub fn example(&self) -> String {
        format!("salsa {} {}", self.command.join(" "), self.example)
    }
}

impl Product {
    /// The key that sets the output path.
    pub fn key(self) -> Option<&'static str> {
        match self {
            Product::Directory => Some("output_dir"),
            Product::File(_) => Some("output"),
            Product::Results => None,
        }
    }

    /// The output path of a stage with this directory.
    pub fn path(self, dir: &Path) -> PathBuf {
        match self {
            Product::Directory | Product::Results => dir.to_owned(),
            Product::File(name) => dir.join(name),
        }
    }
}

fn defaults<C: Stage>() -> Map<String, Value> {
    match serde_json::to_value(C::default()) {
        Ok(Value::Object(keys)) => keys,
        other => panic!("a configuration must serialise to a mapping, got {other:?}"),
    }
}

fn from_mapping<C: Stage>(
    given: &Map<String, Value>,
    origin: &Origin,
    visit: &mut Visit<'_>,
) -> anyhow::Result<Planned> {
    let stage = config::from_mapping::<C>(given, origin)?;
    let mut config = serde_json::to_value(&stage)?;
    Places::of(&stage)?.visit(&mut config, visit)?;
    plan::<C>(serde_json::from_value(config)?).map_err(|error| origin.within(error))
}

fn places<C: Stage>(config: &Value) -> Option<Places> {
    Places::of(&C::deserialize(config).ok()?).ok()
}

fn role<C: Stage>(config: &Value) -> String {
    C::deserialize(config).map(|stage| stage.role()).unwrap_or_default()
}

fn load<C: Stage>(file: Option<&Path>, overrides: &[(String, String)]) -> anyhow::Result<Planned> {
    plan(hub::localise(config::load::<C>(file, overrides)?)?)
}

/// Refuses an output file that is an input: it would be replaced by what is made from it.
fn refuse_own_input(output: &Path, inputs: &[PathBuf]) -> anyhow::Result<()> {
    let Ok(written) = output.canonicalize() else { return Ok(()) };
    if written.is_file() && inputs.iter().any(|input| input.canonicalize().is_ok_and(|input| input == written)) {
        bail!("the output {} is also read; write to another file", output.display());
    }
    Ok(())
}

fn plan<C: Stage>(stage: C) -> anyhow::Result<Planned> {
    stage.check()?;
    let (config, places) = (serde_json::to_value(&stage)?, Places::of(&stage)?);
    let (reads, plans_memory) = (stage.reads(), stage.plans_memory());
    let is_dry_run = stage.is_dry_run();
    let inputs = places.paths(&config);
    if let (Product::File(_), Some(output)) = (C::PRODUCT, C::PRODUCT.key().and_then(|key| config[key].as_str())) {
        refuse_own_input(Path::new(output), &inputs)?;
    }
    let stage = Rc::new(stage);
    let checked = stage.clone();
    let check_inputs = Box::new(move || checked.check_inputs());
    let work: Work = Box::new(move |context| {
        device::caught(|| {
            let computes = stage.computes();
            let (device, dtype) = computes.unwrap_or((DeviceChoice::Cpu, ComputeType::Float32));
            let opened = device.open(dtype)?;
            let processes = context.ranks.size();
            ensure!(
                processes == 1 || C::PROCESSES == Processes::First || opened.device.cuda().is_none(),
                "{processes} processes run a stage together on the CPU alone; say device: cpu, or {}=cpu",
                device::VARIABLE
            );
            if computes.is_some() {
                context.say(&opened.line);
            }
            let context = context.on(opened.device);
            match C::PROCESSES {
                // A rehearsal writes nothing, and ends with an error that each process needs.
                Processes::First if context.until == Until::Done => {
                    ranks::from_first(&*context.ranks, || stage.run(&context.alone()))
                }
                _ => stage.run(&context),
            }
        })
    });
    Ok(Planned { inputs, config, places, reads, plans_memory, is_dry_run, check_inputs, work })
}
