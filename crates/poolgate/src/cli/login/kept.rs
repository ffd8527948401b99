//! Storing a sign-in for the command line, and saying what became of it.

use anyhow::{Context as _, anyhow, ensure};
use poolgate_core::account::Kind;
use serde_json::json;

use crate::cli::account::{self, Settings};
use crate::cli::{Context, show};
use crate::config::{AccountSpec, RawAccount};
use crate::credentials::Likeness;
use crate::signin::{KeepError, Keeper, Signed};
use crate::store::AccountRow;

/// Which account a sign-in is for.
pub enum Target {
    /// Its name is free; `is_free`: nobody asked for this one.
    New {
        raw: Box<RawAccount>,
        is_free: bool,
    },
    Again {
        row: Box<AccountRow>,
        replace: bool,
    },
}

/// What became of it.
pub struct Kept {
    name: String,
    notes: Vec<String>,
    as_json: serde_json::Value,
}

impl Kept {
    pub fn show(&self, is_json: bool) {
        let hint = format!("see whether it works: poolgate account test {}", self.name);
        let lines = self.notes.iter().chain([&hint]).map(String::as_str);
        show(is_json, &self.as_json, || lines.collect::<Vec<_>>().join("\n"));
    }
}

/// The account that is asked for by `name`, else a new one with these `settings`.
pub async fn target(
    context: &Context,
    keeper: &Keeper,
    kind: Kind,
    name: Option<&str>,
    replace: bool,
    settings: &Settings,
) -> anyhow::Result<(Target, AccountSpec)> {
    let known = match name {
        Some(name) => account::known(context, name).await?,
        None => None,
    };
    if let Some(row) = known {
        settings.check_unchanged(&row)?;
        let spec = keeper.spec(&row, kind)?;
        return Ok((Target::Again { row: Box::new(row), replace }, spec));
    }
    let is_free = name.is_none();
    let name = match name {
        Some(name) => name.to_owned(),
        None => free_name(context, kind).await?,
    };
    ensure!(!replace, "there is no account named {name:?} to sign in as somebody else");
    let raw = settings.clone().raw(&name, kind.name().to_owned())?;
    let spec = raw.clone().resolve_stored();
    let spec = spec.map_err(|errors| anyhow!("{}", errors.join("; ")))?;
    Ok((Target::New { raw: Box::new(raw), is_free }, spec))
}

/// `codex`, `codex-2` …
async fn free_name(context: &Context, kind: Kind) -> anyhow::Result<String> {
    let (rows, unread) = context.store.all_accounts().await?;
    let stored = rows.iter().map(|row| row.settings.name.as_str());
    let stored = stored.chain(unread.iter().map(|one| one.name.as_str()));
    let configured = context.config.accounts.iter().map(|spec| spec.name.as_str());
    let taken: Vec<&str> = stored.chain(configured).collect();
    let mut name = kind.name().to_owned();
    for number in 2.. {
        if !taken.contains(&name.as_str()) {
            break;
        }
        name = format!("{}-{number}", kind.name());
    }
    Ok(name)
}

/// `did`: what was done, before whose sign-in it is.
pub async fn keep(
    context: &Context,
    keeper: &Keeper,
    target: Target,
    did: &str,
    signed: &Signed,
) -> anyhow::Result<Kept> {
    let kind = signed.kind().name();
    let who = signed.whose.name();
    let done = who.map_or_else(|| "done".to_owned(), |who| format!("{did} {who}"));
    let siblings = keeper.siblings(signed).await?;
    let mut notes = Vec::new();
    let (row, replace) = match (target, siblings.first()) {
        (Target::Again { row, replace }, Some(other))
            if !replace && siblings.iter().all(|sibling| sibling.id != row.id) =>
        {
            return Err(taken(other));
        }
        (Target::Again { row, replace }, _) => (*row, replace),
        (Target::New { is_free: true, .. }, Some(row)) => {
            notes.push("(you have that account already; its settings stay as they are)".to_owned());
            (row.clone(), false)
        }
        (Target::New { .. }, Some(row)) => return Err(taken(row)),
        (Target::New { raw, .. }, None) => {
            let name = raw.name.clone();
            let added = keeper.add(&raw, signed, context.now()).await?;
            added.with_context(|| format!("there is an account named {name:?} by now"))?;
            let as_json = json!({"added": name, "kind": kind, "signed_in_as": who});
            let notes = vec![format!("{done}; added {name}")];
            return Ok(Kept { name, notes, as_json });
        }
    };
    let name = row.settings.name.clone();
    let kept = keeper.again(&row, signed, replace, context.now()).await;
    let likeness = kept.map_err(|error| match error {
        KeepError::Other { .. } | KeepError::Nameless(..) => {
            anyhow!("{error}. Nothing was changed; --replace signs {name} in as that one")
        }
        KeepError::Trouble(error) => error,
    })?;
    notes.insert(0, format!("{done}; {name} has a new sign-in"));
    if likeness == Likeness::Unknown {
        notes.push(format!("(whose sign-in {name} had before is not known)"));
    }
    if row.paused {
        notes.push(format!("it is paused still: poolgate account resume {name}"));
    }
    let as_json = json!({"renewed": name, "kind": kind, "signed_in_as": who});
    Ok(Kept { name, notes, as_json })
}

/// By two names one account would be counted twice.
fn taken(by: &AccountRow) -> anyhow::Error {
    let name = &by.settings.name;
    anyhow!("this sign-in is the account {name:?} already: give it a new one with --name {name}")
}
