//! XML-RPC, asked by Python's own client and by hand.

use std::process::Stdio;

use nephos_ops::{AnswerKind, Grant};
use nephos_wire::xmlrpc::{Call, Fault, Value, code, parse_response, render_call};

use crate::fake::{Running, TABLE, TOKEN, start};

#[tokio::test(flavor = "multi_thread")]
async fn pythons_client_gets_along() {
    let server = start().await;
    let output = tokio::process::Command::new("/usr/bin/python3")
        .args(["-c", include_str!("xmlrpc.py"), &server.address.to_string(), TOKEN])
        .stdin(Stdio::null())
        .output()
        .await
        .expect("python3 is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout == b"ok\n", "{errors}");
}

async fn post(server: &Running, body: impl Into<hyper::body::Bytes>) -> Result<Value, Fault> {
    let headers = [("content-type", "text/xml"), ("x-auth-token", TOKEN)];
    let answer = server.send("POST", "/xmlrpc", &headers, body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.headers.contains_key(nephos_http::REQUEST_ID));
    parse_response(&answer.body).unwrap()
}

#[tokio::test]
async fn what_is_no_call_is_a_fault() {
    let server = start().await;
    for (body, code) in [
        ("", code::NOT_WELL_FORMED),
        ("{}", code::INVALID_REQUEST),
        ("<methodCall><methodName>system.listMethods</methodName>", code::NOT_WELL_FORMED),
        ("<!DOCTYPE x><methodCall><methodName>m</methodName></methodCall>", code::NOT_WELL_FORMED),
        ("<methodCall></methodCall>", code::INVALID_REQUEST),
    ] {
        assert_eq!(post(&server, body).await.unwrap_err().code, code, "{body}");
    }
    for (method, path, content_type, status) in [
        ("GET", "/xmlrpc", "text/xml", 405),
        ("POST", "/xmlrpc/RPC2", "text/xml", 404),
        ("POST", "/xmlrpc", "application/json", 415),
    ] {
        let answer = server.send(method, path, &[("content-type", content_type)], "").await;
        assert_eq!(answer.status, status);
        answer.code();
    }
}

#[tokio::test]
async fn every_method_refuses_bad_input_without_reaching_the_core() {
    let server = start().await;
    let offered = TABLE.iter().filter(|entry| {
        matches!(entry.answer, AnswerKind::Json | AnswerKind::Started | AnswerKind::Nothing) && !entry.spec.upload
    });
    for entry in offered {
        let member = |name: &str, value| Value::Struct([(name.to_owned(), value)].into());
        for (params, wanted) in [
            (vec![member("no_such_field", Value::Int(1))], 400),
            (vec![Value::Int(1)], code::INVALID_PARAMETERS),
            (vec![Value::from("a"), Value::from("b")], code::INVALID_PARAMETERS),
            (vec![Value::Base64(vec![0xff])], code::INVALID_PARAMETERS),
            (vec![member("no_such_field", Value::Base64(vec![0xff]))], 400),
        ] {
            let call = Call { method: entry.spec.name.to_owned(), params };
            let fault = post(&server, render_call(&call)).await.unwrap_err();
            assert_eq!(fault.code, wanted, "{}: {fault}", entry.spec.name);
        }
        if !entry.spec.permission.0.contains(&Grant::Anyone) {
            let call = Call { method: entry.spec.name.to_owned(), params: vec![Value::from("wrong token")] };
            assert_eq!(post(&server, render_call(&call)).await.unwrap_err().code, 401, "{}", entry.spec.name);
        }
        assert_eq!(*server.core.reached.lock().unwrap(), Vec::<&str>::new(), "{}", entry.spec.name);
    }
}
