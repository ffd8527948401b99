//! The token endpoints: a refresh token in, new tokens out, once.
//!
//! Requests and answers as the vendors' own clients exchange them (captured 2026-11).

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use super::{Exchange, Reply};
use crate::account::{CLAUDE_SCOPES, Inner};
use crate::clock::{ceil_seconds, rfc3339};
use crate::errors;
use crate::kind::Kind;
use crate::registry::{CLAUDE_CLIENT_ID, CODEX_CLIENT_ID, NoGrant};
use crate::token::Grant;

#[derive(Deserialize)]
struct Form {
    grant_type: String,
    client_id: String,
    refresh_token: String,
}

/// The account to which the refresh token was given, spent or not.
pub fn owner(exchange: &Exchange<'_>) -> Option<Arc<Inner>> {
    let form: Form = serde_json::from_slice(exchange.body).ok()?;
    exchange.world.registry.owner(&form.refresh_token)
}

pub fn respond(exchange: &Exchange<'_>, kind: Kind) -> Reply {
    let client_id = if kind == Kind::Codex { CODEX_CLIENT_ID } else { CLAUDE_CLIENT_ID };
    let Ok(form) = serde_json::from_slice::<Form>(exchange.body) else {
        return plain(400, "invalid_request", "grant_type, client_id and refresh_token are needed");
    };
    if form.grant_type != "refresh_token" {
        return plain(400, "unsupported_grant_type", "only refresh_token is simulated");
    }
    if form.client_id != client_id {
        return plain(401, "invalid_client", "unknown client_id");
    }
    let world = exchange.world;
    match world.registry.refresh(kind, &form.refresh_token, &world.clock) {
        Ok((account, grant)) => granted(exchange, &account, &grant),
        Err(refused) if kind == Kind::Codex => codex_refusal(&refused),
        Err(_) => plain(400, "invalid_grant", "Refresh token not found or invalid"),
    }
}

fn granted(exchange: &Exchange<'_>, account: &Inner, grant: &Grant) -> Reply {
    let expires_in = ceil_seconds(grant.expires_at - exchange.world.clock.now());
    let body = match account.kind {
        Kind::Codex => json!({
            "access_token": grant.access,
            "id_token": grant.id,
            "refresh_token": grant.refresh,
            "token_type": "Bearer",
            "expires_in": expires_in,
            "scope": "openid profile email offline_access",
        }),
        _ => json!({
            "token_type": "Bearer",
            "access_token": grant.access,
            "expires_in": expires_in,
            "expires_at": rfc3339(grant.expires_at),
            "refresh_token": grant.refresh,
            "scope": CLAUDE_SCOPES,
            "account": {
                "uuid": account.identity.account_id,
                "email_address": account.identity.email,
            },
            "organization": {"uuid": account.identity.organization_id},
        }),
    };
    errors::json_reply(200, &body)
}

/// The final failures codex knows.
fn codex_refusal(refused: &NoGrant) -> Reply {
    let (code, message) = match refused {
        NoGrant::Reused => (
            "refresh_token_reused",
            "Your refresh token has already been used to generate a new access token.",
        ),
        NoGrant::Unknown | NoGrant::Revoked => {
            ("refresh_token_invalidated", "Your refresh token has been invalidated.")
        }
    };
    let kind = "invalid_request_error";
    let error = json!({"message": message, "type": kind, "param": null, "code": code});
    errors::json_reply(401, &json!({"error": error}))
}

fn plain(status: u16, error: &str, description: &str) -> Reply {
    errors::json_reply(status, &json!({"error": error, "error_description": description}))
}
