//! What a request says about itself: the fields that decide where it goes.

use std::borrow::Cow;
use std::sync::LazyLock;

use bytes::Bytes;
use http::HeaderMap;
use memchr::memmem::Finder;
use poolgate_core::account::Surface;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::names::{scoped, session_field, session_header, unscoped};
use crate::error::Error;
use crate::json::{Document, Invalid, WrongType};
use crate::pool::SessionKey;

/// What a request says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub model: String,
    pub stream: bool,
    /// Keeps a conversation where its prompt cache is warm.
    pub session: Option<SessionKey>,
    /// The response whose state the request goes on from.
    pub owner: Option<SessionKey>,
    /// The same, whichever key made it.
    pub of_anyone: Option<SessionKey>,
    /// The upstream is asked to keep the response, so that a later request may refer to it.
    pub stores: bool,
    pub purpose: Purpose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Answer,
    /// It wants its history made shorter.
    Compaction,
    /// It makes the upstream ready for the next one, and wants no answer.
    WarmUp,
}

/// In bytes; the longest that are known take sixty. Names are kept, of models that are missing.
const MODEL_MAX: usize = 256;

/// Reads the fields that decide where the request goes.
pub fn peek(
    surface: Surface,
    headers: &HeaderMap,
    document: &Document,
    key_id: i64,
) -> Result<Head, Error> {
    check_inside(surface, document)?;
    let name = session_header(surface, headers).map(Cow::Borrowed);
    let name = name.or_else(|| session_field(surface, document));
    peek_within(surface, name.map(|name| scoped(key_id, &name)), document, key_id)
}

/// With a field twice in what a rule may have to change, it cannot be told which of them is read.
fn check_inside(surface: Surface, document: &Document) -> Result<(), Invalid> {
    match surface {
        Surface::Responses => document.object("client_metadata").map(drop),
        Surface::Messages | Surface::CountTokens => {
            let Some(metadata) = document.object("metadata")? else { return Ok(()) };
            let user = metadata.string("user_id").ok().flatten().unwrap_or_default();
            match Document::parse(Bytes::copy_from_slice(user.as_bytes())) {
                Err(error @ (Invalid::Repeated(_) | Invalid::TooManyFields)) => Err(error),
                // It need not be JSON.
                _ => Ok(()),
            }
        }
        Surface::Compact | Surface::Chat => Ok(()),
    }
}

/// The same for a turn, whose session is known.
pub fn peek_within(
    surface: Surface,
    session: Option<SessionKey>,
    document: &Document,
    key_id: i64,
) -> Result<Head, Error> {
    let model =
        document.string("model")?.filter(|model| !model.trim().is_empty()).ok_or(Error::NoModel)?;
    if model.len() > MODEL_MAX {
        return Err(Error::ModelTooLong(MODEL_MAX));
    }
    let stream = match surface {
        Surface::Responses | Surface::Chat | Surface::Messages => {
            document.boolean("stream")?.unwrap_or(false)
        }
        Surface::Compact | Surface::CountTokens => false,
    };
    let previous = match surface {
        Surface::Responses => document.string("previous_response_id")?,
        _ => None,
    };
    let stores = surface == Surface::Responses && document.boolean("store")?.unwrap_or(true);
    Ok(Head {
        model: model.into_owned(),
        stream,
        session,
        owner: previous.as_ref().map(|id| scoped(key_id, id)),
        of_anyone: previous.map(|id| unscoped(&id)),
        stores,
        purpose: purpose(surface, document)?,
    })
}

fn purpose(surface: Surface, document: &Document) -> Result<Purpose, WrongType> {
    Ok(match surface {
        Surface::Compact => Purpose::Compaction,
        Surface::Responses if document.boolean("generate")? == Some(false) => Purpose::WarmUp,
        Surface::Responses if ends_in_trigger(document) => Purpose::Compaction,
        _ => Purpose::Answer,
    })
}

/// More than Codex's last item takes when it is a trigger.
const TRIGGER_MAX: usize = 1 << 10;
// Prepared once: that costs more than the search.
static TRIGGER: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(b"compaction_trigger"));

/// Newer clients compact by an ordinary request whose last input item says so (codex-cli 0.169.0).
/// Only the end is searched: inputs are long, and a trigger is short.
fn ends_in_trigger(document: &Document) -> bool {
    #[derive(Deserialize)]
    struct Item<'a> {
        #[serde(borrow, rename = "type", default)]
        kind: Cow<'a, str>,
    }
    if TRIGGER.find(&document.tail("input", TRIGGER_MAX)).is_none() {
        return false;
    }
    // Text may hold the word too.
    let input = document.raw("input").unwrap_or_default();
    let items: Vec<&RawValue> = serde_json::from_str(&input).unwrap_or_default();
    let last = items.last().and_then(|item| serde_json::from_str::<Item<'_>>(item.get()).ok());
    last.is_some_and(|item| item.kind == "compaction_trigger")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Document {
        Document::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    #[test]
    fn peeks() {
        let none = HeaderMap::new();
        let body =
            document(r#"{"model":"m","stream":true,"previous_response_id":"r","store":false}"#);
        let head = peek(Surface::Responses, &none, &body, 1).unwrap();
        assert_eq!((head.model.as_str(), head.stream, head.stores), ("m", true, false));
        assert_eq!(head.owner, Some(scoped(1, "r")));
        for (surface, field) in
            [(Surface::Responses, "client_metadata"), (Surface::Messages, "metadata")]
        {
            let inside = |value| document(&format!(r#"{{"model":"m","{field}":{value}}}"#));
            assert!(peek(surface, &none, &inside("null"), 1).is_ok());
            assert!(peek(surface, &none, &inside(r#"{"a":1}"#), 1).is_ok());
            let error = peek(surface, &none, &inside(r#"{"a":1,"a":2}"#), 1).unwrap_err();
            assert_eq!(error.parts().1, "invalid_json", "{field}");
        }
        for (user, is_read) in
            [("{guid}", true), (r#"{\"a\":1}"#, true), (r#"{\"a\":1,\"a\":1}"#, false)]
        {
            let body = document(&format!(r#"{{"model":"m","metadata":{{"user_id":"{user}"}}}}"#));
            assert_eq!(peek(Surface::Messages, &none, &body, 1).is_ok(), is_read, "{user}");
        }
        let named = |bytes| format!(r#"{{"model":"{}"}}"#, "m".repeat(bytes));
        assert!(peek(Surface::Messages, &none, &document(&named(256)), 1).is_ok());
        for (body, code) in [
            ("{}", "missing_model"),
            (r#"{"model":" "}"#, "missing_model"),
            (r#"{"model":7}"#, "invalid_field"),
            (named(257).as_str(), "invalid_field"),
            (r#"{"model":"m","stream":"yes"}"#, "invalid_field"),
        ] {
            let error = peek(Surface::Messages, &none, &document(body), 1).unwrap_err();
            assert_eq!(error.parts().1, code, "{body}");
        }
    }

    #[test]
    #[rustfmt::skip]
    fn knows_compaction_and_warm_ups() {
        let long = format!(r#"[{{"type":"message","content":"{}"}},{{"type":"compaction_trigger"}}]"#, "x".repeat(5000));
        let cases = [
            ("trigger",         r#"[{"type":"message"},{"type":"compaction_trigger"}]"#,           true),
            ("behind a long history", &long,                                                       true),
            ("more members",    r#"[{"id":"x", "type" : "compaction_trigger" } ] "#,               true),
            ("not the last",    r#"[{"type":"compaction_trigger"},{"type":"message"}]"#,           false),
            ("only spoken of",  r#"[{"type":"message","content":"type: compaction_trigger"}]"#,    false),
            ("text",            r#""compaction_trigger""#,                                         false),
            ("nothing",         "[]",                                                              false),
        ];
        for (name, input, want) in cases {
            let body = document(&format!(r#"{{"model":"m","input":{input}}}"#));
            let want = if want { Purpose::Compaction } else { Purpose::Answer };
            assert_eq!(purpose(Surface::Responses, &body), Ok(want), "{name}");
            assert_eq!(purpose(Surface::Chat, &body), Ok(Purpose::Answer), "{name}");
            assert_eq!(purpose(Surface::Compact, &body), Ok(Purpose::Compaction), "{name}");
            let warm_up = document(&format!(r#"{{"input":{input},"generate":false}}"#));
            assert_eq!(purpose(Surface::Responses, &warm_up), Ok(Purpose::WarmUp), "{name}");
        }
    }
}
