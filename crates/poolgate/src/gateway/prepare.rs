//! What one account's upstream is sent: its path, and the client's body with the few fields changed
//! that a rule must change. Everything is spliced; an unchanged body keeps the client's very bytes,
//! compression included where the upstream takes it.
//!
//! The Codex backend wants `stream: true`, `store: false` and `input` as a list, and refuses the
//! fields in [`CODEX_REFUSES`] (docs/providers.md lists them with their sources).

use bytes::Bytes;
use poolgate_core::account::{Kind, Surface};

use super::headers::name;
use super::read::{Encoding, Payload};
use crate::json::{Document, Patch, Text, quote};
use crate::pool::Account;

const CODEX_REFUSES: [&str; 9] = [
    "max_output_tokens",
    "max_completion_tokens",
    "metadata",
    "prompt_cache_retention",
    "safety_identifier",
    "temperature",
    "top_p",
    "truncation",
    "user",
];

#[derive(Clone, Debug)]
pub struct Prepared {
    pub body: Text,
    pub encoding: Option<Encoding>,
    /// The upstream will stream, whatever the client asked for.
    pub streams: bool,
}

/// What is asked of an account.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub surface: Surface,
    pub stream: bool,
    /// Another account issued the turn state that the request carries.
    pub moved: bool,
}

/// Path and query of an upstream call. The query is passed on for the path that has one.
pub fn path(account: &Account, surface: Surface, query: Option<&str>) -> String {
    // Anthropic's base URLs stop before the version, OpenAI's behind it.
    let versioned = matches!(account.kind, Kind::Claude | Kind::Anthropic);
    let rest = match (surface, versioned) {
        (Surface::Responses, _) => "/responses",
        (Surface::Compact, _) => "/responses/compact",
        (Surface::Chat, _) => "/chat/completions",
        (Surface::Messages, true) => "/v1/messages",
        (Surface::Messages, false) => "/messages",
        (Surface::CountTokens, true) => "/v1/messages/count_tokens",
        (Surface::CountTokens, false) => "/messages/count_tokens",
    };
    match query.filter(|query| !query.is_empty()) {
        Some(query) => format!("{}{rest}?{query}", account.upstream.prefix),
        None => format!("{}{rest}", account.upstream.prefix),
    }
}

pub fn prepare(account: &Account, payload: &Payload, wanted: Wanted) -> Prepared {
    let Wanted { surface, stream, moved } = wanted;
    let document = &payload.document;
    let mut patch = Patch::default();
    let mut streams = stream;
    match (account.kind, surface) {
        (Kind::Codex, Surface::Responses) => {
            streams = true;
            patch_for_codex(&mut patch, document);
        }
        (Kind::Claude | Kind::Anthropic, _) => patch_user_id(&mut patch, document, account),
        _ => {}
    }
    if moved && surface == Surface::Responses {
        patch_turn_state(&mut patch, document);
    }
    let takes_encoding = matches!(account.kind, Kind::Codex);
    if patch.is_empty() && (payload.encoding.is_none() || takes_encoding) {
        return Prepared { body: payload.wire.clone(), encoding: payload.encoding, streams };
    }
    Prepared { body: patch.apply(document), encoding: None, streams }
}

fn patch_for_codex(patch: &mut Patch, document: &Document) {
    patch.set(document, "stream", "true");
    patch.set(document, "store", "false");
    for field in CODEX_REFUSES {
        patch.remove(document, field);
    }
    // SDK users may write a bare string, which means one user message.
    if document.begins_with("input", b'"')
        && let Some(text) = document.raw("input")
    {
        let list = format!(
            r#"[{{"type":"message","role":"user","content":[{{"type":"input_text","text":{text}}}]}}]"#
        );
        patch.set(document, "input", &list);
    }
}

/// Turn state is bound to the account that issued it; on a socket it comes in the message.
fn patch_turn_state(patch: &mut Patch, document: &Document) {
    let Ok(Some(metadata)) = document.object("client_metadata") else {
        return;
    };
    let turn_state = name::TURN_STATE.as_str();
    if metadata.raw(turn_state).is_some() {
        let mut inner = Patch::default();
        inner.remove(&metadata, turn_state);
        patch.set(document, "client_metadata", &text_of(&inner, &metadata));
    }
}

fn text_of(patch: &Patch, document: &Document) -> String {
    String::from_utf8_lossy(&patch.apply(document).to_bytes()).into_owned()
}

/// The client's own account uuid does not fit the account that serves: it is replaced by that
/// account's, or blanked. Device and session stay.
fn patch_user_id(patch: &mut Patch, document: &Document, account: &Account) {
    let Ok(Some(metadata)) = document.object("metadata") else {
        return;
    };
    let Ok(Some(user_id)) = metadata.string("user_id") else {
        return;
    };
    let own = account.credential.claude_account_uuid().unwrap_or_default();
    let Some(replaced) = replace_account(&user_id, &own) else {
        return;
    };
    let mut inner = Patch::default();
    inner.set(&metadata, "user_id", &quote(&replaced));
    patch.set(document, "metadata", &text_of(&inner, &metadata));
}

/// `None`: it names no account, or the right one.
fn replace_account(user_id: &str, own: &str) -> Option<String> {
    if let Ok(fields) = Document::parse(Bytes::copy_from_slice(user_id.as_bytes())) {
        let named = fields.string("account_uuid").ok()??;
        if named.is_empty() || named == own {
            return None;
        }
        let mut patch = Patch::default();
        patch.set(&fields, "account_uuid", &quote(own));
        return String::from_utf8(patch.apply(&fields).to_bytes().to_vec()).ok();
    }
    let (user, rest) = user_id.split_once("_account_")?;
    let (named, session) = rest.split_once("_session_")?;
    (!named.is_empty() && named != own).then(|| format!("{user}_account_{own}_session_{session}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use poolgate_core::account::AccountId;

    use super::*;
    use crate::config::Upstream;
    use crate::credentials::{Credential, Source};
    use crate::pool::Tenant;

    fn account(kind: Kind, prefix: &str) -> Account {
        let upstream = Upstream::at("https://x", prefix);
        let credential = Arc::new(Credential::new(kind, Source::KeyEnv("NONE".into()), None));
        Account {
            id: AccountId(1),
            tenant: Tenant::default(),
            name: "a".into(),
            kind,
            speaks: poolgate_core::account::Speaks::default(),
            models: vec![],
            upstream,
            token_url: None,
            credential,
        }
    }

    fn payload(text: &str) -> Payload {
        let wire = Bytes::copy_from_slice(text.as_bytes());
        Payload {
            wire: wire.clone().into(),
            encoding: None,
            document: Document::parse(wire).unwrap(),
        }
    }

    fn prepared(kind: Kind, surface: Surface, text: &str) -> String {
        let wanted = Wanted { surface, stream: false, moved: true };
        let prepared = prepare(&account(kind, ""), &payload(text), wanted);
        String::from_utf8(prepared.body.to_bytes().to_vec()).unwrap()
    }

    #[test]
    #[rustfmt::skip]
    fn changes_only_what_a_rule_must() {
        use Kind::{Claude, Codex, Compatible, OpenAi};
        use Surface::{Messages, Responses};
        let cases = [
            ("an API key changes nothing", OpenAi, Responses, r#"{ "model":"m", "user":"u","temperature":0.50 }"#, r#"{ "model":"m", "user":"u","temperature":0.50 }"#),
            ("codex as Codex sends it",    Codex,  Responses, r#"{"model":"m","stream":true,"store":false,"input":[]}"#, r#"{"model":"m","stream":true,"store":false,"input":[]}"#),
            ("codex for an SDK",           Codex,  Responses, r#"{"model":"m","input":"hi","top_p":1,"user":"u"}"#,
             r#"{"stream":true,"store":false,"model":"m","input":[{"type":"message","role":"user","content":[{"type":"input_text","text":"hi"}]}]}"#),
            ("another's turn state is cut out", Codex, Responses,
             r#"{"stream":true,"store":false,"client_metadata":{"turn_id":"t","x-codex-turn-state":"s","a":"b"},"input":[]}"#,
             r#"{"stream":true,"store":false,"client_metadata":{"turn_id":"t","a":"b"},"input":[]}"#),
            ("whoever it goes to",         Compatible, Responses, r#"{"client_metadata":{"x-codex-turn-state":"s"},"model":"m"}"#, r#"{"client_metadata":{},"model":"m"}"#),
            ("and with an API key",        OpenAi, Responses, r#"{"client_metadata":{"a":"b","x-codex-turn-state":"s"}}"#, r#"{"client_metadata":{"a":"b"}}"#),
            ("another's account is blanked", Claude, Messages, r#"{"metadata": {"user_id":"{\"account_uuid\":\"u-1\",\"session_id\":\"s\"}"},"model":"m"}"#,
             r#"{"metadata": {"user_id":"{\"account_uuid\":\"\",\"session_id\":\"s\"}"},"model":"m"}"#),
            ("in the older form too",      Claude, Messages, r#"{"metadata":{"user_id":"user_a_account_b_session_c"}}"#, r#"{"metadata":{"user_id":"user_a_account__session_c"}}"#),
            ("no account named",           Claude, Messages, r#"{"metadata":{"user_id":"{\"account_uuid\":\"\"}"}}"#, r#"{"metadata":{"user_id":"{\"account_uuid\":\"\"}"}}"#),
            ("no metadata",                Claude, Messages, r#"{"model":"m"}"#, r#"{"model":"m"}"#),
        ];
        for (name, kind, surface, text, want) in cases {
            assert_eq!(prepared(kind, surface, text), want, "{name}");
        }
    }

    #[test]
    fn a_compressed_body_stays_compressed_where_it_may() {
        let wire = Bytes::from_static(b"zstd bytes");
        let whole = payload(r#"{"model":"m","stream":true,"store":false,"input":[]}"#);
        let payload =
            Payload { wire: wire.clone().into(), encoding: Some(Encoding::Zstd), ..whole };
        let wanted = Wanted { surface: Surface::Responses, stream: true, moved: false };
        let codex = prepare(&account(Kind::Codex, ""), &payload, wanted);
        assert_eq!((codex.body.to_bytes(), codex.encoding), (wire, Some(Encoding::Zstd)));
        let key = prepare(&account(Kind::OpenAi, ""), &payload, wanted);
        assert_eq!(key.body.to_bytes(), payload.document.text().to_bytes());
        assert_eq!(key.encoding, None);
    }

    #[test]
    fn paths() {
        let cases = [
            (
                Kind::Codex,
                "/backend-api/codex",
                Surface::Responses,
                None,
                "/backend-api/codex/responses",
            ),
            (Kind::OpenAi, "/v1", Surface::Chat, None, "/v1/chat/completions"),
            (Kind::Claude, "", Surface::Messages, Some("beta=true"), "/v1/messages?beta=true"),
            (
                Kind::Compatible,
                "/api/v1",
                Surface::CountTokens,
                None,
                "/api/v1/messages/count_tokens",
            ),
        ];
        for (kind, prefix, surface, query, want) in cases {
            assert_eq!(path(&account(kind, prefix), surface, query), want);
        }
    }
}
