//! Rule rewards against TRL's own functions.

#[path = "golden/trl_rules.rs"]
mod golden;

use salsa_algo::rules::format::{Format, has_format};
use salsa_algo::rules::length::{CosineScaled, soft_overlong_punishment};
use salsa_algo::rules::repetition::repetition_penalty;

#[test]
fn format() {
    for &(text, expected) in golden::THINK {
        assert_eq!(f64::from(u8::from(has_format(text, Format::Think))), expected, "{text:?}");
    }
}

#[test]
fn overlong() {
    for &(length, limit, cache, expected) in golden::OVERLONG {
        assert_eq!(soft_overlong_punishment(length, limit, cache), expected, "{length} {limit} {cache}");
    }
}

#[test]
fn cosine() {
    for &(correct, length, max_length, [min_wrong, max_wrong, min_correct, max_correct], expected) in golden::COSINE {
        let scaled = CosineScaled { max_length, min_wrong, max_wrong, min_correct, max_correct };
        let found = if correct { scaled.correct(length) } else { scaled.wrong(length) };
        assert!((found - expected).abs() < 1e-14, "{correct} {length} {max_length}: {found}, TRL {expected}");
    }
}

#[test]
fn repetition() {
    for &(tokens, ngram, max_penalty, expected) in golden::REPETITION {
        assert_eq!(repetition_penalty(tokens, ngram, max_penalty), expected, "{tokens:?} {ngram}");
    }
}
