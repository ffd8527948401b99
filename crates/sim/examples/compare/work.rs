//! The work: three shapes of requests, as a client of the Responses API sends them.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The first text comes with the opening, and the end later.
const TWO_TEXTS: &str = "[[events=2]] [[text_gap_ms=5]]";

/// How a shape is asked and answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Json,
    Events,
    /// Of a WebSocket.
    Turn,
}

pub struct Shape {
    pub name: &'static str,
    /// Each with one request after the other.
    pub connections: usize,
    /// Of one round: enough for about a second of CPU, which is counted in ticks of 10 ms.
    pub time: Duration,
    pub kind: Kind,
    /// CPU beside the reference's, in units of the limit.
    pub allowance: f64,
    /// Most that the first text may be later by, in units of what the reference makes it later by.
    pub delay_limit: Option<f64>,
    body_bytes: usize,
    /// What the simulator is asked for; see its `directives`.
    wish: &'static str,
}

/// A shape's requests to one target, one per connection.
pub struct Work {
    pub address: SocketAddr,
    pub requests: Vec<Arc<[u8]>>,
    /// Whose first text's delay is measured with nothing beside it.
    pub lone: Arc<[u8]>,
    pub kind: Kind,
    pub key: String,
}

impl Work {
    pub fn streams(&self) -> bool {
        self.kind != Kind::Json
    }
}

pub fn shapes() -> [Shape; 4] {
    [
        Shape {
            name: "1 kB JSON, 1 kB answer",
            connections: 16,
            time: Duration::from_secs(2),
            kind: Kind::Json,
            allowance: 1.0,
            delay_limit: None,
            body_bytes: 1000,
            wish: "[[bytes=350]]", // The other fields are the rest of the kilobyte.
        },
        Shape {
            name: "1 MB JSON, 1 kB answer",
            connections: 4,
            time: Duration::from_secs(3),
            kind: Kind::Json,
            allowance: 1.0,
            delay_limit: None,
            body_bytes: 1_000_000,
            wish: "[[bytes=350]]",
        },
        Shape {
            name: "SSE, 20 texts 5 ms apart",
            connections: 50,
            time: Duration::from_secs(6),
            kind: Kind::Events,
            allowance: 1.0,
            delay_limit: None,
            body_bytes: 1000,
            wish: "[[events=20]] [[text_gap_ms=5]]",
        },
        Shape {
            // nginx passes bytes on and does not look inside.
            name: "WebSocket turn, 20 texts 5 ms apart",
            connections: 50,
            time: Duration::from_secs(6),
            kind: Kind::Turn,
            allowance: 1.25,
            delay_limit: Some(1.3),
            body_bytes: 1000,
            wish: "[[events=20]] [[text_gap_ms=5]]",
        },
    ]
}

impl Shape {
    pub fn work(&self, address: SocketAddr, key: &str) -> Work {
        let request = |session, wish| self.request(address, key, &self.body(session, wish));
        Work {
            address,
            requests: (0..self.connections).map(|session| request(session, self.wish)).collect(),
            lone: request(self.connections, TWO_TEXTS),
            kind: self.kind,
            key: key.to_owned(),
        }
    }

    fn request(&self, address: SocketAddr, key: &str, body: &str) -> Arc<[u8]> {
        if self.kind == Kind::Turn {
            return Arc::from(body.as_bytes());
        }
        let accept = if self.streams() { "text/event-stream" } else { "application/json" };
        let request = format!(
            "POST /v1/responses HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\n\
             content-type: application/json\r\naccept: {accept}\r\nuser-agent: compare/1\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        Arc::from(request.into_bytes())
    }

    pub fn streams(&self) -> bool {
        self.kind != Kind::Json
    }

    /// A conversation of as many earlier messages as fit, each connection's being one session.
    fn body(&self, session: usize, wish: &str) -> String {
        let message = |role: &str, kind: &str, text: &str| {
            format!(
                r#"{{"type":"message","role":"{role}","content":[{{"type":"{kind}","text":"{text}"}}]}}"#
            )
        };
        let kind = if self.kind == Kind::Turn { r#""type":"response.create","# } else { "" };
        let start = format!(
            r#"{{{kind}"model":"gpt-5.5","stream":{},"store":false,"prompt_cache_key":"session-{session}","input":["#,
            self.streams()
        );
        let end = [&message("user", "input_text", wish), "]}"].concat();
        let mut body = start;
        // Code has about one escape in thirty characters.
        let line = concat!(
            r#"    let answer = table.get(\"question\").copied();\n"#,
            r#"    // An answer that nobody asked for stays where it was found.\n"#,
        );
        let long = line.repeat(30);
        let mut missing = self.body_bytes.saturating_sub(body.len() + end.len());
        while missing > 200 {
            let lines = (missing - 120).min(long.len()) / line.len();
            let earlier = message("user", "input_text", &long[..lines * line.len()]);
            missing = missing.saturating_sub(earlier.len() + 1);
            let _ = write!(body, "{earlier},");
        }
        body + &end
    }
}
