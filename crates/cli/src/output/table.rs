//! Tables: no boxes, two blanks between columns, cut to the screen only where there is one.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    Printed, Text,
    cell::{Cell, heading, lookup},
};
use crate::{
    command::{field::plural, global::Globals},
    terminal::{Style, Terminal, columns as width_of, shorten},
};

/// The narrowest that a column is cut to.
const NARROWEST: usize = 6;

pub(super) fn render(items: &[Value], columns: &[String], noun: &str, globals: &Globals, terminal: &Terminal) -> Text {
    let rows: Vec<Vec<Cell>> = items
        .iter()
        .map(|item| columns.iter().map(|column| Cell::of(column, lookup(item, column), &terminal.symbols)).collect())
        .collect();
    let headings: Vec<String> = columns.iter().map(|column| heading(column)).collect();
    let mut widths: Vec<usize> = headings
        .iter()
        .enumerate()
        .map(|(index, heading)| {
            let values = rows.iter().filter_map(|row| row.get(index)).map(|cell| width_of(&cell.text)).max();
            values.unwrap_or(0).max(if globals.no_header { 0 } else { width_of(heading) })
        })
        .collect();
    if terminal.out.tty {
        fit(&mut widths, terminal.width);
    }
    let mut out = String::new();
    if !globals.no_header {
        let cells: Vec<Cell> = headings
            .into_iter()
            .enumerate()
            .map(|(index, text)| Cell { text, style: Style::Dim, right: is_numeric(&rows, index) })
            .collect();
        push_line(&mut out, &cells, &widths, terminal);
    }
    for row in &rows {
        push_line(&mut out, row, &widths, terminal);
    }
    Text { out, err: footer(items, noun) }
}

fn is_numeric(rows: &[Vec<Cell>], index: usize) -> bool {
    rows.iter().filter_map(|row| row.get(index)).any(|cell| cell.right)
}

fn push_line(out: &mut String, cells: &[Cell], widths: &[usize], terminal: &Terminal) {
    let mut line = String::new();
    let last = cells.len().saturating_sub(1);
    for (index, (cell, width)) in cells.iter().zip(widths).enumerate() {
        let text =
            if terminal.out.tty { shorten(&cell.text, *width, terminal.symbols.ellipsis) } else { cell.text.clone() };
        let pad = " ".repeat(width.saturating_sub(width_of(&text)));
        let text = terminal.out.paint(cell.style, &text);
        if index > 0 {
            line.push_str("  ");
        }
        if cell.right {
            line.push_str(&pad);
            line.push_str(&text);
        } else {
            line.push_str(&text);
            if index < last {
                line.push_str(&pad);
            }
        }
    }
    out.push_str(line.trim_end());
    out.push('\n');
}

/// Takes from the widest columns until the line fits, or nothing is left to take.
fn fit(widths: &mut [usize], screen: usize) {
    loop {
        let total = widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
        let Some(widest) = widths.iter_mut().max() else { return };
        if total <= screen || *widest <= NARROWEST {
            return;
        }
        *widest = widest.saturating_sub(total - screen).max(*widest / 2).max(NARROWEST);
    }
}

/// `3 servers (1 active, 2 stopped)`.
fn footer(items: &[Value], noun: &str) -> String {
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for item in items {
        if let Some(state) = item.get("state").or_else(|| item.get("status")).and_then(Value::as_str) {
            *states.entry(state).or_default() += 1;
        }
    }
    let noun = if items.len() == 1 { noun.to_owned() } else { plural(noun) };
    let states: Vec<_> = states.iter().map(|(state, count)| format!("{count} {state}")).collect();
    let states = if states.is_empty() { String::new() } else { format!(" ({})", states.join(", ")) };
    format!("{} {noun}{states}\n", items.len())
}

/// Every column there is: those shown by default first, then the rest.
pub(super) fn all_columns(items: &[Value], about: &Printed<'_>) -> Vec<String> {
    let mut columns: Vec<String> = about.columns.iter().map(|column| (*column).to_owned()).collect();
    let others: BTreeSet<&str> =
        items.iter().filter_map(Value::as_object).flat_map(|fields| fields.keys().map(String::as_str)).collect();
    for name in others {
        if !columns.iter().any(|column| column == name) {
            columns.push(name.to_owned());
        }
    }
    columns
}

/// The list for `-c help`.
pub(super) fn known_columns(answer: &Value, about: &Printed<'_>) -> String {
    let items = super::items_of(answer);
    all_columns(items, about).into_iter().map(|column| format!("{column}\n")).collect()
}
