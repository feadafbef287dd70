//! Programs in servers, as if they ran here: their output is this program's, and so is their exit code.

use std::io::Write;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use nephos_types::{Error, Result};
use serde_json::Value;

use crate::{exit, output};

/// The operation that runs one.
pub(crate) const OPERATION: &str = "server.exec";
/// The exit code for one that did not end in time, as of timeout(1).
const TIMED_OUT: u8 = 124;
/// Shells add this to the number of the signal that ended a program.
const SIGNALLED: i64 = 128;

/// The same call with input and output byte for byte.
pub(crate) fn exact(mut input: Value) -> Value {
    if let Some(fields) = input.as_object_mut() {
        let text = fields.get("encoding").is_none_or(|encoding| encoding == "text");
        if let (true, Some(Value::String(given))) = (text, fields.get_mut("input")) {
            *given = STANDARD.encode(given.as_bytes());
        }
        fields.insert("encoding".to_owned(), "base64".into());
    }
    input
}

/// Prints what a program wrote; gives its exit code.
pub(crate) fn show(result: &Value, quiet: bool) -> Result<u8> {
    let bytes = |name: &str| {
        let text = result.get(name).and_then(Value::as_str).unwrap_or_default();
        STANDARD.decode(text).map_err(|error| Error::internal("The program's output cannot be read", error))
    };
    output::write_out(&bytes("stdout")?)?;
    // Nothing can be done about a reader that is gone.
    let _ = std::io::stderr().write_all(&bytes("stderr")?);
    let is = |name: &str| result.get(name).and_then(Value::as_bool).unwrap_or_default();
    if is("truncated") && !quiet {
        eprintln!("The program wrote more than is shown: --max-output-bytes");
    }
    if is("timed_out") {
        eprintln!("The program did not end in time: --limit-seconds");
        return Ok(TIMED_OUT);
    }
    let number = |name: &str| result.get(name).and_then(Value::as_i64);
    let code = number("exit_code").or_else(|| number("signal").map(|signal| SIGNALLED + signal));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::FAILED))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_exit_code_is_the_programs() {
        let ended = |code: Value, signal: Value, late: bool| json!({ "exit_code": code, "signal": signal, "timed_out": late, "stdout": "", "stderr": "" });
        for (result, code) in [
            (ended(json!(0), Value::Null, false), 0),
            (ended(json!(3), Value::Null, false), 3),
            (ended(Value::Null, json!(9), false), 137),
            (ended(Value::Null, Value::Null, true), 124),
            (ended(json!(70_000), Value::Null, false), 1),
        ] {
            assert_eq!(show(&result, true).unwrap(), code, "{result}");
        }
    }

    #[test]
    fn input_goes_as_it_is() {
        let given = json!({ "server": "web", "command": ["cat"], "input": "ä" });
        assert_eq!(exact(given)["input"], "w6Q=");
        let given = json!({ "server": "web", "command": ["cat"], "input": "w6Q=", "encoding": "base64" });
        assert_eq!(exact(given)["input"], "w6Q=");
    }
}
