//! One field of an operation's input as an argument: its flag, its help, and from text to JSON.

use std::io::BufRead;

use clap::{
    Arg, ArgAction,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use nephos_ops::{Spec, schema::Fields};
use serde_json::{Map, Value};

use super::quantity::Unit;
use crate::completion;

/// The most that `@FILE` reads; the operations' own bounds are tighter.
const MAX_FILE: u64 = 16 << 20;

/// What a field takes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Text; `@FILE` reads a file where long text is accepted, `-` reads a secret from standard input.
    Text { long: bool, secret: bool },
    /// One of these words, each with its explanation.
    Choice(Vec<(String, Option<String>)>),
    /// A whole number.
    Integer { min: Option<i128>, max: Option<i128>, unit: Option<Unit> },
    /// Any number.
    Number,
    /// Yes or no; a switch where it is `no` unless said.
    Boolean { switch: bool },
    /// Several of the same.
    List(Box<Kind>),
    /// Words to values.
    Map(Box<Kind>),
    /// Named parts.
    Object(Vec<(String, Kind)>),
    /// Any JSON.
    Json,
}

/// A field.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    /// As in the input.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    required: bool,
    description: String,
    default: Option<Value>,
}

/// All fields of an operation's input.
pub(crate) fn fields(fields: &Fields) -> Vec<Field> {
    fields
        .names()
        .map(|name| {
            let schema = fields.get(name).unwrap_or(&Value::Null);
            let raw = fields.raw(name).unwrap_or(&Value::Null);
            Field {
                name: name.to_owned(),
                kind: match kind_of(name, schema, fields, 0) {
                    Kind::Boolean { .. } => Kind::Boolean { switch: raw.get("default") == Some(&Value::Bool(false)) },
                    kind => kind,
                },
                required: fields.required(name),
                description: fields.description(name).unwrap_or_default().to_owned(),
                default: raw.get("default").filter(|value| is_worth_showing(value)).cloned(),
            }
        })
        .collect()
}

fn is_worth_showing(default: &Value) -> bool {
    match default {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Number(_) | Value::Bool(true) => true,
    }
}

fn kind_of(name: &str, schema: &Value, fields: &Fields, depth: usize) -> Kind {
    // A schema may refer to itself; text that deep is written as JSON anyway.
    if depth > 3 {
        return Kind::Json;
    }
    let schema = fields.resolve(schema);
    if let Some(choices) = choices(schema) {
        return Kind::Choice(choices);
    }
    if let Some(alternatives) = schema.get("anyOf").and_then(Value::as_array) {
        let mut real = alternatives.iter().filter(|choice| choice.get("type").and_then(Value::as_str) != Some("null"));
        return match (real.next(), real.next()) {
            (Some(only), None) => kind_of(name, only, fields, depth + 1),
            _ => Kind::Json,
        };
    }
    let type_name = match schema.get("type") {
        Some(Value::String(name)) => name.as_str(),
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).find(|name| *name != "null").unwrap_or(""),
        _ => "",
    };
    let bound = |key: &str| schema.get(key).and_then(Value::as_number).and_then(|n| n.to_string().parse().ok());
    match type_name {
        "string" => {
            let secret = is_secret(name) || schema.get("format").and_then(Value::as_str) == Some("password");
            let long = schema.get("maxLength").and_then(Value::as_u64).is_some_and(|max| max > 255);
            Kind::Text { long: long && !secret, secret }
        }
        "integer" => Kind::Integer { min: bound("minimum"), max: bound("maximum"), unit: Unit::of(name) },
        "number" => Kind::Number,
        "boolean" => Kind::Boolean { switch: false },
        "array" => {
            let items = schema.get("items").unwrap_or(&Value::Null);
            Kind::List(Box::new(kind_of(name, items, fields, depth + 1)))
        }
        "object" => match schema.get("properties").and_then(Value::as_object) {
            Some(properties) => Kind::Object(
                properties
                    .iter()
                    .map(|(name, schema)| (name.clone(), kind_of(name, schema, fields, depth + 1)))
                    .collect(),
            ),
            None => {
                let values = schema.get("additionalProperties").unwrap_or(&Value::Null);
                Kind::Map(Box::new(kind_of(name, values, fields, depth + 1)))
            }
        },
        _ => Kind::Json,
    }
}

/// Whether a field holds what must not be shown.
pub(crate) fn is_secret(name: &str) -> bool {
    ["password", "secret", "token"].iter().any(|word| name.ends_with(word))
}

fn choices(schema: &Value) -> Option<Vec<(String, Option<String>)>> {
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        return Some(words.iter().filter_map(Value::as_str).map(|word| (word.to_owned(), None)).collect());
    }
    let words: Vec<_> = schema
        .get("oneOf")
        .and_then(Value::as_array)?
        .iter()
        .flat_map(|choice| match choice.get("const").and_then(Value::as_str) {
            Some(word) => {
                let help = choice.get("description").and_then(Value::as_str).map(str::to_owned);
                vec![Some((word.to_owned(), help))]
            }
            // Words without an explanation of their own stand together.
            None => choice.get("enum").and_then(Value::as_array).map_or_else(
                || vec![None],
                |words| words.iter().map(|word| word.as_str().map(|word| (word.to_owned(), None))).collect(),
            ),
        })
        .collect::<Option<_>>()?;
    Some(words)
}

impl Field {
    /// The flag without its dashes. What is repeated is named in the singular.
    pub(crate) fn flag(&self) -> String {
        let name = self.name.replace('_', "-");
        match self.kind {
            Kind::List(_) | Kind::Map(_) => singular(&name),
            _ => name,
        }
    }

    /// The flag, and in the plural where that is another word.
    pub(crate) fn flags(&self) -> Vec<String> {
        let mut flags = vec![self.flag()];
        let plain = self.name.replace('_', "-");
        if !flags.contains(&plain) {
            flags.push(plain);
        }
        flags
    }

    /// The argument; `position` where it has no flag, `many` where several resources may be named there.
    pub(crate) fn arg(&self, spec: &Spec, position: Option<usize>, many: bool) -> Arg {
        let mut arg = Arg::new(self.name.clone()).help(self.help()).required(self.required);
        // What must be given stands first.
        arg = arg.display_order(if self.required { 0 } else { 1 });
        if let Some(position) = position {
            arg = arg.index(position).value_name(self.name.replace('_', "-").to_uppercase());
            if many {
                arg = arg.num_args(1..).action(ArgAction::Append);
            }
        } else {
            let flags = self.flags();
            let (flag, aliases) =
                flags.split_first().map_or((String::new(), vec![]), |(f, rest)| (f.clone(), rest.to_vec()));
            arg = arg.long(flag).aliases(aliases).value_name(self.value_name());
            if self.name == "labels" && spec.verb() == "list" {
                arg = arg.short('l');
            }
        }
        if let Kind::Text { secret: false, .. } = self.kind
            && let Some(completer) = completion::of_field(&self.name)
        {
            arg = arg.add(completer);
        }
        match &self.kind {
            Kind::Boolean { switch: true } => {
                arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_parser(boolean)
            }
            Kind::List(inner) | Kind::Map(inner) => {
                arg = arg.action(ArgAction::Append);
                if position.is_some() {
                    arg = arg.num_args(1..);
                }
                match (&self.kind, inner.as_ref()) {
                    // Words as they were typed: what stands behind `--` is somebody else's command line.
                    (Kind::List(_), Kind::Text { .. }) if position.is_some() => {
                        parsed_by(arg, Kind::Text { long: false, secret: false })
                    }
                    (Kind::List(_), Kind::Choice(words)) => arg.value_parser(choice_parser(words)),
                    (Kind::List(_), _) => parsed_by(arg, inner.as_ref().clone()),
                    _ => parsed_by(arg, self.kind.clone()),
                }
            }
            Kind::Choice(words) => arg.value_parser(choice_parser(words)),
            kind => parsed_by(arg, kind.clone()),
        }
    }

    fn value_name(&self) -> String {
        match &self.kind {
            Kind::List(inner) => inner.value_name(&self.flag()),
            kind => kind.value_name(&self.flag()),
        }
    }

    fn help(&self) -> String {
        let mut help = self.description.trim().trim_end_matches('.').to_owned();
        match &self.kind {
            Kind::Text { long: true, .. } => help.push_str("; @FILE from a file, @- from stdin"),
            Kind::Text { secret: true, .. } => help.push_str("; `-` reads it from standard input"),
            _ => {}
        }
        if let Some(default) = &self.default {
            let default = default.as_str().map_or_else(|| default.to_string(), str::to_owned);
            help.push_str(&format!(" [default: {default}]"));
        }
        help
    }

    /// The field's JSON out of the values given for it.
    pub(crate) fn combine(&self, values: Vec<Value>) -> Option<Value> {
        if values.is_empty() {
            return None;
        }
        Some(match &self.kind {
            Kind::List(_) => Value::Array(values),
            Kind::Map(_) => {
                let mut map = Map::new();
                for value in values {
                    if let Value::Object(part) = value {
                        map.extend(part);
                    }
                }
                Value::Object(map)
            }
            _ => values.into_iter().next_back().unwrap_or_default(),
        })
    }
}

fn parsed_by(arg: Arg, kind: Kind) -> Arg {
    arg.value_parser(move |text: &str| kind.parse(text)).allow_negative_numbers(true)
}

fn choice_parser(words: &[(String, Option<String>)]) -> impl TypedValueParser<Value = Value> + use<> {
    PossibleValuesParser::new(words.iter().map(|(word, help)| {
        let value = PossibleValue::new(word.clone());
        match help {
            Some(help) => value.help(help.trim_end_matches('.').to_owned()),
            None => value,
        }
    }))
    .map(Value::String)
}

fn boolean(text: &str) -> Result<Value, String> {
    match text {
        "true" | "yes" | "1" => Ok(true.into()),
        "false" | "no" | "0" => Ok(false.into()),
        _ => Err("say true or false".to_owned()),
    }
}

impl Kind {
    fn value_name(&self, flag: &str) -> String {
        match self {
            Self::Text { long: true, .. } => "TEXT|@FILE".to_owned(),
            // Its last word says what it is: `--forbidden-trait <TRAIT>`.
            Self::Text { .. } | Self::Choice(_) => flag.rsplit('-').next().unwrap_or(flag).to_uppercase(),
            Self::Integer { unit: Some(Unit::Second), .. } => "DURATION".to_owned(),
            Self::Integer { unit: Some(_), .. } => "SIZE".to_owned(),
            Self::Integer { .. } | Self::Number => "N".to_owned(),
            Self::Boolean { .. } => "BOOL".to_owned(),
            Self::List(inner) => inner.value_name(flag),
            Self::Map(_) => "KEY=VALUE".to_owned(),
            Self::Object(parts) => {
                let names: Vec<_> = parts.iter().take(3).map(|(name, _)| format!("{name}=…")).collect();
                names.join(",")
            }
            Self::Json => "JSON".to_owned(),
        }
    }

    /// From text to JSON; the error says what would do.
    pub(crate) fn parse(&self, text: &str) -> Result<Value, String> {
        match self {
            Self::Text { long: true, .. } if text.starts_with('@') => read_file(text.trim_start_matches('@')),
            Self::Text { secret: true, .. } if text == "-" => read_secret(),
            Self::Text { .. } => Ok(text.into()),
            Self::Choice(words) => {
                let known: Vec<_> = words.iter().map(|(word, _)| word.as_str()).collect();
                if known.contains(&text) { Ok(text.into()) } else { Err(format!("one of: {}", known.join(", "))) }
            }
            Self::Integer { min, max, unit } => integer(text, *min, *max, *unit),
            Self::Number => {
                text.parse::<serde_json::Number>().map(Value::Number).map_err(|_| "not a number".to_owned())
            }
            Self::Boolean { .. } => boolean(text),
            Self::List(inner) => {
                let items = text.split('+').map(|item| inner.parse(item)).collect::<Result<_, _>>()?;
                Ok(Value::Array(items))
            }
            Self::Map(inner) => {
                if text.starts_with('{') {
                    return json_object(text);
                }
                let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE")?;
                Ok(Value::Object(Map::from_iter([(key.to_owned(), inner.parse(value)?)])))
            }
            Self::Object(parts) => {
                if text.starts_with('{') {
                    return json_object(text);
                }
                let mut object = Map::new();
                for part in text.split(',').filter(|part| !part.is_empty()) {
                    let (key, value) = part.split_once('=').ok_or("write it as key=value,key=value or as JSON")?;
                    let key = key.replace('-', "_");
                    let Some((_, kind)) = parts.iter().find(|(name, _)| *name == key) else {
                        let known: Vec<_> = parts.iter().map(|(name, _)| name.as_str()).collect();
                        return Err(format!("`{key}` is not known here; there is {}", known.join(", ")));
                    };
                    let value = kind.parse(value).map_err(|why| format!("{key}: {why}"))?;
                    object.insert(key, value);
                }
                Ok(Value::Object(object))
            }
            // Whatever is no JSON is text.
            Self::Json => Ok(serde_json::from_str(text).unwrap_or_else(|_| text.into())),
        }
    }
}

fn integer(text: &str, min: Option<i128>, max: Option<i128>, unit: Option<Unit>) -> Result<Value, String> {
    let number: i128 = match unit.and_then(|unit| unit.parse(text)) {
        Some(number) => number?.into(),
        None => text.parse().map_err(|_| "not a whole number".to_owned())?,
    };
    let (low, high) = (min.unwrap_or(i64::MIN.into()), max.unwrap_or(u64::MAX.into()));
    if number < low || number > high {
        return Err(format!("it must be {low} to {high}"));
    }
    u64::try_from(number)
        .map(Value::from)
        .or_else(|_| i64::try_from(number).map(Value::from))
        .map_err(|_| "too large".to_owned())
}

fn json_object(text: &str) -> Result<Value, String> {
    serde_json::from_str::<Map<String, Value>>(text)
        .map(Value::Object)
        .map_err(|why| format!("not a JSON object: {why}"))
}

fn read_file(path: &str) -> Result<Value, String> {
    use std::io::Read;
    let mut text = String::new();
    let input: Box<dyn Read> = match path {
        "-" => Box::new(std::io::stdin()),
        path => Box::new(std::fs::File::open(path).map_err(|why| format!("cannot read {path}: {why}"))?),
    };
    input.take(MAX_FILE).read_to_string(&mut text).map_err(|why| format!("cannot read {path}: {why}"))?;
    Ok(text.into())
}

fn read_secret() -> Result<Value, String> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(|why| format!("cannot read standard input: {why}"))?;
    Ok(line.trim_end_matches(['\r', '\n']).into())
}

/// `labels` → `label`, `properties` → `property`, `addresses` → `address`.
pub(crate) fn singular(word: &str) -> String {
    if let Some(stem) = word.strip_suffix("ies") {
        return format!("{stem}y");
    }
    for ending in ["sses", "xes", "shes", "ches"] {
        if word.ends_with(ending) {
            return word.trim_end_matches("es").to_owned();
        }
    }
    match word.strip_suffix('s') {
        Some(stem) if !stem.ends_with('s') && !stem.is_empty() => stem.to_owned(),
        _ => word.to_owned(),
    }
}

/// `server` → `servers`, `policy` → `policies`.
pub(crate) fn plural(word: &str) -> String {
    if let Some(stem) = word.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'o'])) {
        return format!("{stem}ies");
    }
    if ["s", "x", "sh", "ch"].iter().any(|ending| word.ends_with(ending)) {
        return format!("{word}es");
    }
    format!("{word}s")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_becomes_json_of_the_right_type() {
        let forward = Kind::Object(vec![
            ("port".into(), Kind::Integer { min: Some(1), max: Some(65535), unit: None }),
            ("protocol".into(), Kind::Choice(vec![("tcp".into(), None), ("udp".into(), None)])),
        ]);
        assert_eq!(forward.parse("port=22,protocol=tcp"), Ok(json!({"port": 22, "protocol": "tcp"})));
        assert_eq!(forward.parse(r#"{"port": 22}"#), Ok(json!({"port": 22})));
        assert!(forward.parse("port=70000").unwrap_err().contains("1 to 65535"));
        assert!(forward.parse("prot=tcp").unwrap_err().contains("there is port, protocol"));
        let labels = Kind::Map(Box::new(Kind::Text { long: false, secret: false }));
        assert_eq!(labels.parse("a=b=c"), Ok(json!({"a": "b=c"})));
        assert!(labels.parse("a").is_err());
        assert_eq!(Kind::Json.parse("{\"a\":1}"), Ok(json!({"a": 1})));
        assert_eq!(Kind::Json.parse("plain"), Ok(json!("plain")));
        let memory = Kind::Integer { min: None, max: None, unit: Some(Unit::Mebibyte) };
        assert_eq!(memory.parse("2G"), Ok(json!(2048)));
        assert_eq!(memory.parse("2048"), Ok(json!(2048)));
    }

    #[test]
    fn words_change_number() {
        for (one, many) in [("server", "servers"), ("policy", "policies"), ("address", "addresses"), ("key", "keys")] {
            assert_eq!((plural(one).as_str(), singular(many).as_str()), (many, one));
        }
    }
}
