//! Words requests in varied English. `Request::parse` reads every wording back.

use salsa_engine::random::Random;

use super::pantry::{Family, Ingredient, NUMBERS, Tone};
use super::request::{Request, Wish};

/// The set of templates of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wording {
    /// Those of the training, validation and test prompts.
    Everyday,
    /// Those of the out-of-distribution prompts.
    Unseen,
}

/// A prompt for this request.
pub(super) fn render(request: &Request, wording: Wording, rng: &mut Random) -> String {
    let mut sentences: Vec<String> = Vec::new();
    let mut clauses = String::new();
    if !request.avoided.is_empty() {
        let names = list(&request.avoided, "or", rng);
        if wording == Wording::Everyday && rng.uniform() < 0.5 {
            clauses += &format!(", {} {names}", pick(&["without", "but no"], rng));
        } else {
            sentences.push(format!("{} {names}.", pick(avoiding(wording), rng)));
        }
    }
    if let Some(n) = request.steps {
        let n = if rng.uniform() < 0.7 { n.to_string() } else { NUMBERS[n].to_owned() };
        if rng.uniform() < 0.6 {
            clauses += &format!(", in {n} steps");
        } else {
            sentences.push(fill(pick(counting(wording), rng), &n));
        }
    }
    if let Some(tone) = request.tone {
        sentences.push(fill(pick(sounding(wording), rng), tone.word()));
    }
    for &wish in &request.wishes {
        sentences.push(wished(wish, wording, rng));
    }
    rng.shuffle(&mut sentences);
    let opening = match wording {
        Wording::Everyday => everyday(request, &clauses, rng),
        Wording::Unseen => unseen(request, &clauses, rng),
    };
    sentences.insert(0, opening);
    sentences.join(" ")
}

fn everyday(request: &Request, clauses: &str, rng: &mut Random) -> String {
    let (noun, names) = (pick(nouns(request.family), rng), list(&request.wanted, "and", rng));
    match rng.below(8) {
        0 => format!("Please give me a {noun} with {names}{clauses}."),
        1 => format!("How do I make a {noun} with {names}{clauses}?"),
        2 => format!("I would like a {noun} that uses {names}{clauses}."),
        3 => format!("Can you suggest a {noun} from {names}{clauses}?"),
        4 => format!("Tell me how to prepare a {noun} using {names}{clauses}."),
        5 => format!("Write a {noun} with {names}{clauses}."),
        6 => format!("What is a good {noun} with {names}{clauses}?"),
        _ => format!("I have {names}. What {noun} can I make{clauses}?"),
    }
}

fn unseen(request: &Request, clauses: &str, rng: &mut Random) -> String {
    let (noun, names) = (request.family.noun(), list(&request.wanted, "and", rng));
    let choice = rng.below(2);
    match (request.family, choice) {
        (Family::Supper, 0) => format!("My fridge still holds {names}. Turn these leftovers into a supper{clauses}."),
        (Family::Supper, _) => format!("Yesterday left me {names}, so make a supper of it{clauses}."),
        (Family::Picnic, 0) => format!("We pack a picnic basket and it should hold {names}{clauses}."),
        (Family::Picnic, _) => format!("Our picnic by the lake needs {names}{clauses}."),
        (_, 0) => format!("Imagine a {noun} built around {names}{clauses}."),
        (_, _) => format!("Could a hungry cook turn {names} into a {noun}{clauses}?"),
    }
}

/// The names of a family in everyday prompts. Each contains a noun specific to it, or none for a dish.
fn nouns(family: Family) -> &'static [&'static str] {
    match family {
        Family::Dish => &["dish", "recipe", "warm dish", "dinner"],
        Family::Dip => &["dip", "creamy dip", "party dip"],
        Family::Salad => &["salad", "fresh salad", "green salad"],
        Family::Soup => &["soup", "hot soup", "soup recipe"],
        Family::Breakfast => &["breakfast", "quick breakfast", "breakfast recipe"],
        Family::Snack => &["snack", "quick snack", "small snack"],
        Family::Supper => &["supper"],
        Family::Picnic => &["picnic"],
    }
}

fn avoiding(wording: Wording) -> &'static [&'static str] {
    match wording {
        Wording::Everyday => &["Leave out the", "I do not eat", "Please avoid", "Skip the"],
        Wording::Unseen => &["My guest is allergic to", "Nobody here likes", "Ban the"],
    }
}

fn counting(wording: Wording) -> &'static [&'static str] {
    match wording {
        Wording::Everyday => &["Use {} steps.", "It should take {} steps.", "Write {} steps."],
        Wording::Unseen => &["Exactly {} steps, thank you.", "Limit yourself to {} steps."],
    }
}

fn sounding(wording: Wording) -> &'static [&'static str] {
    match wording {
        Wording::Everyday => &["Keep it {}.", "Make it sound {}.", "Use a {} tone.", "Please be {}."],
        Wording::Unseen => &["Today I am in a {} mood.", "Let every line sound {}."],
    }
}

fn wished(wish: Wish, wording: Wording, rng: &mut Random) -> String {
    let everyday = wording == Wording::Everyday;
    let (templates, slot): (&[&str], &str) = match wish {
        Wish::Title if everyday => (&["Give it a title.", "I want a title."], ""),
        Wish::Title => (&["Put a title on top."], ""),
        Wish::Serves(n) if everyday => (&["It is for {} people.", "Make it for {} people."], NUMBERS[n]),
        Wish::Serves(n) => (&["A table of {} people waits."], NUMBERS[n]),
        Wish::Short if everyday => (&["Be brief.", "Keep the steps short."], ""),
        Wish::Short => (&["Short lines suit me."], ""),
        Wish::First(i) if everyday => (&["Start with the {}.", "Begin with the {}."], i.name()),
        Wish::First(i) => (&["The {} should begin it all."], i.name()),
        Wish::Last(i) if everyday => (&["Add the {} last.", "The {} comes last."], i.name()),
        Wish::Last(i) => (&["Save the {} for last."], i.name()),
    };
    fill(pick(templates, rng), slot)
}

/// "rice", "rice and peas", "rice, peas and corn", in random order.
fn list(ingredients: &[Ingredient], joint: &str, rng: &mut Random) -> String {
    let mut names: Vec<&str> = ingredients.iter().map(|i| i.name()).collect();
    rng.shuffle(&mut names);
    enumerate(&names, joint)
}

/// "rice", "rice and peas", "rice, peas and corn".
pub(super) fn enumerate(names: &[&str], joint: &str) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [rest @ .., last] => format!("{} {joint} {last}", rest.join(", ")),
    }
}

fn fill(template: &str, slot: &str) -> String {
    template.replacen("{}", slot, 1)
}

/// One of the options, all equally likely.
pub(super) fn pick<T: Copy>(options: &[T], rng: &mut Random) -> T {
    options[rng.below(options.len())]
}

/// A tone other than this one.
pub(super) fn other_tone(tone: Tone, rng: &mut Random) -> Tone {
    let others: Vec<Tone> = Tone::ALL.into_iter().filter(|&t| t != tone).collect();
    pick(&others, rng)
}
