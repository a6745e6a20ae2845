//! serde's error messages in plain words.

/// `invalid type: string "x", expected f64` → `expected a number, got string "x"`.
pub(crate) fn plain(message: &str) -> String {
    let message = one_line(message);
    if let Some((got, expected)) = strip(&message, &["invalid type: ", "invalid value: ", "invalid length "]) {
        return format!("expected {}, got {}", kind(expected), got.replace('`', ""));
    }
    if let Some((got, known)) = strip(&message, &["unknown variant "]) {
        return choice(got, known, "is not a choice here");
    }
    if let Some((got, known)) = strip(&message, &["unknown field "]) {
        return choice(got, known, "is not a key here");
    }
    if message.starts_with("data did not match any variant") {
        return "none of the forms that this key takes fits; look for a misspelt name in it".to_owned();
    }
    if let Some(field) = message.strip_prefix("missing field ") {
        return format!("the key {} is missing", field.replace('`', "\""));
    }
    message.replace('`', "\"")
}

/// Collapses white space and line breaks to single spaces.
pub(crate) fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// An error as one line; the most frequent system error gets a hint.
pub(crate) fn for_people(error: &anyhow::Error) -> String {
    one_line(&format!("{error:#}"))
        .replace("No such file or directory (os error 2)", "there is no such file or folder; check the path")
}

fn strip<'a>(message: &'a str, prefixes: &[&str]) -> Option<(&'a str, &'a str)> {
    prefixes.iter().find_map(|prefix| message.strip_prefix(prefix)?.rsplit_once(", expected "))
}

fn choice(got: &str, known: &str, complaint: &str) -> String {
    let got = got.trim_matches('`');
    let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    let hint = match super::names::nearest(got, known.iter().copied()) {
        Some(near) => format!("; did you mean {near:?}?"),
        None => String::new(),
    };
    format!("{got:?} {complaint} (valid: {}){hint}", known.join(", "))
}

fn kind(expected: &str) -> &str {
    match expected {
        "f32" | "f64" => "a number",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "a nonzero u32" | "a nonzero u64" | "a nonzero usize" => "a whole number, 1 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "a boolean" => "true or false",
        "a string" | "path string" | "a borrowed string" => "a string",
        "a sequence" => "a list",
        "a map" => "a mapping (key: value)",
        "internally tagged enum ReferenceConfig" => "a mapping such as {kind: soup, models: [...]}",
        other if other.starts_with("struct ") => "a mapping (key: value)",
        other => other,
    }
}
