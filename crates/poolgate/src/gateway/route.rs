//! From method and path to what is asked for. The path is parsed once, here; whatever is not on the
//! list is refused before a key is looked at, and never normalised into a match.

use http::{HeaderMap, Method};
use poolgate_core::account::Surface;

use super::headers::name;
use crate::error::{Dialect, Error};
use crate::strict::offers_socket;

/// What the prefix of the path promises a Responses client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contract {
    /// `/v1`: `OpenAI`'s own events only.
    Strict,
    /// `/backend-api/codex`: Codex's extra events too.
    Codex,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelList {
    OpenAi,
    Anthropic,
    /// Codex's catalogue.
    Codex,
}

/// What a client wants to know of limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// As Codex asks for the limits of a subscription.
    CodexUsage,
    Pool,
    /// Now, and whenever it changes.
    WatchPool,
    /// What the key itself has used.
    Own,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Proxy {
        surface: Surface,
        contract: Contract,
    },
    /// Turns over a WebSocket.
    Socket(Contract),
    Models(ModelList),
    Limits(Question),
    AdminStatus,
    AdminWhy,
    AdminExplain,
    Metrics,
    Healthy,
    Ready,
}

impl Endpoint {
    /// The way to it that documentation names; some have others.
    pub const fn path(self) -> &'static str {
        let (is_codex, surface) = match self {
            Self::Healthy => return "/healthz",
            Self::Ready => return "/readyz",
            Self::Metrics => return "/metrics",
            Self::AdminStatus => return "/api/admin/status",
            Self::AdminWhy => return "/api/admin/why",
            Self::AdminExplain => return "/api/admin/explain",
            Self::Limits(Question::CodexUsage) => return "/api/codex/usage",
            Self::Limits(Question::Pool | Question::WatchPool) => return "/v1/pool/status",
            Self::Limits(Question::Own) => return "/v1/usage",
            Self::Models(ModelList::Codex) => return "/backend-api/codex/models",
            Self::Models(_) => return "/v1/models",
            Self::Socket(contract) => (matches!(contract, Contract::Codex), Surface::Responses),
            Self::Proxy { surface, contract } => (matches!(contract, Contract::Codex), surface),
        };
        match surface {
            Surface::Responses if is_codex => "/backend-api/codex/responses",
            Surface::Compact if is_codex => "/backend-api/codex/responses/compact",
            Surface::Responses => "/v1/responses",
            Surface::Compact => "/v1/responses/compact",
            Surface::Chat => "/v1/chat/completions",
            Surface::Messages => "/v1/messages",
            Surface::CountTokens => "/v1/messages/count_tokens",
        }
    }
}

/// The envelope that callers of this path parse, known even when the path is not.
pub fn dialect(path: &str, headers: &HeaderMap) -> Dialect {
    let under = |prefix: &str| {
        path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if under("/v1/messages") || (under("/v1") && headers.contains_key(&name::ANTHROPIC_VERSION)) {
        Dialect::Anthropic
    } else if under("/v1") || under("/backend-api") || under("/api/codex") {
        Dialect::OpenAi
    } else {
        Dialect::Plain
    }
}

pub fn wants_socket(headers: &HeaderMap) -> bool {
    headers.get_all(http::header::UPGRADE).iter().any(|value| offers_socket(value.as_bytes()))
}

pub fn route(
    method: &Method,
    path: &str,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Endpoint, Error> {
    let endpoint = find(path, query, headers).ok_or(Error::UnknownPath)?;
    let upgrade = wants_socket(headers);
    match endpoint {
        Endpoint::Proxy { surface: Surface::Responses, contract }
            if upgrade && method == Method::GET =>
        {
            Ok(Endpoint::Socket(contract))
        }
        Endpoint::Proxy { .. } if upgrade => Err(Error::NoWebSocket),
        Endpoint::Proxy { .. } if method == Method::POST => Ok(endpoint),
        Endpoint::Proxy { .. } => Err(Error::WrongMethod("POST")),
        _ if method == Method::GET => Ok(endpoint),
        // It has no head but that of a stream without an end.
        Endpoint::Limits(Question::WatchPool) => Err(Error::WrongMethod("GET")),
        // `serve` leaves the body out.
        _ if method == Method::HEAD => Ok(endpoint),
        _ => Err(Error::WrongMethod("GET")),
    }
}

fn find(path: &str, query: Option<&str>, headers: &HeaderMap) -> Option<Endpoint> {
    let proxy = |surface, contract| Some(Endpoint::Proxy { surface, contract });
    match path {
        "/healthz" => return Some(Endpoint::Healthy),
        "/readyz" => return Some(Endpoint::Ready),
        "/metrics" => return Some(Endpoint::Metrics),
        "/api/admin/status" => return Some(Endpoint::AdminStatus),
        "/api/admin/why" => return Some(Endpoint::AdminWhy),
        "/api/admin/explain" => return Some(Endpoint::AdminExplain),
        _ => {}
    }
    let path = path.strip_suffix('/').unwrap_or(path);
    match path {
        "/api/codex/usage" | "/backend-api/wham/usage" => {
            return Some(Endpoint::Limits(Question::CodexUsage));
        }
        "/v1/usage" => return Some(Endpoint::Limits(Question::Own)),
        "/v1/pool/status" => {
            let watches = query.is_some_and(|query| query.split('&').any(|p| p == "watch=true"));
            let question = if watches { Question::WatchPool } else { Question::Pool };
            return Some(Endpoint::Limits(question));
        }
        _ => {}
    }
    let (contract, rest) = if let Some(rest) = path.strip_prefix("/backend-api/codex") {
        // Some clients append /v1 to whatever base they are given.
        (Contract::Codex, rest.strip_prefix("/v1").unwrap_or(rest))
    } else {
        (Contract::Strict, path.strip_prefix("/v1")?)
    };
    match (contract, rest) {
        (_, "/responses") => proxy(Surface::Responses, contract),
        (_, "/responses/compact") => proxy(Surface::Compact, contract),
        (_, "/models") => Some(Endpoint::Models(model_list(query, headers))),
        (Contract::Strict, "/chat/completions") => proxy(Surface::Chat, contract),
        (Contract::Strict, "/messages") => proxy(Surface::Messages, contract),
        (Contract::Strict, "/messages/count_tokens") => proxy(Surface::CountTokens, contract),
        _ => None,
    }
}

/// Clients of three kinds ask the same path, and say by other means what they are.
fn model_list(query: Option<&str>, headers: &HeaderMap) -> ModelList {
    let asks_catalogue =
        query.is_some_and(|query| query.split('&').any(|pair| pair.starts_with("client_version=")));
    if headers.contains_key(&name::ANTHROPIC_VERSION) {
        ModelList::Anthropic
    } else if asks_catalogue {
        ModelList::Codex
    } else {
        ModelList::OpenAi
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(names: &[(&'static str, &'static str)]) -> HeaderMap {
        let parse = |(n, v): &(&'static str, &'static str)| {
            (n.parse::<http::HeaderName>().unwrap(), v.parse().unwrap())
        };
        names.iter().map(parse).collect()
    }

    #[test]
    #[rustfmt::skip]
    fn routes() {
        use Contract::{Codex, Strict};
        let proxy = |surface, contract| Ok(Endpoint::Proxy { surface, contract });
        let anthropic: &[(&str, &str)] = &[("anthropic-version", "2023-06-01")];
        let upgrade: &[(&str, &str)] = &[("upgrade", "WebSocket")];
        let any: &[(&str, &str)] = &[("upgrade", "h2c, websocket")];
        let cases = [
            ("POST", "/v1/responses", "", &[][..],                       proxy(Surface::Responses, Strict)),
            ("POST", "/v1/responses/", "", &[],                          proxy(Surface::Responses, Strict)),
            ("POST", "/backend-api/codex/responses", "", &[],            proxy(Surface::Responses, Codex)),
            ("POST", "/backend-api/codex/v1/responses", "", &[],         proxy(Surface::Responses, Codex)),
            ("POST", "/v1/responses/compact", "", &[],                   proxy(Surface::Compact, Strict)),
            ("POST", "/v1/chat/completions", "", &[],                    proxy(Surface::Chat, Strict)),
            ("POST", "/v1/messages", "beta=true", anthropic,             proxy(Surface::Messages, Strict)),
            ("POST", "/v1/messages/count_tokens", "", &[],               proxy(Surface::CountTokens, Strict)),
            ("GET",  "/v1/models", "", &[],                              Ok(Endpoint::Models(ModelList::OpenAi))),
            ("GET",  "/v1/models", "limit=1000", anthropic,              Ok(Endpoint::Models(ModelList::Anthropic))),
            ("GET",  "/backend-api/codex/models", "client_version=1", &[], Ok(Endpoint::Models(ModelList::Codex))),
            ("GET",  "/backend-api/wham/usage", "", &[],                 Ok(Endpoint::Limits(Question::CodexUsage))),
            ("GET",  "/api/codex/usage/", "", &[],                       Ok(Endpoint::Limits(Question::CodexUsage))),
            ("GET",  "/v1/pool/status", "watch=false", &[],              Ok(Endpoint::Limits(Question::Pool))),
            ("GET",  "/v1/pool/status", "watch=true", &[],               Ok(Endpoint::Limits(Question::WatchPool))),
            ("HEAD", "/v1/pool/status", "watch=true", &[],               Err("method_not_allowed")),
            ("GET",  "/v1/usage", "", &[],                               Ok(Endpoint::Limits(Question::Own))),
            ("HEAD", "/v1/models", "", &[],                              Ok(Endpoint::Models(ModelList::OpenAi))),
            ("HEAD", "/v1/responses", "", &[],                           Err("method_not_allowed")),
            ("POST", "/v1/usage", "", &[],                               Err("method_not_allowed")),
            ("GET",  "/healthz", "", &[],                                Ok(Endpoint::Healthy)),
            ("GET",  "/metrics", "", &[],                                Ok(Endpoint::Metrics)),
            ("POST", "/metrics", "", &[],                                Err("method_not_allowed")),
            ("GET",  "/v1/responses", "", upgrade,                       Ok(Endpoint::Socket(Strict))),
            ("GET",  "/backend-api/codex/responses", "", upgrade,        Ok(Endpoint::Socket(Codex))),
            ("GET",  "/v1/responses", "", any,                           Ok(Endpoint::Socket(Strict))),
            ("POST", "/v1/chat/completions", "", upgrade,                Err(Error::NoWebSocket.parts().1)),
            ("GET",  "/v1/responses", "", &[],                           Err("method_not_allowed")),
            ("POST", "/v1/models", "", &[],                              Err("method_not_allowed")),
            ("POST", "/backend-api/codex/messages", "", &[],             Err("unknown_path")),
            ("POST", "/v1/../v1/responses", "", &[],                     Err("unknown_path")),
            ("POST", "/v1//responses", "", &[],                          Err("unknown_path")),
            ("POST", "/v1/%72esponses", "", &[],                         Err("unknown_path")),
            ("POST", "/V1/responses", "", &[],                           Err("unknown_path")),
            ("GET",  "/", "", &[],                                       Err("unknown_path")),
        ];
        for (method, path, query, names, want) in cases {
            let method = method.parse().unwrap();
            let got = route(&method, path, Some(query), &headers(names)).map_err(|e| e.parts().1);
            assert_eq!(got, want, "{method} {path}?{query}");
            if let Ok(endpoint) = got {
                let again = route(&method, endpoint.path(), Some(query), &headers(names));
                assert_eq!(again.ok(), Some(endpoint), "{}", endpoint.path());
            }
        }
    }

    #[test]
    fn dialects_by_prefix() {
        let none = HeaderMap::new();
        for (path, want) in [
            ("/v1/messages/batches", Dialect::Anthropic),
            ("/v1/anything", Dialect::OpenAi),
            ("/backend-api/ps/mcp", Dialect::OpenAi),
            ("/v1x", Dialect::Plain),
            ("/", Dialect::Plain),
        ] {
            assert_eq!(dialect(path, &none), want, "{path}");
        }
        let anthropic = headers(&[("anthropic-version", "1")]);
        assert_eq!(dialect("/v1/models", &anthropic), Dialect::Anthropic);
    }
}
