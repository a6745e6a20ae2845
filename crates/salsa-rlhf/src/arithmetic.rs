//! A built-in task whose answers can be checked: word problems of several additions and subtractions, for reinforcement
//! learning from a rule instead of a reward model.
//!
//! ```text
//! question   Mia has 7 shells. She finds 2 more. She gives 3 away. How many shells does she have now?
//! worked     7 + 2 = 9. 9 - 3 = 6. #### 6
//! direct     #### 6
//! ```
//!
//! Demonstrations are of both kinds. A small model seldom guesses the number directly, and seldom goes wrong step by step,
//! so what reinforcement learning can find is to work it out.
//!
//! Everything is a pure function of its arguments and of the generator passed in: the same seed gives the same bytes.
use std::{collections::BTreeSet, fs, path::Path};

use anyhow::Context;
use salsa_engine::random::Random;
use serde_json::json;

use crate::{
    data::bucket,
    world::{message, write_lines},
};

/// Numbers of records that [`write()`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Texts in `pretrain.jsonl`.
    pub pretrain: usize,
    /// Demonstrations in `sft.jsonl`.
    pub sft: usize,
    /// Prompts in `prompts_train.jsonl`.
    pub prompts_train: usize,
    /// Prompts in `prompts_validation.jsonl`.
    pub prompts_validation: usize,
    /// Prompts in `prompts_test.jsonl`.
    pub prompts_test: usize,
    /// Prompts in `prompts_ood.jsonl`.
    pub prompts_ood: usize,
}

/// A word problem: a number and its changes. All numbers on the way are from 0 to [`LARGEST`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    person: usize,
    item: usize,
    start: i64,
    changes: Vec<Change>,
}

/// A change: its verb, and its amount, from 1 to [`LARGEST_CHANGE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    verb: usize,
    amount: i64,
}

/// The largest number of a problem.
pub const LARGEST: i64 = 9;

/// The largest amount of a change.
pub const LARGEST_CHANGE: i64 = 5;

/// Steps of the problems of training, validation and test.
const STEPS: [u64; 2] = [2, 3];

/// Steps of the problems out of distribution.
const MORE_STEPS: [u64; 2] = [4, 5];

/// Names with their pronouns.
const PEOPLE: [(&str, &str); 8] = [
    ("Mia", "She"),
    ("Tom", "He"),
    ("Ana", "She"),
    ("Ben", "He"),
    ("Zoe", "She"),
    ("Max", "He"),
    ("Lea", "She"),
    ("Sam", "He"),
];

const ITEMS: [&str; 8] = ["shells", "coins", "cards", "books", "pens", "stones", "cups", "seeds"];

/// What happens to the items, before and behind the amount, and its sign.
const VERBS: [(&str, &str, i64); 8] = [
    ("finds", "more", 1),
    ("buys", "more", 1),
    ("gets", "as a gift", 1),
    ("wins", "in a game", 1),
    ("loses", "of them", -1),
    ("gives", "away", -1),
    ("sells", "to a friend", -1),
    ("breaks", "by accident", -1),
];

/// Random streams of the data sets ("ARITH" in ASCII, then room for a counter).
const STREAM: u64 = 0x4152_4954_4800_0000;

impl Problem {
    /// A problem with so many changes.
    pub fn random(steps: u64, rng: &mut Random) -> Problem {
        let mut below = |n: usize| (rng.uniform() * n as f64) as usize;
        let (person, item, start) = (below(PEOPLE.len()), below(ITEMS.len()), below(LARGEST as usize + 1) as i64);
        let (mut total, mut changes) = (start, Vec::new());
        while (changes.len() as u64) < steps {
            let change = Change { verb: below(VERBS.len()), amount: 1 + below(LARGEST_CHANGE as usize) as i64 };
            let next = total + change.signed();
            if (0..=LARGEST).contains(&next) {
                total = next;
                changes.push(change);
            }
        }
        Problem { person, item, start, changes }
    }

    /// The question.
    pub fn question(&self) -> String {
        let (name, pronoun) = PEOPLE[self.person];
        let item = ITEMS[self.item];
        let mut text = format!("{name} has {} {item}.", self.start);
        for change in &self.changes {
            let (verb, rest, _) = VERBS[change.verb];
            text += &format!(" {pronoun} {verb} {} {rest}.", change.amount);
        }
        let pronoun = pronoun.to_lowercase();
        text + &format!(" How many {item} does {pronoun} have now?")
    }

    /// The answer.
    pub fn answer(&self) -> i64 {
        self.start + self.changes.iter().map(|change| change.signed()).sum::<i64>()
    }

    /// The answer with all steps to it.
    pub fn worked(&self) -> String {
        format!("{} {}", self.steps(), self.direct())
    }

    /// The answer alone.
    pub fn direct(&self) -> String {
        format!("#### {}", self.answer())
    }

    /// The steps alone.
    fn steps(&self) -> String {
        let mut total = self.start;
        let step = |change: &Change| {
            let before = total;
            total += change.signed();
            let sign = if change.signed() < 0 { '-' } else { '+' };
            format!("{before} {sign} {} = {total}.", change.amount)
        };
        self.changes.iter().map(step).collect::<Vec<_>>().join(" ")
    }
}

impl Change {
    fn signed(self) -> i64 {
        VERBS[self.verb].2 * self.amount
    }
}

/// The answer to a question, parsed from its text: the first number, changed by those behind a verb. `None` if there is no
/// number.
///
/// ```
/// use salsa_rlhf::arithmetic::answer_to;
/// let question = "Mia has 7 shells. She finds 2 more. She gives 3 away. How many shells does she have now?";
/// assert_eq!(answer_to(question), Some(6));
/// assert_eq!(answer_to("How many shells does she have now?"), None);
/// ```
pub fn answer_to(question: &str) -> Option<i64> {
    let (mut total, mut sign) = (None, 1);
    for word in question.split_whitespace() {
        if let Some((_, _, of_verb)) = VERBS.iter().find(|(verb, ..)| *verb == word) {
            sign = *of_verb;
        } else if let Ok(number) = word.trim_end_matches(['.', ',']).parse::<i64>() {
            total = Some(total.unwrap_or(0_i64).checked_add(sign * number)?);
        }
    }
    total
}

/// 1 if the text ends with the answer to the question behind `####`, else 0.
///
/// ```
/// use salsa_rlhf::arithmetic::reward;
/// let question = "Mia has 7 shells. She finds 2 more. She gives 3 away. How many shells does she have now?";
/// assert_eq!(reward(question, "7 + 2 = 9. 9 - 3 = 6. #### 6"), 1.0);
/// assert_eq!(reward(question, "#### 5"), 0.0);
/// assert_eq!(reward(question, "7 + 2 = 9. 9 - 3 = 6."), 0.0);
/// ```
pub fn reward(question: &str, text: &str) -> f64 {
    let given = text.rsplit_once("####").and_then(|(_, rest)| rest.trim().parse::<i64>().ok());
    f64::from(u8::from(given.is_some() && given == answer_to(question)))
}

/// Writes the files of the task into `dir`, creating it if necessary. The same seed gives the same bytes.
///
/// ```text
/// pretrain.jsonl           {"text": ...}                    sums, two thirds of them behind a question
/// sft.jsonl                {"messages": [user, assistant]}  half of the answers worked, half direct
/// prompts_SPLIT.jsonl      {"prompt": [user], "answer": "6"}      for train, validation, test and ood
/// ```
///
/// Questions of the demonstrations and of training are of another part of [`bucket`] than those of validation and test.
/// Those out of distribution have more steps.
///
/// # Errors
/// When the directory or a file cannot be written.
pub fn write(dir: &Path, sizes: &Sizes, seed: u64) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create the folder {} for the task", dir.display()))?;
    let stream = |number: u64| Random::new(seed, STREAM + number);

    let mut rng = stream(0);
    let texts = (0..sizes.pretrain).map(|i| {
        let problem = Problem::random(2 + i as u64 % 4, &mut rng);
        let text = match i % 3 {
            0 => problem.steps(),
            _ => format!("{} {}", problem.question(), problem.steps()),
        };
        json!({ "text": text })
    });
    write_lines(&dir.join("pretrain.jsonl"), texts)?;

    let demonstrations =
        distinct(sizes.sft, STEPS, 0..80, &mut stream(1)).into_iter().enumerate().map(|(i, problem)| {
            let answer = if i % 2 == 0 { problem.worked() } else { problem.direct() };
            json!({ "messages": [message("user", &problem.question()), message("assistant", &answer)] })
        });
    write_lines(&dir.join("sft.jsonl"), demonstrations)?;

    for (number, name, size, steps, buckets) in [
        (2, "prompts_train.jsonl", sizes.prompts_train, STEPS, 0..80),
        (3, "prompts_validation.jsonl", sizes.prompts_validation, STEPS, 80..90),
        (4, "prompts_test.jsonl", sizes.prompts_test, STEPS, 90..100),
        (5, "prompts_ood.jsonl", sizes.prompts_ood, MORE_STEPS, 0..100),
    ] {
        let lines = distinct(size, steps, buckets, &mut stream(number)).into_iter().map(|problem| {
            json!({ "prompt": [message("user", &problem.question())], "answer": problem.answer().to_string() })
        });
        write_lines(&dir.join(name), lines)?;
    }
    Ok(())
}

/// Problems with different questions, in these buckets, with from `steps[0]` to `steps[1]` changes.
fn distinct(count: usize, steps: [u64; 2], buckets: std::ops::Range<u8>, rng: &mut Random) -> Vec<Problem> {
    let (mut known, mut problems) = (BTreeSet::new(), Vec::with_capacity(count));
    let mut next = 0;
    while problems.len() < count {
        let problem = Problem::random(steps[next % 2], rng);
        next += 1;
        let question = problem.question();
        if buckets.contains(&bucket(&question)) && known.insert(question) {
            problems.push(problem);
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn questions_are_read_back_and_worked_answers_are_right() {
        let mut rng = Random::new(7, 1);
        for i in 0..2000 {
            let problem = Problem::random(2 + i % 4, &mut rng);
            assert_eq!(answer_to(&problem.question()), Some(problem.answer()), "{}", problem.question());
            for step in problem.steps().split_terminator('.') {
                let (sum, total) = step.split_once(" = ").unwrap();
                let terms: Vec<&str> = sum.split_whitespace().collect();
                let [a, b] = [terms[0], terms[2]].map(|term| term.parse::<i64>().unwrap());
                let expected = if terms[1] == "-" { a - b } else { a + b };
                assert_eq!(total.parse::<i64>().unwrap(), expected, "{step}");
                assert!((0..=LARGEST).contains(&expected));
            }
            assert_eq!(reward(&problem.question(), &problem.worked()), 1.0);
            assert_eq!(reward(&problem.question(), &problem.direct()), 1.0);
            assert_eq!(reward(&problem.question(), &format!("#### {}", problem.answer() + 1)), 0.0);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_parts_share_no_question() {
        let dir = tempfile::tempdir().unwrap();
        let sizes = Sizes {
            pretrain: 40,
            sft: 30,
            prompts_train: 200,
            prompts_validation: 50,
            prompts_test: 50,
            prompts_ood: 20,
        };
        write(&dir.path().join("a"), &sizes, 3).unwrap();
        write(&dir.path().join("b"), &sizes, 3).unwrap();
        write(&dir.path().join("c"), &sizes, 4).unwrap();
        let read = |run: &str, name: &str| fs::read_to_string(dir.path().join(run).join(name)).unwrap();
        for name in ["pretrain.jsonl", "sft.jsonl", "prompts_train.jsonl", "prompts_test.jsonl", "prompts_ood.jsonl"] {
            assert!(read("a", name) == read("b", name) && read("a", name) != read("c", name), "{name}");
        }
        let questions = |name: &str| -> BTreeSet<String> {
            let lines = read("a", name);
            let question = |line: &str| {
                let line: Value = serde_json::from_str(line).unwrap();
                let asked = line["prompt"][0]["content"].as_str().unwrap().to_owned();
                assert_eq!(answer_to(&asked).unwrap().to_string(), line["answer"].as_str().unwrap());
                asked
            };
            lines.lines().map(question).collect()
        };
        let (train, test) = (questions("prompts_train.jsonl"), questions("prompts_test.jsonl"));
        assert_eq!((train.len(), test.len()), (200, 50));
        assert!(train.is_disjoint(&test));
    }
}
