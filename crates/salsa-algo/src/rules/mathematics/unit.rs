//! The unit behind a value.

use super::rational::Reading;
use super::token::Token;
use super::words::unit;

/// The unit's own name with its exponent; none where a part of it is not known.
pub(super) fn unit_of(tokens: &[Token]) -> Reading<Option<String>> {
    let mut name = String::new();
    let mut power = None;
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Number(_, text) => {
                if !at.checked_sub(1).is_some_and(|at| matches!(tokens[at], Token::Symbol('^' | '{' | '-'))) {
                    return Err("a number behind the words behind a value".into());
                }
                name.push_str(text);
            }
            Token::Symbol('/') => name.push('/'),
            Token::Symbol('-') => name.push('-'),
            token => {
                for word in token.word().iter().flat_map(|words| words.split_whitespace()) {
                    let (word, exponent) = word.split_once('^').unwrap_or((word, ""));
                    match word {
                        "per" => name.push('/'),
                        "square" | "sq" => power = Some("2"),
                        "cubic" | "cu" => power = Some("3"),
                        _ => match unit(word.trim_end_matches('.')).or(unit(word)) {
                            Some(known) => {
                                name.push_str(known);
                                name.push_str(power.take().unwrap_or(exponent));
                            }
                            None => return Ok(None),
                        },
                    }
                }
            }
        }
    }
    Ok((!name.is_empty() && name != "unit" && name != "degree").then_some(name))
}
