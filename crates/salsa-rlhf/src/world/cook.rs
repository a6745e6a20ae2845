//! Two cooks: a perfect one, and a noisy one whose answers are the demonstrations.

use salsa_engine::random::Random;

use super::pantry::{Act, CLOSINGS, Family, Ingredient, NUMBERS, OPENINGS, SEASON, SERVE, Tone};
use super::request::{Request, Wish};
use super::slips::{Slip, Slips};
use super::split::fnv1a;
use super::wording::{enumerate, other_tone, pick};

/// An answer with gold reward 1, for every prompt of every split. Deterministic.
pub fn perfect(prompt: &str) -> String {
    cook(&Request::parse(prompt), &Slips::none(), &mut Random::new(fnv1a(prompt), 0))
}

/// An answer by the noisy cook, who makes each kind of mistake with a fixed probability, independent of the prompt.
///
/// So the mistakes depend on the samples and not on the prompts: a policy can learn to avoid them. On good days, one in
/// six, mistakes are rare; on the others an answer has several. The mean gold reward is about 0.6, and one answer in
/// eleven is above 0.95.
pub fn demonstration(prompt: &str, rng: &mut Random) -> String {
    let slips = Slips::draw(rng);
    cook(&Request::parse(prompt), &slips, rng)
}

/// Writes an answer to the request with these mistakes.
pub(super) fn cook(request: &Request, slips: &Slips, rng: &mut Random) -> String {
    let misread = misread(request, slips, rng);
    let mut steps = plan(&misread, slips, rng);
    spoil(&mut steps, slips, rng);
    let tone = misread.tone.unwrap_or_else(|| pick(&Tone::ALL, rng));
    let style = Style::of(&misread);
    let mut parts: Vec<String> = Vec::new();
    let courteous = tone == Tone::Formal && rng.uniform() < 0.3;
    let open = (tone != Tone::Plain && !courteous) || rng.uniform() < 0.5;
    if open || misread.wishes.contains(&Wish::Title) {
        parts.push(opening(&misread, tone, rng));
    }
    let mut number = 0;
    for (i, step) in steps.iter().enumerate() {
        let slipped = slips.has(Slip::Numbering) && i == steps.len() / 2;
        number += if slipped { 2 * rng.below(2) } else { 1 };
        let lead = if courteous && i == 0 { "kindly " } else { "" };
        parts.push(format!("{number}. {}.", capitalised(&format!("{lead}{}", step.text(style)))));
    }
    if !slips.has(Slip::NoClosing) {
        let fitting: Vec<&str> = CLOSINGS.iter().filter(|(t, _)| *t == tone).map(|(_, text)| *text).collect();
        parts.push(pick(&fitting, rng).to_owned());
    }
    parts.join(" ")
}

/// The request as misunderstood by a cook with these slips.
fn misread(request: &Request, slips: &Slips, rng: &mut Random) -> Request {
    let mut misread = request.clone();
    let tone = request.tone.unwrap_or_else(|| pick(&Tone::ALL, rng));
    misread.tone = Some(if slips.has(Slip::Tone) { other_tone(tone, rng) } else { tone });
    let steps = request.steps.unwrap_or_else(|| 3 + rng.below(2)).clamp(1, MOST_STEPS);
    misread.steps = Some(match (slips.has(Slip::StepCount), steps) {
        (false, _) => steps,
        (true, ..=2) => steps + 1,
        (true, _) => steps - 1 + 2 * rng.below(2),
    });
    if slips.has(Slip::Wish) {
        misread.wishes.clear();
    }
    if slips.has(Slip::Forget) && !misread.wanted.is_empty() {
        let lost = misread.wanted.remove(rng.below(misread.wanted.len()));
        misread.wishes.retain(|w| !matches!(w, Wish::First(i) | Wish::Last(i) if *i == lost));
    }
    if slips.has(Slip::Avoided) && !misread.avoided.is_empty() {
        misread.wanted.push(misread.avoided.remove(rng.below(misread.avoided.len())));
    }
    if slips.has(Slip::Method) {
        let others: Vec<Family> =
            Family::SEEN.into_iter().filter(|f| f.methods() != request.family.methods()).collect();
        misread.family = pick(&others, rng);
    }
    misread
}

/// The wording of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Full,
    Short,
}

impl Style {
    fn of(request: &Request) -> Style {
        if request.wishes.contains(&Wish::Short) { Style::Short } else { Style::Full }
    }
}

/// One step before it is worded.
#[derive(Clone, Debug)]
struct Step {
    verb: &'static str,
    /// Empty: everything (or nothing, for seasoning and serving).
    objects: Vec<&'static str>,
    with: Vec<&'static str>,
    tail: String,
}

impl Step {
    fn text(&self, style: Style) -> String {
        let plain = self.verb == SEASON || self.verb == SERVE;
        let mut text = self.verb.to_owned();
        match (style, self.objects.is_empty()) {
            (_, true) if plain => {}
            (_, true) => text += " everything",
            (Style::Full, _) => text += &format!(" the {}", enumerate(&self.objects, "and")),
            (Style::Short, _) => text += &format!(" {}", enumerate(&[&self.objects[..], &self.with].concat(), "and")),
        }
        if !self.with.is_empty() && (style == Style::Full || self.objects.is_empty()) {
            text += &format!(" with {}", enumerate(&self.with, "and"));
        }
        if !self.tail.is_empty() && (style == Style::Full || plain) {
            text += &format!(" {}", self.tail);
        }
        text
    }
}

/// Maximum number of steps, whatever the prompt asks.
const MOST_STEPS: usize = 9;

/// The steps of a good recipe for the request, as many as it asks for.
fn plan(request: &Request, slips: &Slips, rng: &mut Random) -> Vec<Step> {
    let total = request.steps.unwrap_or(3);
    let style = Style::of(request);
    let first = request.wishes.iter().find_map(|w| if let Wish::First(i) = w { Some(*i) } else { None });
    let last = request.wishes.iter().find_map(|w| if let Wish::Last(i) = w { Some(*i) } else { None });
    let last = last.filter(|_| total >= 3);
    let mut core: Vec<Ingredient> = request.wanted.iter().copied().filter(|&i| Some(i) != last).collect();
    rng.shuffle(&mut core);
    let extras = if slips.has(Slip::Spam) {
        4
    } else {
        usize::from(core.is_empty() || (style == Style::Full && rng.uniform() < 0.3))
    };
    let spare = spare_ingredients(request, rng);
    core.extend(spare.into_iter().take(extras));
    if let Some(i) = first {
        core.retain(|&c| c != i);
        core.insert(0, i);
    }
    let body = total.saturating_sub(1 + usize::from(last.is_some()));
    let mut steps = body_steps(request.family, &core, body, style, rng);
    if let Some(i) = last {
        steps.push(Step { verb: "add", objects: vec![i.name()], with: vec![], tail: String::new() });
    }
    steps.push(serving(request, rng));
    steps
}

/// `count` steps that prepare, combine and cook all of `core`, the first one with `core[0]`.
fn body_steps(family: Family, core: &[Ingredient], count: usize, style: Style, rng: &mut Random) -> Vec<Step> {
    if count == 0 {
        return Vec::new();
    }
    let names: Vec<&'static str> = core.iter().map(|i| i.name()).collect();
    let mix = count >= 2 && (count > 1 + core.len().min(2) || rng.uniform() < 0.4);
    let room = count - 1 - usize::from(mix);
    let prepare = room.min(core.len()).min(3);
    let season = room - prepare;
    let mut steps: Vec<Step> = core[..prepare].iter().map(|&i| preparation(i, rng)).collect();
    if mix {
        let verb = pick(&["mix", "stir", "combine"], rng);
        steps.push(together(verb, &names, pick(&["", "in a bowl", "well"], rng), style, rng));
    }
    let (verb, tail) = method(family, rng);
    let cooked = if mix { &[][..] } else { &names[..] };
    for k in 0..season {
        steps.push(if k % 2 == 0 { seasoning(rng) } else { together("combine", &[], "gently", style, rng) });
    }
    steps.push(together(verb, cooked, tail, style, rng));
    steps
}

fn preparation(ingredient: Ingredient, rng: &mut Random) -> Step {
    let verbs: Vec<&'static str> = ingredient.preparations().collect();
    let verb = pick(&verbs, rng);
    let tail = match verb {
        "rinse" | "drain" | "beat" | "crush" => pick(&["", "well"], rng),
        "chop" | "slice" | "grate" => pick(&["", "finely"], rng),
        _ => "",
    };
    Step { verb, objects: vec![ingredient.name()], with: vec![], tail: tail.to_owned() }
}

fn seasoning(rng: &mut Random) -> Step {
    let with = pick(&[&["salt"][..], &["pepper"], &["oil"], &["salt", "pepper"]], rng).to_vec();
    Step { verb: SEASON, objects: vec![], with, tail: String::new() }
}

/// One verb for all of `names`: "Bake the rice with peas and oil in the oven."; no names mean everything.
fn together(verb: &'static str, names: &[&'static str], tail: &str, style: Style, rng: &mut Random) -> Step {
    let cut = names.len().min(1 + rng.below(2));
    let mut with = names[cut..].to_vec();
    // A single ingredient cannot be mixed.
    let alone = names.len() == 1 && Act::of(verb) == Some(Act::Combine);
    if alone || (style == Style::Full && !names.is_empty() && rng.uniform() < 0.3) {
        with.push(pick(&["oil", "salt", "pepper", "water"], rng));
    }
    Step { verb, objects: names[..cut].to_vec(), with, tail: tail.to_owned() }
}

fn method(family: Family, rng: &mut Random) -> (&'static str, &'static str) {
    let verb = pick(family.methods(), rng);
    let tails: &[&'static str] = match verb {
        "bake" | "roast" => &["in the oven", "until golden", "in the oven until golden"],
        "fry" => &["in a pan", "until golden", "in a pan until golden"],
        "blend" | "mash" => &["until smooth", "in a bowl", "well"],
        "toss" => &["gently", "in a bowl", "well"],
        "simmer" | "boil" => &["until soft", "in a pot", "in a pot until soft"],
        "cook" | "warm" => &["in a pan", "until hot", "gently"],
        _ => &["on a plate", "in a bowl", "well"],
    };
    (verb, pick(tails, rng))
}

fn serving(request: &Request, rng: &mut Random) -> Step {
    let mut tail = pick(request.family.temperatures(), rng).to_owned();
    let style = Style::of(request);
    let guests = request.wishes.iter().find_map(|w| if let Wish::Serves(n) = w { NUMBERS.get(*n) } else { None });
    if style == Style::Full && rng.uniform() < 0.2 {
        tail += pick(&[" in a bowl", " on a plate"], rng);
    }
    match guests {
        Some(guests) if style == Style::Short => tail = format!("for {guests}"),
        Some(guests) => tail += &format!(" for {guests}"),
        None => {}
    }
    Step { verb: SERVE, objects: vec![], with: vec![], tail }
}

/// Ingredients of the family that are neither wanted nor forbidden, shuffled.
fn spare_ingredients(request: &Request, rng: &mut Random) -> Vec<Ingredient> {
    let family = match request.family {
        Family::Supper => Family::Dish,
        Family::Picnic => Family::Snack,
        family => family,
    };
    let mut spare: Vec<Ingredient> = Ingredient::all()
        .filter(|i| i.belongs_in(family) && !request.wanted.contains(i) && !request.avoided.contains(i))
        .collect();
    rng.shuffle(&mut spare);
    spare
}

/// Applies the mistakes that do not come from misreading the prompt.
fn spoil(steps: &mut [Step], slips: &Slips, rng: &mut Random) {
    if slips.has(Slip::Misfit)
        && let Some(step) = steps.iter_mut().find(|s| Act::of(s.verb) == Some(Act::Prepare))
    {
        step.verb = if step.verb == "grate" { "beat" } else { "grate" };
    }
    if slips.has(Slip::Order) && steps.len() >= 2 {
        let i = rng.below(steps.len() - 1);
        steps.swap(i, i + 1);
    }
    if slips.has(Slip::Repeat) && steps.len() >= 2 {
        let i = rng.below(steps.len() - 1);
        steps[i + 1] = steps[i].clone();
    }
}

fn opening(request: &Request, tone: Tone, rng: &mut Random) -> String {
    let fitting: Vec<(&str, char)> = OPENINGS.iter().filter(|(t, ..)| *t == tone).map(|&(_, l, m)| (l, m)).collect();
    let (lead, mark) = pick(&fitting, rng);
    let mut names: Vec<&str> = request.wanted.iter().map(|i| i.name()).collect();
    rng.shuffle(&mut names);
    names.truncate(2);
    if names.is_empty() {
        names.push(spare_ingredients(request, rng).first().map_or("salt", |i| i.name()));
    }
    format!("{lead} {} of {}{mark}", request.family.noun(), enumerate(&names, "and"))
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
