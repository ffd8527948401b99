//! Scripted trouble: every few seconds some account misbehaves, and no client may notice.

use std::time::Duration;

use poolgate_sim::{Account, Fault};

use super::Demo;
use crate::pool::AccountView;

/// In this order, over and over.
const TROUBLE: [Trouble; 7] = [
    Trouble::Cut,
    Trouble::UsageLimit,
    Trouble::ServerError,
    Trouble::ExpiredToken,
    Trouble::Overloaded,
    Trouble::Forbidden,
    Trouble::RateLimited,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Cut,
    UsageLimit,
    ServerError,
    Forbidden,
    ExpiredToken,
    Overloaded,
    RateLimited,
}

const FIRST: Duration = Duration::from_millis(1500);
/// Trouble that no request ran into is called off.
const PATIENCE: Duration = Duration::from_secs(8);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Until the demo stops.
pub async fn run(demo: &Demo) {
    let mut pause = FIRST;
    let mut was_forbidden = false;
    for trouble in TROUBLE.into_iter().cycle() {
        if !wait(demo, pause).await {
            return;
        }
        pause = LOOK_EVERY;
        // The gateway rests an account for ten minutes after a 403: once is enough to see it.
        let is_forbidden = trouble == Trouble::Forbidden;
        if is_forbidden && was_forbidden {
            continue;
        }
        let Some(account) = victim(demo, trouble.is_lasting()) else {
            continue;
        };
        was_forbidden |= is_forbidden;
        trouble.cause(&account);
        happen(demo, trouble, &account).await;
        pause = Duration::from_millis(rand::random_range(4000..7000));
    }
}

async fn wait(demo: &Demo, span: Duration) -> bool {
    demo.stop.run_until_cancelled(tokio::time::sleep(span)).await.is_some()
}

/// A subscription that serves, and is not the last of its kind to do so: its requests must have
/// somewhere to go. `small`: without a big one there would be little left to see.
fn victim(demo: &Demo, small: bool) -> Option<Account> {
    let view = demo.app.pool.view(demo.app.clock.now());
    let mut ready = view.accounts;
    ready.retain(|account| account.state == "ready" && !account.windows.is_empty());
    let may_fail = |one: &&AccountView| {
        let has_peer = ready.iter().any(|other| other.kind == one.kind && other.name != one.name);
        has_peer && one.attempts > 0 && !(small && one.weight > 1.0)
    };
    let mut spare: Vec<&AccountView> = ready.iter().filter(may_fail).collect();
    // One that is at work will soon be asked again: sessions stay where they are.
    if spare.iter().any(|account| account.in_flight > 0) {
        spare.retain(|account| account.in_flight > 0);
    }
    let at = rand::random_range(0..spare.len().max(1));
    demo.sim.account(&spare.get(at)?.name)
}

/// Waits until a request has run into it, and tells.
async fn happen(demo: &Demo, trouble: Trouble, account: &Account) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while account.pending_faults() > 0 {
        if tokio::time::Instant::now() > deadline || !wait(demo, LOOK_EVERY).await {
            account.clear_faults();
            return;
        }
    }
    demo.tally.happened(format!("{} {}", account.name(), trouble.text()));
}

impl Trouble {
    /// Whether it puts the account out of service for long.
    fn is_lasting(self) -> bool {
        matches!(self, Self::UsageLimit | Self::Forbidden)
    }

    fn cause(self, account: &Account) {
        match self {
            Self::Cut => drop(account.fault(Fault::cut_before_output())),
            Self::UsageLimit => drop(account.fault(Fault::usage_limit_reached())),
            // Once would be tried again on the same account.
            Self::ServerError => drop(account.fault(Fault::server_error(500)).times(2)),
            Self::Forbidden => drop(account.fault(Fault::forbidden_error())),
            Self::ExpiredToken => account.expire_access_token(),
            Self::Overloaded => drop(account.fault(Fault::overloaded_529())),
            Self::RateLimited => {
                drop(account.fault(Fault::rate_limited(Duration::from_secs(6))));
            }
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Cut => "cut an answer before any output",
            Self::UsageLimit => "answered 429: usage limit reached",
            Self::ServerError => "answered 500, and 500 again",
            Self::Forbidden => "answered 403: forbidden",
            Self::ExpiredToken => "lets its token expire early: it is refreshed on the way",
            Self::Overloaded => "answered that it is overloaded",
            Self::RateLimited => "answered 429: wait six seconds",
        }
    }
}
