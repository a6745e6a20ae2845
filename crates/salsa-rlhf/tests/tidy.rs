//! Consistency of the repository: paths in documents exist, every recipe is valid, nothing is unfinished.
use std::{
    fs,
    path::{Path, PathBuf},
};

use salsa_rlhf::{
    hub::Network,
    recipe::{Changes, Recipe},
    stage::STAGES,
    study::Study,
};

/// The folders whose files the documents refer to by path.
const NAMED: &[&str] = &["crates/", "recipes/", "docs/", ".ci/"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Files under `dir` with this suffix, sorted by name.
fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut entries: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.to_string_lossy().ends_with(ending) {
            found.push(path);
        }
    }
    found
}

fn documents() -> Vec<PathBuf> {
    let top = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(|name| root().join(name));
    top.into_iter().chain(files(&root().join("docs"), ".md")).collect()
}

/// Text without fenced blocks, whose paths may be foreign.
fn without_fences(text: &str) -> String {
    let (mut kept, mut inside) = (String::new(), false);
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if !inside {
            kept += line;
            kept.push('\n');
        }
    }
    assert!(!inside, "a fence is never closed");
    kept
}

/// The paths in a document: in backticks relative to the repository, in links relative to the document.
fn named(document: &Path) -> Vec<(String, PathBuf)> {
    let text = without_fences(&fs::read_to_string(document).unwrap());
    let folder = document.parent().unwrap();
    let ticks = text.split('`').skip(1).step_by(2);
    let is_path = |words: &&str| NAMED.iter().any(|start| words.starts_with(start)) && !words.contains([' ', '*', '{']);
    let in_ticks = ticks.filter(is_path).map(|path| (path.to_owned(), root().join(path)));
    let links = text.split("](").skip(1).map(|rest| rest.split([')', '#']).next().unwrap_or_default());
    let is_local = |link: &&str| !link.is_empty() && !link.contains("://");
    let in_links = links.filter(is_local).map(|link| (link.to_owned(), folder.join(link)));
    in_ticks.chain(in_links).collect()
}

#[test]
fn every_path_in_the_documents_exists() {
    let (mut count, mut missing) = (0, Vec::new());
    for document in documents() {
        for (written, path) in named(&document) {
            count += 1;
            if !path.exists() {
                missing.push(format!("{}: {written}", document.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(count > 100, "only {count} paths found: the search no longer finds them");
    assert!(missing.is_empty(), "these do not exist:\n{}", missing.join("\n"));
}

/// Names of types in other programs, which the documents mention.
const TYPES_OF_OTHERS: &[&str] = &[];

#[test]
fn every_type_and_function_in_the_documents_exists() {
    let sources = files(&root().join("crates"), ".rs");
    let code: String = sources.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    // `KlEstimator`, `Run::step`: at least two words in capitals, or a path of Rust.
    let is_type = |name: &str| {
        let humps =
            name.chars().zip(name.chars().skip(1)).filter(|(a, b)| a.is_lowercase() && b.is_uppercase()).count();
        let starts = name.chars().next().is_some_and(char::is_uppercase);
        starts && humps > 0 && name.chars().all(char::is_alphanumeric)
    };
    let (mut count, mut missing) = (0, Vec::new());
    for document in documents() {
        let text = without_fences(&fs::read_to_string(&document).unwrap());
        for words in text.split('`').skip(1).step_by(2) {
            let parts: Vec<&str> = words.split("::").collect();
            if !is_type(parts[0]) && (parts.len() < 2 || !parts[0].starts_with(char::is_uppercase)) {
                continue;
            }
            count += 1;
            let known = parts.iter().all(|part| code.contains(part.trim_end_matches("()")));
            if !known && !TYPES_OF_OTHERS.contains(&words) {
                missing.push(format!("{}: {words}", document.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(count > 30, "only {count} names found: the search no longer finds them");
    assert!(missing.is_empty(), "these do not exist:\n{}", missing.join("\n"));
}

#[test]
fn every_line_of_code_is_finished() {
    let unfinished = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("unimplemented", "!"), concat!("todo", "!")];
    let sources = files(&root().join("crates"), ".rs");
    assert!(sources.len() > 100, "only {} sources found", sources.len());
    for path in sources {
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            let found = unfinished.iter().find(|word| line.contains(*word));
            assert!(found.is_none(), "{}:{}: {}", path.display(), number + 1, line.trim());
        }
    }
}

/// Only `input` rejects a named pipe or a device in place of a file, so all files are opened there.
#[test]
fn every_file_is_opened_for_reading_in_one_place() {
    const READS: &[&str] = &["File::open(", "fs::read(", "fs::read_to_string("];
    // System information; and a folder that is synced, not read.
    const OTHERS: &[&str] = &["src/input.rs", "src/stage/memory/available.rs", "src/stage/fixture.rs"];
    const LINES: &[&str] = &["\"/proc/", "match File::open(path) {"];
    let of_tests = |path: &str| path.contains("/tests/") || path.ends_with("/tests.rs");
    let sources = files(&root().join("crates/salsa-rlhf/src"), ".rs");
    let mut found = Vec::new();
    for path in sources {
        let (shown, text) = (path.to_string_lossy().into_owned(), fs::read_to_string(&path).unwrap());
        if of_tests(&shown) || OTHERS.iter().any(|other| shown.ends_with(other)) {
            continue;
        }
        let code = text.split("\nmod tests {").next().unwrap_or_default();
        for (number, line) in code.lines().enumerate() {
            let is_comment = line.trim_start().starts_with("//");
            let reads = !is_comment && READS.iter().any(|call| line.contains(call));
            if reads && !LINES.iter().any(|other| line.contains(other)) && !line.contains("input::read") {
                found.push(format!("{shown}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "use the functions of `input`:\n{}", found.join("\n"));
}

/// Checks every recipe as `salsa run --check` does. Data outside the repository may be absent: the recipe is read from
/// a copy of the tree's structure, in which empty files replace outside inputs. Missing inputs inside the tree are
/// errors.
#[test]
fn every_recipe_is_in_order() {
    let recipes = files(&root().join("recipes"), ".yaml");
    assert!(!recipes.is_empty(), "there are no recipes");
    let (studies, recipes): (Vec<PathBuf>, Vec<PathBuf>) = recipes.into_iter().partition(|path| is_study(path));
    for study in studies {
        let out = tempfile::tempdir().unwrap();
        let read = Study::read(&study, Some(&out.path().join("out")), Network::Offline);
        assert!(read.is_ok(), "{}: {:#}", study.display(), read.err().unwrap());
    }
    for recipe in recipes {
        let outside = tempfile::tempdir().unwrap();
        let outside = outside.path().canonicalize().unwrap();
        let tree = outside.join("far/near/tree");
        let copy = tree.join(recipe.strip_prefix(root()).unwrap());
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(&recipe, &copy).unwrap();
        let shown = recipe.display();
        let mut stand_ins = 0;
        let out = tree.join("out");
        let changes = || Changes { out: Some(&out), network: Network::Offline, ..Changes::default() };
        while let Err(error) = Recipe::read(&copy, changes(), STAGES) {
            let message = format!("{error:#}");
            let path = missing_path(&message).filter(|path| path.starts_with(&outside) && !path.starts_with(&tree));
            let path = path.unwrap_or_else(|| panic!("{shown}: {message}"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            stand_ins += 1;
            assert!(stand_ins < 100, "{shown}: {message}");
        }
        if stand_ins > 0 {
            println!("skipped: {shown}: whether its {stand_ins} inputs from outside the tree are there");
        }
    }
}

/// A study names a recipe instead of stages.
fn is_study(path: &Path) -> bool {
    fs::read_to_string(path).unwrap().lines().any(|line| line.starts_with("recipe:"))
}

/// The path in an error about a file or directory that does not exist.
fn missing_path(message: &str) -> Option<PathBuf> {
    let starts = ["there is no file ", "and no directory "];
    let rest = starts.iter().find_map(|start| message.split_once(start))?.1;
    Some(PathBuf::from(rest.split_once("; ")?.0))
}

#[test]
fn a_stage_name_with_a_slip_is_no_missing_input() {
    let outside = tempfile::tempdir().unwrap();
    let path = outside.path().join("slip.yaml");
    let text = "stages:\n  a: {kind: kitchen}\n  b: {kind: sft, model: bsae, dataset: \"${stages.a}/sft.jsonl\"}\n";
    fs::write(&path, text).unwrap();
    let read = Recipe::read(&path, Changes { out: Some(&outside.path().join("out")), ..Changes::default() }, STAGES);
    let message = format!("{:#}", read.err().expect("there is no model called bsae"));
    assert_eq!(missing_path(&message), Some(outside.path().join("bsae")), "{message}");
}
