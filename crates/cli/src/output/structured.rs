//! Answers for programs: JSON, YAML, CSV, bare values, shell variables. Never cut, never colored.

use nephos_types::{Error, Result};
use serde_json::{Map, Value};

use super::cell::lookup;
use crate::command::global::Globals;

/// Only the chosen columns, if some were chosen; otherwise the answer as the API gave it.
pub(super) fn project(answer: &Value, globals: &Globals) -> Value {
    if globals.columns.is_empty() {
        return answer.clone();
    }
    let one = |item: &Value| {
        let fields =
            globals.columns.iter().map(|column| (column.clone(), lookup(item, column).cloned().unwrap_or_default()));
        Value::Object(fields.collect::<Map<_, _>>())
    };
    match answer {
        Value::Array(items) => Value::Array(items.iter().map(one).collect()),
        item => one(item),
    }
}

fn unprintable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::internal("The answer could not be printed", error)
}

pub(super) fn json(answer: &Value) -> Result<String> {
    let mut text = serde_json::to_string_pretty(answer).map_err(unprintable)?;
    text.push('\n');
    Ok(text)
}

pub(super) fn json_lines(answer: &Value) -> Result<String> {
    let mut text = String::new();
    for item in super::items_of(answer) {
        text.push_str(&serde_json::to_string(item).map_err(unprintable)?);
        text.push('\n');
    }
    Ok(text)
}

pub(super) fn yaml(answer: &Value) -> Result<String> {
    serde_yaml_ng::to_string(answer).map_err(unprintable)
}

/// A value as bare text; what is no scalar is JSON.
fn bare(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// RFC 4180, with line feeds.
pub(super) fn csv(items: &[Value], columns: &[String], no_header: bool) -> String {
    let quote = |text: String| {
        if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
    };
    let mut out = String::new();
    if !no_header {
        out.push_str(&columns.iter().cloned().map(quote).collect::<Vec<_>>().join(","));
        out.push('\n');
    }
    for item in items {
        let cells: Vec<_> = columns.iter().map(|column| quote(bare(lookup(item, column)))).collect();
        out.push_str(&cells.join(","));
        out.push('\n');
    }
    out
}

/// One line per item, blanks between values; a list of plain values is one per line.
pub(super) fn values(items: &[Value], columns: &[String]) -> String {
    items
        .iter()
        .map(|item| {
            if !item.is_object() {
                return format!("{}\n", bare(Some(item)));
            }
            let cells: Vec<_> = columns.iter().map(|column| bare(lookup(item, column))).collect();
            format!("{}\n", cells.join(" "))
        })
        .collect()
}

/// The name of each, or what else identifies it.
pub(super) fn names(items: &[Value]) -> String {
    items
        .iter()
        .filter_map(|item| ["name", "id", "workflow"].iter().find_map(|key| item.get(*key)).or(Some(item)))
        .map(|value| format!("{}\n", bare(Some(value))))
        .collect()
}

/// `NEPHOS_SERVER_ID='srv-…'`, one line per scalar.
pub(super) fn env(answer: &Value, noun: &str, globals: &Globals) -> Result<String> {
    let one = match answer {
        Value::Array(items) => match items.as_slice() {
            [only] => only,
            _ => {
                return Err(Error::invalid("usage", "Shell variables can hold one item only")
                    .detail(format!("the answer has {}", items.len()))
                    .next("ask for one by name, or choose another format", None));
            }
        },
        other => other,
    };
    let mut out = String::new();
    push_env(&mut out, &format!("NEPHOS_{}", variable(noun)), &project(one, globals));
    Ok(out)
}

fn push_env(out: &mut String, name: &str, value: &Value) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                push_env(out, &format!("{name}_{}", variable(key)), value);
            }
        }
        Value::Null => {}
        other => {
            let text = bare(Some(other)).replace('\'', r"'\''");
            out.push_str(&format!("{name}='{text}'\n"));
        }
    }
}

fn variable(word: &str) -> String {
    word.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shell_variables_cannot_be_broken_out_of() {
        let mut out = String::new();
        push_env(&mut out, "NEPHOS_SERVER", &json!({"name": "a'; rm -rf /; '", "n": 1, "labels": {"a-b": "c"}}));
        assert_eq!(
            out,
            "NEPHOS_SERVER_LABELS_A_B='c'\nNEPHOS_SERVER_N='1'\nNEPHOS_SERVER_NAME='a'\\''; rm -rf /; '\\'''\n"
        );
    }

    #[test]
    fn commas_and_quotes_survive_csv() {
        let items = [json!({"a": "x,\"y\"", "b": null})];
        assert_eq!(csv(&items, &["a".into(), "b".into()], false), "a,b\n\"x,\"\"y\"\"\",\n");
    }
}
