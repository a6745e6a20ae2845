//! A recipe that is run, changed and run again.
use super::*;

/// Stages by their names: `anew`, or those that read them as well, or the only ones to run.
fn rerun(names: &[&str]) -> Selection {
    Selection { rerun: names.iter().map(|name| name.to_string()).collect(), ..Selection::default() }
}

fn from(name: &str) -> Selection {
    Selection { from: vec![name.to_owned()], ..Selection::default() }
}

fn only(name: &str) -> Selection {
    Selection { only: vec![name.to_owned()], ..Selection::default() }
}

fn ran(outcomes: &[Outcome]) -> Vec<bool> {
    outcomes.iter().map(|outcome| matches!(outcome, Outcome::Done { .. })).collect()
}

/// The product of the first stage, in place or set aside.
const NOTE: &str = "sub/note.txt";

fn note(place: &Place, stage: &str) -> String {
    fs::read_to_string(place.path(&format!("out/{stage}/{NOTE}"))).unwrap()
}

#[test]
fn a_stage_is_made_anew_and_its_old_result_is_kept() {
    let place = Place::new();
    place.run(&Selection::default(), &[]).unwrap();
    let shout = [("stages.first.note", "HELLO")];
    let outcomes = place.run(&rerun(&["third"]), &[]).unwrap();
    assert_eq!(ran(&outcomes), [false, false, true, false], "the same bytes again: what reads them stays");
    assert_eq!(place.names("out/.aside"), ["third-1"]);
    let refused = place.short(&place.run(&rerun(&["first"]), &shout).unwrap_err());
    assert!(refused.starts_with("stage second: DIR/out/second holds the result of another configuration"), "{refused}");
    assert!(refused.contains("; --rerun second sets it aside and makes it anew, or choose another --out"), "{refused}");
    assert_eq!((note(&place, "first").as_str(), note(&place, ".aside/first-1").as_str()), ("HELLO", "hello"));
    assert_eq!(ran(&place.run(&rerun(&["second"]), &shout).unwrap()), [false, true, false, false]);
    assert_eq!(place.names("out/.aside"), ["first-1", "second-1", "third-1"]);

    let outcomes = place.run(&from("first"), &[]).unwrap();
    assert_eq!(ran(&outcomes), [true, true, false, false], "what reads it is made anew, what does not is not");
    assert_eq!(note(&place, ".aside/first-2"), "HELLO");
    assert!(!place.path("out/.aside/first-2/.lock").parse::<PathBuf>().unwrap().exists());
}

#[test]
fn a_change_is_refused_before_anything_is_written_with_what_can_be_done() {
    let place = Place::new();
    place.run(&only("first"), &[]).unwrap();
    let recipe = || fs::read_to_string(place.path("out/recipe.yaml")).unwrap();
    let (before, shout) = (recipe(), [("stages.first.note", "HELLO"), ("stages.third.input", "../data.txt")]);
    let refused = place.short(&place.run(&Selection::default(), &shout).unwrap_err());
    assert_eq!(
        refused,
        "stage first: DIR/out/first holds the result of another configuration: note was \"hello\" and is \"HELLO\" now; \
         --rerun first sets it aside and makes it anew (--from first: with second, which read it), or choose another --out"
    );
    assert_eq!(recipe(), before);
    assert_eq!(place.names("out"), ["first", "recipe.yaml", "report.html", "resolved.json"], "no other stage has run");
    let refused = place.short(&place.run(&only("second"), &shout).unwrap_err());
    assert!(refused.starts_with("stage first: "), "nor does a stage read what the recipe no longer says: {refused}");
    place.run(&only("third"), &shout).unwrap();
}

#[test]
fn only_the_named_stages_run_and_only_on_what_is_done() {
    let place = Place::new();
    let told = |selection: &Selection| {
        let error = place.run(selection, &[]).unwrap_err();
        assert!(error.downcast_ref::<Usage>().is_some(), "{error:#}");
        error.to_string()
    };
    assert_eq!(
        told(&only("second")),
        "--only second: it reads what first leaves, and first is not done; say --only first,second"
    );
    assert_eq!(place.run(&only("first"), &[]).unwrap().len(), 1);
    assert_eq!(place.run(&only("second"), &[]).unwrap().len(), 1);
    assert!(!Path::new(&place.path("out/third")).exists());
    assert_eq!(told(&only("frist")), "--only frist: the recipe has no stage \"frist\"; did you mean \"first\"?");
    assert_eq!(told(&from("secnd")), "--from secnd: the recipe has no stage \"secnd\"; did you mean \"second\"?");
    assert!(told(&rerun(&["x"])).contains("valid: first, second, third, fourth"));
    let both = Selection { only: vec!["first".to_owned()], ..from("first") };
    assert_eq!(told(&both), "second: to be made anew, but not among the stages of --only; add it there");
    assert!(!Path::new(&place.path("out/.aside")).exists());
}

#[test]
fn a_command_that_was_interrupted_sets_nothing_aside_twice() {
    let place = Place::new();
    place.run(&Selection::default(), &[]).unwrap();
    let both = rerun(&["first", "second"]);
    let fails = [("stages.second.note", "fail")];
    assert_eq!(format!("{:#}", place.run(&both, &fails).unwrap_err()), "stage second: asked to fail");
    assert_eq!(place.names("out/.aside"), ["first-1", "pending.json", "second-1"]);
    // The same command again: the first stage was run again already, the second has no results.
    assert_eq!(ran(&place.run(&both, &[]).unwrap()), [false, true, false, false]);
    assert_eq!(place.names("out/.aside"), ["first-1", "second-1"]);
    // The command had finished: now the stages run again.
    assert_eq!(ran(&place.run(&both, &[]).unwrap()), [true, true, false, false]);
    assert_eq!(place.names("out/.aside"), ["first-1", "first-2", "second-1", "second-2"]);

    // Killed before the first of two moves.
    let pending = json!({"stages": {"first": "first-3", "second": "second-3"}}).to_string();
    fs::write(place.path("out/.aside/pending.json"), &pending).unwrap();
    assert_eq!(ran(&place.run(&both, &[]).unwrap()), [true, true, false, false]);
    // Killed between them.
    fs::rename(place.path("out/first"), place.path("out/.aside/first-4")).unwrap();
    fs::write(place.path("out/.aside/pending.json"), pending.replace('3', "4")).unwrap();
    assert_eq!(ran(&place.run(&both, &[]).unwrap()), [true, true, false, false]);
    assert_eq!(place.names("out/.aside").iter().filter(|name| name.starts_with("first")).count(), 4);
    assert_eq!(place.names("out/.aside").iter().filter(|name| name.starts_with("second")).count(), 4);

    // A stage that was begun again and has changed since is set aside, too.
    place.run(&both, &fails).unwrap_err();
    let shout = [("stages.first.note", "HELLO")];
    assert_eq!(ran(&place.run(&both, &shout).unwrap()), [true, true, false, false]);
    assert_eq!(note(&place, ".aside/first-6"), "hello");
}

#[test]
fn a_stage_that_somebody_works_on_is_not_moved() {
    let place = Place::new();
    place.run(&Selection::default(), &[]).unwrap();
    let lock = crate::stage::lifecycle::lock::Lock::take(Path::new(&place.path("out/second"))).unwrap();
    let error = format!("{:#}", place.run(&rerun(&["first", "second"]), &[]).unwrap_err());
    assert!(error.contains("out/second is being written by another salsa process"), "{error}");
    assert!(place.names("out/.aside").is_empty());
    drop(lock);
    place.run(&rerun(&["first", "second"]), &[]).unwrap();
}

#[test]
fn results_are_set_aside_in_a_folder_and_nowhere_else() {
    let place = Place::new();
    place.run(&Selection::default(), &[]).unwrap();
    fs::write(place.path("out/.aside"), "").unwrap();
    let error = place.short(&place.run(&rerun(&["first"]), &[]).unwrap_err());
    assert!(error.starts_with("DIR/out/.aside is no folder; move it away"), "{error}");
    assert_eq!(note(&place, "first"), "hello");
    place.run(&Selection::default(), &[]).unwrap();
}

#[test]
fn what_was_run_can_be_run_again_from_the_directory_of_the_run() {
    let place = Place::new();
    let set =
        [("seed", "5"), ("vars.n", "2"), ("stages.second.note", "$${x} ${seed}"), ("stages.first.note", "'1e3: yes'")];
    place.run(&Selection::default(), &set).unwrap();
    let file = |out: &str| PathBuf::from(place.path(out)).join("recipe.yaml");
    let text = fs::read_to_string(file("out")).unwrap();
    let again = |from: &str, out: Option<&str>| {
        let out = out.map(|out| PathBuf::from(place.path(out)));
        let recipe = Recipe::read(&file(from), Changes { out: out.as_deref(), ..Changes::default() }, STAGES).unwrap();
        recipe.run(&StageContext::quiet()).unwrap()
    };
    assert_eq!(ran(&again("out", None)), [false; 4], "{text}");
    assert_eq!(fs::read_to_string(file("out")).unwrap(), text, "what was run of what was run is the same");
    assert_eq!(ran(&again("out", Some("other"))), [true; 4]);
    assert_eq!(fs::read_to_string(file("other")).unwrap(), text);
    let config = |out: &str, stage: &str| {
        let text = fs::read_to_string(place.path(&format!("{out}/{stage}/stage.json"))).unwrap();
        serde_json::from_str::<Value>(&text.replace(&place.path(out), "OUT")).unwrap()["config"].clone()
    };
    for stage in ["first", "second", "third", "fourth"] {
        assert_eq!(config("out", stage), config("other", stage), "{stage}");
    }
    assert_eq!(config("out", "second")["note"], "${x} 5");
    assert_eq!(config("out", "first")["note"], "1e3: yes");
    fs::rename(place.path("out"), place.path("moved")).unwrap();
    assert_eq!(ran(&again("moved", None)), [false; 4]);
    let recipe: Value = config::parse(&text).unwrap();
    assert_eq!(
        recipe["stages"]["second"],
        json!({
            "kind": "note", "model": "first", "models": ["first", "${stages.first}/sub"], "note": "$${x} 5", "seed": 9
        })
    );
    assert_eq!(recipe["stages"]["third"]["input"], place.path("data.txt"));
    assert_eq!((&recipe["seed"], &recipe["stages"]["first"]["times"]), (&json!(5), &json!(2)));
}
