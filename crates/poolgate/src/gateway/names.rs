//! By what names requests go on from earlier ones: sessions, turns and responses, in headers and bodies.

use std::borrow::Cow;

use bytes::Bytes;
use http::HeaderMap;
use poolgate_core::account::Surface;

use super::headers::name;
use crate::json::{Document, Invalid};
use crate::pool::SessionKey;
use crate::secret::sha256;

/// The turn that an earlier answer named.
pub fn turn_header(headers: &HeaderMap, key_id: i64) -> Option<SessionKey> {
    headers.get(&name::TURN_STATE)?.to_str().ok().map(|turn| scoped(key_id, turn))
}

/// The same in a socket's message, which outlives the headers of its handshake.
pub fn turn_field(document: &Document, key_id: i64) -> Result<Option<SessionKey>, Invalid> {
    let Some(metadata) = document.object("client_metadata")? else { return Ok(None) };
    let turn = metadata.string(name::TURN_STATE.as_str()).ok().flatten();
    Ok(turn.map(|turn| scoped(key_id, &turn)))
}

/// A session's or response's name as a map key, of a fixed size and never shared between callers.
pub fn scoped(key_id: i64, name: &str) -> SessionKey {
    let digest = sha256(&[&key_id.to_be_bytes(), name.as_bytes()].concat());
    *digest.first_chunk().expect("32 bytes hold 16")
}

/// A response's name as it is known whoever asks. Ids of keys begin at 1.
pub fn unscoped(name: &str) -> SessionKey {
    scoped(0, name)
}

/// The session that headers alone name, of a socket.
pub fn socket_session(headers: &HeaderMap, key_id: i64) -> Option<SessionKey> {
    session_header(Surface::Responses, headers).map(|name| scoped(key_id, name))
}

/// What headers call it. First hit wins, here and in the body after them (docs/providers.md, "Session
/// names"). `None` from both: the request stands alone.
pub fn session_header(surface: Surface, headers: &HeaderMap) -> Option<&str> {
    let names = match surface {
        Surface::Responses | Surface::Compact | Surface::Chat => name::SESSION.as_slice(),
        Surface::Messages | Surface::CountTokens => std::slice::from_ref(&name::CLAUDE_SESSION),
    };
    let header = |name| headers.get(name)?.to_str().ok().filter(|value| !value.is_empty());
    names.iter().find_map(header)
}

/// What the body calls it.
pub fn session_field(surface: Surface, document: &Document) -> Option<Cow<'_, str>> {
    let field = |name| document.string(name).ok().flatten().filter(|value| !value.is_empty());
    match surface {
        Surface::Responses | Surface::Compact | Surface::Chat => {
            field("prompt_cache_key").or_else(|| field("user"))
        }
        Surface::Messages | Surface::CountTokens => {
            let metadata = document.object("metadata").ok()??;
            let user = metadata.string("user_id").ok()??.into_owned();
            Some(Cow::Owned(claude_session(&user).unwrap_or(user)))
        }
    }
}

/// The session inside `metadata.user_id`: JSON text in newer clients, underscores in older ones.
fn claude_session(user: &str) -> Option<String> {
    if let Ok(document) = Document::parse(Bytes::copy_from_slice(user.as_bytes())) {
        return Some(document.string("session_id").ok()??.into_owned());
    }
    user.rsplit_once("_session_").map(|(_, session)| session.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Document {
        Document::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (http::HeaderName::from_static(n), v.parse().unwrap())).collect()
    }

    #[test]
    #[rustfmt::skip]
    fn finds_the_session() {
        use Surface::{Chat, Messages, Responses};
        let cases: [(&str, Surface, &[(&str, &str)], &str, Option<&str>); 9] = [
            ("codex",             Responses, &[("session-id", "s"), ("thread-id", "t")], r#"{"prompt_cache_key":"p"}"#, Some("s")),
            ("older codex",       Responses, &[("session_id", "s")],  "{}",                                             Some("s")),
            ("SDK with a cache key", Responses, &[],                  r#"{"prompt_cache_key":"p","user":"u"}"#,         Some("p")),
            ("user",              Chat,      &[],                     r#"{"user":"u"}"#,                                Some("u")),
            ("nothing",           Chat,      &[],                     r#"{"user":""}"#,                                 None),
            ("claude code",       Messages,  &[("x-claude-code-session-id", "c")], "{}",                                Some("c")),
            ("JSON user id",      Messages,  &[],  r#"{"metadata":{"user_id":"{\"device_id\":\"d\",\"session_id\":\"c\"}"}}"#, Some("c")),
            ("older user id",     Messages,  &[],  r#"{"metadata":{"user_id":"user_a_account_b_session_c"}}"#,          Some("c")),
            ("plain user id",     Messages,  &[],  r#"{"metadata":{"user_id":"me"}}"#,                                  Some("me")),
        ];
        for (name, surface, pairs, body, want) in cases {
            let pairs: Vec<(&'static str, &'static str)> =
                pairs.iter().map(|(n, v)| (&*n.to_string().leak(), &*v.to_string().leak())).collect();
            let (headers, body) = (headers(&pairs), document(body));
            let found = session_header(surface, &headers).map(Cow::Borrowed);
            let found = found.or_else(|| session_field(surface, &body));
            assert_eq!(found.as_deref(), want, "{name}");
        }
    }

    #[test]
    fn sessions_of_two_keys_never_meet() {
        assert_ne!(scoped(1, "s"), scoped(2, "s"));
        assert_eq!(scoped(1, "s"), scoped(1, "s"));
    }
}
