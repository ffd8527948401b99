//! The request body: bounded, decoded, and peeked at.
//!
//! What arrives is kept as it came, so that an untouched body can be forwarded untouched; fields are
//! read from the decoded text. Nothing of a body that breaks a rule reaches an upstream.

use std::borrow::Cow;
use std::io;
use std::sync::LazyLock;
use std::time::Duration;

use async_compression::tokio::bufread::{DeflateDecoder, GzipDecoder, ZlibDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use memchr::memmem::Finder;
use poolgate_core::account::Surface;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::Instant;

use super::headers::name;
use crate::config::Limits;
use crate::error::Error;
use crate::json::{Document, Invalid, Scan, Text, WrongType};
use crate::pool::SessionKey;
use crate::secret::sha256;

/// Bytes per second that a body must come at, behind which it may be by the time it may pause.
const BODY_RATE: usize = 1 << 10;
const RATIO_MAX: usize = 100;
/// How long a refused client may go on sending, and how many bytes.
const DISCARD_FOR: Duration = Duration::from_secs(2);
const DISCARD_MAX: usize = 64 << 10;
/// Below this a high ratio is harmless, and common: a prompt of blanks compresses well.
const RATIO_FROM: usize = 1 << 20;
/// Parsing more than this at once would hold up other requests of the thread.
const PARSE_INLINE: usize = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Gzip,
    Deflate,
    Zstd,
}

#[derive(Clone, Debug)]
pub struct Payload {
    /// As the client sent it.
    pub wire: Text,
    pub encoding: Option<Encoding>,
    pub document: Document,
}

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

impl Encoding {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Zstd => "zstd",
        }
    }
}

pub async fn read(
    headers: &HeaderMap,
    body: &mut Incoming,
    limits: &Limits,
) -> Result<Payload, Error> {
    check_content_type(headers)?;
    let Some(encoding) = encoding(headers)? else {
        // Scanned as it arrives; a body that breaks a rule is refused before its end.
        let mut scan = Scan::default();
        let wire = collect(body, limits, |part| scan.feed(part)).await?;
        let document = Document::scanned(wire.clone(), scan)?;
        return Ok(Payload { wire, encoding: None, document });
    };
    let wire = collect(body, limits, |_| Ok(())).await?;
    let text = decode(&wire.to_bytes(), encoding, limits.decoded_max).await?;
    let document = if text.len() > PARSE_INLINE {
        let parsed = tokio::task::spawn_blocking(move || Document::parse(text)).await;
        parsed.map_err(|_| Error::Internal)??
    } else {
        Document::parse(text)?
    };
    Ok(Payload { wire, encoding: Some(encoding), document })
}

/// Absent is taken for JSON; clients that send something else say so.
fn check_content_type(headers: &HeaderMap) -> Result<(), Error> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        Ok(())
    } else {
        Err(Error::WrongContentType)
    }
}

pub fn encoding(headers: &HeaderMap) -> Result<Option<Encoding>, Error> {
    let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Error::WrongEncoding);
    }
    match value.to_str().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(None),
        "gzip" | "x-gzip" => Ok(Some(Encoding::Gzip)),
        "deflate" => Ok(Some(Encoding::Deflate)),
        "zstd" => Ok(Some(Encoding::Zstd)),
        _ => Err(Error::WrongEncoding),
    }
}

/// Reads what a refused client still sends, for a moment: closing on it would reset the connection,
/// and the client would see that instead of the reason.
/// False: it goes on.
pub async fn discard(body: &mut Incoming) -> bool {
    let read = async {
        let mut took = 0;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            took += frame.data_ref().map_or(0, Bytes::len);
            if took > DISCARD_MAX {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(DISCARD_FOR, read).await.unwrap_or(false)
}

async fn collect(
    body: &mut Incoming,
    limits: &Limits,
    mut check: impl FnMut(&[u8]) -> Result<(), Invalid>,
) -> Result<Text, Error> {
    let limit = limits.body_max;
    let too_large = || Error::TooLarge { limit, decoded: false };
    if usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX) > limit {
        return Err(too_large());
    }
    let mut text = Text::default();
    let began = Instant::now();
    loop {
        let frame = if let Some(frame) = body.frame().now_or_never() {
            frame
        } else {
            let patience = patience(limits, began.elapsed(), text.len());
            let frame = tokio::time::timeout(patience, body.frame()).await;
            frame.map_err(|_| Error::BodyTimeout)?
        };
        let Some(frame) = frame else { return Ok(text) };
        let Ok(part) = frame.map_err(|_| Error::BodyCut)?.into_data() else { continue };
        if text.len() + part.len() > limit {
            return Err(too_large());
        }
        check(&part)?;
        text.push(part);
    }
}

/// How long the next part of a body may take.
fn patience(limits: &Limits, elapsed: Duration, arrived: usize) -> Duration {
    let whole = limits.body_timeout.saturating_sub(elapsed);
    let earned = Duration::from_secs((arrived / BODY_RATE) as u64) + limits.body_idle_timeout;
    limits.body_idle_timeout.min(whole).min(earned.saturating_sub(elapsed))
}

/// 8 MiB, which every decoder should support and no encoder should exceed (RFC 8878, 3.1.1.1.2): a frame
/// may ask for any amount of memory before its first byte.
pub const ZSTD_WINDOW_LOG: u32 = 23;

pub async fn decode(wire: &Bytes, encoding: Encoding, limit: usize) -> Result<Bytes, Error> {
    let length = wire.len();
    let input: &[u8] = wire;
    // The upstream reads all of it, however many members it has, and so do we.
    macro_rules! drain_members {
        ($decoder:expr) => {{
            let mut decoder = $decoder;
            decoder.multiple_members(true);
            drain(decoder, length, limit, encoding).await
        }};
    }
    match encoding {
        Encoding::Gzip => drain_members!(GzipDecoder::new(input)),
        Encoding::Zstd => {
            let window = DParameter::window_log_max(ZSTD_WINDOW_LOG);
            drain_members!(ZstdDecoder::with_params(input, &[window]))
        }
        // RFC 9110 means zlib by "deflate"; some clients send the bare format.
        Encoding::Deflate if is_zlib(input) => drain_members!(ZlibDecoder::new(input)),
        Encoding::Deflate => drain_members!(DeflateDecoder::new(input)),
    }
}

fn is_zlib(input: &[u8]) -> bool {
    matches!(input, [cmf, flg, ..] if cmf & 0x0f == 8 && (u16::from(*cmf) << 8 | u16::from(*flg)) % 31 == 0)
}

async fn drain(
    mut decoder: impl AsyncRead + Unpin,
    encoded: usize,
    limit: usize,
    encoding: Encoding,
) -> Result<Bytes, Error> {
    let mut out = BytesMut::with_capacity(encoded.saturating_mul(4).min(limit).min(1 << 20));
    loop {
        let read: io::Result<usize> = decoder.read_buf(&mut out).await;
        match read {
            Ok(0) => return Ok(out.freeze()),
            Ok(_) if out.len() > limit => {
                return Err(Error::TooLarge { limit, decoded: true });
            }
            Ok(_) if out.len() > RATIO_FROM && out.len() / encoded.max(1) > RATIO_MAX => {
                return Err(Error::Bomb);
            }
            Ok(_) => {}
            Err(_) => return Err(Error::BadEncoding(encoding.name())),
        }
    }
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
    let name = session_by(surface, headers).map(Cow::Borrowed);
    let name = name.or_else(|| session_in(surface, document));
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

/// The turn that an earlier answer named.
pub fn turn_of(headers: &HeaderMap, key_id: i64) -> Option<SessionKey> {
    headers.get(&name::TURN_STATE)?.to_str().ok().map(|turn| scoped(key_id, turn))
}

/// The same in a socket's message, which outlives the headers of its handshake.
pub fn turn_in(document: &Document, key_id: i64) -> Result<Option<SessionKey>, Invalid> {
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
pub fn session_of(headers: &HeaderMap, key_id: i64) -> Option<SessionKey> {
    session_by(Surface::Responses, headers).map(|name| scoped(key_id, name))
}

/// What headers call it. First hit wins, here and in the body after them (docs/providers.md, "Session
/// names"). `None` from both: the request stands alone.
fn session_by(surface: Surface, headers: &HeaderMap) -> Option<&str> {
    let names = match surface {
        Surface::Responses | Surface::Compact | Surface::Chat => name::SESSION.as_slice(),
        Surface::Messages | Surface::CountTokens => std::slice::from_ref(&name::CLAUDE_SESSION),
    };
    let header = |name| headers.get(name)?.to_str().ok().filter(|value| !value.is_empty());
    names.iter().find_map(header)
}

/// What the body calls it.
pub fn session_in(surface: Surface, document: &Document) -> Option<Cow<'_, str>> {
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
            let found = session_by(surface, &headers).map(Cow::Borrowed);
            let found = found.or_else(|| session_in(surface, &body));
            assert_eq!(found.as_deref(), want, "{name}");
        }
    }

    #[test]
    fn a_body_may_pause_but_not_trickle() {
        let limits = Limits::default();
        let second = Duration::from_secs(1);
        for (elapsed, arrived, want) in [
            (0, 0, 15 * second),
            (10, 0, 5 * second),
            (60, 60, Duration::ZERO),
            (60, 50 << 10, 5 * second),
            (60, 1 << 20, 15 * second),
            (290, 1 << 20, 10 * second),
            (301, 60 << 20, Duration::ZERO),
        ] {
            let got = patience(&limits, Duration::from_secs(elapsed), arrived);
            assert_eq!(got, want, "{arrived} bytes after {elapsed} s");
        }
    }

    #[test]
    fn sessions_of_two_keys_never_meet() {
        assert_ne!(scoped(1, "s"), scoped(2, "s"));
        assert_eq!(scoped(1, "s"), scoped(1, "s"));
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

    #[tokio::test]
    async fn decodes_within_bounds() {
        use async_compression::tokio::write::{GzipEncoder, ZlibEncoder, ZstdEncoder};
        use tokio::io::AsyncWriteExt;
        let text = br#"{"model":"m"}"#;
        let mut gzip = GzipEncoder::new(Vec::new());
        gzip.write_all(text).await.unwrap();
        gzip.shutdown().await.unwrap();
        let mut zlib = ZlibEncoder::new(Vec::new());
        zlib.write_all(text).await.unwrap();
        zlib.shutdown().await.unwrap();
        let mut bomb = ZstdEncoder::new(Vec::new());
        bomb.write_all(&vec![b' '; 8 << 20]).await.unwrap();
        bomb.shutdown().await.unwrap();
        let run = |bytes: Vec<u8>, encoding| async move {
            decode(&bytes.into(), encoding, 64 << 20).await
        };
        assert_eq!(run(gzip.into_inner(), Encoding::Gzip).await.unwrap(), text.as_slice());
        assert_eq!(run(zlib.into_inner(), Encoding::Deflate).await.unwrap(), text.as_slice());
        let bomb = bomb.into_inner();
        assert!(matches!(run(bomb.clone(), Encoding::Zstd).await, Err(Error::Bomb)));
        let small = decode(&bomb.into(), Encoding::Zstd, 1000).await;
        assert!(matches!(small, Err(Error::TooLarge { decoded: true, .. })));
        assert!(matches!(
            run(b"junk".to_vec(), Encoding::Zstd).await,
            Err(Error::BadEncoding("zstd"))
        ));
    }

    /// RFC 8878: a window of so many bits, no size, and one raw block.
    #[tokio::test]
    async fn a_frame_of_zstd_has_no_window_above_8_mib() {
        let text = br#"{"model":"m"}"#;
        for (log, good) in [(20_u8, true), (23, true), (24, false), (31, false)] {
            let head = [0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3];
            let block = [(13 << 3) | 1, 0, 0];
            let frame = [&head[..], &block, text].concat();
            let decoded = decode(&frame.into(), Encoding::Zstd, 1000).await;
            match decoded {
                Ok(decoded) => assert!(good && decoded == text.as_slice(), "{log}"),
                Err(error) => assert!(!good && error.parts().0 == 400, "{log}: {error}"),
            }
        }
    }
}
