//! From a command line to an exit code.

use std::{ffi::OsString, future::Future, process::ExitCode};

use clap::{
    ArgMatches, Command,
    error::{ContextKind, ContextValue, ErrorKind as Misuse},
};
use nephos_types::{Error, Result};
use serde_json::Value;

use crate::{
    client::Client,
    command::{
        global, leaf,
        tree::{self, LocalCommand},
    },
    completion, exit, failure, local, output, perform,
    session::Session,
    terminal::{ColorChoice, Terminal},
};

/// The command line of a program.
pub struct App {
    name: &'static str,
    version: &'static str,
    local: Vec<LocalCommand>,
}

/// One use of a local command.
pub struct Invocation<'a> {
    /// The command's own arguments.
    pub matches: &'a ArgMatches,
    pub(crate) globals: global::Globals,
    pub(crate) terminal: Terminal,
    pub(crate) app: &'a App,
}

impl Invocation<'_> {
    /// Runs a future to its end, on this thread.
    pub fn block_on<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        block_on(future)
    }

    /// A client of the cloud that flags, environment and files name, logged in where credentials are known.
    pub async fn client(&self) -> Result<Client> {
        Ok(Session::open(&self.globals, &self.terminal)?.client().await?.clone())
    }

    /// Whether `-q` was given.
    #[must_use]
    pub fn quiet(&self) -> bool {
        self.globals.quiet
    }

    /// Whether `-y` was given.
    #[must_use]
    pub fn yes(&self) -> bool {
        self.globals.yes
    }
}

impl App {
    /// The command line with the operations and this crate's own commands.
    #[must_use]
    pub fn new(name: &'static str, version: &'static str) -> Self {
        Self { name, version, local: local::commands() }
    }

    /// With one more command. It replaces an operation or an earlier command of the same name.
    #[must_use]
    pub fn with(mut self, command: LocalCommand) -> Self {
        self.local.retain(|other| other.noun != command.noun || other.command.get_name() != command.command.get_name());
        self.local.push(command);
        self
    }

    /// The program's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The program's version.
    #[must_use]
    pub fn version(&self) -> &'static str {
        self.version
    }

    /// All commands, e.g. for completion and manual pages.
    #[must_use]
    pub fn command_tree(&self) -> Command {
        tree::build(self.name, self.version, &self.local)
    }

    /// Does what a command line (the program's name first) asks for.
    pub fn run(&self, args: impl IntoIterator<Item = OsString>) -> ExitCode {
        let args: Vec<OsString> = args.into_iter().collect();
        match completion::answer(|| self.command_tree(), &args) {
            Ok(false) => {}
            Ok(true) => return ExitCode::from(exit::DONE),
            Err(error) => return ExitCode::from(exit::code(&error)),
        }
        let matches = match self.command_tree().try_get_matches_from(&args) {
            Ok(matches) => matches,
            Err(error) => return ExitCode::from(misuse(&error)),
        };
        ExitCode::from(self.dispatch(&matches))
    }

    /// What a command line (the program's name first) would call: the operation's name, and its input for each target.
    /// Nothing is sent.
    pub fn understand(&self, args: impl IntoIterator<Item = OsString>) -> Result<(&'static str, Vec<Value>)> {
        let matches = self
            .command_tree()
            .try_get_matches_from(args)
            .map_err(|error| Error::invalid("usage", "The command line is not understood").detail(error.to_string()))?;
        let (path, leaf_matches) = path_of(&matches);
        let entry = operation(&path)
            .ok_or_else(|| Error::invalid("usage", format!("`{}` is not an operation", path.join(" "))))?;
        Ok((entry.spec.name, leaf::inputs(entry, leaf_matches)?))
    }

    fn dispatch(&self, root: &ArgMatches) -> u8 {
        let (path, leaf_matches) = path_of(root);
        let globals = global::Globals::of(root, leaf_matches);
        let terminal = Terminal::detect(globals.color);
        let invocation = Invocation { matches: leaf_matches, globals, terminal, app: self };
        let outcome = match path.as_slice() {
            [] => local::home(&invocation),
            path => match self.local_command(path) {
                Some(_) if invocation.globals.plan => {
                    Err(Error::invalid("usage", format!("`{}` cannot say what it would do", path.join(" ")))
                        .detail("--plan is understood by the operations of the cloud's API"))
                }
                Some(command) => (command.run)(&invocation),
                None => match operation(path) {
                    Some(entry) => return perform::run(entry, &invocation),
                    None => Err(Error::bug(format!("the command `{}` does nothing", path.join(" ")))),
                },
            },
        };
        outcome.unwrap_or_else(|error| {
            eprint!("{}", failure::render(&error, &terminal));
            exit::code(&error)
        })
    }

    fn local_command(&self, path: &[&str]) -> Option<&LocalCommand> {
        self.local.iter().find(|command| match (path, command.noun) {
            ([name, ..], None) => command.command.get_name() == *name,
            ([noun, name, ..], Some(of)) => of == *noun && command.command.get_name() == *name,
            _ => false,
        })
    }
}

/// Runs a future to its end, on this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::internal("The program could not be set up", error))?;
    let outcome = runtime.block_on(future);
    // A thread that still waits for the keyboard must not keep the program from ending.
    runtime.shutdown_background();
    outcome
}

/// The names of the subcommands used, and the matches of the innermost.
fn path_of(root: &ArgMatches) -> (Vec<&str>, &ArgMatches) {
    let mut path = Vec::new();
    let mut matches = root;
    while let Some((name, inner)) = matches.subcommand() {
        path.push(name);
        matches = inner;
    }
    (path, matches)
}

fn operation(path: &[&str]) -> Option<&'static nephos_ops::Entry> {
    let [noun, verb] = path else { return None };
    nephos_ops::table().iter().find(|entry| leaf::noun(entry) == *noun && leaf::verb(entry) == *verb)
}

/// Help, the version, or a command line that is not understood.
fn misuse(error: &clap::Error) -> u8 {
    if !error.use_stderr() {
        let rendered = error.render();
        let color = Terminal::detect(ColorChoice::Auto).out.color;
        let text = if color { rendered.ansi().to_string() } else { rendered.to_string() };
        return match output::write_out(leaf::show_help(&text).as_bytes()) {
            Ok(()) => exit::DONE,
            Err(_) => exit::FAILED,
        };
    }
    // Of several suggestions the last is the closest.
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.last().cloned(),
        _ => None,
    };
    if error.kind() == Misuse::InvalidSubcommand {
        let unknown = text(ContextKind::InvalidSubcommand).unwrap_or_default();
        let mut refusal = Error::invalid("usage", format!("There is no command `{unknown}`"));
        refusal = match text(ContextKind::SuggestedSubcommand) {
            Some(suggestion) => refusal.detail(format!("did you mean `{suggestion}`?")),
            None => refusal.next("all commands", Some("nephos --help".into())),
        };
        eprint!("{}", failure::render(&refusal, &Terminal::detect(ColorChoice::Auto)));
    } else {
        // Nothing can be done about a reader that is gone.
        let _ = error.print();
    }
    exit::USAGE
}
