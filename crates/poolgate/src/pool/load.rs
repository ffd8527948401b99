//! Filling the pool from the store.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use poolgate_core::account::Kind;
use poolgate_core::availability::Account as Facts;
use poolgate_core::health::Health;
use poolgate_core::quota::Quota;
use poolgate_core::refresh::Standing;
use poolgate_core::units::Timestamp;

use super::{Account, Loaded, Tenant};
use crate::config::{AccountSpec, CredentialSource};
use crate::credentials::{Books, Credential, Source, Stored};
use crate::sealing::DataKey;
use crate::store::{AccountRow, Store, Unread, Whereabouts};

/// All accounts of the store, with their credentials read. A row that cannot be read or
/// does not resolve is told apart, loudly.
///
/// `known` are the accounts loaded before: their credentials are kept, since one may be in the
/// middle of a refresh. `dir` is where notes about credentials go.
pub async fn load(
    store: &Store,
    data_key: &Arc<DataKey>,
    dir: &Path,
    known: &[Arc<Account>],
    now: Timestamp,
) -> anyhow::Result<(Vec<Loaded>, Vec<Unread>)> {
    let quotas = store.quotas().await?;
    let mut loaded = Vec::new();
    let (rows, mut unread) = store.all_accounts().await?;
    for row in rows {
        let name = row.settings.name.clone();
        match resolve(&row, Some(data_key)) {
            Ok(spec) => {
                let quota = quotas.iter().find(|(id, _)| *id == row.id).map(|(_, q)| q.clone());
                let known = known.iter().find(|account| account.id == row.id);
                let known = known.filter(|a| a.kind == spec.kind).map(|a| &a.credential);
                let known = known.filter(|c| c.source().is_at(&spec.source));
                let credential = if let Some(credential) = known {
                    keep(credential, row.sealed.clone()).await
                } else {
                    let (store, data_key) = (store.clone(), Arc::clone(data_key));
                    let books = Books { account: row.id, store, data_key, dir: dir.to_owned() };
                    open(&row, &spec, books).await
                };
                loaded.push(assemble(&row, spec, quota.unwrap_or_default(), credential, now));
            }
            Err(errors) => {
                let why = errors.join("; ");
                tracing::error!(account = name, errors = why, "its settings do not resolve");
                let AccountRow { id, origin, paused, resumed_at, .. } = row;
                unread.push(Unread { id, name, origin, paused, resumed_at, why });
            }
        }
    }
    Ok((loaded, unread))
}

/// An account's settings, checked. Without `key` one whose proxy has a login does not resolve.
pub fn resolve(row: &AccountRow, key: Option<&DataKey>) -> Result<AccountSpec, Vec<String>> {
    let mut settings = row.settings.clone();
    if let (Some(proxy), Some(key)) = (&settings.proxy, key) {
        let opened = proxy.opened(key, &settings.name);
        settings.proxy = Some(opened.map_err(|error| vec![format!("proxy: {error:#}")])?);
    }
    if row.sealed.is_some() || settings.clone().resolve().is_err() {
        settings.resolve_stored()
    } else {
        settings.resolve()
    }
}

async fn keep(known: &Arc<Credential>, sealed: Option<(Vec<u8>, i64)>) -> Arc<Credential> {
    let changed = match known.source() {
        Source::Stored(stored) => stored.take_newer(sealed),
        _ => known.problem().is_some(),
    };
    if changed {
        known.reload().await;
    }
    Arc::clone(known)
}

async fn open(row: &AccountRow, spec: &AccountSpec, books: Books) -> Arc<Credential> {
    let source = match spec.source.clone() {
        CredentialSource::Stored => Source::Stored(Stored {
            account: row.id,
            store: books.store.clone(),
            data_key: Arc::clone(&books.data_key),
            sealed: Mutex::new(row.sealed.clone()),
        }),
        CredentialSource::AuthFile(path) => Source::AuthFile(path),
        CredentialSource::KeyEnv(name) => Source::KeyEnv(name),
        CredentialSource::KeyFile(path) => Source::KeyFile(path),
    };
    let credential = Arc::new(Credential::new(spec.kind, source, Some(books)));
    credential.open().await;
    if let Some(problem) = credential.problem() {
        tracing::warn!(account = spec.name, problem, "the account has no usable credential");
    }
    credential
}

fn assemble(
    row: &AccountRow,
    spec: AccountSpec,
    quota: Quota,
    credential: Arc<Credential>,
    now: Timestamp,
) -> Loaded {
    let plan = credential.plan();
    let weight = spec.plan_weight.unwrap_or_else(|| plan_weight(spec.kind, plan.as_deref()));
    let facts = Facts {
        id: row.id,
        kind: spec.kind,
        speaks: spec.speaks,
        priority: spec.priority,
        plan,
        weight,
        caps: spec.caps,
        models: spec.models.clone(),
        max_in_flight: spec.max_concurrency,
        paused: row.paused,
        has_credential: credential.standing(now).0 != Standing::Unavailable,
        quota,
        health: Health::stored(row.stop),
        in_flight: 0,
        probing_until: None,
    };
    let account = Account {
        id: row.id,
        tenant: Tenant::default(),
        name: spec.name,
        kind: spec.kind,
        speaks: spec.speaks,
        models: spec.models,
        token_url: spec.upstream.token_url.clone(),
        upstream: spec.upstream,
        credential,
    };
    Loaded {
        account,
        whereabouts: Whereabouts::of(&row.settings),
        facts,
        resumed_at: row.resumed_at,
        plan_weight: spec.plan_weight,
    }
}

/// Size of a plan relative to the smallest one. Claude plans read `plan/tier`.
pub fn plan_weight(kind: Kind, plan: Option<&str>) -> f64 {
    let (plan, tier) =
        plan.unwrap_or_default().split_once('/').unwrap_or((plan.unwrap_or_default(), ""));
    match (kind, plan, tier) {
        (Kind::Codex, "pro", _) | (Kind::Claude, "max", "default_claude_max_20x") => 10.0,
        (Kind::Claude, "max", _) | (Kind::Claude, "team", "default_claude_max_5x") => 5.0,
        _ => 1.0,
    }
}
