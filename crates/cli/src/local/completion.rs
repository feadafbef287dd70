//! `nephos completion SHELL`: the whole tree as a completion script.

use clap::{Arg, Command, builder::PossibleValuesParser};
use clap_complete::Shell;
use nephos_types::{Error, Result};

use crate::{Invocation, LocalCommand, exit, output};

pub(super) fn command() -> LocalCommand {
    let command = Command::new("completion")
        .about("Print a completion script for a shell")
        .arg(
            Arg::new("shell")
                .required(true)
                .value_name("SHELL")
                .value_parser(PossibleValuesParser::new(["bash", "zsh", "fish", "elvish", "powershell"])),
        )
        .after_long_help("Examples:\n  nephos completion bash > /etc/bash_completion.d/nephos\n  nephos completion zsh > \"${fpath[1]}/_nephos\"\n  nephos completion fish > ~/.config/fish/completions/nephos.fish");
    LocalCommand { noun: None, command, run }
}

fn run(invocation: &Invocation<'_>) -> Result<u8> {
    let name = invocation.matches.get_one::<String>("shell").map(String::as_str).unwrap_or_default();
    let shell: Shell = name.parse().map_err(|why: String| Error::invalid("usage", why))?;
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut invocation.app.command_tree(), "nephos", &mut script);
    output::write_out(&script)?;
    Ok(exit::DONE)
}
