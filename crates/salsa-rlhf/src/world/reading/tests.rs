//! Steps and answers parsed by hand.

use super::*;

fn quality(step: &str) -> Option<f64> {
    let tokens = tokens(step);
    let sentences = sentences(&tokens);
    assert_eq!(sentences.len(), 1, "{step}");
    read_step(&sentences[0]).map(|(_, quality)| quality)
}

#[test]
fn quality_of_a_step() {
    let table = [
        ("1. Rinse the chickpeas.", Some(1.0)),
        ("1. Kindly mix the rice with lemon, peas and oil in a bowl.", Some(1.0)),
        ("1. Simmer everything in a pot until soft.", Some(1.0)),
        ("1. Season with salt and pepper.", Some(1.0)),
        ("1. Serve warm for two.", Some(1.0)),
        // milk cannot be grated: half
        ("1. Grate the milk.", Some(0.5)),
        // one of two fits: three quarters
        ("1. Peel the carrot and milk.", Some(0.75)),
        // mix|the, the|the, the|rice, rice|end: one of four is wrong
        ("1. Mix the the rice.", Some(0.75)),
        // mix|rice, rice|and, and|rice, rice|end: all allowed, but rice is repeated
        ("1. Mix rice and rice.", Some(0.75)),
        // no full stop: the last of three transitions is wrong
        ("1. Rinse the chickpeas", Some(2.0 / 3.0)),
        // mix|the, the|rice, rice|with, with|with, with|peas, peas|end: one of six
        ("1. Mix the rice with with peas.", Some(5.0 / 6.0)),
        // nothing to rinse
        ("1. Rinse.", Some(0.0)),
        ("1. The chickpeas rinse.", None),
        ("Please give me a recipe.", None),
    ];
    for (step, wanted) in table {
        assert_eq!(quality(step), wanted, "{step}");
    }
}

#[test]
fn takes_an_answer_apart() {
    let reading =
        read("Wow, a tasty dip of peas and lemon! 1. Mash the peas with lemon. 2. Serve cold for two. Enjoy!");
    let opening = reading.opening.expect("it has an opening");
    assert_eq!((opening.family, opening.ingredients.len()), (Family::Dip, 2));
    assert_eq!(reading.steps.iter().map(|s| s.number).collect::<Vec<_>>(), [Some(1), Some(2)]);
    assert_eq!(reading.steps[1].serves, Some(2));
    assert_eq!((reading.closings, reading.ends_with_closing, reading.sense), (1, true, 1.0));
    assert_eq!(reading.tones, [Tone::Cheerful, Tone::Plain, Tone::Plain, Tone::Cheerful]);
}

#[test]
fn never_panics_and_sense_stays_in_range() {
    for text in ["", ".", "1.", "1. 2. 3.", "!!!", "of", "soup of", "a soup of rice and", "1. serve for", "é 12. ,"] {
        let sense = read(text).sense;
        assert!((0.0..=1.0).contains(&sense), "{text:?} {sense}");
    }
}

#[test]
fn sense_by_hand() {
    let table = [
        ("A soup of rice. 1. Boil the rice. 2. Serve warm. Done.", 1.0),
        // the second opening, 4 of 14 words, is not understood
        ("A soup of rice. A soup of rice. 1. Boil the rice. 2. Serve warm. Done.", 10.0 / 14.0),
        // the second closing, 1 of 11
        ("A soup of rice. 1. Boil the rice. 2. Serve warm. Done. Done.", 10.0 / 11.0),
        // no closing: 2 of 10
        ("1. Boil the rice. 2. Serve warm. That is. 3. Add the rice.", 8.0 / 10.0),
        // the step after the closing, 3 of 9 words, counts half
        ("1. Boil the rice. 2. Serve warm. Done. 3. Fry the rice.", 7.5 / 9.0),
        ("Cook 3 kinds of hats!", 0.0),
    ];
    for (text, sense) in table {
        let found = read(text).sense;
        assert!((found - sense).abs() < 1e-12, "{text} {found} {sense}");
    }
}
