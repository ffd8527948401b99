//! Misbehaviour on request: what can go wrong. `queue` holds what an account was told to do.
//!
//! On a turn of a WebSocket the faults that are a whole answer come as an `error` event with
//! that status, those that break a stream off break off the socket, and bytes are counted in
//! whole frames.

mod queue;

use std::time::Duration;

use serde::{Deserialize, Deserializer};

pub use queue::{Call, Faults, HANDSHAKES, Script, TURNS, WARM_UPS};

/// One way to misbehave. The constructors say it in the dialect of the account.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Exactly this answer.
    Status { status: u16, headers: Vec<(String, String)>, body: String },
    /// 429 with the subscription's quota spent, as the dialect says it. `None`: until the reset
    /// of the account's window.
    UsageLimit { resets_in_s: Option<u64> },
    /// 429 of the short kind, with `retry-after` in seconds.
    RateLimited { retry_after_s: u64 },
    /// 403 with the code `forbidden_error`.
    Forbidden,
    /// 401 although the credential is good.
    Unauthorized,
    /// 529 `overloaded_error`, for codex and openai 503 `server_is_overloaded`.
    Overloaded,
    /// A server error of this status.
    ServerError { status: u16 },
    /// Closes the connection after so many bytes of the body, without ending the body.
    Cut { after_bytes: usize },
    /// As `Cut`, but with a TCP reset.
    Reset { after_bytes: usize },
    /// Closes the connection after the events that open the answer.
    CutBeforeOutput,
    /// Closes the connection after so many events with content.
    CutAfterOutput { events: u32 },
    /// An error event after the ones that open the answer, then a tidy end.
    ErrorEventBeforeOutput { code: String, message: String },
    /// An error event after so many events with content, then a tidy end.
    ErrorEventAfterOutput { events: u32, code: String, message: String },
    /// Says nothing more, until the client gives up.
    Stall { phase: Phase },
    /// Bytes that make no sense.
    Garbage { kind: Garbage },
    /// The right answer in pieces of `bytes`, with a pause after each.
    SlowDrip {
        bytes: usize,
        #[serde(rename = "gap_ms", deserialize_with = "from_millis")]
        gap: Duration,
    },
    /// Reads the request and closes.
    CloseBeforeHead,
    /// Turns only: an `error` event, after which the socket stays open.
    ErrorFrame {
        phase: Phase,
        status: u16,
        code: String,
        /// Beside the account's own limit headers; of equal names these win.
        #[serde(default)]
        headers: Vec<(String, String)>,
    },
    /// Turns only: a close frame instead of the rest.
    CloseFrame { phase: Phase, code: u16 },
    /// Turns only: the whole answer, then a close frame.
    CloseAfterTurn { code: u16 },
    /// Turns only: `websocket_connection_limit_reached`, as after an hour, then a close frame.
    ConnectionLimit,
}

/// Where an answer stalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// No response head; of a turn nothing at all.
    Head,
    /// The head and the events that open the answer; of a JSON answer only the head.
    Body,
    /// After so many events with content.
    Output(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Garbage {
    /// A 200 with junk where events should be, ended tidily; of a turn a frame of junk.
    Events,
    /// Bytes on the socket that are not HTTP, nor a frame; then it closes. Over h2 the stream is
    /// reset.
    Socket,
}

impl Fault {
    pub fn usage_limit_reached() -> Self {
        Self::UsageLimit { resets_in_s: None }
    }

    pub fn forbidden_error() -> Self {
        Self::Forbidden
    }

    pub fn unauthorized() -> Self {
        Self::Unauthorized
    }

    pub fn overloaded_529() -> Self {
        Self::Overloaded
    }

    pub fn server_error(status: u16) -> Self {
        Self::ServerError { status }
    }

    /// Rounded up to whole seconds.
    pub fn rate_limited(retry_after: Duration) -> Self {
        let retry_after_s = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
        Self::RateLimited { retry_after_s }
    }

    pub fn status(status: u16, body: &str) -> Self {
        Self::Status { status, headers: Vec::new(), body: body.to_owned() }
    }

    pub fn cut(after_bytes: usize) -> Self {
        Self::Cut { after_bytes }
    }

    pub fn cut_before_output() -> Self {
        Self::CutBeforeOutput
    }

    pub fn cut_after_output(events: u32) -> Self {
        Self::CutAfterOutput { events }
    }

    /// `response.failed` with `server_error`, or Anthropic's `error` with `overloaded_error`.
    pub fn error_event_before_output() -> Self {
        Self::ErrorEventBeforeOutput { code: String::new(), message: String::new() }
    }

    /// As [`Self::error_event_before_output`], later.
    pub fn error_event_after_output(events: u32) -> Self {
        Self::ErrorEventAfterOutput { events, code: String::new(), message: String::new() }
    }

    /// An error event of this code before output, like `rate_limit_exceeded`.
    pub fn failed_with(code: &str, message: &str) -> Self {
        Self::ErrorEventBeforeOutput { code: code.to_owned(), message: message.to_owned() }
    }

    pub fn stall(phase: Phase) -> Self {
        Self::Stall { phase }
    }

    pub fn garbage(kind: Garbage) -> Self {
        Self::Garbage { kind }
    }

    pub fn slow_drip(bytes: usize, gap: Duration) -> Self {
        Self::SlowDrip { bytes, gap }
    }

    pub fn close_before_head() -> Self {
        Self::CloseBeforeHead
    }

    /// An `error` event of a turn, with an empty list of further headers.
    pub fn error_frame(phase: Phase, status: u16, code: &str) -> Self {
        Self::ErrorFrame { phase, status, code: code.to_owned(), headers: Vec::new() }
    }

    pub fn close_frame(phase: Phase, code: u16) -> Self {
        Self::CloseFrame { phase, code }
    }

    pub fn close_after_turn(code: u16) -> Self {
        Self::CloseAfterTurn { code }
    }

    pub fn connection_limit() -> Self {
        Self::ConnectionLimit
    }

    /// Whether only a turn of a WebSocket can fail so.
    fn is_of_turns(&self) -> bool {
        matches!(
            self,
            Self::ErrorFrame { .. }
                | Self::CloseFrame { .. }
                | Self::CloseAfterTurn { .. }
                | Self::ConnectionLimit
        )
    }

    /// Whether it takes the place of a whole answer, and so can hit a handshake.
    pub fn is_of_heads(&self) -> bool {
        matches!(
            self,
            Self::Status { .. }
                | Self::UsageLimit { .. }
                | Self::RateLimited { .. }
                | Self::Forbidden
                | Self::Unauthorized
                | Self::Overloaded
                | Self::ServerError { .. }
                | Self::Stall { phase: Phase::Head }
                | Self::Garbage { kind: Garbage::Socket }
                | Self::CloseBeforeHead
        )
    }
}

fn from_millis<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_millis)
}
