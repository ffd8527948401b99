use super::*;
use crate::availability::tests::account;
use crate::gate::spark;

const NOW: Timestamp = Timestamp(1_000_000_000);

fn later(seconds: u64) -> Timestamp {
    NOW.plus(Duration::from_secs(seconds))
}

fn status(status: u16) -> Evidence<'static> {
    Evidence {
        family: Family::OpenAi,
        status,
        code: "",
        kind: "",
        message: "",
        html: false,
        retry_after: None,
        resets_at: None,
        spent_until: None,
        family_spent_until: None,
        nearest_reset: None,
        now: NOW,
    }
}

#[test]
#[rustfmt::skip]
fn classifies() {
    use Outcome::*;
    let code = |s, code| Evidence { code, ..status(s) };
    let kind = |s, kind| Evidence { kind, ..status(s) };
    let text = |s, message| Evidence { message, ..status(s) };
    let full = |e| Evidence { spent_until: Some(later(9)), ..e };
    let family = |e| Evidence { family_spent_until: Some(later(90)), ..e };
    let usage_limit = || Evidence { message: "The usage limit reached", ..kind(403, "forbidden_error") };
    let cases = [
        ("sub2api L12: policy as 403",          code(403, "cyber_policy"),              PolicyBlock),
        ("sub2api L12: policy as 502",          code(502, "cyber_policy"),              PolicyBlock),
        ("context too long",                    code(400, "context_length_exceeded"),   RequestFault),
        ("sub2api F8: context too long as 502", code(502, "context_length_exceeded"),   RequestFault),
        ("codex-lb D10: invalid request",       kind(400, "invalid_request_error"),     RequestFault),
        ("sub2api F12: any 400",                status(400),                            RequestFault),
        ("sub2api L13: 400 with a text only",   text(400, "the model is overloaded"),   RequestFault),
        ("vLLM: no such model",                 Evidence { kind: "NotFoundError", ..text(404, "The model `m` does not exist.") }, ModelMissing),
        ("OpenRouter: no such model",           text(404, "No endpoints found for m."),  ModelMissing),
        ("DeepSeek: no such model",             Evidence { kind: "invalid_request_error", ..text(400, "Model Not Exist") }, ModelMissing),
        ("Mistral: no such model",              kind(400, "invalid_model"),             ModelMissing),
        ("Azure: no such model",                code(404, "DeploymentNotFound"),        ModelMissing),
        ("nothing about a model",               text(404, "Response with id 'r' not found."), RequestFault),
        ("unknown field",                       status(422),                            RequestFault),
        ("sub2api L10: too large",              status(413),                            RequestFault),
        ("foreign reasoning",                   code(400, "invalid_encrypted_content"), ForeignState),
        ("credit balance",                      text(400, "Your credit balance is too low"), Stopped(Stop::Disabled)),
        ("organisation disabled",               text(400, "This organization has been disabled."), Stopped(Stop::Disabled)),
        ("identity verification",               text(400, "Identity verification is required."), Stopped(Stop::Disabled)),
        ("a field of that name",                text(400, "Unknown parameter: 'credit balance is too low'."), RequestFault),
        ("another one",                         text(400, "credit balance is too low: Extra inputs are not permitted"), RequestFault),
        ("credit balance, but not as 400",      text(403, "Your credit balance is too low"), Strike),
        ("deactivated workspace",               code(403, "deactivated_workspace"),     Stopped(Stop::Deactivated)),
        ("account suspended",                   code(401, "account_suspended"),         Stopped(Stop::Deactivated)),
        ("sub2api L14: suspended, as 502",      code(502, "workspace_suspended"),       Stopped(Stop::Deactivated)),
        ("sub2api L15: said in a text only",    text(403, "account suspended"),         Strike),
        ("sub2api L9: payment required",        status(402),                            Stopped(Stop::Deactivated)),
        ("sub2api L16: no such model",          code(404, "model_not_found"),           ModelMissing),
        ("no such model, Anthropic",            Evidence { message: "model: x", ..kind(404, "not_found_error") }, ModelMissing),
        ("codex-lb D11: not on this plan",      text(400, "The 'x' model is not supported when using Codex with a ChatGPT account."), ModelMissing),
        ("no such path",                        kind(404, "invalid_request_error"),     RequestFault),
        ("token too old",                       status(401),                            TokenRefused { permanent: false }),
        ("sub2api K3: token gone",              code(401, "token_revoked"),             TokenRefused { permanent: true }),
        ("codex-lb D6: refresh token reused",   code(401, "refresh_token_reused"),      TokenRefused { permanent: true }),
        ("token revoked",                       text(403, "OAuth token has been revoked."), TokenRefused { permanent: false }),
        ("sub2api F13: edge page",              Evidence { html: true, ..status(403) }, EdgeBlock),
        ("sub2api F1: forbidden_error",         usage_limit(),                          Strike),
        ("forbidden and spent",                 full(usage_limit()),                    QuotaSpent { until: Some(later(9)) }),
        ("forbidden, and spent long ago",       Evidence { spent_until: Some(NOW), ..usage_limit() }, Strike),
        ("forbidden and a family spent",        family(usage_limit()),                  ModelLimited { until: later(90) }),
        ("spent, but other words",              full(text(403, "no")),                  Strike),
        ("codex-lb D2: usage limit",            Evidence { resets_at: Some(later(60)), ..kind(429, "usage_limit_reached") }, QuotaSpent { until: Some(later(60)) }),
        ("codex-lb D4: insufficient quota",     code(429, "insufficient_quota"),        QuotaSpent { until: None }),
        ("multiplexer 18.1 #11: reset is past", Evidence { resets_at: Some(NOW), ..kind(429, "usage_limit_reached") }, QuotaSpent { until: None }),
        ("multiplexer 6.2: Retry-After instead", Evidence { retry_after: Some(Duration::from_hours(2)), ..kind(429, "usage_limit_reached") }, QuotaSpent { until: Some(later(7200)) }),
        ("a reset in another century",          Evidence { resets_at: Some(later(4_000_000_000)), ..kind(429, "usage_limit_reached") }, QuotaSpent { until: None }),
        ("multiplexer 18.2 #29: the window named wins", Evidence { resets_at: Some(later(60)), spent_until: Some(later(90)), ..kind(429, "usage_limit_reached") }, QuotaSpent { until: Some(later(90)) }),
        ("sub2api R1: 429 with a full window",  full(status(429)),                      QuotaSpent { until: Some(later(9)) }),
        ("sub2api R9: 429 of a model family",   family(status(429)),                    ModelLimited { until: later(90) }),
        ("the account's own wins",              family(full(status(429))),              QuotaSpent { until: Some(later(9)) }),
        ("429 with Retry-After",                Evidence { retry_after: Some(Duration::from_secs(20)), ..status(429) }, RateLimited { until: later(20) }),
        ("429, nearest reset",                  Evidence { nearest_reset: Some(later(90)), ..status(429) }, RateLimited { until: later(90) }),
        ("sub2api R3: 429, far reset",          Evidence { nearest_reset: Some(later(90_000)), ..status(429) }, RateLimited { until: later(600) }),
        ("sub2api R4: 429, reset in its body",  Evidence { resets_at: Some(later(120)), ..code(429, "rate_limit_exceeded") }, RateLimited { until: later(120) }),
        ("sub2api R6: 429 and nothing else",    status(429),                            RateLimited { until: later(5) }),
        ("codex-lb D3: a wait in the text only", text(429, "try again in 1m30s"),       RateLimited { until: later(5) }),
        ("sub2api F5: 529",                     status(529),                            Overloaded),
        ("at capacity",                         code(503, "server_is_overloaded"),      Overloaded),
        ("at capacity, whatever the status",    code(500, "slow_down"),                 Overloaded),
        ("sub2api F7: 500",                     status(500),                            UpstreamError),
        ("sub2api F6: 502",                     status(502),                            UpstreamError),
        ("sub2api F6: 503",                     status(503),                            UpstreamError),
        ("sub2api F7: 520",                     status(520),                            UpstreamError),
        ("sub2api F7: 524",                     status(524),                            UpstreamError),
        ("in a hurry",                          status(408),                            UpstreamError),
        ("a redirect",                          status(302),                            UpstreamError),
    ];
    for (name, evidence, want) in cases {
        assert_eq!(classify(&evidence), want, "{name}");
    }
}

/// An account is not charged with what every other would say, too.
#[test]
#[rustfmt::skip]
fn an_event_has_the_status_that_fits_it() {
    let cases: [(u16, &[&str]); 8] = [
        (502, &["server_error", "api_error", "vector_store_timeout", "never_heard_of", "",
            "unsupported_country_region_territory", "invalid_organization", "invalid_project", "image_generation_failed"]),
        (429, &["rate_limit_exceeded", "rate_limit_error", "usage_limit_reached"]),
        (401, &["invalid_api_key", "invalid_token", "authentication_error", "token_revoked"]),
        (403, &["permission_error"]),
        (404, &["model_not_found"]),
        (413, &["request_too_large"]),
        (400, &["invalid_prompt", "invalid_request_error", "invalid_image", "invalid_image_format", "invalid_base64_image",
            "invalid_image_url", "invalid_image_mode", "image_too_large", "image_too_small", "image_parse_error",
            "image_content_policy_violation", "image_file_too_large", "image_file_not_found", "unsupported_image_media_type",
            "empty_image_file", "failed_to_download_image", "previous_response_not_found"]),
        (503, &["server_is_overloaded"]),
    ];
    for (want, words) in cases {
        for word in words {
            assert_eq!(status_of_event(Family::OpenAi, word, ""), want, "{word}");
        }
    }
    assert_eq!(status_of_event(Family::Anthropic, "", "request_too_large"), 413);
    assert_eq!(status_of_event(Family::Anthropic, "", "overloaded_error"), 529);
    assert_eq!(status_of_event(Family::OpenAi, "", "image_generation_server_error"), 502, "codes only");
}

#[test]
#[rustfmt::skip]
fn names_are_stable() {
    use Outcome::*;
    let until = later(1);
    let cases = [
        (Served, "served"), (RequestFault, "request_fault"), (PolicyBlock, "policy_block"),
        (ForeignState, "foreign_state"), (Stopped(Stop::Disabled), "disabled"),
        (Stopped(Stop::NeedsLogin), "needs_login"), (Stopped(Stop::Deactivated), "deactivated"),
        (ModelMissing, "model_missing"), (TokenRefused { permanent: true }, "token_refused"),
        (EdgeBlock, "edge_block"), (QuotaSpent { until: None }, "quota_spent"), (Strike, "forbidden"),
        (ModelLimited { until }, "model_limited"), (RateLimited { until }, "rate_limited"),
        (Overloaded, "overloaded"), (UpstreamError, "upstream_error"),
        (ConnectFailed { durable: false }, "connect_failed"), (TokenAway, "token_away"),
        (Lost, "lost"), (Broke, "upstream_broke"), (Shed, "shed"),
    ];
    for (outcome, name) in cases {
        assert_eq!(outcome.name(), name);
    }
    assert_eq!(cases.map(|(outcome, _)| outcome.name()), Outcome::NAMES, "each once");
}

#[test]
fn goes_on_until_enough_was_tried() {
    let run = |outcome| {
        let mut progress = Progress::default();
        let mut steps = vec![];
        loop {
            let next = next(outcome, &mut progress);
            steps.push(next);
            match next {
                Next::Relay | Next::GiveUp => return steps,
                Next::Another => progress.moved(),
                Next::Again | Next::Refresh | Next::Strip => {}
            }
        }
    };
    use Next::{Again, Another, GiveUp, Refresh, Relay};
    let error = [Again, Another, Again, Another, Again, GiveUp];
    assert_eq!(run(Outcome::UpstreamError), error);
    assert_eq!(run(Outcome::ConnectFailed { durable: true }), [Another, Another, GiveUp]);
    assert_eq!(run(Outcome::TokenAway), [Another, Another, GiveUp]);
    assert_eq!(run(Outcome::Lost), [Another, GiveUp]);
    assert_eq!(run(Outcome::Overloaded), [Another, GiveUp]);
    assert_eq!(run(Outcome::RequestFault), [Relay]);
    assert_eq!(run(Outcome::Broke), [Relay]);
    assert_eq!(run(Outcome::Shed), [Relay], "no other account would help");
    assert_eq!(run(Outcome::ForeignState), [Next::Strip, Relay]);
    assert_eq!(run(Outcome::Strike).len(), 10);
    let refused = run(Outcome::TokenRefused { permanent: false });
    assert_eq!(refused[..4], [Refresh, Another, Refresh, Another]);
    let gone = run(Outcome::TokenRefused { permanent: true });
    assert_eq!(gone[..2], [Refresh, Another], "spec §6: one forced refresh, then the code counts");
}

fn applied(outcome: Outcome, change: impl FnOnce(&mut Attempt<'_>)) -> Account {
    let mut account = account(1);
    let ask = Ask { surface: Surface::Responses, model: "m", gate: None };
    let mut at = Attempt { ask, sent_at: NOW, now: NOW, refreshed: false };
    change(&mut at);
    outcome.apply(&mut account, at);
    account
}

#[test]
#[rustfmt::skip]
fn effects() {
    use Outcome::*;
    let refused = |permanent| TokenRefused { permanent };
    let until = |seconds| Some(later(seconds));
    // (stop, cause and end of the block, errors, end of the model's block)
    type Left = (Option<Stop>, Option<(Cause, Timestamp)>, u32, Option<Timestamp>);
    let nothing: Left = (None, None, 0, None);
    let cases: [(&str, Outcome, bool, Left); 18] = [
        ("quota",                     QuotaSpent { until: until(60) }, false, (None, Some((Cause::Quota, later(60))), 0, None)),
        ("quota without a date",      QuotaSpent { until: None },      false, (None, Some((Cause::Quota, later(300))), 0, None)),
        ("rate",                      RateLimited { until: later(9) }, false, (None, Some((Cause::Rate, later(9))), 0, None)),
        ("a model's family",          ModelLimited { until: later(9) }, false, (None, None, 0, until(9))),
        ("first comes the refresh",   refused(false),                  false, nothing),
        ("even for a final code",     refused(true),                   false, nothing),
        ("sub2api K1: 401 again",     refused(false),                  true,  (None, Some((Cause::Credential, later(600))), 0, None)),
        ("401 again, for good",       refused(true),                   true,  (Some(Stop::NeedsLogin), None, 0, None)),
        ("sub2api F1: a strike cools", Strike,                         false, (None, Some((Cause::Strike(1), later(600))), 0, None)),
        ("no such model",             ModelMissing,                    false, (None, None, 0, until(1800))),
        ("overloaded: no error",      Overloaded,                      false, (None, None, 0, until(5))),
        ("error",                     UpstreamError,                   false, (None, None, 1, None)),
        ("lost",                      Lost,                            false, (None, None, 1, None)),
        ("broke",                     Broke,                           false, (None, None, 1, None)),
        ("no token to be had",        TokenAway,                       false, (None, Some((Cause::Renewal, later(5))), 0, None)),
        ("no connection: not yet",    ConnectFailed { durable: true }, false, nothing),
        ("sub2api F13: edge page",    EdgeBlock,                       false, nothing),
        ("the request's own fault",   RequestFault,                    false, nothing),
    ];
    for (name, outcome, refreshed, want) in cases {
        let health = applied(outcome, |at| at.refreshed = refreshed).health;
        let model = health.model_block("m", NOW).map(|block| block.until);
        let block = health.blocked(NOW).map(|block| (block.cause, block.until));
        assert_eq!((health.stop, block, health.errors, model), want, "{name}");
    }
}

#[test]
fn counting_tokens_proves_nothing() {
    use Outcome::*;
    // (outcome, whether an account takes it from counting tokens)
    let cases = [
        (RateLimited { until: later(60) }, false),
        (QuotaSpent { until: Some(later(60)) }, false),
        (ModelLimited { until: later(60) }, false),
        (Strike, false),
        (Overloaded, false),
        (UpstreamError, false),
        (Lost, false),
        (Broke, false),
        (Stopped(Stop::Deactivated), true),
        (TokenRefused { permanent: false }, true),
        (TokenRefused { permanent: true }, true),
        (TokenAway, true),
        (ModelMissing, true),
    ];
    for (outcome, counts) in cases {
        for (surface, want) in [(Surface::CountTokens, counts), (Surface::Messages, true)] {
            let mut left = account(1);
            let ask = Ask { surface, model: "m", gate: None };
            outcome.apply(&mut left, Attempt { ask, sent_at: NOW, now: NOW, refreshed: true });
            assert_eq!(left.health != account(1).health, want, "{outcome:?}, {surface:?}");
        }
    }
    let mut account = account(1);
    account.health.strike(NOW, NOW);
    let served = |surface, account: &mut Account| {
        let ask = Ask { surface, model: "m", gate: None };
        let at = Attempt { ask, sent_at: later(1), now: later(2), refreshed: false };
        Outcome::Served.apply(account, at);
    };
    served(Surface::CountTokens, &mut account);
    assert!(account.health.blocked(NOW).is_some(), "spec §6: not count_tokens");
    served(Surface::Messages, &mut account);
    assert_eq!(account.health.blocked(NOW), None);
}

#[test]
fn a_gated_models_spent_quota_is_the_models() {
    let gate = spark();
    let spent = Outcome::QuotaSpent { until: Some(later(60)) };
    let left = |plan: &str| {
        let mut account = account(1);
        account.plan = Some(plan.into());
        let ask = Ask { surface: Surface::Responses, model: "spark", gate: Some(&gate) };
        spent.apply(&mut account, Attempt { ask, sent_at: NOW, now: NOW, refreshed: false });
        (account.health.blocked(NOW).is_some(), account.health.model_block("spark", NOW).is_some())
    };
    assert_eq!(left("pro"), (false, true), "codex-lb Q12, F11: nothing ordinary is stored");
    assert_eq!(
        left("plus"),
        (true, false),
        "codex-lb Q10: an exempt plan follows the ordinary rules"
    );
}

#[test]
fn a_gated_request_that_is_served_leaves_the_ordinary_limit() {
    let gate = spark();
    let left = |plan: &str| {
        let mut account = account(1);
        account.plan = Some(plan.into());
        account.health.block(Cause::Quota, later(9000), NOW);
        account.health.strike(later(130), later(131));
        account.health.error(later(131), later(131));
        let ask = Ask { surface: Surface::Responses, model: "spark", gate: Some(&gate) };
        let at = Attempt { ask, sent_at: later(800), now: later(801), refreshed: false };
        Outcome::Served.apply(&mut account, at);
        assert_eq!(account.health.blocked_gated(later(801)), None, "{plan}: no strike cools");
        assert_eq!(account.health.errors, 0, "{plan}");
        account.health.blocked(later(801)).map(|block| block.cause)
    };
    assert_eq!(left("pro"), Some(Cause::Quota), "codex-lb Q12: nothing ordinary is learnt");
    assert_eq!(left("plus"), None, "codex-lb Q10: an exempt plan follows the ordinary rules");
}

#[test]
fn a_request_is_charged_with_each_of_its_errors() {
    let mut progress = Progress::default();
    next(Outcome::UpstreamError, &mut progress);
    next(Outcome::UpstreamError, &mut progress);
    assert_eq!(progress.charge(Outcome::UpstreamError).errors, 2, "asked twice");
    assert_eq!(progress.charge(Outcome::Strike).errors, 1, "an error, then a 403");
    progress.moved();
    assert_eq!(progress.charge(Outcome::Strike).errors, 0, "another account");
}
