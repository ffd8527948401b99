use poolgate_core::account::{Caps, Surface};
use poolgate_core::availability::Ask;
use poolgate_core::choose::Refusal;
use poolgate_core::health::Health;
use poolgate_core::outcome::{Attempt, Outcome};

use super::*;
use crate::credentials::Source as CredentialSource;

const NOW: Timestamp = Timestamp(1_800_000_000_000);
const ASK: Ask<'static> = Ask { surface: Surface::Responses, model: "m", gate: None };

const AT: Attempt<'static> =
    Attempt { model: "m", sent_at: NOW, now: NOW, refreshed: false, gated: false };

fn loaded(id: i64, max_in_flight: u32) -> Loaded {
    let upstream = Upstream { origin: "https://x".into(), prefix: String::new(), token_url: None };
    let source = CredentialSource::KeyEnv("NONE".into());
    let account = Account {
        id: AccountId(id),
        name: format!("a{id}"),
        kind: Kind::OpenAi,
        speaks: Speaks::default(),
        models: vec![],
        upstream,
        token_url: None,
        credential: Arc::new(Credential::new(Kind::OpenAi, source)),
    };
    let facts = Facts {
        id: AccountId(id),
        kind: Kind::OpenAi,
        speaks: Speaks::default(),
        priority: 0,
        plan: None,
        weight: 1.0,
        caps: Caps::default(),
        models: vec![],
        max_in_flight,
        paused: false,
        has_credential: true,
        quota: Quota::default(),
        health: Health::default(),
        in_flight: 0,
        probing_until: None,
    };
    Loaded { account, facts, resumed_at: None }
}

fn pool(accounts: Vec<Loaded>) -> Arc<Pool> {
    let pool = Pool::default();
    pool.replace(accounts, &[]);
    Arc::new(pool)
}

fn wish(session: Option<SessionKey>, seed: u64) -> Wish<'static> {
    Wish { pools: &[], ask: ASK, session, owner: None, turn: None, tried: &[], seed }
}

#[test]
fn leases_are_counted_and_given_back() {
    let pool = pool(vec![loaded(1, 1), loaded(2, 1)]);
    let first = pool.lease(&wish(None, 1), NOW).unwrap();
    let second = pool.lease(&wish(None, 2), NOW).unwrap();
    assert_ne!(first.account.id, second.account.id);
    assert_eq!(pool.lease(&wish(None, 3), NOW).unwrap_err().refusal, Refusal::Busy);
    let freed = first.account.id;
    drop(first);
    assert_eq!(pool.lease(&wish(None, 4), NOW).unwrap().account.id, freed);
    drop(second);
    assert_eq!(pool.in_flight(), 0);
}

#[test]
fn fifty_first_requests_of_one_session_land_on_one_account() {
    let pool = pool((1..=5).map(|id| loaded(id, 0)).collect());
    let leases: Vec<Lease> = std::thread::scope(|scope| {
        let one = |seed| {
            let pool = &pool;
            scope.spawn(move || pool.lease(&wish(Some([7; 16]), seed), NOW).unwrap())
        };
        let threads: Vec<_> = (0..50).map(one).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let homes: std::collections::HashSet<_> = leases.iter().map(|l| l.account.id).collect();
    assert_eq!(homes.len(), 1);
}

#[test]
fn a_reload_keeps_what_was_learnt() {
    let pool = pool(vec![loaded(1, 1), loaded(2, 0)]);
    let lease = pool.lease(&Wish { tried: &[AccountId(2)], ..wish(None, 1) }, NOW).unwrap();
    pool.settle(AccountId(2), Outcome::Stopped(Stop::NeedsLogin), AT);
    pool.replace(vec![loaded(1, 1), loaded(2, 0), loaded(3, 0)], &[]);
    assert_eq!(pool.in_flight(), 1, "the running attempt still counts");
    let states: Vec<String> = pool.view(NOW).accounts.into_iter().map(|a| a.state).collect();
    assert_eq!(states, ["ready", "needs_login", "ready"], "an unsaved stop stays");
    drop(lease);
    assert_eq!(pool.in_flight(), 0);
}

#[test]
fn an_operators_resume_clears_what_was_learnt() {
    let pool = pool(vec![loaded(1, 0), loaded(2, 0)]);
    pool.settle(AccountId(1), Outcome::Stopped(Stop::Disabled), AT);
    pool.settle(AccountId(2), Outcome::Strike, AT);
    let states =
        || -> Vec<String> { pool.view(NOW).accounts.into_iter().map(|a| a.state).collect() };
    assert_eq!(states(), ["disabled", "cooling"]);
    let resumed = |id| Loaded { resumed_at: Some(NOW), ..loaded(id, 0) };
    pool.replace(vec![resumed(1), resumed(2)], &[]);
    assert_eq!(states(), ["ready", "ready"]);
    pool.settle(AccountId(2), Outcome::Strike, AT);
    pool.replace(vec![resumed(1), resumed(2)], &[]);
    assert_eq!(states(), ["ready", "cooling"], "one resume clears once");
}

#[test]
fn pools_limit_who_may_serve() {
    let pool = Pool::default();
    let keys = PoolSpec {
        name: "keys".into(),
        members: vec!["a2".into(), "gone".into()],
        strategy: Strategy::Fallback,
        rebalance_threshold: None,
    };
    pool.replace(vec![loaded(1, 0), loaded(2, 0)], &[keys]);
    let pool = Arc::new(pool);
    let names = ["keys".to_owned()];
    let lease = pool.lease(&Wish { pools: &names, ..wish(None, 1) }, NOW).unwrap();
    assert_eq!(lease.account.name, "a2");
    let unknown = ["nowhere".to_owned()];
    let refusal = pool.lease(&Wish { pools: &unknown, ..wish(None, 1) }, NOW).unwrap_err();
    assert_eq!(refusal.refusal, Refusal::Unfit);
    assert_eq!(pool.members(&[]).len(), 2);
}
