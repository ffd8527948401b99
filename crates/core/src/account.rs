//! What an account is to the decisions: its kind, and what that kind can serve.

use crate::units::Fraction;

/// Identity of an account in the store; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(pub i64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A `ChatGPT` sign-in, served by the Codex backend.
    Codex,
    /// A Claude sign-in.
    Claude,
    /// An `OpenAI` API key.
    OpenAi,
    /// An Anthropic API key.
    Anthropic,
    /// A base URL and a key, speaking whatever the operator says it speaks.
    Compatible,
}

/// Which provider's protocol an account speaks for one request: names of limit headers, shape of
/// errors, marks of the end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    OpenAi,
    Anthropic,
}

/// A kind of upstream call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Surface {
    Responses,
    Compact,
    Chat,
    Messages,
    CountTokens,
}

/// The surfaces a `compatible` account was said to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Speaks {
    pub responses: bool,
    pub chat: bool,
    pub messages: bool,
}

impl Default for Speaks {
    fn default() -> Self {
        Self { responses: true, chat: true, messages: false }
    }
}

impl Kind {
    pub const ALL: [Self; 5] =
        [Self::Codex, Self::Claude, Self::OpenAi, Self::Anthropic, Self::Compatible];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Codex => "codex",
            Self::Claude => "claude",
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
            Self::Compatible => "compatible",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Subscriptions have windows that refill; what they leave unused is lost.
    pub const fn is_subscription(self) -> bool {
        matches!(self, Self::Codex | Self::Claude)
    }

    /// A higher number serves only when no lower one can, so keys that cost money come second.
    pub const fn default_priority(self) -> i32 {
        if self.is_subscription() { 0 } else { 1 }
    }

    pub const fn serves(self, surface: Surface, speaks: Speaks) -> bool {
        match (self, surface) {
            (Self::Codex, Surface::Responses | Surface::Compact)
            | (Self::OpenAi, Surface::Responses | Surface::Compact | Surface::Chat)
            | (Self::Claude | Self::Anthropic, Surface::Messages | Surface::CountTokens) => true,
            (Self::Compatible, Surface::Responses | Surface::Compact) => speaks.responses,
            (Self::Compatible, Surface::Chat) => speaks.chat,
            (Self::Compatible, Surface::Messages | Surface::CountTokens) => speaks.messages,
            _ => false,
        }
    }
}

impl Surface {
    pub const ALL: [Self; 5] =
        [Self::Responses, Self::Compact, Self::Chat, Self::Messages, Self::CountTokens];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Responses => "responses",
            Self::Compact => "compact",
            Self::Chat => "chat",
            Self::Messages => "messages",
            Self::CountTokens => "count_tokens",
        }
    }

    /// The protocol in which an upstream answers this call.
    pub const fn family(self) -> Family {
        match self {
            Self::Responses | Self::Compact | Self::Chat => Family::OpenAi,
            Self::Messages | Self::CountTokens => Family::Anthropic,
        }
    }

    /// For people: the kinds of account that can serve it.
    pub const fn kinds_needed(self) -> &'static str {
        match self {
            Self::Responses | Self::Compact => "codex, openai or compatible",
            Self::Chat => "openai or compatible",
            Self::Messages | Self::CountTokens => "claude, anthropic or compatible (with messages)",
        }
    }
}

/// At its cap a window takes no new work. Unset means 99 %: the last percent is where upstreams
/// start to refuse half-way through a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    pub five_hour: Fraction,
    pub weekly: Fraction,
}

impl Default for Caps {
    fn default() -> Self {
        let unset = Fraction::from_ppm(990_000);
        Self { five_hour: unset, weekly: unset }
    }
}

/// Whether `model` fits a pattern in which `*` stands for any text. Case counts, as it does at the
/// providers.
pub fn model_matches(pattern: &str, model: &str) -> bool {
    let Some((head, last)) = pattern.rsplit_once('*') else {
        return pattern == model;
    };
    let mut parts = head.split('*');
    let Some(mut rest) = model.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    for part in parts {
        // Model names are shorter than what a search would prepare.
        match (0..=rest.len()).find(|at| rest.as_bytes()[*at..].starts_with(part.as_bytes())) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Whether any model fits both patterns.
pub fn patterns_meet(one: &str, other: &str) -> bool {
    if !one.contains('*') {
        return model_matches(other, one);
    }
    let (one, other) = (one.as_bytes(), other.as_bytes());
    // Whether what is left of `one` from some place on meets the rest of `other` from each; and the same
    // from the place behind that.
    let (mut rests, mut shorter) = (vec![false; other.len() + 1], vec![false; other.len() + 1]);
    for at in (0..=one.len()).rev() {
        std::mem::swap(&mut rests, &mut shorter);
        for beside in (0..=other.len()).rev() {
            let further = beside < other.len() && rests[beside + 1];
            rests[beside] = match (one.get(at), other.get(beside)) {
                (None, None) => true,
                (Some(b'*'), _) => shorter[beside] || further,
                (_, Some(b'*')) => further || (at < one.len() && shorter[beside]),
                (Some(a), Some(b)) => a == b && shorter[beside + 1],
                _ => false,
            };
        }
    }
    rests[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_that_meet() {
        let cases = [
            ("gpt-*", "gpt-5.5", true),
            ("gpt-*", "o3*", false),
            ("gpt-*", "*", true),
            ("*-mini", "gpt-*", true),
            ("*-mini", "gpt-5", false),
            ("gpt-5*", "gpt-*.5", true),
            ("a*b", "b*a", false),
            ("a*b*c", "ab*bc", true),
            ("**", "", true),
            ("", "x", false),
            ("o3", "o3", true),
        ];
        for (one, other, want) in cases {
            assert_eq!(patterns_meet(one, other), want, "{one} and {other}");
            assert_eq!(patterns_meet(other, one), want, "{other} and {one}");
        }
    }

    #[test]
    fn model_patterns() {
        let cases = [
            ("gpt-5.5", "gpt-5.5", true),
            ("gpt-5.5", "gpt-5.5-mini", false),
            ("gpt-*", "gpt-5.5", true),
            ("*", "anything", true),
            ("*-mini", "gpt-5.5-mini", true),
            ("claude-*-5*", "claude-opus-5-5", true),
            ("claude-*-5*", "claude-haiku-4", false),
            ("a*a", "a", false),
            ("", "x", false),
        ];
        for (pattern, model, want) in cases {
            assert_eq!(model_matches(pattern, model), want, "{pattern} on {model}");
            assert_eq!(patterns_meet(pattern, model), want, "a name is a pattern of itself");
        }
    }

    #[test]
    fn surfaces_by_kind() {
        let deaf = Speaks { responses: false, chat: false, messages: false };
        let all = Speaks { responses: true, chat: true, messages: true };
        let cases = [
            (Kind::Codex, Surface::Responses, all, true),
            (Kind::Codex, Surface::Chat, all, false),
            (Kind::Claude, Surface::CountTokens, deaf, true),
            (Kind::OpenAi, Surface::Chat, deaf, true),
            (Kind::OpenAi, Surface::Messages, all, false),
            (Kind::Compatible, Surface::Messages, Speaks::default(), false),
            (Kind::Compatible, Surface::Messages, all, true),
            (Kind::Compatible, Surface::Responses, deaf, false),
        ];
        for (kind, surface, speaks, want) in cases {
            assert_eq!(kind.serves(surface, speaks), want, "{kind:?} {surface:?}");
        }
    }
}
