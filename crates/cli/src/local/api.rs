//! `nephos api`: any request to the native API, logged in as everywhere else.

use clap::{Arg, Command};
use nephos_types::{Error, Result};
use serde_json::Value;

use crate::{
    Invocation, LocalCommand,
    client::Prepared,
    exit,
    output::{self, Format, Printed},
};

pub(super) fn command() -> LocalCommand {
    let command = Command::new("api")
        .about("Send any request to the native API")
        .arg(Arg::new("method").required(true).value_name("METHOD").help("GET, POST, PUT, PATCH or DELETE"))
        .arg(Arg::new("path").required(true).value_name("PATH").help("The path, with its query"))
        .arg(Arg::new("data").short('d').long("data").value_name("JSON").help("The body; @FILE reads a file, `-` standard input"))
        .after_long_help("Examples:\n  nephos api GET /v1/servers\n  nephos api POST /v1/flavors -d '{\"name\":\"s\",\"vcpus\":1,\"memory_mib\":512}'");
    LocalCommand { noun: None, command, run }
}

fn run(invocation: &Invocation<'_>) -> Result<u8> {
    let text = |id: &str| invocation.matches.get_one::<String>(id).map(String::as_str);
    let (method, path) = (text("method").unwrap_or_default(), text("path").unwrap_or_default());
    let body = text("data").map(body).transpose()?;
    let answer = invocation.block_on(async {
        let client = invocation.client().await?;
        client.exchange_json(&Prepared::raw(client.url(), method, path, body.as_ref())?).await
    })?;
    if answer.is_null() {
        return Ok(exit::DONE);
    }
    let mut globals = invocation.globals.clone();
    globals.format.get_or_insert(Format::Json);
    let about = Printed { noun: "item", columns: &[], place: None, hint: None };
    output::print(&answer, &about, &globals, &invocation.terminal)?;
    Ok(exit::DONE)
}

fn body(text: &str) -> Result<Value> {
    let unreadable = |error: std::io::Error| {
        Error::invalid("unreadable_file", "The body cannot be read").detail(format!("{text}: {error}"))
    };
    let json = match text.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).map_err(unreadable)?,
        None if text == "-" => std::io::read_to_string(std::io::stdin().lock()).map_err(unreadable)?,
        None => text.to_owned(),
    };
    serde_json::from_str(&json)
        .map_err(|error| Error::invalid("usage", "The body is not JSON").detail(error.to_string()))
}
