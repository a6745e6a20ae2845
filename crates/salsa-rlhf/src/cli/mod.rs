//! The command line: one file per command. stdout carries data, stderr carries messages.
//!
//! Exit codes: 0 success, 1 failure, 2 wrong usage. An error is one line on stderr: what, where, what to do; several
//! errors found at once are one line each.
use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind};

use crate::{
    config::Usage,
    stage::{
        StageContext, Verbosity,
        device::{self, Choice as DeviceChoice},
        kind::{Kind, Processes},
        table::STAGES,
    },
};

mod bench;
mod chat;
mod completions;
mod convert;
mod doctor;
mod export;
mod flags;
mod help;
mod init;
mod inspect;
mod man;
mod merge;
mod next;
mod quickstart;
mod ranks;
mod report;
mod run;
mod schema;
mod serve;
mod soup;
mod stage;
mod study;
mod version;

use ranks::Ranks;

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
    /// Run a recipe for many seeds, settings and arms, and analyse the results together.
    Study(study::Arguments),
    /// Merge an adapter into its base model, giving a standalone model.
    Merge(merge::Arguments),
    /// Convert a GGUF file of llama.cpp or Ollama into a Hugging Face checkpoint.
    Convert(convert::Arguments),
    /// Export a model or an adapter to a GGUF file for llama.cpp or Ollama.
    Export(export::Arguments),
    /// The HTML report of runs.
    Report(report::Arguments),
    /// The JSON schema of a recipe or of a stage, for editors.
    Schema(schema::Arguments),
    /// Chat with a model in the terminal.
    Chat(chat::Arguments),
    /// Serve several models and adapters over OpenAI's protocol.
    Serve(serve::Arguments),
    /// Create a checkpoint with random weights, of any shape that a config.json describes.
    Init(init::Arguments),
    /// Describe a checkpoint or a data set, and the memory each stage would need.
    Inspect(inspect::Arguments),
    /// Seconds per training step, decoding step or PPO update, on random weights.
    Bench(bench::Arguments),
    /// Report what this machine offers: CPU features, kernels, threads, memory, writable paths.
    Doctor(doctor::Arguments),
    /// Print a script that completes commands, options and keys in a shell.
    Completions(completions::Arguments),
    /// Manual pages.
    Man(man::Arguments),
}

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    match Ranks::join() {
        // The last owner of the processes takes leave of them when `ranks` is dropped.
        Ok(ranks) => ExitCode::from(run_in(&ranks)),
        Err(code) => code,
    }
}

/// Runs the program in one of the processes of a run; returns its exit code.
fn run_in(ranks: &Ranks) -> u8 {
    let asked = match parsed() {
        Ok(asked) => asked,
        Err(error) => return not_parsed(&error, ranks),
    };
    device::silence_failures();
    match device::caught(|| dispatch(asked, ranks)) {
        Ok(()) => 0,
        Err(error) => ranks.fail(&error),
    }
}

/// The parsed command line.
enum Asked {
    /// A stage, with the words after its command.
    Stage(&'static Kind, Vec<String>),
    /// Another command, with its name.
    Command(Box<Command>, String),
}

impl Asked {
    /// Whether several processes can share the work.
    fn uses_processes(&self) -> bool {
        match self {
            Asked::Stage(kind, _) => kind.processes == Processes::All,
            Asked::Command(command, _) => match &**command {
                Command::Bench(arguments) => arguments.uses_processes(),
                command => matches!(command, Command::Quickstart(_) | Command::Run(_)),
            },
        }
    }

    /// The words of the command.
    fn name(&self) -> String {
        match self {
            Asked::Stage(kind, _) => kind.command.join(" "),
            Asked::Command(_, name) => name.clone(),
        }
    }
}

/// Parses the arguments of the process. The help of keys is built only if help is requested.
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
        None => Cli::from_arg_matches(matches).map(|cli| Asked::Command(Box::new(cli.command), words.join(" "))),
    }
}

/// All commands and options: those of [`Command`], and one for each stage.
fn cli() -> clap::Command {
    both_spellings(STAGES.iter().fold(Cli::command(), |cli, kind| with_stage(cli, kind, kind.command)))
}

/// Adds the command of a stage; a command group is created with its first member.
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

/// Description of a command that only groups others.
const GROUP: &str = "Results of commands that were already run, compared.";

/// Makes `-` and `_` equal in every option, as they are in the keys of stages.
fn both_spellings(command: clap::Command) -> clap::Command {
    let underscored = |arg: clap::Arg| {
        let names: Vec<String> =
            arg.get_long().into_iter().chain(arg.get_all_aliases().unwrap_or_default()).map(str::to_owned).collect();
        names.iter().filter(|name| name.contains('-')).fold(arg, |arg, name| arg.alias(name.replace('-', "_")))
    };
    command.mut_args(underscored).mut_subcommands(both_spellings)
}

fn dispatch(asked: Asked, ranks: &Ranks) -> anyhow::Result<()> {
    cap_threads(ranks);
    DeviceChoice::forced()?;
    salsa_engine::check_isa().map_err(|message| Usage(format!("SALSA_ISA: {message}")))?;
    if !asked.uses_processes() {
        ranks.refuse_several(&asked.name())?;
    }
    ranks.meet(&asked.name())?;
    let command = match asked {
        Asked::Stage(kind, words) => return stage::main(kind, &words, ranks),
        Asked::Command(command, _) => command,
    };
    match *command {
        Command::Quickstart(arguments) => quickstart::main(&arguments, ranks),
        Command::Run(arguments) => run::main(&arguments, ranks),
        Command::Study(arguments) => study::main(&arguments, ranks),
        Command::Merge(arguments) => merge::main(&arguments),
        Command::Convert(arguments) => convert::main(&arguments),
        Command::Export(arguments) => export::main(&arguments),
        Command::Report(arguments) => report::main(&arguments),
        Command::Schema(arguments) => schema::main(&arguments),
        Command::Chat(arguments) => chat::main(&arguments),
        Command::Serve(arguments) => serve::main(&arguments),
        Command::Init(arguments) => init::main(&arguments),
        Command::Inspect(arguments) => inspect::main(&arguments),
        Command::Bench(arguments) => bench::main(&arguments, ranks),
        Command::Doctor(arguments) => doctor::main(&arguments),
        Command::Completions(arguments) => completions::main(&arguments),
        Command::Man(arguments) => man::main(&arguments),
    }
}

/// Caps the thread pool at the number of cores, as more threads only wait for each other. The engine has the same cap;
/// this one also covers the library that reads and writes files.
fn cap_threads(ranks: &Ranks) {
    let threads = salsa_engine::threads();
    if ranks.size() > 1 {
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    } else if let Some(asked) = salsa_engine::requested_threads().filter(|&asked| asked > threads) {
        let note = format!("RAYON_NUM_THREADS is {asked}, but only {threads} cores are usable: {threads} threads");
        // Write errors of stderr are ignored; an existing pool is kept.
        let _ = writeln!(std::io::stderr(), "{note}");
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
}

/// All commands, with the keys of each stage in its help.
fn command() -> clap::Command {
    STAGES.iter().fold(cli(), |cli, kind| with_keys(cli, kind, kind.command))
}

fn with_keys(command: clap::Command, kind: &Kind, words: &[&str]) -> clap::Command {
    match words {
        [] => command.after_help(stage::help(kind)),
        [name, rest @ ..] => command.mut_subcommand(name, |command| with_keys(command, kind, rest)),
    }
}

/// All commands, with the keys of each stage as options.
fn with_options() -> clap::Command {
    STAGES.iter().fold(cli(), |cli, kind| with_options_of(cli, kind, kind.command))
}

fn with_options_of(command: clap::Command, kind: &Kind, words: &[&str]) -> clap::Command {
    match words {
        [] => stage::with_options(command, kind),
        [name, rest @ ..] => command.mut_subcommand(name, |command| with_options_of(command, kind, rest)),
    }
}

/// Prints help and version on stdout, an error as one line on stderr; returns the exit code.
fn not_parsed(error: &clap::Error, ranks: &Ranks) -> u8 {
    let text = error.render().to_string();
    match error.kind() {
        ErrorKind::DisplayVersion => {
            let _ = print(&version::text());
            0
        }
        ErrorKind::DisplayHelp => {
            let _ = print(&text);
            0
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // Help that was not requested goes to stderr.
            if ranks::is_first() {
                let _ = std::io::stderr().write_all(text.as_bytes());
            }
            ranks.end(2)
        }
        _ => {
            let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
            let lines: Vec<&str> = lines.filter(|line| !line.is_empty() && !line.starts_with("For more")).collect();
            let message = lines.join("; ").replace(":; ", ": ");
            ranks.report([format!("{} (salsa --help lists what there is)", message.trim_start_matches("error: "))]);
            ranks.end(2)
        }
    }
}

/// Prints one line on stderr that begins with `error:`.
fn tell(message: &str) {
    // If stderr is closed, only the exit code reports the error. Written at once: a launcher of processes prints too.
    let _ = std::io::stderr().write_all(format!("error: {message}\n").as_bytes());
}

/// Writes data to stdout, in the first process. A closed pipe (`salsa … | head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    if !ranks::is_first() {
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Width of stdout in characters: that of the terminal; unlimited if it is none.
fn columns() -> usize {
    let terminal = std::io::stdout().is_terminal().then(terminal_size::terminal_size).flatten();
    terminal.map_or(usize::MAX, |(terminal_size::Width(columns), _)| usize::from(columns))
}

/// The execution context of a long-running command.
fn context(ranks: &Ranks) -> anyhow::Result<StageContext> {
    let context = StageContext::with_signals(if ranks::is_first() { Verbosity::Normal } else { Verbosity::Quiet })?;
    Ok(ranks.remember(context.with_ranks(ranks.comm().clone())))
}

/// The text that `salsa NAME --help` prints.
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
            // The `help` command generated by clap needs no example.
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

    /// `-` and `_` are equal, as in the keys of stages.
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
