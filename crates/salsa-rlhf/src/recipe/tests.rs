mod iterating;

use std::fs;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::*;
use crate::{
    config::paths::{DataPath, ModelPath},
    stage::{
        Outcome, StageContext,
        device::Choice as DeviceChoice,
        keys::ComputeType,
        kind::{Produces, Stage},
        reads::Reads,
    },
};

/// A stage that writes its configuration to a file.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct Note {
    model: ModelPath,
    models: Vec<ModelPath>,
    dataset: DataPath,
    note: String,
    times: u64,
    seed: u64,
    output_dir: PathBuf,
}

impl Default for Note {
    fn default() -> Note {
        let (model, models, dataset, note) = Default::default();
        Note { model, models, dataset, note, times: 1, seed: 42, output_dir: PathBuf::new() }
    }
}

impl Stage for Note {
    const NAME: &'static str = "note";
    const ABOUT: &'static str = "For tests.";
    const EXAMPLE: &'static str = "";
    const PRODUCT: Product = Product::Directory;
    const PRODUCES: Produces = Produces::LanguageModel;
    const NEXT: &'static [(&'static str, &'static str)] = &[];

    fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.times > 0, "times is 0; it must be at least 1");
        Ok(())
    }

    fn reads(&self) -> Reads {
        Reads::default()
    }

    fn computes(&self) -> Option<(DeviceChoice, ComputeType)> {
        None
    }

    fn plans_memory(&self) -> bool {
        false
    }

    fn run(&self, _: &StageContext) -> anyhow::Result<Value> {
        anyhow::ensure!(self.note != "fail", "asked to fail");
        fs::create_dir(self.output_dir.join("sub"))?;
        fs::write(self.output_dir.join("sub/note.txt"), &self.note)?;
        Ok(json!({"length": self.note.len()}))
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct Copy {
    input: DataPath,
    output: PathBuf,
}

impl Stage for Copy {
    const NAME: &'static str = "copy";
    const ABOUT: &'static str = "For tests.";
    const EXAMPLE: &'static str = "";
    const PRODUCT: Product = Product::File("copy.txt");
    const PRODUCES: Produces = Produces::Data;
    const NEXT: &'static [(&'static str, &'static str)] = &[];

    fn check(&self) -> anyhow::Result<()> {
        Ok(())
    }

    fn reads(&self) -> Reads {
        Reads::default()
    }

    fn computes(&self) -> Option<(DeviceChoice, ComputeType)> {
        None
    }

    fn plans_memory(&self) -> bool {
        false
    }

    fn run(&self, _: &StageContext) -> anyhow::Result<Value> {
        Ok(json!({"bytes": fs::copy(&self.input, &self.output)?}))
    }
}

const STAGES: &[Kind] = &[Kind::of::<Note>(), Kind::of::<Copy>()];

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        fs::create_dir(place.0.path().join("recipes")).unwrap();
        fs::write(place.0.path().join("data.txt"), "some data").unwrap();
        place
    }

    fn read(&self, stages: &str, set: &[(&str, &str)]) -> anyhow::Result<Recipe> {
        let text = format!("name: toy\nout: ../out\nseed: 7\nvars: {{data: ../data.txt, n: 3}}\nstages:\n{stages}");
        self.read_text(&text, set)
    }

    fn read_text(&self, text: &str, set: &[(&str, &str)]) -> anyhow::Result<Recipe> {
        let path = self.0.path().join("recipes/toy.yaml");
        fs::write(&path, text).unwrap();
        let set: Vec<_> = set.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Recipe::read(&path, Changes { set: &set, ..Changes::default() }, STAGES)
    }

    /// Runs the selected stages, with these changes.
    fn run(&self, selection: &Selection, set: &[(&str, &str)]) -> anyhow::Result<Vec<Outcome>> {
        let recipe = self.read(TWO, set)?;
        recipe.run_selected(&recipe.select(selection)?, &StageContext::quiet())
    }

    /// The sorted names in a folder of the run; none if the folder does not exist.
    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).into_iter().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn error(&self, stages: &str) -> String {
        let error = self.read(stages, &[]).err().expect("the recipe is wrong");
        self.short(&error)
    }

    fn short(&self, error: &anyhow::Error) -> String {
        let message = format!("{error:#}").replace(&self.0.path().display().to_string(), "DIR");
        message.strip_prefix("DIR/recipes/toy.yaml: ").unwrap_or(&message).to_owned()
    }

    fn path(&self, path: &str) -> String {
        self.0.path().join(path).display().to_string()
    }
}

const TWO: &str = "
  first:  {kind: note, note: hello, dataset: \"${vars.data}\", times: \"${vars.n}\"}
  second: {kind: note, model: first, models: [first, \"${stages.first}/sub\"], note: \"${name}-${seed}\", seed: 9}
  third:  {kind: copy, input: ../data.txt}
  fourth: {kind: note, dataset: third}
";

#[test]
fn names_variables_and_paths_are_resolved() {
    let place = Place::new();
    let recipe = place.read(TWO, &[]).unwrap();
    let config = |i: usize| &recipe.steps[i].planned.config;
    assert_eq!(recipe.out, Path::new(&place.path("out")));
    assert_eq!(config(0)["dataset"], place.path("data.txt"));
    assert_eq!(config(0)["times"], 3);
    assert_eq!(config(0)["seed"], 7);
    assert_eq!(config(0)["output_dir"], place.path("out/first"));
    assert_eq!(config(1)["model"], place.path("out/first"));
    assert_eq!(config(1)["models"], json!([place.path("out/first"), place.path("out/first/sub")]));
    assert_eq!(config(1)["note"], "toy-7");
    assert_eq!(config(1)["seed"], 9);
    assert_eq!(config(3)["dataset"], place.path("out/third/copy.txt"));
}

#[test]
fn set_changes_values_and_does_not_make_up_stages() {
    let place = Place::new();
    let recipe = place.read(TWO, &[("stages.first.times", "5"), ("vars.n", "8"), ("seed", "1")]).unwrap();
    assert_eq!(recipe.steps[0].planned.config["times"], 5);
    assert_eq!(recipe.steps[0].planned.config["seed"], 1);
    let wrong = |path| {
        let error = place.read(TWO, &[(path, "1")]).err().expect("wrong");
        assert!(error.downcast_ref::<Usage>().is_some(), "{error:#}");
        place.short(&error)
    };
    assert_eq!(
        wrong("stages.frist.times"),
        "--set stages.frist.times: there is no \"frist\" in stages; did you mean \"first\"?"
    );
    assert_eq!(wrong("var.n"), "--set var.n: a recipe has no key \"var\"; did you mean \"vars\"?");
    assert!(wrong("vars.m").contains("there is no \"m\" in vars"));
}

#[test]
fn mistakes_are_told_before_any_work() {
    let place = Place::new();
    let first = "  a: {kind: note, note: hi}\n";
    for (stages, expected) in [
        ("  b: {kind: nota}", "stages.b: kind: there is no stage \"nota\"; did you mean \"note\"?"),
        ("  b: {note: x}", "stages.b: the key \"kind\" is missing; valid: note, copy"),
        ("  b: {kind: note, nte: x}", "stages.b.nte: unknown key; did you mean \"note\"?"),
        ("  b: {kind: note, times: many}", "stages.b.times: expected a whole number, 0 or more, got string \"many\""),
        ("  b: {kind: note, times: 0}", "stages.b: times is 0; it must be at least 1"),
        (
            "  b: {kind: note, model: c}\n  c: {kind: note}",
            "stages.b: model: refers to the stage \"c\", which comes later; move that one up",
        ),
        ("  b: {kind: note, models: [a, b]}", "stages.b: models[1]: the stage \"b\" refers to itself"),
        ("  b: {kind: note, note: \"${stages.x}\"}", "stages.b: note: there is no stage \"x\"; valid: a"),
        (
            "  b: {kind: note, note: \"${vars.dta}\"}",
            "stages.b: note: there is no variable \"dta\"; did you mean \"data\"?",
        ),
        (
            "  b: {kind: note, note: \"${home}\"}",
            "stages.b: note: ${home} is unknown; there are vars.NAME, stages.NAME, out, name, seed",
        ),
        ("  b: {kind: note, note: \"${vars.data\"}", "stages.b: note: \"${vars.data\" opens ${ and never closes it"),
        (
            "  b: {kind: note, dataset: no.txt}",
            "stages.b: dataset: there is no file DIR/recipes/no.txt; check the path; relative paths start at the recipe's directory",
        ),
        (
            "  b: {kind: note, output_dir: x}",
            "stages.b: output_dir cannot be set; the stage's place is its name under `out`",
        ),
        ("  b: 3", "stages.b: expected `kind: …` and the stage's keys, got 3"),
        (
            "  b/c: {kind: note}",
            "stages: the name \"b/c\" holds other characters than letters, digits, -, _ and .; it becomes a part of a file \
             name, so choose another",
        ),
        (
            "  report.html: {kind: note}",
            "stages: \"report.html\" is a file that the run itself writes; choose another name",
        ),
        (
            "  Recipe.yaml.tmp: {kind: note}",
            "stages: \"Recipe.yaml.tmp\" is a file that the run itself writes; choose another name",
        ),
    ] {
        assert_eq!(place.error(&format!("{first}{stages}")), expected);
    }
    let message = place.error("  sft-a: {kind: note}\n  b: {kind: note, model: sft_a}");
    assert!(message.ends_with("did you mean the stage \"sft-a\"?"), "{message}");
    assert!(!place.0.path().join("out").exists());
}

#[test]
fn a_recipe_is_a_mapping_with_known_keys() {
    let place = Place::new();
    let error = |text| place.short(&place.read_text(text, &[]).err().expect("wrong"));
    assert_eq!(error("stage:\n  a: {kind: note}"), "stage: unknown key; did you mean \"stages\"?");
    assert!(error("name: x").starts_with("stages: expected at least one stage"));
    assert!(error("just text").starts_with("expected `name:` and `stages:`"));
    assert!(error("stages:\n  a: {kind: note}\n  a: {kind: note}").contains("duplicate"));
    assert_eq!(error("seed: x\nstages:\n  a: {kind: note}"), "seed: expected a whole number, 0 or more, got \"x\"");
    let recipe = place.read_text("stages:\n  a: {kind: note, note: \"$${x}\"}", &[]).unwrap();
    assert_eq!(recipe.out, Path::new("runs/toy"));
    assert_eq!(recipe.steps[0].planned.config["note"], "${x}");
}

#[test]
fn a_run_goes_on_where_it_stopped() {
    let place = Place::new();
    let run = |set: &[(&str, &str)]| place.read(TWO, set).unwrap().run(&StageContext::quiet());
    let error = run(&[("stages.second.note", "fail")]).unwrap_err();
    assert_eq!(format!("{error:#}"), "stage second: asked to fail");
    let outcomes = run(&[]).unwrap();
    let ran: Vec<bool> = outcomes.iter().map(|outcome| matches!(outcome, Outcome::Done { .. })).collect();
    assert_eq!(ran, [false, true, true, true]);
    assert_eq!(outcomes[2].results(), &json!({"bytes": 9}));
    assert!(run(&[]).unwrap().iter().all(|outcome| matches!(outcome, Outcome::Skipped { .. })));
    let error = run(&[("stages.first.times", "4")]).unwrap_err();
    assert!(format!("{error:#}").contains("times was 3 and is 4 now"), "{error:#}");
    let resolved = fs::read_to_string(place.path("out/resolved.json")).unwrap();
    let resolved: Value = serde_json::from_str(&resolved).unwrap();
    assert_eq!(resolved["stages"]["second"]["config"]["seed"], 9);
    assert_eq!(resolved["inputs"].as_array().unwrap().len(), 1);
    let page = fs::read_to_string(place.path("out/report.html")).unwrap();
    assert!(page.contains("<dt>seed</dt><dd>7</dd>"), "{page}");
}

#[test]
fn a_finished_run_may_be_moved() {
    let place = Place::new();
    place.read(TWO, &[]).unwrap().run(&StageContext::quiet()).unwrap();
    fs::rename(place.path("out"), place.path("elsewhere")).unwrap();
    let outcomes = place.read(TWO, &[("out", "../elsewhere")]).unwrap().run(&StageContext::quiet()).unwrap();
    assert!(matches!(outcomes[0], Outcome::Skipped { .. }));
    assert!(matches!(outcomes[3], Outcome::Skipped { .. }));
}

#[test]
fn variables_that_multiply_or_nest_without_end_are_refused() {
    let chain = |count: usize, first: Value, next: &dyn Fn(String) -> Value| {
        let later = (1..count).map(|i| (format!("v{i}"), next(format!("${{vars.v{}}}", i - 1))));
        Map::from_iter([("v0".to_owned(), first)].into_iter().chain(later))
    };
    let text = chain(30, json!("xxxxxxxxxx"), &|name| json!(name.repeat(10)));
    let list = chain(40, json!(["x"]), &|name| json!([name, name]));
    let deep = chain(100_000, json!(["x"]), &|name| json!([name]));
    for (vars, said) in [(text, "MiB of values"), (list, "MiB of values"), (deep, "nested more than 100 deep")] {
        let error = format!("{:#}", resolve::vars(&vars).unwrap_err());
        assert!(error.contains(said), "{error}");
    }
    let few = chain(5, json!("x"), &|name| json!(name.repeat(3)));
    assert_eq!(resolve::vars(&few).unwrap()["v4"], json!("x".repeat(81)));
}
