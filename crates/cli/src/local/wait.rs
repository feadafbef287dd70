//! `nephos workflow wait ID`: takes up waiting where a command left off.

use clap::{Arg, Command};
use nephos_types::Result;

use crate::{Invocation, LocalCommand, progress};

pub(super) fn command() -> LocalCommand {
    let command = Command::new("wait")
        .about("Wait until a workflow has ended, showing its steps")
        .arg(Arg::new("workflow").required(true).value_name("WORKFLOW").help("Id"))
        .after_long_help(
            "Examples:\n  nephos workflow wait wf-0123456789abc\n  nephos workflow wait wf-0123456789abc --wait=5m",
        );
    LocalCommand { noun: Some("workflow"), command, run }
}

fn run(invocation: &Invocation<'_>) -> Result<u8> {
    let id = invocation.matches.get_one::<String>("workflow").cloned().unwrap_or_default();
    invocation.block_on(async {
        let client = invocation.client().await?;
        progress::report(&client, &id, &invocation.globals, &invocation.terminal).await
    })
}
