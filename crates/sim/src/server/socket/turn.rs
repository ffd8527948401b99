//! One frame of a client's: what it is answered with.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use super::frames;
use super::play::{Break, Step};
use crate::account::Inner;
use crate::answer::responses::{self, Question};
use crate::answer::{Content, Events, Gap, Role};
use crate::directives::Shape;
use crate::fault::{Call, Fault, Garbage, Phase};
use crate::kind::Kind;
use crate::peek::Peek;
use crate::quota::Reading;
use crate::server::misbehave::{self, JUNK};
use crate::server::{Exchange, Reply, respond, script};
use crate::{errors, headers};

/// Codes are not captured; a normal end fits best.
const LIMIT_CLOSE: u16 = 1000;

/// An answer, before it is played.
pub struct Turn {
    /// 200, or what the `error` event in place of an answer says.
    pub status: u16,
    pub steps: Vec<Step>,
    /// The response the client may go on from; `None`: there is none.
    pub response: Option<String>,
}

/// The refusal of a frame that comes during an answer. Its shape is assumed: no client does it.
pub fn busy(exchange: &Exchange<'_>, account: &Inner) -> (u16, Message) {
    let message = "A response is already in progress on this WebSocket.";
    let dialect = exchange.route.dialect();
    let reply = errors::invalid(dialect, &exchange.id, "response_in_progress", message);
    let reply = with_limits(exchange, account, reply);
    (reply.status.as_u16(), frames::error(&reply))
}

/// Ends the answer of this id early. `None`: the frame asks for something else.
///
/// The frame's fields and what follows are as public clients and gateways expect them (2026-11);
/// neither was captured.
pub fn interrupt(body: &[u8], response: Option<&str>) -> Option<Message> {
    let peek = Peek::read(body).ok()?;
    let asks = peek.kind.is_some_and(|kind| kind.0 == "response.interrupt");
    let named = peek.response_id.as_ref().map(|id| &*id.0);
    let id = response.filter(|id| asks && named.is_none_or(|named| named == *id))?;
    let response = json!({"id": id, "object": "response", "status": "incomplete", "output": [],
        "incomplete_details": {"reason": "interrupted"}, "error": null, "usage": null});
    Some(Message::text(json!({"type": "response.incomplete", "response": response}).to_string()))
}

/// `known`: the ids of the responses this WebSocket gave.
pub fn compose(exchange: &Exchange<'_>, account: &Inner, known: &HashSet<String>) -> Turn {
    let refuse = |reply| refused(&with_limits(exchange, account, reply));
    let invalid = |code, message| {
        refuse(errors::invalid(exchange.route.dialect(), &exchange.id, code, message))
    };
    let Ok(mut peek) = Peek::read(exchange.body) else {
        return invalid("invalid_json", "We could not parse the JSON body of your request.");
    };
    if peek.kind.as_ref().is_none_or(|kind| kind.0 != "response.create") {
        return invalid("invalid_value", "Unknown event type.");
    }
    let is_warm_up = peek.generate == Some(false);
    let call = if is_warm_up { Call::WarmUp } else { Call::Turn };
    let fault = account.state.lock().faults.take(call);
    if let Some(turn) = fault.as_ref().and_then(|fault| instead(exchange, account, fault)) {
        return turn;
    }
    let previous = peek.previous_response_id.take();
    let previous = previous.as_ref().map(|id| &*id.0);
    if let Some(id) = previous.filter(|id| !known.contains(*id)) {
        return refuse(errors::unknown_response(id));
    }
    // The platform's clients leave it out: a socket cannot do otherwise.
    if account.kind == Kind::Openai {
        peek.stream = Some(true);
    }
    if let Some(refusal) = respond::objection(exchange, account, &peek) {
        return refuse(refusal);
    }
    let pays = matches!(fault, None | Some(Fault::SlowDrip { .. } | Fault::CloseAfterTurn { .. }));
    let (plan, outcome) = respond::pay(exchange, account, pays && !is_warm_up);
    let readings = match outcome {
        Ok(readings) => readings,
        Err(spent) => return refused(&respond::usage_limit(exchange, account, &plan, &spent)),
    };
    let response = format!("resp_{}", exchange.id.trim_start_matches("req_"));
    let shape = respond::shape_of(&peek);
    let content = if is_warm_up {
        responses::warm_up(&question(account, &peek, &shape))
    } else {
        respond::answer(exchange, account, &peek, &shape)
    };
    let Content::Events(mut events) = content else {
        return invalid("invalid_value", "Only streams come over a WebSocket.");
    };
    let finish = fault.as_ref().map(|fault| bend(&mut events, fault, (exchange, account)));
    let mut script = Script::new(&shape);
    script.begin(account, &plan, &readings);
    script.play(events, &response, previous);
    script.finish(fault.as_ref(), finish.unwrap_or_default());
    // One that failed is nothing to go on from.
    Turn { status: 200, steps: script.steps, response: pays.then_some(response) }
}

fn question<'a>(account: &'a Inner, peek: &'a Peek<'_>, shape: &'a Shape) -> Question<'a> {
    let (model, user_text) = (peek.model(), peek.user_text());
    Question { model, user_text, shape, account: account.name(), compaction: false }
}

fn refused(reply: &Reply) -> Turn {
    let steps = vec![send(frames::error(reply)), Step::Done];
    Turn { status: reply.status.as_u16(), steps, response: None }
}

fn send(message: Message) -> Step {
    Step::Send { message, outputs: 0 }
}

/// Adds to a refusal where the account stands, unless it says so already.
fn with_limits(exchange: &Exchange<'_>, account: &Inner, mut reply: Reply) -> Reply {
    let (plan, outcome) = respond::pay(exchange, account, false);
    let (Ok(readings) | Err(readings)) = outcome;
    let own = std::mem::take(&mut reply.headers);
    headers::account(&mut reply.headers, account, &plan, &readings);
    reply.headers.extend(own);
    reply
}

/// What a fault puts in place of any answer.
fn instead(exchange: &Exchange<'_>, account: &Inner, fault: &Fault) -> Option<Turn> {
    let broken = |how| vec![Step::Break(how)];
    let steps = match fault {
        Fault::Stall { phase: Phase::Head } => vec![Step::Hang],
        Fault::CloseBeforeHead => broken(Break::Close),
        Fault::Garbage { kind: Garbage::Socket } => broken(Break::Garbage),
        Fault::Garbage { kind: Garbage::Events } => vec![send(Message::text(JUNK)), Step::Done],
        Fault::CloseFrame { phase: Phase::Head, code } => vec![Step::Close(*code)],
        Fault::ErrorFrame { phase: Phase::Head, .. } => {
            return error_of(exchange, account, fault).map(|reply| refused(&reply));
        }
        Fault::ConnectionLimit => {
            let reply = with_limits(exchange, account, errors::connection_limit());
            let mut turn = refused(&reply);
            turn.steps.push(Step::Close(LIMIT_CLOSE));
            return Some(turn);
        }
        _ => {
            let reply = misbehave::scripted(exchange, account, fault)?;
            return Some(refused(&with_limits(exchange, account, reply)));
        }
    };
    Some(Turn { status: 200, steps, response: None })
}

/// The `error` event of [`Fault::ErrorFrame`].
fn error_of(exchange: &Exchange<'_>, account: &Inner, fault: &Fault) -> Option<Reply> {
    let Fault::ErrorFrame { status, code, headers, .. } = fault else {
        return None;
    };
    let kind = match (code.as_str(), *status) {
        ("usage_limit_reached" | "usage_not_included", _) => code,
        (_, 500..) => "server_error",
        _ => "invalid_request_error",
    };
    let message = format!("Scripted: {code}.");
    let body = json!({"error": {"type": kind, "code": code, "message": message}}).to_string();
    let reply = misbehave::verbatim(*status, headers, &body);
    Some(with_limits(exchange, account, reply))
}

/// What follows the last event.
#[derive(Default)]
enum Finish {
    #[default]
    Tidy,
    Steps(Vec<Step>),
}

/// Cuts the events short, and says what then.
fn bend(
    events: &mut Events,
    fault: &Fault,
    (exchange, account): (&Exchange<'_>, &Inner),
) -> Finish {
    match fault {
        Fault::CutBeforeOutput | Fault::ErrorEventBeforeOutput { .. } => events.keep_opening(),
        Fault::CutAfterOutput { events: outputs }
        | Fault::ErrorEventAfterOutput { events: outputs, .. } => events.keep_outputs(*outputs),
        Fault::Stall { phase }
        | Fault::ErrorFrame { phase, .. }
        | Fault::CloseFrame { phase, .. } => match phase {
            Phase::Output(outputs) => events.keep_outputs(*outputs),
            Phase::Head | Phase::Body => events.keep_opening(),
        },
        _ => {}
    }
    Finish::Steps(match fault {
        Fault::CutBeforeOutput | Fault::CutAfterOutput { .. } | Fault::Cut { .. } => {
            vec![Step::Break(Break::Close)]
        }
        Fault::Reset { .. } => vec![Step::Break(Break::Reset)],
        Fault::Stall { .. } => vec![Step::Hang],
        Fault::CloseFrame { code, .. } => vec![Step::Close(*code)],
        Fault::CloseAfterTurn { code } => vec![Step::Done, Step::Close(*code)],
        Fault::ErrorFrame { .. } => {
            let error = error_of(exchange, account, fault).as_ref().map(frames::error);
            error.map(send).into_iter().chain([Step::Done]).collect()
        }
        Fault::ErrorEventBeforeOutput { code, message }
        | Fault::ErrorEventAfterOutput { code, message, .. } => {
            script::fail(events, exchange, code, message);
            return Finish::Tidy;
        }
        _ => return Finish::Tidy,
    })
}

/// Steps under construction.
struct Script {
    steps: Vec<Step>,
    gap: Gap,
}

impl Script {
    fn new(shape: &Shape) -> Self {
        let first = (!shape.first.is_zero()).then_some(Step::Pause(shape.first));
        Self { steps: first.into_iter().collect(), gap: shape.gap }
    }

    fn begin(&mut self, account: &Inner, plan: &str, readings: &[Reading]) {
        if account.kind == Kind::Codex && !readings.is_empty() {
            self.steps.push(send(frames::rate_limits(plan, readings)));
        }
    }

    fn play(&mut self, events: Events, response: &str, previous: Option<&str>) {
        let (bytes, events) = events.split();
        for (range, role) in events {
            let message = frames::event(&bytes.slice(range), response, previous);
            let outputs = u32::from(role == Role::Output);
            self.steps.push(Step::Send { message, outputs });
            let pause = self.gap.after(role);
            if !pause.is_zero() {
                self.steps.push(Step::Pause(pause));
            }
        }
        // After the last event there is nothing to wait for.
        self.steps.pop_if(|step| matches!(step, Step::Pause(_)));
    }

    fn finish(&mut self, fault: Option<&Fault>, finish: Finish) {
        match fault {
            Some(Fault::Cut { after_bytes } | Fault::Reset { after_bytes }) => {
                self.cut(*after_bytes);
            }
            Some(Fault::SlowDrip { bytes, gap }) => self.drip((*bytes).max(1), *gap),
            _ => {}
        }
        match finish {
            Finish::Tidy => self.steps.push(Step::Done),
            Finish::Steps(steps) => self.steps.extend(steps),
        }
    }

    /// Keeps the frames that end within `limit` bytes.
    fn cut(&mut self, limit: usize) {
        let mut end = 0;
        self.steps.retain(|step| {
            if let Step::Send { message, .. } = step {
                end += message.len();
            }
            end <= limit
        });
    }

    /// Sends each message in fragments, with a pause after each.
    fn drip(&mut self, size: usize, gap: Duration) {
        for step in std::mem::take(&mut self.steps) {
            let Step::Send { message, outputs } = step else {
                continue;
            };
            let mut rest: Bytes = message.into_data();
            let mut kind = Data::Text;
            while rest.len() > size {
                let part = Frame::message(rest.split_to(size), OpCode::Data(kind), false);
                self.steps.extend([send(Message::Frame(part)), Step::Pause(gap)]);
                kind = Data::Continue;
            }
            let message = Message::Frame(Frame::message(rest, OpCode::Data(kind), true));
            self.steps.extend([Step::Send { message, outputs }, Step::Pause(gap)]);
        }
        self.steps.pop();
    }
}
