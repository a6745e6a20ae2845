//! Reads the configured questions, answers and judge prompts.
use std::collections::BTreeMap;

use anyhow::{Context, bail};

use super::{
    JudgeConfig, generating,
    protocol::{Inputs, Prompts, Protocol},
    question::{self, Question},
    template::{self, ArenaConfig},
    verdict::Patterns,
};
use crate::input;

/// The configured questions, or those answered by the baseline.
///
/// # Errors
/// If there are none, or they cannot be read.
pub(super) fn questions(config: &JudgeConfig) -> anyhow::Result<Vec<Question>> {
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

/// Reads everything that prompts are built from.
///
/// # Errors
/// If a file is missing or cannot be read.
pub(super) fn inputs(config: &JudgeConfig, questions: Vec<Question>) -> anyhow::Result<Inputs> {
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
