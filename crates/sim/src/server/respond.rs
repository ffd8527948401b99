//! The right answer to a request, refusals for good reasons included.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::Value;

use super::{Exchange, Pace, Reply, oauth, signin};
use crate::account::Inner;
use crate::answer::responses::Question;
use crate::answer::{Content, chat, messages, responses};
use crate::catalogue::{self, NO_SUCH_MODEL};
use crate::directives::Shape;
use crate::identity::{hash, is_sealed_by};
use crate::kind::Dialect;
use crate::peek::Peek;
use crate::quota::Reading;
use crate::route::Route;
use crate::{errors, headers, usage};

/// `charges`: whether the account's quota pays for it.
pub fn respond(exchange: &Exchange<'_>, account: Option<&Arc<Inner>>, charges: bool) -> Reply {
    let id = &exchange.id;
    match (exchange.route, account) {
        (Route::Token(kind), _) => oauth::respond(exchange, kind),
        (Route::SignIn(step), _) => signin::respond(exchange, step),
        (Route::WrongMethod(dialect), _) => errors::wrong_method(dialect, id),
        (Route::Upgrade(_), _) => errors::upgrade_required(),
        (Route::Unknown(dialect), _) => errors::not_found(dialect, id),
        (route, None) => errors::unauthorized(route.dialect(), id, false),
        (
            Route::Responses(_)
            | Route::Compact(_)
            | Route::Chat
            | Route::Messages
            | Route::CountTokens,
            Some(account),
        ) => model_call(exchange, account, charges),
        (route, Some(account)) => about(exchange, route, account),
    }
}

/// The endpoints that tell about the account or its provider.
fn about(exchange: &Exchange<'_>, route: Route, account: &Inner) -> Reply {
    let now = exchange.world.clock.now();
    let (plan, readings) = {
        let mut state = account.state.lock();
        (state.plan.clone(), state.quota.readings(now))
    };
    let value = |value: &Value| Bytes::from(value.to_string());
    let body = match route {
        Route::CodexModels => catalogue::codex(),
        Route::Models(Dialect::Anthropic) => catalogue::anthropic(),
        Route::Models(_) => catalogue::openai(),
        Route::WhamUsage => value(&usage::wham(account, &plan, &readings)),
        Route::AccountsCheck => value(&usage::accounts_check(account, &plan)),
        Route::ClaudeProfile => value(&usage::profile(account, &plan)),
        _ => value(&usage::claude(&readings)),
    };
    let mut reply = success(Content::Json(body), Pace::default());
    if let Route::CodexModels | Route::Models(_) = route {
        headers::account(&mut reply.headers, account, &plan, &readings);
    }
    if route == Route::CodexModels {
        headers::fixed(&mut reply.headers, "etag", catalogue::ETAG);
    }
    reply
}

/// The endpoints at which a model answers.
fn model_call(exchange: &Exchange<'_>, account: &Inner, charges: bool) -> Reply {
    let (route, id) = (exchange.route, &exchange.id);
    let Ok(peek) = Peek::read(exchange.body) else {
        let message = "We could not parse the JSON body of your request.";
        return errors::invalid(route.dialect(), id, "invalid_json", message);
    };
    if let Some(refusal) = objection(exchange, account, &peek) {
        return refusal;
    }
    let (plan, outcome) = pay(exchange, account, charges && route != Route::CountTokens);
    let readings = match outcome {
        Ok(readings) => readings,
        Err(spent) => return usage_limit(exchange, account, &plan, &spent),
    };
    let shape = shape_of(&peek);
    let content = answer(exchange, account, &peek, &shape);
    let pace = Pace { first: shape.first, gap: shape.gap };
    let mut reply = success(content, pace);
    headers::account(&mut reply.headers, account, &plan, &readings);
    if let Route::Responses(_) = route {
        headers::put(&mut reply.headers, "openai-model", peek.model());
    }
    reply
}

/// What the user's last words ask for, or what follows from a tool's.
pub fn shape_of(peek: &Peek<'_>) -> Shape {
    let after = peek.tool_output().and_then(|(call, output)| Shape::after(call, output));
    after.unwrap_or_else(|| Shape::of(peek.user_text()))
}

pub fn answer(exchange: &Exchange<'_>, account: &Inner, peek: &Peek<'_>, shape: &Shape) -> Content {
    let route = exchange.route;
    let compose = || compose(route, account, peek, shape);
    let names_it = shape.reason || shape.metadata.is_some() || peek.wants_compaction();
    if names_it || matches!(route, Route::Compact(_)) {
        return compose();
    }
    if peek.tool_output().is_some() {
        return compose(); // Does not follow from the user's words.
    }
    // What kind of answer, in few bytes; the two dialects of the Responses API answer alike.
    let kind = match route {
        Route::Chat if peek.includes_usage() => "chat+usage",
        Route::Chat => "chat",
        Route::Messages => "messages",
        Route::CountTokens => "count",
        _ => "responses",
    };
    let streams = if peek.streams() { "stream" } else { "whole" };
    let key = hash(&[kind, streams, peek.model(), peek.user_text()]);
    exchange.world.answers.recall(key, compose)
}

fn compose(route: Route, account: &Inner, peek: &Peek<'_>, shape: &Shape) -> Content {
    let (model, user_text) = (peek.model(), peek.user_text());
    let is_compact = matches!(route, Route::Compact(_));
    let compaction = is_compact || peek.wants_compaction();
    let question = Question { model, user_text, shape, account: account.name(), compaction };
    match (route, peek.streams()) {
        (Route::Chat, true) => chat::stream(model, user_text, shape, peek.includes_usage()),
        (Route::Chat, false) => chat::whole(model, user_text, shape),
        (Route::Messages, true) => messages::stream(model, user_text, shape),
        (Route::Messages, false) => messages::whole(model, user_text, shape),
        (Route::CountTokens, _) => messages::count(shape),
        _ if is_compact => responses::compacted(&question),
        (_, true) => responses::stream(&question),
        (_, false) => responses::whole(&question),
    }
}

/// What the endpoint does not take.
pub fn objection(exchange: &Exchange<'_>, account: &Inner, peek: &Peek<'_>) -> Option<Reply> {
    let (route, id) = (exchange.route, &exchange.id);
    if route == Route::Responses(Dialect::Codex) {
        if peek.stream != Some(true) {
            return Some(errors::detail(400, "Stream must be set to true"));
        }
        if peek.store != Some(false) {
            return Some(errors::detail(400, "Store must be set to false"));
        }
        if let Some(name) = peek.unsupported() {
            return Some(errors::detail(400, &format!("Unsupported parameter: {name}")));
        }
    }
    let dialect = route.dialect();
    if peek.model() == NO_SUCH_MODEL {
        let is_chat = route == Route::Chat;
        return Some(errors::unknown_model(dialect, id, NO_SUCH_MODEL, is_chat));
    }
    let name = account.name();
    if !peek.sealed().all(|content| is_sealed_by(content, name)) {
        let message = "The encrypted content could not be verified. Reason: Encrypted content \
                       organization_id did not match the target organization.";
        return Some(errors::invalid(dialect, id, "invalid_encrypted_content", message));
    }
    None
}

/// Charges the account, if it is to be: the plan, and the readings after it or those of a spent
/// account.
pub fn pay(
    exchange: &Exchange<'_>,
    account: &Inner,
    charges: bool,
) -> (String, Result<Vec<Reading>, Vec<Reading>>) {
    let now = exchange.world.clock.now();
    let mut state = account.state.lock();
    let outcome = if charges { state.quota.charge(now) } else { Ok(state.quota.readings(now)) };
    (state.plan.clone(), outcome)
}

/// The refusal of a spent account, with its limit headers.
pub fn usage_limit(
    exchange: &Exchange<'_>,
    account: &Inner,
    plan: &str,
    readings: &[Reading],
) -> Reply {
    let mut reply = errors::usage_limit(account, plan, &exchange.id, readings);
    headers::account(&mut reply.headers, account, plan, readings);
    reply
}

fn success(content: Content, pace: Pace) -> Reply {
    let mut headers = HeaderMap::with_capacity(40);
    headers::content_type(&mut headers, matches!(content, Content::Events(_)));
    Reply { status: StatusCode::OK, headers, content, pace }
}
