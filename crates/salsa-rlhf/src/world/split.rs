//! Assigns prompts to splits, and draws them.

use std::collections::BTreeSet;

use salsa_engine::random::Random;

use super::pantry::{Family, Ingredient, Tone};
use super::request::{Request, Wish};
use super::wording::{Wording, pick, render};

/// A part of the prompts. No request is in two splits, in any wording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// For training: 80 % of the everyday requests.
    Train,
    /// For choices made during training: 10 %.
    Validation,
    /// For the final numbers: 10 %.
    Test,
    /// Out of distribution: other wordings, families ([`Family::HELD_OUT`]) and pairs of ingredients, more constraints.
    Ood,
}

impl Split {
    /// The split of a request.
    pub fn of(request: &Request) -> Split {
        if Family::HELD_OUT.contains(&request.family) || has_held_out_pair(&request.wanted) {
            return Split::Ood;
        }
        match fnv1a(&request.key()) % 100 {
            0..80 => Split::Train,
            80..90 => Split::Validation,
            _ => Split::Test,
        }
    }
}

/// `n` distinct prompts of a split: a pure function of its arguments.
///
/// The first `m < n` of them equal `prompts(split, m, seed)`. Each split has at least tens of thousands of prompts;
/// with an `n` far above that the function does not return.
pub fn prompts(split: Split, n: usize, seed: u64) -> Vec<String> {
    distinct(split, n, &mut Random::new(seed, split as u64))
}

/// `n` distinct prompts of a split, drawn with this generator.
pub(super) fn distinct(split: Split, n: usize, rng: &mut Random) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut prompts = Vec::with_capacity(n);
    while prompts.len() < n {
        let prompt = draw(split, rng);
        if seen.insert(prompt.clone()) {
            prompts.push(prompt);
        }
    }
    prompts
}

/// One prompt of a split.
pub(super) fn draw(split: Split, rng: &mut Random) -> String {
    loop {
        let (request, wording) = match split {
            Split::Ood => (unusual(rng), Wording::Unseen),
            _ => (usual(rng), Wording::Everyday),
        };
        if Split::of(&request) == split {
            return render(&request, wording, rng);
        }
    }
}

/// An everyday request: 1-3 wanted, 0-2 forbidden, at most one wish and one wish about order.
pub(super) fn usual(rng: &mut Random) -> Request {
    let family = pick(&Family::SEEN, rng);
    let mut pool: Vec<Ingredient> = Ingredient::all().filter(|i| i.belongs_in(family)).collect();
    rng.shuffle(&mut pool);
    let wanted = pick(&[1, 2, 2, 3], rng);
    let avoided = pick(&[0, 1, 1, 2], rng);
    request(family, &pool, wanted, avoided, usize::from(rng.uniform() < 0.5), rng)
}

/// An unusual request: mostly held-out families, any combination of ingredients, up to four wanted and three forbidden,
/// one or two wishes.
fn unusual(rng: &mut Random) -> Request {
    let family = if rng.uniform() < 0.7 { pick(&Family::HELD_OUT, rng) } else { pick(&Family::SEEN, rng) };
    let mut pool: Vec<Ingredient> = Ingredient::all().collect();
    rng.shuffle(&mut pool);
    while !has_held_out_pair(&pool[..2]) {
        rng.shuffle(&mut pool);
    }
    let (wanted, avoided, wishes) = (2 + rng.below(3), 1 + rng.below(3), 1 + rng.below(2));
    request(family, &pool, wanted, avoided, wishes, rng)
}

fn request(
    family: Family,
    pool: &[Ingredient],
    wanted: usize,
    avoided: usize,
    wishes: usize,
    rng: &mut Random,
) -> Request {
    let (mut wanted, mut avoided) = (pool[..wanted].to_vec(), pool[wanted..wanted + avoided].to_vec());
    let steps = (rng.uniform() < 0.85).then(|| 2 + rng.below(4));
    let tone = (rng.uniform() < 0.75).then(|| pick(&Tone::ALL, rng));
    let mut kinds = [Wish::Title, Wish::Serves(2 + rng.below(4)), Wish::Short];
    rng.shuffle(&mut kinds);
    let mut wishes = kinds[..wishes].to_vec();
    if wanted.len() >= 2 && steps.is_none_or(|n| n >= 3) && rng.uniform() < 0.3 {
        wishes.push(pick(&[Wish::First(wanted[0]), Wish::Last(wanted[0])], rng));
    }
    wanted.sort();
    avoided.sort();
    wishes.sort();
    Request { family, wanted, avoided, steps, tone, wishes }
}

/// Whether the ingredients contain a pair that no everyday request wants together: one pair in eight.
fn has_held_out_pair(ingredients: &[Ingredient]) -> bool {
    let held_out = |a: &Ingredient, b: &Ingredient| {
        let (a, b) = (a.min(b), a.max(b));
        fnv1a(&format!("{}+{}", a.name(), b.name())).is_multiple_of(8)
    };
    ingredients.iter().enumerate().any(|(i, a)| ingredients[..i].iter().any(|b| held_out(a, b)))
}

/// The 64-bit FNV-1a hash with its high half folded into the low one, so that small moduli depend on all bits.
pub(super) fn fnv1a(text: &str) -> u64 {
    let hash =
        text.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    hash ^ (hash >> 32)
}
