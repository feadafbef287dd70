//! `nephos help`: on a command, on exit codes, on the codes of errors.

use clap::{Arg, Command};
use nephos_types::{Error, Result};

use crate::{Invocation, LocalCommand, command::leaf, exit, output};

/// Codes that the client itself gives, and what is behind them.
const CODES: [(&str, &str); 9] = [
    (
        "unreachable",
        "Nobody answers at the cloud's address.\nStart it with `nephos up`, or say where it is: --url, NEPHOS_URL, or `nephos login --url`.",
    ),
    (
        "connection_lost",
        "The connection broke before the answer was complete. Calls that can be repeated were repeated.\nLook whether the change took place before you repeat it yourself.",
    ),
    ("usage", "The command line is not understood. `nephos NOUN VERB --help` says what it takes."),
    ("invalid_input", "A field's value is not accepted; the message names the field and what it may be."),
    ("confirmation_missing", "Deleting asks first. Where nobody can be asked, confirm with --yes."),
    ("timeout", "Waiting ended, the work did not. `nephos workflow wait ID` waits on."),
    (
        "unknown_authority",
        "An https URL needs the certificate of the cloud's own authority: NEPHOS_CACERT, or `cacert` in clouds.yaml.",
    ),
    (
        "workflow_failed",
        "What was started did not succeed, and what it had done was undone. `nephos workflow show ID` lists its steps.",
    ),
    ("workflow_cancelled", "Somebody cancelled the work; what it had done was undone."),
];

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
        [code] if CODES.iter().any(|(known, _)| known == code) => {
            CODES.iter().filter(|(known, _)| known == code).map(|(_, text)| format!("{text}\n")).collect()
        }
        words => on_command(invocation, words)?,
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
        })?;
    }
    Ok(leaf::show_help(&command.render_long_help().to_string()))
}
