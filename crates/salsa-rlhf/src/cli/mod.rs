//! The command line: one file per command. stdout carries data, stderr carries talk.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage. An error is one line on stderr: what, where, what to do; each
//! of them, where several mistakes are found at once.
use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind};

use crate::{
    config::{Usage, wording},
    recipe::Faults,
    stage::{
        StageContext,
        device::{self, Choice as DeviceChoice},
        kind::Kind,
        kinds::KINDS,
    },
};

mod bench;
mod chat;
mod doctor;
mod eval;
mod flags;
mod help;
mod init;
mod inspect;
mod merge;
mod quickstart;
mod report;
mod run;
mod schema;
mod soup;
mod stage;
mod study;

/// RLHF in one program, with a model soup as the KL reference.
#[derive(Parser)]
#[command(name = "salsa", version, max_term_width = 110, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The whole method on a built-in toy world, offline, in minutes.
    Quickstart(quickstart::Arguments),
    /// Run all stages of a recipe; those already done are skipped.
    Run(run::Arguments),
    /// Run a recipe for many seeds, settings and arms, and say what they show together.
    Study(study::Arguments),
    /// Train a tokenizer and a small base model on texts.
    Pretrain(stage::Arguments),
    /// Supervised fine-tuning: learn to give the responses of a data set.
    Sft(stage::Arguments),
    /// Average the weights of models (or combine them otherwise) into one.
    Soup(soup::Arguments),
    /// Work an adapter into its base model: a whole model of its own.
    Merge(merge::Arguments),
    /// Train a reward model on preference pairs.
    Reward(stage::Arguments),
    /// PPO against a reference of your choice: an SFT model, a soup (SALSA), and more.
    Ppo(stage::Arguments),
    /// Direct preference optimisation.
    Dpo(stage::Arguments),
    /// Compare models: answers to the same prompts, scores, win rates, KL, reward landscape.
    Evaluate(stage::Arguments),
    /// Rewards and loss on a line through two models, or on the plane of three.
    Landscape(stage::Arguments),
    /// Win rates of answers that were already generated.
    Eval(eval::Arguments),
    /// The HTML report of runs.
    Report(report::Arguments),
    /// Log-probabilities of the tokens of every input line.
    Logprobs(stage::Arguments),
    /// Reward-model score of every input line.
    Score(stage::Arguments),
    /// Responses of a model to every prompt of a file.
    Generate(stage::Arguments),
    /// Write the data of the toy world.
    Kitchen(stage::Arguments),
    /// The JSON schema of a recipe or of a stage, for editors.
    Schema(schema::Arguments),
    /// Talk to a model in the terminal.
    Chat(chat::Arguments),
    /// A checkpoint of random weights, of any shape that a config.json describes.
    Init(init::Arguments),
    /// What a checkpoint is, and the memory each stage would need.
    Inspect(inspect::Arguments),
    /// Seconds of a training step, a decoding step, a PPO update, on random weights.
    Bench(bench::Arguments),
    /// What this machine offers: CPU features, kernels, threads, memory, writable paths.
    Doctor(doctor::Arguments),
}

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    let cli = match parsed() {
        Ok(cli) => cli,
        Err(error) => return not_parsed(&error),
    };
    device::silence_failures();
    match device::caught(|| dispatch(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match error.downcast_ref::<Faults>() {
                Some(faults) => faults.iter().for_each(|fault| tell(&wording::for_people(fault))),
                None => tell(&wording::for_people(&error)),
            }
            ExitCode::from(if error.chain().any(|cause| cause.is::<Usage>()) { 2 } else { 1 })
        }
    }
}

/// The arguments of the process. What keys mean is put together only if somebody asks for help.
fn parsed() -> Result<Cli, clap::Error> {
    let parse = |command: clap::Command| Cli::from_arg_matches(&command.try_get_matches()?);
    match parse(cli()) {
        Err(error) if error.kind() == ErrorKind::DisplayHelp => parse(command()),
        done => done,
    }
}

/// The commands and options.
fn cli() -> clap::Command {
    both_spellings(Cli::command())
}

/// `-` and `_` are equal in every option, as they are in the keys of stages.
fn both_spellings(command: clap::Command) -> clap::Command {
    let underscored = |arg: clap::Arg| {
        let names: Vec<String> =
            arg.get_long().into_iter().chain(arg.get_all_aliases().unwrap_or_default()).map(str::to_owned).collect();
        names.iter().filter(|name| name.contains('-')).fold(arg, |arg, name| arg.alias(name.replace('-', "_")))
    };
    command.mut_args(underscored).mut_subcommands(both_spellings)
}

fn dispatch(command: Command) -> anyhow::Result<()> {
    cap_threads();
    DeviceChoice::forced()?;
    salsa_engine::check_isa().map_err(|message| Usage(format!("SALSA_ISA: {message}")))?;
    match command {
        Command::Quickstart(arguments) => quickstart::main(&arguments),
        Command::Run(arguments) => run::main(&arguments),
        Command::Study(arguments) => study::main(&arguments),
        Command::Pretrain(arguments) => stage::main("pretrain", &arguments),
        Command::Sft(arguments) => stage::main("sft", &arguments),
        Command::Soup(arguments) => soup::main(&arguments),
        Command::Merge(arguments) => merge::main(&arguments),
        Command::Reward(arguments) => stage::main("reward", &arguments),
        Command::Ppo(arguments) => stage::main("ppo", &arguments),
        Command::Dpo(arguments) => stage::main("dpo", &arguments),
        Command::Evaluate(arguments) => stage::main("evaluate", &arguments),
        Command::Landscape(arguments) => stage::main("landscape", &arguments),
        Command::Eval(arguments) => eval::main(&arguments),
        Command::Report(arguments) => report::main(&arguments),
        Command::Kitchen(arguments) => stage::main("kitchen", &arguments),
        Command::Logprobs(arguments) => stage::main("logprobs", &arguments),
        Command::Score(arguments) => stage::main("score", &arguments),
        Command::Generate(arguments) => stage::main("generate", &arguments),
        Command::Schema(arguments) => schema::main(&arguments),
        Command::Chat(arguments) => chat::main(&arguments),
        Command::Init(arguments) => init::main(&arguments),
        Command::Inspect(arguments) => inspect::main(&arguments),
        Command::Bench(arguments) => bench::main(&arguments),
        Command::Doctor(arguments) => doctor::main(&arguments),
    }
}

/// More threads than cores only wait for each other: the engine takes no more, and neither does the library that reads and
/// writes files.
fn cap_threads() {
    let threads = salsa_engine::threads();
    if let Some(asked) = salsa_engine::asked_threads().filter(|&asked| asked > threads) {
        let note = format!("RAYON_NUM_THREADS is {asked}, but only {threads} cores are usable: {threads} threads");
        // Nobody can be told if stderr is gone; and a pool that is there already is kept.
        let _ = writeln!(std::io::stderr(), "{note}");
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
}

/// The commands, each stage's help with the keys it takes.
fn command() -> clap::Command {
    KINDS.iter().fold(cli(), |cli, kind| match kind.name {
        "winrate" => {
            cli.mut_subcommand("eval", |eval| eval.mut_subcommand("winrate", |command| with_keys(command, kind)))
        }
        name => cli.mut_subcommand(name, |command| with_keys(command, kind)),
    })
}

fn with_keys(command: clap::Command, kind: &Kind) -> clap::Command {
    command.after_help(stage::help(kind))
}

/// Help and version go to stdout; a mistake becomes one line.
fn not_parsed(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = print(&text);
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // Help that nobody asked for is talk.
            let _ = std::io::stderr().write_all(text.as_bytes());
            ExitCode::from(2)
        }
        _ => {
            let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
            let lines: Vec<&str> = lines.filter(|line| !line.is_empty() && !line.starts_with("For more")).collect();
            let message = lines.join("; ").replace(":; ", ": ");
            tell(&format!("{} (salsa --help lists what there is)", message.trim_start_matches("error: ")));
            ExitCode::from(2)
        }
    }
}

/// One line on stderr that begins with `error:`.
fn tell(message: &str) {
    // Nobody can be told if stderr is gone; the exit code remains.
    let _ = writeln!(std::io::stderr(), "error: {message}");
}

/// Data on stdout. A reader that has seen enough (`salsa … | head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Characters in a line of stdout: those of the terminal, without a limit where it is none.
fn columns() -> usize {
    let terminal = std::io::stdout().is_terminal().then(terminal_size::terminal_size).flatten();
    terminal.map_or(usize::MAX, |(terminal_size::Width(columns), _)| usize::from(columns))
}

/// The surroundings of a command that works for a while.
fn context() -> anyhow::Result<StageContext> {
    StageContext::with_signals()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_command_has_an_example() {
        fn check(command: &clap::Command, name: &str) {
            // That of `help`, made by the library, needs no example.
            for mut sub in command.get_subcommands().filter(|sub| sub.get_name() != "help").cloned() {
                let name = format!("{name} {}", sub.get_name());
                let help = sub.render_long_help().to_string();
                assert!(help.contains(&name) && help.contains("Example"), "{help}");
                check(&sub, &name);
            }
        }
        let command = command();
        command.clone().debug_assert();
        check(&command, "salsa");
    }

    #[test]
    fn every_option_and_every_choice_says_what_it_is() {
        fn check(command: &clap::Command) {
            let is_said = |text: Option<&clap::builder::StyledStr>| {
                text.is_some_and(|text| text.to_string().split_whitespace().count() >= 2)
            };
            for argument in command.get_arguments() {
                let name = format!("{} {}", command.get_name(), argument.get_id());
                assert!(is_said(argument.get_help()), "{name}");
                let choices = argument.get_possible_values();
                for choice in choices.iter().filter(|choice| !["true", "false"].contains(&choice.get_name())) {
                    assert!(is_said(choice.get_help()), "{name} {}", choice.get_name());
                }
            }
            command.get_subcommands().for_each(check);
        }
        check(&command());
    }

    /// As in the keys of stages, `-` and `_` are equal.
    #[test]
    fn flags_may_be_written_like_keys() {
        fn check(command: &clap::Command) {
            for argument in command.get_arguments() {
                let Some(flag) = argument.get_long() else { continue };
                let (key, others) = (flag.replace('-', "_"), argument.get_all_aliases().unwrap_or_default());
                assert!(key == flag || others.contains(&&key[..]), "{}: --{key} is not --{flag}", command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        check(&command());
    }

    #[test]
    fn every_stage_is_a_command() {
        let command = command();
        for kind in KINDS.iter().filter(|kind| kind.name != "winrate") {
            assert!(command.get_subcommands().any(|sub| sub.get_name() == kind.name), "{}", kind.name);
        }
    }
}
