//! One value as people read it: states with a mark, times as ages, sizes with their unit.

use std::{cmp::Ordering, time::Duration};

use nephos_types::{Bytes, Timestamp};
use serde_json::Value;

use crate::terminal::{Style, Symbols, harmless};

/// Text to be shown, and how.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cell {
    pub(crate) text: String,
    pub(crate) style: Style,
    /// Numbers align right.
    pub(crate) right: bool,
}

impl Cell {
    fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), style: Style::Plain, right: false }
    }

    /// The value of a column.
    pub(crate) fn of(column: &str, value: Option<&Value>, symbols: &Symbols) -> Self {
        let field = column.rsplit('.').next().unwrap_or(column);
        let Some(value) = value.filter(|value| !value.is_null()) else {
            return Self { text: "-".to_owned(), style: Style::Dim, right: false };
        };
        match value {
            Value::String(word) if matches!(field, "state" | "status") => {
                let (symbol, style) = looks(word, symbols);
                Self { text: format!("{symbol} {}", harmless(word)), style, right: false }
            }
            Value::String(text) if field.ends_with("_at") || field == "at" => {
                Self { text: age(text).unwrap_or_else(|| harmless(text)), style: Style::Dim, right: false }
            }
            Value::String(text) => {
                let style = match field {
                    "name" => Style::Bold,
                    "id" => Style::Dim,
                    _ => Style::Plain,
                };
                Self { text: harmless(&text.replace('\n', " ")), style, right: false }
            }
            Value::Number(number) => {
                let text = number.as_u64().and_then(|n| size(field, n)).unwrap_or_else(|| number.to_string());
                Self { text, style: Style::Plain, right: true }
            }
            Value::Bool(yes) => Self::plain(if *yes { "yes" } else { "no" }),
            Value::Array(items) => {
                let words: Vec<_> = items.iter().map(compact).collect();
                Self::plain(if words.is_empty() { "-".to_owned() } else { words.join(",") })
            }
            object => Self::plain(compact(object)),
        }
    }
}

/// One line for anything.
fn compact(value: &Value) -> String {
    match value {
        Value::String(text) => harmless(text),
        Value::Object(fields) => {
            if let Some(Value::String(name)) = fields.get("name") {
                return harmless(name);
            }
            let parts: Vec<_> =
                fields.iter().map(|(key, value)| format!("{}={}", harmless(key), compact(value))).collect();
            if parts.is_empty() { "-".to_owned() } else { parts.join(",") }
        }
        other => other.to_string(),
    }
}

/// The mark and color of a state.
pub(crate) fn looks(state: &str, symbols: &Symbols) -> (&'static str, Style) {
    match state {
        "active" | "running" | "up" | "ready" | "online" | "available" | "enabled" | "succeeded" | "connected" => {
            (symbols.good, Style::Good)
        }
        "stopped" | "off" | "disabled" | "cancelled" | "pending" | "undone" | "unknown" | "none" | "deactivated" => {
            (symbols.idle, Style::Dim)
        }
        "error" | "failed" | "stuck" | "down" | "lost" | "dead" | "offline" | "killed" | "undo_failed" => {
            (symbols.bad, Style::Bad)
        }
        _ => (symbols.changing, Style::Changing),
    }
}

/// `memory_mib: 2048` is `2 GiB`.
fn size(field: &str, number: u64) -> Option<String> {
    let bytes = match field.rsplit('_').next()? {
        "mib" => number.checked_mul(1 << 20)?,
        "gib" => number.checked_mul(1 << 30)?,
        "bytes" | "size" => number,
        _ => return None,
    };
    Some(if number == 0 { "0".to_owned() } else { Bytes(bytes).to_string() })
}

/// How long ago, or how far ahead, a time is.
fn age(text: &str) -> Option<String> {
    let time: Timestamp = text.parse().ok()?;
    let now = Timestamp::now();
    if time > now {
        let ahead = time.since(now);
        return Some(if ahead < Duration::from_secs(2) { "now".to_owned() } else { format!("in {}", rough(ahead)) });
    }
    Some(rough(now.since(time)))
}

fn rough(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// `0.21s`, `2.1s`, `1m 20s`.
pub(crate) fn duration_words(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 1.0 {
        format!("{seconds:.2}s")
    } else if seconds < 60.0 {
        format!("{seconds:.1}s")
    } else {
        format!("{}m {:02}s", duration.as_secs() / 60, duration.as_secs() % 60)
    }
}

/// The value at a column: `state`, or `fault.code` inside it.
pub(crate) fn lookup<'a>(item: &'a Value, column: &str) -> Option<&'a Value> {
    column.split('.').try_fold(item, |value, part| value.get(part))
}

/// The order of two values of a column: numbers by size, others as text, absent ones first.
pub(crate) fn compare(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    match (a, b) {
        (Some(Value::Number(a)), Some(Value::Number(b))) => {
            a.as_f64().unwrap_or(0.0).total_cmp(&b.as_f64().unwrap_or(0.0))
        }
        (Some(a), Some(b)) => compact(a).cmp(&compact(b)),
        (a, b) => a.is_some().cmp(&b.is_some()),
    }
}

/// `memory_mib` is shown under `MEMORY`, since its values carry their unit.
pub(crate) fn heading(column: &str) -> String {
    let last = column.rsplit('.').next().unwrap_or(column);
    let stem = ["_mib", "_gib", "_bytes", "_name"].iter().find_map(|end| last.strip_suffix(end)).unwrap_or(last);
    match column {
        "created_at" => "AGE".to_owned(),
        _ => stem.strip_suffix("_at").unwrap_or(stem).replace('_', " ").to_uppercase(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_shown_with_their_unit() {
        let terminal = crate::terminal::Terminal::detect(crate::terminal::ColorChoice::Never);
        let shown = |column: &str, value: Value| Cell::of(column, Some(&value), &terminal.symbols).text;
        assert_eq!(shown("memory_mib", json!(2048)), "2 GiB");
        assert_eq!(shown("size", json!(1536)), "1.5 KiB");
        assert_eq!(shown("labels", json!({"a": "b", "c": "d"})), "a=b,c=d");
        assert_eq!(shown("forwards", json!([])), "-");
        assert_eq!(shown("name", json!("a\u{1b}[2J\nb")), "a\u{fffd}[2J b");
        assert_eq!(shown("enabled", json!(true)), "yes");
        assert_eq!(Cell::of("x", None, &terminal.symbols).text, "-");
    }

    #[test]
    fn durations_are_short() {
        assert_eq!(duration_words(Duration::from_millis(214)), "0.21s");
        assert_eq!(duration_words(Duration::from_millis(2140)), "2.1s");
        assert_eq!(duration_words(Duration::from_secs(80)), "1m 20s");
        assert_eq!(rough(Duration::from_secs(7200)), "2h");
    }
}
