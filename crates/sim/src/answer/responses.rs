//! Answers of the Responses API: the `ChatGPT` backend's and the platform's.
//!
//! Events and fields as Codex CLI 0.169.0 and openai-python 3.54.0 read them (captured 2026-11); those that
//! tell headers as public clients and gateways expect them (2026-11), not captured.

mod object;

use std::fmt;

use bytes::Bytes;

use super::{CREATED_AT, Content, Events, Quoted, Role, put};
use crate::catalogue;
use crate::directives::{Metadata, Shape};
use crate::identity::{hex, seal};

use object::{Envelope, Item, List, Part, Usage};

/// What is answered, and by whom.
pub struct Question<'a> {
    pub model: &'a str,
    pub user_text: &'a str,
    pub shape: &'a Shape,
    /// Made the opaque content, if there is any.
    pub account: &'a str,
    pub compaction: bool,
}

pub fn stream(question: &Question<'_>) -> Content {
    stream_of(question, compose(question))
}

/// The answer to a warm-up, which has no output (fixture `codex-chatgpt-startup-ws`).
pub fn warm_up(question: &Question<'_>) -> Content {
    let (id, _) = compose(question);
    stream_of(question, (id, Vec::new()))
}

fn stream_of(question: &Question<'_>, (id, items): (String, Vec<Item<'_>>)) -> Content {
    let Question { model, shape, .. } = *question;
    let mut events = Events::with_capacity(4096 + 2 * shape.text.len(), 8 + shape.events);
    let begun = Envelope { id: &id, status: "in_progress", model, output: &[], shape };
    if shape.metadata == Some(Metadata::First) {
        push_metadata(&mut events, Role::Opening, question);
    }
    for kind in ["response.created", "response.in_progress"] {
        event(&mut events, Role::Opening, kind, format_args!("\"response\":{begun}"));
    }
    for (index, item) in items.iter().enumerate() {
        stream_item(&mut events, index, item, shape);
    }
    if shape.metadata == Some(Metadata::Late) {
        push_metadata(&mut events, Role::Structure, question);
    }
    let done = Envelope { status: "completed", output: &items, ..begun };
    let kind = "response.completed";
    event(&mut events, Role::Structure, kind, format_args!("\"response\":{done}"));
    Content::Events(events)
}

/// By both names, and in both forms of a header's value. The turn state is another than the head's.
fn push_metadata(events: &mut Events, role: Role, question: &Question<'_>) {
    let state = format!("ts-event-{}", question.account);
    let (state, etag, model) = (Quoted(&state), Quoted(catalogue::ETAG), Quoted(question.model));
    let plain = format_args!(
        r#""headers":{{"x-codex-turn-state":{state},"x-models-etag":{etag},"openai-model":{model}}}"#
    );
    event(events, role, "response.metadata", plain);
    let listed = format_args!(
        r#""headers":{{"X-Codex-Turn-State":[{state}],"X-Models-Etag":[{etag}],"OpenAI-Model":[{model}]}}"#
    );
    event(events, role, "codex.response.metadata", listed);
}

pub fn whole(question: &Question<'_>) -> Content {
    let (id, items) = compose(question);
    let Question { model, shape, .. } = *question;
    let done = Envelope { id: &id, status: "completed", model, output: &items, shape };
    let mut body = String::with_capacity(1024 + shape.text.len());
    put!(body, "{done}");
    Content::Json(Bytes::from(body))
}

/// The answer of the older compaction endpoint.
pub fn compacted(question: &Question<'_>) -> Content {
    let (id, items) = compose(question);
    let usage = Usage(question.shape);
    let mut body = String::with_capacity(1024);
    let output = List(&items);
    put!(
        body,
        r#"{{"id":"{id}","object":"response.compaction","created_at":{CREATED_AT},"output":[{output}],"usage":{usage}}}"#
    );
    Content::Json(Bytes::from(body))
}

/// Appends `response.failed`.
pub fn push_failure(events: &mut Events, model: &str, code: &str, message: &str) {
    let number = events.len();
    let (model, code, message) = (Quoted(model), Quoted(code), Quoted(message));
    events.push(Role::Structure, |to| {
        put!(
            to,
            "event: response.failed\ndata: {{\"type\":\"response.failed\",\"response\":{{\
             \"id\":\"resp_failed\",\"object\":\"response\",\"created_at\":{CREATED_AT},\
             \"status\":\"failed\",\"model\":{model},\"output\":[],\"usage\":null,\
             \"error\":{{\"code\":{code},\"message\":{message}}},\"incomplete_details\":null}},\
             \"sequence_number\":{number}}}\n\n"
        );
    });
}

/// The response's id and its items.
fn compose<'a>(question: &Question<'a>) -> (String, Vec<Item<'a>>) {
    let Question { model, user_text, shape, account, compaction } = *question;
    let key = hex(&["responses", model, user_text, if compaction { "compact" } else { "" }]);
    let sealed = || seal(account, user_text);
    let mut items = Vec::with_capacity(2);
    if compaction {
        items.push(Item::Compaction { id: format!("cmp_{key}"), sealed: sealed() });
    } else {
        if shape.reason {
            items.push(Item::Reasoning { id: format!("rs_{key}"), sealed: sealed() });
        }
        items.push(match shape.call {
            // Nothing a shell would read as more than words.
            Some(call) => Item::Call {
                id: format!("fc_{key}"),
                call: call.id(),
                command: format!("echo '{}'", shape.text.replace('\'', "")),
            },
            None => Item::Message { id: format!("msg_{key}"), text: &shape.text },
        });
    }
    (format!("resp_{key}"), items)
}

fn stream_item(events: &mut Events, index: usize, item: &Item<'_>, shape: &Shape) {
    let added = "response.output_item.added";
    let done = "response.output_item.done";
    let Item::Message { id, text } = item else {
        let item = format_args!("\"output_index\":{index},\"item\":{item}").to_string();
        event(events, Role::Structure, added, format_args!("{item}"));
        event(events, Role::Output, done, format_args!("{item}"));
        return;
    };
    let started = format_args!(
        r#""output_index":{index},"item":{{"type":"message","id":"{id}","role":"assistant","status":"in_progress","content":[]}}"#
    );
    event(events, Role::Structure, added, started);
    let place = format!(r#""item_id":"{id}","output_index":{index},"content_index":0"#);
    let empty = format_args!("{place},\"part\":{}", Part(""));
    event(events, Role::Structure, "response.content_part.added", empty);
    for delta in shape.deltas() {
        let delta = Quoted(delta);
        let delta = format_args!(r#"{place},"delta":{delta},"logprobs":[]"#);
        event(events, Role::Output, "response.output_text.delta", delta);
    }
    let quoted = Quoted(text);
    let finished = format_args!(r#"{place},"text":{quoted},"logprobs":[]"#);
    event(events, Role::Structure, "response.output_text.done", finished);
    let part = format_args!("{place},\"part\":{}", Part(text));
    event(events, Role::Structure, "response.content_part.done", part);
    event(events, Role::Structure, done, format_args!("\"output_index\":{index},\"item\":{item}"));
}

fn event(events: &mut Events, role: Role, kind: &str, fields: fmt::Arguments<'_>) {
    let number = events.len();
    events.push(role, |to| {
        put!(
            to,
            "event: {kind}\ndata: {{\"type\":\"{kind}\",{fields},\"sequence_number\":{number}}}\n\n"
        );
    });
}
