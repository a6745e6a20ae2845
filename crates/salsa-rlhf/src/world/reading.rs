//! Parses an answer: opening, numbered steps, closing, and how much of it is understood.
//!
//! The grammar of a step is a table of which kind of word may follow which ([`may_follow`]). A sentence that violates
//! it in places is still read, at a lower quality, so that partial progress is visible.

use super::pantry::{
    Act, CLOSINGS, Family, Ingredient, LEADS, MANNERS, NUMBERS, OPENINGS, PLACES, SEASON, STAPLES, STATES, Tone, tokens,
};

/// A parsed answer.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    /// The text before the first step, if it has the form of an opening.
    pub opening: Option<Opening>,
    /// The steps in the order of the text, numbered or not.
    pub steps: Vec<Step>,
    /// Closing sentences after the last step.
    pub closings: usize,
    /// Whether the text ends with a closing sentence.
    pub ends_with_closing: bool,
    /// The tone of each sentence.
    pub tones: Vec<Tone>,
    /// Every ingredient named anywhere, repetitions included.
    pub named: Vec<Ingredient>,
    /// Share of the words that belong to something understood, in [0, 1]; 0 for an empty text.
    pub sense: f64,
}

/// "Hooray, a lovely soup of rice and peas!"
#[derive(Clone, Debug)]
pub(super) struct Opening {
    pub family: Family,
    pub ingredients: Vec<Ingredient>,
}

/// "2. Mix the rice with oil."
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// The number before it, if any.
    pub number: Option<usize>,
    /// Its verb, lower case.
    pub verb: String,
    /// The act of the verb.
    pub act: Act,
    /// The ingredients it names, sorted, each once.
    pub ingredients: Vec<Ingredient>,
    /// All words of the step without its number, for comparing steps and counting words.
    pub words: Vec<String>,
    /// The number of servings, if given.
    pub serves: Option<usize>,
}

/// Parses an answer.
pub(super) fn read(response: &str) -> Reading {
    let tokens = tokens(response);
    let mut reading = Reading {
        opening: None,
        steps: Vec::new(),
        closings: 0,
        ends_with_closing: false,
        tones: Vec::new(),
        named: tokens.iter().filter_map(|t| Ingredient::named(t)).collect(),
        sense: 0.0,
    };
    let (mut understood, mut total) = (0.0, 0.0);
    for sentence in sentences(&tokens) {
        let weight = sentence.words.len().max(1) as f64;
        total += weight;
        understood += weight * reading.take(&sentence);
        reading.tones.push(sentence.tone());
    }
    reading.sense = if total > 0.0 { understood / total } else { 0.0 };
    reading
}

struct Sentence<'a> {
    number: Option<usize>,
    /// Words and commas.
    words: &'a [String],
    mark: Option<char>,
}

/// Splits at `.`, `!` and `?`. A numeral with a full stop before a sentence is its number.
fn sentences(tokens: &[String]) -> Vec<Sentence<'_>> {
    let mut sentences = Vec::new();
    let (mut start, mut number, mut i) = (0, None, 0);
    while i < tokens.len() {
        let mark = tokens[i].chars().next().filter(|c| matches!(c, '.' | '!' | '?'));
        if let Some(mark) = mark {
            let numeral = if mark == '.' && i == start + 1 { tokens[start].parse::<usize>().ok() } else { None };
            if numeral.is_some() && number.is_none() {
                number = numeral;
            } else {
                sentences.push(Sentence { number, words: &tokens[start..i], mark: Some(mark) });
                number = None;
            }
            start = i + 1;
        }
        i += 1;
    }
    if start < tokens.len() || number.is_some() {
        sentences.push(Sentence { number, words: &tokens[start..], mark: None });
    }
    sentences
}

impl Sentence<'_> {
    fn tone(&self) -> Tone {
        if self.mark == Some('!') {
            return Tone::Cheerful;
        }
        self.words.iter().map(|w| Tone::of(w)).find(|&t| t != Tone::Plain).unwrap_or(Tone::Plain)
    }

    /// Whether its words and mark equal those of `text`.
    fn is(&self, text: &str) -> bool {
        let wanted = tokens(text);
        let (mark, words) = wanted.split_last().expect("a closing has words");
        self.words == words && self.mark == mark.chars().next()
    }
}

impl Reading {
    /// Adds the sentence to the reading and returns how well it is understood, in [0, 1].
    fn take(&mut self, sentence: &Sentence<'_>) -> f64 {
        self.ends_with_closing = false;
        if let Some((step, quality)) = read_step(sentence) {
            self.steps.push(step);
            return if self.closings == 0 { quality } else { 0.5 * quality };
        }
        if sentence.number.is_some() {
            return 0.0;
        }
        if self.steps.is_empty() {
            let opening = read_opening(sentence);
            if self.opening.is_some() || opening.is_none() {
                return 0.0;
            }
            self.opening = opening;
            return 1.0;
        }
        if CLOSINGS.iter().any(|(_, text)| sentence.is(text)) {
            self.closings += 1;
            self.ends_with_closing = true;
            return if self.closings == 1 { 1.0 } else { 0.0 };
        }
        0.0
    }
}

/// `LEAD NOUN of A`, `... of A and B`, `... of A, B and C`.
fn read_opening(sentence: &Sentence<'_>) -> Option<Opening> {
    let words = sentence.words;
    let at = words.iter().position(|w| w == "of")?.checked_sub(1)?;
    let family = Family::named(&words[at])?;
    let lead = words[..at].to_vec();
    OPENINGS.iter().find(|(_, text, mark)| tokens(text) == lead && sentence.mark == Some(*mark))?;
    let rest = &words[at + 2..];
    let ingredients: Vec<Ingredient> = rest.iter().step_by(2).map_while(|w| Ingredient::named(w)).collect();
    let joints: Vec<&str> = rest.iter().skip(1).step_by(2).map(String::as_str).collect();
    let joined = match joints.split_last() {
        None => true,
        Some((last, commas)) => *last == "and" && commas.iter().all(|&c| c == ","),
    };
    let whole = !ingredients.is_empty() && rest.len() == 2 * ingredients.len() - 1 && joined;
    whole.then_some(Opening { family, ingredients })
}

/// Reads a step, if the sentence has a verb in the right place, and its quality in (0, 1]:
///
/// ```text
/// quality = (allowed transitions / transitions) * (fitting / named, for verbs that prepare: between 1/2 and 1)
/// ```
fn read_step(sentence: &Sentence<'_>) -> Option<(Step, f64)> {
    let words = sentence.words;
    let lead = usize::from(words.first().is_some_and(|w| LEADS.contains(&w.as_str())));
    let verb = words.get(lead)?;
    let act = Act::of(verb)?;
    let mut kinds = vec![Kind::Verb(act)];
    kinds[0] = if verb == SEASON { Kind::Season } else { kinds[0] };
    kinds.extend(words[lead + 1..].iter().map(|w| Kind::of(w)));
    kinds.push(if sentence.mark == Some('.') { Kind::End } else { Kind::Unknown });
    let transitions = kinds.len() - 1;
    let repeated = (lead + 1..words.len()).filter(|&i| is_thing(&words[i]) && words[lead + 1..i].contains(&words[i]));
    let allowed = kinds.windows(2).filter(|k| may_follow(k[0], k[1])).count().saturating_sub(repeated.count());
    let mut ingredients: Vec<Ingredient> = words.iter().filter_map(|w| Ingredient::named(w)).collect();
    ingredients.sort();
    ingredients.dedup();
    let fit = match act {
        Act::Prepare if !ingredients.is_empty() => {
            let fitting = ingredients.iter().filter(|i| i.preparations().any(|v| v == verb)).count();
            0.5 + 0.5 * fitting as f64 / ingredients.len() as f64
        }
        _ => 1.0,
    };
    let serves = match act {
        Act::Serve => words.windows(2).find(|w| w[0] == "for").and_then(|w| NUMBERS.iter().position(|&n| n == w[1])),
        _ => None,
    };
    let step =
        Step { number: sentence.number, verb: verb.clone(), act, ingredients, words: words[lead..].to_vec(), serves };
    Some((step, fit * allowed as f64 / transitions as f64))
}

fn is_thing(word: &str) -> bool {
    Ingredient::named(word).is_some() || STAPLES.contains(&word)
}

/// The kinds of words in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Verb(Act),
    Season,
    The,
    A,
    Thing,
    Everything,
    And,
    Comma,
    With,
    In,
    Place,
    Manner,
    Until,
    State,
    For,
    Number,
    End,
    Unknown,
}

impl Kind {
    fn of(word: &str) -> Kind {
        match word {
            "the" => Kind::The,
            "a" => Kind::A,
            "everything" => Kind::Everything,
            "and" => Kind::And,
            "," => Kind::Comma,
            "with" => Kind::With,
            "in" | "on" => Kind::In,
            "until" => Kind::Until,
            "for" => Kind::For,
            _ if is_thing(word) => Kind::Thing,
            _ if PLACES.contains(&word) => Kind::Place,
            _ if MANNERS.contains(&word) => Kind::Manner,
            _ if STATES.contains(&word) => Kind::State,
            _ if NUMBERS.contains(&word) => Kind::Number,
            _ => Kind::Unknown,
        }
    }
}

/// Whether a word of kind `next` may follow one of kind `this` in a step.
fn may_follow(this: Kind, next: Kind) -> bool {
    use Kind::*;
    match this {
        Verb(Act::Serve) => matches!(next, Manner | With | In | For | End),
        Verb(_) => matches!(next, The | Thing | Everything),
        Season => matches!(next, With),
        The => matches!(next, Thing | Place),
        A => matches!(next, Place),
        Thing => matches!(next, And | Comma | With | In | Until | Manner | For | End),
        Everything => matches!(next, With | In | Until | Manner | End),
        And | Comma | With => matches!(next, Thing),
        In => matches!(next, A | The),
        Place => matches!(next, Until | For | End),
        Manner => matches!(next, With | In | For | Until | End),
        Until => matches!(next, State),
        State | Number => matches!(next, End),
        For => matches!(next, Number),
        End | Unknown => false,
    }
}

#[cfg(test)]
mod tests;
