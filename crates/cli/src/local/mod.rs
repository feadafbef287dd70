//! Commands that are not operations: help, completion, version, login, and the way around operations.

mod api;
mod codes;
mod completion;
mod help;
mod login;
mod wait;

use clap::Command;
use nephos_types::Result;

use crate::{Invocation, LocalCommand, exit, output, session::Session};

/// This crate's own commands.
pub(crate) fn commands() -> Vec<LocalCommand> {
    vec![
        api::command(),
        completion::command(),
        help::command(),
        login::login_command(),
        login::logout_command(),
        LocalCommand { noun: None, command: Command::new("version").about("Print the version"), run: version },
        wait::command(),
    ]
}

fn version(invocation: &Invocation<'_>) -> Result<u8> {
    let answer = serde_json::json!({"version": invocation.app.version(), "schema_version": 1});
    let about = output::Printed { noun: "version", columns: &["version"], place: None, hint: None };
    if invocation.globals.format.is_none() {
        output::write_out(format!("nephos {}\n", invocation.app.version()).as_bytes())?;
    } else {
        output::print(&answer, &about, &invocation.globals, &invocation.terminal)?;
    }
    Ok(exit::DONE)
}

/// `nephos` alone: where one is and what could come next.
pub(crate) fn home(invocation: &Invocation<'_>) -> Result<u8> {
    let session = Session::open(&invocation.globals, &invocation.terminal)?;
    let source = session.source();
    let mut text = format!("nephos {}\n\n", invocation.app.version());
    text.push_str(&format!("  cloud    {}\n  as       {}\n", source.url, source.origin));
    if let Some(project) = &source.project {
        text.push_str(&format!("  project  {project}\n"));
    }
    text.push_str("\nNext:\n");
    for name in ["server.list", "image.list", "flavor.list", "server.create", "workflow.list"] {
        if let Some(example) =
            crate::command::leaf::entry(name).and_then(|entry| Some((entry, entry.spec.examples.first()?)))
        {
            let (entry, example) = example;
            text.push_str(&format!("  {:<56} {}\n", example.command, entry.spec.summary));
        }
    }
    text.push_str("\nNouns:\n");
    let tree = invocation.app.command_tree();
    for command in tree.get_subcommands().filter(|command| command.has_subcommands()) {
        let verbs = command.get_about().map(ToString::to_string).unwrap_or_default();
        text.push_str(&format!("  {:<24} {verbs}\n", command.get_name()));
    }
    let others: Vec<_> =
        tree.get_subcommands().filter(|command| !command.has_subcommands()).map(Command::get_name).collect();
    text.push_str(&format!(
        "\nAlso: {}\nMore: nephos --help, nephos NOUN --help, nephos help exit\n",
        others.join(", ")
    ));
    output::write_out(text.as_bytes())?;
    Ok(exit::DONE)
}
