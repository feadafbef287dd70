//! The OpenAPI 3.1 document, derived from the operation table.

use std::collections::HashSet;

use nephos_ops::{AnswerKind, Effect, Entry, Grant, Method, Permission};
use nephos_types::ErrorKind;
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

/// The document as JSON.
pub(crate) fn document(table: &[Entry], body_bytes: usize) -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let mut generator = SchemaGenerator::new(settings);
    let rows: Vec<(&Entry, Schema, Option<Schema>)> =
        table.iter().map(|entry| (entry, (entry.input)(&mut generator), (entry.output)(&mut generator))).collect();
    let kinds = ErrorKind::json_schema(&mut generator);
    let reasons = generator.subschema_for::<nephos_types::Reason>();
    let next = generator.subschema_for::<nephos_types::NextStep>();
    let mut schemas = generator.take_definitions(true);
    let mut paths: Map<String, Value> = Map::new();
    let mut inputs = Vec::new();
    for (entry, input, output) in rows {
        inputs.extend(target(input.as_value()).map(str::to_owned));
        let input = resolve(input.as_value(), &schemas).clone();
        let operation = operation(entry, &input, output, &schemas, body_bytes);
        let path = paths.entry(entry.spec.path).or_insert_with(|| json!({}));
        if let Value::Object(path) = path {
            path.insert(entry.spec.method.as_str().to_ascii_lowercase(), operation);
        }
    }
    // The inputs are written out at their operations; their own schemas stay only where something refers to them.
    let mut used = HashSet::new();
    paths.values().chain(schemas.values()).for_each(|value| references(value, &mut used));
    for name in inputs {
        if !used.contains(&name) {
            schemas.remove(&name);
        }
    }
    schemas.insert("Error".to_owned(), error_schema(kinds, reasons, next));
    let mut tags: Vec<&str> = table.iter().map(|entry| entry.spec.noun()).collect();
    tags.sort_unstable();
    tags.dedup();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Nephos",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The native interface of a Nephos cloud. Every answer carries the header \
                `x-nephos-request-id`; every error has one shape. GET paths also answer HEAD.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "tags": tags.iter().map(|tag| json!({ "name": tag })).collect::<Vec<_>>(),
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": responses(),
            "headers": {
                "RequestId": {
                    "description": "Names this request in the log and the audit trail.",
                    "required": true,
                    "schema": { "type": "string" },
                },
            },
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer", "description": "A token from token.create." },
                "token": { "type": "apiKey", "in": "header", "name": "X-Auth-Token", "description": "The same token." },
            },
        },
    })
}

/// The name of the schema that this one refers to.
fn target(schema: &Value) -> Option<&str> {
    schema.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next())
}

/// The names of all schemas that something within this refers to.
fn references(value: &Value, found: &mut HashSet<String>) {
    match value {
        Value::Object(fields) => {
            found.extend(target(value).map(str::to_owned));
            fields.values().for_each(|value| references(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

fn resolve<'a>(schema: &'a Value, schemas: &'a Map<String, Value>) -> &'a Value {
    target(schema).and_then(|name| schemas.get(name)).unwrap_or(schema)
}

fn operation(
    entry: &Entry,
    input: &Value,
    output: Option<Schema>,
    schemas: &Map<String, Value>,
    body_bytes: usize,
) -> Value {
    let spec = &entry.spec;
    let path_fields: Vec<&str> = spec.path_fields().collect();
    let empty = Map::new();
    let properties = input.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    let required = |name: &str| {
        input.get("required").and_then(Value::as_array).is_some_and(|names| names.iter().any(|known| known == name))
    };
    let from_query = spec.upload || matches!(spec.method, Method::Get | Method::Delete);
    let mut parameters: Vec<Value> = path_fields
        .iter()
        .filter_map(|name| Some(parameter(name, "path", true, properties.get(*name)?, schemas)))
        .collect();
    let rest = || properties.iter().filter(|(name, _)| !path_fields.contains(&name.as_str()));
    if from_query {
        parameters.extend(rest().map(|(name, schema)| parameter(name, "query", required(name), schema, schemas)));
    }
    if spec.effect == Effect::Creates {
        parameters.push(json!({
            "name": "Idempotency-Key",
            "in": "header",
            "description": "Makes the request repeatable: the same key and input give the first answer again.",
            "schema": { "type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$" },
        }));
    }
    if entry.answer == AnswerKind::Events {
        parameters.push(json!({
            "name": "Last-Event-ID",
            "in": "header",
            "description": "Continue after this event.",
            "schema": { "type": "string", "maxLength": 255, "pattern": "^[0-9]*$" },
        }));
    }
    let mut operation = json!({
        "operationId": spec.name,
        "tags": [spec.noun()],
        "summary": spec.summary,
        "description": description(entry),
        "parameters": parameters,
        "responses": answers(entry, output),
        "security": security(spec.permission),
    });
    let body = if spec.upload {
        Some(json!({
            "required": true,
            "content": { "application/octet-stream": { "schema": { "type": "string", "format": "binary" } } },
        }))
    } else if !from_query && rest().next().is_some() {
        let fields: Map<String, Value> = rest().map(|(name, schema)| (name.clone(), schema.clone())).collect();
        let needed: Vec<&str> = rest().map(|(name, _)| name.as_str()).filter(|name| required(name)).collect();
        let mut schema = input.clone();
        if let Value::Object(schema) = &mut schema {
            schema.remove("$schema");
            schema.insert("properties".to_owned(), fields.into());
            schema.insert("required".to_owned(), json!(needed));
            if needed.is_empty() {
                schema.remove("required");
            }
        }
        Some(json!({
            "required": !needed.is_empty(),
            "description": format!("At most {body_bytes} bytes."),
            "content": { "application/json": { "schema": schema } },
        }))
    } else {
        None
    };
    if let (Value::Object(operation), Some(body)) = (&mut operation, body) {
        operation.insert("requestBody".to_owned(), body);
    }
    operation
}

/// The help, and the command lines that do the same.
fn description(entry: &Entry) -> String {
    let spec = &entry.spec;
    let mut text = spec.description.to_owned();
    for example in spec.examples {
        if !text.is_empty() {
            text.push_str("\n\n");
        }
        text.push_str(&format!("{}:\n\n    {}", example.title, example.command));
    }
    text
}

fn parameter(name: &str, place: &str, required: bool, schema: &Value, schemas: &Map<String, Value>) -> Value {
    let schema = without_null(schema);
    let mut parameter = json!({ "name": name, "in": place, "required": required });
    let Value::Object(fields) = &mut parameter else { return parameter };
    if let Some(description) = schema.get("description") {
        fields.insert("description".to_owned(), description.clone());
    }
    let structured = matches!(resolve(&schema, schemas).get("type").and_then(Value::as_str), Some("array" | "object"));
    if structured {
        // Lists and maps are written as JSON.
        fields.insert("content".to_owned(), json!({ "application/json": { "schema": schema } }));
    } else {
        fields.insert("schema".to_owned(), schema);
    }
    parameter
}

/// A path or query cannot say null: leaving the parameter out says it.
fn without_null(schema: &Value) -> Value {
    let mut schema = schema.clone();
    let Value::Object(fields) = &mut schema else { return schema };
    if fields.get("default").is_some_and(Value::is_null) {
        fields.remove("default");
    }
    if let Some(Value::Array(kinds)) = fields.get_mut("type") {
        kinds.retain(|kind| kind != "null");
        if let [only] = kinds.as_slice() {
            let only = only.clone();
            fields.insert("type".to_owned(), only);
        }
    }
    if let Some(Value::Array(values)) = fields.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    if let Some(Value::Array(choices)) = fields.get_mut("anyOf") {
        choices.retain(|choice| choice.get("type").is_none_or(|kind| kind != "null"));
        if let [only] = choices.as_slice() {
            let only = only.clone();
            fields.remove("anyOf");
            if let Value::Object(only) = only {
                for (name, value) in only {
                    fields.entry(name).or_insert(value);
                }
            }
        }
    }
    schema
}

fn security(permission: Permission) -> Value {
    if permission.0.contains(&Grant::Anyone) {
        // A token is taken, but none is needed.
        json!([{}, { "bearer": [] }, { "token": [] }])
    } else {
        json!([{ "bearer": [] }, { "token": [] }])
    }
}

fn answers(entry: &Entry, output: Option<Schema>) -> Value {
    let headers = json!({ "x-nephos-request-id": { "$ref": "#/components/headers/RequestId" } });
    let (status, description, content) = match entry.answer {
        AnswerKind::Json => ("200", "Done.", output.map(|schema| json!({ "application/json": { "schema": schema } }))),
        AnswerKind::Started => (
            "202",
            "Begun: the resource as it is now, and the workflow that goes on.",
            output.map(|schema| json!({ "application/json": { "schema": schema } })),
        ),
        AnswerKind::Nothing => ("204", "Done.", None),
        AnswerKind::Download => {
            ("200", "The bytes.", Some(json!({ "*/*": { "schema": { "type": "string", "format": "binary" } } })))
        }
        AnswerKind::Events => (
            "200",
            "Server-sent events; an event named `error` holds an error and is the last.",
            Some(json!({ "text/event-stream": { "schema": { "type": "string" } } })),
        ),
        AnswerKind::Tunnel => {
            ("101", "A WebSocket with binary frames. Browsers pass the token as the subprotocol `bearer.TOKEN`.", None)
        }
    };
    let mut good = json!({ "description": description, "headers": headers });
    if let (Value::Object(good), Some(content)) = (&mut good, content) {
        good.insert("content".to_owned(), content);
    }
    let mut answers = Map::from_iter([(status.to_owned(), good)]);
    for kind in ErrorKind::ALL {
        let status = kind.http_status().to_string();
        answers.insert(status.clone(), json!({ "$ref": format!("#/components/responses/{status}") }));
    }
    answers.into()
}

/// One response per status that an error may have. Any operation may meet any of them.
fn responses() -> Value {
    let mut responses = Map::new();
    for kind in ErrorKind::ALL {
        let description = match kind {
            ErrorKind::Invalid => "The request is wrong: correct it.",
            ErrorKind::Unauthenticated => "Not logged in, or not any more.",
            ErrorKind::Forbidden => "This identity may not do this.",
            ErrorKind::NotFound => "It does not exist, or must not be seen to exist.",
            ErrorKind::MethodNotAllowed => "The method does not apply to this path.",
            ErrorKind::Conflict => "The resource's state, or a name taken, stands against it.",
            ErrorKind::Precondition => "The record changed since it was read.",
            ErrorKind::TooLarge => "The request is larger than what is accepted.",
            ErrorKind::UnsupportedMedia => "The content type or format cannot be used.",
            ErrorKind::Quota | ErrorKind::RateLimited => "A quota refuses, or too many requests came: see `kind`.",
            ErrorKind::Capacity => "No node has room, or the backend is full.",
            ErrorKind::Unsupported => "What was asked for is not offered here.",
            ErrorKind::Unavailable => "Not now; the same call may succeed later.",
            ErrorKind::Timeout => "Waiting took too long; the work may still go on.",
            ErrorKind::Internal => "A defect or a broken environment; not the caller's doing.",
        };
        let mut headers = json!({ "x-nephos-request-id": { "$ref": "#/components/headers/RequestId" } });
        let extra = match kind {
            ErrorKind::Unauthenticated => Some("WWW-Authenticate"),
            ErrorKind::MethodNotAllowed => Some("Allow"),
            ErrorKind::RateLimited | ErrorKind::Quota | ErrorKind::Unavailable => Some("Retry-After"),
            _ => None,
        };
        if let (Value::Object(headers), Some(extra)) = (&mut headers, extra) {
            headers.insert(extra.to_owned(), json!({ "schema": { "type": "string" } }));
        }
        responses.insert(
            kind.http_status().to_string(),
            json!({
                "description": description,
                "headers": headers,
                "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Error" } } },
            }),
        );
    }
    responses.into()
}

fn error_schema(kind: Schema, reason: Schema, next: Schema) -> Value {
    json!({
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["kind", "code", "title", "request_id", "retryable"],
                "properties": {
                    "kind": kind,
                    "code": { "type": "string", "description": "A stable word for programs." },
                    "title": { "type": "string", "description": "What happened." },
                    "detail": { "type": "string", "description": "Why, in the concrete case." },
                    "reasons": { "type": "array", "items": reason, "description": "All grounds, where there are several." },
                    "next": { "type": "array", "items": next, "description": "What to do." },
                    "request_id": { "type": "string" },
                    "retryable": { "type": "boolean", "description": "Whether the same call may succeed later." },
                },
            },
        },
    })
}
