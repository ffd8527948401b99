//! Polls, probes, and what they say of an account.

use super::*;

/// sub2api P17.
#[test]
fn one_of_fifty_probes_a_stale_account_and_the_rest_go_elsewhere() {
    let pool = pool(vec![loaded(1, 0), loaded(2, 0)]);
    let first = PoolSpec {
        name: DEFAULT_POOL.into(),
        members: vec![],
        strategy: Strategy::Fallback,
        rebalance_threshold: None,
    };
    pool.replace(vec![loaded(1, 0), loaded(2, 0)], &[], &[first]);
    pool.observe(&account(&pool, 1), &weekly(99.5), Source::Answer, NOW);
    let stale = after(Duration::from_hours(2));
    let leases: Vec<Lease> = std::thread::scope(|scope| {
        let one = |seed| {
            let pool = &pool;
            scope.spawn(move || pool.lease(&wish(None, seed), stale).unwrap())
        };
        let threads: Vec<_> = (0..50).map(one).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let probes = |leases: &[Lease]| leases.iter().filter(|l| l.account.id == AccountId(1)).count();
    assert_eq!((probes(&leases), leases.len()), (1, 50));
    let again = pool.lease(&wish(None, 1), stale).unwrap();
    assert_eq!(again.account.id, AccountId(2), "still out");
    drop(leases);
    let next = pool.lease(&wish(None, 1), stale).unwrap();
    assert_eq!(next.account.id, AccountId(1), "spec §3.5: the lease ended and found nothing");
    pool.observe(&account(&pool, 1), &weekly(99.5), Source::Answer, stale);
    let third = pool.lease(&wish(None, 1), stale).unwrap();
    assert_eq!(third.account.id, AccountId(2), "sub2api P19: its headers landed, and say the same");
}

/// spec §3.5: until its headers land, and not until its stream ends.
#[tokio::test]
async fn the_head_of_a_probe_calls_who_waits_for_it() {
    let pool = pool(vec![loaded(1, 0)]);
    pool.observe(&account(&pool, 1), &weekly(99.5), Source::Answer, NOW);
    let stale = after(Duration::from_hours(2));
    let probe = pool.lease(&wish(None, 1), stale).unwrap();
    let waiter = pool.line().join(1, 1).unwrap();
    let far = tokio::time::Instant::now() + WEEK;
    assert!(waiter.called(far).now_or_never().is_some(), "who joins looks once");
    assert_eq!(pool.lease(&wish(None, 2), stale).unwrap_err().refusal, Refusal::Busy);
    waiter.in_vain();
    assert!(waiter.called(far).now_or_never().is_none());
    pool.observe(&account(&pool, 1), &weekly(3.0), Source::Answer, stale);
    assert!(waiter.called(far).now_or_never().is_some());
    drop(pool.lease(&wish(None, 2), stale).unwrap());
    drop(probe);
}

/// codex-lb E17.
#[test]
fn a_poll_below_the_cap_ends_a_limit() {
    let pool = pool(vec![loaded(1, 0)]);
    let spent = Outcome::QuotaSpent { until: Some(after(WEEK)) };
    let later = after(Duration::from_mins(1));
    let usage = |percent| Usage { readings: weekly(percent), ..Usage::default() };
    pool.settle(&account(&pool, 1), spent, AT);
    pool.polled(&account(&pool, 1), &usage(99.5), later, later);
    assert_eq!(states(&pool, later), ["limited"], "not below its cap");
    pool.polled(&account(&pool, 1), &usage(3.0), NOW.minus(Duration::from_secs(1)), later);
    assert_eq!(states(&pool, later), ["limited"], "asked before it was limited");
    let later = after(Duration::from_mins(2));
    pool.polled(&account(&pool, 1), &usage(3.0), later, later);
    assert_eq!(states(&pool, later), ["ready"], "spec §4: nobody waits for Thursday");
}

/// spec §4.
#[test]
fn a_poll_ends_a_models_spent_limit() {
    let mut one = loaded(1, 0);
    one.facts.kind = Kind::Claude;
    let pool = pool(vec![one]);
    let ask = Ask { surface: Surface::Messages, model: "claude-opus-5", gate: None };
    let wish = Wish { ask, ..wish(None, 1) };
    let minute = |count| after(Duration::from_mins(count));
    let spent = Outcome::ModelLimited { until: after(WEEK) };
    pool.settle(&account(&pool, 1), spent, Attempt { ask, ..AT });
    let refusal = pool.lease(&wish, minute(1)).unwrap_err().refusal;
    assert!(matches!(refusal, Refusal::Later(later) if later.quota), "{refusal:?}");
    let family = Limit::Named("seven_day_opus".into());
    let readings = vec![Reading { limit: family, ..weekly(5.0).remove(0) }];
    let usage = Usage { readings, ..Usage::default() };
    pool.polled(&account(&pool, 1), &usage, minute(2), minute(2));
    assert!(pool.lease(&wish, minute(2)).is_ok());
}

#[test]
fn a_clock_that_is_set_back_makes_no_reading_newer_than_a_refusal() {
    let mut one = loaded(1, 0);
    one.facts.kind = Kind::Claude;
    let pool = pool(vec![one]);
    let ask = Ask { surface: Surface::Messages, model: "claude-opus-5", gate: None };
    let wish = Wish { ask, ..wish(None, 1) };
    let family = Limit::Named("seven_day_opus".into());
    let seen = vec![Reading { limit: family, ..weekly(5.0).remove(0) }];
    pool.observe(&account(&pool, 1), &seen, Source::Answer, NOW.minus(Duration::from_mins(1)));
    let spent = Outcome::ModelLimited { until: after(WEEK) };
    pool.settle(&account(&pool, 1), spent, Attempt { ask, ..AT });
    let back = Duration::from_hours(3);
    pool.set_back(back);
    let now = after(Duration::from_mins(1)).minus(back);
    pool.observe(&account(&pool, 1), &weekly(6.0), Source::Answer, now);
    assert!(pool.lease(&wish, now).is_err());
}

/// spec §3.2.
#[test]
fn a_poll_that_was_overtaken_by_an_answer_lowers_nothing() {
    let pool = pool(vec![loaded(1, 0)]);
    let second = |count| after(Duration::from_secs(count));
    let used = || pool.view(second(9)).accounts[0].windows[0].used_percent.to_string();
    pool.observe(&account(&pool, 1), &weekly(10.0), Source::Answer, NOW);
    pool.observe(&account(&pool, 1), &weekly(50.0), Source::Answer, second(2));
    let usage = Usage { readings: weekly(10.0), ..Usage::default() };
    pool.polled(&account(&pool, 1), &usage, second(1), second(3));
    assert_eq!(used(), "50", "asked before the last answer");
    pool.polled(&account(&pool, 1), &usage, second(4), second(5));
    assert_eq!(used(), "10");
}

/// A subscription with polls on, and none due.
fn polled_pool() -> Arc<Pool> {
    let mut one = loaded(1, 0);
    one.facts.kind = Kind::Codex;
    let pool = pool(vec![one]);
    pool.begin_polls();
    for mut polling in due(&pool, NOW) {
        polling.answered(&Usage { readings: weekly(99.5), ..Usage::default() }, NOW);
    }
    pool
}

fn due(pool: &Arc<Pool>, now: Timestamp) -> Vec<Polling> {
    pool.due_polls(now, 8, || Fraction::ZERO)
}

/// spec §3.5.
#[test]
fn whoever_would_probe_a_stale_account_waits_for_a_poll_first() {
    let pool = polled_pool();
    let stale = after(Duration::from_hours(2));
    // Until when the account is waited for, after somebody was refused.
    let refused = |now| {
        assert_eq!(pool.lease(&wish(None, 1), now).unwrap_err().refusal, Refusal::Busy);
        let view = pool.view(now).accounts.remove(0);
        assert_eq!(view.state, "probing");
        view.until.unwrap() - now.0
    };
    assert_eq!([refused(stale), refused(stale)], [10_000, 10_000]);
    let mut polling = due(&pool, stale).remove(0);
    assert_eq!(refused(stale), 10_000, "it is under way");
    polling.failed(Failure::Away, stale);
    let lease = pool.lease(&wish(None, 1), stale).expect("it failed: one request finds out");
    assert_eq!(refused(stale), 120_000, "and only one");
    drop(lease);
    let again = stale.plus(Duration::from_mins(1));
    assert_eq!(refused(again), 10_000);
    let polling = due(&pool, again.plus(Duration::from_secs(1)));
    let late = again.plus(Duration::from_secs(10));
    let lease = pool.lease(&wish(None, 1), late).expect("it does not answer in time");
    drop((lease, polling));
    assert!(pool.lease(&wish(None, 1), late).is_ok(), "a poll that was dropped has failed");
}

/// spec §4.
#[test]
fn a_gated_request_has_its_missing_row_asked_for() {
    let pool = polled_pool();
    let gates = crate::gates::Gates::builtin();
    let model = "gpt-5.3-codex-spark";
    let ask = Ask { model, gate: gates.of(model).map(Arc::as_ref), ..ASK };
    let now = after(Duration::from_mins(15));
    assert!(due(&pool, now).is_empty());
    drop(pool.lease(&Wish { ask, ..wish(None, 1) }, now).unwrap());
    assert_eq!(due(&pool, now).len(), 1);
}

#[test]
fn being_served_and_reloads_leave_the_polls_as_they_are() {
    let pool = polled_pool();
    let subscription = || {
        let mut one = loaded(1, 0);
        one.facts.kind = Kind::Codex;
        one
    };
    let mut same = subscription();
    same.account.credential = Arc::clone(&pool.accounts()[0].credential);
    pool.replace(vec![same], &[], &[]);
    assert!(due(&pool, NOW).is_empty(), "a reload is no reason to ask");
    let minutes = |count| after(Duration::from_mins(count));
    pool.observe(&account(&pool, 1), &weekly(99.6), Source::Answer, minutes(40));
    assert!(due(&pool, minutes(99)).is_empty(), "spec §3.4: an hour after it was served");
    let fail = |at| due(&pool, at).remove(0).failed(Failure::Away, at);
    fail(minutes(100));
    fail(minutes(101));
    pool.observe(&account(&pool, 1), &weekly(99.6), Source::Answer, minutes(102));
    fail(minutes(162));
    assert_eq!(due(&pool, minutes(163)).len(), 1, "being served has ended the row of failures");
    pool.replace(vec![subscription()], &[], &[]);
    assert_eq!(due(&pool, minutes(163)).len(), 1, "another credential is asked at once");
}

/// spec §2.
#[test]
fn a_learnt_plan_weighs_what_it_weighs_unless_an_operator_says_otherwise() {
    for (manual, want) in [(None, "10"), (Some(3.0), "3")] {
        let mut one = loaded(1, 0);
        one.facts.kind = Kind::Codex;
        one.plan_weight = manual;
        one.facts.weight = manual.unwrap_or(1.0);
        let pool = pool(vec![one]);
        let told = Usage { plan: Some("pro".into()), ..Usage::default() };
        due(&pool, NOW).remove(0).answered(&told, NOW);
        assert_eq!(pool.view(NOW).accounts[0].weight.to_string(), want);
    }
}

#[test]
fn a_poll_of_an_account_that_was_exchanged_meanwhile_says_nothing() {
    let pool = polled_pool();
    let hour = after(Duration::from_hours(2));
    let mut polling = due(&pool, hour).remove(0);
    pool.credential_exchanged(AccountId(1));
    assert!(polling.gone.is_cancelled());
    polling.failed(Failure::Stopped(Stop::Deactivated), hour);
    assert_ne!(states(&pool, hour), ["deactivated"], "codex-lb G12");
    polling.answered(&Usage { readings: weekly(3.0), ..Usage::default() }, hour);
    assert_eq!(pool.view(hour).accounts[0].windows[0].used_percent.to_string(), "99.5");
    assert_eq!(due(&pool, hour).len(), 1, "the new credential is asked for itself");
}
