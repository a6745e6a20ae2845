//! One run: answers, calls, what is missing, rows, scores.
use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, bail, ensure};
use salsa_algo::{
    judge::{
        alpaca::Gamed,
        style::{FEATURES, Scale, Style},
    },
    stats::Resampling,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    JudgeConfig,
    call::{Answer, Call, Settings, Usage},
    generating::{self, Answering},
    journal::Journal,
    protocol::{Inputs, Match, Prompts, Protocol, Replies, alpaca, arena, mt_bench},
    question::{self, Question},
    recorded::{self, Book, Recorded},
    score::{Counting, Rows, StyleFeature},
    style::{self, Encoding},
    template::{self, ArenaConfig},
    transport::{
        Dialect, Transport, batch,
        http::{Access, Endpoint},
        local::LocalJudge,
        secret::Secret,
    },
    verdict::{Patterns, without_thoughts},
};
use crate::{
    atomic, input,
    progress::Progress,
    stage::{Interrupted, StageContext, Until, text::rows as jsonl},
};

/// The scores of a directory, beside `stage.json`.
const SCORES: &str = "judgment.json";

/// Does the work.
///
/// # Errors
/// If something is missing or cannot be read, the judge cannot be reached, or more calls have no reply than may.
pub(super) fn run(config: &JudgeConfig, context: &StageContext) -> anyhow::Result<Value> {
    config.validate()?;
    if config.only_counts() {
        let results = count_only(config)?;
        if !config.dry_run.0 {
            write_scores(config, &results)?;
        }
        return Ok(results);
    }
    let dir = config.output_dir.as_path();
    let questions = questions(config)?;
    let answering = answering(config);
    if context.until == Until::Planned {
        config.models.values().try_for_each(|path| generating::check(path, &questions, &answering, context))?;
    }
    if config.dry_run.0 {
        ensure!(
            config.models.is_empty(),
            "dry_run counts prompts, which hold the answers, and those of models are still to be made; give answers"
        );
    } else if context.until == Until::Done {
        let mut models = config.models.iter();
        models.try_for_each(|(name, path)| generating::answer(dir, (name, path), &questions, &answering, context))?;
    }
    let inputs = inputs(config, questions)?;
    let matches = inputs.plan()?;
    let settings = settings(config);
    if config.dry_run.0 {
        return Ok(forecast(&matches, &settings));
    }
    let mut judging = Judging::open(config, &inputs, &matches, settings, context)?;
    judging.ask()?;
    judging.results()
}

/// Checks whether questions, answers and templates fit together.
///
/// # Errors
/// If they do not.
pub(super) fn check(config: &JudgeConfig) -> anyhow::Result<()> {
    if config.only_counts() {
        return count_only(config).map(drop);
    }
    let questions = questions(config)?;
    if config.models.is_empty() {
        inputs(config, questions)?.plan()?;
    }
    Ok(())
}

/// Counts judgments as they are.
fn count_only(config: &JudgeConfig) -> anyhow::Result<Value> {
    let mut rows = recorded::all_rows(config.judgments.iter().map(AsRef::as_ref), config.protocol)?;
    let duplicates = rows.remove_duplicates();
    let mut results = scores(config, &rows, None)?;
    results["rows"] = json!(rows.len());
    results["duplicates_left_out"] = json!(duplicates);
    Ok(results)
}

fn write_scores(config: &JudgeConfig, results: &Value) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(results)? + "\n";
    atomic::write(&config.output_dir.join(SCORES), text.as_bytes())
}

fn answering(config: &JudgeConfig) -> Answering<'_> {
    let of_protocol = match config.protocol {
        Protocol::MtBenchSingle | Protocol::MtBenchPair => 1024,
        _ => 4096,
    };
    Answering {
        protocol: config.protocol,
        max_new_tokens: config.max_new_tokens.unwrap_or(of_protocol),
        temperature: config.answer_temperature,
        seed: config.seed,
        slots: config.batch_size.0,
        chat: &config.chat,
    }
}

fn settings(config: &JudgeConfig) -> Settings {
    Settings {
        temperature: config.temperature.unwrap_or_else(|| config.protocol.temperature()),
        top_logprobs: config.protocol.top_logprobs(),
        max_tokens: config.max_tokens.unwrap_or_else(|| config.protocol.max_tokens()),
    }
}

fn questions(config: &JudgeConfig) -> anyhow::Result<Vec<Question>> {
    let mut questions = match (&config.questions, config.answers.get(&config.baseline)) {
        (Some(path), _) => question::questions(path)?,
        (None, Some(path)) => {
            question::questions(path).context("there are no questions, so the baseline's are taken")?
        }
        (None, None) => bail!("no questions are given, and the baseline has no file of answers to take them from"),
    };
    if config.limit > 0 {
        questions.truncate(config.limit);
    }
    Ok(questions)
}

fn inputs(config: &JudgeConfig, questions: Vec<Question>) -> anyhow::Result<Inputs> {
    let templates = config.templates.as_deref().context("no judge prompts are given; say templates: FILE")?;
    let prompts = match config.protocol {
        Protocol::MtBenchSingle | Protocol::MtBenchPair | Protocol::Pairwise => {
            Prompts::FastChat(template::read(templates)?, config.template.clone())
        }
        Protocol::ArenaHardV01 | Protocol::ArenaHardV2 => {
            let arena = ArenaConfig::read(templates)?;
            let patterns = match arena.regex_patterns.is_empty() {
                true => Patterns::standard(),
                false => Patterns::new(&arena.regex_patterns).with_context(|| templates.display().to_string())?,
            };
            let systems = config.judge_settings.as_deref().map(template::system_prompts).transpose()?;
            Prompts::Arena(arena, patterns, systems.unwrap_or_default())
        }
        Protocol::AlpacaEval2 => Prompts::Alpaca(input::read_to_string(templates)?),
    };
    let mut answers = BTreeMap::new();
    for (name, path) in &config.answers {
        answers.insert(name.clone(), question::answers(path)?);
    }
    for name in config.models.keys() {
        answers.insert(name.clone(), question::answers(&generating::answers_file(&config.output_dir, name))?);
    }
    let references = config.reference_answers.as_deref().map(question::answers).transpose()?;
    let judge = config.judge_model.clone();
    Ok(Inputs {
        protocol: config.protocol,
        judge,
        questions,
        answers,
        baseline: config.baseline.clone(),
        prompts,
        references,
    })
}

/// How many calls and tokens it would be.
fn forecast(matches: &[Match], settings: &Settings) -> Value {
    let calls: Vec<&Call> = matches.iter().flat_map(|found| &found.games).collect();
    let tokens: usize = calls.iter().map(|call| estimated_tokens(call)).sum();
    json!({
        "calls": calls.len(),
        "prompt_tokens": tokens,
        "completion_tokens_at_most": calls.len() * settings.max_tokens,
        "tokens_are_counted_with": "o200k_base",
    })
}

/// The tokens of a prompt, about: those of its texts by gpt-4o's tokenizer, and a few for each message.
fn estimated_tokens(call: &Call) -> usize {
    call.messages.iter().map(|message| Encoding::O200k.tokens(&message.content) + 4).sum()
}

/// Most characters of a text for each of its tokens; English has between four and five.
const MOST_CHARACTERS: usize = 8;

/// Whether a server counted so few tokens that it cannot have read all of the prompt.
fn is_cut(call: &Call, usage: Usage) -> bool {
    let characters: usize = call.messages.iter().map(|message| message.content.chars().count()).sum();
    let counted = usage.prompt_tokens as usize;
    counted > 0 && counted * MOST_CHARACTERS < characters
}

/// A run whose calls are known.
struct Judging<'a> {
    config: &'a JudgeConfig,
    inputs: &'a Inputs,
    matches: &'a [Match],
    settings: Settings,
    journal: Journal,
    recorded: Recorded,
    context: &'a StageContext,
    /// Replies that this run got.
    made: usize,
    /// What the server wanted to have left out.
    dialect: Dialect,
    /// Prompts that the server probably cut.
    cut: usize,
}

impl<'a> Judging<'a> {
    fn open(
        config: &'a JudgeConfig,
        inputs: &'a Inputs,
        matches: &'a [Match],
        settings: Settings,
        context: &'a StageContext,
    ) -> anyhow::Result<Judging<'a>> {
        let paths = config.judgments.iter().map(AsRef::as_ref);
        let recorded = Recorded::read(paths, config.protocol, &config.baseline)?;
        if context.until == Until::Planned {
            if let Some(path) = &config.judge_path {
                let calls: Vec<&Call> = matches.iter().flat_map(|found| &found.games).collect();
                LocalJudge::open(path, &config.chat, config.batch_size.0)?.check_memory(&calls, &settings, context)?;
            }
            bail!("a rehearsal ends where the calls are known");
        }
        let journal = Journal::open(&config.output_dir, context)?;
        Ok(Judging {
            config,
            inputs,
            matches,
            settings,
            journal,
            recorded,
            context,
            made: 0,
            dialect: Dialect::FIRST,
            cut: 0,
        })
    }

    fn book(&self) -> Book<'_> {
        Book { journal: &self.journal, recorded: &self.recorded, settings: &self.settings }
    }

    /// Every call that there is by now: those of the plan, and second attempts.
    fn calls(&self) -> Vec<Call> {
        let planned = self.matches.iter().flat_map(|found| found.games.iter().cloned());
        planned.chain(self.inputs.second_attempts(self.matches, &self.book())).collect()
    }

    fn missing(&self) -> Vec<Call> {
        let book = self.book();
        let mut seen = std::collections::HashSet::new();
        let is_missing = |call: &Call| book.reply(call).is_none() && seen.insert(call.id(&self.settings));
        self.calls().into_iter().filter(is_missing).collect()
    }

    /// Asks what is missing, and then what follows from the replies.
    fn ask(&mut self) -> anyhow::Result<()> {
        let mut tried = std::collections::HashSet::new();
        loop {
            let settings = self.settings.clone();
            let missing: Vec<Call> =
                self.missing().into_iter().filter(|call| tried.insert(call.id(&settings))).collect();
            if missing.is_empty() {
                break;
            }
            self.ask_these(&missing.iter().collect::<Vec<_>>())?;
            if self.context.interrupted() {
                let (total, left) = (self.calls().len() as u64, self.missing().len() as u64);
                return Err(Interrupted { step: total - left, total }.into());
            }
        }
        self.refuse_failures()
    }

    fn ask_these(&mut self, calls: &[&Call]) -> anyhow::Result<()> {
        let (config, context, settings) = (self.config, self.context, self.settings.clone());
        match config.transport {
            Transport::Recorded => bail!(
                "{} calls have no judgment in the files that judgments names, the first for question {} and {}; give all \
                 files, or another transport",
                calls.len(),
                calls[0].subject.question,
                calls[0].subject.models.join(" against ")
            ),
            Transport::Batch => self.ask_by_files(calls),
            Transport::Local => {
                let path = config.judge_path.as_ref().context("no judge_path is given")?;
                let judge = LocalJudge::open(path, &config.chat, config.batch_size.0)?;
                judge.check_memory(calls, &settings, context)?;
                let progress = Progress::new("judge", calls.len() as u64, "calls");
                let mut taker = Taker::new(self, calls, &progress);
                judge.ask(calls, &settings, &mut |number, answer| taker.take(number, answer), context)?;
                progress.finish("");
                Ok(())
            }
            Transport::Http => {
                let secret = Secret::read(&config.api_key_file, &config.api_key_env)?;
                let endpoint = Endpoint::new(Access {
                    base_url: &config.base_url,
                    model: &config.judge_model,
                    secret,
                    timeout: std::time::Duration::from_secs_f64(config.timeout.0),
                    retries: config.max_retries.0,
                })?;
                let progress = Progress::new("judge", calls.len() as u64, "calls");
                let mut taker = Taker::new(self, calls, &progress);
                let take = &mut |number, answer| taker.take(number, answer);
                let dialect = endpoint.ask(calls, &settings, config.concurrency.0, take, context)?;
                progress.finish(&taker.tokens_in_words());
                self.dialect = dialect;
                Ok(())
            }
        }
    }

    /// Takes what came back of a batch, and writes requests for what is still missing.
    fn ask_by_files(&mut self, calls: &[&Call]) -> anyhow::Result<()> {
        let dir = self.config.output_dir.as_path();
        let mut answers = batch::read(dir, &self.settings)?;
        let mut left = Vec::new();
        for call in calls {
            match answers.remove(&call.id(&self.settings)) {
                Some(Ok(reply)) => self.add(call, Ok(reply))?,
                Some(Err(failure)) => {
                    // A failure that was taken before is asked again; a new one is written down.
                    if self.journal.answers().failure(&call.id(&self.settings)) != Some(&failure) {
                        self.add(call, Err(failure))?;
                    }
                    left.push(*call);
                }
                None => left.push(*call),
            }
        }
        if left.len() > self.config.max_failures.0 {
            return Err(batch::write(dir, &self.config.judge_model, &left, &self.settings)?.into());
        }
        Ok(())
    }

    fn add(&mut self, call: &Call, answer: Answer) -> anyhow::Result<()> {
        self.made += usize::from(answer.is_ok());
        self.journal.add(call, &self.settings, answer)
    }

    /// Stops where more calls failed than may.
    fn refuse_failures(&self) -> anyhow::Result<()> {
        let (missing, most) = (self.missing(), self.config.max_failures.0);
        if missing.len() <= most {
            return Ok(());
        }
        let kinds = self.failures_by_kind(&missing);
        let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let example = missing.iter().find_map(|call| self.journal.answers().failure(&call.id(&self.settings)));
        let example = example.map_or_else(String::new, |failure| format!(" (one of them: {})", failure.message));
        bail!(
            "{} of {} calls have no reply: {}{example}; the same command asks them again, and max_failures: {} does without \
             them",
            missing.len(),
            self.calls().len(),
            kinds.join(", "),
            missing.len()
        )
    }

    fn failures_by_kind(&self, missing: &[Call]) -> BTreeMap<&'static str, usize> {
        let mut kinds = BTreeMap::new();
        for call in missing {
            let failure = self.journal.answers().failure(&call.id(&self.settings));
            *kinds.entry(failure.map_or("not_asked", |failure| failure.kind.name())).or_default() += 1;
        }
        kinds
    }

    /// Writes the tool's own files and counts.
    fn results(&self) -> anyhow::Result<Value> {
        let book = self.book();
        let rows = rows(self.inputs, self.matches, &book);
        write_rows(self.config, &rows)?;
        let (calls, missing) = (self.calls(), self.missing());
        let mut results = scores(self.config, &rows, Some(self.inputs))?;
        let replies = calls.iter().filter_map(|call| book.reply(call));
        let mut usage = Usage::default();
        let (mut answered_by, mut thoughts): (BTreeMap<String, usize>, usize) = (BTreeMap::new(), 0);
        for reply in replies {
            usage.prompt_tokens += reply.usage.prompt_tokens;
            usage.completion_tokens += reply.usage.completion_tokens;
            thoughts += usize::from(without_thoughts(&reply.text).1);
            if !reply.answered_by.is_empty() {
                *answered_by.entry(reply.answered_by.clone()).or_default() += 1;
            }
        }
        results["judge"] = json!({
            "model": self.config.judge_model, "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_tokens, "answered_by": answered_by, "server": self.dialect.in_words(),
        });
        results["calls"] = json!(calls.len());
        results["failures"] = json!(self.failures_by_kind(&missing));
        results["prompt_tokens"] = json!(usage.prompt_tokens);
        results["completion_tokens"] = json!(usage.completion_tokens);
        results["judgments_with_thoughts"] = json!(thoughts);
        write_scores(self.config, &results)?;
        let (made, cut) = (self.made, self.cut);
        self.context.say(&format!("{} judgments, {made} of them new", calls.len() - missing.len()));
        if cut > 0 {
            self.context.say(&format!(
                "{cut} prompts have more than {MOST_CHARACTERS} characters for each token that the server counted: it probably \
                 cuts them to its context; raise that (Ollama: OLLAMA_CONTEXT_LENGTH)"
            ));
        }
        Ok(results)
    }
}

/// Takes answers as they come: into the journal, and into the progress.
struct Taker<'t, 'a> {
    judging: &'t mut Judging<'a>,
    calls: &'t [&'t Call],
    progress: &'t Progress,
    done: usize,
    usage: Usage,
}

impl<'t, 'a> Taker<'t, 'a> {
    fn new(judging: &'t mut Judging<'a>, calls: &'t [&'t Call], progress: &'t Progress) -> Taker<'t, 'a> {
        Taker { judging, calls, progress, done: 0, usage: Usage::default() }
    }

    fn take(&mut self, number: usize, answer: Answer) -> anyhow::Result<()> {
        let call = self.calls[number];
        let usage = answer.as_ref().map_or_else(|failure| failure.usage, |reply| reply.usage);
        if answer.is_ok() && self.judging.config.transport == Transport::Http {
            self.judging.cut += usize::from(is_cut(call, usage));
        }
        self.judging.add(call, answer)?;
        self.usage.prompt_tokens += usage.prompt_tokens;
        self.usage.completion_tokens += usage.completion_tokens;
        self.done += 1;
        self.progress.set(self.done as u64);
        self.progress.message(&self.tokens_in_words());
        Ok(())
    }

    /// Tokens so far, and what is left if the other calls are as long.
    fn tokens_in_words(&self) -> String {
        let so_far = self.usage.prompt_tokens + self.usage.completion_tokens;
        let left = so_far.checked_div(self.done as u64).unwrap_or(0) * (self.calls.len() - self.done) as u64;
        match left {
            0 => format!("{so_far} tokens"),
            left => format!("{so_far} tokens, about {left} left"),
        }
    }
}

fn rows(inputs: &Inputs, matches: &[Match], book: &Book<'_>) -> Rows {
    match inputs.protocol {
        Protocol::MtBenchSingle => Rows::Single(mt_bench::single_rows(inputs, matches, book)),
        Protocol::MtBenchPair | Protocol::Pairwise => Rows::Pair(mt_bench::pair_rows(inputs, matches, book)),
        Protocol::ArenaHardV01 | Protocol::ArenaHardV2 => Rows::Arena(arena::rows(inputs, matches, book)),
        Protocol::AlpacaEval2 => Rows::Alpaca(alpaca::rows(inputs, matches, book)),
    }
}

/// The files of the tool's own layout below `model_judgment`.
fn write_rows(config: &JudgeConfig, rows: &Rows) -> anyhow::Result<()> {
    let (dir, judge) = (config.output_dir.join("model_judgment"), config.judge_file_name());
    let lines = |path: &Path, rows: Vec<Value>| {
        let objects = rows.into_iter().map(|row| match row {
            Value::Object(row) => row,
            _ => unreachable!("rows are objects"),
        });
        jsonl::write(path, objects)
    };
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    match rows {
        Rows::Single(rows) => {
            lines(&dir.join(format!("{judge}_single.jsonl")), rows.iter().map(mt_bench::SingleRow::written).collect())
        }
        Rows::Pair(rows) => {
            let rows = rows.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?;
            lines(&dir.join(format!("{judge}_pair.jsonl")), rows)
        }
        Rows::Arena(rows) => {
            let dir = dir.join(&judge);
            std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
            let mut by_model: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
            for row in rows {
                by_model.entry(&row.model).or_default().push(row.written(config.protocol));
            }
            by_model.into_iter().try_for_each(|(model, rows)| lines(&dir.join(format!("{model}.jsonl")), rows))
        }
        Rows::Alpaca(rows) => {
            let mut by_model: BTreeMap<&str, Vec<&alpaca::Annotation>> = BTreeMap::new();
            rows.iter().for_each(|row| by_model.entry(&row.generator_2).or_default().push(row));
            for (model, rows) in by_model {
                let dir = dir.join(model);
                std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
                let text = serde_json::to_string_pretty(&rows)? + "\n";
                atomic::write(&dir.join("annotations.json"), text.as_bytes())?;
            }
            Ok(())
        }
    }
}

/// The scores, with what the configuration says of counting.
fn scores(config: &JudgeConfig, rows: &Rows, inputs: Option<&Inputs>) -> anyhow::Result<Value> {
    let none = BTreeMap::new();
    let answers = inputs.map_or(&none, |inputs| &inputs.answers);
    let encoding = if config.protocol == Protocol::ArenaHardV01 { Encoding::Cl100k } else { Encoding::O200k };
    let of = |model: &str, key: &str| answers.get(model).and_then(|answers| answers.get(key));
    let style_of = |model: &str, key: &str| -> Option<Style> {
        let answer = of(model, key)?;
        answer.style.or_else(|| Some(style::of(answer.turns.first()?, encoding)))
    };
    let length_of = |model: &str, key: &str| Some(of(model, key)?.turns.iter().map(|turn| turn.chars().count()).sum());
    let category_of = |key: &str| {
        let question = inputs?.questions.iter().find(|question| question.key() == key)?;
        Some(question.category.clone())
    };
    let has = |feature| config.control_features.contains(&feature);
    let (length, markdown) = (has(StyleFeature::Length), has(StyleFeature::Markdown));
    let counting = Counting {
        protocol: config.protocol,
        baseline: &config.baseline,
        how: Resampling { resamples: config.resamples, seed: config.seed, ..Resampling::default() },
        style: config.style_control,
        controlled: [length, markdown, markdown, markdown],
        scale: config.style_scale.as_deref().map(scale).transpose()?,
        style_of: &style_of,
        length_of: &length_of,
        category_of: &category_of,
        difficulties: config.instruction_difficulty.as_deref().map(difficulties).transpose()?,
        gamed: config.df_gamed.as_deref().map(gamed).transpose()?,
    };
    let mut results = rows.scores(&counting)?;
    results["protocol"] = json!(config.protocol.name());
    Ok(results)
}

/// A fixed scale of style features.
fn scale(path: &Path) -> anyhow::Result<Scale> {
    #[derive(Deserialize)]
    struct Fixed {
        mean: [f64; FEATURES],
        deviation: [f64; FEATURES],
    }
    let Fixed { mean, deviation } = serde_json::from_slice(&input::read(path)?).with_context(|| {
        format!("{}: {{\"mean\": [length, headers, lists, bold], \"deviation\": [...]}} is needed", path.display())
    })?;
    let is_fine = mean.iter().chain(&deviation).all(|x| x.is_finite()) && deviation.iter().all(|x| *x >= 0.0);
    ensure!(is_fine, "{}: the numbers must be finite, and deviations not below 0", path.display());
    Ok(Scale { mean, deviation })
}

/// The column of a CSV file, in the order of its rows.
fn column(path: &Path, rows: &[Map<String, Value>], name: &str) -> anyhow::Result<Vec<f64>> {
    let number = |(i, row): (usize, &Map<String, Value>)| {
        let text = row.get(name).with_context(|| format!("{} has no column {name}", path.display()))?;
        let text = text.as_str().unwrap_or_default().trim();
        let number: f64 =
            text.parse().with_context(|| format!("{}: row {}: {name} is {text:?}", path.display(), i + 1))?;
        Ok(number)
    };
    rows.iter().enumerate().map(number).collect()
}

fn csv_rows(path: &Path) -> anyhow::Result<Vec<Map<String, Value>>> {
    let bytes = input::read(path)?;
    let mut reader = csv::Reader::from_reader(&bytes[..]);
    let names = reader.headers().with_context(|| format!("{} is no CSV file", path.display()))?.clone();
    let row = |record: Result<csv::StringRecord, csv::Error>| {
        let record = record.with_context(|| path.display().to_string())?;
        Ok(names.iter().zip(&record).map(|(name, value)| (name.to_owned(), json!(value))).collect())
    };
    reader.records().map(row).collect()
}

/// The difficulty of each instruction: the column `instruction_difficulty`, or the last one.
fn difficulties(path: &Path) -> anyhow::Result<Vec<f64>> {
    let rows = csv_rows(path)?;
    let named = |row: &Map<String, Value>| row.contains_key("instruction_difficulty");
    let last = rows
        .first()
        .and_then(|row| row.keys().next_back().cloned())
        .with_context(|| format!("{} is empty", path.display()))?;
    let name = if rows.first().is_some_and(named) { "instruction_difficulty" } else { &last };
    column(path, &rows, name)
}

/// The rows of the gamed baseline.
fn gamed(path: &Path) -> anyhow::Result<Vec<Gamed>> {
    let rows = csv_rows(path)?;
    let of = |name| column(path, &rows, name);
    let (preferences, lengths) = (of("preference")?, of("std_delta_len")?);
    let difficulties = of("instruction_difficulty")?;
    let all = preferences.into_iter().zip(lengths).zip(difficulties);
    let row = |((preference, std_delta_len), difficulty)| Gamed { preference, std_delta_len, difficulty };
    Ok(all.map(row).filter(|row| row.preference.is_finite()).collect())
}

#[cfg(test)]
mod tests {
    use super::super::call::test_call;
    use super::*;

    #[test]
    fn a_prompt_that_a_server_cut_is_noticed() {
        let call = test_call("1", &"word ".repeat(8000));
        let counted = |prompt_tokens| is_cut(&call, Usage { prompt_tokens, completion_tokens: 1 });
        assert!(counted(4096) && !counted(8003), "40,000 characters are 8,000 words");
        assert!(!counted(0), "a server that counts nothing says nothing");
    }

    #[test]
    fn files_of_alpaca_eval_are_read_by_their_columns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.csv");
        std::fs::write(&path, ",instruction_difficulty\n0,-1.5\n1,2.25\n").unwrap();
        assert_eq!(difficulties(&path).unwrap(), [-1.5, 2.25]);
        std::fs::write(&path, "index,0\n0,3\n").unwrap();
        assert_eq!(difficulties(&path).unwrap(), [3.0], "the last column, whatever it is called");
        std::fs::write(
            &path,
            "model,preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline\n\
             x,0.25,0,-1.5,2.0,False\nx,nan,1,1,1,False\n",
        )
        .unwrap();
        let rows = gamed(&path).unwrap();
        assert_eq!(rows, [Gamed { preference: 0.25, std_delta_len: -1.5, difficulty: 2.0 }]);
        std::fs::write(&path, "preference\nx\n").unwrap();
        let error = format!("{:#}", gamed(&path).unwrap_err());
        assert!(error.contains("row 1: preference is \"x\""), "{error}");
    }

    /// With one token a judge says nothing or does not come to its end: every call fails, and the stage is not done.
    #[test]
    fn a_local_judge_without_a_whole_judgment_has_failed() {
        let dir = tempfile::tempdir().unwrap();
        let base = crate::stage::fixture::base(dir.path());
        let write = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).unwrap();
            dir.path().join(name)
        };
        let template = json!({"name": "pair-v2", "type": "pairwise", "system_prompt": "", "output_format": "[[A]]",
            "prompt_template": "{question} {answer_a} {answer_b}"});
        let answers = |text: &str| format!("{}\n", json!({"prompt": "the cat", "response": text}));
        let config = JudgeConfig {
            answers: [
                ("a".to_owned(), write("a.jsonl", &answers("sat")).into()),
                ("b".to_owned(), write("b.jsonl", &answers("ran")).into()),
            ]
            .into(),
            baseline: "b".to_owned(),
            templates: Some(write("t.jsonl", &format!("{template}\n")).into()),
            transport: Transport::Local,
            judge_path: Some(base.into()),
            max_tokens: Some(1),
            resamples: 10,
            output_dir: dir.path().join("out"),
            ..JudgeConfig::default()
        };
        std::fs::create_dir_all(&config.output_dir).unwrap();
        let quiet = crate::stage::fixture::quiet();
        let error = format!("{:#}", run(&config, &quiet).unwrap_err());
        assert!(error.contains("2 of 2 calls have no reply: "), "{error}");
        let enough = JudgeConfig { max_failures: 2.into(), ..config.clone() };
        let results = run(&enough, &quiet).unwrap();
        let failures = results["failures"].as_object().unwrap();
        assert!(failures.keys().all(|kind| ["cut_off", "empty"].contains(&kind.as_str())), "{failures:?}");
        assert_eq!(failures.values().filter_map(Value::as_u64).sum::<u64>(), 2);
        assert_eq!(results["models"]["a"]["dropped"], 1);
        let error = format!("{:#}", run(&JudgeConfig { max_tokens: Some(5000), ..config }, &quiet).unwrap_err());
        assert!(error.contains("2 too_long") && error.contains("lower max_tokens"), "{error}");
    }

    #[test]
    fn a_fixed_scale_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scale.json");
        std::fs::write(&path, "{\"mean\": [0, 0, 0, 0], \"deviation\": [1, 1, 1, 2]}").unwrap();
        assert_eq!(scale(&path).unwrap().deviation, [1.0, 1.0, 1.0, 2.0]);
        std::fs::write(&path, "{\"mean\": [0, 0, 0, 0], \"deviation\": [1, 1, 1, -2]}").unwrap();
        assert!(format!("{:#}", scale(&path).unwrap_err()).contains("not below 0"));
    }
}
