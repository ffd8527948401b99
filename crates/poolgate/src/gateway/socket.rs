//! WebSocket turns: a client's socket, and one turn after the other on it.
//!
//! Each turn is a request like any other and takes the same steps; only its attempt goes over a
//! socket of the account (`egress::sockets`), which waits in a slot for the next turn. The client's
//! socket outlives all of them. A turn that names the response before it can be served where that
//! was made, and nowhere else: when that socket is gone, the client is told so and sends all of it.
//!
//! The client is upgraded only after an account has been chosen and has opened its own socket, so
//! that a refusal is a plain HTTP answer with its true status.

pub mod bridge;
mod saying;
mod session;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_TYPE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::Full;
use hyper::upgrade::OnUpgrade;
use poolgate_core::account::{AccountId, Surface};
use poolgate_core::usage::TokenUsage;
use tokio::time::Instant;

use super::admit::{self, Way};
use super::attempt::{AttemptError, Target, authorize};
use super::authenticate::Caller;
use super::dispatch::{Dispatched, dispatch};
use super::headers::name;
use super::names::{socket_session, turn_header};
use super::peek::{Head, Purpose};
use super::prepare::Wanted;
use super::read::Payload;
use super::relay::Outgoing;
use super::route::{Contract, Endpoint};
use super::settle::Record;
use super::{
    Call, authenticate, client_status, headers, judge, limits, prepare, remember_turn, stage,
};
use crate::admission::{Bound, Permit};
use crate::app::App;
use crate::config::Upstream;
use crate::egress::{Leg, NotBegun, Received, SendError, Slot, Turn, Upgrade};
use crate::error::{Dialect, Error};
use crate::json::{Document, Text, TextBody};
use crate::metrics::Ending;
use crate::pool::Account;
use crate::ws::{Socket, derive_accept_key};
use session::Session;

/// What clients of this protocol ask for, and upstreams require.
pub const BETA: (&str, &str) = ("openai-beta", "responses_websockets=2026-02-06");

/// Of the protocol (RFC 6455).
const VERSION: &str = "13";

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// For one with an upstream.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// For all of ours: Codex waits for 15 s, and then speaks HTTP for the rest of its session.
const OPENING: Duration = Duration::from_secs(13);

/// How a request's attempt goes over the account's socket.
#[derive(Clone, Debug)]
pub struct OverSocket {
    pub slot: Slot,
    pub wants: Wants,
}

impl OverSocket {
    /// Who alone can serve a turn that goes on from another.
    pub fn holder(&self) -> Option<AccountId> {
        self.slot.account().filter(|_| self.is_chained())
    }

    /// For the first turn: whose leg was opened when others had refused the handshake.
    pub fn opener(&self) -> Option<AccountId> {
        match self.wants {
            Wants::Socket => None,
            Wants::Turn { .. } => self.slot.take_opener(),
        }
    }

    pub fn note_failed(&self) {
        if self.wants == Wants::Socket {
            self.slot.note_failed();
        }
    }

    /// The turn goes on from the one before, on the socket that served that.
    pub fn is_chained(&self) -> bool {
        self.wants == Wants::Turn { chained: true }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// A socket, and nothing on it yet.
    Socket,
    Turn {
        /// It goes on from the turn before, on the socket that served that.
        chained: bool,
    },
}

/// Up to the upgrade of the client's connection. One that is refused has an id and a row, as requests
/// have; one that is opened leaves both to its turns.
pub async fn open(
    app: Arc<App>,
    head: &mut Parts,
    contract: Contract,
) -> Result<Response<Outgoing>, Error> {
    let caller = authenticate::authenticate(&app.keys, &head.headers, app.clock.now())?;
    if app.draining.is_cancelled() {
        return Err(Error::Draining);
    }
    // Every turn would be refused: better to say so where clients expect it.
    if !app.spool.has_room() {
        return Err(Error::CannotRecord);
    }
    let id = uuid::Uuid::now_v7().simple().to_string();
    let mut record = Record::handshake(Arc::clone(&app), id.clone(), caller.key.id);
    let mut response = match handshake_of(&app, head, contract, caller, &mut record).await {
        Ok(response) => response,
        Err(Error::Draining) => return Err(Error::Draining),
        Err(error) => {
            record.refused(|record| record.fail(&error));
            let endpoint = Some(Endpoint::Socket(contract));
            admit::log(&app, Way { request_id: &id, endpoint }, &error);
            error.render(Dialect::OpenAi).map(Outgoing::Whole)
        }
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let value = HeaderValue::from_str(&id).expect("hexadecimal");
        response.headers_mut().insert(&name::REQUEST_ID, value);
    }
    Ok(response)
}

async fn handshake_of(
    app: &Arc<App>,
    head: &mut Parts,
    contract: Contract,
    caller: Caller,
    record: &mut Record,
) -> Result<Response<Outgoing>, Error> {
    let permit = app.admission.enter(Bound::ProxyWebsocket)?;
    let upgrade =
        head.extensions.remove::<OnUpgrade>().filter(|_| head.version == Version::HTTP_11);
    let (upgrade, accept) = upgrade.zip(accept(&head.headers)).ok_or(Error::BadHandshake)?;
    let own: [u8; 16] = rand::random();
    let slot = Slot::default();
    let call = Call {
        turn: turn_header(&head.headers, caller.key.id),
        query: head.uri.query().map(str::to_owned),
        gate: model_named(&head.headers).and_then(|model| app.gates.of(&model).cloned()),
        surface: Surface::Responses,
        payload: nothing(),
        head: Head {
            model: String::new(),
            stream: true,
            session: Some(socket_session(&head.headers, caller.key.id).unwrap_or(own)),
            owner: None,
            of_anyone: None,
            stores: false,
            purpose: Purpose::WarmUp,
        },
        headers: Arc::new(std::mem::take(&mut head.headers)),
        caller,
        deadline: Instant::now() + app.limits().request_timeout.min(OPENING),
        over: Some(OverSocket { slot: slot.clone(), wants: Wants::Socket }),
    };
    let (lease, answer) = match dispatch(app, &call, record).await? {
        Dispatched::Stream(lease, answer) => (lease, answer),
        Dispatched::Whole(_, reply, _) => {
            let response = refused(reply.head, reply.body);
            record.refused(|record| {
                record.headed(response.status());
                record.finish(Ending::Complete, TokenUsage::default());
            });
            return Ok(response);
        }
    };
    if app.draining.is_cancelled() {
        // It may have taken a while.
        return Err(Error::Draining);
    }
    remember_turn(app, &call.caller, &lease, &answer.head.headers);
    let moves = lease.moves();
    drop(lease);
    let mut response = Response::new(Outgoing::Whole(Full::default()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers::to_client(answer.head.headers);
    let told = response.headers_mut();
    told.remove(CONTENT_TYPE);
    limits::tell(app, &call.caller.key, Surface::Responses, told);
    told.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    told.insert(UPGRADE, HeaderValue::from_static("websocket"));
    told.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(&accept).expect("base64"));
    let asks_for_codex = call
        .headers
        .get_all(BETA.0)
        .iter()
        .any(|value| value.to_str().is_ok_and(|value| value.contains("responses_websockets")));
    let contract = if asks_for_codex { Contract::Codex } else { contract };
    let session = Session::new(Arc::clone(app), call, slot, contract, (permit, moves));
    app.sockets.spawn(session.run(upgrade));
    Ok(response)
}

/// What a client's handshake is answered with, if it is one (RFC 6455, 4.2.1).
fn accept(headers: &HeaderMap) -> Option<String> {
    let one = |name| {
        let mut all = headers.get_all(name).iter();
        all.next().filter(|_| all.next().is_none())
    };
    let key = one(SEC_WEBSOCKET_KEY)?.as_bytes();
    let nonce = base64::engine::general_purpose::STANDARD.decode(key).ok()?;
    let options = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let mut options = options.flat_map(|value| value.split(','));
    let is_asked = options.any(|option| option.trim().eq_ignore_ascii_case("upgrade"));
    let is_ours = one(SEC_WEBSOCKET_VERSION).is_some_and(|version| version == VERSION);
    (is_asked && is_ours && nonce.len() == 16).then(|| derive_accept_key(key))
}

/// The model that Codex names in its handshake, for the first turn. An account whose ordinary quota
/// is spent may still serve it; whether the turn asks for it is seen then.
fn model_named(headers: &HeaderMap) -> Option<String> {
    let value = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let hint = value("x-codex-routing-hint").and_then(|hint| hint.strip_prefix("model="));
    hint.map(str::to_owned).or_else(|| {
        let told = Bytes::copy_from_slice(value("x-codex-turn-metadata")?.as_bytes());
        Some(Document::parse(told).ok()?.string("model").ok()??.into_owned())
    })
}

fn refused(head: http::response::Parts, body: Bytes) -> Response<Outgoing> {
    let mut response = Response::new(Outgoing::Whole(Full::new(body)));
    *response.status_mut() = client_status(head.status);
    *response.headers_mut() = headers::to_client(head.headers);
    response
}

fn nothing() -> Payload {
    let document = Document::parse(Bytes::from_static(b"{}")).expect("an empty object");
    Payload { wire: Text::default(), encoding: None, document }
}

/// One attempt: on the socket in the slot, if it is this account's, else on a new one. Waits for the
/// first event as for the head of an answer.
pub async fn send(
    app: &App,
    call: &Call,
    target: &Target<'_>,
    over: &OverSocket,
) -> Result<(Response<Received>, Permit), AttemptError> {
    let account = target.account;
    let mark = mark(account);
    let kept = over.slot.take().filter(|leg| leg.account == account.id && leg.mark == mark);
    let is_kept = kept.is_some();
    let is_chained = over.is_chained();
    let (leg, headers) = match kept {
        Some(leg) => (leg, HeaderMap::new()),
        None if is_chained => return Err(AttemptError::ChainLost),
        // Boxed: seldom needed, and large.
        None => match Box::pin(reach(app, call, target, over)).await? {
            Reached::Leg(socket, headers) => {
                (Box::new(Leg::new(account.id, mark, socket)), headers)
            }
            Reached::Answer(response, create) => return Ok((response, create)),
        },
    };
    if over.wants == Wants::Socket {
        over.slot.put(leg);
        return Ok((opened(headers), Permit::default()));
    }
    let create = match stage::create(app, call, true) {
        Ok(create) => create,
        Err(full) => {
            // The next turn goes on with it.
            over.slot.put(leg);
            return Err(full.into());
        }
    };
    let wanted = Wanted { surface: call.surface, stream: true, moved: target.moved };
    let frame = prepare::prepare(account, target.payload, wanted).body.to_bytes();
    let wait = app.limits().stream_head_timeout;
    match Turn::begin(leg, over.slot.clone(), frame, wait).await {
        Ok(turn) => {
            let mut response = Response::new(Received::Turn(Box::new(turn)));
            *response.headers_mut() = headers;
            Ok((response, create))
        }
        // It was closed while it waited, and the two have crossed on the way: nobody's failure.
        Err(NotBegun::Closed) if is_chained => Err(AttemptError::ChainLost),
        Err(NotBegun::Closed) if is_kept => {
            // The other one takes a place too.
            drop(create);
            Box::pin(send(app, call, target, over)).await
        }
        Err(NotBegun::Closed) => Err(SendError::Broke("the socket closed".into()).into()),
        Err(NotBegun::Failed(error)) => Err(error.into()),
    }
}

/// What an account has instead of a socket in the slot.
enum Reached {
    /// A new one, with the headers of its handshake's answer.
    Leg(Socket, HeaderMap),
    /// It refuses, or speaks HTTP only.
    Answer(Response<Received>, Permit),
}

async fn reach(
    app: &App,
    call: &Call,
    target: &Target<'_>,
    over: &OverSocket,
) -> Result<Reached, AttemptError> {
    let account = target.account;
    if !over.slot.is_bridged(account.id) {
        match connect(app, call, target).await? {
            Upgrade::Open(headers, socket) => return Ok(Reached::Leg(socket, headers)),
            Upgrade::Refused(response) if bridge::lacks_sockets(response.status()) => {
                over.slot.bridge(account.id);
                judge::log_refusal(account, response).await;
            }
            Upgrade::Refused(response) if response.status().is_success() => {
                let why = format!("it answered a handshake with {}", response.status());
                return Err(SendError::Broke(why).into());
            }
            Upgrade::Refused(response) => {
                return Ok(Reached::Answer(response, Permit::default()));
            }
        }
    }
    let (response, create) = match over.wants {
        Wants::Socket => (opened(HeaderMap::new()), Permit::default()),
        Wants::Turn { .. } => {
            // Over HTTP nobody could be told.
            over.slot.stop_listening();
            bridge::send(app, call, target).await?
        }
    };
    Ok(Reached::Answer(response, create))
}

/// What a socket is opened with. One that was opened by another person's sign-in, or leads elsewhere,
/// is not the account's any more. A sign-in of another file may not have told yet whose it is.
pub fn mark(account: &Account) -> u64 {
    let mut hasher = DefaultHasher::new();
    let Upstream { place, prefix, .. } = &account.upstream;
    (account.tenant, account.credential.owner(), place, prefix).hash(&mut hasher);
    hasher.finish()
}

/// A yes without a body, in a shape that is judged like any other answer.
fn opened(headers: HeaderMap) -> Response<Received> {
    let mut response = Response::new(Received::Whole(Full::from(&b"{}"[..])));
    *response.headers_mut() = headers;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

async fn connect(app: &App, call: &Call, target: &Target<'_>) -> Result<Upgrade, AttemptError> {
    let account = target.account;
    let path = prepare::path(account, call.surface, call.query.as_deref());
    let uri = Uri::try_from(path).map_err(http::Error::from)?;
    let mut request =
        Request::builder().method(Method::GET).uri(uri).body(TextBody::from(Text::default()))?;
    let told = request.headers_mut();
    *told = headers::to_upstream(&call.headers);
    if target.moved {
        told.remove(&name::TURN_STATE);
    }
    told.remove(CONTENT_TYPE);
    ask_for_beta(told);
    authorize(told, account.kind, call.surface, target.bearer);
    handshake(told);
    let _connecting = app.admission.enter(Bound::UpstreamWebsocketConnect)?;
    Ok(app.egress.upgrade(request, &account.upstream.place, HANDSHAKE).await?)
}

/// Sockets are in it whatever else the client asked for; another version of them is its own choice.
/// The beta before it goes: asked for that, an upstream opens none (codex-lb 1.7).
fn ask_for_beta(headers: &mut HeaderMap) {
    const SOCKETS: &str = "responses_websockets=";
    const BEFORE: &str = "responses=experimental";
    let asked = headers.get_all(BETA.0).iter().filter_map(|value| value.to_str().ok());
    let mut asked: Vec<&str> = asked
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|beta| !beta.is_empty() && *beta != BEFORE)
        .collect();
    if !asked.iter().any(|beta| beta.starts_with(SOCKETS)) {
        asked.push(BETA.1);
    }
    let value = HeaderValue::from_str(&asked.join(",")).expect("of what was in headers");
    headers.insert(BETA.0, value);
}

fn handshake(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(VERSION));
    let key = base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 16]>());
    headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_str(&key).expect("base64"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_asked_for_beside_what_the_client_asks_for() {
        let ours = BETA.1;
        let and_ours = format!("assistants=v2,{ours}");
        let cases: [(&[&str], &str); 7] = [
            (&[], ours),
            (&[ours], ours),
            (&["responses_websockets=2027-01-01"], "responses_websockets=2027-01-01"),
            (&["responses=experimental"], ours),
            (&["responses=experimental, assistants=v2"], &and_ours),
            (&["responses=experimental", "assistants=v2"], &and_ours),
            (&[""], ours),
        ];
        for (asked, want) in cases {
            let mut headers = HeaderMap::new();
            for value in asked {
                headers.append(BETA.0, HeaderValue::from_static(value));
            }
            ask_for_beta(&mut headers);
            assert!(headers.get_all(BETA.0).iter().eq([want]), "{asked:?}: {headers:?}");
        }
    }
}
