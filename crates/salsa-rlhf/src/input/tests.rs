use super::*;

fn message<T>(result: Result<T>) -> String {
    format!("{:#}", result.err().expect("this is to be refused"))
}

#[cfg(unix)]
fn pipe(path: &Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[cfg(unix)]
#[test]
fn what_is_no_regular_file_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    pipe(&at("pipe"));
    std::os::unix::fs::symlink("/dev/zero", at("zeros")).unwrap();
    std::os::unix::fs::symlink("pipe", at("link")).unwrap();
    fs::create_dir(at("folder")).unwrap();
    for (name, kind) in
        [("pipe", "a named pipe"), ("link", "a named pipe"), ("zeros", "a device"), ("folder", "a folder")]
    {
        let refusals = [message(open(&at(name))), message(read(&at(name))), message(read_if_any(&at(name)))];
        for refusal in refusals.into_iter().chain([message(read_to_string(&at(name)))]) {
            assert!(refusal.ends_with(&format!("{name} is not a regular file but {kind}; give a file")), "{refusal}");
        }
    }
    assert!(message(open(&at("nothing"))).contains("nothing: No such file"));
    assert!(read_if_any(&at("nothing")).unwrap().is_none());
    fs::write(at("file"), "text").unwrap();
    std::os::unix::fs::symlink("file", at("alias")).unwrap();
    assert_eq!(read_to_string(&at("alias")).unwrap(), "text");
}

#[test]
fn a_file_of_another_encoding_is_named_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.yaml");
    let refusal = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        message(read_to_string(&path))
    };
    for (bytes, encoding) in [
        (&b"\xFF\xFEa\0"[..], "UTF-16"),
        (b"\xFE\xFF\0a", "UTF-16"),
        (b"{\0\"\0", "UTF-16LE"),
        (b"\0{\0\"", "UTF-16BE"),
        (b"\xFF\xFE\0\0a\0\0\0", "UTF-32"),
    ] {
        let refusal = refusal(bytes);
        let remedy = format!("iconv -f {encoding} -t UTF-8 x.yaml");
        assert!(refusal.contains(&format!("x.yaml is {encoding} (")) && refusal.contains(&remedy), "{refusal}");
    }
    let latin = refusal(b"a\nb\nna\xEFve\n");
    assert!(latin.contains("x.yaml, line 3: a byte that is no UTF-8; convert it: iconv -f latin1"), "{latin}");
    fs::write(&path, "\u{feff}naïve\n").unwrap();
    assert_eq!(read_to_string(&path).unwrap(), "\u{feff}naïve\n");
}

#[cfg(unix)]
#[test]
fn a_link_to_a_folder_that_it_lies_in_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    for name in ["x", "a/y", "a/b/z", "a/.hidden"] {
        fs::write(at(name), "").unwrap();
    }
    for (target, link) in [(".", "here"), (".", "again"), ("..", "a/up"), ("../..", "a/b/top"), ("a/b", "beside")] {
        std::os::unix::fs::symlink(target, at(link)).unwrap();
    }
    let visible = |name: &str| !name.starts_with('.');
    let names = |deepest| -> Vec<String> {
        files_below(dir.path(), deepest, &visible).unwrap().into_iter().map(|(name, _)| name).collect()
    };
    assert_eq!(names(8), ["a/b/z", "a/y", "beside/z", "x"]);
    assert_eq!(names(1), ["a/y", "beside/z", "x"]);
    assert!(message(files_below(&at("nowhere"), 8, &visible)).contains("cannot list"));
}
