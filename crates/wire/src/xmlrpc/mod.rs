//! XML-RPC: values, calls, answers and faults as XML, and values as JSON.
//!
//! Beyond the specification of 1999 it speaks the usual extensions: `nil` and `i8` (also with the prefix `ex:`). Whole
//! numbers outside 32 bits are written as `i8`; they are also read from `i8`. Text with characters that XML 1.0 cannot
//! hold is written as `base64`. Document types and entities other than the five predefined ones are refused.

mod json;
mod parse;
mod render;

use std::{collections::BTreeMap, fmt};

pub use parse::{parse_call, parse_response};
pub use render::{render_call, render_fault, render_response};

/// How deep values may be nested.
pub const MAX_DEPTH: usize = 64;

/// Fault codes of the specification for fault code interoperability (Dan Libby, 2001).
pub mod code {
    /// Not well-formed XML.
    pub const NOT_WELL_FORMED: i32 = -32700;
    /// An encoding other than UTF-8.
    pub const UNSUPPORTED_ENCODING: i32 = -32701;
    /// A character that the encoding or XML does not allow.
    pub const INVALID_CHARACTER: i32 = -32702;
    /// Well-formed, but not a call.
    pub const INVALID_REQUEST: i32 = -32600;
    /// No such method.
    pub const METHOD_NOT_FOUND: i32 = -32601;
    /// The parameters are not what the method takes.
    pub const INVALID_PARAMETERS: i32 = -32602;
    /// A defect of the server.
    pub const INTERNAL: i32 = -32603;
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `nil`.
    Nil,
    /// `boolean`.
    Boolean(bool),
    /// `int`, `i4`, `i8`.
    Int(i64),
    /// `double`; finite.
    Double(f64),
    /// `string`.
    String(String),
    /// `dateTime.iso8601`, as on the wire: `20260228T23:59:59`, by convention in UTC.
    DateTime(String),
    /// `base64`, decoded.
    Base64(Vec<u8>),
    /// `array`.
    Array(Vec<Self>),
    /// `struct`.
    Struct(BTreeMap<String, Self>),
}

impl Value {
    /// The name of its type.
    #[must_use]
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::Nil => "nil",
            Self::Boolean(_) => "boolean",
            Self::Int(_) => "int",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::DateTime(_) => "dateTime.iso8601",
            Self::Base64(_) => "base64",
            Self::Array(_) => "array",
            Self::Struct(_) => "struct",
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

/// A method to be called.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The method's name.
    pub method: String,
    /// Its parameters.
    pub params: Vec<Value>,
}

/// A call's failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What class of failure.
    pub code: i32,
    /// What happened.
    pub string: String,
}

impl Fault {
    /// A fault.
    pub fn new(code: i32, string: impl Into<String>) -> Self {
        Self { code, string: string.into() }
    }

    /// The struct by which it is told: in a `fault`, or in the place of a result of `system.multicall`.
    #[must_use]
    pub fn into_value(self) -> Value {
        Value::Struct(BTreeMap::from([
            ("faultCode".to_owned(), Value::Int(self.code.into())),
            ("faultString".to_owned(), Value::String(self.string)),
        ]))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fault {}: {}", self.code, self.string)
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests;
