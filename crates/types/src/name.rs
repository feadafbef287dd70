//! Names, references to resources, bounded text and labels.

use std::{borrow::Cow, collections::BTreeMap, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{Error, ErrorKind};

/// A resource's name: 1 to 255 printable characters, no leading or trailing blank, no `/`.
///
/// The native API suggests `[a-z0-9-]`, but the protocols we speak allow wider names, so the model does too.
/// `/` is excluded because names appear in unique claims and URL paths.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Name(String);

impl Name {
    /// The longest name, in characters.
    pub const MAX_CHARS: usize = 255;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |why: &str| Err(Error::new(ErrorKind::Invalid, "invalid_name", "Not a usable name").detail(why));
        if text.is_empty() {
            return refuse("a name has at least one character");
        }
        if text.chars().count() > Self::MAX_CHARS {
            return refuse("a name has at most 255 characters");
        }
        if text.trim() != text {
            return refuse("a name neither begins nor ends with a blank");
        }
        if text.chars().any(|c| c.is_control() || c == '/') {
            return refuse("a name has no control characters and no `/`");
        }
        Ok(Self(text.to_owned()))
    }
}

/// How a caller points at a resource: its id, its name within the project, or a unique prefix of its id.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Reference(String);

impl Reference {
    /// The reference as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Reference {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        // What cannot be a name cannot be an id either, so the rules are the same.
        Name::from_str(text).map(|name| Self(name.0)).map_err(|error| {
            Error::new(ErrorKind::Invalid, "invalid_reference", "Not a usable name or id").detail(error.detail)
        })
    }
}

impl From<Name> for Reference {
    fn from(name: Name) -> Self {
        Self(name.0)
    }
}

/// Free text of at most `MAX` characters; control characters other than newline and tab are refused.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Default)]
#[serde(transparent)]
pub struct Text<const MAX: usize>(String);

impl<const MAX: usize> Text<MAX> {
    /// The text itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> FromStr for Text<MAX> {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |why: String| Err(Error::new(ErrorKind::Invalid, "invalid_text", "Not a usable text").detail(why));
        if text.chars().count() > MAX {
            return refuse(format!("at most {MAX} characters are accepted"));
        }
        if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t' && c != '\r') {
            return refuse("control characters are not accepted".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

macro_rules! text_like {
    ([$($generics:tt)*] $type:ty, $schema_name:expr, $schema:expr) => {
        impl<$($generics)*> fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl<$($generics)*> fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
        impl<'de, $($generics)*> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(|error: Error| de::Error::custom(error.detail))
            }
        }
        impl<$($generics)*> JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $schema_name
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

text_like!([] Name, "Name".into(), json_schema!({ "type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[^\s/\x00-\x1f\x7f-\x9f]([^/\x00-\x1f\x7f-\x9f]*[^\s/\x00-\x1f\x7f-\x9f])?$" }));
text_like!([] Reference, "Reference".into(), json_schema!({ "type": "string", "minLength": 1, "maxLength": 255, "description": "a name, an id, or a unique prefix of an id", "pattern": r"^[^\s/\x00-\x1f\x7f-\x9f]([^/\x00-\x1f\x7f-\x9f]*[^\s/\x00-\x1f\x7f-\x9f])?$" }));
text_like!([const MAX: usize] Text<MAX>, format!("Text{MAX}").into(), json_schema!({ "type": "string", "maxLength": MAX }));

/// Labels: at most 64 keys of at most 63 characters with values of at most 255.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Labels(pub BTreeMap<String, String>);

impl Labels {
    /// The most labels one resource may carry.
    pub const MAX: usize = 64;

    /// Whether there are none; used to leave the field out of answers.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = BTreeMap::<String, String>::deserialize(deserializer)?;
        if map.len() > Self::MAX {
            return Err(de::Error::custom("at most 64 labels are accepted"));
        }
        for (key, value) in &map {
            let key_ok = (1..=63).contains(&key.len())
                && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/' | b':'));
            if !key_ok {
                return Err(de::Error::custom(
                    "a label's key has 1 to 63 characters out of letters, digits, `-`, `_`, `.`, `/`, `:`",
                ));
            }
            if value.chars().count() > 255 || value.chars().any(char::is_control) {
                return Err(de::Error::custom(
                    "a label's value has at most 255 characters, none of them a control character",
                ));
            }
        }
        Ok(Self(map))
    }
}

impl JsonSchema for Labels {
    fn schema_name() -> Cow<'static, str> {
        "Labels".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object", "maxProperties": 64,
            "propertyNames": { "pattern": "^[A-Za-z0-9._/:-]{1,63}$" },
            "additionalProperties": { "type": "string", "maxLength": 255 }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_refuse_what_breaks_paths_and_terminals() {
        for bad in ["", " a", "a ", "a/b", "a\nb", "\u{7f}", &"x".repeat(256)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        for good in ["a", "web 1", "größe", &"x".repeat(255)] {
            assert!(good.parse::<Name>().is_ok(), "{good:?}");
        }
    }

    #[test]
    fn labels_are_bounded() {
        let many: BTreeMap<String, String> = (0..65).map(|n| (format!("k{n}"), String::new())).collect();
        assert!(serde_json::from_value::<Labels>(serde_json::to_value(many).unwrap()).is_err());
        assert!(serde_json::from_str::<Labels>(r#"{"a b":""}"#).is_err());
        assert!(serde_json::from_str::<Labels>(r#"{"team":"blue"}"#).is_ok());
    }
}
