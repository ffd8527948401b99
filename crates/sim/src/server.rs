//! The life of one request: read it, name the caller, answer or misbehave, play the answer.

mod admit;
mod misbehave;
mod oauth;
mod respond;
mod script;
mod signin;
mod socket;
mod upgrade;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;

use crate::answer::{Content, Gap};
use crate::body::{Abandoned, Playback};
use crate::headers;
use crate::journal::{Asked, Record};
use crate::request::{Undecodable, decode};
use crate::route::Route;
use crate::sim::World;
use crate::wire::Ending;

/// An answer before it is played.
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub content: Content,
    pub pace: Pace,
}

/// How slowly an answer is to come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Before the response head.
    pub first: Duration,
    pub gap: Gap,
}

/// One request, read.
struct Exchange<'a> {
    world: &'a World,
    head: &'a Parts,
    body: &'a Bytes,
    /// Whether the body's content encoding could be undone.
    is_readable: bool,
    route: Route,
    /// As it appears in headers and in Anthropic's errors.
    id: String,
}

/// The connection on which a request came.
#[derive(Clone)]
pub struct Connection {
    pub ending: Arc<Ending>,
    /// Its listener is closed.
    pub stop: CancellationToken,
}

/// Where an answer is played.
struct Stage {
    ending: Arc<Ending>,
    /// `None`: the journal is off.
    record: Option<Record>,
}

/// Answers one request.
///
/// # Errors
/// The connection is to be closed without an answer.
pub async fn serve(
    world: Arc<World>,
    on: Connection,
    mut request: Request<Incoming>,
) -> Result<Response<Playback>, Abandoned> {
    let upgraded = hyper::upgrade::on(&mut request);
    let (head, body) = request.into_parts();
    let raw = body.collect().await.map_err(|_| Abandoned)?.to_bytes();
    let (body, is_readable) = match decode(&head.headers, raw.clone()).await {
        Ok(body) => (body, true),
        Err(Undecodable) => (raw, false),
    };
    let route = Route::of(&head.method, head.uri.path(), &head.headers);
    let id = world.next_request_id();
    let exchange = Exchange { world: &world, head: &head, body: &body, is_readable, route, id };

    let (account, refusal) = admit::admit(&exchange);
    let name = account.as_ref().map(|account| account.name());
    let record =
        world.journal.open(&Asked { account: name, head: &head, body: &body, turn_of: None });
    let stage = Stage { ending: Arc::clone(&on.ending), record };
    if let Some(refusal) = refusal {
        return Ok(stage.play(&exchange, refusal, None));
    }
    let call = route.call(head.uri.path());
    let fault = account.as_ref().and_then(|account| account.state.lock().faults.take(call));
    let is_upgrade = matches!(route, Route::Upgrade(_));
    // What only a stream can do wrong, a handshake does right.
    let fault = fault.filter(|fault| !is_upgrade || fault.is_of_heads());
    if let (Some(fault), Some(account)) = (fault, &account) {
        return misbehave::misbehave(&exchange, account, fault, stage).await;
    }
    if let (true, Some(account)) = (is_upgrade, &account) {
        return Ok(upgrade::upgrade(&exchange, account, stage, on, (Arc::clone(&world), upgraded)));
    }
    let reply = respond::respond(&exchange, account.as_ref(), true);
    wait(reply.pace.first).await;
    Ok(stage.play(&exchange, reply, None))
}

async fn wait(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

impl Stage {
    fn play(
        self,
        exchange: &Exchange<'_>,
        mut reply: Reply,
        fault: Option<&crate::fault::Fault>,
    ) -> Response<Playback> {
        headers::edge(&mut reply.headers, exchange.route.dialect(), &exchange.id);
        if let Some(record) = &self.record {
            record.status(reply.status.as_u16());
        }
        let (steps, length) = script::steps(reply.content, reply.pace.gap, fault, exchange);
        let mut response = Response::new(Playback::new(steps, length, self.record, self.ending));
        *response.status_mut() = reply.status;
        *response.headers_mut() = reply.headers;
        response
    }
}
