//! Printing answers: one value, many forms. Data goes to standard output, everything else to standard error.

mod cell;
mod record;
mod structured;
mod table;

use std::io::Write;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use nephos_types::{Error, ErrorKind, Result};
use serde_json::Value;

pub(crate) use cell::{Cell, duration_words};

use crate::{command::global::Globals, terminal::Terminal};

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Aligned columns for people.
    Table,
    /// The same with all columns.
    Wide,
    /// One JSON value.
    Json,
    /// One JSON value per line.
    JsonLines,
    /// YAML.
    Yaml,
    /// Comma-separated values with a header.
    Csv,
    /// Names only.
    Name,
    /// Bare values, one item per line.
    Value,
    /// Shell variables.
    Env,
}

const FORMATS: [(&str, Format); 9] = [
    ("table", Format::Table),
    ("wide", Format::Wide),
    ("json", Format::Json),
    ("jsonl", Format::JsonLines),
    ("yaml", Format::Yaml),
    ("csv", Format::Csv),
    ("name", Format::Name),
    ("value", Format::Value),
    ("env", Format::Env),
];

impl Format {
    pub(crate) fn parser() -> impl TypedValueParser<Value = Self> {
        PossibleValuesParser::new(FORMATS.map(|(word, _)| word))
            .map(|word| FORMATS.iter().find(|(known, _)| *known == word).map_or(Self::Table, |(_, format)| *format))
    }
}

/// An answer to be printed.
pub(crate) struct Printed<'a> {
    /// The noun it is about, e.g. `server`.
    pub(crate) noun: &'a str,
    /// The columns that tables show by default.
    pub(crate) columns: &'a [&'a str],
    /// Where was looked, for an empty list: `in project demo`.
    pub(crate) place: Option<String>,
    /// What to do about an empty list.
    pub(crate) hint: Option<String>,
}

/// Prints one object or a list of them.
pub(crate) fn print(answer: &Value, about: &Printed<'_>, globals: &Globals, terminal: &Terminal) -> Result<()> {
    let text = render(answer, about, globals, terminal)?;
    write_out(text.out.as_bytes())?;
    if !text.err.is_empty() && !globals.quiet {
        eprint!("{}", text.err);
    }
    Ok(())
}

/// What goes where.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Text {
    pub(crate) out: String,
    pub(crate) err: String,
}

pub(crate) fn render(answer: &Value, about: &Printed<'_>, globals: &Globals, terminal: &Terminal) -> Result<Text> {
    let format = match (globals.format, globals.quiet) {
        (Some(format), false) => format,
        (None | Some(Format::Table | Format::Wide), true) => Format::Name,
        (Some(format), true) => format,
        (None, false) => Format::Table,
    };
    let sorted;
    let answer = match answer {
        Value::Array(items) if !globals.sort.is_empty() => {
            sorted = Value::Array(sort(items, &globals.sort));
            &sorted
        }
        other => other,
    };
    if globals.columns.iter().any(|column| column == "help") {
        return Ok(Text { out: table::known_columns(answer, about), err: String::new() });
    }
    let chosen: Vec<&str> = if globals.columns.is_empty() {
        about.columns.to_vec()
    } else {
        globals.columns.iter().map(String::as_str).collect()
    };
    let by_hand = !globals.columns.is_empty();
    check_columns(answer, about, globals)?;
    Ok(match format {
        Format::Table | Format::Wide => match answer {
            Value::Array(items) if items.is_empty() => Text { out: String::new(), err: empty(about) },
            Value::Array(items) => {
                let columns: Vec<String> = if chosen.is_empty() || (format == Format::Wide && !by_hand) {
                    table::all_columns(items, about)
                } else {
                    chosen.iter().map(|column| (*column).to_owned()).collect()
                };
                table::render(items, &columns, about.noun, globals, terminal)
            }
            other => {
                Text { out: record::render(other, if by_hand { &chosen } else { &[] }, terminal), err: String::new() }
            }
        },
        Format::Json => Text { out: structured::json(&structured::project(answer, globals))?, err: String::new() },
        Format::JsonLines => {
            Text { out: structured::json_lines(&structured::project(answer, globals))?, err: String::new() }
        }
        Format::Yaml => Text { out: structured::yaml(&structured::project(answer, globals))?, err: String::new() },
        Format::Csv => {
            let items = items_of(answer);
            let columns = if by_hand {
                chosen.iter().map(|c| (*c).to_owned()).collect()
            } else {
                table::all_columns(items, about)
            };
            Text { out: structured::csv(items, &columns, globals.no_header), err: String::new() }
        }
        Format::Value => {
            let items = items_of(answer);
            let columns = if chosen.is_empty() {
                table::all_columns(items, about)
            } else {
                chosen.iter().map(|c| (*c).to_owned()).collect()
            };
            Text { out: structured::values(items, &columns), err: String::new() }
        }
        Format::Name => Text { out: structured::names(items_of(answer)), err: String::new() },
        Format::Env => Text { out: structured::env(answer, about.noun, globals)?, err: String::new() },
    })
}

/// Writes data to standard output. A reader who has left early (`| head`) ends the program quietly.
pub(crate) fn write_out(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            Err(Error::new(ErrorKind::Internal, "output", "Cannot write to standard output").detail(error.to_string()))
        }
    }
}

fn items_of(answer: &Value) -> &[Value] {
    match answer {
        Value::Array(items) => items,
        Value::Null => &[],
        one => std::slice::from_ref(one),
    }
}

fn empty(about: &Printed<'_>) -> String {
    let plural = crate::command::field::plural(about.noun);
    let place = about.place.as_ref().map(|place| format!(" {place}")).unwrap_or_default();
    let hint = about.hint.as_ref().map(|hint| format!(" {hint}")).unwrap_or_default();
    format!("No {plural}{place}.{hint}\n")
}

/// A column that no item has is a typing mistake, unless the list is empty.
fn check_columns(answer: &Value, about: &Printed<'_>, globals: &Globals) -> Result<()> {
    let items = items_of(answer);
    let known = table::all_columns(items, about);
    let wanted = globals.columns.iter().map(String::as_str);
    let sorted = globals.sort.iter().map(|column| column.trim_start_matches('-'));
    for column in wanted.chain(sorted) {
        let there =
            known.iter().any(|name| name == column) || items.iter().any(|item| cell::lookup(item, column).is_some());
        if !there && !items.is_empty() {
            return Err(Error::invalid("unknown_column", format!("No column `{column}`"))
                .detail(format!("there is {}", known.join(", "))));
        }
    }
    Ok(())
}

fn sort(items: &[Value], by: &[String]) -> Vec<Value> {
    let mut items = items.to_vec();
    items.sort_by(|a, b| {
        for column in by {
            let (name, reversed) = column.strip_prefix('-').map_or((column.as_str(), false), |name| (name, true));
            let order = cell::compare(cell::lookup(a, name), cell::lookup(b, name));
            let order = if reversed { order.reverse() } else { order };
            if order.is_ne() {
                return order;
            }
        }
        std::cmp::Ordering::Equal
    });
    items
}
