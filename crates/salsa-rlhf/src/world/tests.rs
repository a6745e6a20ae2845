//! Properties of the whole world.

use std::collections::{BTreeMap, BTreeSet};

use salsa_engine::random::Random;

use super::cook::cook;
use super::pantry::tokens;
use super::slips::{Slip, Slips};
use super::*;

const SPLITS: [Split; 4] = [Split::Train, Split::Validation, Split::Test, Split::Ood];

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn prompts_are_read_back_into_their_own_split() {
    for split in SPLITS {
        let drawn = prompts(split, 2000, 3);
        assert_eq!(drawn.iter().collect::<BTreeSet<_>>().len(), 2000, "{split:?} repeats itself");
        for prompt in &drawn {
            let request = Request::parse(prompt);
            assert_eq!(Split::of(&request), split, "{prompt}\n{request:?}");
            assert!(
                !request.wanted.is_empty() && request.wanted.iter().all(|i| !request.avoided.contains(i)),
                "{prompt}"
            );
        }
    }
}

#[test]
fn wordings_say_exactly_what_was_asked() {
    let mut rng = Random::new(1, 1);
    for _ in 0..3000 {
        let request = split::usual(&mut rng);
        for wording in [wording::Wording::Everyday, wording::Wording::Unseen] {
            let prompt = wording::render(&request, wording, &mut rng);
            assert_eq!(Request::parse(&prompt), request, "{prompt}");
        }
    }
}

#[test]
fn splits_share_no_request() {
    let mut owner: BTreeMap<String, Split> = BTreeMap::new();
    for split in SPLITS {
        for prompt in prompts(split, 3000, 5) {
            let before = owner.insert(Request::parse(&prompt).key(), split);
            assert!(before.is_none_or(|s| s == split), "{prompt} is in {before:?} and {split:?}");
        }
    }
}

#[test]
fn prompts_are_a_function_of_split_and_seed() {
    for split in SPLITS {
        let drawn = prompts(split, 50, 7);
        assert_eq!(drawn, prompts(split, 50, 7));
        assert_eq!(drawn[..20], prompts(split, 20, 7));
        assert_ne!(drawn, prompts(split, 50, 8));
    }
    assert_eq!(pretrain_text(50, 7), pretrain_text(50, 7));
    assert_ne!(pretrain_text(50, 7), pretrain_text(50, 8));
}

#[test]
fn the_perfect_cook_is_perfect() {
    for split in SPLITS {
        for prompt in prompts(split, 2000, 11) {
            let answer = perfect(&prompt);
            let gold = gold_reward(&prompt, &answer);
            assert_eq!(gold.total, 1.0, "{prompt}\n{answer}\n{gold:#?}");
            assert_eq!(answer, perfect(&prompt));
        }
    }
    let mut rng = Random::new(2, 2);
    for prompt in prompts(Split::Train, 1000, 12) {
        for _ in 0..4 {
            let answer = cook(&Request::parse(&prompt), &Slips::none(), &mut rng);
            assert_eq!(gold_reward(&prompt, &answer).total, 1.0, "{prompt}\n{answer}");
        }
    }
}

#[test]
fn two_steps_are_enough_for_what_comes_last() {
    let prompt = "Write a soup with rice and peas, in 2 steps. Add the peas last.";
    assert_eq!(gold_reward(prompt, &perfect(prompt)).total, 1.0, "{}", perfect(prompt));
}

#[test]
fn any_text_is_a_prompt() {
    let mut rng = Random::new(3, 3);
    let nothing_left = format!("A dip without {}.", Ingredient::all().map(|i| i.name()).collect::<Vec<_>>().join(", "));
    let endless = format!("A soup in {} steps for {} people without rice.", usize::MAX, usize::MAX);
    for prompt in ["", "hello", "A recipe in 0 steps.", "A recipe in 1 step.", &nothing_left, &endless, "🍲"] {
        for _ in 0..200 {
            for answer in [perfect(prompt), demonstration(prompt, &mut rng)] {
                let total = gold_reward(prompt, &answer).total;
                assert!((0.0..=1.0).contains(&total) && answer.len() < 1000, "{prompt} {answer} {total}");
            }
        }
    }
    assert_eq!(gold_reward("A dip.", &format!("{0}. Serve. {0}. Serve.", usize::MAX)).parts.steps, 0.0);
}

#[test]
fn what_is_no_answer_scores_next_to_nothing() {
    let mut rng = Random::new(4, 4);
    for prompt in prompts(Split::Test, 300, 13) {
        let answer = perfect(&prompt);
        let mut words: Vec<&str> = answer.split(' ').collect();
        rng.shuffle(&mut words);
        let reversed: String = answer.chars().rev().collect();
        assert_eq!(gold_reward(&prompt, "").total, 0.0);
        for (text, most) in [
            (prompt.clone(), 0.15),
            (format!("{prompt} {prompt}"), 0.15),
            (reversed, 0.0),
            ("the the the the".to_owned(), 0.0),
            ("1. Serve warm. ".repeat(30), 0.02),
            ((0..30).map(|i| format!("{i}. ")).collect(), 0.0),
            (Ingredient::all().map(|i| i.name()).collect::<Vec<_>>().join(" "), 0.0),
        ] {
            let total = gold_reward(&prompt, &text).total;
            assert!(total <= most, "{prompt}\n{text}\n{total}");
        }
        assert!(gold_reward(&prompt, &words.join(" ")).total < 0.75, "{prompt}\n{}", words.join(" "));
    }
}

#[test]
fn every_slip_costs() {
    let mut rng = Random::new(5, 5);
    let drawn = prompts(Split::Train, 400, 17);
    for (slip, ..) in Slip::HABITS {
        let totals: Vec<f64> = drawn
            .iter()
            .map(|prompt| {
                let answer = cook(&Request::parse(prompt), &Slips::only(slip), &mut rng);
                gold_reward(prompt, &answer).total
            })
            .collect();
        assert!(totals.iter().all(|t| (0.0..=1.0).contains(t)));
        assert!(mean(&totals) < 0.985, "{slip:?} costs next to nothing: {}", mean(&totals));
    }
}

#[test]
fn edits_of_a_perfect_answer_lower_its_gold() {
    for prompt in prompts(Split::Validation, 500, 19) {
        let answer = perfect(&prompt);
        let request = Request::parse(&prompt);
        let wanted = request.wanted[0].name();
        let edits = [
            ("a wanted ingredient replaced by oil", answer.replace(wanted, "oil")),
            ("a step said twice", answer.replacen("1. ", &format!("{} 1. ", first_step(&answer)), 1)),
            ("no full stops", answer.replace(". ", " ")),
            ("cut in the middle", answer[..answer.len() / 2].to_owned()),
            ("twice the whole", format!("{answer} {answer}")),
            ("more closings", format!("{answer} Enjoy! Enjoy!")),
            ("no numbers", answer.replace(|c: char| c.is_ascii_digit(), "")),
        ];
        for (edit, text) in edits {
            let total = gold_reward(&prompt, &text).total;
            assert!(total < 0.99, "{edit}: {prompt}\n{text}\n{total}");
        }
        for avoided in &request.avoided {
            let total =
                gold_reward(&prompt, &answer.replacen("1. ", &format!("1. Add the {}. 1. ", avoided.name()), 1)).total;
            assert!(total < 0.95, "{prompt} {total}");
        }
    }
}

#[test]
fn an_answer_to_another_prompt_is_worth_less() {
    let drawn = prompts(Split::Test, 2000, 41);
    let others: Vec<f64> = drawn.windows(2).map(|p| gold_reward(&p[0], &perfect(&p[1])).total).collect();
    assert!(mean(&others) < 0.65, "{}", mean(&others));
}

fn first_step(answer: &str) -> String {
    let from = answer.find("1. ").expect("there is a first step");
    let to = answer.find("2. ").expect("there is a second step");
    answer[from..to].trim().to_owned()
}

#[test]
fn demonstrations_leave_room_and_reach_the_top() {
    for split in [Split::Train, Split::Ood] {
        let mut rng = Random::new(6, 6);
        let golds: Vec<f64> = prompts(split, 4000, 23)
            .iter()
            .map(|prompt| gold_reward(prompt, &demonstration(prompt, &mut rng)).total)
            .collect();
        let average = mean(&golds);
        let spread = mean(&golds.iter().map(|g| (g - average) * (g - average)).collect::<Vec<_>>()).sqrt();
        let top = golds.iter().filter(|&&g| g >= 0.95).count() as f64 / golds.len() as f64;
        assert!((0.55..0.65).contains(&average), "{split:?}: mean {average}");
        assert!((0.15..0.30).contains(&spread), "{split:?}: spread {spread}");
        assert!((0.04..0.12).contains(&top), "{split:?}: share of nearly perfect {top}");
    }
}

#[test]
fn one_label_in_eight_is_wrong() {
    let mut rng = Random::new(7, 7);
    let (mut wrong, mut longer) = (0, 0);
    let drawn = prompts(Split::Train, 4000, 29);
    for prompt in &drawn {
        let Preference { chosen, rejected } = preference(prompt, &mut rng);
        let gap = gold_reward(prompt, &chosen).total - gold_reward(prompt, &rejected).total;
        assert_ne!(gap, 0.0);
        wrong += usize::from(gap < 0.0);
        longer += usize::from(chosen.len() > rejected.len());
    }
    let share = |count: usize| count as f64 / drawn.len() as f64;
    assert!((0.10..0.15).contains(&share(wrong)), "wrong labels: {}", share(wrong));
    assert!((0.40..0.65).contains(&share(longer)), "length gives the label away: {}", share(longer));
}

#[test]
fn labels_follow_bradley_and_terry() {
    let mut rng = Random::new(8, 8);
    // A gap of LABEL_TEMPERATURE * ln 3 is preferred three times in four.
    let gap = LABEL_TEMPERATURE * 3f64.ln();
    let first = (0..20_000).filter(|_| label(0.5 + gap, 0.5, &mut rng) == Label::First).count();
    assert!((0.74..0.76).contains(&(first as f64 / 20_000.0)), "{first}");
}

#[test]
fn prose_knows_every_word_and_no_unusual_answer() {
    let prose = pretrain_text(6000, 31);
    let known: BTreeSet<String> = prose.iter().flat_map(|text| tokens(text)).collect();
    let mut rng = Random::new(9, 9);
    for split in SPLITS {
        for prompt in prompts(split, 500, 37) {
            let answer = demonstration(&prompt, &mut rng);
            for word in tokens(&prompt).into_iter().chain(tokens(&answer)) {
                assert!(known.contains(&word), "{word} of {prompt} {answer}");
            }
        }
    }
    let words = known.iter().filter(|w| w.chars().all(char::is_alphabetic)).count();
    assert!(words < 320, "{words} distinct words");
    let unusual: BTreeSet<String> = prompts(Split::Ood, 2000, 37).into_iter().collect();
    for text in &prose {
        assert!(!unusual.contains(text), "{text}");
        let answered = text.contains("1. ") && text.starts_with("A note for a ");
        assert!(!(answered && (text.starts_with("A note for a supper") || text.starts_with("A note for a picnic"))));
    }
}

#[test]
fn files_are_complete_and_repeatable() {
    let sizes = Sizes {
        pretrain: 20,
        sft: 15,
        preferences: 10,
        prompts_train: 9,
        prompts_validation: 8,
        prompts_test: 7,
        prompts_ood: 6,
    };
    let (one, two) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    write(one.path(), &sizes, 1).expect("written");
    write(two.path(), &sizes, 1).expect("written");
    let lines = |dir: &std::path::Path, name: &str| std::fs::read_to_string(dir.join(name)).expect(name);
    for (name, count, keys) in [
        ("pretrain", 20, "text"),
        ("sft", 15, "messages"),
        ("preferences", 10, "prompt chosen rejected"),
        ("prompts_train", 9, "prompt"),
        ("prompts_validation", 8, "prompt"),
        ("prompts_test", 7, "prompt"),
        ("prompts_ood", 6, "prompt"),
    ] {
        let name = format!("{name}.jsonl");
        let text = lines(one.path(), &name);
        assert_eq!(text, lines(two.path(), &name), "{name}");
        assert_eq!(text.lines().count(), count, "{name}");
        for line in text.lines() {
            let row: serde_json::Value = serde_json::from_str(line).expect("a row of JSON");
            let found: Vec<&str> = row.as_object().expect("an object").keys().map(String::as_str).collect();
            assert_eq!(found.join(" "), keys);
        }
    }
    let row: serde_json::Value =
        serde_json::from_str(lines(one.path(), "sft.jsonl").lines().next().expect("a row")).expect("JSON");
    assert_eq!((&row["messages"][0]["role"], &row["messages"][1]["role"]), (&"user".into(), &"assistant".into()));
}
