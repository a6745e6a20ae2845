//! FastChat's MT-Bench: answers graded individually, or compared in both orders; and its pair template for any prompts.
use anyhow::{Context, ensure};
use salsa_algo::{judge::pair, stats::Verdict};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    super::{
        call::Call,
        question::{Answer, Question},
        template::{self, Template},
        verdict::{self, Preferred, without_thoughts},
    },
    Inputs, Match, Prompts, Protocol, Replies,
};

/// Questions of these categories are judged with a reference answer.
const WITH_REFERENCE: &[&str] = &["math", "reasoning", "coding", "arena-hard-200"];

/// Placeholder in a row for a missing judgment.
pub(in super::super) const ERROR: &str = "$ERROR$";

/// A row of `model_judgment/JUDGE_single.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in super::super) struct SingleRow {
    /// The question's id.
    pub question_id: Value,
    /// The model that answered.
    pub model: String,
    /// The judge and the template.
    pub judge: (String, String),
    /// The judge's prompt.
    pub user_prompt: String,
    /// The judge's reply.
    pub judgment: String,
    /// The grade; −1 for none.
    pub score: Option<f64>,
    /// The judged turn.
    pub turn: u32,
}

/// A row of `model_judgment/JUDGE_pair.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in super::super) struct PairRow {
    /// The question's id.
    pub question_id: Value,
    /// The model whose answer was shown first in the first game.
    pub model_1: String,
    /// The other one.
    pub model_2: String,
    /// `model_1`, `model_2`, `tie` or `error`.
    pub g1_winner: String,
    /// The same for the second game.
    pub g2_winner: String,
    /// The judge and the template.
    pub judge: (String, String),
    /// The judge's prompt in the first game.
    pub g1_user_prompt: String,
    /// The judge's reply in the first game.
    pub g1_judgment: String,
    /// The judge's prompt in the second game.
    pub g2_user_prompt: String,
    /// The judge's reply in the second game.
    pub g2_judgment: String,
    /// The judged turn.
    #[serde(default = "first_turn")]
    pub turn: u32,
}

fn first_turn() -> u32 {
    1
}

impl SingleRow {
    /// The grade; `None` if the judge gave none.
    pub(crate) fn grade(&self) -> Option<f64> {
        self.score.filter(|score| *score != -1.0)
    }

    /// The row in FastChat's layout: whole grades without a decimal point.
    pub(crate) fn written(&self) -> Value {
        let mut row = serde_json::to_value(self).expect("a row is JSON");
        let score = self.score.unwrap_or(-1.0);
        row["score"] =
            verdict::score(&self.judgment).filter(|read| read.as_f64() == Some(score)).unwrap_or(json!(score));
        if score == -1.0 {
            row["score"] = json!(-1);
        }
        row
    }
}

impl PairRow {
    /// Both games, from the perspective of the first model.
    pub(crate) fn games(&self) -> pair::Row {
        let verdict = |winner: &str| match winner {
            "model_1" => Some(Verdict::Win),
            "model_2" => Some(Verdict::Loss),
            "tie" => Some(Verdict::Tie),
            _ => None,
        };
        pair::Row { first: verdict(&self.g1_winner), second: verdict(&self.g2_winner) }
    }
}

/// The matches of MT-Bench in FastChat's order: turn 1 without and with references, then turn 2.
pub(super) fn plan(inputs: &Inputs) -> anyhow::Result<Vec<Match>> {
    let mut matches = Vec::new();
    for turn in [1, 2] {
        for with_reference in [false, true] {
            let wanted = |question: &Question| WITH_REFERENCE.contains(&question.category.as_str()) == with_reference;
            for (number, question) in inputs.questions.iter().enumerate().filter(|(_, question)| wanted(question)) {
                if turn == 2 && question.turns.len() != 2 {
                    continue;
                }
                let name = template_name(inputs.protocol, turn, with_reference);
                let asked = Asked { inputs, question, turn, name, with_reference };
                for models in sides(inputs)? {
                    let games = asked.games(&models).with_context(|| format!("question {}", question.id))?;
                    matches.push(Match { question: number, turn, template: name.to_owned(), models, games });
                }
            }
        }
    }
    Ok(matches)
}

/// The matches for any prompts: one turn, with the configured template.
pub(super) fn plan_pairwise(inputs: &Inputs) -> anyhow::Result<Vec<Match>> {
    let Prompts::FastChat(_, name) = &inputs.prompts else { unreachable!("this protocol reads FastChat's templates") };
    let mut matches = Vec::new();
    for (number, question) in inputs.questions.iter().enumerate() {
        let asked = Asked { inputs, question, turn: 1, name, with_reference: false };
        for models in sides(inputs)? {
            let games = asked.games(&models).with_context(|| format!("question {}", question.id))?;
            matches.push(Match { question: number, turn: 1, template: name.clone(), models, games });
        }
    }
    Ok(matches)
}

fn template_name(protocol: Protocol, turn: u32, with_reference: bool) -> &'static str {
    match (protocol, turn, with_reference) {
        (Protocol::MtBenchSingle, 1, false) => "single-v1",
        (Protocol::MtBenchSingle, 1, true) => "single-math-v1",
        (Protocol::MtBenchSingle, _, false) => "single-v1-multi-turn",
        (Protocol::MtBenchSingle, _, true) => "single-math-v1-multi-turn",
        (_, 1, false) => "pair-v2",
        (_, 1, true) => "pair-math-v1",
        (_, _, false) => "pair-v2-multi-turn",
        (_, _, true) => "pair-math-v1-multi-turn",
    }
}

/// The compared models: each alone, each against the baseline, or all pairs.
fn sides(inputs: &Inputs) -> anyhow::Result<Vec<Vec<String>>> {
    let names: Vec<&String> = inputs.answers.keys().collect();
    if inputs.protocol == Protocol::MtBenchSingle {
        return Ok(names.into_iter().map(|name| vec![name.clone()]).collect());
    }
    let pairs: Vec<Vec<String>> = match inputs.baseline.as_str() {
        "" => {
            let of = |i: usize| names[i + 1..].iter().map(move |other| (i, (*other).clone()));
            (0..names.len()).flat_map(of).map(|(i, other)| vec![names[i].clone(), other]).collect()
        }
        baseline => {
            let others = names.into_iter().filter(|name| *name != baseline);
            others.map(|name| vec![name.clone(), baseline.to_owned()]).collect()
        }
    };
    ensure!(!pairs.is_empty(), "there is one set of answers; two are compared");
    Ok(pairs)
}

/// A turn of a question to judge.
struct Asked<'a> {
    inputs: &'a Inputs,
    question: &'a Question,
    turn: u32,
    name: &'a str,
    with_reference: bool,
}

impl Asked<'_> {
    fn games(&self, models: &[String]) -> anyhow::Result<Vec<Call>> {
        let turns = self.turn as usize;
        let answers = models.iter().map(|model| self.inputs.answer(model, self.question, turns));
        let answers = answers.collect::<anyhow::Result<Vec<&Answer>>>()?;
        match answers[..] {
            [answer] => Ok(vec![self.game(models, 1, &[answer])?]),
            [first, second] => {
                Ok(vec![self.game(models, 1, &[first, second])?, self.game(models, 2, &[second, first])?])
            }
            _ => unreachable!("a match has one model or two"),
        }
    }

    fn game(&self, models: &[String], order: u8, answers: &[&Answer]) -> anyhow::Result<Call> {
        let template = self.template()?;
        let kind = if answers.len() == 1 { "single" } else { "pairwise" };
        ensure!(template.kind == kind, "template {} is of the type {:?}, not {kind:?}", self.name, template.kind);
        let wanted: &[&str] = if kind == "single" { &["[[rating]]"] } else { &["[[A]]", "[[rating_a,rating_b]]"] };
        let format = &template.output_format;
        ensure!(wanted.contains(&format.as_str()), "template {}: unknown output_format {format:?}", self.name);
        let fields = self.fields(answers)?;
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, text)| (name.as_str(), *text)).collect();
        Ok(self.inputs.call(self.question, models, self.name, order, template.messages(&fields)?))
    }

    fn template(&self) -> anyhow::Result<&Template> {
        let Prompts::FastChat(templates, _) = &self.inputs.prompts else {
            unreachable!("this protocol reads FastChat's templates")
        };
        template::named(templates, self.name)
    }

    /// The fields of the template: those of one turn, or of two.
    fn fields<'a>(&'a self, answers: &[&'a Answer]) -> anyhow::Result<Vec<(String, &'a str)>> {
        let suffixes: &[&str] = if answers.len() == 1 { &[""] } else { &["_a", "_b"] };
        let mut fields = Vec::new();
        for turn in 0..self.turn as usize {
            let number = if self.turn == 1 { String::new() } else { format!("_{}", turn + 1) };
            fields.push((format!("question{number}"), self.question.turns[turn].as_str()));
            for (suffix, answer) in suffixes.iter().zip(answers) {
                fields.push((format!("answer{suffix}{number}"), answer.turns[turn].as_str()));
            }
            if self.with_reference {
                fields.push((format!("ref_answer_{}", turn + 1), self.reference(turn)?));
            }
        }
        Ok(fields)
    }

    fn reference(&self, turn: usize) -> anyhow::Result<&str> {
        let references = self.inputs.references.as_ref().with_context(|| {
            format!(
                "the category {} is judged with reference answers; give reference_answers: the judge's own file of \
                 FastChat's reference_answer folder",
                self.question.category
            )
        })?;
        let found = references.get(&self.question.key()).and_then(|answer| answer.turns.get(turn));
        found.map(String::as_str).with_context(|| format!("reference_answers has none for turn {}", turn + 1))
    }
}

/// The rows of graded answers. A call without a reply gets the judgment `$ERROR$`.
pub(in super::super) fn single_rows(inputs: &Inputs, matches: &[Match], replies: &dyn Replies) -> Vec<SingleRow> {
    let row = |found: &Match| {
        let (prompt, judgment) = said(&found.games[0], replies);
        let score = verdict::score(without_thoughts(&judgment).0).and_then(|score| score.as_f64());
        SingleRow {
            question_id: inputs.questions[found.question].id.clone(),
            model: found.models[0].clone(),
            judge: (inputs.judge.clone(), found.template.clone()),
            user_prompt: prompt,
            judgment,
            score: Some(score.unwrap_or(-1.0)),
            turn: found.turn,
        }
    };
    matches.iter().map(row).collect()
}

/// The rows of compared answers.
pub(in super::super) fn pair_rows(inputs: &Inputs, matches: &[Match], replies: &dyn Replies) -> Vec<PairRow> {
    let Prompts::FastChat(templates, _) = &inputs.prompts else {
        unreachable!("this protocol reads FastChat's templates")
    };
    let row = |found: &Match| {
        let by_scores = templates.get(&found.template).is_some_and(|template| template.output_format != "[[A]]");
        let winner = |judgment: &str, shown: [&str; 2]| {
            let text = without_thoughts(judgment).0;
            let preferred = if by_scores { verdict::preferred_by_scores(text) } else { verdict::preferred(text) };
            let winner = match preferred {
                Some(Preferred::A) => shown[0],
                Some(Preferred::B) => shown[1],
                Some(Preferred::Tie) => "tie",
                None => "error",
            };
            winner.to_owned()
        };
        let (g1_user_prompt, g1_judgment) = said(&found.games[0], replies);
        let (g2_user_prompt, g2_judgment) = said(&found.games[1], replies);
        PairRow {
            question_id: inputs.questions[found.question].id.clone(),
            model_1: found.models[0].clone(),
            model_2: found.models[1].clone(),
            g1_winner: winner(&g1_judgment, ["model_1", "model_2"]),
            g2_winner: winner(&g2_judgment, ["model_2", "model_1"]),
            judge: (inputs.judge.clone(), found.template.clone()),
            g1_user_prompt,
            g1_judgment,
            g2_user_prompt,
            g2_judgment,
            turn: found.turn,
        }
    };
    matches.iter().map(row).collect()
}

fn said(call: &Call, replies: &dyn Replies) -> (String, String) {
    let text = replies.reply(call).map_or(ERROR, |reply| reply.text.as_str());
    (call.user_prompt().to_owned(), text.to_owned())
}
