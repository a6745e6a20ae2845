//! The command line: one file per command. stdout carries data, stderr carries talk.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage. An error is one line on stderr: what, where, what to do; each
//! of them, where several mistakes are found at once.
use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind};

use crate::{
    config::{Usage, wording},
    recipe::Faults,
    stage::{
        StageContext,
        device::{self, Choice as DeviceChoice},
        kind::Kind,
        table::STAGES,
    },
};

mod bench;
mod chat;
mod completions;
mod doctor;
mod flags;
mod help;
mod init;
mod inspect;
mod man;
mod merge;
mod next;
mod quickstart;
mod report;
mod run;
mod schema;
mod serve;
mod soup;
mod stage;
mod study;
mod version;

/// RLHF in one program, with a model soup as the KL reference.
#[derive(Parser)]
#[command(name = "salsa", version = version::short(), max_term_width = 110, arg_required_else_help = true)]
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
    /// Work an adapter into its base model: a whole model of its own.
    Merge(merge::Arguments),
    /// The HTML report of runs.
    Report(report::Arguments),
    /// The JSON schema of a recipe or of a stage, for editors.
    Schema(schema::Arguments),
    /// Talk to a model in the terminal.
    Chat(chat::Arguments),
    /// An endpoint that speaks OpenAI's protocol, for several models and adapters.
    Serve(serve::Arguments),
    /// A checkpoint of random weights, of any shape that a config.json describes.
    Init(init::Arguments),
    /// What a checkpoint is, and the memory each stage would need.
    Inspect(inspect::Arguments),
    /// Seconds of a training step, a decoding step, a PPO update, on random weights.
    Bench(bench::Arguments),
    /// What this machine offers: CPU features, kernels, threads, memory, writable paths.
    Doctor(doctor::Arguments),
    /// The script by which a shell completes commands, options and keys.
    Completions(completions::Arguments),
    /// Manual pages.
    Man(man::Arguments),
}

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    let asked = match parsed() {
        Ok(asked) => asked,
        Err(error) => return not_parsed(&error),
    };
    device::silence_failures();
    match device::caught(|| dispatch(asked)) {
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

/// What the command line asks for.
enum Asked {
    /// A stage, by the words that follow its command.
    Stage(&'static Kind, Vec<String>),
    /// Another command.
    Command(Command),
}

/// The arguments of the process. What keys mean is put together only if somebody asks for help.
fn parsed() -> Result<Asked, clap::Error> {
    let parse = |command: clap::Command| asked(&command.try_get_matches()?);
    match parse(cli()) {
        Err(error) if error.kind() == ErrorKind::DisplayHelp => parse(command()),
        done => done,
    }
}

fn asked(matches: &ArgMatches) -> Result<Asked, clap::Error> {
    let (mut words, mut inner) = (Vec::new(), matches);
    while let Some((name, sub)) = inner.subcommand() {
        words.push(name);
        inner = sub;
    }
    match STAGES.iter().find(|kind| kind.command == words) {
        Some(kind) => Ok(Asked::Stage(kind, stage::words(inner))),
        None => Cli::from_arg_matches(matches).map(|cli| Asked::Command(cli.command)),
    }
}

/// The commands and options: those of [`Command`], and one for each stage.
fn cli() -> clap::Command {
    both_spellings(STAGES.iter().fold(Cli::command(), |cli, kind| with_stage(cli, kind, kind.command)))
}

/// The commands with that of a stage; a group of commands is made where its first one needs it.
fn with_stage(command: clap::Command, kind: &Kind, words: &[&'static str]) -> clap::Command {
    match words {
        [] => command,
        [name] => command.subcommand(stage::command(kind, name)),
        [group, rest @ ..] => {
            let group = match command.find_subcommand(group) {
                Some(_) => return command.mut_subcommand(group, |group| with_stage(group, kind, rest)),
                None => clap::Command::new(*group).about(GROUP).after_help(format!("Example:\n  {}", kind.example())),
            };
            command.subcommand(with_stage(group.subcommand_required(true), kind, rest))
        }
    }
}

/// What is said of a command that only holds others.
const GROUP: &str = "Results of commands that were already run, compared.";

/// `-` and `_` are equal in every option, as they are in the keys of stages.
fn both_spellings(command: clap::Command) -> clap::Command {
    let underscored = |arg: clap::Arg| {
        let names: Vec<String> =
            arg.get_long().into_iter().chain(arg.get_all_aliases().unwrap_or_default()).map(str::to_owned).collect();
        names.iter().filter(|name| name.contains('-')).fold(arg, |arg, name| arg.alias(name.replace('-', "_")))
    };
    command.mut_args(underscored).mut_subcommands(both_spellings)
}

fn dispatch(asked: Asked) -> anyhow::Result<()> {
    cap_threads();
    DeviceChoice::forced()?;
    salsa_engine::check_isa().map_err(|message| Usage(format!("SALSA_ISA: {message}")))?;
    let command = match asked {
        Asked::Stage(kind, words) => return stage::main(kind, &words),
        Asked::Command(command) => command,
    };
    match command {
        Command::Quickstart(arguments) => quickstart::main(&arguments),
        Command::Run(arguments) => run::main(&arguments),
        Command::Study(arguments) => study::main(&arguments),
        Command::Merge(arguments) => merge::main(&arguments),
        Command::Report(arguments) => report::main(&arguments),
        Command::Schema(arguments) => schema::main(&arguments),
        Command::Chat(arguments) => chat::main(&arguments),
        Command::Serve(arguments) => serve::main(&arguments),
        Command::Init(arguments) => init::main(&arguments),
        Command::Inspect(arguments) => inspect::main(&arguments),
        Command::Bench(arguments) => bench::main(&arguments),
        Command::Doctor(arguments) => doctor::main(&arguments),
        Command::Completions(arguments) => completions::main(&arguments),
        Command::Man(arguments) => man::main(&arguments),
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
    STAGES.iter().fold(cli(), |cli, kind| with_keys(cli, kind, kind.command))
}

fn with_keys(command: clap::Command, kind: &Kind, words: &[&str]) -> clap::Command {
    match words {
        [] => command.after_help(stage::help(kind)),
        [name, rest @ ..] => command.mut_subcommand(name, |command| with_keys(command, kind, rest)),
    }
}

/// The commands, the keys of each stage as options.
fn with_options() -> clap::Command {
    STAGES.iter().fold(cli(), |cli, kind| with_options_of(cli, kind, kind.command))
}

fn with_options_of(command: clap::Command, kind: &Kind, words: &[&str]) -> clap::Command {
    match words {
        [] => stage::with_options(command, kind),
        [name, rest @ ..] => command.mut_subcommand(name, |command| with_options_of(command, kind, rest)),
    }
}

/// Help and version go to stdout; a mistake becomes one line.
fn not_parsed(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayVersion => {
            let _ = print(&version::text());
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelp => {
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

/// What `salsa NAME --help` prints.
#[cfg(test)]
pub(crate) fn help_of(name: &str) -> String {
    let mut command = command();
    command.find_subcommand_mut(name).expect("the command is known").render_long_help().to_string()
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
}
