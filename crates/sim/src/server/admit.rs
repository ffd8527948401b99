//! Whose credential a request carries, and whether the endpoint takes it.

use std::sync::Arc;

use super::{Exchange, Reply};
use crate::account::Inner;
use crate::errors;
use crate::kind::{Dialect, Kind};
use crate::registry::Caller;
use crate::request::Credential;
use crate::route::Route;

/// Without it no OAuth token is taken (seen with Claude Code).
const OAUTH_BETA: &str = "oauth-2025-04-20";

/// The account, if it can be named, and the refusal, if there is to be one.
pub fn admit(exchange: &Exchange<'_>) -> (Option<Arc<Inner>>, Option<Reply>) {
    let (dialect, id) = (exchange.route.dialect(), &exchange.id);
    if !exchange.is_readable {
        let message = "The body could not be decoded.";
        return (None, Some(errors::invalid(dialect, id, "invalid_body", message)));
    }
    if let Route::Token(_) = exchange.route {
        return (super::oauth::owner(exchange), None);
    }
    if let Route::SignIn(_) = exchange.route {
        return (None, None);
    }
    let credential = Credential::of(&exchange.head.headers);
    let caller = credential.map_or(Caller::Unknown, |credential| {
        exchange.world.registry.caller(credential.token(), &exchange.world.clock)
    });
    if let Route::Unknown(_) | Route::WrongMethod(_) = exchange.route {
        return (caller.account(), None);
    }
    let by_key = matches!(credential, Some(Credential::Key(_)));
    match caller {
        Caller::Unknown => (None, Some(errors::unauthorized(dialect, id, false))),
        Caller::Stale(account) => (Some(account), Some(errors::unauthorized(dialect, id, true))),
        Caller::Known(account) => {
            let misplaced = !exchange.route.admits(account.kind)
                || by_key && matches!(account.kind, Kind::Claude | Kind::Codex);
            let refusal = if misplaced {
                Some(errors::unauthorized(dialect, id, false))
            } else {
                refuse_headers(exchange, &account)
            };
            (Some(account), refusal)
        }
    }
}

/// What a good token still needs beside it.
fn refuse_headers(exchange: &Exchange<'_>, account: &Inner) -> Option<Reply> {
    let headers = &exchange.head.headers;
    match account.kind {
        Kind::Claude => {
            let betas = headers.get_all("anthropic-beta");
            let mut betas = betas.iter().filter_map(|line| line.to_str().ok());
            let admits = |line: &str| line.split(',').any(|beta| beta.trim() == OAUTH_BETA);
            (!betas.any(admits)).then(|| errors::oauth_beta_missing(&exchange.id))
        }
        Kind::Codex => {
            // The polling endpoints take a token alone; the clients send the header there too.
            let is_needed = !matches!(exchange.route, Route::WhamUsage | Route::AccountsCheck);
            match headers.get("chatgpt-account-id") {
                Some(workspace) if workspace == account.identity.account_id.as_str() => None,
                Some(_) => Some(errors::forbidden(Dialect::Codex, &exchange.id)),
                None if is_needed => {
                    Some(errors::unauthorized(Dialect::Codex, &exchange.id, false))
                }
                None => None,
            }
        }
        Kind::Openai | Kind::Anthropic => None,
    }
}
