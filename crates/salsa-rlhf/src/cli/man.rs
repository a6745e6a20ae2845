//! `salsa man [COMMAND] [--output DIR]`
use std::path::PathBuf;

use anyhow::Context;

use super::print;
use crate::{
    atomic,
    config::{Usage, names},
};

/// Pages and their destination.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  salsa man sft | man -l -\n  salsa man --output ~/.local/share/man/man1")]
pub(super) struct Arguments {
    /// Command whose page is printed; without one, the page of salsa itself.
    #[arg(value_name = "COMMAND", conflicts_with = "output")]
    command: Vec<String>,
    /// Directory for all pages instead, one file per command.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

/// Prints or writes manual pages.
pub(super) fn main(arguments: &Arguments) -> anyhow::Result<()> {
    let mut all = super::with_options().disable_help_subcommand(true);
    all.build();
    let Some(folder) = &arguments.output else {
        return print(&String::from_utf8_lossy(&page(find(&all, &arguments.command)?, &arguments.command)?));
    };
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    write_pages(&all, &mut Vec::new(), folder)
}

fn find<'a>(command: &'a clap::Command, words: &[String]) -> anyhow::Result<&'a clap::Command> {
    words.iter().try_fold(command, |command, word| {
        let missing = || {
            let known: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
            Usage(format!("there is no command {word:?}; {}", names::hint(word, known.into_iter())))
        };
        command.find_subcommand(word).ok_or_else(|| missing().into())
    })
}

fn write_pages(command: &clap::Command, words: &mut Vec<String>, folder: &std::path::Path) -> anyhow::Result<()> {
    let name = title(words);
    atomic::write(&folder.join(format!("{name}.1")), &page(command, words)?)?;
    for sub in command.get_subcommands() {
        words.push(sub.get_name().to_owned());
        write_pages(sub, words, folder)?;
        words.pop();
    }
    Ok(())
}

fn title(words: &[String]) -> String {
    ["salsa"].into_iter().chain(words.iter().map(String::as_str)).collect::<Vec<_>>().join("-")
}

fn page(command: &clap::Command, words: &[String]) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    let page = clap_mangen::Man::new(command.clone()).title(title(words).to_uppercase());
    let page = page.source(concat!("salsa ", env!("CARGO_PKG_VERSION")));
    page.render(&mut text).context("cannot write a manual page")?;
    Ok(text)
}
