//! The command of one operation: its arguments, and from their values to the operation's input.

use clap::{Arg, ArgMatches, Command};
use nephos_ops::{AnswerKind, Effect, Entry, schema::Fields};
use nephos_types::{Error, Result};
use serde_json::{Map, Value};

use super::{
    field::{self, Kind},
    global, quantity,
};

/// Id of the argument that names a file to send or to write.
pub(crate) const FILE: &str = "@file";

/// Id of the argument that says how often to ask again.
pub(crate) const WATCH: &str = "@watch";

/// Stands for a blank in an example, so that the line is not wrapped; [`show_help`] puts the blank back.
const UNBREAKABLE: char = '\u{e000}';

/// Rendered help, ready to be shown: example lines can be copied as they stand.
pub(crate) fn show_help(rendered: &str) -> String {
    rendered.replace(UNBREAKABLE, " ")
}

/// The operation with this name.
pub(crate) fn entry(name: &str) -> Option<&'static Entry> {
    nephos_ops::table().iter().find(|entry| entry.spec.name == name)
}

/// The verb as typed: `console_log` and `console.log` are `console-log`.
pub(crate) fn verb(entry: &Entry) -> String {
    entry.spec.verb().replace(['_', '.'], "-")
}

/// The noun as typed.
pub(crate) fn noun(entry: &Entry) -> String {
    entry.spec.noun().replace('_', "-")
}

/// The field that may be given several times, the operation then being called for each: the one resource that the
/// command is about.
pub(crate) fn target(entry: &Entry) -> Option<&'static str> {
    let [only] = entry.spec.positional else { return None };
    let plain = !entry.spec.upload
        && entry.spec.effect != Effect::Creates
        && matches!(entry.answer, AnswerKind::Json | AnswerKind::Started | AnswerKind::Nothing);
    (plain && entry.spec.path_fields().any(|field| field == *only)).then_some(*only)
}

/// Adds to an operation's command everything that needs its schema. Called only for the command that is used.
pub(crate) fn complete(command: Command) -> Command {
    let Some(entry) = command.get_display_name().and_then(entry) else { return command };
    let spec = &entry.spec;
    let fields = field::fields(&Fields::of(entry));
    let mut taken: Vec<String> = Vec::new();
    let mut args: Vec<Arg> = Vec::new();
    for field in &fields {
        let position = spec.positional.iter().position(|name| *name == field.name).map(|index| index + 1);
        let many = target(entry) == Some(field.name.as_str());
        if position.is_none() {
            taken.extend(field.flags());
        }
        let seldom = spec.seldom.contains(&field.name.as_str());
        args.push(field.arg(spec, position, many).hide_short_help(seldom));
    }
    if let Some(file) = file_arg(entry) {
        args.push(file);
    }
    if spec.effect == Effect::Reads && entry.answer == AnswerKind::Json && !taken.iter().any(|flag| flag == "watch") {
        args.push(
            Arg::new(WATCH)
                .long("watch")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("2s")
                .value_name("DURATION")
                .value_parser(quantity::duration)
                .display_order(900)
                .help("Ask again and again, this often, until interrupted [2s]"),
        );
    }
    let globals = global::args().into_iter().filter_map(|arg| yielding(arg, &taken));
    // The help of the program explains them; here they would hide what is particular.
    args.extend(globals.map(|arg| arg.hide_long_help(true)));
    let mut long = spec.summary.to_owned();
    if !spec.description.is_empty() {
        long = format!("{long}.\n\n{}", spec.description);
    }
    command.long_about(long).args(args).after_help("More, with examples: --help").after_long_help(examples(entry))
}

/// A global flag gives way to a field of the same name; it keeps its other name, if it has one.
fn yielding(arg: Arg, taken: &[String]) -> Option<Arg> {
    let free = |name: &str| !taken.iter().any(|flag| flag == name);
    let names = arg.get_long_and_visible_aliases().unwrap_or_default();
    if names.iter().all(|name| free(name)) {
        return Some(arg);
    }
    let other = names.into_iter().find(|name| free(name)).map(str::to_owned)?;
    Some(arg.visible_alias(None).long(other))
}

fn file_arg(entry: &Entry) -> Option<Arg> {
    let file = Arg::new(FILE).long("file").value_name("PATH");
    if entry.spec.upload {
        Some(file.required(true).help("The file to send; `-` is standard input"))
    } else if entry.answer == AnswerKind::Download {
        Some(file.help("Where to write it; `-` is standard output"))
    } else if upload_after(entry).is_some() {
        Some(file.help("A file to send into it at once; `-` is standard input"))
    } else {
        None
    }
}

/// The operation that sends a file into what this one creates: `image.upload` for `image.create`.
pub(crate) fn upload_after(entry: &Entry) -> Option<&'static Entry> {
    let upload = self::entry(&format!("{}.upload", entry.spec.noun()))?;
    let creates = entry.spec.effect == Effect::Creates && entry.spec.verb() == "create" && !entry.spec.upload;
    (creates && upload.spec.upload && entry.answer == AnswerKind::Json).then_some(upload)
}

fn examples(entry: &Entry) -> String {
    let mut text = String::new();
    if !entry.spec.examples.is_empty() {
        text.push_str("Examples:\n");
    }
    for example in entry.spec.examples {
        let line = example.command.replace(' ', UNBREAKABLE.encode_utf8(&mut [0; 4]));
        text.push_str(&format!("  # {}\n  {line}\n", example.title));
    }
    text.push_str(&format!("\nAs a request: {} {}\n", entry.spec.method.as_str(), entry.spec.path));
    text.push_str("Flags of every command (-o, -c, -q, -y, --wait, --project, …): nephos --help");
    text
}

/// The inputs that a parsed command line stands for: one, or one for each resource named.
pub(crate) fn inputs(entry: &Entry, matches: &ArgMatches) -> Result<Vec<Value>> {
    let fields = field::fields(&Fields::of(entry));
    let target = target(entry);
    let mut input = Map::new();
    let mut targets = Vec::new();
    for field in &fields {
        let values: Vec<Value> =
            matches.get_many::<Value>(&field.name).map(|values| values.cloned().collect()).unwrap_or_default();
        if target == Some(field.name.as_str()) && !matches!(field.kind, Kind::List(_)) {
            targets = values;
        } else if let Some(value) = field.combine(values) {
            input.insert(field.name.clone(), value);
        }
    }
    let Some(target) = target else { return Ok(vec![Value::Object(input)]) };
    if targets.iter().any(|value| value.as_str() == Some("-")) {
        targets = names_from_stdin()?;
    }
    if targets.is_empty() {
        return Ok(vec![Value::Object(input)]);
    }
    Ok(targets
        .into_iter()
        .map(|value| {
            let mut input = input.clone();
            input.insert(target.to_owned(), value);
            Value::Object(input)
        })
        .collect())
}

fn names_from_stdin() -> Result<Vec<Value>> {
    let text = std::io::read_to_string(std::io::stdin().lock())
        .map_err(|error| Error::invalid("usage", "Cannot read names from standard input").detail(error.to_string()))?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(Value::from).collect())
}
