//! Tokens in the forms the providers give out: unsigned JWTs for codex, opaque for the others.
//!
//! Nothing checks a signature, so it is a constant text of the right form. Every token has a
//! serial number in it and is unique within a simulator.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::clock::Millis;
use crate::identity::{Identity, hex, uuid};
use crate::registry::CODEX_CLIENT_ID;

/// What a sign-in or a refresh gives out.
#[derive(Clone, Debug)]
pub struct Grant {
    pub access: String,
    pub refresh: String,
    /// Codex only, else empty.
    pub id: String,
    pub expires_at: Millis,
}

/// Codex: two JWTs and a refresh token.
pub fn codex(who: &Identity, plan: &str, serial: u64, now: Millis, expires_at: Millis) -> Grant {
    let auth = json!({
        "chatgpt_account_id": who.account_id,
        "chatgpt_plan_type": plan,
        "chatgpt_user_id": who.user_id,
        "user_id": who.user_id,
    });
    let serial = serial.to_string();
    let jti = uuid(&["jti", &who.account_id, &serial]);
    let access = json!({
        "aud": ["https://api.openai.com/v1"],
        "client_id": CODEX_CLIENT_ID,
        "exp": expires_at.div_euclid(1000),
        "https://api.openai.com/auth": auth,
        "https://api.openai.com/profile": {"email": who.email, "email_verified": true},
        "iat": now.div_euclid(1000),
        "iss": "https://auth.openai.com",
        "jti": jti,
        "scp": ["openid", "profile", "email", "offline_access"],
        "sub": who.user_id,
    });
    let id = json!({
        "aud": [CODEX_CLIENT_ID],
        "email": who.email,
        "email_verified": true,
        "exp": expires_at.div_euclid(1000),
        "https://api.openai.com/auth": auth,
        "iat": now.div_euclid(1000),
        "iss": "https://auth.openai.com",
        "jti": jti,
        "name": who.name,
        "sub": who.user_id,
    });
    let refresh = format!("rt_{}", opaque("codex-refresh", who, &serial));
    Grant { access: jwt(&access), refresh, id: jwt(&id), expires_at }
}

/// Claude: opaque access and refresh tokens.
pub fn claude(who: &Identity, serial: u64, expires_at: Millis) -> Grant {
    let serial = serial.to_string();
    Grant {
        access: format!("sk-ant-oat01-{}", opaque("claude-access", who, &serial)),
        refresh: format!("sk-ant-ort01-{}", opaque("claude-refresh", who, &serial)),
        id: String::new(),
        expires_at,
    }
}

/// A platform key; it never changes.
pub fn key(prefix: &str, who: &Identity) -> String {
    format!("{prefix}{}", opaque("key", who, prefix))
}

fn opaque(what: &str, who: &Identity, serial: &str) -> String {
    let [a, b] = ["1", "2"].map(|half| hex(&[what, &who.account_id, serial, half]));
    a + &b
}

fn jwt(claims: &Value) -> String {
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256","kid":"sim-1","typ":"JWT"}"#);
    let claims = URL_SAFE_NO_PAD.encode(claims.to_string());
    let signature = URL_SAFE_NO_PAD.encode([0x5a; 256]);
    format!("{header}.{claims}.{signature}")
}
