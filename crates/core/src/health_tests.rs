use super::*;

const NOW: Timestamp = Timestamp(1_000_000_000);

fn later(seconds: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(seconds))
}

/// What blocks it at the last moment of which a test speaks, or for long after.
fn blocked(health: &Health) -> Option<Block> {
    health.blocked(NOW)
}

/// sub2api F1, F2.
#[test]
fn three_strikes_disable() {
    let mut health = Health::default();
    health.strike(NOW, NOW);
    assert_eq!(blocked(&health).map(|b| b.cause), Some(Cause::Strike(1)));
    let text = blocked(&health).map(|b| b.cause.text("OpenAI"));
    assert_eq!(text.as_deref(), Some("OpenAI 403 temporary cooldown (1/3)"));
    health.strike(later(700), later(700));
    assert_eq!((health.stop, blocked(&health).map(|b| b.cause)), (None, Some(Cause::Strike(2))));
    health.strike(later(1400), later(1400));
    assert_eq!(health.stop, Some(Stop::Disabled));
}

#[test]
fn a_strike_cools_for_ten_minutes_and_a_late_one_extends_it() {
    let mut health = Health::default();
    health.strike(NOW, NOW);
    let block = |health: &Health| blocked(health).map(|b| (b.cause, b.until));
    assert_eq!(block(&health), Some((Cause::Strike(1), later(600))));
    health.strike(NOW.minus(Duration::from_secs(9)), later(60));
    assert_eq!(block(&health), Some((Cause::Strike(1), later(660))), "sent before it began");
    health.strike(later(1), later(70));
    assert_eq!(block(&health), Some((Cause::Strike(2), later(670))), "sent after: another one");
}

#[test]
fn requests_of_one_burst_are_one_strike() {
    let mut health = Health::default();
    for i in 0..5 {
        health.strike(NOW.minus(Duration::from_secs(1)), later(i));
    }
    assert_eq!((health.stop, blocked(&health).map(|b| b.cause)), (None, Some(Cause::Strike(1))));
}

#[test]
fn strikes_are_forgotten_after_three_hours_or_a_success() {
    let mut health = Health::default();
    for minute in [0, 170, 340] {
        health.strike(later(minute * 60), later(minute * 60));
    }
    assert_eq!(
        (health.stop, health.strikes),
        (None, 1),
        "sub2api 4.5: from the first, not sliding"
    );
    health.strike(later(350 * 60), later(350 * 60));
    health.success(later(350 * 60 + 1));
    health.strike(later(360 * 60), later(360 * 60));
    assert_eq!(health.stop, None, "sub2api F14: a success in between");
    assert_eq!(blocked(&health).map(|b| b.cause), Some(Cause::Strike(1)));
}

/// sub2api R10: never shortened. R12: ended by a later success.
#[test]
fn only_later_evidence_ends_a_block() {
    let mut health = Health::default();
    health.block(Cause::Rate, later(60), NOW);
    health.success(NOW.minus(Duration::from_secs(1)));
    assert!(blocked(&health).is_some(), "an older answer does not end it");
    health.block(Cause::Rate, later(30), NOW);
    assert_eq!(blocked(&health).map(|b| b.until), Some(later(60)), "nor does a shorter one");
    health.success(later(1));
    assert_eq!(blocked(&health), None);
}

#[test]
fn blocks_of_different_causes_stand_side_by_side() {
    let mut health = Health::default();
    health.block(Cause::Quota, later(9000), NOW);
    health.block(Cause::Rate, later(200), later(130));
    let causes = |health: &Health, at| {
        let cause = |block: Option<Block>| block.map(|b| (b.cause, b.until));
        (cause(health.blocked(later(at))), cause(health.blocked_gated(later(at))))
    };
    let (quota, rate) = ((Cause::Quota, later(9000)), (Cause::Rate, later(200)));
    assert_eq!(causes(&health, 131), (Some(quota), Some(rate)), "Q11: the rate counts for both");
    assert_eq!(causes(&health, 200), (Some(quota), None));
    health.gated_success(later(201));
    assert_eq!(causes(&health, 202), (Some(quota), None), "served by another limit");
    health.block(Cause::Credential, later(900), later(300));
    health.logged_in(None);
    assert_eq!(causes(&health, 301), (Some(quota), None), "only what a sign-in ends");
    health.success(later(302));
    assert_eq!(causes(&health, 303), (None, None));
}

#[test]
fn a_new_sign_in_ends_what_the_old_one_was_stopped_for() {
    let cases = [
        (Stop::NeedsLogin, None, None),
        (Stop::NeedsLogin, Some(Fault::Reused), None),
        (Stop::Deactivated, Some(Fault::Deactivated), None),
        (Stop::Deactivated, Some(Fault::Reused), Some(Stop::Deactivated)),
        (Stop::Deactivated, None, Some(Stop::Deactivated)),
        (Stop::Disabled, Some(Fault::Deactivated), Some(Stop::Disabled)),
    ];
    for (stop, refused, want) in cases {
        let mut health = Health::stored(Some(stop));
        health.logged_in(refused);
        assert_eq!(health.stop, want, "{stop:?}, and its issuer had said {refused:?}");
    }
}

#[test]
fn strikes_cool_and_count_the_same_beneath_any_other_block() {
    for beneath in [None, Some(Cause::Rate), Some(Cause::Quota), Some(Cause::Unreachable)] {
        let mut health = Health::default();
        if let Some(cause) = beneath {
            health.block(cause, later(5 * 3600), later(1));
        }
        // Sent together; their answers come one after the other.
        (2..5).for_each(|second| health.strike(NOW, later(second)));
        assert_eq!((health.strikes, health.stop), (1, None), "{beneath:?}: one burst");
        let until = |health: &Health| {
            let strike = health.blocks.iter().find(|b| matches!(b.cause, Cause::Strike(_)));
            strike.map(|block| block.until)
        };
        assert_eq!(until(&health), Some(later(604)), "{beneath:?}");
        health.strike(later(605), later(606));
        assert_eq!((health.strikes, until(&health)), (2, Some(later(1206))), "{beneath:?}");
    }
    let mut health = Health::default();
    health.block(Cause::Quota, later(9000), NOW);
    health.strike(later(130), later(131));
    let cooling = health.blocked_gated(later(140)).map(|block| (block.cause, block.until));
    assert_eq!(cooling, Some((Cause::Strike(1), later(731))), "gated requests wait for it");
}

#[test]
fn a_request_at_fault_leaves_no_trace() {
    let charge = |outcome, errors| Charge { outcome, errors };
    let mut health = Health::default();
    (0..3).for_each(|_| health.error(NOW, NOW));
    health.take_back(charge(Outcome::UpstreamError, 2), NOW);
    assert_eq!(health.errors, 1, "what others cost stays");
    health.strike(later(5), later(5));
    health.take_back(charge(Outcome::Strike, 1), later(5));
    assert_eq!((blocked(&health), health.errors, health.strikes), (None, 0, 0));
    health.strike(later(6), later(6));
    health.take_back(charge(Outcome::Strike, 0), later(7));
    assert!(blocked(&health).is_some() && health.strikes == 1, "an older strike was another's");
    let rate = charge(Outcome::RateLimited { until: later(900) }, 0);
    health.block(Cause::Rate, later(900), later(7));
    health.take_back(rate, later(8));
    assert_eq!(blocked(&health).map(|b| b.cause), Some(Cause::Rate), "nor was this block its own");
    health.take_back(rate, later(7));
    assert_eq!(blocked(&health).map(|b| b.cause), Some(Cause::Strike(1)));
}

#[test]
fn a_third_strike_that_was_the_requests_fault_disables_nobody() {
    let third = || {
        let mut health = Health::default();
        for at in [0, 700, 1400] {
            health.strike(later(at), later(at));
        }
        assert_eq!(health.stop, Some(Stop::Disabled));
        health
    };
    let strike = Charge { outcome: Outcome::Strike, errors: 0 };
    let mut health = third();
    health.take_back(strike, later(1400));
    assert_eq!((health.stop, health.blocked(later(1400))), (None, None));
    health.strike(later(2000), later(2000));
    assert_eq!(health.stop, Some(Stop::Disabled), "the first two still count");
    let mut health = third();
    health.stop = Some(Stop::NeedsLogin);
    health.take_back(strike, later(1400));
    assert_eq!(health.stop, Some(Stop::NeedsLogin), "another stop is not its doing");
}

#[test]
fn a_poll_ends_what_an_older_answer_said_of_the_quota_and_nothing_else() {
    let cooling = |cause| {
        let mut health = Health::default();
        health.block(cause, later(600), NOW);
        health
    };
    for (cause, ends) in [(Cause::Quota, true), (Cause::Rate, false), (Cause::Strike(1), false)] {
        let mut health = cooling(cause);
        health.quota_is_left(later(5));
        assert_eq!(blocked(&health).is_none(), ends, "spec §4: {cause:?}");
    }
    let mut health = cooling(Cause::Quota);
    health.quota_is_left(NOW.minus(Duration::from_secs(1)));
    assert!(blocked(&health).is_some(), "asked before the block began");
}

#[test]
fn an_older_answer_does_not_end_a_row_of_errors() {
    let mut health = Health::default();
    (0..3).for_each(|_| health.error(NOW, NOW));
    health.success(NOW.minus(Duration::from_secs(1)));
    assert_eq!(health.errors, 3);
    health.success(later(1));
    assert_eq!(health.errors, 0);
}

/// sub2api F15.
#[test]
fn what_cannot_be_reached_counts_as_an_error_and_rests_if_it_will_last() {
    let mut health = Health::default();
    health.unreachable(false, NOW);
    assert_eq!((health.errors, blocked(&health)), (1, None));
    health.unreachable(true, NOW);
    let block = blocked(&health).map(|b| (b.cause, b.until));
    assert_eq!((health.errors, block), (2, Some((Cause::Unreachable, later(600)))));
}

#[test]
fn backoff_starts_at_the_third_error() {
    let mut health = Health::default();
    let want = [None, None, Some(30), Some(60), Some(120), Some(240), Some(300), Some(300)];
    for want in want {
        health.error(NOW, NOW);
        assert_eq!(health.backoff_until(), want.map(later), "{} errors", health.errors);
    }
    health.success(NOW);
    assert_eq!(health.backoff_until(), None);
}

/// Streams of one upstream that end together, each heard of after the other.
#[test]
fn one_incident_is_one_error_and_one_overload() {
    let mut health = Health::default();
    (10..18).for_each(|second| health.error(NOW, later(second)));
    assert_eq!((health.errors, health.last_error_at), (1, later(17)));
    health.success(later(16));
    assert_eq!(health.errors, 1, "it goes on until its last");
    health.error(later(11), later(20));
    health.error(later(12), later(21));
    assert_eq!(health.errors, 2, "sent after it was counted: another one");
    health.error(later(20), later(22));
    assert_eq!(health.backoff_until(), Some(later(22 + 30)));
    health.error(later(21), later(25));
    assert_eq!(health.backoff_until(), Some(later(25 + 30)), "the same, and later");

    let until = |health: &Health| health.model_block("m", later(2)).map(|b| b.until);
    (2..7).for_each(|second| health.overloaded("m", NOW, later(second)));
    assert_eq!(until(&health), Some(later(11)), "five seconds from the last");
    health.overloaded("m", later(2), later(7));
    assert_eq!(until(&health), Some(later(17)), "the second time");
}

#[test]
fn overload_cools_one_model_a_little_longer_each_time() {
    let mut health = Health::default();
    for want in [5, 10, 20, 40, 60, 60] {
        health.overloaded("m", NOW, NOW);
        assert_eq!(health.model_block("m", NOW).map(|b| b.until), Some(later(want)));
    }
    assert_eq!(health.model_block("other", NOW), None);
    health.model_served("m", NOW.minus(Duration::from_secs(1)));
    assert!(health.model_block("m", NOW).is_some(), "an older answer does not end it");
    health.model_served("m", NOW);
    assert_eq!(health.model_block("m", NOW), None);
    health.block_model("m", later(10), NOW);
    health.block_model("m", later(60), later(5));
    health.model_served("m", later(4));
    let until = health.model_block("m", later(5)).map(|b| b.until);
    assert_eq!(until, Some(later(60)), "sent before it was extended");
}

/// A client may name as many as it likes.
#[test]
fn names_that_nobody_knows_crowd_out_no_other() {
    let mut health = Health::default();
    health.block_model("spent", later(9000), NOW);
    health.overloaded("full", NOW, NOW);
    for n in 0..1000 {
        health.model_missing(&format!("m-{n}"), NOW);
    }
    assert_eq!(health.models.len(), MODELS_KEPT);
    let stands = |health: &Health, model| health.model_block(model, later(1)).is_some();
    assert!(["spent", "full", "m-999"].iter().all(|model| stands(&health, model)));
    for n in 0..1000 {
        health.block_model(&format!("q-{n}"), later(60), NOW);
    }
    assert_eq!(health.models.len(), MODELS_KEPT);
    assert!(stands(&health, "spent") && stands(&health, "q-999"), "then what ends last is kept");
    health.model_missing("new", later(61));
    assert_eq!(health.models.len(), 2, "what is over goes before all");
}

/// What is spent may turn out not to be; what is full is so still.
#[test]
fn an_overload_has_its_own_end_beneath_a_spent_limit() {
    let mut health = Health::default();
    health.block_model("m", later(9000), NOW);
    health.overloaded("m", later(1), later(2));
    let block = health.model_block("m", later(2)).unwrap();
    assert_eq!((block.cause, block.until), (ModelCause::Quota, later(9000)));
    assert_eq!(block.overloaded_until, later(7));
}

#[test]
fn a_clock_that_is_set_back_lengthens_no_pause_of_ours() {
    let hours = Duration::from_hours(3);
    let before = NOW.minus(hours);
    let minute = |at: Timestamp| at.plus(Duration::from_mins(1));
    type Cause = fn(&mut Health);
    let cases: [(&str, Cause, Timestamp); 6] = [
        ("told to wait", |h| h.block(super::Cause::Rate, later(60), NOW), minute(before)),
        ("spent until its reset", |h| h.block(super::Cause::Quota, later(60), NOW), later(60)),
        ("no such model", |h| h.model_missing("m", NOW), before.plus(Duration::from_mins(30))),
        ("overloaded", |h| h.overloaded("m", NOW, NOW), before.plus(Duration::from_secs(5))),
        ("a model's own reset", |h| h.block_model("m", later(60), NOW), later(60)),
        ("errors", |h| (0..4).for_each(|_| h.error(NOW, NOW)), minute(before)),
    ];
    for (name, cause, want) in cases {
        let mut health = Health::default();
        cause(&mut health);
        health.set_back(hours);
        let block = health.blocked(before).map(|b| b.until);
        let model = health.model_block("m", before).map(|b| b.until);
        assert_eq!(block.or(model).or(health.backoff_until()), Some(want), "{name}");
    }
    let mut health = Health::default();
    health.error(NOW, NOW);
    health.overloaded("m", NOW, NOW);
    (0..2).for_each(|_| health.concurrency.refused(6, NOW, NOW));
    health.set_back(hours);
    health.error(before, before);
    health.overloaded("m", before, before);
    let until = health.model_block("m", before).map(|b| b.until);
    let counted = (2, Some(before.plus(Duration::from_secs(10))));
    assert_eq!((health.errors, until), counted, "what is sent from then on counts");
    (0..3).for_each(|_| health.concurrency.served(before, minute(before)));
    assert_eq!(health.concurrency.limit(), Some(4), "and raises what was learnt");
}
