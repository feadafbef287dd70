//! Round trips against a model, refusals, and arbitrary bytes.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<bool>().prop_map(Value::Boolean),
        any::<i64>().prop_map(Value::Int),
        any::<i32>().prop_map(|number| Value::Int(number.into())),
        any::<f64>().prop_filter("finite", |number| number.is_finite()).prop_map(Value::Double),
        "[\\t\\n\\r -\u{d7ff}\u{e000}-\u{fffd}\u{10000}-\u{10ffff}]{0,20}".prop_map(Value::String),
        "[0-9]{8}T[0-9]{2}:[0-9]{2}:[0-9]{2}".prop_map(Value::DateTime),
        proptest::collection::vec(any::<u8>(), 0..20).prop_map(Value::Base64),
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
            proptest::collection::btree_map("[ -~\\r\\n]{0,8}", inner, 0..6).prop_map(Value::Struct),
        ]
    })
}

proptest! {
    #[test]
    fn values_survive_the_way_there_and_back(params in proptest::collection::vec(values(), 0..4)) {
        let call = Call { method: "thing.do".to_owned(), params };
        prop_assert_eq!(parse_call(render_call(&call).as_bytes()).unwrap(), call.clone());
        for value in call.params {
            prop_assert_eq!(parse_response(render_response(&value).as_bytes()).unwrap().unwrap(), value);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_call(&bytes);
        let _ = parse_response(&bytes);
    }

    #[test]
    fn damaged_calls_never_panic(value in values(), at in any::<prop::sample::Index>(), byte: u8, cut: bool) {
        let mut bytes = render_call(&Call { method: "m".to_owned(), params: vec![value] }).into_bytes();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        let _ = parse_call(&bytes);
    }

    #[test]
    fn arbitrary_text_arrives_as_text_or_bytes(text in ".{0,40}|[\\x00-\\x1f]{1,4}") {
        let received = parse_response(render_response(&Value::String(text.clone())).as_bytes()).unwrap().unwrap();
        prop_assert_eq!(received.into_json().unwrap(), json!(text));
    }
}

fn call(value: &str) -> Result<Value, Fault> {
    let text = format!("<methodCall><methodName>m</methodName><params><param>{value}</param></params></methodCall>");
    parse_call(text.as_bytes()).map(|mut call| call.params.remove(0))
}

#[test]
fn what_clients_send() {
    for (text, value) in [
        ("<value>  a b </value>", Value::from("  a b ")),
        ("<value/>", Value::from("")),
        ("<value><string/></value>", Value::from("")),
        ("<value> <string> x </string> </value>", Value::from(" x ")),
        ("<value><string>a&lt;b&amp;c&#13;&#x41;</string></value>", Value::from("a<b&c\rA")),
        ("<value><string><![CDATA[<x>]]>&gt;</string></value>", Value::from("<x>>")),
        ("<value><i4> -7 </i4></value>", Value::Int(-7)),
        ("<value><ex:i8>5000000000</ex:i8></value>", Value::Int(5_000_000_000)),
        ("<value><ex:nil/></value>", Value::Nil),
        ("<value><!-- so --><boolean>1</boolean></value>", Value::Boolean(true)),
        ("<value><double>-1.5e3</double></value>", Value::Double(-1500.0)),
        ("<value><base64>\n aGVs\n bG8= </base64></value>", Value::Base64(b"hello".to_vec())),
        ("<value><array><data/></array></value>", Value::Array(vec![])),
        ("<value>\n<struct>\n</struct>\n</value>", Value::Struct(BTreeMap::new())),
    ] {
        assert_eq!(call(text), Ok(value), "{text}");
    }
    let without = b"<?xml version='1.0'?>\n<methodCall>\n<methodName> m </methodName>\n</methodCall>\n";
    assert_eq!(parse_call(without), Ok(Call { method: "m".to_owned(), params: vec![] }));
}

#[test]
fn what_is_refused_and_with_which_code() {
    let deep = format!("{}{}", "<value><array><data>".repeat(65), "</data></array></value>".repeat(65));
    let twice = "<member><name>a</name><value/></member>".repeat(2);
    for (value, code) in [
        ("<value><int>2147483648</int></value>", code::INVALID_REQUEST),
        ("<value><int>x</int></value>", code::INVALID_REQUEST),
        ("<value><boolean>true</boolean></value>", code::INVALID_REQUEST),
        ("<value><double>inf</double></value>", code::INVALID_REQUEST),
        ("<value><base64>*</base64></value>", code::INVALID_REQUEST),
        ("<value><dateTime.iso8601>2026-02-28</dateTime.iso8601></value>", code::INVALID_REQUEST),
        ("<value>x<int>1</int></value>", code::INVALID_REQUEST),
        ("<value><int>1</int><int>1</int></value>", code::INVALID_REQUEST),
        ("<value><thing/></value>", code::INVALID_REQUEST),
        (&format!("<value><struct>{twice}</struct></value>"), code::INVALID_REQUEST),
        (&deep, code::INVALID_REQUEST),
        ("<value>&other;</value>", code::NOT_WELL_FORMED),
        ("<value>&#1;</value>", code::INVALID_CHARACTER),
        ("<value>\u{1}</value>", code::INVALID_CHARACTER),
        ("<value></wrong>", code::NOT_WELL_FORMED),
    ] {
        assert_eq!(call(value).map_err(|fault| fault.code), Err(code), "{value}");
    }
    let billion = b"<!DOCTYPE x [<!ENTITY a \"b\">]><methodCall><methodName>m</methodName></methodCall>";
    for (document, code) in [
        (&billion[..], code::NOT_WELL_FORMED),
        (b"", code::NOT_WELL_FORMED),
        (b"hello", code::INVALID_REQUEST),
        (b"<methodCall>", code::NOT_WELL_FORMED),
        (b"<methodCall><methodName>m</methodName></methodCall><x/>", code::NOT_WELL_FORMED),
        (b"<methodResponse/>", code::INVALID_REQUEST),
        (b"<methodCall><methodName/></methodCall>", code::INVALID_REQUEST),
        (b"<?xml version='1.0' encoding='ISO-8859-1'?><methodCall/>", code::UNSUPPORTED_ENCODING),
        (b"<?xml version='1.0' encoding='ISO-8859-1'?><x>\xff</x>", code::UNSUPPORTED_ENCODING),
        (b"<methodCall>\xff</methodCall>", code::INVALID_CHARACTER),
    ] {
        assert_eq!(parse_call(document).map_err(|fault| fault.code), Err(code), "{}", document.escape_ascii());
    }
}

#[test]
fn faults_survive() {
    let fault = Fault::new(404, "No flavor `x` & such");
    assert_eq!(parse_response(render_fault(&fault).as_bytes()).unwrap(), Err(fault));
}

#[test]
fn numbers_beyond_32_bits_are_i8_and_beyond_64_text() {
    assert!(render_response(&Value::from(json!(2_147_483_647))).contains("<int>2147483647</int>"));
    assert!(render_response(&Value::from(json!(2_147_483_648_u64))).contains("<i8>2147483648</i8>"));
    assert_eq!(Value::from(json!(u64::MAX)), Value::String(u64::MAX.to_string()));
}

#[test]
fn times_become_rfc_3339() {
    assert_eq!(Value::DateTime("20260228T23:59:59".to_owned()).into_json(), Ok(json!("2026-02-28T23:59:59Z")));
    assert!(Value::Base64(vec![0xff]).into_json().is_err());
}
