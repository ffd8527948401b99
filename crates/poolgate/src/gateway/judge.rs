//! From an upstream's answer to an outcome. Reads no more of a body than it needs: the first bytes
//! of a good answer, and all of a small bad one.

use std::time::Duration;

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, Response, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use poolgate_core::account::{Family, Surface};
use poolgate_core::health::Stop;
use poolgate_core::outcome::{Evidence, Outcome, classify, status_of_event};
use poolgate_core::quota::Source;
use poolgate_core::units::Timestamp;

use super::attempt::AttemptError;
use super::opening::{Opened, Opening, open};
use crate::app::App;
use crate::credentials::CredentialError;
use crate::egress::SendError;
use crate::error::Error;
use crate::pool::Account;
use crate::providers::{ErrorFields, Tap, readings};

/// Most of an error body that is read, and relayed.
const ERROR_MAX: usize = 1 << 20;
const ERROR_FOR: Duration = Duration::from_secs(10);

/// An answer that goes to the client.
#[derive(Debug)]
pub struct Answer {
    pub head: Parts,
    pub opening: Opening,
}

/// A whole answer that reports a failure, as the upstream gave it.
#[derive(Debug)]
pub struct Reply {
    pub head: Parts,
    pub body: Bytes,
}

#[derive(Debug)]
pub enum Judged {
    Good(Answer),
    Bad(Bad),
}

#[derive(Debug)]
pub struct Bad {
    pub outcome: Outcome,
    pub status: Option<u16>,
    pub reply: Option<Reply>,
    /// What a client would be told if nobody else can serve.
    pub error: Error,
}

pub async fn judge(
    app: &App,
    account: &Account,
    surface: Surface,
    response: Response<Incoming>,
) -> Judged {
    let now = app.clock.now();
    let (head, body) = response.into_parts();
    app.pool.observe(
        account.id,
        &readings(surface.family(), &head.headers, now),
        Source::Answer,
        now,
    );
    if head.status.is_success() {
        judge_success(app, account, surface, head, body, now).await
    } else {
        Judged::Bad(judge_failure(app, account, surface, head, body, now).await)
    }
}

async fn judge_success(
    app: &App,
    account: &Account,
    surface: Surface,
    head: Parts,
    body: Incoming,
    now: Timestamp,
) -> Judged {
    let is_stream = has_type(&head.headers, "text/event-stream");
    let bad = |outcome, text: &str| {
        let status = Some(head.status.as_u16());
        Judged::Bad(Bad { outcome, status, reply: None, error: Error::Upstream(text.into()) })
    };
    let is_encoded = head.headers.get(header::CONTENT_ENCODING).is_some_and(|v| v != "identity");
    let tap =
        if is_encoded { Tap::opaque(surface, now) } else { Tap::new(surface, is_stream, now) };
    match open(body, tap, !is_stream && !is_encoded).await {
        Opened::Good(opening) => Judged::Good(Answer { head, opening }),
        Opened::Lost => bad(Outcome::Lost, "its answer broke off before it began"),
        Opened::Garbage => bad(Outcome::UpstreamError, "its answer is not JSON"),
        Opened::Failed(fields) => {
            let family = surface.family();
            let status = fields
                .status
                .unwrap_or_else(|| status_of_event(family, &fields.code, &fields.kind));
            let outcome = classify_fields(app, account, family, status, &fields, None, false, now);
            let error = Error::Upstream(scrub_text(&fields.message, account));
            Judged::Bad(Bad { outcome, status: Some(status), reply: None, error })
        }
    }
}

async fn judge_failure(
    app: &App,
    account: &Account,
    surface: Surface,
    head: Parts,
    body: Incoming,
    now: Timestamp,
) -> Bad {
    let status = head.status.as_u16();
    let read = tokio::time::timeout(ERROR_FOR, Limited::new(body, ERROR_MAX).collect()).await;
    let body =
        read.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let html = has_type(&head.headers, "text/html");
    let fields = ErrorFields::read(&body, now);
    let wait = retry_after(&head.headers, now);
    let family = surface.family();
    let outcome = classify_fields(app, account, family, status, &fields, wait, html, now);
    let text = if fields.message.is_empty() {
        format!("it answered {status}")
    } else {
        scrub_text(&fields.message, account)
    };
    let reply = Some(Reply { body: scrub(&body, account), head });
    Bad { outcome, status: Some(status), reply, error: Error::Upstream(text) }
}

#[expect(clippy::too_many_arguments, reason = "the evidence, gathered in one place")]
fn classify_fields(
    app: &App,
    account: &Account,
    family: Family,
    status: u16,
    fields: &ErrorFields,
    retry_after: Option<Duration>,
    html: bool,
    now: Timestamp,
) -> Outcome {
    let resets = app.pool.resets(account.id, now);
    classify(&Evidence {
        family,
        status,
        code: &fields.code,
        kind: &fields.kind,
        message: &fields.message,
        html,
        retry_after,
        resets_at: fields.resets_at,
        spent_until: resets.spent_until,
        family_spent_until: resets.family_spent_until,
        nearest_reset: resets.nearest,
        now,
    })
}

/// An error event after output has begun: nothing to replay, but the account is known better.
pub fn judge_late(app: &App, account: &Account, surface: Surface, fields: &ErrorFields) -> Outcome {
    let now = app.clock.now();
    let family = surface.family();
    let status =
        fields.status.unwrap_or_else(|| status_of_event(family, &fields.code, &fields.kind));
    classify_fields(app, account, family, status, fields, None, false, now)
}

/// No answer at all.
pub fn judge_error(error: &AttemptError) -> Bad {
    let outcome = match error {
        AttemptError::Credential(CredentialError::NeedsLogin(_)) => {
            Outcome::Stopped(Stop::NeedsLogin)
        }
        // A key that was refused, or a file that is gone: there is nothing to renew.
        AttemptError::Credential(CredentialError::Missing(_)) => {
            Outcome::TokenRefused { permanent: false }
        }
        // A token endpoint that is away: somebody else can serve meanwhile.
        AttemptError::Credential(_) | AttemptError::Send(SendError::Connect(_)) => {
            Outcome::ConnectFailed
        }
        AttemptError::Send(SendError::Broke(_) | SendError::Timeout) => Outcome::Lost,
        AttemptError::Build(_) => Outcome::RequestFault,
    };
    Bad { outcome, status: None, reply: None, error: Error::from(error) }
}

fn has_type(headers: &HeaderMap, wanted: &str) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.is_some_and(|value| value.trim_start().to_ascii_lowercase().starts_with(wanted))
}

/// Seconds, or an HTTP date.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<f64>() {
        return (seconds > 0.0).then(|| Duration::from_secs_f64(seconds.min(8.0 * 86_400.0)));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(now.until(Timestamp(date.as_millisecond()))).filter(|wait| !wait.is_zero())
}

/// Cuts the account's own identifiers out of what a client may see.
fn scrub(body: &Bytes, account: &Account) -> Bytes {
    let secrets = account.credential.identifiers();
    let found = |secret: &String| memchr::memmem::find(body, secret.as_bytes()).is_some();
    if !secrets.iter().any(found) {
        return body.clone();
    }
    let text = String::from_utf8_lossy(body).into_owned();
    Bytes::from(secrets.iter().fold(text, |text, secret| text.replace(secret, "[removed]")))
}

/// The same for a message, shortened to what fits into ours.
fn scrub_text(message: &str, account: &Account) -> String {
    let short: String = message.chars().take(500).collect();
    String::from_utf8_lossy(&scrub(&Bytes::from(short), account)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_retry_after_in_both_forms() {
        let now = Timestamp(1_795_300_000_000);
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(read("20"), Some(Duration::from_secs(20)));
        assert_eq!(read("1.5"), Some(Duration::from_millis(1500)));
        assert_eq!(read("Sat, 21 Nov 2026 22:27:40 GMT"), Some(Duration::from_mins(1)));
        for nonsense in ["0", "-3", "soon", "NaN", "Sat, 21 Nov 2020 22:27:40 GMT"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }
}
