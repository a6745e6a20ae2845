//! From tokens to an answer: a value, or a list, interval, set, union, matrix or relation of such.

use super::expression::{PlusMinus, expression};
use super::rational::Reading;
use super::token::{Token, tokens};
use super::unit::unit_of;
use super::value::Value;
use super::words::scale;

/// How deep answers may lie in each other, and how many items a list may have.
const DEEPEST: usize = 8;
const ITEMS: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    Different,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

impl Comparison {
    /// The same between the negatives of both sides.
    pub(super) fn turned(self) -> Comparison {
        match self {
            Comparison::Less => Comparison::Greater,
            Comparison::Greater => Comparison::Less,
            Comparison::AtMost => Comparison::AtLeast,
            Comparison::AtLeast => Comparison::AtMost,
            same => same,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Scalar {
    pub(super) value: Value,
    pub(super) percent: bool,
    /// A unit, if it is a known one.
    pub(super) unit: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) enum Answer {
    Scalar(Scalar),
    /// A tuple, an interval, or what colons separate (`:`).
    Ordered {
        open: char,
        close: char,
        items: Vec<Answer>,
    },
    /// What commas or "and" separate: any order, each as often as it stands.
    List(Vec<Answer>),
    /// In braces: any order, repeated items count once.
    Set(Vec<Answer>),
    Union(Vec<Answer>),
    /// A set without another.
    Without(Box<Answer>, Box<Answer>),
    Matrix(Vec<Vec<Value>>),
    Relation {
        sides: Vec<Answer>,
        comparisons: Vec<Comparison>,
    },
    /// Words, in lower case, joined by spaces.
    Text(String),
}

/// Reads an answer.
pub(super) fn read(text: &str) -> Reading<Answer> {
    let tokens = tokens(text)?;
    let mut depth = 0i32;
    for token in &tokens {
        depth += step(token);
    }
    // Half-open intervals balance too: every bracket counts the same.
    if depth != 0 {
        return Err("brackets that do not match".into());
    }
    answer(&tokens, 0)
}

fn step(token: &Token) -> i32 {
    match token {
        Token::Symbol('(' | '[' | '{' | '⦃' | '⟦') => 1,
        Token::Symbol(')' | ']' | '}' | '⦄' | '⟧') => -1,
        _ => 0,
    }
}

/// Splits where `separates` holds outside of all brackets.
fn split(tokens: &[Token], separates: impl Fn(&Token) -> bool) -> Vec<&[Token]> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0);
    for (at, token) in tokens.iter().enumerate() {
        depth += step(token);
        if depth == 0 && separates(token) {
            parts.push(&tokens[start..at]);
            start = at + 1;
        }
    }
    parts.push(&tokens[start..]);
    parts
}

fn separates_items(token: &Token) -> bool {
    token.is(',') || token.is(';') || token.word().is_some_and(|word| word == "and" || word == "or")
}

/// What lies between the first and the last token, if these are a pair of brackets.
fn inside(tokens: &[Token]) -> Option<(char, char, &[Token])> {
    let [Token::Symbol(open), inner @ .., Token::Symbol(close)] = tokens else { return None };
    let pair = matches!((open, close), ('(' | '[', ')' | ']') | ('{', '}') | ('⦃', '⦄') | ('⟦', '⟧'));
    let mut depth = 0;
    for token in inner {
        depth += step(token);
        if depth < 0 {
            return None;
        }
    }
    (pair && depth == 0).then_some((*open, *close, inner))
}

fn trimmed(mut tokens: &[Token]) -> &[Token] {
    while let [rest @ .., last] = tokens
        && (last.is('.') || separates_items(last))
    {
        tokens = rest;
    }
    tokens
}

/// `Answer: 5` and `\text{Area} = 5`: words before the first colon are a label.
fn without_label(tokens: &[Token]) -> &[Token] {
    match tokens.iter().position(|token| token.is(':')) {
        Some(end) if end > 0 && tokens[..end].iter().all(|token| token.word().is_some()) => &tokens[end + 1..],
        _ => tokens,
    }
}

fn all(parts: &[&[Token]], depth: usize) -> Reading<Vec<Answer>> {
    let parts: Vec<_> = parts.iter().filter(|part| !trimmed(part).is_empty()).collect();
    if parts.len() > ITEMS {
        return Err(format!("more than {ITEMS} items"));
    }
    parts.into_iter().map(|part| answer(part, depth + 1)).collect()
}

fn answer(tokens: &[Token], depth: usize) -> Reading<Answer> {
    if depth > DEEPEST {
        return Err(format!("answers more than {DEEPEST} deep in each other"));
    }
    let tokens = without_label(trimmed(tokens));
    if tokens.is_empty() {
        return Err("nothing".into());
    }
    if let [Token::Text(text)] = tokens {
        return text_alone(text, depth);
    }
    if let Some(text) = words(tokens) {
        return Ok(Answer::Text(text));
    }
    if let Some(found) = in_brackets(tokens, depth)? {
        return Ok(found);
    }
    let parts = split(tokens, separates_items);
    if parts.len() > 1 {
        return list(&parts, depth);
    }
    let parts = split(tokens, |token| token.is('∈'));
    if let [left, right] = parts[..] {
        return if left.len() == 1 { answer(right, depth + 1) } else { Err("the left side of ∈".into()) };
    }
    if let Some(relation) = relation(tokens, depth)? {
        return Ok(relation);
    }
    let parts = split(tokens, |token| token.is('∪'));
    if parts.len() > 1 {
        return Ok(Answer::Union(all(&parts, depth)?));
    }
    if let [left, right] = split(tokens, |token| token.is('∖'))[..] {
        return Ok(Answer::Without(Box::new(answer(left, depth + 1)?), Box::new(answer(right, depth + 1)?)));
    }
    let parts = split(tokens, |token| token.is(':'));
    if parts.len() > 1 {
        return Ok(Answer::Ordered { open: ':', close: ':', items: all(&parts, depth)? });
    }
    if tokens.iter().any(|token| token.is('±') || token.is('∓')) {
        let upper = scalar(tokens, PlusMinus::Upper)?;
        return Ok(Answer::List(vec![Answer::Scalar(upper), Answer::Scalar(scalar(tokens, PlusMinus::Lower)?)]));
    }
    Ok(Answer::Scalar(scalar(tokens, PlusMinus::Upper)?))
}

/// `\text{5}` is 5, `\text{(A)}` the letter A, `\text{yes}` a word. What has digits must be readable.
fn text_alone(text: &str, depth: usize) -> Reading<Answer> {
    let inner = tokens(text).and_then(|inner| answer(&inner, depth + 1));
    if text.contains(|c: char| c.is_numeric()) {
        return inner;
    }
    match inner {
        Ok(Answer::Scalar(scalar)) if text.chars().filter(|c| c.is_alphabetic()).count() < 2 => {
            Ok(Answer::Scalar(scalar))
        }
        _ => Ok(Answer::Text(plain(text))),
    }
}

/// Letters and digits in lower case, one space where other characters stand.
pub(super) fn plain(text: &str) -> String {
    let lower = text.to_lowercase();
    lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// The words, if there is nothing but words, letters, hyphens and commas.
fn words(tokens: &[Token]) -> Option<String> {
    if tokens[0].is('-') {
        return None;
    }
    let mut all = String::new();
    let mut proper = false;
    let letters = tokens.iter().filter(|token| matches!(token, Token::Letter(_))).count();
    for token in tokens {
        match token {
            Token::Word(word) | Token::Text(word) if !word.contains(|c: char| c.is_numeric()) => {
                proper |= !(separates_items(token) && letters > 0);
                all.push_str(word);
            }
            Token::Letter(letter) => all.push_str(letter),
            Token::Symbol(',' | '-' | '\'' | '.' | '’') => {}
            _ => return None,
        }
        all.push(' ');
    }
    proper.then(|| plain(&all))
}

fn in_brackets(tokens: &[Token], depth: usize) -> Reading<Option<Answer>> {
    if tokens == [Token::Symbol('∅')] {
        return Ok(Some(Answer::Set(Vec::new())));
    }
    let Some((open, close, inner)) = inside(tokens) else { return Ok(None) };
    let parts = split(inner, |token| token.is(',') || token.is(';'));
    match open {
        '⟦' => Ok(Some(Answer::Matrix(matrix(inner)?))),
        '⦃' if split(inner, |token| token.is('|') || token.is(':')).len() == 2 => {
            Err("a set given by a condition".into())
        }
        '⦃' => Ok(Some(Answer::Set(all(&parts, depth)?))),
        '{' if parts.len() > 1 => Ok(Some(Answer::Set(all(&parts, depth)?))),
        '{' => answer(inner, depth + 1).map(Some),
        _ if parts.len() > 1 => Ok(Some(Answer::Ordered { open, close, items: all(&parts, depth)? })),
        _ if (open == '(') == (close == ')') => Ok(None),
        _ => Err("a half-open interval with one end".into()),
    }
}

fn matrix(tokens: &[Token]) -> Reading<Vec<Vec<Value>>> {
    let rows = split(tokens, |token| token.is('⏎'));
    let rows: Vec<_> = rows.into_iter().filter(|row| !row.is_empty()).collect();
    if rows.len() > ITEMS {
        return Err(format!("more than {ITEMS} rows"));
    }
    rows.into_iter()
        .map(|row| {
            let cells = split(row, |token| token.is('&'));
            cells.into_iter().map(|cell| expression(cell, PlusMinus::Upper)).collect()
        })
        .collect()
}

/// `n = 2, 3, 4` names its items once.
fn list(parts: &[&[Token]], depth: usize) -> Reading<Answer> {
    let named = |part: &[Token]| split(part, |token| comparison(token).is_some()).len() > 1;
    let first = parts[0];
    if let [Token::Letter(_), equal, rest @ ..] = first
        && (equal.is('=') || equal.is('∈'))
        && !parts[1..].iter().any(|part| named(part))
    {
        let mut parts = parts.to_vec();
        parts[0] = rest;
        return Ok(Answer::List(all(&parts, depth)?));
    }
    let mut items = all(parts, depth)?;
    if items.len() == 1 {
        return Ok(items.remove(0));
    }
    // ±1, 2 is a list of three.
    let flat = items.into_iter().flat_map(|item| match item {
        Answer::List(items) => items,
        item => vec![item],
    });
    Ok(Answer::List(flat.collect()))
}

fn comparison(token: &Token) -> Option<Comparison> {
    Some(match token {
        Token::Symbol('=') => Comparison::Equal,
        Token::Symbol('≠') => Comparison::Different,
        Token::Symbol('<') => Comparison::Less,
        Token::Symbol('≤') => Comparison::AtMost,
        Token::Symbol('>') => Comparison::Greater,
        Token::Symbol('≥') => Comparison::AtLeast,
        _ => return None,
    })
}

fn relation(tokens: &[Token], depth: usize) -> Reading<Option<Answer>> {
    let comparisons: Vec<_> = {
        let mut nested = 0;
        let outside = tokens.iter().filter(|token| {
            nested += step(token);
            nested == 0
        });
        outside.filter_map(comparison).collect()
    };
    if comparisons.is_empty() {
        return Ok(None);
    }
    let parts = split(tokens, |token| comparison(token).is_some());
    if parts.iter().any(|part| part.is_empty()) {
        return Err("a relation without a side".into());
    }
    // A label in words names what the right side is; so does f(x).
    if comparisons == [Comparison::Equal] && (parts[0].iter().any(|token| token.word().is_some()) || is_name(parts[0]))
    {
        return answer(parts[1], depth + 1).map(Some);
    }
    Ok(Some(Answer::Relation { sides: all(&parts, depth)?, comparisons }))
}

/// `f(x)`, `f(x, y)`.
fn is_name(tokens: &[Token]) -> bool {
    let [Token::Letter(name), Token::Symbol('('), arguments @ .., Token::Symbol(')')] = tokens else { return false };
    let single = arguments.len() == 1 && matches!(name.as_str(), "f" | "g" | "h" | "p" | "q" | "P" | "Q" | "F" | "G");
    (single || arguments.iter().any(|token| token.is(',')))
        && arguments.iter().all(|token| matches!(token, Token::Letter(_) | Token::Symbol(',')))
}

/// A value with what may stand behind it: words of scale, a percent sign, a unit.
fn scalar(tokens: &[Token], sign: PlusMinus) -> Reading<Scalar> {
    let end = tokens.iter().position(|token| token.word().is_some()).unwrap_or(tokens.len());
    let (mut value, mut rest) = (&tokens[..end], &tokens[end..]);
    if value.is_empty() {
        return Err("words before a value".into());
    }
    if value.last().is_some_and(|token| token.is('/') || token.is('*')) {
        value = &value[..value.len() - 1];
    }
    let mut percent = false;
    if let [before @ .., last] = value
        && last.is('%')
        && rest.is_empty()
    {
        (value, percent) = (before, true);
    }
    if let [number @ Token::Number(..), Token::Symbol('_'), base @ ..] = value
        && let [Token::Number(_, base)] | [Token::Symbol('{'), Token::Number(_, base), Token::Symbol('}')] = base
    {
        let value = expression(std::slice::from_ref(number), sign)?;
        return Ok(Scalar { value, percent: false, unit: Some(format!("base {base}")) });
    }
    let mut value = expression(value, sign)?;
    while let Some(by) = rest.first().and_then(Token::word).and_then(|word| scale(&word)) {
        value = value.times(&Value::whole(by))?;
        rest = &rest[1..];
    }
    let plain = |token: &Token| {
        token.word().is_some()
            || matches!(
                token,
                Token::Number(..)
                    | Token::Letter(_)
                    | Token::Symbol('^' | '/' | '*' | '{' | '}' | '-' | '.' | '(' | ')')
            )
    };
    if !rest.iter().all(plain) {
        return Err("more than a unit behind a value".into());
    }
    let unit = unit_of(rest)?;
    if unit.as_deref() == Some("percent") {
        return Ok(Scalar { value, percent: true, unit: None });
    }
    Ok(Scalar { value, percent, unit })
}
