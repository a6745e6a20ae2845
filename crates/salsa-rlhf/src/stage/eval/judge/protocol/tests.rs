//! Plans and rows of each protocol, with questions, answers and templates of a few words.
use std::collections::HashMap;

use serde_json::json;

use super::{
    super::{question::test_question as question, template::OneOrList},
    *,
};

/// Replies by the last user message, or by the whole conversation.
#[derive(Default)]
struct Said {
    replies: HashMap<String, Reply>,
    whole: HashMap<String, String>,
}

impl Said {
    fn say(&mut self, call: &Call, text: &str) {
        let reply = Reply { text: text.to_owned(), ..Reply::default() };
        self.replies.insert(call.prompt_digest(), reply);
    }
}

impl Replies for Said {
    fn reply(&self, call: &Call) -> Option<&Reply> {
        self.replies.get(&call.prompt_digest())
    }

    fn whole(&self, call: &Call) -> Option<&str> {
        self.whole.get(&call.prompt_digest()).map(String::as_str)
    }
}

fn answers(given: &[(&str, &[&str])]) -> Answers {
    let answer = |turns: &[&str]| Answer { turns: turns.iter().map(|t| (*t).to_owned()).collect(), style: None };
    given.iter().map(|(id, turns)| ((*id).to_owned(), answer(turns))).collect()
}

fn template(name: &str, kind: &str, text: &str) -> (String, Template) {
    let format = if kind == "single" { "[[rating]]" } else { "[[A]]" };
    let template =
        json!({"name": name, "type": kind, "system_prompt": "", "prompt_template": text, "output_format": format});
    (name.to_owned(), serde_json::from_value(template).unwrap())
}

fn mt_bench(protocol: Protocol) -> Inputs {
    let single = "{question}|{answer}";
    let with_reference = "{question}|{ref_answer_1}|{answer}";
    let turns = "{question_1}|{answer_1}|{question_2}|{answer_2}";
    let references = "{question_1}|{ref_answer_1}|{question_2}|{ref_answer_2}|{answer_1}|{answer_2}";
    let templates = [
        template("single-v1", "single", single),
        template("single-math-v1", "single", with_reference),
        template("single-v1-multi-turn", "single", turns),
        template("single-math-v1-multi-turn", "single", references),
        template("pair-v2", "pairwise", "{question}|{answer_a}|{answer_b}"),
        template("pair-math-v1", "pairwise", "{question}|{ref_answer_1}|{answer_a}|{answer_b}"),
        template("pair-v2-multi-turn", "pairwise", "{question_2}|{answer_a_2}|{answer_b_2}"),
        template("pair-math-v1-multi-turn", "pairwise", "{ref_answer_2}|{answer_a_1}|{answer_b_2}"),
    ];
    Inputs {
        protocol,
        judge: "j".to_owned(),
        questions: vec![question("m", "math", &["q1", "q2"]), question("w", "writing", &["r1"])],
        answers: [
            ("a".to_owned(), answers(&[("m", &["a1", "a2"]), ("w", &["w1"])])),
            ("b".to_owned(), answers(&[("m", &["b1", "b2"]), ("w", &["v1"])])),
        ]
        .into(),
        baseline: String::new(),
        prompts: Prompts::FastChat(templates.into(), "pair-v2".to_owned()),
        references: Some(answers(&[("m", &["ref1", "ref2"])])),
    }
}

fn prompts(matches: &[Match]) -> Vec<&str> {
    matches.iter().flat_map(|found| &found.games).map(Call::user_prompt).collect()
}

#[test]
fn answers_are_graded_in_fastchats_order_with_references_where_they_belong() {
    let inputs = mt_bench(Protocol::MtBenchSingle);
    let matches = inputs.plan().unwrap();
    let expected = ["r1|w1", "r1|v1", "q1|ref1|a1", "q1|ref1|b1", "q1|ref1|q2|ref2|a1|a2", "q1|ref1|q2|ref2|b1|b2"];
    assert_eq!(prompts(&matches), expected, "a question of one turn has no second");
    let mut said = Said::default();
    said.say(&matches[0].games[0], "Good. [[9]]");
    said.say(&matches[1].games[0], "<think>[[1]]</think>Rating: [[7.5]]");
    let rows = mt_bench::single_rows(&inputs, &matches, &said);
    let grades: Vec<Option<f64>> = rows.iter().map(mt_bench::SingleRow::grade).collect();
    assert_eq!(grades, [Some(9.0), Some(7.5), None, None, None, None]);
    assert_eq!((&rows[0].written()["score"], &rows[2].written()["score"]), (&json!(9), &json!(-1)));
    assert_eq!(rows[2].judgment, mt_bench::ERROR);
}

#[test]
fn pairs_are_shown_in_both_orders_to_each_other_or_to_a_baseline() {
    let mut inputs = mt_bench(Protocol::MtBenchPair);
    let matches = inputs.plan().unwrap();
    let expected = ["r1|w1|v1", "r1|v1|w1", "q1|ref1|a1|b1", "q1|ref1|b1|a1", "ref2|a1|b2", "ref2|b1|a2"];
    assert_eq!(prompts(&matches), expected);
    let mut said = Said::default();
    said.say(&matches[0].games[0], "[[A]]");
    said.say(&matches[0].games[1], "[[B]]");
    said.say(&matches[1].games[0], "[[C]]");
    let rows = mt_bench::pair_rows(&inputs, &matches, &said);
    let winners = |row: usize| [rows[row].g1_winner.as_str(), &rows[row].g2_winner];
    assert_eq!((winners(0), winners(1)), (["model_1", "model_1"], ["tie", "error"]));
    inputs.baseline = "a".to_owned();
    let against = inputs.plan().unwrap();
    assert_eq!((against[0].models.join(" "), prompts(&against)[0]), ("b a".to_owned(), "r1|v1|w1"));
}

#[test]
fn what_is_missing_is_named() {
    let refused = |edit: &dyn Fn(&mut Inputs)| {
        let mut inputs = mt_bench(Protocol::MtBenchSingle);
        edit(&mut inputs);
        format!("{:#}", inputs.plan().unwrap_err())
    };
    let error = refused(&|inputs| inputs.references = None);
    assert!(error.contains("question \"m\"") && error.contains("reference_answers"), "{error}");
    let error = refused(&|inputs| drop(inputs.answers.get_mut("b").unwrap().remove("w")));
    assert!(error.contains("b has no answer to question \"w\""), "{error}");
    let error = refused(&|inputs| inputs.answers.get_mut("b").unwrap().get_mut("m").unwrap().turns.truncate(1));
    assert!(error.contains("b answers 1 of the 2 turns of question \"m\""), "{error}");
    let error = refused(&|inputs| match &mut inputs.prompts {
        Prompts::FastChat(templates, _) => drop(templates.remove("single-v1")),
        _ => unreachable!(),
    });
    assert!(error.contains("there is no \"single-v1\" among pair-math-v1"), "{error}");
    let mut pairs = mt_bench(Protocol::MtBenchPair);
    pairs.answers.remove("b");
    assert!(format!("{:#}", pairs.plan().unwrap_err()).contains("two are compared"));
}

fn arena(protocol: Protocol) -> Inputs {
    let config = ArenaConfig {
        system_prompt: Some("Judge.".to_owned()),
        prompt_template: OneOrList::One("{QUESTION}|{ANSWER_A}|{ANSWER_B}".to_owned()),
        regex_patterns: Vec::new(),
    };
    let systems = [("creative_writing".to_owned(), "Be kind.".to_owned())].into();
    Inputs {
        protocol,
        judge: "j".to_owned(),
        questions: vec![question("h", "hard_prompt", &["q"]), question("c", "creative_writing", &["r"])],
        answers: [
            ("m".to_owned(), answers(&[("h", &["mine"]), ("c", &["my"])])),
            ("gpt-4-0314".to_owned(), answers(&[("h", &["gpt"]), ("c", &["gpt"])])),
            ("o3-mini-2025-01-31".to_owned(), answers(&[("h", &["o3"])])),
            ("gemini-2.0-flash-001".to_owned(), answers(&[("c", &["flash"])])),
        ]
        .into(),
        baseline: String::new(),
        prompts: Prompts::Arena(config, Patterns::standard(), systems),
        references: None,
    }
}

#[test]
fn each_category_of_v2_has_its_baseline_and_its_system_prompt() {
    let mut inputs = arena(Protocol::ArenaHardV2);
    inputs.answers.remove("gpt-4-0314");
    let matches = inputs.plan().unwrap();
    assert_eq!(prompts(&matches), ["q|o3|mine", "q|mine|o3", "r|flash|my", "r|my|flash"]);
    let systems: Vec<&str> = matches.iter().map(|found| found.games[0].messages[0].content.as_str()).collect();
    assert_eq!(systems, ["Judge.", "Be kind."]);
    let mut said = Said::default();
    said.say(&matches[0].games[0], "[[A>B]] or rather [[b>>a]]");
    said.say(&matches[0].games[1], "none");
    let rows = arena::rows(&inputs, &matches, &said);
    let written = rows[0].written(Protocol::ArenaHardV2);
    assert_eq!((&written["games"][0]["score"], &written["games"][1]["score"]), (&json!("B>>A"), &json!(null)));
    assert_eq!(written["games"][0]["prompt"][1]["content"], "q|o3|mine");
    assert_eq!(rows[1].written(Protocol::ArenaHardV2)["games"], json!([null, null]));
    assert!(inputs.second_attempts(&matches, &said).is_empty(), "v2 asks once");
    inputs.answers.remove("o3-mini-2025-01-31");
    let error = format!("{:#}", inputs.plan().unwrap_err());
    assert!(error.contains("there are no answers of o3-mini-2025-01-31"), "{error}");
}

#[test]
fn v01_asks_once_more_where_there_is_no_label_at_all() {
    let mut inputs = arena(Protocol::ArenaHardV01);
    inputs.answers.retain(|name, _| name == "m" || name == "gpt-4-0314");
    let matches = inputs.plan().unwrap();
    let mut said = Said::default();
    said.say(&matches[0].games[0], "I am not done");
    said.say(&matches[0].games[1], "[[A>B]] or [[B>A]]");
    said.say(&matches[1].games[0], "[[A=B]]");
    said.say(&matches[1].games[1], "an old judgment");
    said.whole.insert(matches[1].games[1].prompt_digest(), "\nold\n[[B>A]]".to_owned());
    let second = inputs.second_attempts(&matches, &said);
    assert_eq!(second.len(), 1, "neither a contradiction nor another tool's judgment is asked again");
    let roles: Vec<&str> = second[0].messages.iter().map(|message| message.role.as_str()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user"]);
    assert_eq!((second[0].messages[2].content.as_str(), second[0].user_prompt()), ("I am not done", "q|gpt|mine"));
    said.say(&second[0], "[[B>>A]]");
    let rows = arena::rows(&inputs, &matches, &said);
    let score = |row: usize, game: usize| rows[row].games[game].as_ref().unwrap().score.as_deref();
    assert_eq!([score(0, 0), score(0, 1), score(1, 0), score(1, 1)], [Some("B>>A"), None, Some("A=B"), Some("B>A")]);
    assert_eq!(rows[0].games[0].as_ref().unwrap().said(), "\nI am not done\n[[B>>A]]");
    assert_eq!(rows[0].written(Protocol::ArenaHardV01)["games"][0]["user_prompt"], "q|gpt|mine");
}

#[test]
fn equal_outputs_of_alpaca_eval_need_no_judge() {
    let inputs = Inputs {
        protocol: Protocol::AlpacaEval2,
        judge: "j".to_owned(),
        questions: vec![question("Hello", "", &["Hello"]), question("a", "", &["a"])],
        answers: [
            ("base".to_owned(), answers(&[("Hello", &["hi"]), ("a", &["same"])])),
            ("m".to_owned(), answers(&[("Hello", &["hey"]), ("a", &["same"])])),
        ]
        .into(),
        baseline: "base".to_owned(),
        prompts: Prompts::Alpaca("<|im_start|>user\n{instruction}|{output_1}|{output_2}\n<|im_end|>".to_owned()),
        references: None,
    };
    let matches = inputs.plan().unwrap();
    // For the instruction `Hello`, the drawn order is unswitched.
    assert_eq!(prompts(&matches), ["Hello|hi|hey"]);
    let mut said = Said::default();
    said.say(&matches[0].games[0], "M");
    let rows = alpaca::rows(&inputs, &matches, &said);
    assert_eq!((rows[0].preference, rows[1].preference), (Some(2.0), Some(1.5)));
    assert_eq!((rows[0].generator_1.as_str(), rows[0].output_2.as_str()), ("base", "hey"));
    assert_eq!(alpaca::rows(&inputs, &matches, &Said::default())[0].preference, None);
}
