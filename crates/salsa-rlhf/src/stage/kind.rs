//! What a stage is to the rest of the program.
use std::{
    path::{Path, PathBuf},
    rc::Rc,
};

use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{
    StageContext,
    device::{self, Choice as DeviceChoice},
    keys::ComputeType,
    reads::Reads,
};
use crate::{
    config::{
        self, Origin,
        paths::{Places, Visit},
    },
    hub,
};

/// A stage: its configuration, and all that the rest of the program knows of it. The command line, recipes, `--check`,
/// the schema, the skip logic and the report are made from this; [`super::table::STAGES`] has a line for each.
pub trait Stage: Serialize + DeserializeOwned + JsonSchema + Default + 'static {
    /// The name in recipes and on the command line.
    const NAME: &'static str;
    /// One line of help.
    const ABOUT: &'static str;
    /// The flags of an example, which follow the command.
    const EXAMPLE: &'static str;
    /// What it leaves.
    const PRODUCT: Product;
    /// What others find there.
    const LEAVES: Leaves;
    /// What can be done with it: a few words, and a command or file in which `OUT` is its path and other words in capitals
    /// are the user's.
    const NEXT: &'static [(&'static str, &'static str)];
    /// The words of its command.
    const COMMAND: &'static [&'static str] = &[Self::NAME];
    /// How a report shows its results.
    const SHOWN: Shown = Shown::Facts;

    /// Checks ranges and relations of the values.
    ///
    /// # Errors
    /// If a value makes no sense.
    fn check(&self) -> anyhow::Result<()>;

    /// What it makes of what it reads. That these are read, and count when runs are compared, follows from the types
    /// [`crate::config::paths::ModelPath`] and [`crate::config::paths::DataPath`] of its fields.
    fn reads(&self) -> Reads;

    /// Where it computes, and in which number type; none for a stage that runs no model.
    fn computes(&self) -> Option<(DeviceChoice, ComputeType)>;

    /// Whether [`Stage::run`] in a rehearsal ([`StageContext::rehearsal`]) ends with the memory that it needs, soon and
    /// before anything is written. A stage that runs a model does, unless it has work to do before it can plan.
    fn plans_memory(&self) -> bool {
        self.computes().is_some()
    }

    /// Checks whether what it reads fits together, as far as that needs no weights and [`Stage::plans_memory`] does not
    /// show it.
    ///
    /// # Errors
    /// If it does not.
    fn check_inputs(&self) -> anyhow::Result<()> {
        Ok(())
    }

    /// Whether it only says what it would do, so that nothing is written and nothing is done afterwards.
    fn only_looks(&self) -> bool {
        false
    }

    /// What an arm of a report is that this stage made, in a few words.
    fn role(&self) -> String {
        Self::NAME.to_owned()
    }

    /// Does the work and returns the results.
    ///
    /// # Errors
    /// If it cannot be done, or was interrupted.
    fn run(&self, context: &StageContext) -> anyhow::Result<Value>;
}

/// A kind of stage.
pub struct Kind {
    /// Its name in recipes and on the command line.
    pub name: &'static str,
    /// One line of help.
    pub about: &'static str,
    /// The flags of an example.
    pub example: &'static str,
    /// The words of its command.
    pub command: &'static [&'static str],
    /// What it leaves.
    pub product: Product,
    /// What others find there.
    pub leaves: Leaves,
    /// What can be done with it: a few words and a command or file, in which `OUT` is its path.
    pub next: &'static [(&'static str, &'static str)],
    /// How a report shows its results.
    pub shown: Shown,
    /// Every key with its default.
    pub defaults: fn() -> Map<String, Value>,
    /// What its keys mean, as a JSON schema.
    pub schema: fn() -> Value,
    /// A stage from a recipe.
    pub from_mapping: FromMapping,
    /// The inputs among the values of a configuration that was written down; none where it is not one of this kind.
    pub places: fn(&Value) -> Option<Places>,
    /// What an arm of this configuration is, in a few words; nothing where it is not one of this kind.
    pub role: fn(&Value) -> String,
    /// A stage from a file and flags.
    pub load: Load,
}

/// How a report shows the results of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// A few numbers in its box of the pipeline.
    Facts,
    /// Besides, the curves of its metrics.
    Trajectory,
    /// Besides, the picture of its `landscape.json`.
    Landscape,
    /// Its arms in the box; the report is about its `evaluation.json`.
    Evaluation,
    /// Besides, a section with its scores and their rules.
    Judgments,
}

/// What a stage leaves, and so which key names its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// A directory: `output_dir`.
    Directory,
    /// One file: `output`, in recipes under this name in the stage's directory.
    File(&'static str),
    /// Nothing but its results.
    Results,
}

/// What other stages find in what a stage leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// A language model, with the metrics of its training.
    LanguageModel,
    /// A reward model, with the metrics of its training.
    RewardModel,
    /// A model of the kind of those that it reads.
    SameModel,
    /// Data.
    Data,
    /// Numbers, pictures and answers.
    Results,
}

impl Leaves {
    /// What it is.
    pub fn in_words(self) -> &'static str {
        match self {
            Leaves::LanguageModel => "a language model",
            Leaves::RewardModel => "a reward model",
            Leaves::SameModel => "a model",
            Leaves::Data => "data",
            Leaves::Results => "results",
        }
    }
}

/// Makes a stage from a configuration file and `--key value` flags.
pub(crate) type Load = fn(Option<&Path>, &[(String, String)]) -> anyhow::Result<Planned>;

/// Makes a stage from the keys of a recipe; another value may be put in the place of each input before it is checked.
pub(crate) type FromMapping = fn(&Map<String, Value>, &Origin, &mut Visit<'_>) -> anyhow::Result<Planned>;

/// The work of a stage.
pub(crate) type Work = Box<dyn Fn(&StageContext) -> anyhow::Result<Value>>;

/// A stage that is ready to run.
pub struct Planned {
    /// Every value.
    pub config: Value,
    /// Which of them are inputs.
    pub places: Places,
    /// What it reads.
    pub inputs: Vec<PathBuf>,
    /// What it makes of that.
    pub reads: Reads,
    /// Whether the work in a rehearsal ends with the memory that it needs.
    pub plans_memory: bool,
    /// Whether it only says what it would do.
    pub only_looks: bool,
    /// Checks whether what it reads fits together.
    pub check_inputs: Box<dyn Fn() -> anyhow::Result<()>>,
    /// The work itself.
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
            leaves: C::LEAVES,
            next: C::NEXT,
            shown: C::SHOWN,
            defaults: defaults::<C>,
            schema: config::schema::of::<C>,
            from_mapping: from_mapping::<C>,
            places: places::<C>,
            role: role::<C>,
            load: load::<C>,
        }
    }

    /// The example of its help: a whole command line.
    pub fn example(&self) -> String {
        format!("salsa {} {}", self.command.join(" "), self.example)
    }
}

impl Product {
    /// The key that says where the product goes.
    pub fn key(self) -> Option<&'static str> {
        match self {
            Product::Directory => Some("output_dir"),
            Product::File(_) => Some("output"),
            Product::Results => None,
        }
    }

    /// Where the product of a stage with this directory goes.
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

fn plan<C: Stage>(stage: C) -> anyhow::Result<Planned> {
    stage.check()?;
    let (config, places) = (serde_json::to_value(&stage)?, Places::of(&stage)?);
    let (reads, plans_memory) = (stage.reads(), stage.plans_memory());
    let only_looks = stage.only_looks();
    let stage = Rc::new(stage);
    let checked = stage.clone();
    let check_inputs = Box::new(move || checked.check_inputs());
    let work: Work = Box::new(move |context| {
        device::caught(|| {
            let computes = stage.computes();
            let (device, dtype) = computes.unwrap_or((DeviceChoice::Cpu, ComputeType::Float32));
            let opened = device.open(dtype)?;
            if computes.is_some() {
                context.say(&opened.line);
            }
            stage.run(&context.on(opened.device))
        })
    });
    Ok(Planned { inputs: places.paths(&config), config, places, reads, plans_memory, only_looks, check_inputs, work })
}
