//! The token endpoints: a code or a refresh token in, new tokens out, once.
//!
//! Refresh as the vendors' own clients do it (captured 2026-11). Codes: Codex sends a form (its
//! published source), Claude a JSON object with the state in it (as other clients report); how
//! they are refused is assumed.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::json;

use super::{Exchange, Reply};
use crate::account::{CLAUDE_SCOPES, Inner};
use crate::clock::{ceil_seconds, rfc3339};
use crate::errors;
use crate::kind::Kind;
use crate::logins::{challenge, pairs};
use crate::registry::{CLAUDE_CLIENT_ID, CODEX_CLIENT_ID, NoGrant};
use crate::token::Grant;

/// What is asked, and how it was written.
struct Form {
    fields: HashMap<String, String>,
    is_json: bool,
}

impl Form {
    fn read(exchange: &Exchange<'_>) -> Option<Self> {
        let kind = exchange.head.headers.get(http::header::CONTENT_TYPE);
        let is_form = kind.is_some_and(|kind| kind == "application/x-www-form-urlencoded");
        let fields = if is_form {
            pairs(std::str::from_utf8(exchange.body).ok()?)
        } else {
            serde_json::from_slice(exchange.body).ok()?
        };
        Some(Self { fields, is_json: !is_form })
    }

    fn get(&self, name: &str) -> &str {
        self.fields.get(name).map(String::as_str).unwrap_or_default()
    }
}

/// The account to which the code or the refresh token was given, spent or not.
pub fn owner(exchange: &Exchange<'_>) -> Option<Arc<Inner>> {
    let form = Form::read(exchange)?;
    let world = exchange.world;
    world.logins.peek(form.get("code")).or_else(|| world.registry.owner(form.get("refresh_token")))
}

pub fn respond(exchange: &Exchange<'_>, kind: Kind) -> Reply {
    let client_id = if kind == Kind::Codex { CODEX_CLIENT_ID } else { CLAUDE_CLIENT_ID };
    let Some(form) = Form::read(exchange) else {
        return plain(400, "invalid_request", "neither a form nor an object of texts");
    };
    if form.get("client_id") != client_id {
        return plain(401, "invalid_client", "unknown client_id");
    }
    match form.get("grant_type") {
        "refresh_token" if form.is_json => refresh(exchange, kind, form.get("refresh_token")),
        "authorization_code" if form.is_json == (kind == Kind::Claude) => {
            redeem(exchange, kind, &form)
        }
        _ => plain(400, "unsupported_grant_type", "not simulated, or not in this encoding"),
    }
}

fn refresh(exchange: &Exchange<'_>, kind: Kind, token: &str) -> Reply {
    let world = exchange.world;
    match world.registry.refresh(kind, token, &world.clock) {
        Ok((account, grant)) => granted(exchange, &account, &grant),
        Err(refused) if kind == Kind::Codex => codex_refusal(&refused),
        Err(_) => plain(400, "invalid_grant", "Refresh token not found or invalid"),
    }
}

/// A code is good once, with the verifier and the redirect it was asked for with.
fn redeem(exchange: &Exchange<'_>, kind: Kind, form: &Form) -> Reply {
    let world = exchange.world;
    let code = world.logins.spend(form.get("code")).filter(|code| {
        code.account.kind == kind
            && code.redirect == form.get("redirect_uri")
            && code.challenge == challenge(form.get("code_verifier"))
            && (kind == Kind::Codex || code.state == form.get("state"))
    });
    let Some(code) = code else {
        return plain(400, "invalid_grant", "Invalid 'code' in request.");
    };
    world.registry.renew(&code.account, &world.clock);
    granted(exchange, &code.account, &code.account.newest_grant().0)
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
