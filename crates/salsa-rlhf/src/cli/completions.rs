//! `salsa completions SHELL`
use clap_complete::{aot, generate};

use super::print;

/// The shell.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  salsa completions bash > ~/.local/share/bash-completion/completions/salsa\n\n\
    Commands, options, and the keys of stages with their choices are completed. Where each shell looks for the file is\n\
    in docs/install.md.")]
pub(super) struct Arguments {
    /// Shell to complete for.
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Shell {
    /// Bash, with bash-completion.
    Bash,
    /// Elvish, read with eval.
    Elvish,
    /// Fish, 3 or newer.
    Fish,
    /// PowerShell, 5 or newer.
    Powershell,
    /// Zsh, with compinit.
    Zsh,
}

/// Prints the completion script.
pub(super) fn main(arguments: &Arguments) -> anyhow::Result<()> {
    let shell = match arguments.shell {
        Shell::Bash => aot::Shell::Bash,
        Shell::Elvish => aot::Shell::Elvish,
        Shell::Fish => aot::Shell::Fish,
        Shell::Powershell => aot::Shell::PowerShell,
        Shell::Zsh => aot::Shell::Zsh,
    };
    let mut script = Vec::new();
    generate(shell, &mut super::with_options(), "salsa", &mut script);
    print(&String::from_utf8_lossy(&script))
}
