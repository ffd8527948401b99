//! Accounts: can their credentials be read and used, how old are their tokens, and what stopped them.

use std::time::Duration;

use poolgate_core::account::Kind;
use poolgate_core::health::Stop;
use poolgate_core::units::Timestamp;

use super::{Check, Grade, Running, files};
use crate::config::{AccountSpec, Config, CredentialSource};
use crate::credentials::{SignIn, place};
use crate::pool::{DEACTIVATED, DISABLED, resolve};
use crate::sealing::DataKey;
use crate::store::{AccountRow, Origin, Store, Unread};
use crate::table::span;

/// An account of the configuration file, the database, or both.
pub struct Found {
    pub name: String,
    /// Or what is wrong with its settings.
    pub spec: Result<AccountSpec, Check>,
    row: Option<AccountRow>,
}

impl Found {
    fn stored(row: AccountRow, key: Option<&DataKey>) -> Self {
        let name = row.settings.name.clone();
        let advice = "correct its settings, or remove it: poolgate account remove NAME";
        let wrong = |errors: Vec<String>| Check::problem(about(&name), errors.join("; "), advice);
        Self { spec: resolve(&row, key).map_err(wrong), name, row: Some(row) }
    }

    fn unread(Unread { name, origin, why, .. }: Unread) -> Self {
        let advice = match origin {
            Origin::Cli => &format!(
                "use the poolgate that wrote them, or remove it: poolgate account remove {name}"
            ),
            Origin::Config => "it is not in the configuration file any more: restart the gateway",
        };
        let found = format!("its settings cannot be read: {why}");
        Self { spec: Err(Check::problem(about(&name), found, advice)), name, row: None }
    }
}

fn about(name: &str) -> String {
    format!("account {name}")
}

/// A refresh token that was not used for so long may have been forgotten by its issuer.
const FORGOTTEN: Duration = Duration::from_hours(30 * 24);

/// The file's settings count for its accounts; a running gateway may still have older ones.
pub async fn find(config: &Config, store: Option<&Store>, key: Option<&DataKey>) -> Vec<Found> {
    let (rows, unread) = match store {
        Some(store) => store.all_accounts().await.unwrap_or_default(),
        None => Default::default(),
    };
    let rows = rows.into_iter().map(|row| Found::stored(row, key));
    let mut rows: Vec<Found> = rows.chain(unread.into_iter().map(Found::unread)).collect();
    for spec in &config.accounts {
        match rows.iter_mut().find(|found| found.name == spec.name) {
            Some(found) => found.spec = Ok(spec.clone()),
            None => {
                rows.push(Found { name: spec.name.clone(), spec: Ok(spec.clone()), row: None });
            }
        }
    }
    rows
}

pub async fn check(
    accounts: &[Found],
    key: Option<&DataKey>,
    running: &Running,
    now: Timestamp,
) -> Vec<Check> {
    if accounts.is_empty() {
        let advice = "poolgate account add --help, or [[account]] in the configuration file";
        return vec![Check::warning("accounts", "there are none, so nobody is served", advice)];
    }
    let mut checks = Vec::new();
    for account in accounts {
        checks.extend(one(account, key, running, now).await);
    }
    checks
}

async fn one(
    account: &Found,
    key: Option<&DataKey>,
    running: &Running,
    now: Timestamp,
) -> Vec<Check> {
    let about = about(&account.name);
    let spec = match &account.spec {
        Ok(spec) => spec,
        Err(problem) => return vec![problem.clone()],
    };
    let mut checks: Vec<Check> = account.row.iter().filter_map(|row| state(&about, row)).collect();
    if let CredentialSource::AuthFile(path) | CredentialSource::KeyFile(path) = &spec.source {
        checks.extend(files::open_to_others(&about, path));
    }
    checks.push(match read(spec, account.row.as_ref(), key).await {
        Err(problem) => missing(about, spec, problem, running),
        Ok(bytes) if spec.kind.is_subscription() => match SignIn::parse(spec.kind, &bytes) {
            Ok(sign_in) => token(about, &sign_in, now),
            Err(problem) => Check::problem(about, problem, sign_in_again(spec.kind)),
        },
        Ok(bytes) if bytes.trim_ascii().is_empty() => {
            Check::problem(about, "its API key is empty", "put the key there")
        }
        Ok(_) => Check::ok(about, format!("{}, its API key is there", spec.kind.name())),
    });
    checks
}

/// What keeps it from working until a person acts.
fn state(about: &str, row: &AccountRow) -> Option<Check> {
    let name = &row.settings.name;
    if row.paused {
        let advice = format!("poolgate account resume {name}, when it should work again");
        return Some(Check::new(Grade::Ok, about, "it is paused", &advice));
    }
    let (found, advice) = match row.stop? {
        Stop::Disabled => (
            format!("it is disabled: {DISABLED}"),
            format!("see why at the provider; then poolgate account resume {name}"),
        ),
        Stop::NeedsLogin => (
            "its sign-in was refused for good".to_owned(),
            Kind::from_name(&row.settings.kind).map_or("sign in again", sign_in_again).to_owned(),
        ),
        Stop::Deactivated => (
            format!("it is deactivated: {DEACTIVATED}"),
            format!(
                "settle it with the provider; then poolgate account resume {name}, or remove it"
            ),
        ),
    };
    Some(Check::problem(about, found, &advice))
}

async fn read(
    spec: &AccountSpec,
    row: Option<&AccountRow>,
    key: Option<&DataKey>,
) -> Result<Vec<u8>, String> {
    match &spec.source {
        CredentialSource::Stored => {
            let row = row.ok_or("no credential is stored")?;
            let (sealed, _) = row.sealed.as_ref().ok_or("no credential is stored")?;
            let key = key.ok_or("its credential is sealed, and there is no key to open it")?;
            key.open(&place(row.id), sealed).map_err(|error| format!("{error:#}"))
        }
        CredentialSource::AuthFile(path) | CredentialSource::KeyFile(path) => {
            let read = tokio::fs::read(path).await;
            read.map_err(|error| format!("{}: {error}", path.display()))
        }
        CredentialSource::KeyEnv(name) => std::env::var(name)
            .map(String::into_bytes)
            .map_err(|_| format!("the environment variable {name} is not set here")),
    }
}

/// A variable that is not set here may be set where the gateway runs.
fn missing(about: String, spec: &AccountSpec, problem: String, running: &Running) -> Check {
    match (&spec.source, running) {
        (CredentialSource::KeyEnv(_), Running::Yes(status)) => {
            let has_it =
                status.pool.accounts.iter().any(|a| a.name == spec.name && a.problem.is_none());
            if has_it {
                return Check::ok(about, "the running gateway has its API key");
            }
            Check::problem(about, problem, "set it in the gateway's environment, and restart it")
        }
        (CredentialSource::KeyEnv(_), _) => {
            Check::warning(about, problem, "set it in the environment of poolgate serve")
        }
        (CredentialSource::Stored, _) => Check::problem(
            about,
            problem,
            "restore the master key, or sign in or add the account again",
        ),
        _ => Check::problem(about, problem, "put the file back, or correct the account's settings"),
    }
}

const fn sign_in_again(kind: Kind) -> &'static str {
    match kind {
        Kind::Codex => "sign in again: poolgate account login codex --name NAME",
        _ => "sign in again: poolgate account login claude --name NAME",
    }
}

fn token(about: String, sign_in: &SignIn, now: Timestamp) -> Check {
    let kind = sign_in.kind();
    let again = sign_in_again(kind);
    let ago = |at: Timestamp| format!("{} ago", span(at.until(now), " "));
    let can_renew = sign_in.refresh_token().is_some();
    let words = match sign_in.expires_at() {
        Some(at) if at <= now => format!("its token expired {}", ago(at)),
        Some(at) => format!("its token is good for {}", span(now.until(at), " ")),
        None => match sign_in.last_refresh() {
            Some(at) => format!("its token was renewed {}", ago(at)),
            None => "its token does not say how old it is".into(),
        },
    };
    let silent_since = sign_in.last_refresh().max(sign_in.expires_at());
    let found = format!("{}, {words}", kind.name());
    match sign_in.expires_at() {
        Some(at) if at <= now && !can_renew => Check::problem(about, found, again),
        _ if !can_renew => Check::warning(about, format!("{found}, and cannot be renewed"), again),
        _ if silent_since.is_some_and(|at| at.plus(FORGOTTEN) <= now) => Check::warning(
            about,
            format!("{found}; it was not renewed since, and may not be any more"),
            "poolgate account test NAME renews it; if that fails, sign in again",
        ),
        _ => Check::ok(about, found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_795_300_000_000);
    const HOUR: i64 = 3_600_000;

    fn claude(expires_in: i64, refresh: &str) -> SignIn {
        let expires_at = NOW.0 + expires_in;
        let text = format!(
            r#"{{"claudeAiOauth":{{"accessToken":"a1","refreshToken":"{refresh}","expiresAt":{expires_at}}}}}"#
        );
        SignIn::parse(Kind::Claude, text.as_bytes()).unwrap()
    }

    #[test]
    fn grades_tokens_by_their_age() {
        let codex = |more: &str| {
            let text = format!(r#"{{"tokens":{{"access_token":"x","refresh_token":"r"}}{more}}}"#);
            SignIn::parse(Kind::Codex, text.as_bytes()).unwrap()
        };
        let cases = [
            ("good", claude(6 * HOUR, "r"), Grade::Ok, "good for 6h"),
            ("due", claude(-2 * HOUR, "r"), Grade::Ok, "expired 2h 00m ago"),
            ("for long", claude(-31 * 24 * HOUR, "r"), Grade::Warning, "not renewed since"),
            ("once more", claude(HOUR, ""), Grade::Warning, "cannot be renewed"),
            ("the end", claude(-HOUR, ""), Grade::Problem, "expired 1h 00m ago"),
            ("no date", codex(""), Grade::Ok, "does not say"),
            ("recent", codex(r#","last_refresh":"2026-11-21T00:00:00Z""#), Grade::Ok, "renewed"),
            (
                "old",
                codex(r#","last_refresh":"2026-09-01T00:00:00Z""#),
                Grade::Warning,
                "not renewed",
            ),
        ];
        for (name, sign_in, grade, words) in cases {
            let check = token("x".into(), &sign_in, NOW);
            assert_eq!(check.grade, grade, "{name}: {check:?}");
            assert!(check.found.contains(words), "{name}: {check:?}");
            assert_eq!(check.advice.is_some(), grade > Grade::Ok, "{name}");
        }
    }
}
