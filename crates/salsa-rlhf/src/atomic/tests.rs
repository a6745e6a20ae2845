use super::*;

#[test]
fn a_file_is_replaced_and_no_temporary_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/er/x.json");
    write(&path, b"one").unwrap();
    fs::write(dir.path().join("deep/er/x.json.tmp"), b"left by a killed process").unwrap();
    write(&path, b"two").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"two");
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn a_failed_write_keeps_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    write(&path, b"old").unwrap();
    let error = write_with(&path, |out| {
        out.write_all(b"half")?;
        Err(io::Error::from(io::ErrorKind::StorageFull).into())
    })
    .unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("disk is full") && text.contains(&path.display().to_string()), "{text}");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_full_disk_is_named() {
    let full = Path::new("/dev/full");
    if !full.exists() {
        println!("skipped: this system has no /dev/full");
        return;
    }
    let mut out = BufWriter::new(File::create(full).unwrap());
    out.write_all(b"x").unwrap();
    let error = explain(out.into_inner().unwrap_err().error(), "writing");
    assert!(error.to_string().contains("disk is full"), "{error}");
}

#[test]
fn a_folder_in_the_place_of_a_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("x")).unwrap();
    fs::write(dir.path().join("x/y"), b"").unwrap();
    let text = format!("{:#}", write(&dir.path().join("x"), b"1").unwrap_err());
    assert!(text.contains("cannot write") && text.contains("is a folder"), "{text}");
}

#[test]
fn a_folder_is_replaced_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    replace_dir(&path, |tmp| write(&tmp.join("a"), b"1")).unwrap();
    fs::create_dir(dir.path().join("run.tmp")).unwrap();
    fs::write(dir.path().join("run.tmp/stale"), b"").unwrap();
    replace_dir(&path, |tmp| write(&tmp.join("b/c"), b"2")).unwrap();
    assert_eq!(fs::read(path.join("b/c")).unwrap(), b"2");
    assert!(!path.join("a").exists() && !path.join("stale").exists());
    replace_dir(&path, |_| Err(anyhow!("no"))).unwrap_err();
    assert!(path.join("b/c").exists());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_folder_moved_aside_by_a_killed_process_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run");
    replace_dir(&path, |tmp| write(&tmp.join("a"), b"1")).unwrap();
    fs::rename(&path, dir.path().join("run.old")).unwrap();
    replace_dir(&path, |_| Err(anyhow!("no"))).unwrap_err();
    assert!(path.join("a").exists());
}

#[test]
fn hashes_are_those_of_sha256sum() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    fs::write(&path, b"abc").unwrap();
    assert_eq!(sha256_file(&path).unwrap(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

#[test]
fn a_path_without_a_name_is_refused() {
    for (path, fault) in [("/", "it is a folder"), ("", "names no file")] {
        let refused = format!("{:#}", write(Path::new(path), b"").unwrap_err());
        assert!(refused.contains(fault), "{refused}");
    }
}

#[cfg(unix)]
#[test]
fn symbolic_links_are_replaced_and_never_followed() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("other"), "precious").unwrap();
    symlink("other", at("x.tmp")).unwrap();
    symlink("other", at("x")).unwrap();
    write(&at("x"), b"new").unwrap();
    assert_eq!(fs::read(at("x")).unwrap(), b"new");
    assert!(!fs::symlink_metadata(at("x")).unwrap().is_symlink() && !at("x.tmp").exists());
    symlink("other", at("log")).unwrap();
    assert!(open_to_continue(&at("log")).unwrap_err().to_string().contains("symbolic link"));
    create_new(&at("log")).unwrap();
    fs::create_dir(at("folder")).unwrap();
    fs::write(at("folder/y"), "precious").unwrap();
    symlink("folder", at("run.tmp")).unwrap();
    replace_dir(&at("run"), |tmp| write(&tmp.join("y"), b"1")).unwrap();
    for kept in ["other", "folder/y"] {
        assert_eq!(fs::read(at(kept)).unwrap(), b"precious");
    }
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_written_to_and_stay() {
    use std::os::unix::fs::FileTypeExt;
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    let name = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
    // SAFETY: the name is a C string that outlives the call.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::read(pipe).unwrap()
    });
    write(&pipe, b"through").unwrap();
    assert_eq!(reader.join().unwrap(), b"through");
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    write(Path::new("/dev/null"), b"gone").unwrap();
    assert!(fs::symlink_metadata("/dev/null").unwrap().file_type().is_char_device());
}

#[test]
fn writers_of_one_file_do_not_disturb_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    std::thread::scope(|scope| {
        for writer in 0..4u8 {
            let path = &path;
            scope.spawn(move || {
                for _ in 0..25 {
                    write_with(path, |out| {
                        (0..64).try_for_each(|_| out.write_all(&[b'a' + writer; 4096])).map_err(Into::into)
                    })
                    .unwrap();
                }
            });
        }
    });
    let text = fs::read(&path).unwrap();
    assert!(text.len() == 64 * 4096 && text.iter().all(|byte| *byte == text[0]), "one writer's bytes, whole");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn leftovers_of_killed_processes_go_and_files_of_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["x.tmp", "x.1f-0.tmp", "x.y.tmp", "xx.tmp", "x.1f-.tmp", "y.1f-0.tmp"] {
        fs::write(at(name), "").unwrap();
    }
    let (live, file) = temporary(&at("x")).unwrap();
    write(&at("x"), b"1").unwrap();
    let mut names: Vec<String> =
        fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let live = live.file_name().unwrap().to_str().unwrap().to_owned();
    let mut expected = vec!["x", "x.y.tmp", "xx.tmp", "x.1f-.tmp", "y.1f-0.tmp", &live];
    expected.sort_unstable();
    assert_eq!(names, expected);
    drop(file);
}
