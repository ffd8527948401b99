//! One request to one account: the token, the headers, the call. What came of it is judged
//! elsewhere.

use std::sync::Arc;

use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use poolgate_core::account::{Kind, Surface};

use super::Call;
use super::headers::{self, add_beta, name};
use super::prepare::{self, Prepared, Wanted};
use super::read::Payload;
use super::{socket, stage};
use crate::admission::{Overload, Permit};
use crate::app::App;
use crate::credentials::{Bearer, CredentialError, RefreshContext};
use crate::egress::{Received, SendError, Unreachable};
use crate::error::Error;
use crate::json::TextBody;
use crate::pool::Account;

/// Claude sign-ins carry it and API keys do not (Claude Code 2.1.330, 2026-11).
const OAUTH_BETA: &str = "oauth-2025-04-20";
/// The API has no default version; every SDK sends one.
const ANTHROPIC_VERSION: &str = "2023-06-01";

/// Where one attempt goes, and with what.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub account: &'a Account,
    pub bearer: &'a Bearer,
    pub payload: &'a Payload,
    /// Another account issued the turn state that the request carries.
    pub moved: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error(transparent)]
    Send(#[from] SendError),
    /// Ours, not the account's.
    #[error("the request cannot be built: {0}")]
    Build(#[from] http::Error),
    /// Ours too.
    #[error(transparent)]
    Overload(#[from] Overload),
    /// The socket that holds the turns before is gone.
    #[error("the turns before are gone")]
    ChainLost,
}

impl App {
    pub fn refresh_context(&self, account: &Account) -> RefreshContext {
        RefreshContext {
            account: account.name.clone(),
            issuers: self.issuers.clone(),
            token_url: account.token_url.clone(),
            egress: self.egress.clone(),
            way: account.upstream.place.way.clone(),
            admission: Arc::clone(&self.admission),
            metrics: Arc::clone(&self.metrics),
            clock: self.clock.clone(),
            tasks: self.tasks.clone(),
        }
    }
}

/// Renews the token that the upstream has just refused.
pub async fn refresh(
    app: &App,
    account: &Account,
    refused: &Bearer,
) -> Result<Bearer, CredentialError> {
    let renewed = account.credential.replace(refused, &app.refresh_context(account)).await;
    // Before anything is learnt of the new tokens, which they would end as what the old ones caused.
    app.pool.follow_credential(account.id, app.clock.now());
    renewed
}

/// A token to try with.
pub async fn bearer(app: &App, account: &Account) -> Result<Bearer, CredentialError> {
    match account.credential.ready(app.clock.now())? {
        Some(bearer) => Ok(bearer),
        None => Box::pin(account.credential.bearer(&app.refresh_context(account))).await,
    }
}

/// An answer whose head is there.
pub struct Sent {
    pub response: Response<Received>,
    /// It was asked for as a stream.
    pub streams: bool,
    /// Held until the response has been created.
    pub create: Permit,
}

/// Sends, up to the head of the answer.
pub async fn send(app: &App, call: &Call, target: &Target<'_>) -> Result<Sent, AttemptError> {
    if let Some(over) = &call.over {
        let (response, create) = socket::send(app, call, target, over).await?;
        return Ok(Sent { response, streams: true, create });
    }
    // Boxed: large, and a turn on a socket does without.
    Box::pin(send_over_http(app, call, target)).await
}

pub async fn send_over_http(
    app: &App,
    call: &Call,
    target: &Target<'_>,
) -> Result<Sent, AttemptError> {
    let wanted = Wanted { surface: call.surface, stream: call.head.stream, moved: target.moved };
    let prepared = prepare::prepare(target.account, target.payload, wanted);
    let streams = prepared.streams;
    let timeout =
        if streams { app.limits().stream_head_timeout } else { app.limits().head_timeout };
    let request = build(call, target, prepared)?;
    let create = stage::create(app, call, streams)?;
    let place = &target.account.upstream.place;
    let mut sent = app.egress.send(request, place, timeout).await;
    if let Err(SendError::Stale(why)) = &sent {
        tracing::debug!(account = target.account.name, why, "asked once more");
        let prepared = prepare::prepare(target.account, target.payload, wanted);
        sent = app.egress.send(build(call, target, prepared)?, place, timeout).await;
    }
    Ok(Sent { response: sent?, streams, create })
}

fn build(
    call: &Call,
    target: &Target<'_>,
    prepared: Prepared,
) -> Result<Request<TextBody>, http::Error> {
    let account = target.account;
    let uri = Uri::try_from(prepare::path(account, call.surface, call.query.as_deref()))?;
    let mut request =
        Request::builder().method(Method::POST).uri(uri).body(TextBody::from(prepared.body))?;
    let headers = request.headers_mut();
    *headers = headers::to_upstream(&call.headers);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // Otherwise any would do (RFC 9110, 12.5.3), and what cannot be read can be neither judged nor scrubbed.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if let Some(encoding) = prepared.encoding {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding.name()));
    }
    if target.moved {
        // Turn state is bound to the account that issued it.
        headers.remove(&name::TURN_STATE);
    }
    if call.over.is_some() {
        // What its client said of sockets is not true here.
        headers.remove(socket::BETA.0);
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
    }
    authorize(headers, account.kind, call.surface, target.bearer);
    Ok(request)
}

/// The account's own credential, in the form its upstream reads.
pub fn authorize(headers: &mut HeaderMap, kind: Kind, surface: Surface, bearer: &Bearer) {
    let speaks_messages = matches!(surface, Surface::Messages | Surface::CountTokens);
    match kind {
        Kind::Anthropic => {
            headers.insert(&name::API_KEY, bearer.token.clone());
        }
        // Nobody knows which of the two a compatible Messages endpoint reads.
        Kind::Compatible if speaks_messages => {
            headers.insert(&name::API_KEY, bearer.token.clone());
            headers.insert(AUTHORIZATION, bearer.authorization.clone());
        }
        _ => {
            headers.insert(AUTHORIZATION, bearer.authorization.clone());
        }
    }
    if let (Kind::Codex, Some(account)) = (kind, &bearer.account_id) {
        headers.insert("chatgpt-account-id", account.clone());
    }
    if kind == Kind::Claude {
        add_beta(headers, OAUTH_BETA);
    }
    if speaks_messages && !headers.contains_key(&name::ANTHROPIC_VERSION) {
        headers.insert(&name::ANTHROPIC_VERSION, HeaderValue::from_static(ANTHROPIC_VERSION));
    }
}

impl From<&AttemptError> for Error {
    fn from(error: &AttemptError) -> Self {
        match error {
            AttemptError::Send(SendError::Timeout) => Self::UpstreamTimeout,
            // Where our proxies are is no client's business.
            AttemptError::Send(SendError::Connect(Unreachable { by: Some(_), .. })) => {
                Self::Upstream("it cannot be reached through its proxy".into())
            }
            AttemptError::Send(error) => Self::Upstream(error.to_string()),
            AttemptError::Overload(full)
            | AttemptError::Credential(CredentialError::Overload(full)) => Self::Overloaded(*full),
            AttemptError::Credential(_) => Self::Upstream("its token could not be renewed".into()),
            AttemptError::Build(_) => Self::Internal,
            AttemptError::ChainLost => Self::ChainLost,
        }
    }
}
