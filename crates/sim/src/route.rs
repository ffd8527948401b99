//! Which endpoint a request means.

use http::{HeaderMap, Method};

use crate::fault::Call;
use crate::kind::{Dialect, Kind};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Responses API, of the `ChatGPT` backend or of the platform.
    Responses(Dialect),
    Compact(Dialect),
    Chat,
    Messages,
    CountTokens,
    CodexModels,
    Models(Dialect),
    WhamUsage,
    AccountsCheck,
    ClaudeUsage,
    ClaudeProfile,
    /// A token endpoint, and whose.
    Token(Kind),
    /// A sign-in, up to its code.
    SignIn(Step),
    /// A WebSocket handshake.
    Upgrade(Dialect),
    WrongMethod(Dialect),
    Unknown(Dialect),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The page at which a person signs in; whose, says the client id.
    Authorize,
    /// Claude's page that shows the code.
    CodePage,
    /// Codex's device codes: the page for them, a new one, and whether it was entered.
    DevicePage,
    DeviceStart,
    DevicePoll,
}

impl Route {
    pub fn of(method: &Method, path: &str, headers: &HeaderMap) -> Self {
        let dialect = dialect(path, headers);
        let route = match path {
            "/backend-api/codex/responses" | "/v1/responses" => Self::Responses(dialect),
            "/backend-api/codex/responses/compact" | "/v1/responses/compact" => {
                Self::Compact(dialect)
            }
            "/v1/chat/completions" => Self::Chat,
            "/v1/messages" => Self::Messages,
            "/v1/messages/count_tokens" => Self::CountTokens,
            "/backend-api/codex/models" => Self::CodexModels,
            "/v1/models" => Self::Models(dialect),
            "/backend-api/wham/usage" => Self::WhamUsage,
            "/backend-api/wham/accounts/check" => Self::AccountsCheck,
            "/api/oauth/usage" => Self::ClaudeUsage,
            "/api/oauth/profile" => Self::ClaudeProfile,
            "/oauth/token" => Self::Token(Kind::Codex),
            "/v1/oauth/token" => Self::Token(Kind::Claude),
            "/oauth/authorize" => Self::SignIn(Step::Authorize),
            "/oauth/code/callback" => Self::SignIn(Step::CodePage),
            "/codex/device" => Self::SignIn(Step::DevicePage),
            "/api/accounts/deviceauth/usercode" => Self::SignIn(Step::DeviceStart),
            "/api/accounts/deviceauth/token" => Self::SignIn(Step::DevicePoll),
            _ => return Self::Unknown(dialect),
        };
        let upgrade = headers.contains_key(http::header::UPGRADE);
        match route {
            Self::Responses(_) if method == Method::GET && upgrade => Self::Upgrade(dialect),
            _ if method == route.method() => route,
            _ => Self::WrongMethod(dialect),
        }
    }

    fn method(self) -> Method {
        match self {
            Self::CodexModels
            | Self::Models(_)
            | Self::WhamUsage
            | Self::AccountsCheck
            | Self::ClaudeUsage
            | Self::ClaudeProfile
            | Self::SignIn(Step::Authorize | Step::CodePage | Step::DevicePage) => Method::GET,
            _ => Method::POST,
        }
    }

    /// What a fault may hit in a request to it.
    pub fn call(self, path: &str) -> Call<'_> {
        match self {
            Self::Responses(_) | Self::Compact(_) | Self::Chat | Self::Messages => {
                Call::Model(path)
            }
            Self::Upgrade(_) => Call::Handshake(path),
            _ => Call::Other(path),
        }
    }

    /// Whether an account of this kind may use the endpoint.
    pub fn admits(self, kind: Kind) -> bool {
        match self {
            Self::Responses(dialect)
            | Self::Compact(dialect)
            | Self::Models(dialect)
            | Self::Upgrade(dialect) => dialect == kind.dialect(),
            Self::Chat => kind == Kind::Openai,
            Self::Messages | Self::CountTokens => kind.dialect() == Dialect::Anthropic,
            Self::CodexModels | Self::WhamUsage | Self::AccountsCheck => kind == Kind::Codex,
            Self::ClaudeUsage | Self::ClaudeProfile => kind == Kind::Claude,
            Self::Token(_) | Self::SignIn(_) | Self::WrongMethod(_) | Self::Unknown(_) => true,
        }
    }

    /// How this endpoint refuses.
    pub fn dialect(self) -> Dialect {
        match self {
            Self::Responses(dialect)
            | Self::Compact(dialect)
            | Self::Models(dialect)
            | Self::Upgrade(dialect)
            | Self::WrongMethod(dialect)
            | Self::Unknown(dialect) => dialect,
            Self::Chat => Dialect::Platform,
            Self::Messages | Self::CountTokens | Self::ClaudeUsage | Self::ClaudeProfile => {
                Dialect::Anthropic
            }
            Self::CodexModels | Self::WhamUsage | Self::AccountsCheck | Self::SignIn(_) => {
                Dialect::Codex
            }
            Self::Token(kind) => kind.dialect(),
        }
    }
}

fn dialect(path: &str, headers: &HeaderMap) -> Dialect {
    if path.starts_with("/backend-api/") {
        Dialect::Codex
    } else if path.starts_with("/v1/messages")
        || path.starts_with("/api/")
        || headers.contains_key("anthropic-version")
    {
        Dialect::Anthropic
    } else {
        Dialect::Platform
    }
}
