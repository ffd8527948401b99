//! A client's socket, from its upgrade to its end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::{BodyExt, Collected};
use hyper::upgrade::OnUpgrade;
use poolgate_core::account::{Kind, Surface, model_matches};
use poolgate_core::limits::Limits;
use poolgate_core::quota::Source;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::{OverSocket, Wants};
use crate::admission::Permit;
use crate::app::App;
use crate::egress::Slot;
use crate::error::{Dialect, Error};
use crate::gateway::admit::{self, Admitted, Way};
use crate::gateway::authenticate::Caller;
use crate::gateway::dispatch::dispatch;
use crate::gateway::read::{Head, Payload, Purpose, peek, turn_in};
use crate::gateway::relay::{Outgoing, Relay};
use crate::gateway::route::{Contract, Endpoint};
use crate::gateway::settle::Record;
use crate::gateway::{Call, Served, answer};
use crate::json::{Document, Text};
use crate::keys::KeyPermit;
use crate::limits::codex_event;
use crate::pool::SessionKey;
use crate::providers::{codex_windows, event_kind};
use crate::sse::Scanner;
use crate::ws::{Said, Socket};

/// Whether the pool's limits have changed is looked for so often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A client that takes nothing for so long is given up.
const STUCK: Duration = Duration::from_mins(1);

/// For the close of a socket that the drain has cut.
const LAST_WORD: Duration = Duration::from_millis(500);

const CREATE: &[u8] = b"response.create";

const GOING_AWAY: u16 = 1001;
const UNSUPPORTED: u16 = 1003;
const POLICY: u16 = 1008;
const RESTART: u16 = 1012;

pub struct Session {
    app: Arc<App>,
    caller: Caller,
    headers: HeaderMap,
    query: Option<String>,
    /// Where turns belong that name no session of their own.
    home: SessionKey,
    turn_state: Option<SessionKey>,
    slot: Slot,
    contract: Contract,
    /// The limits the client was told last.
    told: Option<Limits>,
    _permit: Permit,
}

/// The client's end is gone, or takes nothing more.
struct Gone;

impl Session {
    pub fn new(app: Arc<App>, call: Call, slot: Slot, contract: Contract, permit: Permit) -> Self {
        let Call { caller, headers, query, turn, head, .. } = call;
        Self {
            app,
            caller,
            headers: alone(&headers),
            query,
            home: head.session.unwrap_or_default(),
            turn_state: turn,
            slot,
            contract,
            told: None,
            _permit: permit,
        }
    }

    pub async fn run(mut self, upgrade: OnUpgrade) {
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(error) => {
                tracing::debug!(%error, "a client left before its upgrade");
                return;
            }
        };
        let mut client = Socket::server(upgraded).await;
        let abort = self.app.sockets.abort.clone();
        let ended = abort.run_until_cancelled(self.serve(&mut client)).await;
        let (close, patience) = match ended {
            Some(Ok(close)) => (close, STUCK),
            Some(Err(Gone)) => return,
            // In the middle of a turn.
            None => ((RESTART, "Server is shutting down"), LAST_WORD),
        };
        let _ = tokio::time::timeout(patience, client.close(close.0, close.1)).await;
    }

    /// Turn after turn, until the close code to end with.
    async fn serve(&mut self, client: &mut Socket) -> Result<(u16, &'static str), Gone> {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let draining = self.app.draining.clone();
        let idle = self.app.limits().socket_idle_timeout;
        self.tell_limits(client).await?;
        loop {
            tokio::select! {
                biased;
                said = client.said() => match said.ok_or(Gone)? {
                    Said::Text(text) => {
                        // Boxed: most sockets are idle, and a turn is large.
                        Box::pin(self.turn(client, text)).await?;
                        heard = Instant::now();
                    }
                    Said::Binary => return Ok((UNSUPPORTED, "text only")),
                },
                () = draining.cancelled() => return Ok((RESTART, "Server is draining")),
                // A close is remembered by the empty slot.
                said = self.slot.idle() => self.learn(&said.unwrap_or_default()),
                _ = looks.tick() => {
                    if !self.key_is_good() {
                        return Ok((POLICY, "The key is no longer valid"));
                    }
                    self.leave_unable();
                    self.tell_limits(client).await?;
                }
                () = sleep_until(heard + idle) => {
                    return Ok((GOING_AWAY, "Idle downstream websocket timeout"));
                }
            }
        }
    }

    /// Windows that an account tells of between turns.
    fn learn(&self, text: &[u8]) {
        let now = self.app.clock.now();
        if let Some(id) = self.slot.account() {
            self.app.pool.observe(id, &codex_windows(text, now), Source::Answer, now);
        }
    }

    /// A socket may outlive its key by days.
    fn key_is_good(&self) -> bool {
        self.app.keys.is_known(&self.caller.key, self.app.clock.now())
    }

    /// The next turn goes elsewhere anyway: the account's socket is closed, the client's stays.
    fn leave_unable(&self) {
        let now = self.app.clock.now();
        if self.slot.account().is_some_and(|id| !self.app.pool.is_able(id, now)) {
            self.slot.take();
        }
    }

    /// The pool's limits, if they are not what the client knows.
    async fn tell_limits(&mut self, client: &mut Socket) -> Result<(), Gone> {
        if self.contract == Contract::Strict {
            return Ok(());
        }
        let now = self.app.clock.now();
        let limits = self.app.pool.limits(&self.caller.key.pools, Kind::Codex, now);
        if limits == self.told {
            return Ok(());
        }
        self.told = limits;
        match &self.told {
            Some(limits) => say(client, codex_event(limits).to_string().into()).await,
            None => Ok(()),
        }
    }

    async fn turn(&mut self, client: &mut Socket, text: Bytes) -> Result<(), Gone> {
        let (call, mut record) = match self.understand(text) {
            Ok(understood) => understood,
            Err(error) => return say_error(client, &error).await,
        };
        let app = Arc::clone(&self.app);
        let key = match call.head.purpose {
            // It is nobody's request yet, and counts in no limit.
            Purpose::WarmUp => Ok(KeyPermit::default()),
            _ => admit::key(&app, &call.caller, call.surface),
        };
        let key = match key {
            Ok(key) => key,
            Err(limit) => {
                let error = Error::from(limit);
                record.fail(&error);
                return say_error(client, &error).await;
            }
        };
        let dispatched = tokio::select! {
            dispatched = dispatch(&app, &call, &mut record) => dispatched,
            gone = keep_waiting(client, &self.slot) => return Err(gone),
        };
        let served = dispatched.map(|dispatched| {
            let admitted = Admitted { lane: Permit::default(), key };
            answer(app, call, dispatched, self.contract, admitted, &mut record)
        });
        match served {
            Ok(Served::Relay(_, parts)) => {
                let (app, lease, admitted, opening, of) = *parts;
                let relay = Relay::new(app, lease, record, admitted, opening, of);
                relay_events(client, &self.slot, Outgoing::Relay(Box::new(relay))).await
            }
            Ok(Served::Whole(response)) => say_refusal(client, response).await,
            Err(error) => {
                // On a socket the remedy for all of these is one: the whole of it.
                let error = match error {
                    Error::OwnerUnavailable => Error::ChainLost,
                    error => error,
                };
                record.fail(&error);
                let endpoint = Some(Endpoint::Socket(self.contract));
                let way = Way { request_id: record.id(), endpoint };
                admit::log(&self.app, way, &error);
                say_error(client, &error).await
            }
        }
    }

    /// Whether the turn goes on from one that only the leg in the slot knows. What an upstream has
    /// stored is known by its account, wherever that is asked.
    fn is_chained(&self, head: &mut Head) -> Result<bool, Error> {
        let Some(previous) = head.owner else { return Ok(false) };
        let stored = self.app.pool.owner(previous, self.app.clock.now());
        let leg = self.slot.account();
        let chained = leg.is_some() && (stored.is_none() || stored == leg);
        if !chained && stored.is_none() {
            return Err(Error::ChainLost);
        }
        if chained {
            head.owner = None;
        }
        Ok(chained)
    }

    /// A message as a request.
    fn understand(&self, text: Bytes) -> Result<(Call, Record), Error> {
        let document = Document::parse(text.clone())?;
        if event_kind(&text) != CREATE {
            let why = "no turn is under way: only messages of type response.create begin one";
            return Err(Error::BadQuestion(why));
        }
        if !self.key_is_good() {
            return Err(Error::Unauthorized);
        }
        if !self.app.spool.has_room() {
            return Err(Error::CannotRecord);
        }
        let key = &self.caller.key;
        let mut head = peek(Surface::Responses, &self.headers, &document, key.id)?;
        let fits = |pattern: &String| model_matches(pattern, &head.model);
        if !key.models.is_empty() && !key.models.iter().any(fits) {
            return Err(Error::ModelForbidden(head.model));
        }
        let chained = self.is_chained(&mut head)?;
        // A warm-up is nobody's request yet: it has no row.
        let mut record = if head.purpose == Purpose::WarmUp {
            Record::unrecorded(Arc::clone(&self.app))
        } else {
            let id = uuid::Uuid::now_v7().simple().to_string();
            Record::new(Arc::clone(&self.app), id, key.id, Surface::Responses)
        };
        head.stream = true;
        head.session = Some(head.session.unwrap_or(self.home));
        record.read(&head);
        let call = Call {
            turn: turn_in(&document, key.id).or(self.turn_state),
            query: self.query.clone(),
            gate: self.app.gates.of(&head.model).cloned(),
            headers: self.headers.clone(),
            caller: Caller { key: Arc::clone(key) },
            surface: Surface::Responses,
            payload: Payload { wire: Text::from(text), encoding: None, document },
            head,
            deadline: Instant::now() + self.app.limits().request_timeout,
            over: Some(OverSocket { slot: self.slot.clone(), wants: Wants::Turn { chained } }),
        };
        Ok((call, record))
    }
}

/// A copy of its own: as they were read they keep the whole of the connection's buffer.
fn alone(headers: &HeaderMap) -> HeaderMap {
    let copy = |value: &HeaderValue| HeaderValue::from_bytes(value.as_bytes()).ok();
    headers.iter().filter_map(|(name, value)| Some((name.clone(), copy(value)?))).collect()
}

/// Each event as a message. A cut ends the turn, not the socket: the last event has said so.
async fn relay_events(client: &mut Socket, slot: &Slot, mut body: Outgoing) -> Result<(), Gone> {
    let mut scanner = Scanner::default();
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            gone = keep_waiting(client, slot) => return Err(gone),
        };
        let Some(Ok(frame)) = frame else { return Ok(()) };
        let Ok(data) = frame.into_data() else { continue };
        let mut events = Vec::new();
        scanner.feed(&data, |event| events.push(Bytes::copy_from_slice(event.data)));
        for event in events {
            say(client, event).await?;
        }
    }
}

/// One turn at a time: another is refused meanwhile. What else the client says is about the turn
/// under way (`response.interrupt`, `response.steer`), and its upstream's to understand; over HTTP
/// nobody can be told. Resolves when the client has left.
async fn keep_waiting(client: &mut Socket, slot: &Slot) -> Gone {
    loop {
        let text = match client.said().await {
            None | Some(Said::Binary) => return Gone,
            Some(Said::Text(text)) => text,
        };
        let kind = event_kind(&text);
        if kind.is_empty() || kind == CREATE {
            let error = Error::BadQuestion("a turn is under way on this socket");
            if let Err(gone) = say_error(client, &error).await {
                return gone;
            }
        } else if slot.interject(text) {
            // The turn is polled beside this, and may have been already.
            tokio::task::yield_now().await;
        }
    }
}

async fn say(client: &mut Socket, text: Bytes) -> Result<(), Gone> {
    match tokio::time::timeout(STUCK, client.say(text)).await {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(Gone),
    }
}

async fn say_error(client: &mut Socket, error: &Error) -> Result<(), Gone> {
    say_refusal(client, error.render(Dialect::OpenAi).map(Outgoing::Whole)).await
}

async fn say_refusal(client: &mut Socket, response: Response<Outgoing>) -> Result<(), Gone> {
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
    let told = |name: &str| name.starts_with("x-codex-") || name == "retry-after";
    let headers: Map<String, Value> = response
        .headers()
        .iter()
        .filter(|(name, _)| told(name.as_str()))
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.into())))
        .collect();
    let status = response.status().as_u16();
    json!({"type": "error", "status": status, "error": error, "headers": headers})
}
