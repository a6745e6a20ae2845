//! The table of stages, with a stage defined only for these tests.
mod no_effect;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::ensure;
use salsa_engine::Head;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::*;
use crate::{
    config::paths::ModelPath,
    recipe::{self, Changes, Recipe},
    stage::{
        StageContext,
        device::Choice as DeviceChoice,
        fixture::{self, quiet},
        keys::ComputeType,
        kind::{Produces, Product, Stage},
        lifecycle::record::Record,
        memory::MemorySettings,
        models::frozen::Found,
        reads::{ExampleUse, Reads},
        text::{chat_arguments::ChatArguments, source::DataSource},
    },
};

/// A stage that counts parameters and examples: the whole definition of a stage, apart from its line in the table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct Census {
    /// The model that is counted.
    #[schemars(extend("x-heading" = "Models and data"))]
    pub model: ModelPath,
    /// The examples that are counted.
    pub dataset: DataSource,
    /// Added to the count of examples.
    pub more: u64,
    /// Where the result goes.
    pub output_dir: PathBuf,
}

impl Stage for Census {
    const NAME: &'static str = "census";
    const ABOUT: &'static str = "Count the parameters of a model.";
    const EXAMPLE: &'static str = "--model sft-a --dataset chat.jsonl --output_dir counts";
    const PRODUCT: Product = Product::Directory;
    const PRODUCES: Produces = Produces::Results;
    const NEXT: &'static [(&'static str, &'static str)] = &[];

    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.more < 100, "more is {}; it must be below 100", self.more);
        Ok(())
    }

    fn reads(&self) -> Reads {
        Reads::with_reader(Some(&self.model), &ChatArguments::default()).examples(
            "dataset",
            &self.dataset,
            ExampleUse::Demonstration,
        )
    }

    fn computes(&self) -> Option<(DeviceChoice, ComputeType)> {
        None
    }

    fn plans_memory(&self) -> bool {
        true
    }

    fn run(&self, context: &StageContext) -> anyhow::Result<Value> {
        let found = Found::open(&self.model, Head::LanguageModel)?;
        found.check_memory("census", &MemorySettings::on(&context.device), &[], &|_, _, _| {}, context)?;
        let examples = self.dataset.load()?.examples.len() as u64 + self.more;
        fs::write(self.output_dir.join("counts.txt"), examples.to_string())?;
        Ok(json!({"parameters": found.spec().parameters(), "examples": examples}))
    }
}

/// Checks everything the program shows of a stage that is defined only in this file.
#[test]
fn a_stage_is_one_declaration() {
    let kind = find("census").unwrap();
    let help = crate::cli::help_of("census");
    for said in ["Count the parameters", "salsa census --model sft-a", "--more", "Added to the count of examples."] {
        assert!(help.contains(said), "{said}: {help}");
    }
    let schema = (kind.schema)();
    assert!(schema["properties"]["more"].is_object() && schema["properties"]["model"].is_object(), "{schema}");

    let dir = tempfile::tempdir().unwrap();
    let (base, data, out) = (fixture::base(dir.path()), dir.path().join("data.jsonl"), dir.path().join("run"));
    fixture::write_lines(&data, &[json!({"prompt": "a", "completion": "b"})]);
    let recipe = dir.path().join("recipe.yaml");
    let base = base.display();
    let text = format!("stages:\n  counts: {{kind: census, model: {base}, dataset: data.jsonl, more: 1}}\n");
    fs::write(&recipe, &text).unwrap();
    let read = || Recipe::read(&recipe, Changes { out: Some(&out), ..Changes::default() }, STAGES).unwrap();
    let checked = read().check(&read().all());
    assert!(checked.faults.is_empty(), "{:?}", checked.faults);
    let block = &checked.stages[0];
    for said in ["counts (census)\n  model ", "parameters", "1 examples", "memory "] {
        assert!(block.contains(said), "{said}: {block}");
    }
    let results = || {
        read().run(&quiet()).unwrap();
        Record::read(&out.join("counts/stage.json")).unwrap().unwrap().results
    };
    assert_eq!(results()["examples"], 2);
    assert_eq!(results()["examples"], 2, "it is skipped");
    let page = fs::read_to_string(recipe::report::write(&out).unwrap()).unwrap();
    assert!(page.contains("counts"), "{page}");
    fixture::write_lines(&data, &[json!({"prompt": "a", "completion": "c"})]);
    let error = format!("{:#}", read().run(&quiet()).unwrap_err());
    assert!(error.contains("data.jsonl"), "a changed input is noticed: {error}");
    fs::write(&recipe, text.replace("more: 1", "more: 100")).unwrap();
    let error = Recipe::read(&recipe, Changes::default(), STAGES).map(drop).unwrap_err();
    assert!(format!("{error:#}").contains("more is 100; it must be below 100"), "{error:#}");
}

/// Collects the fields with a bare path, among the types that are part of a configuration, in the sources under `dir`.
fn bare_paths(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            bare_paths(&path, found);
        } else {
            found.extend(bare_paths_of(&fs::read_to_string(&path).unwrap()));
        }
    }
}

fn bare_paths_of(source: &str) -> Vec<String> {
    let has_schema = |item: &&str| item.lines().next().is_some_and(|derived| derived.contains("JsonSchema"));
    let of_types = source.split("\n#[derive(").skip(1).filter(has_schema);
    let lines = of_types.flat_map(|item| item.split("\n}").next().unwrap_or_default().lines().skip(1));
    lines.filter(|line| line.contains("PathBuf")).map(|line| line.trim().to_owned()).collect()
}

#[test]
fn no_input_of_a_configuration_is_a_bare_path() {
    let mut found = Vec::new();
    bare_paths(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/stage"), &mut found);
    let places = ["pub output_dir: PathBuf,", "pub output: PathBuf,"];
    found.retain(|line| !places.contains(&line.as_str()));
    assert!(found.is_empty(), "use ModelPath or DataPath, so that a change of it is noticed: {found:?}");
    let judge = "\n#[derive(Clone, JsonSchema)]\nstruct C {\n    pub judge: Option<PathBuf>,\n}\nfn f(_: PathBuf) {}";
    assert_eq!(bare_paths_of(judge), ["pub judge: Option<PathBuf>,"]);
}

#[test]
fn every_kind_has_a_key_for_its_product_and_keeps_its_defaults() {
    for kind in STAGES {
        let defaults = (kind.defaults)();
        if let Some(key) = kind.product.key() {
            assert_eq!(defaults.get(key), Some(&Value::String(String::new())), "{}", kind.name);
        }
        if let Some(planned) = (kind.load)(None, &[]).ok().map(|planned| planned.config) {
            assert_eq!(planned, Value::Object(defaults), "{}", kind.name);
        }
    }
}

/// Recipes written for older versions stay readable: no key or alias of a stage is ever removed.
#[test]
fn every_key_that_was_accepted_once_is_accepted_still() {
    let (mut kind, mut keys) = (None, 0);
    for line in include_str!("keys.txt").lines().filter(|line| !line.starts_with('#')) {
        match line.strip_suffix(':') {
            Some(name) => kind = Some((name, (find(name).unwrap().schema)())),
            None => {
                let (name, schema) = kind.as_ref().unwrap();
                for key in line.split_whitespace() {
                    assert!(schema["properties"][key].is_object(), "{name} no longer accepts {key}");
                    keys += 1;
                }
            }
        }
    }
    assert!(keys > 400, "only {keys} keys were looked at");
}
