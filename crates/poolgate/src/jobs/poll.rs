//! Asking subscriptions how much of them is used, whose they are and what was paid for.
//!
//! One task looks at all accounts every second, since the wall clock may jump, and whenever somebody
//! needs to know; each poll is a task of its own. None is on the path of a request or ends with a
//! client. When to ask and what a refusal means is `poolgate_core::poll`'s.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderValue, Method, StatusCode, Uri};
use poolgate_core::account::{Family, Kind};
use poolgate_core::health::Stop;
use poolgate_core::outcome::Evidence;
use poolgate_core::poll::{ANSWERS_WITHIN, Failure, judge};
use poolgate_core::units::{Fraction, Timestamp};

use crate::app::App;
use crate::credentials::{Bearer, CredentialError};
use crate::pool::{Account, Polling};
use crate::providers::usage::{self, claude};
use crate::providers::{ErrorFields, Usage, retry_after};
use crate::secret::Secret;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// More would be a burst, after a start or a sleep of the machine.
const AT_ONCE: usize = 8;

pub async fn run(app: &Arc<App>) {
    app.pool.begin_polls();
    let stop = &app.tasks.stop;
    while !stop.is_cancelled() {
        let jitter = || Fraction::from_ppm(rand::random_range(0..=1_000_000));
        for polling in app.pool.due_polls(app.clock.now(), AT_ONCE, jitter) {
            let (job, gone) = (Arc::clone(app), polling.gone.clone());
            app.tasks.spawn(async move {
                tokio::select! {
                    biased;
                    () = job.tasks.stop.cancelled() => {}
                    () = gone.cancelled() => {}
                    () = poll(&job, polling) => {}
                }
            });
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = app.pool.poll_wanted() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

async fn poll(app: &App, mut polling: Polling) {
    let account = Arc::clone(&polling.account);
    match ask(app, &account).await {
        Ok(told) => {
            polling.answered(&told, app.clock.now());
            if polling.wants_profile {
                profile(app, &polling).await;
            }
        }
        Err(Refused { failure, text }) => {
            let is_loud = polling.failed(failure, app.clock.now());
            match failure {
                Failure::Stopped(stop) => {
                    tracing::error!(account = account.name, stop = stop.name(), text, "stopped");
                }
                _ if is_loud => tracing::warn!(account = account.name, text, "a poll failed"),
                _ => tracing::debug!(account = account.name, text, "a poll failed"),
            }
        }
    }
}

/// Only Claude's tells more than the usage answer did.
async fn profile(app: &App, polling: &Polling) {
    let account = &polling.account;
    let Some(path) = usage::profile_path(account.kind, &account.upstream.prefix) else {
        return;
    };
    let told = async {
        let bearer = account.credential.bearer(&app.refresh_context(account)).await?;
        let (head, body) = call(app, account, &path, &bearer).await?;
        anyhow::ensure!(head.status == StatusCode::OK, "it answered {}", head.status.as_u16());
        claude::profile(&body).ok_or_else(|| anyhow::anyhow!("its answer is no profile"))
    };
    match told.await {
        Ok(profile) => polling.profiled(profile, app.clock.now()),
        Err(error) => {
            tracing::debug!(account = account.name, error = format!("{error:#}"), "no profile");
        }
    }
}

/// Why a poll brought nothing; `text` is for the log.
struct Refused {
    failure: Failure,
    text: String,
}

/// One call; after a 401 one more, with a renewed token.
async fn ask(app: &App, account: &Account) -> Result<Usage, Refused> {
    let away = |text: String| Refused { failure: Failure::Away, text };
    let path = usage::path(account.kind, &account.upstream.prefix);
    let path = path.ok_or_else(|| away("this kind does not tell".into()))?;
    let context = app.refresh_context(account);
    let bearer = account.credential.bearer(&context).await;
    let mut bearer = bearer.map_err(|error| no_token(&error, Failure::Away))?;
    let mut renewed = false;
    loop {
        let answer = call(app, account, &path, &bearer).await;
        let (head, body) = answer.map_err(|error| away(format!("{error:#}")))?;
        let now = app.clock.now();
        if head.status == StatusCode::OK {
            let told = usage::read(account.kind, &body, now);
            return told.ok_or_else(|| away("its answer is no usage answer".into()));
        }
        let refused = refusal(account.kind, &head, &body, renewed, now);
        if refused.failure != Failure::Renew {
            return Err(refused);
        }
        let replaced = account.credential.replace_softly(&bearer, &context).await;
        // Before anything is learnt of the new tokens, which they would end as what the old ones caused.
        app.pool.follow_credential(account.id, app.clock.now());
        bearer = replaced.map_err(|error| no_token(&error, Failure::Refused))?;
        renewed = true;
    }
}

/// What a refresh that failed means, if it was not refused for good.
fn no_token(error: &CredentialError, otherwise: Failure) -> Refused {
    let failure = match error {
        CredentialError::NeedsLogin(..) => Failure::Stopped(Stop::NeedsLogin),
        CredentialError::Deactivated(_) => Failure::Stopped(Stop::Deactivated),
        _ => otherwise,
    };
    Refused { failure, text: error.to_string() }
}

fn refusal(kind: Kind, head: &Parts, body: &Bytes, renewed: bool, now: Timestamp) -> Refused {
    let fields = ErrorFields::read(body, now);
    let status = head.status.as_u16();
    let evidence = Evidence {
        family: if kind == Kind::Claude { Family::Anthropic } else { Family::OpenAi },
        status,
        code: &fields.code,
        kind: &fields.kind,
        message: &fields.message,
        html: false,
        retry_after: retry_after(&head.headers, now),
        resets_at: None,
        spent_until: None,
        family_spent_until: None,
        nearest_reset: None,
        now,
    };
    let text = format!("it answered {status} {}", fields.code).trim_end().to_owned();
    Refused { failure: judge(&evidence, renewed), text }
}

async fn call(
    app: &App,
    account: &Account,
    path: &str,
    bearer: &Bearer,
) -> anyhow::Result<(Parts, Bytes)> {
    let uri: Uri = format!("{}{path}", account.upstream.place).parse()?;
    let text = |value: &HeaderValue| anyhow::Ok(Secret::new(value.to_str()?));
    let mut headers = vec![("authorization", text(&bearer.authorization)?)];
    if let (Kind::Codex, Some(id)) = (account.kind, &bearer.account_id) {
        headers.push(("chatgpt-account-id", text(id)?));
    }
    if account.kind == Kind::Claude {
        headers.push(("anthropic-beta", Secret::new(claude::OAUTH_BETA)));
    }
    app.egress
        .call(Method::GET, uri, &account.upstream.place.way, &headers, None, ANSWERS_WITHIN)
        .await
}
