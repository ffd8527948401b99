//! What the simulator knows of an account.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::Sockets;
use crate::clock::{Clock, Millis};
use crate::fault::Faults;
use crate::identity::Identity;
use crate::kind::Kind;
use crate::listener::Listener;
use crate::quota::Quota;
use crate::token::{self, Grant};

/// What a claude token may be used for.
pub const CLAUDE_SCOPES: &str =
    "user:profile user:inference user:sessions:claude_code user:mcp_servers user:file_upload";

const HOUR: Duration = Duration::from_hours(1);
/// The windows of a subscription, each with its capacity in units: so large that only a test
/// that sets its own notices them.
const WINDOWS: [(Duration, f64); 2] =
    [(Duration::from_hours(5), 1e6), (Duration::from_hours(7 * 24), 1e7)];

#[derive(Debug)]
pub struct Inner {
    pub kind: Kind,
    pub identity: Identity,
    pub state: Mutex<State>,
    pub login: Mutex<Login>,
    pub listener: Mutex<Option<Listener>>,
    pub sockets: Arc<Sockets>,
}

/// What requests change.
#[derive(Debug)]
pub struct State {
    pub plan: String,
    /// Claude's `rateLimitTier`; `None`: the plan's.
    pub tier: Option<String>,
    pub quota: Quota,
    pub faults: Faults,
}

/// What sign-ins change. Locked after `state` if both are.
#[derive(Debug)]
pub struct Login {
    pub grant: Option<Grant>,
    pub issued_at: Millis,
    /// Serial number of the first access token that is still good.
    pub valid_from: u64,
    pub revoked: bool,
    /// A refresh token used twice ends the sign-in.
    pub revoked_by_reuse: bool,
    pub lifetime: Duration,
}

impl Inner {
    pub fn new(kind: Kind, name: &str, clock: &Clock) -> Self {
        let (label, plan, lifetime) = match kind {
            Kind::Codex => ("codex", "plus", HOUR),
            Kind::Claude => ("claude", "max", 8 * HOUR),
            Kind::Openai => ("openai", "api", HOUR),
            Kind::Anthropic => ("anthropic", "api", HOUR),
        };
        let mut quota = Quota::none();
        if kind.is_subscription() {
            for (length, capacity) in WINDOWS {
                quota.set(clock, length, capacity, 0.0, length);
            }
        }
        let faults = Faults::default();
        let login = Login {
            grant: None,
            issued_at: 0,
            valid_from: 0,
            revoked: false,
            revoked_by_reuse: false,
            lifetime,
        };
        Self {
            kind,
            identity: Identity::new(label, name),
            state: Mutex::new(State { plan: plan.to_owned(), tier: None, quota, faults }),
            login: Mutex::new(login),
            listener: Mutex::new(None),
            sockets: Arc::default(),
        }
    }

    pub fn name(&self) -> &str {
        &self.identity.name
    }

    pub fn plan(&self) -> String {
        self.state.lock().plan.clone()
    }

    pub fn tier(&self) -> String {
        let state = self.state.lock();
        state.tier.clone().unwrap_or_else(|| format!("default_claude_{}", state.plan))
    }

    /// The platform key; `None`: a subscription.
    pub fn key(&self) -> Option<String> {
        match self.kind {
            Kind::Openai => Some(token::key("sk-proj-", &self.identity)),
            Kind::Anthropic => Some(token::key("sk-ant-api03-", &self.identity)),
            Kind::Codex | Kind::Claude => None,
        }
    }

    /// The newest tokens of a subscription, and when they were issued.
    pub fn newest_grant(&self) -> (Grant, Millis) {
        let login = self.login.lock();
        (login.grant.clone().expect("only subscriptions have tokens"), login.issued_at)
    }
}
