//! Whether two answers are the same.

use super::answer::{Answer, Comparison, Scalar};
use super::function::{approximate, difference, is_opaque};
use super::rational::{Rational, Reading};
use super::value::{Atom, Monomial, Sum, Value, multiply};
use crate::random::uniform;

/// Functions without a normal form are compared at this many places, to this relative tolerance.
const PLACES: u64 = 8;
const TOLERANCE: f64 = 1e-10;

pub(super) fn equal(left: &Answer, right: &Answer) -> Reading<bool> {
    match (left, right) {
        (Answer::Scalar(left), Answer::Scalar(right)) => scalars(left, right),
        (Answer::Text(left), Answer::Text(right)) => Ok(left == right),
        (Answer::Matrix(left), Answer::Matrix(right)) => matrices(left, right),
        (Answer::Relation { sides, comparisons }, Answer::Relation { sides: others, comparisons: their }) => {
            relations(sides, comparisons, others, their)
        }
        (Answer::Relation { sides, comparisons }, other) | (other, Answer::Relation { sides, comparisons }) => {
            relation_and_other(sides, comparisons, other)
        }
        (
            Answer::Ordered { open, close, items },
            Answer::Ordered { open: their_open, close: their_close, items: others },
        ) => Ok(open == their_open && close == their_close && in_order(items, others)?),
        (Answer::Set(left), Answer::Set(right)) => Ok(subset(left, right)? && subset(right, left)?),
        (Answer::Set(left) | Answer::List(left), Answer::Set(right) | Answer::List(right)) => lists(left, right),
        (Answer::Set(items) | Answer::List(items), one) | (one, Answer::Set(items) | Answer::List(items))
            if items.len() == 1 =>
        {
            equal(&items[0], one)
        }
        (Answer::Union(left), Answer::Union(right)) => Ok(subset(left, right)? && subset(right, left)?),
        (Answer::Without(left, removed), Answer::Without(right, their)) => {
            Ok(equal(left, right)? && equal(removed, their)?)
        }
        _ => Ok(false),
    }
}

fn scalars(left: &Scalar, right: &Scalar) -> Reading<bool> {
    if let (Some(left), Some(right)) = (&left.unit, &right.unit)
        && left != right
    {
        return Ok(false);
    }
    if values(&left.value, &right.value)? {
        return Ok(true);
    }
    let hundredth = |value: &Value| value.over(&Value::whole(100));
    match (left.percent, right.percent) {
        (true, false) => values(&hundredth(&left.value)?, &right.value),
        (false, true) => values(&left.value, &hundredth(&right.value)?),
        _ => Ok(false),
    }
}

/// Exactly, except where a function without a normal form is part of it.
fn values(left: &Value, right: &Value) -> Reading<bool> {
    let difference = difference(left, right)?;
    if difference.is_empty() {
        return Ok(true);
    }
    if !is_opaque(left) && !is_opaque(right) {
        return Ok(false);
    }
    let mut seen = 0;
    for place in 0..PLACES {
        // Of both signs: |x| is not x.
        let sign = if place % 2 == 0 { 1.0 } else { -1.0 };
        let at = |name: &str| sign * (0.25 + 2.5 * uniform(hash(name), 0, place));
        let (sum, size) = approximate(&difference, &at);
        if !size.is_finite() {
            continue;
        }
        seen += 1;
        if sum.abs() > TOLERANCE * size {
            return Ok(false);
        }
    }
    if seen > 0 { Ok(true) } else { Err("no rule decides whether the two are equal".into()) }
}

/// FNV-1a.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn in_order(left: &[Answer], right: &[Answer]) -> Reading<bool> {
    if left.len() != right.len() {
        return Ok(false);
    }
    for (left, right) in left.iter().zip(right) {
        if !equal(left, right)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn subset(left: &[Answer], right: &[Answer]) -> Reading<bool> {
    for item in left {
        let mut found = false;
        for other in right {
            found = found || equal(item, other)?;
        }
        if !found {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Each item has a partner of its own. Items that name different variables need names on the other side, or its order.
fn lists(left: &[Answer], right: &[Answer]) -> Reading<bool> {
    if left.len() != right.len() {
        return Ok(false);
    }
    let (names, others) = (variables(left), variables(right));
    if names.windows(2).any(|pair| pair[0] != pair[1]) != others.windows(2).any(|pair| pair[0] != pair[1]) {
        return in_order(left, right);
    }
    let mut free: Vec<&Answer> = right.iter().collect();
    for item in left {
        let mut partner = None;
        for (at, other) in free.iter().enumerate() {
            if equal(item, other)? {
                partner = Some(at);
                break;
            }
        }
        let Some(partner) = partner else { return Ok(false) };
        free.remove(partner);
    }
    Ok(true)
}

/// The left sides of equations in a list.
fn variables(items: &[Answer]) -> Vec<Option<&Value>> {
    let mut names = Vec::with_capacity(items.len());
    for item in items {
        names.push(match item {
            Answer::Relation { sides, .. } => side(&sides[0]),
            _ => None,
        });
    }
    names
}

fn matrices(left: &[Vec<Value>], right: &[Vec<Value>]) -> Reading<bool> {
    if left.len() != right.len() {
        return Ok(false);
    }
    for (left, right) in left.iter().zip(right) {
        if left.len() != right.len() {
            return Ok(false);
        }
        for (left, right) in left.iter().zip(right) {
            if !values(left, right)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn is_variable(value: &Value) -> bool {
    let mut products = value.numerator.keys();
    let single = products.next().filter(|_| value.numerator.len() == 1);
    let atom = single.filter(|product| product.len() == 1).and_then(|product| product.keys().next());
    matches!(atom, Some(Atom::Variable(name)) if name != "∞")
}

fn side(answer: &Answer) -> Option<&Value> {
    match answer {
        Answer::Scalar(scalar) => Some(&scalar.value),
        _ => None,
    }
}

/// An equation of a variable, or of a tuple of variables, stands for its other side; an inequality of a variable is an interval.
fn relation_and_other(sides: &[Answer], comparisons: &[Comparison], other: &Answer) -> Reading<bool> {
    if comparisons.iter().all(|&comparison| comparison == Comparison::Equal) {
        // Besides the variable, each side must be the other answer: x = 10 / 2 = 5, 5 = x, 10 / 2 = 5.
        let named = |answer: &Answer| match answer {
            Answer::Ordered { items, .. } => items.iter().all(|item| side(item).is_some_and(is_variable)),
            one => side(one).is_some_and(is_variable),
        };
        let without = match sides {
            [first, rest @ ..] if named(first) => rest,
            [rest @ .., last] if named(last) => rest,
            all => all,
        };
        for side in without {
            if !equal(side, other)? {
                return Ok(false);
            }
        }
        return Ok(true);
    }
    match interval(sides, comparisons) {
        Some(interval) => equal(&interval, other),
        None => Ok(false),
    }
}

fn infinity(negative: bool) -> Answer {
    let infinity = Value::variable("∞");
    let value = if negative { infinity.negated() } else { infinity };
    Answer::Scalar(Scalar { value, percent: false, unit: None })
}

/// `x < 3`, `1 \le x < 2`.
fn interval(sides: &[Answer], comparisons: &[Comparison]) -> Option<Answer> {
    let upward = |comparison| match comparison {
        Comparison::Less => Some((true, false)),
        Comparison::AtMost => Some((true, true)),
        Comparison::Greater => Some((false, false)),
        Comparison::AtLeast => Some((false, true)),
        Comparison::Equal | Comparison::Different => None,
    };
    let bracket = |closed, open, close| if closed { close } else { open };
    let ordered = |low: Answer, low_closed, high: Answer, high_closed| Answer::Ordered {
        open: bracket(low_closed, '(', '['),
        close: bracket(high_closed, ')', ']'),
        items: vec![low, high],
    };
    let variable = |at: usize| side(&sides[at]).is_some_and(is_variable);
    match comparisons {
        [comparison] => {
            let (up, closed) = upward(*comparison)?;
            let (bound, below) = match (variable(0), variable(1)) {
                (true, false) => (sides[1].clone(), up),
                (false, true) => (sides[0].clone(), !up),
                _ => return None,
            };
            Some(match below {
                true => ordered(infinity(true), false, bound, closed),
                false => ordered(bound, closed, infinity(false), false),
            })
        }
        [first, second] if variable(1) => {
            let ((up, closed), (also_up, also_closed)) = (upward(*first)?, upward(*second)?);
            let (left, right) = (sides[0].clone(), sides[2].clone());
            match (up, also_up) {
                (true, true) => Some(ordered(left, closed, right, also_closed)),
                (false, false) => Some(ordered(right, also_closed, left, closed)),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Equations are the same if their polynomials are proportional; inequalities, if the factor is positive.
fn relations(left: &[Answer], by: &[Comparison], right: &[Answer], their: &[Comparison]) -> Reading<bool> {
    let named = |sides: &[Answer]| sides.iter().filter_map(side).find(|value| is_variable(value)).cloned();
    if let (Some(first), Some(second)) = (interval(left, by), interval(right, their)) {
        return Ok(named(left) == named(right) && equal(&first, &second)?);
    }
    let chain = |by: &[Comparison]| by.iter().all(|&comparison| comparison == Comparison::Equal);
    if chain(by) && chain(their) {
        let (own, others) = (&left[left.len() - 1], &right[right.len() - 1]);
        if equal(&left[0], &right[0])? && equal(own, others)? {
            return Ok(true);
        }
        let (Some(own), Some(others)) = (zero_form(&left[0], own)?, zero_form(&right[0], others)?) else {
            return Ok(false);
        };
        return Ok(factor(&own, &others)?.is_some());
    }
    if let ([comparison], [other]) = (by, their)
        && let (Some(own), Some(others)) = (zero_form(&left[0], &left[1])?, zero_form(&right[0], &right[1])?)
        && let Some(factor) = factor(&own, &others)?
    {
        return Ok(if factor.numerator > 0 { comparison == other } else { comparison.turned() == *other });
    }
    Ok(by == their && in_order(left, right)?)
}

/// What is compared with zero: the numerator of left minus right.
fn zero_form(left: &Answer, right: &Answer) -> Reading<Option<Sum>> {
    match (side(left), side(right)) {
        (Some(left), Some(right)) => Ok(Some(difference(left, right)?)),
        _ => Ok(None),
    }
}

/// The rational factor between two sums, if there is one.
fn factor(left: &Sum, right: &Sum) -> Reading<Option<Rational>> {
    let (Some((_, &own)), Some((_, &others))) = (left.first_key_value(), right.first_key_value()) else {
        return Ok((left == right).then_some(Rational::ONE));
    };
    let factor = own.times(others.inverse()?)?;
    let scaled = multiply(right, &Sum::from([(Monomial::new(), factor)]))?;
    Ok((scaled == *left).then_some(factor))
}
