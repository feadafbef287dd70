//! The OpenAPI document: complete, and free of references that lead nowhere.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::fake::{TABLE, start};

fn each<'a>(value: &'a Value, visit: &mut impl FnMut(&'a Value)) {
    visit(value);
    match value {
        Value::Object(fields) => fields.values().for_each(|value| each(value, visit)),
        Value::Array(values) => values.iter().for_each(|value| each(value, visit)),
        _ => {}
    }
}

#[tokio::test]
async fn every_operation_is_described() {
    let server = start().await;
    let answer = server.send("GET", "/openapi.json", &[], "").await;
    assert_eq!(answer.status, 200);
    let document = answer.json();
    assert_eq!(document["openapi"], "3.1.0");
    let mut ids = BTreeSet::new();
    for entry in TABLE.iter() {
        let spec = &entry.spec;
        let operation = &document["paths"][spec.path][spec.method.as_str().to_ascii_lowercase()];
        assert_eq!(operation["operationId"], spec.name, "{}", spec.path);
        assert!(ids.insert(spec.name));
        let names: BTreeSet<&str> = operation["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|parameter| parameter["in"] == "path")
            .map(|parameter| parameter["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, spec.path_fields().collect(), "{}", spec.name);
        for status in ["400", "401", "404", "405", "413", "415", "429", "500", "503"] {
            assert!(operation["responses"][status].is_object(), "{}: {status}", spec.name);
        }
    }
    each(&document, &mut |value| {
        if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
            let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference}"));
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
    });
}

#[tokio::test]
async fn the_document_is_only_read() {
    let server = start().await;
    let answer = server.send("POST", "/openapi.json", &[], "").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (405, "method_not_allowed"));
    assert_eq!(answer.headers["allow"], "GET, HEAD");
    let answer = server.send("HEAD", "/openapi.json", &[], "").await;
    assert!(answer.status == 200 && answer.body.is_empty());
}
