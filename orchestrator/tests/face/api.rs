//! The API as a script, a browser gone astray and a hostile client meet it.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use serde_json::Value;

use crate::site::Site;

impl Site {
    /// Sends raw bytes and reads what comes until the server hangs up: status and body.
    fn raw(&self, request: &[u8]) -> (u16, String) {
        let mut stream = UnixStream::connect(self.file("api.sock")).unwrap();
        // A server that has heard enough hangs up while we still speak.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    fn call(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let (status, body) = self.raw(request.as_bytes());
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }
}

#[test]
fn every_error_is_json_with_a_status_and_a_sentence() {
    let site = Site::new(false);
    for (method, path, status, sentence) in [
        ("GET", "/", 404, "no such thing here: /"),
        ("GET", "/v1/planets", 404, "no such thing here"),
        ("GET", "/v1/subscribers/nobody", 404, "no subscriber `nobody`"),
        ("DELETE", "/v1/subscribers/line-a", 405, "DELETE is not possible on /v1/subscribers/line-a"),
        ("GET", "/v1/stop", 405, "GET is not possible"),
        ("POST", "/v1/settings", 405, "POST is not possible"),
        ("GET", "/v1/usage?limit=0", 400, "limit must be 1 to 1000"),
        ("GET", "/v1/usage?limit=100000", 400, "limit must be 1 to 1000"),
        ("GET", "/v1/usage?limit=many", 400, "limit"),
        ("GET", "/v1/usage?colour=red", 400, "unknown field `colour`"),
        ("GET", "/v1/usage?after=x", 400, "`next` of the page before"),
        ("GET", "/v1/pushes?state=lost", 400, "unknown push state `lost`: expected one of pending"),
        ("GET", "/v1/explain/line-a?at=noon", 400, "at"),
        ("GET", "/v1/subscribers/%ff", 400, "UTF-8"),
    ] {
        let (got, body) = site.call(method, path, "");
        assert_eq!(got, status, "{method} {path}: {body}");
        let error = body["error"].as_str().unwrap_or_default();
        assert!(error.contains(sentence), "{method} {path}: {body}");
    }
    assert_eq!(site.json(&["status"])["stopped"], false, "GET /v1/stop stopped nothing");
}

#[test]
fn a_policy_is_linted_from_afar_with_places() {
    let site = Site::new(false);
    let body = serde_json::json!({"policy": "version: 1\nfacts: {lateness: soon}\n", "name": "p.yaml"});
    let (status, lint) = site.call("POST", "/v1/lint", &body.to_string());
    assert_eq!((status, &lint["ok"]), (200, &Value::Bool(false)), "{lint}");
    let mistakes = lint["mistakes"].as_array().unwrap();
    assert!(mistakes.iter().any(|one| one["line"] == 2 && one["file"] == "p.yaml"), "{lint}");
    let good = serde_json::json!({"policy": include_str!("../../../deploy/policy.yaml")});
    let (status, lint) = site.call("POST", "/v1/lint", &good.to_string());
    assert_eq!((status, &lint["ok"]), (200, &Value::Bool(true)), "{lint}");
    for wrong in ["", "{", "[]", r#"{"policy": 7}"#, r#"{"policy": "", "colour": "red"}"#] {
        let (status, answer) = site.call("POST", "/v1/lint", wrong);
        assert!((400..500).contains(&status) && answer["error"].is_string(), "{wrong}: {status} {answer}");
    }
}

#[test]
fn hostile_requests_harm_nobody_elses() {
    let site = Site::new(false);
    for request in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/lint HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\ncontent-type: application/json\r\n\r\n{",
        b"\0\0\0\0\r\n\r\n",
    ] {
        let (status, _) = site.raw(request);
        assert!(status == 0 || (400..600).contains(&status), "{status} to {request:?}");
    }
    let long = format!("GET /v1/{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(1 << 20));
    let (status, _) = site.raw(long.as_bytes());
    assert!(matches!(status, 0 | 414 | 431), "{status}");
    assert_eq!(site.call("GET", "/v1/health", "").0, 200);
}
