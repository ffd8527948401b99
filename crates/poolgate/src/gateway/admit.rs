//! Which lane a request takes, before its body is read, and what is logged of one that was refused.

use poolgate_core::account::Surface;

use super::authenticate::Caller;
use super::route::Endpoint;
use crate::admission::{Bound, Overload, Permit};
use crate::app::App;
use crate::error::Error;
use crate::keys::{KeyLimit, KeyPermit};
use crate::metrics::Shed;

/// `None`: it is served however full we are.
fn lane(endpoint: Endpoint) -> Option<Bound> {
    match endpoint {
        Endpoint::Healthy | Endpoint::Ready | Endpoint::Metrics => None,
        Endpoint::Socket(_) => Some(Bound::ProxyWebsocket),
        Endpoint::Proxy { surface: Surface::Compact, .. } => Some(Bound::ProxyCompact),
        Endpoint::Proxy { .. } | Endpoint::Models(_) => Some(Bound::ProxyHttp),
        Endpoint::Limits(_)
        | Endpoint::AdminStatus
        | Endpoint::AdminWhy
        | Endpoint::AdminExplain => Some(Bound::Dashboard),
    }
}

pub fn enter(app: &App, endpoint: Endpoint) -> Result<Permit, Overload> {
    lane(endpoint).map_or_else(|| Ok(Permit::default()), |lane| app.admission.enter(lane))
}

/// What a request holds until its end.
#[derive(Debug, Default)]
pub struct Admitted {
    pub lane: Permit,
    pub key: KeyPermit,
}

/// A place among the key's own requests. Counting tokens takes none, as it takes none of an account:
/// clients count by the dozen what their user never asked for, and nothing is spent.
pub fn key(app: &App, caller: &Caller, surface: Surface) -> Result<KeyPermit, KeyLimit> {
    if surface == Surface::CountTokens {
        return Ok(KeyPermit::default());
    }
    let entered = caller.key.enter(app.clock.now());
    entered.inspect_err(|limit| app.metrics.key_refusals.add(limit.index()))
}

/// Where a request that is refused came in.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// Empty: it has none.
    pub request_id: &'a str,
    /// `None`: a path that is not served.
    pub endpoint: Option<Endpoint>,
}

impl Way<'_> {
    fn scope(self) -> &'static str {
        if matches!(self.endpoint, Some(Endpoint::Socket(_))) { "websocket" } else { "http" }
    }

    /// As it stands in the route table: no query, and no text of a stranger.
    fn path(self) -> &'static str {
        self.endpoint.map_or("unknown", Endpoint::path)
    }
}

/// One line for each request that we refuse for our own sake. Other errors are not about us.
pub fn log(app: &App, way: Way<'_>, error: &Error) {
    let shed = match error {
        Error::Overloaded(Overload(bound)) => return log_full(app, way, error, *bound),
        Error::ShortOfMemory => Shed::Memory,
        Error::CannotRecord => Shed::Spool,
        Error::Draining => Shed::Draining,
        _ => return,
    };
    app.metrics.shed(shed);
    tracing::warn!(
        event = "proxy_request_shed",
        request_id = way.request_id,
        scope = way.scope(),
        path = way.path(),
        reason = shed.name(),
        status = error.parts().0.as_u16(),
        "{error}"
    );
}

fn log_full(app: &App, way: Way<'_>, error: &Error, bound: Bound) {
    let (lane, stage) =
        if bound.is_lane() { (Some(bound.name()), None) } else { (None, Some(bound.name())) };
    let level = app.admission.level(bound);
    tracing::warn!(
        event = "proxy_admission_rejected",
        request_id = way.request_id,
        scope = way.scope(),
        path = way.path(),
        lane,
        stage,
        status = error.parts().0.as_u16(),
        available = level.size.saturating_sub(level.in_use),
        "{error}"
    );
}

#[cfg(test)]
mod tests {
    use super::super::route::{Contract, ModelList, Question};
    use super::*;

    #[test]
    fn lanes_by_endpoint() {
        let proxy = |surface| Endpoint::Proxy { surface, contract: Contract::Strict };
        let cases = [
            (Endpoint::Healthy, None),
            (Endpoint::Ready, None),
            (Endpoint::Metrics, None),
            (Endpoint::Socket(Contract::Codex), Some("proxy_websocket")),
            (proxy(Surface::Responses), Some("proxy_http")),
            (proxy(Surface::CountTokens), Some("proxy_http")),
            (Endpoint::Models(ModelList::Codex), Some("proxy_http")),
            (proxy(Surface::Compact), Some("proxy_compact")),
            (Endpoint::Limits(Question::Own), Some("dashboard")),
            (Endpoint::Limits(Question::CodexUsage), Some("dashboard")),
            (Endpoint::Limits(Question::WatchPool), Some("dashboard")),
            (Endpoint::AdminStatus, Some("dashboard")),
        ];
        for (endpoint, want) in cases {
            assert_eq!(lane(endpoint).map(Bound::name), want, "{endpoint:?}");
        }
    }
}
