//! A client's socket, from its upgrade to its end.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use hyper::upgrade::OnUpgrade;
use poolgate_core::account::{Family, Kind, Surface, model_matches};
use poolgate_core::availability::Ask;
use poolgate_core::gate::Gate;
use poolgate_core::limits::Limits;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::saying::{
    CREATE, Meanwhile, STUCK, TEXT_ONLY, TOO_LARGE, Telling, is_warm_up, malformed, note_model,
    record, say, say_error, say_refusal,
};
use super::{OverSocket, Wants, mark};
use crate::admission::Permit;
use crate::app::App;
use crate::egress::Slot;
use crate::error::Error;
use crate::gateway::admit::{self, Admitted, Way};
use crate::gateway::authenticate::Caller;
use crate::gateway::dispatch::dispatch;
use crate::gateway::headers::name;
use crate::gateway::judge::observe_events;
use crate::gateway::names::{scoped, session_field, socket_session, turn_field};
use crate::gateway::peek::{Head, Purpose, peek_within};
use crate::gateway::read::Payload;
use crate::gateway::relay::Relay;
use crate::gateway::route::{Contract, Endpoint};
use crate::gateway::settle::Record;
use crate::gateway::{Call, Served, answer, refuse_anothers};
use crate::json::{Document, Text};
use crate::keys::KeyPermit;
use crate::limits::codex_event;
use crate::pool::SessionKey;
use crate::providers::{ErrorFields, codex_windows, event_kind, readings};
use crate::ws::{Said, Socket};

/// Whether the pool's limits have changed is looked for so often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longer names of sessions are not remembered: an idle socket would hold them.
const NAME_MAX: usize = 256;
/// For the close of a socket that the drain has cut.
const LAST_WORD: Duration = Duration::from_millis(500);

const GOING_AWAY: u16 = 1001;
const POLICY: u16 = 1008;
const RESTART: u16 = 1012;

pub struct Session {
    app: Arc<App>,
    caller: Caller,
    headers: Arc<HeaderMap>,
    query: Option<String>,
    /// Where turns belong that name no session of their own.
    home: SessionKey,
    /// The handshake named it, for all turns.
    is_named: bool,
    /// The name that a turn gave last, with what it is known by: the next one mostly gives the same.
    named: Option<(String, SessionKey)>,
    /// Of the handshake, for the first turn.
    turn_state: Option<SessionKey>,
    slot: Slot,
    contract: Contract,
    /// The model of the turn before, and the limit that governs it.
    asks: (String, Option<Arc<Gate>>),
    /// Whatever became of them.
    had_turns: bool,
    /// One was taken on: what the handshake says of the first is said of none after it.
    had_first: bool,
    /// Cancelled when a rebalance moves the session.
    moves: Option<CancellationToken>,
    /// The limits the client was told last.
    told: Option<Limits>,
    _permit: Permit,
}

/// Why a client's socket ends.
pub enum Left {
    /// The client's end is gone, or takes nothing more.
    Gone,
    /// With this code and reason.
    Close(u16, &'static str),
}

impl Session {
    pub fn new(
        app: Arc<App>,
        call: Call,
        slot: Slot,
        contract: Contract,
        (permit, moves): (Permit, Option<CancellationToken>),
    ) -> Self {
        let Call { caller, headers, query, turn, head, gate, .. } = call;
        Self {
            app,
            is_named: socket_session(&headers, caller.key.id).is_some(),
            caller,
            headers: Arc::new(alone(&headers)),
            query,
            home: head.session.unwrap_or_default(),
            named: None,
            turn_state: turn,
            slot,
            contract,
            asks: (head.model, gate),
            had_turns: false,
            had_first: false,
            moves,
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
        let mut client = Socket::server(upgraded, self.app.limits().body_max).await;
        let abort = self.app.sockets.abort.clone();
        match abort.run_until_cancelled(self.serve(&mut client)).await {
            Some(Err(Left::Close(code, reason))) => {
                // The drain may have cut the turn before.
                let last = async {
                    abort.cancelled().await;
                    tokio::time::sleep(LAST_WORD).await;
                };
                tokio::select! {
                    _ = timeout(STUCK, client.close(code, reason)) => {}
                    () = last => {}
                }
            }
            Some(Err(Left::Gone)) => {}
            None => {
                // In the middle of a turn.
                let close = client.close(RESTART, "Server is shutting down");
                let _ = timeout(LAST_WORD, close).await;
            }
        }
    }

    /// Turn after turn, until it ends.
    async fn serve(&mut self, client: &mut Socket) -> Result<Infallible, Left> {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let draining = self.app.draining.clone();
        self.tell_limits(client).await?;
        loop {
            tokio::select! {
                biased;
                said = client.said() => match said.ok_or(Left::Gone)? {
                    Said::Text(text) => {
                        self.slot.listen();
                        client.watch();
                        // Boxed: most sockets are idle, and a turn is large. Made where it stays, not copied.
                        let turn = Box::new_uninit();
                        Box::into_pin(Box::write(turn, self.turn(client, text))).await?;
                        client.unwatch();
                        self.slot.stop_listening();
                        heard = Instant::now();
                    }
                    Said::Binary => return Err(TEXT_ONLY),
                    Said::TooLarge => return Err(TOO_LARGE),
                    Said::Malformed(code) => return Err(malformed(code.into())),
                },
                () = draining.cancelled() => return Err(Left::Close(RESTART, "Server is draining")),
                // A close is remembered by the empty slot.
                said = self.slot.idle() => {
                    if said.is_some_and(|said| self.learn(&said)) {
                        // Exchanged for the pool's, even when those are the same.
                        self.told = None;
                        self.tell_limits(client).await?;
                    }
                }
                _ = looks.tick() => {
                    if !self.key_is_good() {
                        return Err(Left::Close(POLICY, "The key is no longer valid"));
                    }
                    self.leave_unable();
                    self.tell_limits(client).await?;
                }
                () = sleep_until(heard + self.app.limits().socket_idle_timeout) => {
                    return Err(Left::Close(GOING_AWAY, "Idle downstream websocket timeout"));
                }
            }
        }
    }

    /// Windows that an account tells of between turns; whether it did so in an event that clients read. An
    /// error is about none of their turns: the windows in its headers count, and the rest is no evidence.
    fn learn(&self, text: &[u8]) -> bool {
        let now = self.app.clock.now();
        let kind = event_kind(text);
        let is_limits = kind.starts_with(b"codex.rate_limits");
        let told = match kind {
            _ if is_limits => codex_windows(text, now),
            b"error" => readings(Family::OpenAi, &ErrorFields::read(text, now).headers, now),
            _ => return false,
        };
        if let Some((id, leg)) = self.slot.account().zip(self.slot.mark())
            && let Some(account) = self.app.pool.account(id).filter(|account| mark(account) == leg)
        {
            observe_events(&self.app, &account, &told);
        }
        is_limits
    }

    /// A socket may outlive its key by days.
    fn key_is_good(&self) -> bool {
        self.caller.key.is_known(self.app.clock.now())
    }

    /// The next turn goes elsewhere anyway: the account's socket is closed, the client's stays.
    fn leave_unable(&self) {
        let Some((id, leg)) = self.slot.account().zip(self.slot.mark()) else { return };
        let (model, gate) = &self.asks;
        let ask = Ask { surface: Surface::Responses, model, gate: gate.as_deref() };
        let account = self.app.pool.able(id, ask, self.app.clock.now());
        if self.has_moved() || account.is_none_or(|account| mark(&account) != leg) {
            self.slot.take();
        }
    }

    /// Its session was told to go elsewhere.
    fn has_moved(&self) -> bool {
        self.moves.as_ref().is_some_and(CancellationToken::is_cancelled)
    }

    /// The pool's limits, if they are not what the client knows.
    async fn tell_limits(&mut self, client: &mut Socket) -> Result<(), Left> {
        if self.contract == Contract::Strict {
            return Ok(());
        }
        let now = self.app.clock.now();
        let limits = self.app.pool.limits(&self.caller.key, Kind::Codex, now);
        if limits == self.told {
            return Ok(());
        }
        self.told = limits;
        match &self.told {
            Some(limits) => say(client, codex_event(limits).to_string().into()).await,
            None => Ok(()),
        }
    }

    async fn turn(&mut self, client: &mut Socket, text: Bytes) -> Result<(), Left> {
        if self.is_late(&text) {
            return Ok(());
        }
        if self.has_moved() {
            self.slot.take();
        }
        let document = match self.understand(&text) {
            Ok(document) => document,
            Err(error) => {
                self.log(&error, "");
                return Box::pin(say_error(client, &error)).await;
            }
        };
        let mut record = record(&self.app, &self.caller.key, &document);
        let key = match self.enter(&document) {
            Ok(key) => key,
            Err(error) => {
                note_model(&mut record, &document);
                record.fail(&error);
                return Box::pin(say_error(client, &error)).await;
            }
        };
        let call = match self.call(text, document, &mut record) {
            Ok(call) => call,
            Err(error) => {
                unless_asked_again(key, &error);
                record.fail(&error);
                return Box::pin(say_error(client, &error)).await;
            }
        };
        if self.asks.0 != call.head.model {
            self.asks = (call.head.model.clone(), call.gate.clone());
        }
        let app = Arc::clone(&self.app);
        // A turn that was refused before was none.
        if call.head.purpose != Purpose::WarmUp && !self.had_first {
            self.had_first = true;
            self.turn_state = None;
            let headers = Arc::make_mut(&mut self.headers);
            for of_the_first in &name::OF_A_TURN {
                headers.remove(of_the_first);
            }
        }
        let (slot, of) = (self.slot.clone(), Arc::clone(&self.caller.key));
        let meanwhile = Meanwhile { app: &app, key: &of, slot: &slot };
        let dispatched = tokio::select! {
            // The turn first: it is what its client waits for.
            biased;
            dispatched = dispatch(&app, &call, &mut record) => dispatched,
            left = meanwhile.hear(client) => return Err(left),
        };
        let dispatched = match dispatched {
            Ok(dispatched) => dispatched,
            Err(error) => {
                // On a socket the remedy for all of these is one: the whole of it.
                let error = match error {
                    Error::OwnerUnavailable { .. } => Error::ChainLost,
                    error => error,
                };
                unless_asked_again(key, &error);
                record.fail(&error);
                self.log(&error, record.id());
                return Box::pin(say_error(client, &error)).await;
            }
        };
        let admitted = Admitted { lane: Permit::default(), key };
        match answer(&app, call, dispatched, self.contract, admitted, &mut record) {
            Served::Relay(_, parts) => {
                let (lease, admitted, opening, of) = *parts;
                let of_app = Arc::clone(&app);
                self.moves = lease.moves();
                let telling = Telling {
                    meanwhile,
                    is_refused: opening.tap.finished && !opening.tap.semantic,
                };
                let relay = Box::new(Relay::new(of_app, lease, record, admitted, opening, of));
                telling.relay(client, relay, &mut self.told).await
            }
            Served::Whole(response) => Box::pin(say_refusal(client, response)).await,
        }
    }

    /// Whether it is about a turn that has ended while it was on its way. An error said to that would
    /// be taken for the next turn's.
    fn is_late(&mut self, text: &[u8]) -> bool {
        let kind = event_kind(text);
        if kind == CREATE.as_bytes() {
            self.had_turns = true;
            return false;
        }
        self.had_turns && kind.starts_with(b"response.")
    }

    fn log(&self, error: &Error, request_id: &str) {
        let endpoint = Some(Endpoint::Socket(self.contract));
        admit::log(&self.app, Way { request_id, endpoint }, error);
    }

    /// Whether the turn goes on from one that only the leg in the slot knows. What an upstream has
    /// stored is known by its account, wherever that is asked.
    fn is_chained(&self, head: &mut Head) -> Result<bool, Error> {
        let Some(previous) = head.owner else { return Ok(false) };
        if self.app.pool.owner(previous, self.app.clock.now()).is_some() {
            return Ok(false);
        }
        // It would wait for an account that cannot go on from it. Other turns choose among all.
        self.leave_unable();
        if self.slot.account().is_none() {
            return Err(Error::ChainLost);
        }
        head.owner = None;
        Ok(true)
    }

    /// A turn counts as a request over HTTP does: before it is known whether it is well-formed and allowed.
    fn enter(&self, document: &Document) -> Result<KeyPermit, Error> {
        if is_warm_up(document) {
            // It is nobody's request yet, and counts in no limit.
            return Ok(KeyPermit::default());
        }
        Ok(admit::key(&self.app, &self.caller, Surface::Responses)?)
    }

    /// A message as a request.
    fn understand(&self, text: &Bytes) -> Result<Document, Error> {
        // As a request is, before anything is done with it; the socket itself is open already.
        if !self.app.memory.admits(false) {
            return Err(Error::ShortOfMemory);
        }
        let document = Document::parse(text.clone())?;
        if document.string("type").ok().flatten().as_deref() != Some(CREATE) {
            let why = "no turn is under way: only messages of type response.create begin one";
            return Err(Error::BadQuestion(why));
        }
        if !self.key_is_good() {
            return Err(Error::Unauthorized);
        }
        if !self.app.spool.has_room() {
            return Err(Error::CannotRecord);
        }
        Ok(document)
    }

    /// Where a turn belongs: as the handshake says, else as it says itself, else at the socket's home.
    fn session(&mut self, document: &Document) -> SessionKey {
        let name = session_field(Surface::Responses, document).filter(|_| !self.is_named);
        match (name, &self.named) {
            (None, _) => self.home,
            (Some(name), Some((known, session))) if *name == **known => *session,
            (Some(name), _) => {
                let session = scoped(self.caller.key.id, &name);
                self.named = (name.len() <= NAME_MAX).then(|| (name.into_owned(), session));
                session
            }
        }
    }

    fn call(
        &mut self,
        text: Bytes,
        document: Document,
        record: &mut Record,
    ) -> Result<Call, Error> {
        let key = Arc::clone(&self.caller.key);
        let session = self.session(&document);
        let mut head = peek_within(Surface::Responses, Some(session), &document, key.id)?;
        head.stream = true;
        record.read(&head);
        let fits = |pattern: &String| model_matches(pattern, &head.model);
        if !key.models.is_empty() && !key.models.iter().any(fits) {
            return Err(Error::ModelForbidden(head.model));
        }
        refuse_anothers(&self.app, &head)?;
        let chained = self.is_chained(&mut head)?;
        Ok(Call {
            turn: turn_field(&document, key.id)?.or(self.turn_state),
            query: self.query.clone(),
            gate: match &self.asks {
                (model, gate) if *model == head.model => gate.clone(),
                _ => self.app.gates.of(&head.model).cloned(),
            },
            headers: Arc::clone(&self.headers),
            caller: Caller { key },
            surface: Surface::Responses,
            payload: Payload { wire: Text::from(text), encoding: None, document },
            head,
            deadline: Instant::now() + self.app.limits().request_timeout,
            over: Some(OverSocket { slot: self.slot.clone(), wants: Wants::Turn { chained } }),
        })
    }
}

/// What its client is to send again in full counts then.
fn unless_asked_again(key: KeyPermit, error: &Error) {
    if matches!(error, Error::ChainLost) {
        key.uncount();
    }
}

/// A copy of its own: as they were read they keep the whole of the connection's buffer.
fn alone(headers: &HeaderMap) -> HeaderMap {
    let copy = |value: &HeaderValue| HeaderValue::from_bytes(value.as_bytes()).ok();
    headers.iter().filter_map(|(name, value)| Some((name.clone(), copy(value)?))).collect()
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
