//! What clients are told of limits: in headers of answers, and when they ask.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use http::{HeaderMap, Response, StatusCode};
use poolgate_core::account::{Kind, Surface};
use poolgate_core::limits::Limits;
use serde_json::{Map, Value, json};
use tokio::time::{MissedTickBehavior, interval};

use super::authenticate::Caller;
use super::relay::Outgoing;
use super::route::Question;
use super::whole;
use crate::admission::{Bound, Permit};
use crate::app::App;
use crate::error::Error;
use crate::limits::{add_claude_headers, add_codex_headers, codex_usage, plain};
use crate::pool::subscription;
use crate::store::ClientKeyRow;

/// A change of the pool is looked for so often; also the longest a watcher waits to hear of one.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Adds the pool's limits to an answer, whichever account gave it.
pub fn tell(app: &App, key: &ClientKeyRow, surface: Surface, headers: &mut HeaderMap) {
    let now = app.clock.now();
    let kind = subscription(surface);
    let Some(limits) = app.pool.limits(key, kind, now) else { return };
    match kind {
        Kind::Claude => add_claude_headers(headers, &limits, now),
        _ => add_codex_headers(headers, &limits),
    }
}

/// The pool's for Codex, as an event has them.
pub fn codex_in_event(app: &App, key: &ClientKeyRow) -> Option<Value> {
    let limits = app.pool.limits(key, Kind::Codex, app.clock.now())?;
    let mut headers = HeaderMap::new();
    add_codex_headers(&mut headers, &limits);
    Some(in_event(&headers))
}

/// The same for an event, which has them as an object: those that Codex reads.
pub fn in_event(headers: &HeaderMap) -> Value {
    let read = |name: &str| name.starts_with("x-codex-") || name == "retry-after";
    let headers: Map<String, Value> = headers
        .iter()
        .filter(|(name, _)| read(name.as_str()))
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.into())))
        .collect();
    headers.into()
}

pub async fn answer(
    app: &Arc<App>,
    caller: &Caller,
    question: Question,
    permit: Permit,
) -> Result<Response<Outgoing>, Error> {
    let now = app.clock.now();
    let key = &caller.key;
    let body = match question {
        Question::CodexUsage => codex_usage(app.pool.limits(key, Kind::Codex, now).as_ref(), now),
        Question::Pool => describe(&both(app, &caller.key)),
        Question::WatchPool => return watch(app, caller, permit),
        Question::Own => {
            let used = app.store.used_by_key(caller.key.id, now).await.map_err(|error| {
                tracing::error!(%error, "what a key has used cannot be read");
                Error::Internal
            })?;
            let pool = describe(&both(app, &caller.key));
            let limits = caller.key.limits_in_use(now);
            let limits = limits
                .iter()
                .map(|(limit, most, used)| json!({"limit": limit, "max": most, "used": used}));
            let limits: Vec<Value> = limits.collect();
            json!({"key": caller.key.name, "used": used, "limits": limits, "pool": pool})
        }
    };
    Ok(whole(StatusCode::OK, "application/json", body.to_string().into()))
}

/// Of the two subscriptions.
type Both = [Option<Limits>; 2];

fn both(app: &App, key: &ClientKeyRow) -> Both {
    [Kind::Codex, Kind::Claude].map(|kind| app.pool.limits(key, kind, app.clock.now()))
}

fn describe([codex, claude]: &Both) -> Value {
    json!({"codex": plain(codex.as_ref()), "claude": plain(claude.as_ref())})
}

/// A line now and one for each change, until the client leaves, its key is revoked or we stop. The
/// lane is left with the first line: who only listens keeps nobody else from asking.
fn watch(app: &Arc<App>, caller: &Caller, lane: Permit) -> Result<Response<Outgoing>, Error> {
    let permits = (app.admission.enter(Bound::Watch)?, lane);
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let start = (Arc::clone(app), Arc::clone(&caller.key), looks, None, permits);
    let lines = stream::unfold(start, async |(app, key, mut looks, told, permits)| {
        loop {
            app.draining.run_until_cancelled(looks.tick()).await?;
            if !key.is_known(app.clock.now()) {
                return None;
            }
            let pool = both(&app, &key);
            if told.as_ref() != Some(&pool) {
                let line = Bytes::from(format!("{}\n", describe(&pool)));
                let (watch, mut lane) = permits;
                lane.release();
                return Some((line, (app, key, looks, Some(pool), (watch, lane))));
            }
        }
    });
    let mut response = whole(StatusCode::OK, "application/x-ndjson", Bytes::new());
    *response.body_mut() = Outgoing::Lines(Lines(lines.boxed()));
    Ok(response)
}

/// An endless body of our own.
pub struct Lines(pub BoxStream<'static, Bytes>);

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lines")
    }
}
