//! The data path: what happens to a client's request, in named steps.
//!
//! | step | file | gives | refuses with |
//! |---|---|---|---|
//! | route | `route` | endpoint and dialect | 404, 405, 426 |
//! | authenticate | `authenticate` | a caller | 401, 400 |
//! | admit | `admit` | a permit in its lane, before the body is read | 429 |
//! | read | `read`, `peek`, `names` | the body, bounded, and its head | 400, 408, 413, 415 |
//! | lease, attempt, judge | `dispatch`, `waiting`, `trial` | an answer whose output has begun | 429, 502, 503 |
//! | relay, settle | `relay`, `settle` | bytes to the client, one row in the ledger | – |
//!
//! [`handle`] cannot fail: it renders any [`Error`] in the caller's dialect.

mod admit;
mod assemble;
mod attempt;
mod authenticate;
mod decoded;
mod dispatch;
mod failure;
mod headers;
mod judge;
mod limits;
mod metadata;
mod models;
mod names;
mod opening;
mod peek;
mod prepare;
mod read;
mod relay;
mod route;
mod scrub;
mod settle;
mod socket;
mod span;
mod splitter;
mod stage;
mod strip;
mod torn;
mod trial;
mod waiting;

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::EXPECT;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Body;
use hyper::body::Incoming;
use poolgate_core::account::{Kind, Surface, model_matches};
use poolgate_core::availability::Ask;
use poolgate_core::gate::Gate;
use poolgate_core::outcome::{Attempt, Outcome};
use tokio::time::Instant;

use crate::admission::Bound;
use crate::app::App;
use crate::error::{Dialect, Error, LONG_WAIT};
use crate::metrics::Ending;
use crate::pool::SessionKey;
use crate::providers::retry_after;

use admit::{Admitted, Way};
pub use attempt::{authorize, bearer};
use authenticate::Caller;
pub use authenticate::presented as presented_key;
use dispatch::Dispatched;
use headers::name;
pub use models::{Catalogue, fetch_models};
pub use names::{scoped, unscoped};
pub use relay::Outgoing;
use relay::{Relay, Relayed};
use route::{Contract, Endpoint};
pub use route::{dialect, wants_socket};
use settle::Record;
use socket::OverSocket;
use splitter::CodexEvents;

/// The steps that read what strangers wrote, for the fuzz targets.
#[doc(hidden)]
pub mod steps {
    pub use super::headers::{to_client, to_upstream};
    pub use super::names::{socket_session, turn_field, turn_header};
    pub use super::peek::peek;
    pub use super::read::Payload;
    pub use super::route::{dialect, route};
    pub use super::splitter::{CodexEvents, Form, Splitter};
    pub use super::strip::strip;
}

/// A request that has been understood.
#[derive(Debug)]
pub struct Call {
    pub caller: Caller,
    pub surface: Surface,
    pub query: Option<String>,
    pub headers: Arc<HeaderMap>,
    pub payload: read::Payload,
    pub head: peek::Head,
    /// The additional limit that governs the model, if any.
    pub gate: Option<Arc<Gate>>,
    /// The turn that an earlier answer named.
    pub turn: Option<SessionKey>,
    pub deadline: Instant,
    /// Its attempt goes over a socket; `None`: over HTTP.
    pub over: Option<OverSocket>,
}

impl Call {
    /// What it asks of an account.
    fn ask(&self) -> Ask<'_> {
        let model = &self.head.model;
        Ask { surface: self.surface, model, gate: self.gate.as_deref() }
    }
}

pub async fn handle(
    app: Arc<App>,
    dialect: Dialect,
    request: Request<Incoming>,
) -> Response<Outgoing> {
    let (mut head, mut body) = request.into_parts();
    let endpoint = route::route(&head.method, head.uri.path(), head.uri.query(), &head.headers);
    let way = Way { request_id: "", endpoint: endpoint.as_ref().ok().copied() };
    match forward(&app, &mut head, &mut body, dialect, endpoint).await {
        Ok(response) => response,
        Err(error) => {
            admit::log(&app, way, &error);
            refuse(&error, dialect, &head.headers, &mut body).await
        }
    }
}

/// What is left of the body is read, if it is little; else nothing more is served on the connection.
async fn refuse(
    error: &Error,
    dialect: Dialect,
    headers: &HeaderMap,
    body: &mut Incoming,
) -> Response<Outgoing> {
    let mut response = error.render(dialect).map(Outgoing::Whole);
    // A body that does not come is not waited for once more, while draining there is no time for it,
    // and one that waits to be asked for is not asked for (RFC 9110, 10.1.1).
    let waits = headers.contains_key(EXPECT) && !body.is_end_stream();
    let is_late = matches!(error, Error::BodyTimeout | Error::Draining);
    if is_late || waits || !read::discard(body).await {
        response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Whoever may not be served is refused before a lane is entered: that costs a hash, and a stranger
/// must not be able to fill a lane.
async fn forward(
    app: &Arc<App>,
    head: &mut Parts,
    body: &mut Incoming,
    dialect: Dialect,
    endpoint: Result<Endpoint, Error>,
) -> Result<Response<Outgoing>, Error> {
    let (query, headers) = (head.uri.query(), &head.headers);
    let caller = || authenticate::authenticate(&app.keys, headers, app.clock.now());
    let endpoint = match endpoint {
        Ok(endpoint) => endpoint,
        Err(error) => {
            let _permit = app.admission.enter(Bound::Dashboard)?;
            return Err(error);
        }
    };
    match endpoint {
        Endpoint::Healthy => Ok(whole(StatusCode::OK, "text/plain", "ok\n".into())),
        Endpoint::Ready => ready(app),
        Endpoint::Metrics => {
            crate::admin::authenticate(app, headers)?;
            crate::admin::metrics(app)
        }
        Endpoint::AdminStatus | Endpoint::AdminWhy | Endpoint::AdminExplain => {
            crate::admin::authenticate(app, headers)?;
            let _permit = admit::enter(app, endpoint)?;
            match endpoint {
                Endpoint::AdminStatus => crate::admin::status(app),
                Endpoint::AdminWhy => crate::admin::why(app, query),
                _ => Box::pin(crate::admin::explain(app, query)).await,
            }
        }
        Endpoint::Models(list) => {
            let caller = caller()?;
            let _permit = admit::enter(app, endpoint)?;
            unless_cut(app, Box::pin(models::list(app, &caller, list, headers))).await
        }
        Endpoint::Limits(question) => {
            let caller = caller()?;
            let permit = admit::enter(app, endpoint)?;
            Box::pin(limits::answer(app, &caller, question, permit)).await
        }
        Endpoint::Socket(contract) => {
            unless_cut(app, Box::pin(socket::open(Arc::clone(app), head, contract))).await
        }
        Endpoint::Proxy { surface, contract } => {
            proxy(Arc::clone(app), head, body, dialect, (surface, contract)).await
        }
    }
}

async fn proxy(
    app: Arc<App>,
    head: &mut Parts,
    body: &mut Incoming,
    dialect: Dialect,
    (surface, contract): (Surface, Contract),
) -> Result<Response<Outgoing>, Error> {
    let caller = authenticate::authenticate(&app.keys, &head.headers, app.clock.now())?;
    if app.draining.is_cancelled() {
        return Err(Error::Draining);
    }
    let id = uuid::Uuid::now_v7().simple().to_string();
    let mut record = Record::new(Arc::clone(&app), id.clone(), caller.key.id, surface);
    let served = {
        let way = (surface, contract);
        let serving = pin!(serve(Arc::clone(&app), head, body, caller, way, &mut record));
        unless_cut(&app, serving).await
    };
    let mut response = match served {
        Ok(Served::Relay(head, parts)) => {
            let (lease, admitted, opening, of) = *parts;
            let key = Arc::clone(&of.key);
            let of_app = Arc::clone(&app);
            let mut relay = Relay::new(of_app, lease, record, admitted, opening, of);
            relay.settle_if_whole().await;
            let mut response = Response::new(Outgoing::Relay(Box::new(relay)));
            *response.status_mut() = head.status;
            *response.headers_mut() = headers::to_client(head.headers);
            limits::tell(&app, &key, surface, response.headers_mut());
            response
        }
        Ok(Served::Whole(response)) => response,
        Err(error) => {
            record.fail(&error);
            let endpoint = Some(Endpoint::Proxy { surface, contract });
            admit::log(&app, Way { request_id: &id, endpoint }, &error);
            refuse(&error, dialect, &head.headers, body).await
        }
    };
    let value = HeaderValue::from_str(&id).expect("hexadecimal");
    response.headers_mut().insert(&name::REQUEST_ID, value);
    Ok(response)
}

/// Who has no answer yet at the end of a drain is told so; an answer that has begun tells it itself.
async fn unless_cut<T, W>(app: &App, work: W) -> Result<T, Error>
where
    W: Future<Output = Result<T, Error>> + Unpin,
{
    tokio::select! {
        biased;
        done = work => done,
        () = app.sockets.abort.cancelled() => Err(Error::Draining),
    }
}

type RelayParts = (crate::pool::Lease, Admitted, Box<opening::Opening>, Relayed);

enum Served {
    /// With the upstream's head.
    Relay(http::response::Parts, Box<RelayParts>),
    Whole(Response<Outgoing>),
}

async fn serve(
    app: Arc<App>,
    head: &mut Parts,
    body: &mut Incoming,
    caller: Caller,
    (surface, contract): (Surface, Contract),
    record: &mut Record,
) -> Result<Served, Error> {
    if !app.spool.has_room() {
        return Err(Error::CannotRecord);
    }
    let lane = admit::enter(&app, Endpoint::Proxy { surface, contract })?;
    let admitted = Admitted { lane, key: admit::key(&app, &caller, surface)? };
    let deadline = Instant::now() + app.limits().request_timeout;
    let payload = read::read(&head.headers, body, &app.limits()).await?;
    let peeked = peek::peek(surface, &head.headers, &payload.document, caller.key.id)?;
    record.read(&peeked);
    let allowed = &caller.key.models;
    if !allowed.is_empty() && !allowed.iter().any(|pattern| model_matches(pattern, &peeked.model)) {
        return Err(Error::ModelForbidden(peeked.model));
    }
    refuse_anothers(&app, &peeked)?;
    let call = Call {
        turn: names::turn_header(&head.headers, caller.key.id),
        query: head.uri.query().map(str::to_owned),
        gate: app.gates.of(&peeked.model).cloned(),
        headers: Arc::new(std::mem::take(&mut head.headers)),
        caller,
        surface,
        payload,
        head: peeked,
        deadline,
        over: None,
    };
    let dispatched = dispatch::dispatch(&app, &call, record).await?;
    Ok(answer(&app, call, dispatched, contract, admitted, record))
}

/// Nobody goes on from a response of another key, which an account that both use would allow.
fn refuse_anothers(app: &App, head: &peek::Head) -> Result<(), Error> {
    let now = app.clock.now();
    let is_known = |id: Option<SessionKey>| id.is_some_and(|id| app.pool.owner(id, now).is_some());
    if is_known(head.of_anyone) && !is_known(head.owner) { Err(Error::ChainLost) } else { Ok(()) }
}

/// The body is no longer needed: nothing is sent again from here on.
fn answer(
    app: &App,
    call: Call,
    dispatched: Dispatched,
    contract: Contract,
    admitted: Admitted,
    record: &mut Record,
) -> Served {
    let Call { caller, surface, head: request_head, gate, deadline, over, .. } = call;
    let (lease, reply, usage) = match dispatched {
        Dispatched::Stream(lease, answer) => {
            let refused = answer.refused.and_then(|(_, status)| StatusCode::from_u16(status).ok());
            record.headed(refused.unwrap_or(answer.head.status));
            let is_ours = answer.head.extensions.get::<judge::Ours>().is_some();
            let has_limits =
                over.is_some() || tells_limits(lease.account.kind, surface, &answer.head.headers);
            remember_turn(app, &caller, &lease, &answer.head.headers);
            let of = Relayed {
                surface,
                model: request_head.model,
                key: caller.key,
                // No upstream keeps what none has made.
                stores: request_head.stores && lease.account.kind != Kind::Codex && !is_ours,
                gate,
                deadline,
                is_ours,
                codex_events: has_limits.then_some(match contract {
                    Contract::Strict => CodexEvents::LeftOut,
                    Contract::Codex => CodexEvents::LimitsExchanged,
                }),
            };
            return Served::Relay(answer.head, Box::new((lease, admitted, answer.opening, of)));
        }
        Dispatched::Whole(lease, reply, usage) => (lease, reply, usage),
    };
    remember_turn(app, &caller, &lease, &reply.head.headers);
    record.headed(reply.head.status);
    record.relayed(reply.body.len());
    if usage.is_some() {
        let attempt = Attempt {
            ask: Ask { surface, model: &request_head.model, gate: gate.as_deref() },
            sent_at: lease.sent_at,
            now: app.clock.now(),
            refreshed: false,
        };
        app.metrics.attempt(Outcome::Served);
        app.pool.settle(&lease.account, Outcome::Served, attempt);
    }
    record.finish(Ending::Complete, usage.unwrap_or_default());
    let mut response = Response::new(Outgoing::Whole(Full::new(reply.body)));
    *response.status_mut() = client_status(reply.head.status);
    *response.headers_mut() = headers::to_client(reply.head.headers);
    if retry_after(response.headers(), app.clock.now()).is_some_and(|wait| wait > LONG_WAIT) {
        response.headers_mut().insert("x-should-retry", HeaderValue::from_static("false"));
    }
    limits::tell(app, &caller.key, surface, response.headers_mut());
    Served::Whole(response)
}

/// Whether an account's limits may be among the events of an answer over HTTP: of a Codex one, and of
/// another gateway's that is like it.
fn tells_limits(kind: Kind, surface: Surface, headers: &HeaderMap) -> bool {
    match kind {
        Kind::Codex => true,
        Kind::Compatible => surface == Surface::Responses && judge::is_stream(headers),
        _ => false,
    }
}

/// A 401 or 403 of an upstream makes clients throw away their own sign-in or retry in vain; what
/// comes here with one of them is a policy's refusal, the request's own fault.
fn client_status(upstream: StatusCode) -> StatusCode {
    match upstream {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => StatusCode::BAD_REQUEST,
        status => status,
    }
}

fn remember_turn(app: &App, caller: &Caller, lease: &crate::pool::Lease, headers: &HeaderMap) {
    if let Some(turn) = names::turn_header(headers, caller.key.id) {
        app.pool.own(turn, lease.account.id, app.clock.now());
    }
}

fn ready(app: &App) -> Result<Response<Outgoing>, Error> {
    if app.leaving.is_cancelled() {
        return Err(Error::Draining);
    }
    Ok(whole(StatusCode::OK, "text/plain", "ready\n".into()))
}

pub fn whole(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Outgoing> {
    let mut response = Response::new(Outgoing::Whole(Full::new(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
