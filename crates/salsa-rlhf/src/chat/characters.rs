//! Python's definitions of letters, digits and white space.

use minijinja::{Error, State};
use unicode_categories::UnicodeCategories;

use super::text::{charge, is_printable};

/// White space in Python: Unicode's, and four ASCII separators.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

pub(super) fn is_method(text: &str, name: &str) -> Option<bool> {
    let all = |is: fn(char) -> bool| !text.is_empty() && text.chars().all(is);
    let cased = |yes: fn(char) -> bool, no: fn(char) -> bool| text.chars().any(yes) && !text.chars().any(no);
    let is_digit = |c: char| {
        c.is_number_decimal_digit() || matches!(c, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉' | '①'..='⑨' | '⓪')
    };
    Some(match name {
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isdecimal" => all(|c| c.is_number_decimal_digit()),
        "isdigit" => all(is_digit),
        "isnumeric" => all(char::is_numeric),
        "isspace" => all(is_space),
        "isascii" => text.is_ascii(),
        "islower" => cased(char::is_lowercase, char::is_uppercase),
        "isupper" => cased(char::is_uppercase, char::is_lowercase),
        "isprintable" => text.chars().all(is_printable),
        "isidentifier" => {
            let mut chars = text.chars();
            chars.next().is_some_and(|c| c == '_' || c.is_alphabetic())
                && chars.all(|c| c == '_' || c.is_alphanumeric())
        }
        "istitle" => {
            let (mut before, mut any) = (false, false);
            for c in text.chars() {
                let is_cased = c.is_lowercase() || c.is_uppercase();
                if c.is_uppercase() && before || c.is_lowercase() && !before {
                    return Some(false);
                }
                any |= is_cased;
                before = is_cased;
            }
            any
        }
        _ => return None,
    })
}

pub(super) fn case_method(state: &State, text: &str, name: &str) -> Result<Option<String>, Error> {
    let done = match name {
        "lower" => text.to_lowercase(),
        "upper" => text.to_uppercase(),
        "casefold" => text.to_uppercase().to_lowercase(),
        "capitalize" => capitalized(text),
        "title" => titled(text),
        "swapcase" => {
            let swap = |c: char| match c.is_uppercase() {
                true => c.to_lowercase().collect::<String>(),
                false => c.to_uppercase().collect(),
            };
            text.chars().map(swap).collect()
        }
        _ => return Ok(None),
    };
    charge(state, done.len())?;
    Ok(Some(done))
}

/// The first letter in upper case, the others in lower case.
pub(super) fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(title_case).unwrap_or_default();
    first + &chars.as_str().to_lowercase()
}

/// Each word in title case; a word is a run of letters.
fn titled(text: &str) -> String {
    let (mut out, mut before) = (String::with_capacity(text.len()), false);
    for c in text.chars() {
        if before {
            out.extend(c.to_lowercase());
        } else {
            out.push_str(&title_case(c));
        }
        before = c.is_lowercase() || c.is_uppercase() || c.is_letter_titlecase();
    }
    out
}

/// The title case of a letter; four digraphs have a special form.
fn title_case(c: char) -> String {
    match c {
        'Ǆ' | 'ǅ' | 'ǆ' => "ǅ".to_owned(),
        'Ǉ' | 'ǈ' | 'ǉ' => "ǈ".to_owned(),
        'Ǌ' | 'ǋ' | 'ǌ' => "ǋ".to_owned(),
        'Ǳ' | 'ǲ' | 'ǳ' => "ǲ".to_owned(),
        'ß' => "Ss".to_owned(),
        _ => c.to_uppercase().collect(),
    }
}
