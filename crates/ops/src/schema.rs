//! What front ends need to know about an operation's input beyond its Rust type: its fields, and how to turn the plain
//! strings of a query, a form or a command line into JSON of the right type.

use schemars::{Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value};

use crate::operation::Entry;

/// The fields of an operation's input, with references resolved.
pub struct Fields {
    properties: Map<String, Value>,
    required: Vec<String>,
    definitions: Map<String, Value>,
}

impl Fields {
    /// Of this operation.
    #[must_use]
    pub fn of(entry: &Entry) -> Self {
        let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
        let schema = (entry.input)(&mut generator);
        let definitions = generator.take_definitions(true);
        let root = resolve(schema.as_value(), &definitions).clone();
        let properties = root.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
        let required = root
            .get("required")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).map(str::to_owned).collect())
            .unwrap_or_default();
        Self { properties, required, definitions }
    }

    /// The schema of one field, with an outermost reference resolved.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.properties.get(name).map(|schema| resolve(schema, &self.definitions))
    }

    /// The schema of one field as written at the field, with what that adds to its type (`description`, `default`).
    #[must_use]
    pub fn raw(&self, name: &str) -> Option<&Value> {
        self.properties.get(name)
    }

    /// What a schema found inside one of these refers to; itself, if it refers to nothing.
    #[must_use]
    pub fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        resolve(schema, &self.definitions)
    }

    /// The one-line description of one field: its own, before that of its type.
    #[must_use]
    pub fn description(&self, name: &str) -> Option<&str> {
        let own = self.properties.get(name)?;
        own.get("description").or_else(|| resolve(own, &self.definitions).get("description")).and_then(Value::as_str)
    }

    /// All names, in declaration order where the schema kept it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.properties.keys().map(String::as_str)
    }

    /// Whether a field must be given.
    #[must_use]
    pub fn required(&self, name: &str) -> bool {
        self.required.iter().any(|required| required == name)
    }

    /// The JSON type of a field: `string`, `integer`, `number`, `boolean`, `array`, `object`; `string` if undecided.
    #[must_use]
    pub fn json_type(&self, name: &str) -> &str {
        self.get(name).map_or("string", |schema| type_of(schema, &self.definitions))
    }

    /// Turns text into the JSON that the field wants; text that does not fit stays a string, so that parsing the
    /// input reports it with the field's name.
    #[must_use]
    pub fn coerce(&self, name: &str, text: &str) -> Value {
        match self.json_type(name) {
            "integer" | "number" => text.parse::<serde_json::Number>().map_or_else(|_| text.into(), Value::Number),
            "boolean" => match text {
                "true" | "1" | "yes" => true.into(),
                "false" | "0" | "no" => false.into(),
                _ => text.into(),
            },
            "array" | "object" => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
            _ => text.into(),
        }
    }
}

fn resolve<'a>(schema: &'a Value, definitions: &'a Map<String, Value>) -> &'a Value {
    schema
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|reference| definitions.get(reference.rsplit('/').next().unwrap_or_default()))
        .unwrap_or(schema)
}

fn type_of<'a>(schema: &'a Value, definitions: &'a Map<String, Value>) -> &'a str {
    let schema = resolve(schema, definitions);
    match schema.get("type") {
        Some(Value::String(name)) => name,
        // Optional fields are `["integer", "null"]`.
        Some(Value::Array(names)) => {
            names.iter().filter_map(Value::as_str).find(|name| *name != "null").unwrap_or("string")
        }
        _ => schema
            .get("anyOf")
            .and_then(Value::as_array)
            .and_then(|choices| {
                choices.iter().find(|choice| choice.get("type").and_then(Value::as_str) != Some("null"))
            })
            .map_or("string", |choice| type_of(choice, definitions)),
    }
}

/// The schema of a type as a plain JSON value, for tests and documents.
#[must_use]
pub fn to_value(schema: Schema) -> Value {
    schema.to_value()
}
