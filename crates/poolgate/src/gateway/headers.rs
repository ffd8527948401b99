//! Which headers cross, in each direction: families and named singles on a list, everything else
//! stays behind. New headers of the known clients pass because their family does; credentials,
//! cookies, forwarding headers and whatever names another account cannot, because nothing lists
//! them.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Names that every request is looked through for: made once, where text would be read each time.
pub mod name {
    use super::HeaderName;

    pub static ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");
    pub static API_KEY: HeaderName = HeaderName::from_static("x-api-key");
    pub static CLAUDE_SESSION: HeaderName = HeaderName::from_static("x-claude-code-session-id");
    pub static REQUEST_ID: HeaderName = HeaderName::from_static("x-poolgate-request-id");
    /// As a header, and in the `client_metadata` of a body or message.
    pub static TURN_STATE: HeaderName = HeaderName::from_static("x-codex-turn-state");
    /// Of one turn: on a socket the handshake's are those of the first, and each message has its own
    /// (wire 2.4).
    pub static OF_A_TURN: [HeaderName; 3] = [
        HeaderName::from_static("x-codex-turn-state"),
        HeaderName::from_static("x-codex-turn-metadata"),
        HeaderName::from_static("x-codex-window-id"),
    ];
    /// The first that is there counts.
    pub static SESSION: [HeaderName; 4] = [
        HeaderName::from_static("session-id"),
        HeaderName::from_static("session_id"),
        HeaderName::from_static("conversation_id"),
        HeaderName::from_static("thread-id"),
    ];
}

const FAMILIES: [&str; 6] =
    ["x-codex-", "x-openai-", "openai-", "anthropic-", "x-claude-code-", "x-stainless-"];

const REQUEST_SINGLES: [&str; 16] = [
    "accept",
    "accept-language",
    "content-type",
    "conversation-id",
    "conversation_id",
    "idempotency-key",
    "originator",
    "session-id",
    "session_id",
    "thread-id",
    "traceparent",
    "tracestate",
    "user-agent",
    "version",
    "x-app",
    "x-client-request-id",
];

/// Inside a listed family, and all the same never forwarded: they choose an account or organisation.
const REQUEST_NEVER: [&str; 2] = ["openai-organization", "openai-project"];

const RESPONSE_SINGLES: [&str; 10] = [
    "cache-control",
    "content-encoding",
    "content-type",
    "content-language",
    "request-id",
    "retry-after",
    "x-oai-request-id",
    "x-reasoning-included",
    "x-request-id",
    "x-should-retry",
];

/// Names of the account or organisation that served, which clients have no business with.
const RESPONSE_NEVER: [&str; 3] =
    ["openai-organization", "openai-project", "anthropic-organization-id"];

/// Those of an answer.
pub fn owners(upstream: &HeaderMap) -> impl Iterator<Item = &str> {
    RESPONSE_NEVER.iter().filter_map(|name| upstream.get(*name)?.to_str().ok())
}

fn in_family(name: &str) -> bool {
    FAMILIES.iter().any(|family| name.starts_with(family))
}

fn passes_to_upstream(name: &str) -> bool {
    (in_family(name) && !REQUEST_NEVER.contains(&name)) || REQUEST_SINGLES.contains(&name)
}

pub fn passes_to_client(name: &str) -> bool {
    (in_family(name) && !RESPONSE_NEVER.contains(&name) && !is_limit(name))
        || RESPONSE_SINGLES.contains(&name)
}

/// What of the client's headers goes upstream. Credentials and framing are added by the attempt.
pub fn to_upstream(client: &HeaderMap) -> HeaderMap {
    // A header named by Connection belongs to the client's own hop.
    let hop: Vec<String> = client
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let mut out = HeaderMap::with_capacity(client.len());
    for (name, value) in client {
        if passes_to_upstream(name.as_str()) && !hop.iter().any(|h| h == name.as_str()) {
            out.append(name.clone(), value.clone());
        }
    }
    out
}

/// What of an upstream's headers goes to the client.
pub fn to_client(upstream: HeaderMap) -> HeaderMap {
    let mut out = HeaderMap::with_capacity(upstream.len());
    let mut passing = None;
    for (name, value) in upstream {
        // A further value of the same header comes without its name.
        if let Some(name) = name {
            passing = passes_to_client(name.as_str()).then_some(name);
        }
        if let Some(name) = &passing {
            out.append(name, value);
        }
    }
    out.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    out
}

/// One account's limits, which would jump with every failover. Told by their endings: windows and
/// limits have many names, and new ones appear.
pub fn is_limit(name: &str) -> bool {
    const OF_WINDOWS: [&str; 5] =
        ["-used-percent", "-window-minutes", "-reset-at", "-reset-after-seconds", "limit-name"];
    const OF_TOKENS: [&str; 3] = ["-limit", "-remaining", "-reset"];
    let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
    if let Some(rest) = name.strip_prefix("anthropic-") {
        // Beside the ordinary limits there are those of a priority tier.
        return rest.starts_with("ratelimit-") || ends(&OF_TOKENS);
    }
    if ends(&OF_WINDOWS) || name.split('-').any(|word| matches!(word, "primary" | "secondary")) {
        return true;
    }
    name.strip_prefix("x-codex-").is_some_and(|rest| {
        rest.starts_with("credits-")
            || matches!(
                rest,
                "active-limit" | "plan-type" | "promo-message" | "rate-limit-reached-type"
            )
    })
}

/// Adds `beta` to `anthropic-beta`, after what the client asked for.
pub fn add_beta(headers: &mut HeaderMap, beta: &str) {
    const NAME: &str = "anthropic-beta";
    let known: Vec<&str> =
        headers.get_all(NAME).iter().filter_map(|value| value.to_str().ok()).collect();
    if known.iter().any(|value| value.split(',').any(|item| item.trim() == beta)) {
        return;
    }
    let all = known.into_iter().chain([beta]).collect::<Vec<_>>().join(",");
    if let Ok(value) = HeaderValue::from_str(&all) {
        headers.insert(NAME, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        map
    }

    fn names(map: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<&str> = map.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    /// multiplexer 18.5 #57.
    #[test]
    fn only_listed_headers_reach_an_upstream() {
        let client = map(&[
            ("authorization", "Bearer pg-x"),
            ("x-api-key", "pg-x"),
            ("cookie", "a=b"),
            ("host", "gateway"),
            ("x-forwarded-for", "1.2.3.4"),
            ("chatgpt-account-id", "theirs"),
            ("openai-organization", "theirs"),
            ("accept-encoding", "br"),
            ("content-encoding", "zstd"),
            ("connection", "keep-alive, x-codex-hop"),
            ("x-codex-hop", "1"),
            ("anthropic-dangerous-direct-browser-access", "true"),
            ("x-codex-turn-metadata", "{}"),
            ("x-stainless-retry-count", "0"),
            ("session-id", "s"),
            ("user-agent", "codex_exec"),
            ("x-new-vendor", "1"),
        ]);
        let want = [
            "anthropic-dangerous-direct-browser-access",
            "session-id",
            "user-agent",
            "x-codex-turn-metadata",
            "x-stainless-retry-count",
        ];
        assert_eq!(names(&to_upstream(&client)), want);
    }

    #[test]
    fn nothing_of_the_account_reaches_a_client() {
        let upstream = map(&[
            ("set-cookie", "a=b"),
            ("server", "cloudflare"),
            ("location", "https://elsewhere"),
            ("anthropic-organization-id", "org"),
            ("openai-organization", "org"),
            ("x-models-etag", "x"),
            ("x-ratelimit-remaining-requests", "1"),
            ("anthropic-ratelimit-unified-5h-utilization", "0.1"),
            ("x-codex-primary-used-percent", "1"),
            ("x-codex-bengalfox-secondary-reset-at", "1"),
            ("x-codex-credits-balance", "5"),
            ("x-codex-plan-type", "plus"),
            ("x-codex-turn-state", "ts"),
            ("openai-model", "m"),
            ("request-id", "r"),
            ("set-cookie", "c=d"),
            ("x-codex-safety", "1"),
            ("x-codex-safety", "2"),
            ("content-type", "text/event-stream"),
        ]);
        let want = [
            "content-type",
            "openai-model",
            "request-id",
            "x-codex-safety",
            "x-codex-turn-state",
            "x-content-type-options",
        ];
        let client = to_client(upstream);
        assert_eq!(names(&client), want);
        assert!(client.get_all("x-codex-safety").iter().eq(["1", "2"]));
    }

    /// multiplexer 18.5 #58: what proxies say of a client's address, on either side.
    #[test]
    fn nobodys_address_crosses() {
        for name in [
            "forwarded",
            "via",
            "x-forwarded",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-port",
            "x-forwarded-proto",
            "x-forwarded-server",
            "x-real-ip",
            "x-client-ip",
            "x-cluster-client-ip",
            "x-original-forwarded-for",
            "x-envoy-external-address",
            "true-client-ip",
            "fastly-client-ip",
            "cdn-loop",
            "cf-connecting-ip",
            "cf-connecting-ipv6",
            "cf-ipcountry",
            "cf-pseudo-ipv4",
            "cf-ray",
            "cf-visitor",
        ] {
            assert!(!passes_to_upstream(name), "{name} reaches an upstream");
            assert!(!passes_to_client(name), "{name} reaches a client");
        }
    }

    /// spec §8, multiplexer 18.5 #56: of whatever window and limit.
    #[test]
    fn no_limit_of_an_upstream_reaches_a_client() {
        for (name, passes) in [
            ("x-codex-primary-used-percent", false),
            ("x-codex-monthly-used-percent", false),
            ("x-codex-monthly-window-minutes", false),
            ("x-codex-monthly-reset-at", false),
            ("x-codex-monthly-reset-after-seconds", false),
            ("x-codex-bengalfox-limit-name", false),
            ("x-codex-primary-over-secondary-limit-percent", false),
            ("x-openai-spark-primary-used-percent", false),
            ("x-openai-spark-secondary-window-minutes", false),
            ("x-openai-spark-primary-reset-at", false),
            ("x-openai-spark-limit-name", false),
            ("anthropic-ratelimit-unified-fallback-percentage", false),
            ("anthropic-ratelimit-tokens-remaining", false),
            ("anthropic-priority-input-tokens-limit", false),
            ("anthropic-priority-input-tokens-remaining", false),
            ("anthropic-priority-output-tokens-reset", false),
            ("anthropic-beta", true),
            ("openai-processing-ms", true),
            ("x-codex-turn-state", true),
            ("x-codex-turn-metadata", true),
            ("x-openai-product-sku", true),
        ] {
            assert_eq!(passes_to_client(name), passes, "{name}");
        }
    }

    #[test]
    fn a_beta_is_added_once_and_replaces_nothing() {
        let mut headers = map(&[("anthropic-beta", "a,b"), ("anthropic-beta", "c")]);
        add_beta(&mut headers, "oauth-2025-04-20");
        assert_eq!(headers["anthropic-beta"], "a,b,c,oauth-2025-04-20");
        add_beta(&mut headers, "oauth-2025-04-20");
        assert_eq!(headers["anthropic-beta"], "a,b,c,oauth-2025-04-20");
        let mut none = HeaderMap::new();
        add_beta(&mut none, "x");
        assert_eq!(none["anthropic-beta"], "x");
    }
}
