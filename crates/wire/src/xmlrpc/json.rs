//! Values as JSON and back.

use serde_json::Value as Json;

use super::Value;

impl From<Json> for Value {
    /// Whole numbers outside 64 signed bits become text, as there is no type for them.
    fn from(json: Json) -> Self {
        match json {
            Json::Null => Self::Nil,
            Json::Bool(value) => Self::Boolean(value),
            Json::Number(number) => match (number.as_i64(), number.is_f64()) {
                (Some(value), _) => Self::Int(value),
                (None, true) => number.as_f64().map_or(Self::Nil, Self::Double),
                (None, false) => Self::String(number.to_string()),
            },
            Json::String(text) => Self::String(text),
            Json::Array(values) => Self::Array(values.into_iter().map(Self::from).collect()),
            Json::Object(members) => {
                Self::Struct(members.into_iter().map(|(name, value)| (name, Self::from(value))).collect())
            }
        }
    }
}

impl Value {
    /// As JSON. `base64` must hold UTF-8 and becomes text; times become RFC 3339 in UTC. The error says what does not
    /// fit.
    pub fn into_json(self) -> Result<Json, String> {
        Ok(match self {
            Self::Nil => Json::Null,
            Self::Boolean(value) => value.into(),
            Self::Int(value) => value.into(),
            Self::Double(value) => value.into(),
            Self::String(text) => text.into(),
            Self::DateTime(text) => match (text.get(..4), text.get(4..6), text.get(6..8), text.get(9..)) {
                (Some(year), Some(month), Some(day), Some(time)) => format!("{year}-{month}-{day}T{time}Z").into(),
                _ => text.into(),
            },
            Self::Base64(bytes) => String::from_utf8(bytes).map_err(|_| "`base64` is not text in UTF-8")?.into(),
            Self::Array(values) => values.into_iter().map(Self::into_json).collect::<Result<Vec<_>, _>>()?.into(),
            Self::Struct(members) => Json::Object(
                members
                    .into_iter()
                    .map(|(name, value)| value.into_json().map(|value| (name, value)))
                    .collect::<Result<_, _>>()?,
            ),
        })
    }
}
