//! Turns a content, its pace and perhaps a fault into the steps of a body.

use std::time::Duration;

use bytes::Bytes;

use super::Exchange;
use crate::answer::{Content, Events, Gap, Role, chat, messages, responses};
use crate::body::Step;
use crate::fault::{Fault, Phase};
use crate::peek::Peek;
use crate::route::Route;

/// Events without a pause between them go out together, up to about this much at once.
const FRAME_BYTES: usize = 16 << 10;

/// What follows the last byte.
enum Finish {
    Tidy,
    Break { reset: bool },
    Hang,
}

/// The steps, and the length to declare, if the content is not a stream.
pub fn steps(
    content: Content,
    gap: Gap,
    fault: Option<&Fault>,
    exchange: &Exchange<'_>,
) -> (Vec<Step>, Option<u64>) {
    let (mut steps, length, finish) = match content {
        Content::Json(bytes) => {
            let length = bytes.len() as u64;
            let (kept, finish) =
                fault.map_or((bytes.len(), Finish::Tidy), |fault| bend_whole(bytes.len(), fault));
            let steps = vec![Step::Send { bytes: bytes.slice(..kept), outputs: 0 }];
            (steps, Some(length), finish)
        }
        Content::Events(mut events) => {
            let finish =
                fault.map_or(Finish::Tidy, |fault| bend_stream(&mut events, fault, exchange));
            // Faults count in events and bytes: keep them apart.
            (frames(events, gap, fault.is_none()), None, finish)
        }
    };
    match *fault.unwrap_or(&Fault::CutBeforeOutput) {
        Fault::Cut { after_bytes } | Fault::Reset { after_bytes } => cut(&mut steps, after_bytes),
        Fault::SlowDrip { bytes, gap } => steps = drip(steps, bytes.max(1), gap),
        _ => {}
    }
    // A step without bytes would only be a frame to poll for.
    steps.retain(|step| !matches!(step, Step::Send { bytes, .. } if bytes.is_empty()));
    match finish {
        Finish::Tidy => {}
        Finish::Break { reset } => steps.push(Step::Break { reset }),
        Finish::Hang => steps.push(Step::Hang),
    }
    (steps, length)
}

/// For a JSON answer: how much of it goes out, and what then.
fn bend_whole(length: usize, fault: &Fault) -> (usize, Finish) {
    match fault {
        Fault::Cut { .. } => (length, Finish::Break { reset: false }),
        Fault::Reset { .. } => (length, Finish::Break { reset: true }),
        Fault::CutBeforeOutput => (0, Finish::Break { reset: false }),
        Fault::CutAfterOutput { .. } => (length / 2, Finish::Break { reset: false }),
        Fault::Stall { phase: Phase::Output(_) } => (length / 2, Finish::Hang),
        Fault::Stall { .. } => (0, Finish::Hang),
        _ => (length, Finish::Tidy),
    }
}

fn bend_stream(events: &mut Events, fault: &Fault, exchange: &Exchange<'_>) -> Finish {
    match fault {
        Fault::Cut { .. } => return Finish::Break { reset: false },
        Fault::Reset { .. } => return Finish::Break { reset: true },
        Fault::CutBeforeOutput => {
            events.keep_opening();
            return Finish::Break { reset: false };
        }
        Fault::CutAfterOutput { events: outputs } => {
            events.keep_outputs(*outputs);
            return Finish::Break { reset: false };
        }
        Fault::Stall { phase } => {
            match phase {
                Phase::Output(outputs) => events.keep_outputs(*outputs),
                Phase::Head | Phase::Body => events.keep_opening(),
            }
            return Finish::Hang;
        }
        Fault::ErrorEventBeforeOutput { code, message } => {
            events.keep_opening();
            fail(events, exchange, code, message);
        }
        Fault::ErrorEventAfterOutput { events: outputs, code, message } => {
            events.keep_outputs(*outputs);
            fail(events, exchange, code, message);
        }
        _ => {}
    }
    Finish::Tidy
}

/// Appends the error event; no code means the usual one.
pub fn fail(events: &mut Events, exchange: &Exchange<'_>, code: &str, message: &str) {
    let or = |text: &str, usual: &'static str| {
        if text.is_empty() { usual.to_owned() } else { text.to_owned() }
    };
    match exchange.route {
        Route::Messages => {
            let (code, message) = (or(code, "overloaded_error"), or(message, "Overloaded"));
            messages::push_failure(events, &code, &message);
        }
        route => {
            let usual = "The server had an error while processing your request.";
            let (code, message) = (or(code, "server_error"), or(message, usual));
            if route == Route::Chat {
                chat::push_failure(events, &code, &message);
            } else {
                let peek = Peek::read(exchange.body).unwrap_or_default();
                responses::push_failure(events, peek.model(), &code, &message);
            }
        }
    }
}

fn frames(events: Events, gap: Gap, joined: bool) -> Vec<Step> {
    let (bytes, events) = events.split();
    let mut steps = Vec::new();
    let (mut start, mut outputs) = (0, 0);
    let mut end = 0;
    for (range, role) in events {
        end = range.end;
        outputs += u32::from(role == Role::Output);
        let pause = gap.after(role);
        if !joined || !pause.is_zero() || end - start >= FRAME_BYTES {
            steps.push(Step::Send { bytes: bytes.slice(start..end), outputs });
            if !pause.is_zero() {
                steps.push(Step::Pause(pause));
            }
            (start, outputs) = (end, 0);
        }
    }
    if start < end {
        steps.push(Step::Send { bytes: bytes.slice(start..end), outputs });
    }
    // After the last event there is nothing to wait for.
    steps.pop_if(|step| matches!(step, Step::Pause(_)));
    steps
}

/// Keeps the first `limit` bytes; events cut short do not count.
fn cut(steps: &mut Vec<Step>, limit: usize) {
    let mut left = limit;
    steps.retain_mut(|step| {
        let Step::Send { bytes, outputs } = step else {
            return left > 0;
        };
        if bytes.len() > left {
            bytes.truncate(left);
            *outputs = 0;
        }
        left -= bytes.len();
        !bytes.is_empty()
    });
}

fn drip(steps: Vec<Step>, size: usize, gap: Duration) -> Vec<Step> {
    let mut drops = Vec::new();
    for step in steps {
        let Step::Send { bytes, outputs } = step else {
            continue;
        };
        let mut rest: Bytes = bytes;
        while rest.len() > size {
            drops.push(Step::Send { bytes: rest.split_to(size), outputs: 0 });
            drops.push(Step::Pause(gap));
        }
        drops.push(Step::Send { bytes: rest, outputs });
        drops.push(Step::Pause(gap));
    }
    drops.pop();
    drops
}
