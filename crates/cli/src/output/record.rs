//! One object for people: `key: value` lines, lists of objects as small tables below their key.

use serde_json::Value;

use super::cell::{Cell, lookup};
use crate::terminal::{Style, Terminal, columns as width_of};

/// What stands first, in this order; the rest follows as the answer has it.
const FIRST: [&str; 5] = ["name", "id", "state", "status", "project"];

pub(super) fn render(answer: &Value, columns: &[&str], terminal: &Terminal) -> String {
    let Value::Object(fields) = answer else {
        return match answer {
            Value::Null => String::new(),
            other => format!("{}\n", Cell::of("value", Some(other), &terminal.symbols).text),
        };
    };
    let keys: Vec<&str> = if columns.is_empty() {
        let mut keys: Vec<&str> = fields.keys().map(String::as_str).collect();
        keys.sort_by_key(|key| FIRST.iter().position(|first| first == key).unwrap_or(FIRST.len()));
        keys
    } else {
        columns.to_vec()
    };
    let width = keys.iter().map(|key| width_of(key)).max().unwrap_or(0) + 1;
    let mut out = String::new();
    for key in keys {
        let Some(value) = lookup(answer, key) else { continue };
        let label = terminal.out.paint(Style::Dim, &format!("{key}:"));
        let pad = " ".repeat(width.saturating_sub(width_of(key) + 1));
        match value {
            Value::Array(items) if items.iter().any(Value::is_object) => {
                out.push_str(&format!("{label}\n"));
                push_items(&mut out, items, terminal);
            }
            Value::String(text) if text.contains('\n') => {
                out.push_str(&format!("{label}\n"));
                for line in text.lines() {
                    out.push_str(&format!("  {}\n", crate::terminal::harmless(line)));
                }
            }
            value => {
                let cell = Cell::of(key, Some(value), &terminal.symbols);
                let exact = exact_time(key, value);
                let text = terminal.out.paint(cell.style, &cell.text);
                let text = exact.map_or(text.clone(), |time| {
                    format!("{time} {}", terminal.out.paint(Style::Dim, &format!("({})", cell.text)))
                });
                out.push_str(&format!("{label}{pad} {text}\n"));
            }
        }
    }
    out
}

/// A record has room for the time itself beside its age.
fn exact_time(key: &str, value: &Value) -> Option<String> {
    let time = value.as_str().filter(|_| key.ends_with("_at"))?;
    let (seconds, _) = time.split_once('.')?;
    Some(format!("{}Z", crate::terminal::harmless(seconds)))
}

fn push_items(out: &mut String, items: &[Value], terminal: &Terminal) {
    let mut keys: Vec<&str> = Vec::new();
    for item in items.iter().filter_map(Value::as_object) {
        for key in item.keys() {
            if !keys.contains(&key.as_str()) {
                keys.push(key);
            }
        }
    }
    keys.sort_by_key(|key| FIRST.iter().position(|first| first == key).unwrap_or(FIRST.len()));
    let rows: Vec<Vec<Cell>> = items
        .iter()
        .map(|item| keys.iter().map(|key| Cell::of(key, item.get(key), &terminal.symbols)).collect())
        .collect();
    let widths: Vec<usize> = keys
        .iter()
        .enumerate()
        .map(|(index, key)| {
            rows.iter()
                .filter_map(|row| row.get(index))
                .map(|cell| width_of(&cell.text))
                .max()
                .unwrap_or(0)
                .max(width_of(key))
        })
        .collect();
    let mut line = String::from(" ");
    for (key, width) in keys.iter().zip(&widths) {
        line.push_str(&format!(" {key:width$} "));
    }
    out.push_str(&terminal.out.paint(Style::Dim, line.trim_end()));
    out.push('\n');
    for row in rows {
        let mut line = String::from(" ");
        for (cell, width) in row.iter().zip(&widths) {
            let pad = " ".repeat(width.saturating_sub(width_of(&cell.text)));
            line.push_str(&format!(" {}{pad} ", terminal.out.paint(cell.style, &cell.text)));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}
