//! The whole tree of commands. Nouns and verbs come from the table without looking at a schema; the arguments of a
//! command are added when that command is the one used, so that starting up stays cheap however many there are.

use std::collections::BTreeMap;

use clap::Command;
use nephos_ops::{AnswerKind, Entry};

use super::{field::plural, global, leaf};

/// A command that is not an operation: of this crate, or of the program around it.
pub struct LocalCommand {
    /// The noun it stands under (`image` for `nephos image build`); `None` at the top.
    pub noun: Option<&'static str>,
    /// Name, help and arguments.
    pub command: Command,
    /// What it does.
    pub run: fn(&crate::Invocation<'_>) -> nephos_types::Result<u8>,
}

/// Verbs that mean the same as one that is shown.
const VERB_ALIASES: [(&str, &[&str]); 4] =
    [("list", &["ls"]), ("delete", &["rm"]), ("show", &["get", "describe"]), ("create", &["new"])];

/// The tree with these local commands in it.
pub(crate) fn build(name: &'static str, version: &'static str, local: &[LocalCommand]) -> Command {
    let mut nouns: BTreeMap<String, Vec<&'static Entry>> = BTreeMap::new();
    for entry in nephos_ops::table() {
        nouns.entry(leaf::noun(entry)).or_default().push(entry);
    }
    for extra in local {
        if let Some(noun) = extra.noun {
            nouns.entry(noun.to_owned()).or_default();
        }
    }
    let mut root = Command::new(name)
        .bin_name(name)
        .version(version)
        .about("A private cloud in one program")
        .disable_help_subcommand(true)
        .subcommand_help_heading("Commands")
        .args(global::args())
        .max_term_width(100)
        .subcommand_value_name("NOUN VERB");
    for extra in local.iter().filter(|extra| extra.noun.is_none()) {
        let takes_globals = extra.command.clone();
        root = root.subcommand(with_globals(takes_globals));
    }
    for (noun, entries) in nouns {
        let more: Vec<_> = local.iter().filter(|extra| extra.noun == Some(noun.as_str())).collect();
        root = root.subcommand(noun_command(&noun, &entries, &more));
    }
    root
}

fn noun_command(noun: &str, entries: &[&'static Entry], more: &[&LocalCommand]) -> Command {
    let mut verbs: Vec<String> = entries.iter().map(|entry| leaf::verb(entry)).collect();
    verbs.extend(more.iter().map(|extra| extra.command.get_name().to_owned()));
    let mut command = Command::new(noun.to_owned())
        .about(verbs.join(", "))
        .alias(plural(noun))
        .disable_help_subcommand(true)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand_value_name("VERB");
    // A command of the program replaces the operation of the same name.
    let replaced = |verb: &str| more.iter().any(|extra| extra.command.get_name() == verb);
    for entry in entries.iter().filter(|entry| !replaced(&leaf::verb(entry))) {
        command = command.subcommand(operation_command(entry));
    }
    for extra in more {
        command = command.subcommand(with_globals(extra.command.clone()));
    }
    command
}

fn operation_command(entry: &'static Entry) -> Command {
    let verb = leaf::verb(entry);
    let aliases = VERB_ALIASES.iter().find(|(name, _)| *name == verb).map_or(&[][..], |(_, aliases)| *aliases);
    Command::new(verb)
        .about(entry.spec.summary)
        .display_name(entry.spec.name)
        .aliases(aliases.iter().copied())
        .defer(leaf::complete)
}

/// Adds the global flags that a local command does not define itself.
fn with_globals(command: Command) -> Command {
    let longs: Vec<String> = command
        .get_arguments()
        .flat_map(|arg| {
            arg.get_long_and_visible_aliases().unwrap_or_default().into_iter().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    let shorts: Vec<char> = command.get_arguments().filter_map(clap::Arg::get_short).collect();
    let globals = global::args().into_iter().filter(|arg| {
        arg.get_long().is_none_or(|long| !longs.iter().any(|taken| taken == long))
            && arg.get_short().is_none_or(|short| !shorts.contains(&short))
    });
    command.args(globals)
}

/// Whether an operation takes something away for good, so that it is asked about first.
pub(crate) fn is_destructive(entry: &Entry) -> bool {
    matches!(entry.spec.verb(), "delete" | "purge")
        && matches!(entry.answer, AnswerKind::Nothing | AnswerKind::Started | AnswerKind::Json)
}
