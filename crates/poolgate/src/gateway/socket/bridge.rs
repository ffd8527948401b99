//! Turns at an upstream that has no sockets: each is a request over HTTP, whose events come back as
//! those of a socket do.
//!
//! What only a socket holds is not there: a turn that goes on from another is asked for in full,
//! unless the upstream keeps responses itself. A warm-up has nothing to warm and is answered here.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde_json::json;

use crate::admission::Permit;
use crate::app::App;
use crate::egress::Received;
use crate::gateway::Call;
use crate::gateway::attempt::{self, AttemptError, Target};
use crate::gateway::judge::Ours;
use crate::gateway::read::{Payload, Purpose};
use crate::json::{Document, Patch};

/// The answer to a handshake where there are no sockets.
pub fn lacks_sockets(status: StatusCode) -> bool {
    matches!(status.as_u16(), 404 | 405 | 426 | 501)
}

pub async fn send(
    app: &App,
    call: &Call,
    target: &Target<'_>,
) -> Result<(Response<Received>, Permit), AttemptError> {
    if call.head.purpose == Purpose::WarmUp {
        return Ok((warmed_up(&call.head.model), Permit::default()));
    }
    let payload = without_frame(target.payload).ok_or(AttemptError::ChainLost)?;
    let target = Target { payload: &payload, ..*target };
    let sent = attempt::send_over_http(app, call, &target).await?;
    Ok((sent.response, sent.create))
}

/// The message as a request's body.
fn without_frame(payload: &Payload) -> Option<Payload> {
    let document = &payload.document;
    let mut patch = Patch::default();
    for field in ["type", "generate"] {
        patch.remove(document, field);
    }
    patch.set(document, "stream", "true");
    let text = patch.apply(document).to_bytes();
    let document = Document::parse(text.clone()).ok()?;
    Some(Payload { wire: text.into(), encoding: None, document })
}

/// As an upstream with sockets answers it; no later turn can go on from it.
fn warmed_up(model: &str) -> Response<Received> {
    let id = format!("resp_{}", uuid::Uuid::now_v7().simple());
    let event = |kind: &str, status: &str, number: u8| {
        let usage = (status == "completed")
            .then(|| json!({"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}));
        let response = json!({"id": id, "object": "response", "status": status, "model": model,
            "output": [], "error": null, "usage": usage});
        let event = json!({"type": kind, "response": response, "sequence_number": number});
        format!("data: {event}\n\n")
    };
    let events =
        [event("response.created", "in_progress", 0), event("response.completed", "completed", 1)];
    let mut response = Response::new(Received::Whole(Full::new(Bytes::from(events.concat()))));
    let stream = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(CONTENT_TYPE, stream);
    response.extensions_mut().insert(Ours);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_becomes_a_request() {
        let text = Bytes::from_static(
            br#"{"type":"response.create", "model":"m","input":[ ],"generate":true}"#,
        );
        let document = Document::parse(text.clone()).unwrap();
        let payload = without_frame(&Payload { wire: text.into(), encoding: None, document });
        assert_eq!(payload.unwrap().wire.to_bytes(), r#"{"stream":true, "model":"m","input":[ ]}"#);
    }
}
