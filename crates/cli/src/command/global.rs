//! The flags that mean the same on every command.

use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, parser::ValueSource};
use nephos_types::Result;

use super::quantity;
use crate::{output::Format, terminal::ColorChoice};

/// The heading under which they stand in the long help.
const HEADING: &str = "Flags of every command";

/// How long a started workflow is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Until it is final.
    Forever,
    /// At most this long.
    AtMost(Duration),
    /// Not at all.
    No,
}

/// The global flags as given.
#[derive(Clone, Debug)]
pub(crate) struct Globals {
    pub(crate) format: Option<Format>,
    pub(crate) columns: Vec<String>,
    pub(crate) sort: Vec<String>,
    pub(crate) no_header: bool,
    pub(crate) quiet: bool,
    pub(crate) all: bool,
    pub(crate) wait: Wait,
    pub(crate) yes: bool,
    pub(crate) timeout: Option<Duration>,
    pub(crate) verbosity: u8,
    pub(crate) debug: bool,
    pub(crate) color: ColorChoice,
    pub(crate) plan: bool,
    pub(crate) explain: bool,
    pub(crate) curl: bool,
    pub(crate) url: Option<String>,
    pub(crate) cloud: Option<String>,
    pub(crate) project: Option<String>,
}

impl Default for Globals {
    /// As if none was given.
    fn default() -> Self {
        Self::of(&ArgMatches::default(), &ArgMatches::default())
    }
}

/// The arguments. Their ids start with `@`, so that no field of an operation can have the same.
pub(crate) fn args() -> Vec<Arg> {
    let flag = |name: &'static str| {
        Arg::new(format!("@{name}")).long(name).help_heading(HEADING).hide_short_help(true).display_order(1000)
    };
    let switch = |name| flag(name).action(ArgAction::SetTrue);
    vec![
        flag("format")
            .short('o')
            .short_alias('f')
            .visible_alias("output")
            .value_name("FORMAT")
            .value_parser(Format::parser())
            .help("How to print the answer"),
        flag("columns")
            .short('c')
            .value_name("A,B")
            .value_delimiter(',')
            .action(ArgAction::Append)
            .help("Which columns, in this order; `help` lists them"),
        flag("sort")
            .value_name("[-]COLUMN")
            .allow_hyphen_values(true)
            .value_delimiter(',')
            .action(ArgAction::Append)
            .help("Order by these columns; `-` reverses"),
        switch("no-header").help("No line with the columns' names"),
        switch("quiet").short('q').help("Print only names or ids, and no progress"),
        switch("all").help("All pages of a list"),
        flag("wait")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("")
            .value_name("DURATION")
            .value_parser(optional_duration)
            .help("Wait for started work to end, at most this long; this is the default"),
        switch("no-wait").conflicts_with("@wait").help("Return as soon as the work is started"),
        switch("yes").short('y').help("Do not ask before deleting"),
        flag("timeout")
            .value_name("DURATION")
            .value_parser(quantity::duration)
            .help("Give up after this long; the work goes on"),
        flag("url").value_name("URL").help("Which cloud; before NEPHOS_URL"),
        flag("cloud")
            .visible_alias("context")
            .value_name("NAME")
            .help("Which entry of clouds.yaml or of `nephos login`; before NEPHOS_CLOUD"),
        flag("project").short('p').value_name("NAME").help("Work in this project"),
        flag("verbose").short('v').action(ArgAction::Count).help("Say more; twice: every request"),
        switch("debug").help("Every request with its body, secrets masked"),
        flag("color")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("always")
            .value_name("WHEN")
            .value_parser(ColorChoice::parser())
            .help("Colors: auto, always, never"),
        switch("no-color").conflicts_with("@color").help("No colors"),
        switch("plan")
            .visible_alias("dry-run")
            .help("Say what would change, and change nothing; exit code 10 if there is something"),
        switch("explain").help("Say how this was understood and what would be sent; send nothing"),
        switch("curl").help("Print the same as a curl command; send nothing"),
    ]
}

fn optional_duration(text: &str) -> Result<Option<Duration>, String> {
    if text.is_empty() { Ok(None) } else { quantity::duration(text).map(Some) }
}

impl Globals {
    /// From the matches of the root and of the command itself; the command's count more.
    pub(crate) fn of(root: &ArgMatches, leaf: &ArgMatches) -> Self {
        // The leaf may lack a flag that one of its own fields replaces.
        let source = |id: &str| {
            [leaf, root].into_iter().find(|matches| {
                matches!(matches.try_contains_id(id), Ok(true))
                    && matches.value_source(id) == Some(ValueSource::CommandLine)
            })
        };
        let switch = |id: &str| source(id).is_some_and(|matches| matches.get_flag(id));
        let text = |id: &str| source(id).and_then(|matches| matches.get_one::<String>(id)).cloned();
        let list = |id: &str| {
            source(id)
                .and_then(|matches| matches.get_many::<String>(id))
                .map(|values| values.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty()).collect())
                .unwrap_or_default()
        };
        let wait = match source("@wait").and_then(|matches| matches.get_one::<Option<Duration>>("@wait")) {
            Some(Some(limit)) => Wait::AtMost(*limit),
            Some(None) => Wait::Forever,
            None if switch("@no-wait") => Wait::No,
            None => Wait::Forever,
        };
        let color = if switch("@no-color") {
            ColorChoice::Never
        } else {
            source("@color").and_then(|matches| matches.get_one("@color")).copied().unwrap_or(ColorChoice::Auto)
        };
        Self {
            format: source("@format").and_then(|matches| matches.get_one("@format")).copied(),
            columns: list("@columns"),
            sort: list("@sort"),
            no_header: switch("@no-header"),
            quiet: switch("@quiet"),
            all: switch("@all"),
            wait,
            yes: switch("@yes"),
            timeout: source("@timeout").and_then(|matches| matches.get_one("@timeout")).copied(),
            verbosity: source("@verbose").map_or(0, |matches| matches.get_count("@verbose")),
            debug: switch("@debug"),
            color,
            plan: switch("@plan"),
            explain: switch("@explain"),
            curl: switch("@curl"),
            url: text("@url"),
            cloud: text("@cloud"),
            project: text("@project"),
        }
    }
}
