//! Carries out a scripted fault.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::{Exchange, Pace, Reply, Stage, respond, wait};
use crate::account::Inner;
use crate::answer::{Content, Events, Role};
use crate::body::{Abandoned, Playback};
use crate::fault::{Fault, Garbage, Phase};
use crate::journal::End;
use crate::{errors, headers};

/// Neither an event nor a line of one.
pub const JUNK: &str = "<html>\x00 junk: {\"type\": \n\ndata: {broken\n\n";

pub async fn misbehave(
    exchange: &Exchange<'_>,
    account: &Arc<Inner>,
    fault: Fault,
    mut stage: Stage,
) -> Result<Response<Playback>, Abandoned> {
    match &fault {
        // Ends when the client goes, which drops this.
        Fault::Stall { phase: Phase::Head } => std::future::pending().await,
        Fault::CloseBeforeHead => Err(stage.abandon()),
        Fault::Garbage { kind: Garbage::Socket } => {
            stage.ending.with_garbage();
            Err(stage.abandon())
        }
        _ => {
            if let Some(reply) = scripted(exchange, account, &fault) {
                return Ok(stage.play(exchange, reply, None));
            }
            let charges = matches!(fault, Fault::SlowDrip { .. });
            let reply = respond::respond(exchange, Some(account), charges);
            wait(reply.pace.first).await;
            let is_json = matches!(reply.content, Content::Json(_));
            if is_json && is_error_event(&fault) {
                let reply = errors::server_error(exchange.route.dialect(), &exchange.id, 500);
                return Ok(stage.play(exchange, reply, None));
            }
            Ok(stage.play(exchange, reply, Some(&fault)))
        }
    }
}

impl Stage {
    fn abandon(&mut self) -> Abandoned {
        if let Some(record) = &mut self.record {
            record.ends(End::Fault);
        }
        Abandoned
    }
}

fn is_error_event(fault: &Fault) -> bool {
    matches!(fault, Fault::ErrorEventBeforeOutput { .. } | Fault::ErrorEventAfterOutput { .. })
}

/// The answer of a fault that is a whole answer.
pub fn scripted(exchange: &Exchange<'_>, account: &Inner, fault: &Fault) -> Option<Reply> {
    let (dialect, id) = (exchange.route.dialect(), &exchange.id);
    Some(match fault {
        Fault::Status { status, headers, body } => verbatim(*status, headers, body),
        Fault::UsageLimit { resets_in_s } => limit(exchange, account, *resets_in_s),
        Fault::RateLimited { retry_after_s } => errors::rate_limited(dialect, id, *retry_after_s),
        Fault::Forbidden => errors::forbidden(dialect, id),
        Fault::Unauthorized => errors::unauthorized(dialect, id, true),
        Fault::Overloaded => errors::overloaded(dialect, id),
        Fault::ServerError { status } => errors::server_error(dialect, id, *status),
        Fault::Garbage { kind: Garbage::Events } => junk(),
        _ => return None,
    })
}

fn limit(exchange: &Exchange<'_>, account: &Inner, resets_in_s: Option<u64>) -> Reply {
    let now = exchange.world.clock.now();
    let (plan, mut readings) = {
        let mut state = account.state.lock();
        (state.plan.clone(), state.quota.readings(now))
    };
    errors::spend(&mut readings, now, resets_in_s);
    respond::usage_limit(exchange, account, &plan, &readings)
}

pub fn verbatim(status: u16, lines: &[(String, String)], body: &str) -> Reply {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut headers = HeaderMap::new();
    headers::content_type(&mut headers, false);
    for (name, value) in lines {
        // A line that HTTP does not allow is left out.
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            headers.insert(name, value);
        }
    }
    let content = Content::Json(body.to_owned().into());
    Reply { status, headers, content, pace: Pace::default() }
}

fn junk() -> Reply {
    let mut headers = HeaderMap::new();
    headers::content_type(&mut headers, true);
    let mut events = Events::with_capacity(JUNK.len(), 1);
    events.push(Role::Structure, |to| to.push_str(JUNK));
    let content = Content::Events(events);
    Reply { status: StatusCode::OK, headers, content, pace: Pace::default() }
}
