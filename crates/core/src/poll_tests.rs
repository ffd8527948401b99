use super::*;
use crate::account::{Family, Kind};
use crate::availability::tests::{NOW, account, later};
use crate::quota::{FIVE_HOURS, Limit, Reading, Source, WEEK};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;

fn quota(readings: &[(Duration, Option<u64>)]) -> Quota {
    let mut quota = Quota::default();
    for (length, reset_in) in readings {
        let reading = Reading {
            limit: Limit::Ordinary,
            length: *length,
            used: Some(Fraction::ZERO),
            resets_at: reset_in.map(later),
        };
        quota.merge(&[reading], Source::Answer, NOW);
    }
    quota
}

#[test]
#[rustfmt::skip]
fn asks_an_hour_after_the_last_data_or_shortly_after_the_next_reset() {
    let cases = [
        ("nothing is known",             vec![],                                                    None,              None),
        ("an answer without a window",   vec![],                                                    Some(0),           Some(HOUR)),
        ("no reset is known",            vec![(FIVE_HOURS, None)],                                  None,              Some(HOUR)),
        ("the resets are far",           vec![(FIVE_HOURS, Some(5 * HOUR)), (WEEK, Some(90 * HOUR))], None,            Some(HOUR)),
        ("one is near",                  vec![(FIVE_HOURS, Some(10 * MINUTE)), (WEEK, Some(90 * HOUR))], None,         Some(10 * MINUTE + 30)),
        ("it was asked since that one",  vec![(FIVE_HOURS, Some(10 * MINUTE)), (WEEK, Some(90 * HOUR))], Some(11 * MINUTE), Some(71 * MINUTE)),
        ("an older answer",              vec![(FIVE_HOURS, Some(5 * HOUR))],                        None,              Some(HOUR)),
    ];
    for (name, windows, answered, want) in cases {
        let answered = answered.map(later);
        assert_eq!(regular(&quota(&windows), answered), want.map(later), "spec §3.4: {name}");
    }
}

fn evidence(status: u16, code: &'static str, message: &'static str) -> Evidence<'static> {
    Evidence {
        family: Family::OpenAi,
        status,
        code,
        kind: "",
        message,
        html: false,
        retry_after: (status == 429).then(|| Duration::from_secs(5)),
        resets_at: None,
        spent_until: None,
        family_spent_until: None,
        nearest_reset: None,
        now: NOW,
    }
}

#[test]
#[rustfmt::skip]
fn judges_a_refusal() {
    use Failure::{Away, Refused, Renew, Stopped, TooOften};
    let (gone, login) = (Stopped(Stop::Deactivated), Stopped(Stop::NeedsLogin));
    let wait = TooOften { retry_after: Some(Duration::from_secs(5)) };
    // Before the token was renewed, and after.
    let cases = [
        ("codex-lb G1: deactivated",      401, "",                    "Your OpenAI account has been deactivated.", [gone, gone]),
        ("by its code",                   401, "account_deactivated", "",                         [gone, gone]),
        ("spec §6: payment required",     402, "",                    "",                         [gone, gone]),
        ("codex-lb G2, G5: ambiguous",    401, "",                    "Unauthorized",             [Renew, Refused]),
        ("a final code, then again",      401, "token_invalidated",   "",                         [Renew, login]),
        ("codex-lb G4: 403",              403, "",                    "Forbidden",                [Refused, Refused]),
        ("codex-lb G4: never by a 403",   403, "account_deactivated", "it has been deactivated",  [Refused, Refused]),
        ("a revoked token",               403, "",                    "OAuth token has been revoked", [Renew, Refused]),
        ("multiplexer 18.2 #14: 429",     429, "",                    "",                         [wait, wait]),
        ("no such endpoint",              404, "",                    "",                         [Away, Away]),
        ("its trouble",                   503, "",                    "",                         [Away, Away]),
        ("text about it in a 500",        500, "",                    "account has been deactivated", [Away, Away]),
    ];
    for (name, status, code, message, want) in cases {
        let e = evidence(status, code, message);
        assert_eq!([judge(&e, false), judge(&e, true)], want, "{name}");
    }
}

/// The seconds after which the next poll is due, for each of the failures in a row.
fn delays(failures: &[Failure]) -> Vec<u64> {
    let (mut polls, quota) = (Polls::fresh(), Quota::default());
    let mut at = NOW;
    failures
        .iter()
        .map(|failure| {
            assert!(polls.is_due(&quota, at));
            polls.begin(at, Fraction::ZERO);
            polls.failed(*failure, at);
            polls.end();
            let due = |seconds: &u64| polls.is_due(&quota, at.plus(Duration::from_secs(*seconds)));
            let delay = (0..100_000).find(due).expect("it is due some time");
            at = at.plus(Duration::from_secs(delay));
            delay
        })
        .collect()
}

#[test]
fn backs_off() {
    use Failure::{Away, Refused, TooOften};
    let asked_to = |seconds| TooOften { retry_after: Some(Duration::from_secs(seconds)) };
    let vague = TooOften { retry_after: None };
    let cases: [(&str, &[Failure], &[u64]); 6] = [
        ("multiplexer 18.2 #20", &[Away; 6], &[60, 120, 240, 300, 300, 300]),
        ("multiplexer 18.2 #14", &[asked_to(5), asked_to(900)], &[5, 900]),
        ("not for ever", &[asked_to(9_000_000)], &[86_400]),
        ("no time was named", &[vague; 3], &[60, 120, 240]),
        ("a 429 is no failure", &[Away, vague, Away], &[60, 60, 120]),
        ("codex-lb G2, G4", &[Refused, Refused], &[300, 300]),
    ];
    for (name, failures, want) in cases {
        assert_eq!(delays(failures), want, "{name}");
    }
}

/// multiplexer 18.2 #20.
#[test]
fn failures_are_told_until_the_longest_delay_and_an_answer_starts_anew() {
    let mut polls = Polls::fresh();
    let fail = |polls: &mut Polls| {
        polls.failed(Failure::Away, NOW);
        polls.is_loud()
    };
    assert_eq!([(); 5].map(|()| fail(&mut polls)), [true, true, true, false, false]);
    polls.answered(NOW);
    assert!(fail(&mut polls), "the first success resets");
    let vague = Failure::TooOften { retry_after: None };
    polls.failed(vague, NOW);
    polls.failed(vague, NOW);
    polls.answered(NOW);
    polls.failed(vague, later(2 * HOUR));
    assert!(polls.is_due(&Quota::default(), later(2 * HOUR + 60)), "the wait after a 429 too");
    fail(&mut polls);
    polls.heard();
    polls.failed(Failure::Away, NOW);
    assert!(polls.is_due(&Quota::default(), later(60)), "so does being served");
}

#[test]
fn jitter_comes_on_top() {
    let quota = quota(&[(WEEK, None)]);
    let mut polls = Polls::default();
    polls.begin(NOW, Fraction::ONE);
    polls.answered(NOW);
    polls.end();
    let due = |polls: &Polls, seconds| polls.is_due(&quota, later(seconds));
    assert_eq!([due(&polls, HOUR + 59), due(&polls, HOUR + 60)], [false, true]);
    polls.failed(Failure::Away, later(HOUR));
    assert_eq!([due(&polls, HOUR + 65), due(&polls, HOUR + 66)], [false, true], "a tenth");
}

#[test]
fn one_at_a_time_and_at_once_when_fresh() {
    let quota = quota(&[(WEEK, None)]);
    let mut polls = Polls::fresh();
    assert!(polls.is_due(&quota, NOW), "whatever is stored");
    polls.begin(NOW, Fraction::ZERO);
    assert!(!polls.is_due(&quota, later(2 * HOUR)), "one is under way");
    polls.end();
    assert!(!polls.is_due(&quota, later(1)) && polls.is_due(&quota, later(HOUR)));
}

#[test]
fn a_stale_snapshot_is_checked_by_a_poll_if_one_may_be_sent() {
    let ends = |polls: &mut Polls, seconds| polls.probe(later(seconds));
    let mut idle = Polls::default();
    assert_eq!(ends(&mut idle, 5), Some(later(15)), "spec §3.5");
    assert!(idle.is_due(&quota(&[(WEEK, None)]), later(5)), "and is sent");
    idle.begin(later(6), Fraction::ZERO);
    assert_eq!(ends(&mut idle, 7), Some(later(16)), "one is under way");
    assert_eq!(ends(&mut idle, 16), None, "it did not answer in time");
    idle.failed(Failure::Away, later(16));
    idle.end();
    assert_eq!(ends(&mut idle, 17), None, "it failed");
    assert_eq!(ends(&mut idle, 76), Some(later(86)), "later it may be tried again");
    let mut answered = Polls::default();
    answered.answered(NOW);
    assert_eq!(ends(&mut answered, 59), None, "it has just been asked, and did not say");
}

#[test]
fn a_missing_row_of_a_gated_limit_is_asked_for_now_and_then() {
    let mut polls = Polls::default();
    assert!(polls.miss(NOW) && polls.is_due(&quota(&[(WEEK, None)]), NOW), "spec §4");
    polls.begin(NOW, Fraction::ZERO);
    assert!(!polls.miss(NOW));
    polls.answered(NOW);
    polls.end();
    assert!(!polls.miss(later(599)) && polls.miss(later(600)));
}

#[test]
fn asks_who_can_tell_and_was_not_stopped() {
    let polled = |change: fn(&mut Account)| {
        let mut account = account(1);
        change(&mut account);
        is_polled(&account)
    };
    assert!(polled(|_| {}) && polled(|a| a.kind = Kind::Claude));
    let cases: [(&str, fn(&mut Account)); 6] = [
        ("an API key", |a| a.kind = Kind::OpenAi),
        ("compatible", |a| a.kind = Kind::Compatible),
        ("paused", |a| a.paused = true),
        ("no credential", |a| a.has_credential = false),
        ("codex-lb G1: deactivated", |a| a.health.stop = Some(Stop::Deactivated)),
        ("no sign-in", |a| a.health.stop = Some(Stop::NeedsLogin)),
    ];
    for (name, change) in cases {
        assert!(!polled(change), "{name}");
    }
}

#[test]
fn a_profile_is_good_for_a_day() {
    let mut polls = Polls::fresh();
    assert!(polls.wants_profile(NOW));
    polls.profiled(NOW);
    assert!(!polls.wants_profile(later(23 * HOUR)) && polls.wants_profile(later(24 * HOUR)));
}
