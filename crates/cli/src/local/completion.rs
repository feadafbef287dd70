//! `nephos completion SHELL`: what a shell needs to ask this program for completions.

use clap::{Arg, Command, builder::PossibleValuesParser};
use clap_complete::env::Shells;
use nephos_types::{Error, Result};

use crate::{Invocation, LocalCommand, completion, exit, output};

pub(super) fn command() -> LocalCommand {
    let command = Command::new("completion")
        .about("Print a completion script for a shell")
        .long_about("Print a completion script for a shell.\n\nCommands, flags and their values are completed, and the names of servers, images and so on as the cloud has them. The shell runs this program for it, so the script stays good when the program is upgraded.")
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
    let shell = invocation.matches.get_one::<String>("shell").map(String::as_str).unwrap_or_default();
    let shells = Shells::builtins();
    let completer =
        shells.completer(shell).ok_or_else(|| Error::invalid("usage", format!("There is no shell `{shell}`")))?;
    let mut script = Vec::new();
    let name = invocation.app.name();
    completer
        .write_registration(completion::VARIABLE, name, name, name, &mut script)
        .map_err(|error| Error::internal("The script cannot be written", error))?;
    output::write_out(&script)?;
    Ok(exit::DONE)
}
