//! The handshake of a WebSocket: an HTTP request like any other, until it is answered with 101.
//!
//! As Codex CLI 0.169.0 and openai-python 3.54.0 ask (captured 2026-11). No extension is agreed
//! on, whatever is offered.

use std::sync::Arc;

use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION};
use http::header::{HeaderValue, UPGRADE};
use http::{HeaderMap, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::socket::{self, Session};
use super::{Connection, Exchange, Reply, Stage, respond};
use crate::account::Inner;
use crate::body::Playback;
use crate::sim::World;
use crate::{errors, headers};

/// Without it the endpoint speaks HTTP only.
const BETA: &str = "responses_websockets=";

/// Answers the handshake; after a 101 a task serves the WebSocket.
pub fn upgrade(
    exchange: &Exchange<'_>,
    account: &Arc<Inner>,
    mut stage: Stage,
    on: Connection,
    (world, upgraded): (Arc<World>, OnUpgrade),
) -> Response<Playback> {
    if let Some(refusal) = objection(exchange) {
        return stage.play(exchange, refusal, None);
    }
    let seat = account.sockets.seat(world.next_socket());
    let record = stage.record.take();
    if let Some(record) = &record {
        record.socket(seat.number());
        record.status(StatusCode::SWITCHING_PROTOCOLS.as_u16());
    }
    let head = exchange.head.clone();
    let dialect = exchange.route.dialect();
    let session = Session::new(Arc::clone(&world), Arc::clone(account), (head, dialect), seat);
    let task = socket::serve(session.recorded(record), upgraded, on);
    world.tasks.spawn(task);

    let mut response = Response::new(Playback::new(Vec::new(), None, None, stage.ending));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = greeting(exchange, account);
    response
}

fn greeting(exchange: &Exchange<'_>, account: &Inner) -> HeaderMap {
    let asked = &exchange.head.headers;
    let mut headers = HeaderMap::with_capacity(32);
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Some(key) = asked.get(SEC_WEBSOCKET_KEY) {
        let proof = derive_accept_key(key.as_bytes());
        headers::put(&mut headers, SEC_WEBSOCKET_ACCEPT.as_str(), &proof);
    }
    let (plan, outcome) = respond::pay(exchange, account, false);
    let (Ok(readings) | Err(readings)) = outcome;
    headers::account(&mut headers, account, &plan, &readings);
    // The only place in which a handshake names a model.
    let hint = asked.get("x-codex-routing-hint");
    let model = hint.and_then(|hint| hint.to_str().ok()?.strip_prefix("model="));
    if let Some(model) = model {
        headers::put(&mut headers, "openai-model", model);
    }
    headers::edge(&mut headers, exchange.route.dialect(), &exchange.id);
    headers
}

/// Why there is to be no WebSocket.
fn objection(exchange: &Exchange<'_>) -> Option<Reply> {
    let asked = &exchange.head.headers;
    let is = |name: &http::HeaderName, wanted: &str| {
        asked
            .get(name)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(wanted.as_bytes()))
    };
    if !is(&UPGRADE, "websocket") {
        return Some(errors::upgrade_required());
    }
    let refuse = |message| {
        let (dialect, code) = (exchange.route.dialect(), "invalid_websocket_request");
        errors::invalid(dialect, &exchange.id, code, message)
    };
    let mut betas = asked.get_all("openai-beta").iter().filter_map(|line| line.to_str().ok());
    if !betas.any(|line| line.split(',').any(|beta| beta.trim().starts_with(BETA))) {
        return Some(refuse(
            "The responses_websockets beta is required for WebSocket connections.",
        ));
    }
    let is_complete = asked.contains_key(SEC_WEBSOCKET_KEY) && is(&SEC_WEBSOCKET_VERSION, "13");
    (!is_complete).then(|| refuse("Not a WebSocket handshake."))
}
