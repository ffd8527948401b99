//! The commit point. An answer's first bytes are withheld until output has begun, 64 KiB are held,
//! or two seconds have passed since its head; whatever fails before that can still be answered by
//! another account. After it, nothing is ever replayed. The seconds of what does not call itself a stream
//! begin with its first byte, which says whether it is one.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body;
use tokio::time::{Instant, timeout_at};

use crate::admission::Permit;
use crate::egress::Received;
use crate::providers::Tap;

const HOLD_MAX: usize = 64 << 10;
const HOLD_FOR: Duration = Duration::from_secs(2);

/// The beginning of an answer, and the rest of it.
#[derive(Debug)]
pub struct Opening {
    pub held: VecDeque<Bytes>,
    /// `None`: the body has ended.
    pub rest: Option<Received>,
    pub tap: Tap,
    /// Given back once the response has been created.
    pub create: Permit,
}

impl Opening {
    /// What the upstream sent passes by.
    pub fn see(&mut self, data: &Bytes) {
        self.tap.feed(data);
        if self.tap.created {
            self.create.release();
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Committed: this goes to the client.
    Good,
    /// The upstream reported an error before any output: the tap has it.
    Failed,
    /// The body broke, or ended without being whole, before any output.
    Lost,
    /// The same behind the commit: another account would be charged for the same answer.
    Broke,
    /// It ended, and is not what its head promised.
    Garbage,
}

/// Fills an opening that is empty. `plain`: for a body that does not call itself a stream, how long it may
/// stay away. It is withheld until it is whole or a bound is reached.
pub async fn open(mut body: Received, opening: &mut Opening, plain: Option<Duration>) -> Opened {
    let began = Instant::now();
    let mut until = began + plain.unwrap_or(HOLD_FOR);
    if opening.tap.created {
        opening.create.release();
    }
    let mut size = 0;
    loop {
        let frame = match timeout_at(until, body.frame()).await {
            Err(_) if plain.is_some() && opening.held.is_empty() => return lost(began, true),
            Err(_) => break,
            Ok(None) => return ended(opening, plain.is_some(), began),
            Ok(Some(Err(_))) => return lost(began, plain.is_some()),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else {
            continue;
        };
        opening.see(&data);
        if plain.is_some() && opening.held.is_empty() {
            until = Instant::now() + HOLD_FOR;
        }
        size += data.len();
        opening.held.push_back(data);
        if opening.tap.semantic {
            break;
        }
        // However large it is.
        if opening.tap.error.is_some() {
            opening.rest = (!body.is_end_stream()).then_some(body);
            return Opened::Failed;
        }
        if size >= HOLD_MAX {
            break;
        }
    }
    // With a Content-Length the last byte may be here already, and nobody asks for the end.
    let whole = body.is_end_stream() && opening.tap.end();
    opening.rest = (!whole).then_some(body);
    let fails = whole && !opening.tap.is_event_stream() && opening.tap.error.is_some();
    if fails { Opened::Failed } else { Opened::Good }
}

/// After two seconds it would have been committed, but for its name.
fn lost(began: Instant, plain: bool) -> Opened {
    if plain && began.elapsed() > HOLD_FOR { Opened::Broke } else { Opened::Lost }
}

fn ended(opening: &mut Opening, json: bool, began: Instant) -> Opened {
    if !opening.tap.end() {
        return lost(began, json);
    }
    if json && opening.tap.garbled {
        return Opened::Garbage;
    }
    if opening.tap.error.is_some() { Opened::Failed } else { Opened::Good }
}
