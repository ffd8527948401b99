//! The head of a request, as a stranger writes it: what is served, who asks, and what crosses.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use http_body_util::BodyExt;
use poolgate::error::Error;
use poolgate::gateway::presented_key;
use poolgate::gateway::steps::{
    dialect, route, socket_session, to_client, to_upstream, turn_header,
};
use poolgate::strict;

/// Belongs to the hop, names another account, or is a credential.
const NEVER: [&str; 14] = [
    "authorization",
    "x-api-key",
    "cookie",
    "set-cookie",
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "forwarded",
    "x-forwarded-for",
    "location",
    "openai-organization",
    "openai-project",
    "chatgpt-account-id",
];

/// Lines of a head, each ended by a line feed: the method and target, then `name:value`.
pub fn run(input: &[u8]) {
    on_the_wire(input);
    let mut lines = input.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let Some((method, uri)) = lines.next().and_then(request_line) else { return };
    let headers: HeaderMap = lines.take(100).filter_map(header_line).collect();
    let dialect = dialect(uri.path(), &headers);
    match route(&method, uri.path(), uri.query(), &headers) {
        Ok(_) => assert!(is_plain(uri.path()), "{} is served", uri.path()),
        Err(error) => refused(&error, dialect),
    }
    match presented_key(&headers) {
        Ok(key) => is_the_only_key(&headers, key),
        Err(error) => refused(&error, dialect),
    }
    let crossing = to_upstream(&headers);
    only_some_cross(&headers, &crossing);
    let hop = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    for name in hop.flat_map(|value| value.split(',')) {
        let named = HeaderName::from_bytes(name.trim().as_bytes());
        assert!(!named.is_ok_and(|name| crossing.contains_key(name)), "{name} crossed");
    }
    let mut answered = to_client(headers.clone());
    assert_eq!(answered.remove(header::X_CONTENT_TYPE_OPTIONS).unwrap(), "nosniff");
    only_some_cross(&headers, &answered);
    let limit = |name: &HeaderName| name.as_str().starts_with("anthropic-ratelimit-");
    assert!(!answered.keys().any(limit), "one account's limits");
    assert_eq!(socket_session(&headers, 1).is_some(), socket_session(&headers, 2).is_some());
    let sessions = (socket_session(&headers, 1), socket_session(&headers, 2));
    assert!(sessions.0.is_none() || sessions.0 != sessions.1, "two keys share a session");
    let _ = turn_header(&headers, 1);
}

/// The same lines, ended as HTTP ends them, and as they came: what is taken has one end and no line
/// that another reader could end elsewhere.
fn on_the_wire(input: &[u8]) {
    let lines: Vec<&[u8]> = input.trim_ascii_end().split(|byte| *byte == b'\n').collect();
    let wire = [lines.join(&b"\r\n"[..]), b"\r\n\r\n".to_vec()].concat();
    for bytes in [input, &wire] {
        let Some(end) = strict::head_end(bytes, 0) else { continue };
        let searched = end.saturating_sub(3);
        assert_eq!(strict::head_end(&bytes[..end - 1], 0), None, "an earlier end");
        assert_eq!(strict::head_end(bytes, searched), Some(end), "searched in two steps");
        if strict::check(&bytes[..end]).is_ok() {
            let bare = |pair: &[u8]| pair[0] != b'\r' && pair[1] == b'\n';
            assert!(!bytes[..end].windows(2).any(bare), "a bare line feed was taken");
        }
    }
}

fn request_line(line: &[u8]) -> Option<(Method, Uri)> {
    let mut words = line.split(|byte| *byte == b' ');
    let method = Method::from_bytes(words.next()?).ok()?;
    Some((method, Uri::try_from(words.next()?).ok()?))
}

fn header_line(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let name = HeaderName::from_bytes(&line[..colon]).ok()?;
    Some((name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?))
}

/// Nothing that two readers could read as two paths.
fn is_plain(path: &str) -> bool {
    let plain = |byte: u8| {
        byte.is_ascii_lowercase() || byte == b'/' || byte == b'_' || byte == b'-' || byte == b'1'
    };
    path.bytes().all(plain) && !path.contains("//")
}

fn refused(error: &Error, dialect: poolgate::error::Dialect) {
    let response = error.render(dialect);
    let (head, body) = response.into_parts();
    assert!(head.status.is_client_error(), "{error}: {}", head.status);
    let body = futures_util::FutureExt::now_or_never(body.collect()).unwrap().unwrap().to_bytes();
    let body: serde_json::Value = serde_json::from_slice(&body).expect("a refusal is JSON");
    let told = [&body["error"]["message"], &body["detail"]];
    assert!(told.iter().any(|text| text.is_string()), "{body}");
}

fn is_the_only_key(headers: &HeaderMap, key: &str) {
    assert!(!key.is_empty() && key.trim() == key, "{key:?}");
    let bearers = headers.get_all(header::AUTHORIZATION).iter();
    let all = bearers.chain(headers.get_all("x-api-key").iter());
    for value in all {
        assert!(value.to_str().unwrap().ends_with(key), "{value:?} beside {key:?}");
    }
}

/// What crosses is what came, and nothing that must stay.
fn only_some_cross(came: &HeaderMap, crossed: &HeaderMap) {
    for name in crossed.keys() {
        assert!(!NEVER.contains(&name.as_str()), "{name} crossed");
        assert!(crossed.get_all(name).iter().eq(came.get_all(name).iter()), "{name} was changed");
    }
}
