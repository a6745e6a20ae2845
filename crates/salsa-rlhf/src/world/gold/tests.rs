//! Gold rewards that can be checked by hand.

use super::*;

const PROMPT: &str = "Please give me a dish with chickpeas and lemon, without garlic, in 3 steps. Keep it cheerful.";

/// The sum of the weights that apply to `PROMPT`: all but the wishes.
const ASKED: f64 = 0.92;

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-12
}

#[test]
fn hand_written_answers() {
    let table = [
        // fulfils the whole request
        (
            "Hooray, a lovely dish of chickpeas and lemon! 1. Rinse the chickpeas. 2. Bake the chickpeas with lemon and oil. 3. Serve warm. Enjoy!",
            1.0,
        ),
        // no lemon: wanted 1/2
        (
            "Hooray, a lovely dish of chickpeas! 1. Rinse the chickpeas. 2. Bake the chickpeas with oil. 3. Serve warm. Enjoy!",
            1.0 - 0.26 * 0.5 / ASKED,
        ),
        // garlic: avoided 0
        (
            "Hooray, a lovely dish of chickpeas! 1. Rinse the chickpeas. 2. Bake the chickpeas with lemon and garlic. 3. Serve warm. Enjoy!",
            1.0 - 0.10 / ASKED,
        ),
        // two steps for three: steps 0.6
        (
            "Hooray, a lovely dish of chickpeas! 1. Bake the chickpeas with lemon. 2. Serve warm. Enjoy!",
            1.0 - 0.18 * 0.4 / ASKED,
        ),
        // numbers 1, 2, 2: steps 2/3
        (
            "Hooray, a lovely dish of chickpeas! 1. Rinse the chickpeas. 2. Bake the chickpeas with lemon. 2. Serve warm. Enjoy!",
            1.0 - 0.18 / 3.0 / ASKED,
        ),
        // numbers 1, 3, 4: steps 2/3
        (
            "Hooray, a lovely dish of chickpeas! 1. Rinse the chickpeas. 3. Bake the chickpeas with lemon. 4. Serve warm. Enjoy!",
            1.0 - 0.18 / 3.0 / ASKED,
        ),
        // baked before rinsed: one inversion of two, order 1/2
        (
            "Hooray, a lovely dish of chickpeas! 1. Bake the chickpeas with lemon. 2. Rinse the chickpeas. 3. Serve warm. Enjoy!",
            1.0 - 0.08 * 0.5 / ASKED,
        ),
        // simmered: method 0.3
        (
            "Hooray, a lovely dish of chickpeas! 1. Rinse the chickpeas. 2. Simmer the chickpeas with lemon. 3. Serve warm. Enjoy!",
            1.0 - 0.10 * 0.7 / ASKED,
        ),
        // one cheerful sentence of two: tone 1/2
        (
            "A dish of chickpeas. 1. Rinse the chickpeas. 2. Bake the chickpeas with lemon. 3. Serve warm. Enjoy!",
            1.0 - 0.12 * 0.5 / ASKED,
        ),
        // no closing: ending 1/2, and one cheerful sentence of two: tone 1/2
        (
            "Hooray, a lovely dish of chickpeas! 1. Rinse the chickpeas. 2. Bake the chickpeas with lemon. 3. Serve warm.",
            1.0 - (0.08 * 0.5 + 0.12 * 0.5) / ASKED,
        ),
        // the same step twice: 3 of 4 fresh, and four steps for three: steps 0.6
        (
            "Hooray, a lovely dish of chickpeas! 1. Rinse the chickpeas. 2. Rinse the chickpeas. 3. Bake the chickpeas with lemon. 4. Serve warm. Enjoy!",
            0.75 * (1.0 - 0.18 * 0.4 / ASKED),
        ),
        // four unwanted ingredients: two too many, 0.3 off
        (
            "Hooray, a lovely dish of chickpeas! 1. Rinse the chickpeas. 2. Bake the chickpeas with lemon, corn, peas, rice and tofu. 3. Serve warm. Enjoy!",
            0.7,
        ),
        ("", 0.0),
        ("Enjoy! Enjoy! Enjoy!", 0.0),
        (PROMPT, 0.0),
    ];
    for (response, wanted) in table {
        let gold = gold_reward(PROMPT, response);
        assert!(near(gold.total, wanted), "{response}\n{gold:#?}\nwanted {wanted}");
    }
}

#[test]
fn wishes_by_hand() {
    let table = [
        ("Give it a title.", "A soup of rice. 1. Boil the rice. 2. Serve warm. Done.", 1.0),
        ("Give it a title.", "A dip of rice. 1. Boil the rice. 2. Serve warm. Done.", 0.5),
        ("Give it a title.", "1. Boil the rice. 2. Serve warm. Done.", 0.0),
        ("It is for two people.", "1. Boil the rice. 2. Serve warm for two. Done.", 1.0),
        ("It is for two people.", "1. Boil the rice. 2. Serve warm for four. Done.", 0.3),
        // words 3 and 2: mean 2.5
        ("Be brief.", "1. Boil the rice. 2. Serve warm. Done.", 1.0),
        // words 9 and 2: mean 5.5, 1 above 4.5
        ("Be brief.", "1. Boil the rice in a pot until soft and. 2. Serve warm. Done.", 0.6),
        ("Start with the peas.", "1. Rinse the peas. 2. Boil the rice with peas. 3. Serve warm. Done.", 1.0),
        ("Start with the peas.", "1. Rinse the rice. 2. Boil the rice with peas. 3. Serve warm. Done.", 0.5),
        ("Add the peas last.", "1. Boil the rice. 2. Add the peas. 3. Serve warm. Done.", 1.0),
        ("Add the peas last.", "1. Rinse the peas. 2. Boil the rice with peas. 3. Serve warm. Done.", 0.5),
        ("Add the peas last.", "1. Add the peas. 2. Boil the rice. 3. Serve warm. Done.", 0.0),
    ];
    for (wish, response, wanted) in table {
        let prompt = format!("Write a soup with rice and peas. {wish}");
        let found = gold_reward(&prompt, response).parts.wishes.expect("there is a wish");
        assert!(near(found, wanted), "{wish} {response} {found} {wanted}");
    }
}

#[test]
fn tones_by_hand() {
    let steps = "1. Boil the rice. 2. Serve warm.";
    let table = [
        ("cheerful", "Wow, a tasty soup of rice!", "Enjoy!", 1.0),
        ("cheerful", "A soup of rice.", "Done.", 0.0),
        // one cheerful, one formal: 1/2 enough, 1/2 of the tone
        ("cheerful", "Wow, a tasty soup of rice!", "With kind regards.", 0.25),
        // six cheerful sentences, of which three count: 3/6
        ("cheerful", "Wow, a tasty soup of rice!", "Enjoy! Enjoy! Enjoy! Enjoy! Enjoy!", 0.5),
        ("formal", "We present a soup of rice.", "With kind regards.", 1.0),
        ("plain", "A soup of rice.", "Done.", 1.0),
        ("plain", "Wow, a tasty soup of rice!", "Enjoy!", 0.25),
    ];
    for (asked, opening, closing, wanted) in table {
        let prompt = format!("Write a soup with rice. Keep it {asked}.");
        let found = gold_reward(&prompt, &format!("{opening} {steps} {closing}")).parts.tone;
        assert!(near(found, wanted), "{asked} {opening} {closing} {found} {wanted}");
    }
}

#[test]
fn weights_sum_to_one() {
    assert!(near(WEIGHTS.iter().map(|(_, w)| w).sum(), 1.0));
}

#[test]
fn repetition_without_end_pays_nothing() {
    let spam = "1. Bake the chickpeas with lemon. ".repeat(40);
    assert!(gold_reward(PROMPT, &spam).total < 0.02);
    assert!(gold_reward(PROMPT, &"chickpeas lemon ".repeat(40)).total == 0.0);
    assert!(gold_reward(PROMPT, "1. 2. 3.").total == 0.0);
}

#[test]
fn parts_by_hand() {
    const ANY: &str = "Write a soup with rice.";
    type Part = fn(&Parts) -> f64;
    let table: [(&str, &str, Part, f64); 11] = [
        // simmered and baked
        (ANY, "1. Simmer the rice. 2. Bake everything. 3. Serve warm. Done.", |p| p.method, 0.7),
        (ANY, "1. Rinse the rice. 2. Serve warm. Done.", |p| p.method, 0.0),
        // rice in four steps, one more than three
        (
            ANY,
            "1. Rinse the rice. 2. Mix the rice. 3. Boil the rice. 4. Add the rice. 5. Serve warm. Done.",
            |p| p.freshness,
            0.85,
        ),
        // one closing, but not at the end
        (ANY, "1. Boil the rice. 2. Serve warm. Done. Hello.", |p| p.ending, 0.5),
        // two closings
        (ANY, "1. Boil the rice. 2. Serve warm. Done. Done.", |p| p.ending, 0.5),
        // the cook may choose, from two to five: six is one too many, one is one too few
        (ANY, "1. Boil the rice.", |p| p.steps, 0.6),
        (ANY, "1. Boil rice. 2. Add oil. 3. Add rice. 4. Mix rice. 5. Mix oil. 6. Serve warm.", |p| p.steps, 0.6),
        // no tone asked: any is accepted, but they must not mix (2 cheerful, 1 formal), at most three (4 cheerful)
        (ANY, "Wow, a tasty soup of rice! 1. Boil the rice. Enjoy!", |p| p.tone, 1.0),
        (ANY, "Wow, a tasty soup of rice! 1. Kindly boil the rice. Enjoy!", |p| p.tone, 2.0 / 3.0),
        (ANY, "Wow, a tasty soup of rice! 1. Boil the rice. Enjoy! Enjoy! Enjoy!", |p| p.tone, 0.75),
        // one of the two forbidden
        (
            "Write a soup with rice, but no corn or peas.",
            "1. Boil the rice with corn. 2. Serve warm.",
            |p| p.avoided.expect("two are forbidden"),
            0.5,
        ),
    ];
    for (prompt, response, part, wanted) in table {
        let found = part(&gold_reward(prompt, response).parts);
        assert!(near(found, wanted), "{prompt} {response} {found} {wanted}");
    }
}
