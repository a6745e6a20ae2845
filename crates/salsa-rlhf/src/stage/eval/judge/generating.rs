//! Answers of checkpoints to the questions, written in the tool's layout.
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    sync::Arc,
};

use anyhow::{Context, ensure};
use salsa_engine::{Event, Finish, Head, Model, Prompt, Response, Sampling, Ticket};
use serde_json::{Map, Value, json};

use super::{
    call::digest,
    protocol::Protocol,
    question::Question,
    style::{self, Encoding},
};
use crate::{
    atomic,
    chat::Message,
    config::paths::ModelPath,
    data::Content,
    input,
    progress::Progress,
    stage::{
        StageContext,
        lifecycle::inputs::Input,
        memory::{MemorySettings, Need, Order, Passed, Passes, Responses, Saving, part},
        models::frozen::{Found, Frozen},
        text::{
            chat_arguments::{ChatArguments, TextPrompts},
            encoder::Encoder,
            rows,
        },
    },
};

/// How checkpoints answer.
#[derive(Clone, Debug)]
pub(super) struct Answering<'a> {
    /// The protocol, which determines prompts and file layout.
    pub protocol: Protocol,
    /// Maximum number of tokens of an answer.
    pub max_new_tokens: usize,
    /// One temperature for all questions; `None` for the protocol's.
    pub temperature: Option<f64>,
    /// Seed of the answers.
    pub seed: u64,
    /// Answers generated at once.
    pub slots: usize,
    /// How prompts become tokens.
    pub chat: &'a ChatArguments,
}

impl Answering<'_> {
    /// The temperature for a question: the configured one, the question's own, or MT-Bench's for its category.
    fn temperature(&self, question: &Question) -> f64 {
        let of_category = || match (self.protocol, question.category.as_str()) {
            (_, "writing" | "roleplay") => 0.7,
            (_, "extraction" | "math" | "coding" | "reasoning" | "arena-hard-200") => 0.0,
            (_, "stem" | "humanities") => 0.1,
            (Protocol::MtBenchSingle | Protocol::MtBenchPair, _) => 0.7,
            _ => 0.0,
        };
        self.temperature.or(question.required_temperature).unwrap_or_else(of_category)
    }

    /// Digest of everything that the answers depend on.
    fn digest(&self, model: &ModelPath, questions: &[Question]) -> anyhow::Result<String> {
        let chat = serde_json::to_string(self.chat)?;
        let how = format!(
            "{:?} {} {:?} {} {} {chat}",
            self.protocol,
            self.max_new_tokens,
            self.temperature,
            self.seed,
            env!("CARGO_PKG_VERSION")
        );
        let asked: Vec<String> = questions.iter().map(|question| format!("{question:?}")).collect();
        let model = Input::read(model)?.sha256;
        Ok(digest([how.as_bytes(), model.as_bytes()].into_iter().chain(asked.iter().map(String::as_bytes))))
    }
}

/// Answers all questions and writes `model_answer/NAME.jsonl`, unless an earlier run has.
///
/// # Errors
/// If the checkpoint cannot be used, a question does not fit its context, or there is too little memory.
pub(super) fn answer(
    dir: &Path,
    (name, path): (&str, &ModelPath),
    questions: &[Question],
    answering: &Answering<'_>,
    context: &StageContext,
) -> anyhow::Result<()> {
    let (file, mark) = (answers_file(dir, name), dir.join("model_answer").join(format!("{name}.digest")));
    let digest = answering.digest(path, questions)?;
    if file.exists() && input::read_if_any(&mark)?.is_some_and(|before| before == digest.as_bytes()) {
        context.say(&format!("{name}: the answers are there already"));
        return Ok(());
    }
    let asked = Asked::open(path, questions, answering)?;
    asked.check_memory(context)?;
    let answers = asked.answers(name, context)?;
    fs::create_dir_all(dir.join("model_answer")).with_context(|| format!("cannot make {}", dir.display()))?;
    let row = |(question, turns): (&Question, Vec<String>)| written(answering.protocol, name, question, &turns);
    rows::write(&file, questions.iter().zip(answers).map(row))?;
    atomic::write(&mark, digest.as_bytes())
}

/// Reports the memory that a model needs to answer, and fails if that is too much.
///
/// # Errors
/// As [`answer`].
pub(super) fn check(
    path: &ModelPath,
    questions: &[Question],
    answering: &Answering<'_>,
    context: &StageContext,
) -> anyhow::Result<()> {
    Asked::open(path, questions, answering)?.check_memory(context)
}

/// The path of a model's answers.
pub(super) fn answers_file(dir: &Path, name: &str) -> std::path::PathBuf {
    dir.join("model_answer").join(format!("{name}.jsonl"))
}

/// Checks the memory for generating responses to these prompts.
///
/// # Errors
/// As [`Found::check_memory`].
pub(super) fn check_memory(
    found: &Found,
    stage: &str,
    prompts: &[Vec<u32>],
    new_tokens: usize,
    slots: usize,
    context: &StageContext,
) -> anyhow::Result<()> {
    let asked = Responses::new(prompts, new_tokens, Order::Given);
    let generation = |model: Passed<'_>, knobs: &MemorySettings, need: &mut Need| {
        let passes = Passes::new(knobs);
        asked.add_generation(model, knobs.slots, knobs.slots.min(prompts.len()), &passes);
        need.add(part::GENERATION, passes.bytes() + asked.kept(1));
    };
    let knobs = MemorySettings { slots: slots.min(prompts.len()).max(1), ..MemorySettings::on(&context.device) };
    found.check_memory(stage, &knobs, &[Saving::Slots("batch_size"), Saving::Dtype], &generation, context)
}

/// Continues all prompts and passes each response to `take` as soon as it has ended, with the index of its prompt. On an
/// interruption it stops between two tokens and omits the responses that have not ended.
///
/// # Errors
/// Those of `take`.
pub(super) fn each_response(
    model: &Model,
    prompts: &[Prompt],
    sampling: &Sampling,
    take: &mut dyn FnMut(usize, Response) -> anyhow::Result<()>,
    context: &StageContext,
) -> anyhow::Result<()> {
    let Some(longest) = prompts.iter().map(|prompt| prompt.tokens.len()).max() else { return Ok(()) };
    let mut decoding = model.decoding(sampling.slots.min(prompts.len()), longest + sampling.max_new_tokens);
    let sampling = Arc::new(sampling.clone());
    let mut open: HashMap<Ticket, (usize, Response)> = HashMap::new();
    for (number, prompt) in prompts.iter().enumerate() {
        let empty = Response { tokens: Vec::new(), logprobs: Vec::new(), finish: Finish::Length };
        open.insert(decoding.submit(prompt.clone(), &sampling), (number, empty));
    }
    while !decoding.is_idle() && !context.interrupted() {
        for Event { ticket, token, logprob, finish, .. } in decoding.step() {
            let (_, response) = open.get_mut(&ticket).expect("events are of submitted prompts that have not ended");
            response.tokens.push(token);
            response.logprobs.push(logprob);
            let Some(finish) = finish else { continue };
            let (number, response) = open.remove(&ticket).expect("it was just there");
            take(number, Response { finish, ..response })?;
        }
    }
    Ok(())
}

/// The index of a question, and its prompt.
type Numbered<'a> = (usize, &'a Vec<u32>);

/// An opened checkpoint and its questions.
struct Asked<'a> {
    found: Found,
    questions: &'a [Question],
    answering: &'a Answering<'a>,
    /// The prompts of the first turn.
    prompts: Vec<Vec<u32>>,
}

impl<'a> Asked<'a> {
    fn open(path: &ModelPath, questions: &'a [Question], answering: &'a Answering<'a>) -> anyhow::Result<Asked<'a>> {
        let found = Found::open(path, Head::LanguageModel)?.with_chat(answering.chat);
        let mut asked = Asked { found, questions, answering, prompts: Vec::new() };
        let encoder = asked.encoder()?;
        asked.prompts = questions
            .iter()
            .map(|question| {
                let tokens = encoder.prompt(&asked.first(encoder, question))?;
                let (length, room) = (tokens.len(), asked.found.spec().max_positions);
                ensure!(length < room, "{length} tokens leave no room for an answer in the model's context of {room}");
                Ok(tokens)
            })
            .zip(questions)
            .map(|(tokens, question): (anyhow::Result<_>, _)| {
                tokens.with_context(|| format!("question {}", question.id))
            })
            .collect::<anyhow::Result<Vec<_>>>()
            .with_context(|| path.display().to_string())?;
        Ok(asked)
    }

    fn encoder(&self) -> anyhow::Result<&Encoder> {
        let dir = self.found.checkpoint.dir().display();
        self.found.encoder.as_ref().with_context(|| format!("{dir} holds no tokenizer.json"))
    }

    /// The first turn as the user's message for the chat template; as plain text if there is no template, or if custom
    /// prompts have `text_prompts: plain`.
    fn first(&self, encoder: &Encoder, question: &Question) -> Content {
        let text = question.turns[0].clone();
        let is_plain =
            self.answering.protocol == Protocol::Pairwise && self.answering.chat.text_prompts == TextPrompts::Plain;
        match encoder.has_template() && !is_plain {
            true => vec![Message::new("user", text)].into(),
            false => Content::Text(text),
        }
    }

    /// Checks the memory with the longest possible prompts: later turns include earlier answers.
    fn check_memory(&self, context: &StageContext) -> anyhow::Result<()> {
        let new = self.answering.max_new_tokens;
        let room = self.found.spec().max_positions;
        let longest = |(question, tokens): (&Question, &Vec<u32>)| {
            let later: usize = question.turns[1..].iter().map(|turn| new + turn.len() + 16).sum();
            let length = (tokens.len() + later).min(room.saturating_sub(new).max(tokens.len()));
            vec![0; length]
        };
        let prompts: Vec<Vec<u32>> = self.questions.iter().zip(&self.prompts).map(longest).collect();
        check_memory(&self.found, "judge", &prompts, new.min(room), self.answering.slots, context)
    }

    /// Generates the answers turn by turn, each question with its conversation so far.
    fn answers(self, name: &str, context: &StageContext) -> anyhow::Result<Vec<Vec<String>>> {
        let Asked { found, questions, answering, prompts } = self;
        let room = found.spec().max_positions;
        let Frozen { encoder, model, .. } = found.load(&context.device)?;
        let encoder = encoder.context("the model has no tokenizer")?;
        let turns = questions.iter().map(|question| question.turns.len()).max().unwrap_or(0);
        let total: usize = questions.iter().map(|question| question.turns.len()).sum();
        let progress = Progress::new(name, total as u64, "answers");
        let speaker = AnsweringModel { name, model: &model, encoder: &encoder, answering, room, context };
        let mut said: Vec<Vec<String>> = vec![Vec::new(); questions.len()];
        let (mut done, mut shortened, mut without) = (0, 0, 0);
        for turn in 0..turns {
            let mut asked = Vec::new();
            for (number, question) in questions.iter().enumerate().filter(|(_, question)| turn < question.turns.len()) {
                let tokens = match turn {
                    0 => prompts[number].clone(),
                    _ => speaker.later(question, &said[number], turn)?,
                };
                asked.push((number, tokens));
            }
            let left = |tokens: &Vec<u32>| room.saturating_sub(tokens.len());
            shortened += asked.iter().filter(|(_, tokens)| left(tokens) < answering.max_new_tokens).count();
            without += asked.iter().filter(|(_, tokens)| left(tokens) == 0).count();
            for (number, text) in speaker.say(questions, &asked, turn, &|finished| progress.set(done + finished))? {
                said[number].push(text);
            }
            done += asked.len() as u64;
        }
        progress.finish("");
        if shortened > 0 {
            context.say(&format!(
                "{name}: {shortened} of {total} prompts leave less room than max_new_tokens ({}) in the context of {room} \
                 tokens: these answers may be cut off{}",
                answering.max_new_tokens,
                if without > 0 { format!(", and {without} are empty") } else { String::new() }
            ));
        }
        Ok(said)
    }
}

/// A loaded model that answers.
struct AnsweringModel<'a> {
    name: &'a str,
    model: &'a Model,
    encoder: &'a Encoder,
    answering: &'a Answering<'a>,
    room: usize,
    context: &'a StageContext,
}

impl AnsweringModel<'_> {
    /// The prompt of a later turn.
    fn later(&self, question: &Question, said: &[String], turn: usize) -> anyhow::Result<Vec<u32>> {
        let mut messages = Vec::new();
        for (asked, answer) in question.turns[..turn].iter().zip(said) {
            messages.extend([Message::new("user", asked.as_str()), Message::new("assistant", answer.as_str())]);
        }
        messages.push(Message::new("user", question.turns[turn].as_str()));
        let tokens = self.encoder.prompt(&messages.into());
        tokens.with_context(|| format!("question {}: turn {}", question.id, turn + 1))
    }

    /// Generates answers. Prompts with the same temperature and limit are batched; the limit shrinks to the room that
    /// the prompt leaves, and without room the answer is empty.
    fn say(
        &self,
        questions: &[Question],
        asked: &[(usize, Vec<u32>)],
        turn: usize,
        finished: &dyn Fn(u64),
    ) -> anyhow::Result<Vec<(usize, String)>> {
        // Keys: bits of the temperature, and the token limit.
        let mut groups: BTreeMap<(u64, usize), Vec<Numbered<'_>>> = BTreeMap::new();
        let mut answers = Vec::with_capacity(asked.len());
        for (number, tokens) in asked {
            let limit = self.answering.max_new_tokens.min(self.room.saturating_sub(tokens.len()));
            if limit == 0 {
                answers.push((*number, String::new()));
                continue;
            }
            let temperature = self.answering.temperature(&questions[*number]);
            groups.entry((temperature.to_bits(), limit)).or_default().push((*number, tokens));
        }
        for ((temperature, limit), group) in groups {
            let prompt = |(number, tokens): &(usize, &Vec<u32>)| Prompt {
                tokens: tokens.to_vec(),
                id: *number as u64,
                sample: turn as u32,
            };
            let prompts: Vec<Prompt> = group.iter().map(prompt).collect();
            let sampling = Sampling {
                temperature: f64::from_bits(temperature) as f32,
                top_k: 0,
                top_p: 1.0,
                seed: self.answering.seed,
                max_new_tokens: limit,
                stop_tokens: self.encoder.ends().to_vec(),
                slots: self.answering.slots,
            };
            let take = &mut |place: usize, response: Response| {
                answers.push((group[place].0, self.encoder.decode(&response.tokens)?.trim().to_owned()));
                finished(answers.len() as u64);
                Ok(())
            };
            each_response(self.model, &prompts, &sampling, take, self.context)?;
            let name = self.name;
            ensure!(!self.context.interrupted(), "interrupted; the same command begins the answers of {name} anew");
        }
        Ok(answers)
    }
}

/// A row in the answer file of the protocol's tool.
fn written(protocol: Protocol, name: &str, question: &Question, turns: &[String]) -> Map<String, Value> {
    let id = &digest([name.as_bytes(), question.key().as_bytes(), turns.concat().as_bytes()])[..22];
    let counts = |text: &str, encoding: Encoding| {
        let style = style::of(text, encoding);
        json!({"token_len": style.tokens as u64, "header_count": style.headers as u64,
            "list_count": style.lists as u64, "bold_count": style.bold as u64})
    };
    let row = match protocol {
        Protocol::MtBenchSingle | Protocol::MtBenchPair => json!({
            "question_id": question.id, "answer_id": id, "model_id": name, "choices": [{"index": 0, "turns": turns}],
        }),
        Protocol::ArenaHardV01 => {
            let counts = counts(&turns[0], Encoding::Cl100k);
            let turn = json!({"content": turns[0], "token_len": counts["token_len"]});
            json!({
                "question_id": question.id, "answer_id": id, "model_id": name,
                "choices": [{"index": 0, "turns": [turn]}], "conv_metadata": counts,
            })
        }
        Protocol::ArenaHardV2 => json!({
            "uid": question.id, "ans_id": id, "model": name,
            "messages": [
                {"role": "user", "content": question.turns[0]},
                {"role": "assistant", "content": {"answer": turns[0]}},
            ],
            "metadata": counts(&turns[0], Encoding::O200k),
        }),
        Protocol::AlpacaEval2 => json!({
            "instruction": question.turns[0], "output": turns[0], "generator": name, "dataset": question.dataset,
        }),
        Protocol::Pairwise => json!({"id": question.id, "prompt": question.turns[0], "response": turns[0]}),
    };
    match row {
        Value::Object(row) => row,
        _ => unreachable!("all of them are objects"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::question::test_question as question;
    use super::*;
    use crate::stage::{
        fixture::{self, quiet},
        lines::generate::{self, GenerateConfig},
    };

    fn answering(chat: &ChatArguments) -> Answering<'_> {
        let (protocol, temperature) = (Protocol::MtBenchSingle, None);
        Answering { protocol, max_new_tokens: 5, temperature, seed: 0, slots: 4, chat }
    }

    #[test]
    fn the_temperature_is_the_categorys_unless_something_else_is_said() {
        let chat = ChatArguments::default();
        let mut of = answering(&chat);
        for (category, expected) in [
            ("writing", 0.7),
            ("roleplay", 0.7),
            ("math", 0.0),
            ("coding", 0.0),
            ("stem", 0.1),
            ("humanities", 0.1),
            ("x", 0.7),
        ] {
            assert_eq!(of.temperature(&question(1, category, &["q"])), expected, "{category}");
        }
        let mut asking = question(1, "writing", &["q"]);
        asking.required_temperature = Some(0.3);
        assert_eq!(of.temperature(&asking), 0.3);
        of.protocol = Protocol::ArenaHardV2;
        assert_eq!(of.temperature(&question(1, "hard_prompt", &["q"])), 0.0);
        of.temperature = Some(0.9);
        assert_eq!(of.temperature(&asking), 0.9);
    }

    /// The second turn's answer equals the response to the conversation so far.
    #[test]
    fn the_second_turn_knows_the_first_answer() {
        let dir = tempfile::tempdir().unwrap();
        let base = fixture::base(dir.path());
        let chat = ChatArguments::default();
        let questions = [question(1, "math", &["the cat", "a dog"]), question(2, "coding", &["one day"])];
        let out = dir.path().join("out");
        let path: ModelPath = base.clone().into();
        answer(&out, ("m", &path), &questions, &answering(&chat), &quiet()).unwrap();
        let rows = fixture::read_lines(&answers_file(&out, "m"));
        let turns = |row: usize| rows[row]["choices"][0]["turns"].as_array().unwrap().clone();
        assert_eq!((turns(0).len(), turns(1).len(), &rows[0]["model_id"]), (2, 1, &json!("m")));
        let said = |role: &str, text: &Value| json!({"role": role, "content": text});
        let talk = [said("user", &json!("the cat")), said("assistant", &turns(0)[0]), said("user", &json!("a dog"))];
        fixture::write_lines(&dir.path().join("talk"), &[json!({"messages": talk})]);
        let config = GenerateConfig {
            model: base.into(),
            input: dir.path().join("talk").into(),
            output: dir.path().join("said"),
            max_new_tokens: 5,
            temperature: 0.0,
            ..GenerateConfig::default()
        };
        generate::run(&config, &quiet()).unwrap();
        let response = fixture::read_lines(&config.output)[0]["response"].as_str().unwrap().trim().to_owned();
        assert_eq!(turns(0)[1], json!(response));
        // Existing answers are kept; they are regenerated if something changed.
        let file = answers_file(&out, "m");
        let before = fs::metadata(&file).unwrap().modified().unwrap();
        answer(&out, ("m", &path), &questions, &answering(&chat), &quiet()).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), before);
        let mark = || fs::read(out.join("model_answer/m.digest")).unwrap();
        let (before, shorter) = (mark(), Answering { max_new_tokens: 1, ..answering(&chat) });
        answer(&out, ("m", &path), &questions, &shorter, &quiet()).unwrap();
        assert_ne!(mark(), before);
    }
}
