//! What a client is told on its socket: the events of its turns, errors, and nothing of an account.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::Response;
use http_body_util::{BodyExt, Collected};
use hyper::body::Frame;
use poolgate_core::account::{Family, Surface};
use poolgate_core::limits::Limits;
use poolgate_core::outcome::{is_policy_block, status_of_event};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::session::Left;
use crate::app::App;
use crate::egress::{Interjected, Slot};
use crate::error::{Dialect, Error};
use crate::gateway::failure::{BROKE, as_the_pools, in_words, is_failure};
use crate::gateway::limits;
use crate::gateway::relay::{Outgoing, Relay};
use crate::gateway::settle::Record;
use crate::json::{Document, Patch};
use crate::keys::ClientKey;
use crate::providers::{ErrorFields, event_kind};
use crate::sse::{Event, Scanner};
use crate::ws::{Said, Socket};

/// A client that takes nothing for so long is given up.
pub const STUCK: Duration = Duration::from_mins(1);
/// After so many events the client is heard, however many more are there.
const IN_A_ROW: usize = 32;
/// What comes over HTTP may end a moment after its last event; then its connection is used again.
const TAIL: Duration = Duration::from_millis(250);

pub const CREATE: &str = "response.create";

const UNSUPPORTED: u16 = 1003;
const MESSAGE_TOO_BIG: u16 = 1009;

/// Binary messages mean nothing here.
pub const TEXT_ONLY: Left = Left::Close(UNSUPPORTED, "text only");

pub const TOO_LARGE: Left = Left::Close(MESSAGE_TOO_BIG, "larger than a message may be");

pub const fn malformed(code: u16) -> Left {
    Left::Close(code, "not a message of the protocol")
}

/// The events of one turn for one client.
pub struct Telling<'a> {
    pub meanwhile: Meanwhile<'a>,
    /// The request's own fault, before any output: relayed as the upstream told it.
    pub is_refused: bool,
}

impl Telling<'_> {
    /// Each event as a message, up to the one that ends the turn, which is always said: a client's
    /// socket stays, so that nothing else tells it of a cut. Whatever is said behind that, like the
    /// `response.failed` behind an `error`, would be taken for the next turn's.
    pub async fn relay(
        &self,
        client: &mut Socket,
        relay: Box<Relay>,
        told: &mut Option<Limits>,
    ) -> Result<(), Left> {
        let mut body = Outgoing::Relay(relay);
        let said = self.events(client, &mut body).await;
        if let Outgoing::Relay(relay) = &mut body {
            *told = relay.told.take().or(told.take());
        }
        if !said? {
            taken(client.put(Bytes::from_static(BROKE))).await?;
        }
        taken(client.flush()).await
    }

    /// Whether one of them ended the turn.
    async fn events(&self, client: &mut Socket, body: &mut Outgoing) -> Result<bool, Left> {
        let mut scanner = Scanner::default();
        let mut has_ended = false;
        let mut in_a_row = 0;
        loop {
            let ready = if in_a_row < IN_A_ROW { body.frame().now_or_never() } else { None };
            let frame = if let Some(frame) = ready {
                in_a_row += 1;
                frame
            } else {
                in_a_row = 0;
                // What has come together, like the held opening, leaves together.
                taken(client.flush()).await?;
                if has_ended {
                    // The next turn may have come already, and is nobody's interruption.
                    timeout(TAIL, body.frame()).await.ok().flatten()
                } else {
                    tokio::select! {
                        frame = body.frame() => frame,
                        left = self.meanwhile.hear(client) => return Err(left),
                    }
                }
            };
            let (is_message, is_own_word) = match body {
                Outgoing::Relay(relay) => (relay.is_in_messages(), relay.is_cutting()),
                _ => (false, false),
            };
            let mut events = Vec::new();
            let keep = |event: Event<'_>| events.push(Bytes::copy_from_slice(event.data));
            let is_over = !matches!(frame, Some(Ok(_)));
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) if is_message => events.push(data),
                Some(Ok(Ok(data))) => scanner.feed(&data, keep),
                // In good order: its last word may lack the empty line behind it.
                None => scanner.rest(keep),
                Some(Ok(Err(_)) | Err(_)) => {}
            }
            for event in events {
                let kind = event_kind(&event);
                // `[DONE]` ends a stream, and is no message.
                if has_ended || kind.is_empty() {
                    continue;
                }
                has_ended = ends_turn(kind);
                let is_theirs = is_failure(kind) && !is_own_word;
                let event = if is_theirs { self.as_ours(event) } else { event };
                taken(client.put(event)).await?;
            }
            if is_over {
                return Ok(has_ended);
            }
        }
    }

    /// Codex takes an upstream's error here for an answer with its status (wire §4).
    /// What is the account's own trouble, like its quota, is nothing that the client should stop for:
    /// behind output, where it is not served elsewhere, it is told as a break.
    fn as_ours(&self, event: Bytes) -> Bytes {
        let broke = || Bytes::from_static(BROKE);
        let fields = ErrorFields::read(&event, self.meanwhile.app.clock.now());
        let fitting = || status_of_event(Family::OpenAi, &fields.code, &fields.kind);
        let status = fields.status.unwrap_or_else(fitting);
        // Nobody else would answer that request either, and the client had better not ask again.
        let is_final = self.is_refused || is_policy_block(&fields.code, &fields.kind);
        if !is_final && matches!(status, 401 | 402 | 403 | 408 | 409 | 429 | 500..) {
            return broke();
        }
        // Its name may not have told what it is.
        let limits = || limits::codex_in_event(self.meanwhile.app, self.meanwhile.key);
        let told = match as_the_pools(&event, limits) {
            Ok(changed) => changed.unwrap_or(event),
            Err(_) => in_words(&event),
        };
        let Ok(document) = Document::parse(told) else { return broke() };
        let mut patch = Patch::default();
        if matches!(status, 401 | 403) {
            for field in ["status", "status_code"] {
                if document.raw(field).is_some() {
                    patch.set(&document, field, "400");
                }
            }
        }
        patch.apply(&document).to_bytes()
    }
}

fn ends_turn(kind: &[u8]) -> bool {
    matches!(kind, b"response.completed" | b"response.failed" | b"response.incomplete" | b"error")
}

/// What a client says while its turn is under way.
pub struct Meanwhile<'a> {
    pub app: &'a Arc<App>,
    pub key: &'a ClientKey,
    pub slot: &'a Slot,
}

impl Meanwhile<'_> {
    /// One turn at a time: another is refused meanwhile. What else the client says is about the turn
    /// under way (`response.interrupt`, `response.steer`), and its upstream's to understand; over HTTP
    /// nobody can be told. Resolves when the client has left, or has to.
    pub async fn hear(&self, client: &mut Socket) -> Left {
        loop {
            let text = match client.said().await {
                None => return Left::Gone,
                Some(Said::Binary) => return TEXT_ONLY,
                Some(Said::TooLarge) => return TOO_LARGE,
                Some(Said::Malformed(code)) => return malformed(code.into()),
                Some(Said::Text(text)) => text,
            };
            let error = if may_begin_a_turn(&text) {
                let error = Error::BadQuestion("a turn is under way on this socket");
                self.record_refusal(text, &error);
                error
            } else {
                match self.slot.interject(text) {
                    Interjected::Queued => {
                        // The turn is polled beside this, and may have been already.
                        tokio::task::yield_now().await;
                        continue;
                    }
                    Interjected::Nowhere => continue,
                    Interjected::Full => {
                        Error::BadQuestion("the upstream does not take what was said before")
                    }
                }
            };
            // Boxed: seldom, and large.
            if let Err(left) = Box::pin(say_error(client, &error)).await {
                return left;
            }
        }
    }

    /// A refused turn has a row like any other.
    fn record_refusal(&self, text: Bytes, error: &Error) {
        let Ok(document) = Document::parse(text) else { return };
        let mut record = record(self.app, self.key, &document);
        note_model(&mut record, &document);
        record.fail(error);
    }
}

/// Looked at as closely as a turn is: one in disguise, with escapes in its name or a second name, would reach
/// the upstream past all that its key may not.
fn may_begin_a_turn(text: &Bytes) -> bool {
    let Ok(document) = Document::parse(text.clone()) else { return true };
    let kind = document.string("type").ok().flatten();
    kind.is_none_or(|kind| kind.is_empty() || kind == CREATE)
}

/// In the row of a turn that is refused before it is read.
pub fn note_model(record: &mut Record, document: &Document) {
    if let Ok(Some(model)) = document.string("model") {
        record.model(&model);
    }
}

pub fn is_warm_up(document: &Document) -> bool {
    matches!(document.boolean("generate"), Ok(Some(false)))
}

/// A warm-up is nobody's request yet: it has no row.
pub fn record(app: &Arc<App>, key: &ClientKey, document: &Document) -> Record {
    if is_warm_up(document) {
        return Record::unrecorded(Arc::clone(app));
    }
    let id = uuid::Uuid::now_v7().simple().to_string();
    Record::new(Arc::clone(app), id, key.id, Surface::Responses)
}

pub async fn say(client: &mut Socket, text: Bytes) -> Result<(), Left> {
    taken(client.say(text)).await
}

/// What is said, by a client that takes it.
async fn taken(said: impl Future<Output = bool>) -> Result<(), Left> {
    match timeout(STUCK, said).await {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(Left::Gone),
    }
}

pub async fn say_error(client: &mut Socket, error: &Error) -> Result<(), Left> {
    say_refusal(client, error.render(Dialect::OpenAi).map(Outgoing::Whole)).await
}

pub async fn say_refusal(client: &mut Socket, response: Response<Outgoing>) -> Result<(), Left> {
    let (head, body) = response.into_parts();
    let body = body.collect().await.map(Collected::to_bytes).unwrap_or_default();
    say(client, error_event(&Response::from_parts(head, body)).to_string().into()).await
}

/// A refusal as Codex reads it on a socket: its status, its error, and the limits in its headers.
fn error_event(response: &Response<Bytes>) -> Value {
    let body: Value = serde_json::from_slice(response.body()).unwrap_or_default();
    let error = body.get("error").cloned().unwrap_or_else(|| {
        json!({"type": "server_error", "code": "upstream_error", "message": "the upstream refused"})
    });
    let status = response.status().as_u16();
    let headers = limits::in_event(response.headers());
    json!({"type": "error", "status": status, "error": error, "headers": headers})
}
