//! Black-box cases of the ancestors, each named after its source row: `sub2api` section 12,
//! `codex-lb` section 12, `multiplexer` section 18. What only decisions show is in the tables of
//! `core`; `docs/decisions.md` lists them all.

mod choice;
mod failover;
mod windows;

use std::time::Duration;

use poolgate::clock::Clock;
use poolgate::pool::AccountView;
use poolgate_sim::{Account, Fault};
use serde_json::Value;

use crate::harness::{Harness, Setup};
use crate::requests::{CODEX, responses};

const FIVE_HOURS: Duration = Duration::from_hours(5);
const WEEK: Duration = Duration::from_hours(168);

/// Codex accounts `a` and `b`, tried in this order.
async fn pair(change: impl FnOnce(&mut Setup)) -> (Harness, Account, Account) {
    let (h, (a, b)) = Harness::start(|s: &mut Setup| {
        s.in_order();
        let both = (s.codex("a"), s.codex("b"));
        change(s);
        both
    })
    .await;
    (h, a, b)
}

fn view(h: &Harness, name: &str) -> AccountView {
    let all = h.app.pool.view(h.clock.now()).accounts;
    all.into_iter().find(|account| account.name == name).expect("it exists")
}

/// Seconds until the account's state ends by itself.
fn seconds_left(h: &Harness, name: &str) -> Option<i64> {
    view(h, name).until.map(|until| (until - h.clock.now().0 + 500) / 1000)
}

/// Who serves a plain request now.
async fn who(h: &Harness) -> String {
    let got = h.post(CODEX, &responses("hi", true)).await;
    assert_eq!(got.status, 200, "{}", got.text());
    h.asked().pop().expect("somebody was asked")
}

/// Exactly this answer, with these headers.
fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Fault {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Fault::Status { status, headers: headers.iter().map(owned).collect(), body: body.to_owned() }
}

/// A stream as the account would give it, for [`answer`].
async fn stream_of(h: &Harness, account: &Account, body: &Value) -> String {
    let text = h.direct(account, CODEX, &[], body).await.text();
    h.sim.clear_journal();
    text
}

const EVENTS: (&str, &str) = ("content-type", "text/event-stream");
