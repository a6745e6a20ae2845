//! AlpacaEval 2: one order for each instruction, and the probability that the judge names the model's output.
use anyhow::Context;
use salsa_algo::judge::alpaca::preference;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    super::{call::Reply, switched::is_switched, template},
    Inputs, Match, Prompts, Replies,
};

/// The template name in the identity of calls.
const TEMPLATE: &str = "alpaca_eval_clf";

/// The tokens by which the judge names the first and the second output.
const NAMES: [&str; 2] = ["m", "M"];

/// A row of `annotations.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in super::super) struct Annotation {
    /// The instruction.
    pub instruction: String,
    /// The baseline's output.
    pub output_1: String,
    /// The baseline.
    pub generator_1: String,
    /// The set that the instruction comes from.
    #[serde(default)]
    pub dataset: Option<String>,
    /// The model's output.
    pub output_2: String,
    /// The model.
    pub generator_2: String,
    /// The judge.
    #[serde(default)]
    pub annotator: String,
    /// From 1 (the baseline is better) to 2 (the model is better); `None` if the judge named neither.
    pub preference: Option<f64>,
    /// The judge's reply.
    #[serde(default)]
    pub raw_completion: Value,
}

pub(super) fn plan(inputs: &Inputs) -> anyhow::Result<Vec<Match>> {
    let Prompts::Alpaca(template) = &inputs.prompts else { unreachable!("this protocol reads AlpacaEval's template") };
    let mut matches = Vec::new();
    for model in inputs.judged() {
        for (number, question) in inputs.questions.iter().enumerate() {
            let instruction = question.turns[0].as_str();
            let ours = inputs.answer(model, question, 1)?.turns[0].as_str();
            let theirs = inputs.answer(&inputs.baseline, question, 1)?.turns[0].as_str();
            let models = vec![model.to_owned(), inputs.baseline.clone()];
            let (order, first, second) = if is_switched(instruction) { (2, ours, theirs) } else { (1, theirs, ours) };
            // Equal outputs need no judgment.
            let mut games = Vec::new();
            if ours != theirs {
                let fields = [("instruction", instruction), ("output_1", first), ("output_2", second)];
                let messages = template::alpaca_messages(template, &fields).context("templates")?;
                games.push(inputs.call(question, &models, TEMPLATE, order, messages));
            }
            matches.push(Match { question: number, turn: 1, template: TEMPLATE.to_owned(), models, games });
        }
    }
    Ok(matches)
}

/// The rows of all instructions, by model.
pub(in super::super) fn rows(inputs: &Inputs, matches: &[Match], replies: &dyn Replies) -> Vec<Annotation> {
    let row = |found: &Match| {
        let question = &inputs.questions[found.question];
        let text = |model: &str| inputs.answers[model][&question.key()].turns[0].clone();
        let reply = found.games.first().and_then(|call| Some((call.subject.order, replies.reply(call)?)));
        let preference = match (found.games.is_empty(), reply) {
            (true, _) => Some(1.5),
            (false, Some((order, reply))) => preference_of(order, reply),
            (false, None) => None,
        };
        Annotation {
            instruction: question.turns[0].clone(),
            output_1: text(&found.models[1]),
            generator_1: found.models[1].clone(),
            dataset: question.dataset.clone(),
            output_2: text(&found.models[0]),
            generator_2: found.models[0].clone(),
            annotator: inputs.judge.clone(),
            preference,
            raw_completion: reply.map_or(Value::Null, |(_, reply)| raw(reply)),
        }
    };
    matches.iter().map(row).collect()
}

/// The preference in a reply: by the probabilities of its first token, or by the token itself without them.
fn preference_of(order: u8, reply: &Reply) -> Option<f64> {
    let shown = match &reply.first_token {
        Some(tokens) => {
            let logprob = |name: &str| tokens.iter().find(|(token, _)| token == name).map(|(_, logprob)| *logprob);
            preference(logprob(NAMES[0]), logprob(NAMES[1]))?
        }
        None => match reply.text.trim() {
            text if text == NAMES[0] => 1.0,
            text if text == NAMES[1] => 2.0,
            _ => return None,
        },
    };
    Some(if order == 2 { 3.0 - shown } else { shown })
}

/// The reply in AlpacaEval's format.
fn raw(reply: &Reply) -> Value {
    let token = |(token, logprob): &(String, f64)| serde_json::json!({"token": token, "logprob": logprob});
    let likeliest = reply.first_token.as_ref().map(|tokens| tokens.iter().map(token).collect::<Vec<_>>());
    let logprobs =
        likeliest.map(|tokens| serde_json::json!({"content": [{"token": reply.text, "top_logprobs": tokens}]}));
    serde_json::json!({"text": reply.text, "finish_reason": reply.finish_reason, "logprobs": logprobs})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preference_is_the_models_whatever_was_shown_first() {
        let tokens = vec![("m".to_owned(), 0.25f64.ln()), ("M".to_owned(), 0.75f64.ln()), ("m".to_owned(), 0.0)];
        let reply = Reply { text: "M".to_owned(), first_token: Some(tokens), ..Reply::default() };
        assert_eq!(preference_of(1, &reply), Some(1.75));
        assert_eq!(preference_of(2, &reply), Some(1.25));
        let other = Reply { first_token: Some(vec![("Both".to_owned(), -0.1)]), ..reply.clone() };
        assert_eq!(preference_of(1, &other), None);
        let sampled = Reply { first_token: None, ..reply };
        assert_eq!((preference_of(1, &sampled), preference_of(2, &sampled)), (Some(2.0), Some(1.0)));
        assert_eq!(preference_of(1, &Reply { text: "neither".to_owned(), ..Reply::default() }), None);
    }
}
