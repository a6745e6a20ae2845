//! Folders whose file names determine splits.

use super::*;

fn folder(files: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("{{\"text\":\"{name}\"}}\n")).unwrap();
    }
    dir
}

fn texts(dir: &Path, which: Which<'_>) -> Result<Vec<String>> {
    let text = |example| match example {
        Example::Text(text) => text,
        other => panic!("{other:?}"),
    };
    Ok(load_split(dir, which, Reading::default())?.examples.into_iter().map(text).collect())
}

#[test]
fn a_published_split_is_read_by_its_name() {
    let shards = ["data/train_sft-00001-of-00002.jsonl", "data/train_sft-00000-of-00002.jsonl"];
    let dir =
        folder(&[shards[0], shards[1], "data/test_sft-00000-of-00001.jsonl", "dataset_infos.json", ".git/a.json"]);
    assert_eq!(splits(dir.path()).unwrap(), ["test_sft", "train_sft"]);
    assert_eq!(texts(dir.path(), Which::Named("train_sft")).unwrap(), [shards[1], shards[0]]);
    assert_eq!(texts(dir.path(), Which::All).unwrap().len(), 3);
    let error = texts(dir.path(), Which::TheOnly).unwrap_err().to_string();
    assert!(error.contains("has the splits test_sft, train_sft. Say which one"), "{error}");
    let error = texts(dir.path(), Which::Named("train")).unwrap_err().to_string();
    assert!(error.contains("has no split \"train\": it has test_sft, train_sft"), "{error}");
    let error = texts(&dir.path().join(shards[0]), Which::Named("train")).unwrap_err().to_string();
    assert!(error.contains("is one file"), "{error}");
}

#[test]
fn one_split_or_none_need_not_be_named() {
    let dir = folder(&["default/train/0000.jsonl", "default/train/0001.jsonl"]);
    assert_eq!(texts(dir.path(), Which::TheOnly).unwrap().len(), 2);
    let dir = folder(&["a.jsonl", "b.jsonl"]);
    assert!(splits(dir.path()).unwrap().is_empty());
    assert_eq!(texts(dir.path(), Which::TheOnly).unwrap(), ["a.jsonl", "b.jsonl"]);
    let error = texts(dir.path(), Which::Named("train")).unwrap_err().to_string();
    assert!(error.contains("no file name there tells a split"), "{error}");
    let dir = folder(&["a.jsonl", "test.jsonl"]);
    let error = texts(dir.path(), Which::TheOnly).unwrap_err().to_string();
    assert!(error.contains("has the splits test, and 1 files of none"), "{error}");
}

#[test]
fn a_table_beside_other_data_is_none() {
    let dir = folder(&["train.jsonl", "figures.csv"]);
    assert_eq!(texts(dir.path(), Which::TheOnly).unwrap(), ["train.jsonl"]);
    let dir = folder(&[]);
    for name in ["train-00000-of-00001.csv", "test-00000-of-00001.tsv"] {
        std::fs::write(dir.path().join(name), format!("text\n{name}\n")).unwrap();
    }
    assert_eq!(texts(dir.path(), Which::Named("test")).unwrap(), ["test-00000-of-00001.tsv"]);
}

#[cfg(unix)]
#[test]
fn a_pipe_in_a_folder_is_refused_and_a_circle_of_links_is_walked_once() {
    let dir = folder(&["a/x.jsonl"]);
    for (target, link) in [(".", "b"), (".", "c"), ("..", "a/d")] {
        std::os::unix::fs::symlink(target, dir.path().join(link)).unwrap();
    }
    assert_eq!(texts(dir.path(), Which::All).unwrap(), ["a/x.jsonl"]);
    let pipe = dir.path().join("a/y.jsonl");
    assert!(std::process::Command::new("mkfifo").arg(pipe).status().unwrap().success());
    let error = texts(dir.path(), Which::All).unwrap_err().to_string();
    assert!(error.contains("y.jsonl is not a regular file but a named pipe"), "{error}");
    std::fs::remove_file(dir.path().join("a/y.jsonl")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join("a/y.jsonl")).unwrap();
    let error = texts(dir.path(), Which::All).unwrap_err().to_string();
    assert!(error.contains("there is no data set at") && error.contains("y.jsonl"), "{error}");
}

#[test]
fn several_data_sets_in_a_folder_are_told_apart() {
    let dir = folder(&["harmless-base/train.jsonl", "helpful-base/train.jsonl", "helpful-base/test.jsonl"]);
    let error = texts(dir.path(), Which::All).unwrap_err().to_string();
    assert!(error.contains("several data sets: harmless-base, helpful-base. Give the folder of one"), "{error}");
    let one = dir.path().join("helpful-base");
    assert_eq!(texts(&one, Which::Named("test")).unwrap(), ["helpful-base/test.jsonl"]);
}

#[test]
fn what_save_to_disk_wrote_is_refused_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("train")).unwrap();
    std::fs::write(dir.path().join("train/data-00000-of-00001.arrow"), "x").unwrap();
    std::fs::write(dir.path().join("dataset_dict.json"), "{}").unwrap();
    let error = load(dir.path()).unwrap_err().to_string();
    let splits = "[part.to_parquet(name + '.parquet') for name, part in load_from_disk('";
    assert!(error.contains("save_to_disk wrote. Convert it: python -c") && error.contains(splits), "{error}");
    std::fs::remove_file(dir.path().join("dataset_dict.json")).unwrap();
    let error = load(&dir.path().join("train")).unwrap_err().to_string();
    assert!(error.contains("train').to_parquet('data.parquet')\""), "{error}");
    let error = load(&dir.path().join("train/data-00000-of-00001.arrow")).unwrap_err().to_string();
    assert!(error.contains("Dataset.from_file('"), "{error}");
}

#[test]
fn a_file_that_unpacks_without_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.jsonl.gz");
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(&vec![b' '; 40 << 20]).unwrap();
    std::fs::write(&path, packed.finish().unwrap()).unwrap();
    let error = load(&path).unwrap_err().to_string();
    assert!(error.contains("unpacks to more than 300 times its size"), "{error}");
}
