//! `GET …/models`: the union over the accounts a key may use, each entry as its upstream wrote it.
//!
//! Lists are kept for ten minutes per account, and asked for side by side ([`catalogue`]); accounts that
//! only an operator can bring back are left out. The `ETag` is our own, a digest of the answer:
//! upstream's would change with the account, and Codex lists models again whenever it does.

mod catalogue;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri, header};
use poolgate_core::account::{Kind, Surface, model_matches};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::authenticate::Caller;
use super::relay::Outgoing;
use super::route::ModelList;
use super::{authorize, whole};
use crate::app::App;
use crate::credentials::RefreshContext;
use crate::error::{Error, Said};
use crate::json::quote;
use crate::pool::Account;
use crate::secret::{Secret, sha256};

pub use catalogue::Catalogue;

const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Codex's backend wants a client's version; this is the one our facts are from.
const CODEX_VERSION: &str = "0.169.0";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    pub id: String,
    /// The entry's bytes.
    entry: String,
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow, default)]
    data: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    models: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Entry {
    id: Option<String>,
    slug: Option<String>,
}

pub async fn list(
    app: &App,
    caller: &Caller,
    list: ModelList,
    headers: &HeaderMap,
) -> Result<Response<Outgoing>, Error> {
    let wanted = |account: &Account| match list {
        ModelList::Codex => account.kind == Kind::Codex,
        ModelList::OpenAi => {
            account.kind == Kind::Codex
                || account.kind.serves(Surface::Responses, account.speaks)
                || account.kind.serves(Surface::Chat, account.speaks)
        }
        ModelList::Anthropic => account.kind.serves(Surface::Messages, account.speaks),
    };
    let mut accounts = app.pool.members(&caller.key.pools);
    accounts.retain(|(account, _)| wanted(account));
    if accounts.is_empty() {
        return Err(Error::NoFittingAccount(match list {
            ModelList::Codex => "codex",
            ModelList::OpenAi => "codex, openai or compatible",
            ModelList::Anthropic => Surface::Messages.kinds_needed(),
        }));
    }
    let accounts: Vec<Arc<Account>> =
        accounts.into_iter().filter(|(_, works)| *works).map(|(account, _)| account).collect();
    if accounts.is_empty() {
        return Err(Error::NoAccounts(Said::default()));
    }
    let list_of = |account| app.catalogue.models_of(account, app.refresh_context(account));
    let lists = join_all(accounts.iter().map(list_of)).await;
    if let Some(Err(error)) = lists.first().filter(|_| lists.iter().all(Result::is_err)) {
        // It may name a proxy, which is no client's business.
        tracing::warn!(error, "no account lists its models");
        return Err(Error::Upstream("no account lists its models".into()));
    }
    let fits = |patterns: &[String], id: &str| {
        patterns.is_empty() || patterns.iter().any(|pattern| model_matches(pattern, id))
    };
    let mut seen = HashSet::new();
    let mut union = Vec::new();
    for (account, models) in accounts.iter().zip(&lists) {
        for model in models.iter().flat_map(|models| models.iter()) {
            let allowed = fits(&caller.key.models, &model.id) && fits(&account.models, &model.id);
            if allowed && seen.insert(model.id.as_str()) {
                union.push((account.kind, model));
            }
        }
    }
    Ok(respond(render(list, &union), headers))
}

fn render(list: ModelList, union: &[(Kind, &Model)]) -> String {
    let entries: Vec<String> =
        union.iter().map(|(kind, model)| entry(list, *kind, model)).collect();
    let joined = entries.join(",");
    match list {
        ModelList::OpenAi => format!(r#"{{"object":"list","data":[{joined}]}}"#),
        ModelList::Codex => format!(r#"{{"models":[{joined}]}}"#),
        ModelList::Anthropic => {
            let id = |model: Option<&(Kind, &Model)>| {
                model.map_or("null".to_owned(), |(_, model)| quote(&model.id))
            };
            let (first, last) = (id(union.first()), id(union.last()));
            format!(r#"{{"data":[{joined}],"has_more":false,"first_id":{first},"last_id":{last}}}"#)
        }
    }
}

/// Codex's catalogue entries are no entries of `OpenAI`'s list; their names are.
fn entry(list: ModelList, kind: Kind, model: &Model) -> String {
    if list == ModelList::OpenAi && kind == Kind::Codex {
        let id = quote(&model.id);
        return format!(r#"{{"id":{id},"object":"model","created":0,"owned_by":"openai"}}"#);
    }
    model.entry.clone()
}

fn respond(body: String, headers: &HeaderMap) -> Response<Outgoing> {
    let digest = sha256(body.as_bytes());
    let etag: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let etag = format!("\"pg-{etag}\"");
    let known =
        headers.get(header::IF_NONE_MATCH).is_some_and(|value| value.as_bytes() == etag.as_bytes());
    let mut response = if known {
        whole(StatusCode::NOT_MODIFIED, "application/json", Bytes::new())
    } else {
        whole(StatusCode::OK, "application/json", Bytes::from(body))
    };
    let etag = HeaderValue::from_str(&etag).expect("hexadecimal");
    response.headers_mut().insert(header::ETAG, etag);
    response
}

/// Asks the account's upstream. Also how `poolgate account test` finds out whether it works.
pub async fn fetch_models(app: &App, account: &Arc<Account>) -> Result<Vec<Model>, String> {
    fetch(account, &app.refresh_context(account)).await
}

async fn fetch(account: &Account, context: &RefreshContext) -> Result<Vec<Model>, String> {
    let (path, surface) = match account.kind {
        Kind::Codex => (format!("/models?client_version={CODEX_VERSION}"), Surface::Responses),
        Kind::Claude | Kind::Anthropic => ("/v1/models?limit=1000".into(), Surface::Messages),
        Kind::OpenAi | Kind::Compatible => ("/models".into(), Surface::Responses),
    };
    let uri: Uri = format!("{}{}{path}", account.upstream.place, account.upstream.prefix)
        .parse()
        .map_err(|error: http::uri::InvalidUri| error.to_string())?;
    let token = account.credential.bearer(context).await.map_err(|error| error.to_string())?;
    let mut headers = HeaderMap::new();
    authorize(&mut headers, account.kind, surface, &token);
    let headers: Vec<(&'static str, Secret)> =
        ["authorization", "x-api-key", "chatgpt-account-id", "anthropic-beta", "anthropic-version"]
            .into_iter()
            .filter_map(|name| Some((name, Secret::new(headers.get(name)?.to_str().ok()?))))
            .collect();
    let way = &account.upstream.place.way;
    let call = context.egress.call(Method::GET, uri, way, &headers, None, CALL_TIMEOUT);
    let (head, body) = call.await.map_err(|error| format!("{error:#}"))?;
    if head.status != StatusCode::OK {
        return Err(format!("the upstream answered {}", head.status.as_u16()));
    }
    parse(&body).ok_or_else(|| "the upstream's list is not what it should be".into())
}

fn parse(body: &[u8]) -> Option<Vec<Model>> {
    let answer: Answer<'_> = serde_json::from_slice(body).ok()?;
    let entries = answer.data.into_iter().chain(answer.models);
    Some(
        entries
            .filter_map(|raw| {
                let entry: Entry = serde_json::from_str(raw.get()).ok()?;
                Some(Model { id: entry.slug.or(entry.id)?, entry: raw.get().to_owned() })
            })
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_shapes_and_keeps_entries_as_written() {
        let openai = br#"{"object":"list","data":[{"id":"gpt-5.5", "x":1.50},{"no":"id"}]}"#;
        let want = Model { id: "gpt-5.5".into(), entry: r#"{"id":"gpt-5.5", "x":1.50}"#.into() };
        assert_eq!(parse(openai), Some(vec![want]));
        let codex = parse(br#"{"models":[{"slug":"gpt-6"}]}"#).unwrap();
        assert_eq!(codex[0].id, "gpt-6");
        assert_eq!(parse(b"<html>"), None);
        let as_openai = entry(ModelList::OpenAi, Kind::Codex, &codex[0]);
        assert!(as_openai.contains(r#""id":"gpt-6""#));
    }
}
