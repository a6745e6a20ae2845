//! Kitchen prose for pretraining: facts, notes with recipes, and questions without answers.
//!
//! All words of all splits occur, so a base model knows them; no out-of-distribution prompt has an answer.

use salsa_engine::random::Random;

use super::cook::demonstration;
use super::pantry::{Act, CLOSINGS, Family, Ingredient, METHOD, NUMBERS, OPENINGS, PREPARE, Tone};
use super::request::{Request, Wish};
use super::split::{Split, usual};
use super::wording::{Wording, enumerate, pick, render};

/// `n` pieces of kitchen prose: a pure function of its arguments.
pub fn pretrain_text(n: usize, seed: u64) -> Vec<String> {
    let mut rng = Random::new(seed, 16);
    (0..n).map(|_| piece(&mut rng)).collect()
}

fn piece(rng: &mut Random) -> String {
    match rng.below(20) {
        0..4 => facts(rng),
        4..6 => manners(rng),
        6..9 => questions(rng),
        _ => note(rng),
    }
}

/// A recipe under a heading in note form, by the noisy cook.
fn note(rng: &mut Random) -> String {
    let request = training_request(rng);
    let answer = demonstration(&render(&request, Wording::Everyday, rng), rng);
    format!("{} {answer}", heading(&request))
}

/// "Soup: rice and peas, no garlic, 3 steps, cheerful, title."
fn heading(request: &Request) -> String {
    let names = |list: &[Ingredient]| enumerate(&list.iter().map(|i| i.name()).collect::<Vec<_>>(), "and");
    let mut entries = vec![names(&request.wanted)];
    if !request.avoided.is_empty() {
        entries.push(format!("without {}", names(&request.avoided)));
    }
    entries.extend(request.steps.map(|n| format!("{n} steps")));
    entries.extend(request.tone.map(|t| t.word().to_owned()));
    entries.extend(request.wishes.iter().map(|wish| match wish {
        Wish::Title => "title".to_owned(),
        Wish::Serves(n) => format!("{} people", NUMBERS[*n]),
        Wish::Short => "short steps".to_owned(),
        Wish::First(i) => format!("start with {}", i.name()),
        Wish::Last(i) => format!("{} last", i.name()),
    }));
    format!("A note for a {}: {}.", request.family.noun(), entries.join(", "))
}

/// Prompts without answers. A quarter of them have the wording of the out-of-distribution prompts, and any ingredient
/// and family, but not the combinations in those prompts.
fn questions(rng: &mut Random) -> String {
    let mut request = training_request(rng);
    let wording = if rng.uniform() < 0.75 { Wording::Everyday } else { Wording::Unseen };
    if wording == Wording::Unseen && rng.uniform() < 0.5 {
        request.family = pick(&Family::HELD_OUT, rng);
    }
    render(&request, wording, rng)
}

/// How an ingredient is prepared, and in which dish it is used.
fn facts(rng: &mut Random) -> String {
    let ingredient = pick(&Ingredient::all().collect::<Vec<_>>(), rng);
    let name = ingredient.name();
    let verbs: Vec<&str> = ingredient.preparations().collect();
    let families: Vec<&str> = Family::SEEN.iter().filter(|&&f| ingredient.belongs_in(f)).map(|f| f.noun()).collect();
    let strange: Vec<&str> = PREPARE.iter().copied().filter(|v| !verbs.contains(v)).collect();
    let first = match rng.below(3) {
        0 => format!("Before cooking, {} the {name}.", enumerate(&verbs, "or")),
        1 => format!("A cook may {} the {name} but will not {} it.", enumerate(&verbs, "or"), pick(&strange, rng)),
        _ => format!("First {} the {name}, then cook it.", pick(&verbs, rng)),
    };
    let second = match rng.below(3) {
        0 => format!("The {name} is good in a {}.", pick(&families, rng)),
        1 => format!("A {} with {name} is easy to make.", pick(&families, rng)),
        _ => {
            let request = training_request(rng);
            let names: Vec<&str> = request.wanted.iter().map(|i| i.name()).collect();
            format!("A good {} has {}.", request.family.noun(), enumerate(&names, "and"))
        }
    };
    format!("{first} {second}")
}

/// How dishes are made, what tones sound like, and how recipes are structured.
fn manners(rng: &mut Random) -> String {
    let families: Vec<Family> = Family::SEEN.into_iter().chain(Family::HELD_OUT).collect();
    let family = pick(&families, rng);
    let tone = pick(&Tone::ALL, rng);
    match rng.below(5) {
        0 => format!("To make a {}, {} everything. Then serve.", family.noun(), enumerate(family.methods(), "or")),
        1 => {
            let closings: Vec<&str> = CLOSINGS.iter().filter(|c| c.0 == tone).map(|c| c.1).collect();
            format!("A {} cook ends with these words: {}", tone.word(), pick(&closings, rng))
        }
        2 => {
            let openings: Vec<&str> = OPENINGS.iter().filter(|o| o.0 == tone).map(|o| o.1).collect();
            format!("A {} cook begins with these words: {} {}", tone.word(), pick(&openings, rng), family.noun())
        }
        3 => {
            let n = 2 + rng.below(4);
            let numbers: Vec<String> = (1..=n).map(|i| format!("{i}.")).collect();
            format!("A recipe in {} steps has the numbers {}", NUMBERS[n], numbers.join(" "))
        }
        _ => {
            let (early, late) = (pick(&PREPARE, rng), pick(&METHOD, rng));
            debug_assert!(Act::of(early) < Act::of(late));
            format!("First {early}, then {late}, and serve at the end.")
        }
    }
}

/// A request of the training split.
fn training_request(rng: &mut Random) -> Request {
    loop {
        let request = usual(rng);
        if Split::of(&request) == Split::Train {
            return request;
        }
    }
}
