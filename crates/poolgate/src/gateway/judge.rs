//! From an upstream's answer to an outcome. Reads no more of a body than it needs: the first bytes
//! of a good answer, and all of a small bad one.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use poolgate_core::availability::Ask;
use poolgate_core::health::Stop;
use poolgate_core::outcome::{Evidence, Outcome, classify, status_of_event};
use poolgate_core::quota::{Reading, Source};
use poolgate_core::units::Timestamp;
use poolgate_core::usage::TokenUsage;
use serde::de::IgnoredAny;
use tokio::time::{Instant, timeout_at};

use super::attempt::AttemptError;
use super::decoded::decoded;
use super::failure::as_the_pools;
use super::headers::owners;
use super::opening::{Opened, Opening, open};
use super::read::{decode, encoding};
use super::scrub::scrub;
use crate::admission::Permit;
use crate::app::App;
use crate::credentials::CredentialError;
use crate::egress::{Received, SendError};
use crate::error::Error;
use crate::pool::Account;
use crate::providers::{ErrorFields, Tap, active_limit, readings, retry_after};

/// Most of an error body that is read, and relayed.
const ERROR_MAX: usize = 1 << 20;
/// Most of it that is logged, already scrubbed: of the whole, so that no piece of a token is left.
const LOGGED_MAX: usize = 4 << 10;
const ERROR_FOR: Duration = Duration::from_secs(10);
/// A pause of this length in it is its end: another account could have answered, and a client's handshake
/// waits for 15 s.
const ERROR_PAUSE: Duration = Duration::from_secs(3);
/// A stream ends a moment after its error, or stays open with nothing of worth to come.
const REST_FOR: Duration = Duration::from_millis(500);

/// Marks an answer that no upstream gave: it says nothing about the account.
#[derive(Clone, Copy, Debug)]
pub struct Ours;

/// An answer that goes to the client.
#[derive(Debug)]
pub struct Answer {
    pub head: Parts,
    pub opening: Box<Opening>,
    /// It is the upstream's refusal in an event of a stream, and would be this one as an answer.
    pub refused: Option<(Outcome, u16)>,
}

/// A whole answer that reports a failure, as the upstream gave it.
#[derive(Debug)]
pub struct Reply {
    pub head: Parts,
    pub body: Bytes,
    /// The upstream's own words, and not ours in place of a page or of nothing.
    pub is_own: bool,
    /// It tells when the account may be asked again.
    pub says_when: bool,
}

#[derive(Debug)]
pub enum Judged {
    Good(Answer),
    Bad(Box<Bad>),
}

#[derive(Debug)]
pub struct Bad {
    pub outcome: Outcome,
    pub status: Option<u16>,
    pub reply: Option<Reply>,
    /// What a client would be told if nobody else can serve.
    pub error: Error,
    /// Output was made, for so much: it is not asked for again.
    pub spent: Option<TokenUsage>,
}

pub async fn judge(
    app: &App,
    account: &Account,
    ask: Ask<'_>,
    response: Response<Received>,
    create: Permit,
) -> Judged {
    let now = app.clock.now();
    let (mut head, body) = response.into_parts();
    if head.extensions.get::<Ours>().is_none() {
        account.credential.note_told(owners(&head.headers));
        observe_headers(app, account, ask, &head.headers, now);
    }
    if !head.status.is_success() {
        drop(create);
        let bad = Box::pin(judge_failure(app, account, ask, head, body, now)).await;
        return Judged::Bad(Box::new(bad));
    }
    let surface = ask.surface;
    let is_turn = matches!(body, Received::Turn(_));
    let is_stream = is_turn || is_stream(&head.headers);
    let status = Some(head.status.as_u16());
    let bad = |outcome, text: &str| {
        let error = Error::Upstream(text.into());
        Judged::Bad(Box::new(Bad { outcome, status, reply: None, error, spent: None }))
    };
    let tap = if is_turn { Tap::messages(surface, now) } else { Tap::new(surface, is_stream, now) };
    let body = match encoding(&head.headers) {
        Ok(Some(encoding)) if !is_turn => {
            head.headers.remove(header::CONTENT_ENCODING);
            decoded(body, encoding)
        }
        Err(_) if !is_turn => {
            return bad(Outcome::UpstreamError, "its answer has an encoding that nobody asked for");
        }
        _ => body,
    };
    let plain = (!is_stream).then_some(app.limits().stream_idle_timeout);
    let mut opening = Box::new(Opening { held: VecDeque::new(), rest: None, tap, create });
    match open(body, &mut opening, plain).await {
        Opened::Good => {
            if opening.tap.is_event_stream() && !is_stream {
                // A stream under another name, which its client would not read as one.
                let kind = HeaderValue::from_static("text/event-stream");
                head.headers.insert(header::CONTENT_TYPE, kind);
            }
            observe_events(app, account, &std::mem::take(&mut opening.tap.readings));
            Judged::Good(Answer { head, opening, refused: None })
        }
        Opened::Lost => bad(Outcome::Lost, "its answer broke off before it began"),
        Opened::Broke => bad(Outcome::Broke, "its answer broke off"),
        Opened::Garbage => bad(Outcome::UpstreamError, "its answer is not JSON"),
        Opened::Failed => {
            let fields = opening.tap.error.take().unwrap_or_default();
            observe_events(app, account, &std::mem::take(&mut opening.tap.readings));
            let outcome = judge_event(app, account, ask, &fields, now);
            if matches!(outcome, Outcome::RequestFault | Outcome::PolicyBlock) {
                // The client is told in the upstream's own words; nothing of worth follows.
                let refused = Some((outcome, status_of(&fields, ask)));
                opening.tap.error = Some(fields);
                opening.tap.finished = true;
                Box::pin(scrub_opening(&mut opening, account)).await;
                if !opening.tap.is_event_stream() {
                    cut_figures(&mut opening, account, ask, head.status);
                }
                return Judged::Good(Answer { head, opening, refused });
            }
            Judged::Bad(Box::new(refusal_of_event(account, ask, head, &fields, outcome)))
        }
    }
}

fn observe_headers(
    app: &App,
    account: &Account,
    ask: Ask<'_>,
    headers: &HeaderMap,
    now: Timestamp,
) {
    let readings = readings(ask.surface.family(), headers, now);
    app.pool.observe(account, &readings, Source::Answer, now);
}

/// What events inside an answer say about the account's windows.
pub fn observe_events(app: &App, account: &Account, readings: &[Reading]) {
    if !readings.is_empty() {
        app.pool.observe(account, readings, Source::Answer, app.clock.now());
    }
}

/// An error inside a stream, as if it had come with a status of its own.
pub fn refusal_of_event(
    account: &Account,
    ask: Ask<'_>,
    mut head: Parts,
    fields: &ErrorFields,
    outcome: Outcome,
) -> Bad {
    let status = status_of(fields, ask);
    let error = Error::Upstream(scrub_text(&fields.message, account));
    head.status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let body = scrub(&fields.body(ask.surface.family(), head.status), account);
    let body = match as_the_pools(&body, || None) {
        Ok(changed) => changed.unwrap_or(body),
        Err(_) => in_words(fields, account, ask, head.status),
    };
    let is_own = !fields.message.is_empty() || !fields.code.is_empty();
    let says_when = fields.resets_at.is_some() || fields.headers.contains_key(header::RETRY_AFTER);
    let reply = Some(Reply { head, body, is_own, says_when });
    Bad { outcome, status: Some(status), reply, error, spent: None }
}

async fn judge_failure(
    app: &App,
    account: &Account,
    ask: Ask<'_>,
    mut head: Parts,
    body: Received,
    now: Timestamp,
) -> Bad {
    let status = head.status.as_u16();
    let body = readable(&mut head.headers, error_body(body).await).await;
    let fields = ErrorFields::read(&body, now);
    let refusal = Refusal {
        status,
        retry_after: retry_after(&head.headers, now),
        html: has_type(&head.headers, "text/html"),
        limit: active_limit(ask.surface.family(), &head.headers),
    };
    let outcome = classify_fields(app, account, ask, &refusal, &fields, now);
    let text = if fields.message.is_empty() {
        format!("it answered {status}")
    } else {
        scrub_text(&fields.message, account)
    };
    let body = scrub(&body, account);
    log(account, status, &body);
    let told = as_the_pools(&body, || None);
    let is_own = told.is_ok() && body.trim_ascii() != b"{}";
    let body = if let Ok(changed) = told {
        changed.unwrap_or(body)
    } else {
        // A page, or nothing: no client parses it, and nobody should be shown it as ours.
        in_words(&fields, account, ask, head.status)
    };
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let says_when = fields.resets_at.is_some() || head.headers.contains_key(header::RETRY_AFTER);
    let reply = Some(Reply { head, body, is_own, says_when });
    Bad { outcome, status: Some(status), reply, error: Error::Upstream(text), spent: None }
}

/// Empty, if it comes in part: of that nothing is told or logged, since a piece of a token would not be found in
/// it. JSON may be whole though its framing never ends.
async fn error_body(mut body: Received) -> Bytes {
    let until = Instant::now() + ERROR_FOR;
    let mut all = BytesMut::new();
    loop {
        let soon = until.min(Instant::now() + ERROR_PAUSE);
        match timeout_at(soon, body.frame()).await {
            Ok(None) => return all.freeze(),
            Ok(Some(Ok(frame))) if all.len() <= ERROR_MAX => {
                all.extend_from_slice(&frame.into_data().unwrap_or_default());
            }
            _ if serde_json::from_slice::<IgnoredAny>(&all).is_ok() => return all.freeze(),
            _ => return Bytes::new(),
        }
    }
}

/// An error that no rule can be applied to: the words that were found in it, and nothing else.
fn in_words(fields: &ErrorFields, account: &Account, ask: Ask<'_>, status: StatusCode) -> Bytes {
    let ErrorFields { code, kind, message, .. } = fields.clone();
    let message = match message.as_str() {
        "" => format!("the upstream answered {}, and not in JSON", status.as_u16()),
        _ => message,
    };
    let words = ErrorFields { code, kind, message, ..ErrorFields::default() };
    scrub(&words.body(ask.surface.family(), status), account)
}

/// Without the encoding that nobody asked for; empty, if it cannot be undone.
async fn readable(headers: &mut HeaderMap, body: Bytes) -> Bytes {
    match encoding(headers) {
        Ok(None) => body,
        Ok(Some(encoding)) => {
            headers.remove(header::CONTENT_ENCODING);
            decode(&body, encoding, ERROR_MAX).await.unwrap_or_default()
        }
        Err(_) => {
            headers.remove(header::CONTENT_ENCODING);
            Bytes::new()
        }
    }
}

/// A refusal of which nothing follows but a line of the log. Its body has the time that the rest of a
/// stream has: the client waits.
pub async fn log_refusal(account: &Account, refusal: Response<Received>) {
    let status = refusal.status().as_u16();
    let read = Limited::new(refusal.into_body(), ERROR_MAX).collect();
    let read = Box::pin(tokio::time::timeout(REST_FOR, read)).await;
    let body =
        read.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
    log(account, status, &scrub(&body, account));
}

fn log(account: &Account, status: u16, scrubbed: &[u8]) {
    let body = excerpt(scrubbed);
    tracing::info!(account = account.name, status, ?body, "an upstream refused");
}

/// What the head of a refusal says.
struct Refusal {
    status: u16,
    retry_after: Option<Duration>,
    html: bool,
    /// The additional limit that it names as spent.
    limit: Option<String>,
}

fn classify_fields(
    app: &App,
    account: &Account,
    ask: Ask<'_>,
    head: &Refusal,
    fields: &ErrorFields,
    now: Timestamp,
) -> Outcome {
    let resets = app.pool.resets(account, ask, head.limit.as_deref(), now);
    classify(&Evidence {
        family: ask.surface.family(),
        status: head.status,
        code: &fields.code,
        kind: &fields.kind,
        message: &fields.message,
        html: head.html,
        retry_after: head.retry_after,
        resets_at: fields.resets_at,
        spent_until: resets.spent_until,
        family_spent_until: resets.family_spent_until,
        nearest_reset: resets.nearest,
        now,
    })
}

fn status_of(fields: &ErrorFields, ask: Ask<'_>) -> u16 {
    let fitting = || status_of_event(ask.surface.family(), &fields.code, &fields.kind);
    fields.status.unwrap_or_else(fitting)
}

/// On a socket an error event carries the headers that a refusal over HTTP has.
fn judge_event(
    app: &App,
    account: &Account,
    ask: Ask<'_>,
    fields: &ErrorFields,
    now: Timestamp,
) -> Outcome {
    if !fields.headers.is_empty() {
        observe_headers(app, account, ask, &fields.headers, now);
    }
    let head = Refusal {
        status: status_of(fields, ask),
        retry_after: retry_after(&fields.headers, now),
        html: false,
        limit: active_limit(ask.surface.family(), &fields.headers),
    };
    classify_fields(app, account, ask, &head, fields, now)
}

/// An error event after output has begun: nothing to replay, but the account is known better.
pub fn judge_late(app: &App, account: &Account, ask: Ask<'_>, fields: &ErrorFields) -> Outcome {
    judge_event(app, account, ask, fields, app.clock.now())
}

/// No answer at all.
pub fn judge_error(error: &AttemptError) -> Bad {
    let outcome = match error {
        AttemptError::Credential(CredentialError::NeedsLogin(..)) => {
            Outcome::Stopped(Stop::NeedsLogin)
        }
        AttemptError::Credential(CredentialError::Deactivated(_)) => {
            Outcome::Stopped(Stop::Deactivated)
        }
        // A key that was refused, or a file that is gone: there is nothing to renew.
        AttemptError::Credential(CredentialError::Missing(_)) => {
            Outcome::TokenRefused { permanent: false }
        }
        AttemptError::Overload(_) | AttemptError::Credential(CredentialError::Overload(_)) => {
            Outcome::Shed
        }
        // A token endpoint that is away: somebody else can serve meanwhile.
        AttemptError::Credential(_) => Outcome::TokenAway,
        AttemptError::Send(SendError::Connect(error)) => {
            Outcome::ConnectFailed { durable: error.durable }
        }
        AttemptError::Send(SendError::Broke(_) | SendError::Stale(_) | SendError::Timeout) => {
            Outcome::Lost
        }
        AttemptError::Build(_) | AttemptError::ChainLost => Outcome::RequestFault,
    };
    Bad { outcome, status: None, reply: None, error: Error::from(error), spent: None }
}

pub fn is_stream(headers: &HeaderMap) -> bool {
    has_type(headers, "text/event-stream")
}

fn has_type(headers: &HeaderMap, wanted: &str) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.is_some_and(|value| value.trim_start().to_ascii_lowercase().starts_with(wanted))
}

/// The same for a refusal inside a stream, with what is said behind it, which may repeat it. All bytes
/// in one piece: an identifier may be torn between two.
async fn scrub_opening(opening: &mut Opening, account: &Account) {
    let held = &mut opening.held;
    if let Some(mut rest) = opening.rest.take() {
        let mut size: usize = held.iter().map(Bytes::len).sum();
        let until = Instant::now() + REST_FOR;
        while size < ERROR_MAX
            && let Ok(Some(Ok(frame))) = timeout_at(until, rest.frame()).await
        {
            let data = frame.into_data().unwrap_or_default();
            size += data.len();
            held.push_back(data);
        }
    }
    if !opening.tap.is_in_messages() {
        let whole = held.make_contiguous().concat();
        held.clear();
        held.push_back(Bytes::from(whole));
    }
    for piece in held {
        *piece = scrub(piece, account);
    }
}

/// Of a body in one piece; the relay does it for a stream.
fn cut_figures(opening: &mut Opening, account: &Account, ask: Ask<'_>, status: StatusCode) {
    let whole = Bytes::from(opening.held.make_contiguous().concat());
    let told = match (as_the_pools(&whole, || None), &opening.tap.error) {
        (Ok(changed), _) => changed.unwrap_or(whole),
        (Err(_), Some(fields)) => in_words(fields, account, ask, status),
        (Err(_), None) => return,
    };
    opening.held = [told].into();
}

/// Of a scrubbed body, for the log.
fn excerpt(body: &[u8]) -> String {
    let cut = &body[..body.len().min(LOGGED_MAX)];
    String::from_utf8_lossy(cut).into_owned()
}

/// The same for a message, shortened to what fits into ours.
fn scrub_text(message: &str, account: &Account) -> String {
    // Cut afterwards: a piece of a token would not be found.
    let clean = scrub(&Bytes::copy_from_slice(message.as_bytes()), account);
    String::from_utf8_lossy(&clean).chars().take(500).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiplexer_18_4_47_what_is_logged_of_a_refusal_is_bounded() {
        assert_eq!(excerpt(b"{\"error\":\"no\"}"), "{\"error\":\"no\"}");
        let long = "\u{e4}".repeat(LOGGED_MAX);
        assert_eq!(excerpt(long.as_bytes()).chars().count(), LOGGED_MAX / 2);
    }
}
