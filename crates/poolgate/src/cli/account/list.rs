//! `poolgate account list`: all accounts, those too whose settings cannot be read.

use poolgate_core::health::Stop;
use serde_json::{Value, json};

use crate::cli::{Context, show};
use crate::config::{ProxyUrl, RawAccount};
use crate::store::{AccountRow, Unread};

pub async fn show_all(context: &Context) -> anyhow::Result<()> {
    let (rows, unread) = context.store.all_accounts().await?;
    let as_json: Vec<Value> =
        rows.iter().map(row_json).chain(unread.iter().map(unread_json)).collect();
    show(context.json, &json!(as_json), || {
        if as_json.is_empty() {
            return "no accounts yet: poolgate account login --help, or add --help".into();
        }
        let lines = rows.iter().map(row_line).chain(unread.iter().map(unread_line));
        lines.collect::<Vec<_>>().join("\n")
    });
    Ok(())
}

fn row_json(row: &AccountRow) -> Value {
    json!({"name": row.settings.name, "kind": row.settings.kind, "state": state(row),
        "paused": row.paused, "problem": null, "credential": source(row),
        "origin": row.origin.name(), "proxy": proxy(row)})
}

/// What only its settings tell is not known.
fn unread_json(one: &Unread) -> Value {
    json!({"name": one.name, "kind": null, "state": UNREADABLE, "paused": one.paused,
        "problem": one.why, "credential": null, "origin": one.origin.name(), "proxy": null})
}

fn row_line(row: &AccountRow) -> String {
    let RawAccount { name, kind, .. } = &row.settings;
    let way = proxy(row).map(|proxy| format!(" through {proxy}")).unwrap_or_default();
    let (state, source, origin) = (state(row), source(row), row.origin.name());
    format!("{name:<24} {kind:<11} {state:<12} {source} ({origin}){way}")
}

fn unread_line(one: &Unread) -> String {
    let Unread { name, why, .. } = one;
    let paused = if one.paused { "paused, " } else { "" };
    format!("{name:<24} {:<11} {UNREADABLE:<12} {paused}{why} ({})", "-", one.origin.name())
}

const UNREADABLE: &str = "unreadable";

fn state(row: &AccountRow) -> &'static str {
    match (row.paused, row.stop) {
        (true, _) => "paused",
        (false, Some(stop)) => Stop::name(stop),
        (false, None) => "enabled",
    }
}

/// Where its credential is.
fn source(row: &AccountRow) -> String {
    match &row.settings {
        _ if row.sealed.is_some() => "stored".to_owned(),
        RawAccount { auth_file: Some(path), .. } | RawAccount { key_file: Some(path), .. } => {
            path.display().to_string()
        }
        RawAccount { key_env: Some(name), .. } => format!("${name}"),
        _ => "missing".to_owned(),
    }
}

fn proxy(row: &AccountRow) -> Option<String> {
    row.settings.proxy.as_ref().map(ProxyUrl::shown)
}
