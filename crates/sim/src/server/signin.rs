//! The pages and endpoints of a sign-in, up to its code: the browser is sent back at once by
//! whoever is seated there, and device codes are answered as scripted.
//!
//! Parameters as the vendors' own clients send them (Codex CLI, published source of 2026; Claude
//! Code 2.1, as other clients report it). What the real pages say to a wrong one is assumed.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::json;

use super::{Exchange, Reply};
use crate::account::Inner;
use crate::answer::Content;
use crate::errors;
use crate::kind::Kind;
use crate::logins::{Code, DevicePoll, Person, challenge, encoded, pairs};
use crate::registry::{CLAUDE_CLIENT_ID, CODEX_CLIENT_ID};
use crate::route::Step;

pub fn respond(exchange: &Exchange<'_>, step: Step) -> Reply {
    match step {
        Step::Authorize => authorize(exchange).unwrap_or_else(|wrong| page(400, wrong)),
        Step::CodePage => code_page(exchange),
        Step::DevicePage => page(200, "Enter the code that the device shows."),
        Step::DeviceStart => device_start(exchange),
        Step::DevicePoll => device_poll(exchange),
    }
}

fn page(status: u16, text: &str) -> Reply {
    let mut reply = errors::json_reply(status, &json!(null));
    reply.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
    reply.content = Content::Json(Bytes::from(format!("<!doctype html><p>{text}</p>")));
    reply
}

/// The account that signs in at this kind's page: the one seated there, else the first of the kind.
fn person(exchange: &Exchange<'_>, kind: Kind) -> Option<Person> {
    let world = exchange.world;
    world.logins.person(kind).or_else(|| {
        let first = world.registry.all().into_iter().find(|account| account.kind == kind);
        first.map(Person::SignsIn)
    })
}

fn authorize(exchange: &Exchange<'_>) -> Result<Reply, &'static str> {
    let query = pairs(exchange.head.uri.query().unwrap_or_default());
    let get = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
    let kind = match get("client_id") {
        CODEX_CLIENT_ID => Kind::Codex,
        CLAUDE_CLIENT_ID => Kind::Claude,
        _ => return Err("unknown client_id"),
    };
    if get("response_type") != "code" || get("code_challenge_method") != "S256" {
        return Err("response_type must be code, with a challenge by S256");
    }
    if get("code_challenge").len() != 43 || get("state").len() < 32 {
        return Err("code_challenge or state is too short");
    }
    let scopes: Vec<&str> = get("scope").split(' ').collect();
    let (needed, callback) = match kind {
        Kind::Codex => (["openid", "email", "offline_access"].as_slice(), "/auth/callback"),
        _ => (["user:inference", "user:profile"].as_slice(), "/callback"),
    };
    if !needed.iter().all(|scope| scopes.contains(scope)) {
        return Err("a scope is missing");
    }
    let redirect = get("redirect_uri");
    let local = redirect.strip_prefix("http://localhost:").and_then(|rest| rest.split_once('/'));
    let own = format!("{}/oauth/code/callback", exchange.world.url());
    let is_registered = local
        .is_some_and(|(port, path)| port.parse::<u16>().is_ok() && format!("/{path}") == callback)
        || (kind == Kind::Claude && redirect == own && get("code") == "true");
    if !is_registered {
        return Err("redirect_uri is not registered");
    }
    let state = encoded(get("state"));
    let back = match person(exchange, kind).ok_or("nobody to sign in")? {
        Person::Declines => format!("error=access_denied&error_description=no&state={state}"),
        Person::SignsIn(account) => {
            let code = exchange.world.logins.hand_out(Code {
                account,
                redirect: redirect.to_owned(),
                challenge: get("code_challenge").to_owned(),
                state: get("state").to_owned(),
            });
            format!("code={}&state={state}", encoded(&code))
        }
    };
    let mut reply = page(200, "You are being sent back.");
    reply.status = StatusCode::FOUND;
    let location = HeaderValue::from_str(&format!("{redirect}?{back}"));
    reply.headers.insert(header::LOCATION, location.map_err(|_| "redirect_uri is no header")?);
    Ok(reply)
}

/// Claude's own page shows the code, to be copied.
fn code_page(exchange: &Exchange<'_>) -> Reply {
    let query = pairs(exchange.head.uri.query().unwrap_or_default());
    let get = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
    page(200, &format!("{}#{}", get("code"), get("state")))
}

fn device_start(exchange: &Exchange<'_>) -> Reply {
    #[derive(Deserialize)]
    struct Form {
        client_id: String,
    }
    let form = serde_json::from_slice::<Form>(exchange.body);
    if form.is_ok_and(|form| form.client_id != CODEX_CLIENT_ID) {
        return errors::json_reply(401, &json!({"error": {"code": "invalid_client"}}));
    }
    let Some(new) = exchange.world.logins.new_device() else {
        return errors::detail(404, "Not Found");
    };
    let body = json!({
        "device_auth_id": new.id,
        "user_code": new.user_code,
        "interval": new.interval_s.to_string(),
    });
    errors::json_reply(200, &body)
}

fn device_poll(exchange: &Exchange<'_>) -> Reply {
    #[derive(Deserialize)]
    struct Form {
        device_auth_id: String,
        user_code: String,
    }
    let refused = |status, code| errors::json_reply(status, &json!({"error": {"code": code}}));
    let Ok(form) = serde_json::from_slice::<Form>(exchange.body) else {
        return refused(400, "invalid_request");
    };
    let logins = &exchange.world.logins;
    match logins.poll_device(&form.device_auth_id, &form.user_code) {
        Some(DevicePoll::Pending) => refused(403, "deviceauth_authorization_pending"),
        Some(DevicePoll::SlowDown) => refused(400, "slow_down"),
        Some(DevicePoll::Expired) => refused(400, "deviceauth_expired"),
        Some(DevicePoll::Denied) => refused(400, "access_denied"),
        None => match person(exchange, Kind::Codex) {
            Some(Person::SignsIn(account)) => device_granted(exchange, account),
            _ => refused(400, "access_denied"),
        },
    }
}

/// The endpoint made the verifier itself, and gives it out with the code.
fn device_granted(exchange: &Exchange<'_>, account: Arc<Inner>) -> Reply {
    let world = exchange.world;
    let verifier = format!("{0}{0}", exchange.id);
    let challenge = challenge(&verifier);
    let code = world.logins.hand_out(Code {
        account,
        redirect: format!("{}/deviceauth/callback", world.url()),
        challenge: challenge.clone(),
        state: String::new(),
    });
    let body = json!({
        "authorization_code": code,
        "code_challenge": challenge,
        "code_verifier": verifier,
    });
    errors::json_reply(200, &body)
}
