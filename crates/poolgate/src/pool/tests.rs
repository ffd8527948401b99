use futures_util::FutureExt;
use poolgate_core::account::{Caps, Surface};
use poolgate_core::availability::Ask;
use poolgate_core::choose::Refusal;
use poolgate_core::health::Health;
use poolgate_core::outcome::{Attempt, Outcome};
use poolgate_core::poll::Failure;
use poolgate_core::quota::{FIVE_HOURS, Limit, Reading, Source, WEEK};
use poolgate_core::units::Fraction;

use super::*;
use crate::config::RawAccount;
use crate::credentials::Source as CredentialSource;
use crate::providers::Usage;
use crate::store::Origin;

#[path = "polling_tests.rs"]
mod polling;
#[path = "reload_tests.rs"]
mod reload;

const NOW: Timestamp = Timestamp(1_800_000_000_000);
const ASK: Ask<'static> = Ask { surface: Surface::Responses, model: "m", gate: None };

const AT: Attempt<'static> = Attempt { ask: ASK, sent_at: NOW, now: NOW, refreshed: false };

fn loaded(id: i64, max_in_flight: u32) -> Loaded {
    let upstream = Upstream::at("https://x", "");
    let source = CredentialSource::KeyEnv("NONE".into());
    let account = Account {
        id: AccountId(id),
        tenant: Tenant::default(),
        name: format!("a{id}"),
        kind: Kind::OpenAi,
        speaks: Speaks::default(),
        models: vec![],
        upstream,
        token_url: None,
        credential: Arc::new(Credential::new(Kind::OpenAi, source, None)),
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
    let whereabouts = Whereabouts::of(&RawAccount::default());
    Loaded { account, whereabouts, facts, resumed_at: None, plan_weight: None }
}

fn pool(accounts: Vec<Loaded>) -> Arc<Pool> {
    let pool = Pool::default();
    pool.replace(accounts, &[], &[]);
    Arc::new(pool)
}

fn account(pool: &Pool, id: i64) -> Arc<Account> {
    pool.account(AccountId(id)).unwrap()
}

fn wish(session: Option<SessionKey>, seed: u64) -> Wish<'static> {
    Wish { pools: &[], ask: ASK, session, owner: None, leg: None, turn: None, tried: &[], seed }
}

fn after(span: Duration) -> Timestamp {
    NOW.plus(span)
}

fn weekly(percent: f64) -> Vec<Reading> {
    vec![Reading {
        limit: Limit::Ordinary,
        length: WEEK,
        used: Fraction::from_percent(percent),
        resets_at: Some(after(WEEK)),
    }]
}

fn states(pool: &Pool, now: Timestamp) -> Vec<String> {
    pool.view(now).accounts.into_iter().map(|account| account.state).collect()
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
fn a_burst_of_refusals_lowers_what_runs_at_the_same_time() {
    let pool = pool(vec![loaded(1, 10)]);
    let leases: Vec<Lease> =
        (0..6).map(|seed| pool.lease(&wish(None, seed), NOW).unwrap()).collect();
    let until = after(Duration::from_secs(5));
    for _ in 0..2 {
        pool.settle(&account(&pool, 1), Outcome::RateLimited { until }, AT);
    }
    drop(leases);
    let view = &pool.view(until).accounts[0];
    assert_eq!((view.concurrency, view.concurrency_is_learnt), (Some(3), true));
    let why = pool.why(&wish(None, 1), until);
    assert_eq!(why.accounts[0].concurrency, Some(3));
    let three: Vec<Lease> =
        (0..3).map(|seed| pool.lease(&wish(None, seed), until).unwrap()).collect();
    assert_eq!(pool.lease(&wish(None, 4), until).unwrap_err().refusal, Refusal::Busy);
    drop(three);
    // A minute later it has served what it may, and may one more.
    let later = until.plus(Duration::from_mins(1));
    for _ in 0..3 {
        let at = Attempt { sent_at: until, now: later, ..AT };
        pool.settle(&account(&pool, 1), Outcome::Served, at);
    }
    assert_eq!(pool.view(later).accounts[0].concurrency, Some(4));
}

/// What a reload brings may have been read before the credential changed for the last time.
#[test]
fn a_look_corrects_what_a_reload_saw_of_a_credential() {
    let (first, mut again) = (loaded(1, 0), loaded(1, 0));
    again.account.credential = Arc::clone(&first.account.credential);
    let pool = pool(vec![first]);
    assert!(pool.follow_credential(AccountId(1), NOW), "there is none");
    assert_eq!(states(&pool, NOW), ["unavailable"]);
    pool.replace(vec![again], &[], &[]);
    assert_eq!(states(&pool, NOW), ["ready"]);
    assert!(pool.follow_credential(AccountId(1), NOW), "there is still none");
    assert_eq!(states(&pool, NOW), ["unavailable"]);
    assert!(!pool.follow_credential(AccountId(1), NOW), "nothing new");
}

/// spec §6: counting tokens rests nobody.
#[test]
fn a_count_that_cannot_connect_charges_nobody() {
    let mut other = loaded(2, 0);
    other.account.upstream = Upstream::at("https://y", "");
    let pool = pool(vec![loaded(1, 0), other]);
    for (surface, want) in [(Surface::CountTokens, "ready"), (Surface::Responses, "cooling")] {
        let at = Attempt { ask: Ask { surface, ..ASK }, ..AT };
        pool.settle(&account(&pool, 1), Outcome::ConnectFailed { durable: true }, at);
        pool.observe(&account(&pool, 2), &[], Source::Answer, NOW);
        assert_eq!(states(&pool, NOW)[0], want, "{surface:?}");
    }
}

/// multiplexer 18.3 #31, #32.
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

#[tokio::test]
async fn an_account_that_leaves_lets_go_of_who_waits_for_it() {
    let pool = pool(vec![loaded(1, 0), loaded(2, 0)]);
    let on = |id: i64| {
        let others = [AccountId(3 - id)];
        pool.lease(&Wish { tried: &others, ..wish(None, 1) }, NOW).unwrap()
    };
    let (leaves, stays) = (on(1), on(2));
    pool.replace(vec![loaded(2, 0)], &[], &[]);
    assert!(leaves.interrupted().now_or_never().is_some());
    assert!(stays.interrupted().now_or_never().is_none());
}

#[test]
fn an_operators_resume_clears_what_was_learnt() {
    let pool = pool(vec![loaded(1, 0), loaded(2, 0)]);
    pool.settle(&account(&pool, 1), Outcome::Stopped(Stop::Disabled), AT);
    pool.settle(&account(&pool, 2), Outcome::Strike, AT);
    let states =
        || -> Vec<String> { pool.view(NOW).accounts.into_iter().map(|a| a.state).collect() };
    assert_eq!(states(), ["disabled", "cooling"]);
    let resumed = |id| Loaded { resumed_at: Some(NOW), ..loaded(id, 0) };
    pool.replace(vec![resumed(1), resumed(2)], &[], &[]);
    assert_eq!(states(), ["ready", "ready"]);
    pool.settle(&account(&pool, 2), Outcome::Strike, AT);
    pool.replace(vec![resumed(1), resumed(2)], &[], &[]);
    assert_eq!(states(), ["ready", "cooling"], "one resume clears once");
}

/// Resuming needs no settings.
#[test]
fn an_operators_resume_reaches_who_cannot_be_read() {
    let pool = pool(vec![loaded(1, 0), loaded(2, 0), loaded(3, 0)]);
    pool.settle(&account(&pool, 1), Outcome::Stopped(Stop::Disabled), AT);
    pool.settle(&account(&pool, 2), Outcome::Strike, AT);
    pool.observe(&account(&pool, 3), &weekly(100.0), Source::Answer, NOW);
    let unread = |resumed_at| {
        let one = |id| Unread {
            id: AccountId(id),
            name: format!("a{id}"),
            origin: Origin::Cli,
            paused: false,
            resumed_at,
            why: "unknown field".into(),
        };
        [one(1), one(2), one(3)]
    };
    pool.replace(vec![], &unread(None), &[]);
    assert_eq!(states(&pool, NOW), ["disabled", "cooling", "limited"], "they go on as they were");
    pool.replace(vec![], &unread(Some(NOW)), &[]);
    assert_eq!(states(&pool, NOW), ["ready", "ready", "ready"]);
    assert_eq!(pool.take_unsaved_stops(), [], "the store is not told of the old stop");
    pool.settle(&account(&pool, 2), Outcome::Strike, AT);
    pool.replace(vec![], &unread(Some(NOW)), &[]);
    assert_eq!(states(&pool, NOW), ["ready", "cooling", "ready"], "one resume clears once");
}

/// spec §4: an operator ends a limit like any fresh evidence, and what is wrong comes back with the
/// next answer.
#[test]
fn an_operators_resume_forgets_the_windows_that_say_no() {
    let pool = pool(vec![loaded(1, 0)]);
    let five = Reading { length: FIVE_HOURS, ..weekly(3.0).remove(0) };
    pool.observe(&account(&pool, 1), &[five, weekly(100.0).remove(0)], Source::Answer, NOW);
    pool.take_unsaved_quotas();
    pool.replace(vec![loaded(1, 0)], &[], &[]);
    assert_eq!(states(&pool, NOW), ["limited"]);
    pool.replace(vec![Loaded { resumed_at: Some(NOW), ..loaded(1, 0) }], &[], &[]);
    assert_eq!(states(&pool, NOW), ["ready"]);
    let saved: Vec<usize> =
        pool.take_unsaved_quotas().iter().map(|q| q.1.windows().len()).collect();
    assert_eq!(saved, [1], "the other window stays, and the store is told");
    pool.observe(&account(&pool, 1), &weekly(100.0), Source::Answer, NOW);
    assert_eq!(states(&pool, NOW), ["limited"]);
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
    pool.replace(vec![loaded(1, 0), loaded(2, 0)], &[], &[keys]);
    let pool = Arc::new(pool);
    let names = ["keys".to_owned()];
    let lease = pool.lease(&Wish { pools: &names, ..wish(None, 1) }, NOW).unwrap();
    assert_eq!(lease.account.name, "a2");
    let unknown = ["nowhere".to_owned()];
    let refusal = pool.lease(&Wish { pools: &unknown, ..wish(None, 1) }, NOW).unwrap_err();
    assert_eq!(refusal.refusal, Refusal::Unfit);
    assert_eq!(pool.members(&[]).len(), 2);
}

/// spec §6, §7.
#[test]
fn an_owner_is_waited_for_and_a_sockets_leg_is_not() {
    let pool = pool(vec![loaded(1, 0), loaded(2, 0)]);
    pool.own([9; 16], AccountId(1), NOW);
    let until = after(Duration::from_secs(5));
    pool.settle(&account(&pool, 1), Outcome::RateLimited { until }, AT);
    let refused = |wish: &Wish<'_>| pool.lease(wish, NOW).unwrap_err().refusal;
    let owner = Wish { owner: Some([9; 16]), ..wish(None, 1) };
    assert!(matches!(refused(&owner), Refusal::Owner(Some(later)) if later.until == Some(until)));
    assert_eq!(pool.lacks(&owner, NOW), Some(refused(&owner)));
    let leg = Wish { leg: Some(AccountId(1)), ..wish(None, 1) };
    assert_eq!(refused(&leg), Refusal::Owner(None));
    assert_eq!(pool.lacks(&leg, NOW), Some(Refusal::Owner(None)));
    assert_eq!(pool.lease(&owner, until).unwrap().account.id, AccountId(1));
}

/// spec §5.
#[test]
fn each_pool_takes_its_own_turns() {
    let spec = |name: &str, members: [&str; 2]| PoolSpec {
        name: name.into(),
        members: members.map(str::to_owned).to_vec(),
        strategy: Strategy::RoundRobin,
        rebalance_threshold: None,
    };
    let pool = Arc::new(Pool::default());
    let accounts = (1..=3).map(|id| loaded(id, 0)).collect();
    pool.replace(accounts, &[], &[spec("ours", ["a1", "a2"]), spec("theirs", ["a2", "a3"])]);
    let (ours, theirs) = (["ours".to_owned()], ["theirs".to_owned()]);
    let on = |pools, surface| {
        let wish = Wish { pools, ask: Ask { surface, ..ASK }, ..wish(None, 1) };
        assert_eq!(
            pool.why(&wish, NOW).chosen,
            pool.why(&wish, NOW).chosen,
            "asking takes no turn"
        );
        pool.lease(&wish, NOW).unwrap().account.id.0
    };
    // Every other choice is another pool's, or of another surface.
    let (mut one, mut other, mut third) = (vec![], vec![], vec![]);
    for _ in 0..4 {
        one.push(on(&ours, Surface::Responses));
        other.push(on(&theirs, Surface::Responses));
        third.push(on(&ours, Surface::Chat));
        on(&ours, Surface::Chat);
    }
    assert_eq!(one, [1, 2, 1, 2]);
    assert_eq!(other, [2, 3, 2, 3]);
    assert_eq!(third, [1, 1, 1, 1]);
}

/// spec §2: a key of several pools has the members of all, each once, and changes none of them.
#[test]
fn several_pools_are_taken_together() {
    let pool = Pool::default();
    let spec = |name: &str, members: [&str; 2]| PoolSpec {
        name: name.into(),
        strategy: Strategy::RoundRobin,
        rebalance_threshold: None,
        members: members.map(str::to_owned).into(),
    };
    let pools = [spec("ours", ["a1", "a2"]), spec("theirs", ["a2", "a3"])];
    pool.replace((1..=3).map(|id| loaded(id, 0)).collect(), &[], &pools);
    let members = |names: &[&str]| -> Vec<i64> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        pool.members(&names).iter().map(|(account, _)| account.id.0).collect()
    };
    assert_eq!(members(&["theirs", "ours"]), [2, 3, 1]);
    assert_eq!(members(&["nobody's", "ours"]), [1, 2]);
    assert_eq!((members(&["theirs"]), members(&["nobody's"])), (vec![2, 3], vec![]));
    assert_eq!(members(&[]), [1, 2, 3]);
}

/// spec §5: the draw is kept, so that a decision can be replayed.
#[test]
fn a_decision_keeps_what_was_drawn() {
    let pool = pool((1..=5).map(|id| loaded(id, 0)).collect());
    let drawn = |session, seed| {
        let mut lease = pool.lease(&wish(session, seed), NOW).unwrap();
        let decision = lease.decision.take().unwrap();
        let written = serde_json::to_string(&decision).unwrap();
        assert_eq!(serde_json::from_str::<Decision>(&written).unwrap(), *decision);
        (decision.chosen, decision.draw)
    };
    let (chosen, draw) = drawn(Some([7; 16]), u64::MAX);
    assert_eq!(draw, Some(u64::MAX));
    assert_eq!(drawn(None, u64::MAX).0, chosen, "the same again");
    assert_eq!(drawn(Some([7; 16]), 1), (chosen, None), "a home is not drawn");
}

#[test]
fn a_failed_connect_is_charged_when_another_address_answers() {
    let at = |id: i64, origin| {
        let mut one = loaded(id, 0);
        one.account.upstream = Upstream::at(origin, "");
        one
    };
    let failed = Outcome::ConnectFailed { durable: true };
    let accounts = || vec![at(1, "https://x"), at(2, "https://x"), at(3, "https://y")];
    let pool = pool(accounts());
    pool.settle(&account(&pool, 1), failed, AT);
    assert_eq!(states(&pool, NOW), ["ready", "ready", "ready"], "not yet known whose fault it is");
    pool.observe(&account(&pool, 3), &[], Source::Answer, NOW);
    assert_eq!(states(&pool, NOW), ["cooling", "ready", "ready"], "sub2api F15");
    let moved = self::pool(accounts());
    moved.settle(&account(&moved, 1), failed, AT);
    moved.replace(vec![at(1, "https://z"), at(3, "https://y")], &[], &[]);
    moved.observe(&account(&moved, 3), &[], Source::Answer, NOW);
    assert_eq!(states(&moved, NOW), ["ready", "ready"], "it goes elsewhere by now");
    let down = self::pool(accounts());
    down.settle(&account(&down, 1), failed, AT);
    down.settle(&account(&down, 3), failed, AT);
    down.observe(&account(&down, 2), &[], Source::Answer, NOW);
    assert_eq!(
        states(&down, NOW),
        ["ready", "ready", "ready"],
        "codex-lb D15: the network was down"
    );
}

/// multiplexer 18.2 #25.
#[tokio::test]
async fn each_time_an_account_becomes_unable_its_waiting_requests_are_told() {
    use futures_util::FutureExt;
    let pool = pool(vec![loaded(1, 0)]);
    let rated = |now: Timestamp| {
        let until = now.plus(Duration::from_secs(5));
        pool.settle(
            &account(&pool, 1),
            Outcome::RateLimited { until },
            Attempt { sent_at: now, now, ..AT },
        );
    };
    for minute in 0..3 {
        let now = after(Duration::from_mins(minute));
        let waiting = pool.lease(&wish(None, 1), now).unwrap();
        assert_eq!(waiting.interrupted().now_or_never(), None, "round {minute}");
        rated(now);
        assert_eq!(waiting.interrupted().now_or_never(), Some(()), "round {minute}");
    }
}

/// multiplexer 18.3 #36–#38.
#[tokio::test]
async fn a_rebalance_moves_the_requests_of_its_own_pool_once() {
    use futures_util::FutureExt;
    let spec = |name: &str| PoolSpec {
        name: name.into(),
        members: vec!["a1".into(), "a2".into()],
        strategy: Strategy::LeastUsed,
        rebalance_threshold: Some(20.0),
    };
    let pool = Arc::new(Pool::default());
    pool.replace(vec![loaded(1, 0), loaded(2, 0)], &[], &[spec("ours"), spec("theirs")]);
    let (ours, theirs) = (["ours".to_owned()], ["theirs".to_owned()]);
    let lease =
        |pools, session| pool.lease(&Wish { pools, ..wish(Some([session; 16]), 1) }, NOW).unwrap();
    let (first, other) = (lease(&ours, 1), lease(&theirs, 2));
    assert_eq!((first.account.id, other.account.id), (AccountId(1), AccountId(1)));
    pool.observe(&account(&pool, 1), &weekly(50.0), Source::Poll, NOW);
    pool.observe(&account(&pool, 2), &weekly(10.0), Source::Poll, NOW);
    let moved = lease(&ours, 1);
    assert_eq!(moved.account.id, AccountId(2));
    assert_eq!(first.interrupted().now_or_never(), Some(()), "it was told to move");
    assert_eq!(other.interrupted().now_or_never(), None, "#37: the other pool's was not");
    assert_eq!(lease(&ours, 1).account.id, AccountId(2), "and there it stays");
    assert_eq!(moved.interrupted().now_or_never(), None, "#38: nor does the old signal reach it");
}

#[test]
fn two_windows_of_one_length_do_not_stand_side_by_side() {
    let pool = pool(vec![loaded(1, 0)]);
    let five = Reading { length: FIVE_HOURS, ..weekly(3.0).remove(0) };
    pool.observe(&account(&pool, 1), &[five.clone(), five], Source::Answer, NOW);
    assert_eq!(pool.view(NOW).accounts[0].windows.len(), 1);
}

/// spec §3.6.
#[test]
fn a_visible_change_is_one_line_in_the_log() {
    use std::io::{Read, Seek};
    let lines = Arc::new(tempfile::tempfile().unwrap());
    let subscriber =
        tracing_subscriber::fmt().with_writer(Arc::clone(&lines)).with_ansi(false).finish();
    let pool = pool(vec![loaded(1, 0)]);
    tracing::subscriber::with_default(subscriber, || {
        let five = Reading { length: FIVE_HOURS, ..weekly(3.0).remove(0) };
        let both = [five, weekly(12.0).remove(0)];
        for _ in 0..3 {
            pool.observe(&account(&pool, 1), &both, Source::Answer, NOW);
        }
        pool.observe(
            &account(&pool, 1),
            &weekly(12.004),
            Source::Poll,
            after(Duration::from_secs(1)),
        );
        pool.observe(
            &account(&pool, 1),
            &weekly(12.5),
            Source::Poll,
            after(Duration::from_secs(2)),
        );
    });
    let (mut lines, mut text) = (&*lines, String::new());
    lines.rewind().unwrap();
    lines.read_to_string(&mut text).unwrap();
    let changes: Vec<&str> = text.lines().filter(|l| l.contains("quota changed")).collect();
    assert_eq!(changes.len(), 2, "{text}");
    assert!(changes[0].contains("5h 3.00 %") && changes[0].contains("168h 12.00 %"), "{text}");
    assert!(changes[1].contains("168h 12.50 %"), "{text}");
}

proptest::proptest! {
    /// Whatever is taken and given back, in whatever order, the counts are right; in the end nothing
    /// is left.
    #[test]
    fn permits_taken_are_permits_returned(
        steps in proptest::collection::vec((0_u8..6, proptest::prelude::any::<u64>()), 1..60),
    ) {
        let pool = pool(vec![loaded(1, 3), loaded(2, 0), loaded(3, 1)]);
        let mut held: Vec<(Lease, bool)> = Vec::new();
        for (step, seed) in steps {
            let at = usize::try_from(seed % 61).unwrap();
            match step {
                0 | 1 => {
                    let surface = if step == 0 { Surface::Responses } else { Surface::CountTokens };
                    let wish = Wish { ask: Ask { surface, ..ASK }, ..wish(None, seed) };
                    held.extend(pool.lease(&wish, NOW).ok().map(|lease| (lease, step == 0)));
                }
                2 if !held.is_empty() => drop(held.swap_remove(at % held.len())),
                3 if !held.is_empty() => {
                    let account = Arc::clone(&held[at % held.len()].0.account);
                    pool.settle(&account, Outcome::UpstreamError, AT);
                }
                4 => pool.replace(vec![loaded(1, 3), loaded(2, 0), loaded(3, 1)], &[], &[]),
                5 if !held.is_empty() => {
                    let account = Arc::clone(&held[at % held.len()].0.account);
                    pool.settle(&account, Outcome::Served, AT);
                }
                _ => {}
            }
            let counted = held.iter().filter(|(_, counts)| *counts).count();
            proptest::prop_assert_eq!(usize::try_from(pool.in_flight()).unwrap(), counted);
        }
        drop(held);
        proptest::prop_assert_eq!(pool.in_flight(), 0);
    }
}
