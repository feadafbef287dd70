//! To XML.

use std::fmt::Write;

use base64::{Engine, engine::general_purpose::STANDARD};

use super::{Call, Fault, Value, parse::is_xml};

const DECLARATION: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";

/// A `methodCall`.
#[must_use]
pub fn render_call(call: &Call) -> String {
    let mut out = format!("{DECLARATION}<methodCall><methodName>");
    escape(&mut out, &call.method);
    out.push_str("</methodName><params>");
    for value in &call.params {
        out.push_str("<param>");
        render(&mut out, value);
        out.push_str("</param>");
    }
    out.push_str("</params></methodCall>");
    out
}

/// A `methodResponse` with a result.
#[must_use]
pub fn render_response(value: &Value) -> String {
    let mut out = format!("{DECLARATION}<methodResponse><params><param>");
    render(&mut out, value);
    out.push_str("</param></params></methodResponse>");
    out
}

/// A `methodResponse` with a fault.
#[must_use]
pub fn render_fault(fault: &Fault) -> String {
    let mut out = format!("{DECLARATION}<methodResponse><fault>");
    render(&mut out, &fault.clone().into_value());
    out.push_str("</fault></methodResponse>");
    out
}

fn render(out: &mut String, value: &Value) {
    out.push_str("<value>");
    match value {
        Value::Nil => out.push_str("<nil/>"),
        Value::Boolean(value) => element(out, "boolean", u8::from(*value)),
        Value::Int(value) if i32::try_from(*value).is_ok() => element(out, "int", value),
        Value::Int(value) => element(out, "i8", value),
        // Rust writes all digits and no exponent, as the specification wants.
        Value::Double(value) if value.is_finite() => element(out, "double", value),
        Value::Double(_) => out.push_str("<nil/>"),
        Value::String(text) if text.chars().all(is_xml) => {
            out.push_str("<string>");
            escape(out, text);
            out.push_str("</string>");
        }
        Value::String(text) => element(out, "base64", STANDARD.encode(text)),
        Value::DateTime(text) => {
            out.push_str("<dateTime.iso8601>");
            escape(out, text);
            out.push_str("</dateTime.iso8601>");
        }
        Value::Base64(bytes) => element(out, "base64", STANDARD.encode(bytes)),
        Value::Array(values) => {
            out.push_str("<array><data>");
            for value in values {
                render(out, value);
            }
            out.push_str("</data></array>");
        }
        Value::Struct(members) => {
            out.push_str("<struct>");
            for (name, value) in members {
                out.push_str("<member><name>");
                escape(out, name);
                out.push_str("</name>");
                render(out, value);
                out.push_str("</member>");
            }
            out.push_str("</struct>");
        }
    }
    out.push_str("</value>");
}

fn element(out: &mut String, name: &str, content: impl std::fmt::Display) {
    // Writing to a string cannot fail.
    let _ = write!(out, "<{name}>{content}</{name}>");
}

/// Text as element content. A carriage return must be a reference, or reading would turn it into a line feed.
fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\r' => out.push_str("&#13;"),
            c if is_xml(c) => out.push(c),
            // Only names get here; they cannot be base64.
            _ => out.push('\u{fffd}'),
        }
    }
}
