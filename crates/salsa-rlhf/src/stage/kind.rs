//! The kinds of stages, for the command line and for recipes. A new stage is one line in the table [`super::kinds::KINDS`].
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{
    StageContext,
    device::{self, Choice as DeviceChoice},
    keys::ComputeType,
};
use crate::{
    config::{
        self, Origin,
        paths::{Places, Visit},
    },
    hub,
};

/// A stage's configuration, which knows how to check and run itself.
pub trait Stage: Serialize + DeserializeOwned + JsonSchema + Default + 'static {
    /// Checks ranges and relations of the values.
    ///
    /// # Errors
    /// If a value makes no sense.
    fn check(&self) -> anyhow::Result<()>;

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
    /// What it leaves.
    pub product: Product,
    /// Every key with its default.
    pub defaults: fn() -> Map<String, Value>,
    /// What its keys mean, as a JSON schema.
    pub schema: fn() -> Value,
    /// A stage from a recipe.
    pub from_mapping: FromMapping,
    /// The inputs among the values of a configuration that was written down; none where it is not one of this kind.
    pub places: fn(&Value) -> Option<Places>,
    /// A stage from a file and flags.
    pub load: Load,
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

/// Makes a stage from a configuration file and `--key value` flags.
pub type Load = fn(Option<&Path>, &[(String, String)]) -> anyhow::Result<Planned>;

/// Makes a stage from the keys of a recipe; another value may be put in the place of each input before it is checked.
pub type FromMapping = fn(&Map<String, Value>, &Origin, &mut Visit<'_>) -> anyhow::Result<Planned>;

/// The work of a stage.
pub type Work = Box<dyn Fn(&StageContext) -> anyhow::Result<Value>>;

/// A stage that is ready to run.
pub struct Planned {
    /// Every value.
    pub config: Value,
    /// Which of them are inputs.
    pub places: Places,
    /// What it reads.
    pub inputs: Vec<PathBuf>,
    /// The work itself.
    pub work: Work,
}

impl Kind {
    /// The kind whose configuration is `C`.
    pub const fn new<C: Stage>(name: &'static str, product: Product) -> Kind {
        Kind {
            name,
            product,
            defaults: defaults::<C>,
            schema: config::schema::of::<C>,
            from_mapping: from_mapping::<C>,
            places: places::<C>,
            load: load::<C>,
        }
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

fn load<C: Stage>(file: Option<&Path>, overrides: &[(String, String)]) -> anyhow::Result<Planned> {
    plan(hub::localise(config::load::<C>(file, overrides)?)?)
}

fn plan<C: Stage>(stage: C) -> anyhow::Result<Planned> {
    stage.check()?;
    let (config, places) = (serde_json::to_value(&stage)?, Places::of(&stage)?);
    // A stage with a key `dtype` of this type computes in it (that of a soup is the type of what it writes); others in
    // 32-bit.
    let computes = defaults::<C>().get("dtype").is_some_and(|dtype| ComputeType::deserialize(dtype).is_ok());
    let given = config.get("dtype").filter(|_| computes);
    let dtype = given.map_or(Ok(ComputeType::Float32), ComputeType::deserialize)?;
    let given = config.get("device").filter(|_| computes);
    let device = given.map_or(Ok(DeviceChoice::Cpu), DeviceChoice::deserialize)?;
    let work: Work = Box::new(move |context| {
        device::caught(|| {
            let opened = device.open(dtype)?;
            if computes {
                context.say(&opened.line);
            }
            opened.device.scope(|| stage.run(context))
        })
    });
    Ok(Planned { inputs: places.paths(&config), config, places, work })
}
