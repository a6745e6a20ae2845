//! The gold reward: how good an answer truly is, computed from prompt and answer alone.

use super::pantry::{Act, Ingredient, Tone};
use super::reading::{Reading, Step, read};
use super::request::{Request, Wish};

/// The gold reward of an answer and its parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GoldReward {
    /// In [0, 1].
    pub total: f64,
    /// The parts.
    pub parts: Parts,
}

/// The parts of a gold reward, each in [0, 1].
///
/// ```text
/// total = sense * freshness * sum(WEIGHTS[k] * part[k]) / sum(WEIGHTS[k])      over the parts k the prompt asks for
/// ```
///
/// The weighted parts measure how well the answer does what was asked. The two factors measure whether it is a recipe
/// at all: an empty answer, garbage or a copy of the prompt has `sense` near 0, and an answer that repeats everything
/// ten times has a `freshness` of a tenth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parts {
    /// Share of the words that belong to sentences of a recipe.
    pub sense: f64,
    /// Share of the steps that are not repetitions; less 0.15 for each unasked ingredient beyond two and for each
    /// ingredient and step beyond three that name it.
    pub freshness: f64,
    /// Share of the wanted ingredients that a step uses. `None`: nothing wanted.
    pub wanted: Option<f64>,
    /// Share of the forbidden ingredients that appear nowhere. `None`: nothing forbidden.
    pub avoided: Option<f64>,
    /// `max(0, 1 - 0.4 |steps - asked|)` times the share of steps that carry the number after
    /// that of the step before, the first one 1.
    pub steps: f64,
    /// `max(0, 1 - inversions / (steps - 1))`: prepare before combining, cooking after it, serving last.
    pub order: f64,
    /// 1 when a verb of the family's method is used, 0.3 for another method only, 0.7 for both.
    pub method: f64,
    /// How well the toned sentences match the tone.
    pub tone: f64,
    /// Half for a last step that serves, half for exactly one closing sentence at the very end.
    pub ending: f64,
    /// Mean over the wishes. `None`: no wishes.
    pub wishes: Option<f64>,
}

/// The weight of each part. They sum to 1.
pub const WEIGHTS: [(&str, f64); 8] = [
    ("wanted", 0.26),
    ("avoided", 0.10),
    ("steps", 0.18),
    ("order", 0.08),
    ("method", 0.10),
    ("tone", 0.12),
    ("ending", 0.08),
    ("wishes", 0.08),
];

/// Unasked ingredients that an answer may use freely.
const FREE_EXTRAS: usize = 2;
/// Steps that may name the same ingredient.
const FREE_MENTIONS: usize = 3;
/// The cost of each further ingredient or mention.
const SPAM_COST: f64 = 0.15;
/// Number of cheerful, or formal, sentences without penalty.
const TONE_LIMIT: usize = 3;

/// The gold reward of `response` as an answer to `prompt`, in [0, 1].
///
/// ```
/// use salsa_rlhf::world::gold_reward;
/// let prompt = "Please give me a dip with peas and lemon, in 3 steps.";
/// let good = "1. Rinse the peas. 2. Mash the peas with lemon. 3. Serve cold. Done.";
/// assert_eq!(gold_reward(prompt, good).total, 1.0);
/// assert_eq!(gold_reward(prompt, "").total, 0.0);
/// ```
pub fn gold_reward(prompt: &str, response: &str) -> GoldReward {
    let request = Request::parse(prompt);
    let reading = read(response);
    let asked = |condition: bool, part: f64| condition.then_some(part);
    let parts = Parts {
        sense: reading.sense,
        freshness: freshness(&request, &reading),
        wanted: asked(!request.wanted.is_empty(), wanted(&request, &reading)),
        avoided: asked(!request.avoided.is_empty(), avoided(&request, &reading)),
        steps: steps(&request, &reading),
        order: order(&reading),
        method: method(&request, &reading),
        tone: tone(&request, &reading),
        ending: ending(&reading),
        wishes: asked(!request.wishes.is_empty(), wishes(&request, &reading)),
    };
    GoldReward { total: parts.total(), parts }
}

impl Parts {
    /// The weighted parts by name, in the order of [`WEIGHTS`].
    pub fn weighted(&self) -> [(&'static str, Option<f64>); 8] {
        let values = [
            self.wanted,
            self.avoided,
            Some(self.steps),
            Some(self.order),
            Some(self.method),
            Some(self.tone),
            Some(self.ending),
            self.wishes,
        ];
        std::array::from_fn(|k| (WEIGHTS[k].0, values[k]))
    }

    fn total(&self) -> f64 {
        let (mut sum, mut weights) = (0.0, 0.0);
        for ((_, part), (_, weight)) in self.weighted().into_iter().zip(WEIGHTS) {
            if let Some(part) = part {
                sum += weight * part;
                weights += weight;
            }
        }
        // A sum of the weights in the same order: exactly 1 when every part is 1.
        self.sense * self.freshness * (sum / weights)
    }
}

fn freshness(request: &Request, reading: &Reading) -> f64 {
    let steps = &reading.steps;
    if steps.is_empty() {
        return 0.0;
    }
    let same = |a: &Step, b: &Step| a.verb == b.verb && a.ingredients == b.ingredients;
    let fresh = (0..steps.len()).filter(|&i| !steps[..i].iter().any(|earlier| same(earlier, &steps[i]))).count();
    let (mut extras, mut excess) = (0, 0);
    for ingredient in Ingredient::all() {
        let mentions = steps.iter().filter(|s| s.ingredients.contains(&ingredient)).count();
        excess += mentions.saturating_sub(FREE_MENTIONS);
        extras += usize::from(mentions > 0 && !request.wanted.contains(&ingredient));
    }
    let spam = extras.saturating_sub(FREE_EXTRAS) + excess;
    let fresh = fresh as f64 / steps.len() as f64;
    fresh * (1.0 - SPAM_COST * spam as f64).max(0.0)
}

fn wanted(request: &Request, reading: &Reading) -> f64 {
    let used = |i: &&Ingredient| reading.steps.iter().any(|s| s.ingredients.contains(i));
    share(request.wanted.iter().filter(used).count(), request.wanted.len())
}

fn avoided(request: &Request, reading: &Reading) -> f64 {
    let absent = |i: &&Ingredient| !reading.named.contains(i);
    share(request.avoided.iter().filter(absent).count(), request.avoided.len())
}

fn steps(request: &Request, reading: &Reading) -> f64 {
    let found = reading.steps.len();
    let off = match request.steps {
        Some(n) => found.abs_diff(n),
        None => found.abs_diff(found.clamp(2, 5)),
    };
    let follows = |i: usize| {
        let before = if i == 0 { Some(0) } else { reading.steps[i - 1].number };
        before.and_then(|n| n.checked_add(1)).is_some_and(|n| reading.steps[i].number == Some(n))
    };
    let numbered = (0..found).filter(|&i| follows(i)).count();
    (1.0 - 0.4 * off as f64).max(0.0) * share(numbered, found)
}

fn order(reading: &Reading) -> f64 {
    // Seasoning and combining may come before or after cooking.
    let rank = |step: &Step| match step.act {
        Act::Prepare => 0,
        Act::Combine | Act::Method => 1,
        Act::Serve => 2,
    };
    let ranks: Vec<usize> = reading.steps.iter().map(rank).collect();
    if ranks.len() < 2 {
        return 0.0;
    }
    let inversions: usize = (0..ranks.len()).map(|i| ranks[..i].iter().filter(|&&r| r > ranks[i]).count()).sum();
    (1.0 - inversions as f64 / (ranks.len() - 1) as f64).max(0.0)
}

fn method(request: &Request, reading: &Reading) -> f64 {
    let methods = request.family.methods();
    let of_family = |s: &&Step| methods.contains(&s.verb.as_str());
    let (own, other): (Vec<&Step>, Vec<&Step>) =
        reading.steps.iter().filter(|s| s.act == Act::Method).partition(of_family);
    match (own.is_empty(), other.is_empty()) {
        (false, true) => 1.0,
        (false, false) => 0.7,
        (true, false) => 0.3,
        (true, true) => 0.0,
    }
}

/// Cheerful or formal asked: two sentences in that tone give full marks, those in the opposite tone and those beyond
/// [`TONE_LIMIT`] dilute it. Plain asked: each sentence that is not plain halves it. Nothing asked: tones must not mix.
fn tone(request: &Request, reading: &Reading) -> f64 {
    let count = |tone: Tone| reading.tones.iter().filter(|&&t| t == tone).count();
    let (cheerful, formal) = (count(Tone::Cheerful), count(Tone::Formal));
    let met = |hits: usize, misses: usize| {
        let enough = share(hits.min(2), 2);
        let measured = (TONE_LIMIT as f64 / hits.max(1) as f64).min(1.0);
        enough * measured * share(hits, hits + misses)
    };
    match request.tone {
        Some(Tone::Cheerful) => met(cheerful, formal),
        Some(Tone::Formal) => met(formal, cheerful),
        Some(Tone::Plain) => 0.5f64.powi((cheerful + formal).min(64) as i32),
        None if cheerful + formal == 0 => 1.0,
        None => {
            let most = cheerful.max(formal);
            (TONE_LIMIT as f64 / most as f64).min(1.0) * share(most, cheerful + formal)
        }
    }
}

fn ending(reading: &Reading) -> f64 {
    let served = reading.steps.last().is_some_and(|s| s.act == Act::Serve);
    let closed = reading.ends_with_closing && reading.closings == 1;
    0.5 * f64::from(served) + 0.5 * f64::from(closed)
}

fn wishes(request: &Request, reading: &Reading) -> f64 {
    let met: f64 = request.wishes.iter().map(|&wish| wish_met(wish, request, reading)).sum();
    met / request.wishes.len().max(1) as f64
}

fn wish_met(wish: Wish, request: &Request, reading: &Reading) -> f64 {
    let steps = &reading.steps;
    match wish {
        Wish::Title => reading.opening.as_ref().map_or(0.0, |opening| {
            let named = opening.ingredients.iter().any(|i| request.wanted.contains(i));
            0.5 * f64::from(opening.family == request.family) + 0.5 * f64::from(named)
        }),
        Wish::Serves(n) => match steps.iter().find_map(|s| s.serves) {
            Some(found) if found == n => 1.0,
            Some(_) => 0.3,
            None => 0.0,
        },
        Wish::Short if steps.is_empty() => 0.0,
        Wish::Short => {
            let words: usize = steps.iter().map(|s| s.words.iter().filter(|w| *w != ",").count()).sum();
            (1.0 - (share(words, steps.len()) - 4.5) / 2.5).clamp(0.0, 1.0)
        }
        Wish::First(ingredient) => match steps.iter().position(|s| s.ingredients.contains(&ingredient)) {
            Some(at) => (1.0 - 0.5 * at as f64).max(0.0),
            None => 0.0,
        },
        Wish::Last(ingredient) => {
            // The last step before serving, or serving itself.
            let Some(last) = steps.iter().rposition(|s| s.act != Act::Serve) else { return 0.0 };
            let uses = |s: &Step| s.ingredients.contains(&ingredient);
            match (steps[last..].iter().any(uses), steps[..last].iter().any(uses)) {
                (true, false) => 1.0,
                (true, true) => 0.5,
                (false, _) => 0.0,
            }
        }
    }
}

/// `part / whole`, or 0 if `whole` is 0.
fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests;
