//! `nephos help`: on a command, on exit codes, on the codes of errors.

use clap::{Arg, Command};
use nephos_types::{Error, Result};

use super::codes;
use crate::{Invocation, LocalCommand, command::leaf, exit, output};

pub(super) fn command() -> LocalCommand {
    let command = Command::new("help")
        .about("Explain a command, the exit codes (`exit`), or an error's code")
        .arg(Arg::new("topic").num_args(0..).value_name("TOPIC"));
    LocalCommand { noun: None, command, run }
}

fn run(invocation: &Invocation<'_>) -> Result<u8> {
    let topic: Vec<&str> = invocation
        .matches
        .get_many::<String>("topic")
        .map(|words| words.map(String::as_str).collect())
        .unwrap_or_default();
    let text = match topic.as_slice() {
        ["exit"] => exit_codes(),
        // A command named like a code explains itself.
        words => match (on_command(invocation, words), words) {
            (Err(error), [code]) => codes::explain(code).ok_or(error)?,
            (text, _) => text?,
        },
    };
    output::write_out(text.as_bytes())?;
    Ok(exit::DONE)
}

fn exit_codes() -> String {
    let mut text = String::from("Exit codes:\n");
    for (code, meaning) in exit::MEANINGS {
        text.push_str(&format!("  {code:>3}  {meaning}\n"));
    }
    text
}

fn on_command(invocation: &Invocation<'_>, words: &[&str]) -> Result<String> {
    let mut tree = invocation.app.command_tree();
    // Building fills in what the help needs, such as the full name of each command.
    tree.build();
    let mut command = &mut tree;
    for word in words {
        command = command.find_subcommand_mut(word).ok_or_else(|| {
            Error::not_found("help topic", word)
                .next("all commands", Some("nephos --help".into()))
                .next("exit codes", Some("nephos help exit".into()))
                .next("what an error's code means: the word in brackets", Some("nephos help no_placement".into()))
        })?;
    }
    Ok(leaf::show_help(&command.render_long_help().to_string()))
}
