//! The kinds of account, and the dialects in which the providers answer and refuse.

use serde::Deserialize;

/// What an account is, and so which credential opens which endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `ChatGPT` subscription, OAuth, `/backend-api/…`.
    Codex,
    /// Claude subscription, OAuth, `/v1/messages`.
    Claude,
    /// `OpenAI` platform key, `/v1/responses` and `/v1/chat/completions`.
    Openai,
    /// Anthropic platform key, `/v1/messages`.
    Anthropic,
}

/// The shape of refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `ChatGPT` backend: `{"detail":…}` or `{"error":{…}}`.
    Codex,
    /// `OpenAI` platform: `{"error":{"message","type","param","code"}}`.
    Platform,
    /// Anthropic: `{"type":"error","error":{"type","message"},"request_id"}`.
    Anthropic,
}

impl Kind {
    pub fn dialect(self) -> Dialect {
        match self {
            Self::Codex => Dialect::Codex,
            Self::Openai => Dialect::Platform,
            Self::Claude | Self::Anthropic => Dialect::Anthropic,
        }
    }

    /// Whether the account signs in by OAuth, with tokens that expire and rotate.
    pub fn is_subscription(self) -> bool {
        matches!(self, Self::Codex | Self::Claude)
    }
}
