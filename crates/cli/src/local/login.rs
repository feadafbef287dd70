//! `nephos login` and `nephos logout`.

use std::io::{BufRead, IsTerminal, Write, stdin};

use clap::{Arg, ArgAction, Command};
use nephos_ops::identity::RevokeToken;
use nephos_types::{Error, Result};
use nix::sys::termios::{self, LocalFlags, SetArg};

use crate::{
    Invocation, LocalCommand,
    command::global::Globals,
    exit, output,
    session::{
        Login, Proof, Session, Source,
        credentials::{self, StoredCloud},
    },
    terminal::Style,
};

pub(super) fn login_command() -> LocalCommand {
    let command = Command::new("login")
        .about("Log in to a cloud and remember it")
        .arg(Arg::new("user").long("user").short('u').value_name("NAME").help("Who; asked for if absent"))
        .arg(Arg::new("user-domain").long("user-domain").value_name("NAME").help("The user's domain; `default` if absent"))
        .arg(Arg::new("password").long("password").value_name("-").help(
            "`-` reads it from standard input; asked for if absent",
        ))
        .arg(Arg::new("project-domain").long("project-domain").value_name("NAME").help("The project's domain; the user's if absent"))
        .arg(Arg::new("name").long("name").value_name("NAME").default_value("default").help("What to call this login"))
        .arg(Arg::new("print").long("print").action(ArgAction::SetTrue).help("Print the token instead of keeping it"))
        .after_long_help("Examples:\n  nephos login --url http://127.0.0.1:6780 --user admin --project demo\n  export NEPHOS_TOKEN=$(nephos login --cloud nephos --print)");
    LocalCommand { noun: None, command, run: login }
}

pub(super) fn logout_command() -> LocalCommand {
    let command = Command::new("logout")
        .about("Forget a login")
        .arg(Arg::new("name").value_name("NAME").help("Which; the current one if absent"));
    LocalCommand { noun: None, command, run: logout }
}

fn login(invocation: &Invocation<'_>) -> Result<u8> {
    let text = |id: &str| invocation.matches.get_one::<String>(id).cloned();
    let found = Source::find(&invocation.globals)?;
    let (url, authority) = (found.url.clone(), found.authority.clone());
    let login = match (found.proof, text("user")) {
        // Credentials that are known need not be typed.
        (Proof::Password(login), None)
            if invocation.matches.get_flag("print") || invocation.globals.cloud.is_some() =>
        {
            login
        }
        (_, user) => Login {
            user: user.map_or_else(|| ask("User: ", true), Ok)?,
            user_domain: text("user-domain"),
            password: password(text("password").as_deref())?,
            project: invocation.globals.project.clone(),
            project_domain: text("project-domain"),
        },
    };
    let source = Source { url: url.clone(), authority, proof: Proof::None, project: None, origin: String::new() };
    let session = Session::of(source, &invocation.globals)?;
    let issued = invocation.block_on(credentials::issue(session.anonymous(), &login))?;
    if invocation.matches.get_flag("print") {
        output::write_out(format!("{}\n", issued.token).as_bytes())?;
        return Ok(exit::DONE);
    }
    let name = text("name").unwrap_or_default();
    let path = credentials::path();
    let mut stored = path.as_deref().map(credentials::read).transpose()?.unwrap_or_default();
    let cloud = StoredCloud {
        url: url.clone(),
        token: issued.token,
        expires_at: issued.expires_at,
        project: login.project,
        cacert: std::env::var_os("NEPHOS_CACERT").map(Into::into),
    };
    stored.clouds.insert(name.clone(), cloud);
    stored.current = Some(name);
    let path = credentials::write(&stored)?;
    if !invocation.quiet() {
        let done = invocation.terminal.err.paint(Style::Good, invocation.terminal.symbols.done);
        eprintln!("{done} logged in to {url} as {} (kept in {})", login.user, path.display());
    }
    Ok(exit::DONE)
}

fn logout(invocation: &Invocation<'_>) -> Result<u8> {
    let path = credentials::path();
    let mut stored = path.as_deref().map(credentials::read).transpose()?.unwrap_or_default();
    let name = invocation.matches.get_one::<String>("name").cloned().or_else(|| stored.current.clone());
    let Some(name) = name.filter(|name| stored.clouds.contains_key(name)) else {
        return Err(Error::new(nephos_types::ErrorKind::NotFound, "login_not_found", "There is no such login")
            .next("logins are made by `nephos login`", None));
    };
    if let Some(cloud) = stored.clouds.remove(&name)
        && let Err(error) = invocation.block_on(revoke(&cloud, &invocation.globals))
        && !invocation.quiet()
    {
        eprintln!("the token could not be ended ({error}); it ends by itself at {}", cloud.expires_at);
    }
    if stored.current.as_ref() == Some(&name) {
        stored.current = None;
    }
    credentials::write(&stored)?;
    if !invocation.quiet() {
        eprintln!("forgot the login `{name}`");
    }
    Ok(exit::DONE)
}

async fn revoke(cloud: &StoredCloud, globals: &Globals) -> Result<()> {
    let authority = cloud.cacert.as_ref().and_then(|path| std::fs::read(path).ok());
    let proof = Proof::Token { token: cloud.token.clone(), project: None };
    let source = Source { url: cloud.url.clone(), authority, proof, project: None, origin: String::new() };
    let mut session = Session::of(source, globals)?;
    session.client().await?.call(RevokeToken::default()).await
}

fn password(given: Option<&str>) -> Result<String> {
    match given {
        Some("-") => ask("", true),
        Some(_) => Err(Error::invalid("usage", "A password on the command line can be seen by others")
            .next("pass it by standard input: --password -", None)),
        None => ask("Password: ", false),
    }
}

/// One line from standard input; `shown` while it is typed, or not.
fn ask(prompt: &str, shown: bool) -> Result<String> {
    let terminal = stdin().is_terminal();
    if !terminal && !prompt.is_empty() {
        return Err(Error::invalid(
            "usage",
            format!("There is no terminal to ask on: {}", prompt.trim_end_matches(": ")),
        )
        .next("give it as a flag; the password by --password -", None));
    }
    eprint!("{prompt}");
    // A prompt that cannot be shown is no failure.
    let _ = std::io::stderr().flush();
    let failed = |error: nix::Error| Error::internal("The terminal cannot be told to hide what is typed", error);
    let before = if terminal && !shown {
        let before = termios::tcgetattr(stdin()).map_err(failed)?;
        let mut hidden = before.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        termios::tcsetattr(stdin(), SetArg::TCSAFLUSH, &hidden).map_err(failed)?;
        Some(before)
    } else {
        None
    };
    let mut line = String::new();
    let read = stdin().lock().read_line(&mut line);
    if let Some(before) = before {
        termios::tcsetattr(stdin(), SetArg::TCSAFLUSH, &before).map_err(failed)?;
        eprintln!();
    }
    read.map_err(|error| Error::invalid("usage", "Standard input cannot be read").detail(error.to_string()))?;
    let line = line.trim_end_matches(['\r', '\n']).to_owned();
    if line.is_empty() {
        return Err(Error::invalid("usage", "Nothing was typed"));
    }
    Ok(line)
}
