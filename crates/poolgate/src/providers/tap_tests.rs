use super::*;

fn tap(surface: Surface, stream: &str) -> Tap {
    let mut tap = Tap::new(surface, true, Timestamp(0));
    tap.feed(&Bytes::copy_from_slice(stream.as_bytes()));
    tap
}

fn data(lines: &[&str]) -> String {
    lines.iter().map(|line| format!("data: {line}\n\n")).collect()
}

const CREATED: &str = r#"{"type":"response.created","response":{"id":"resp_1","usage":null}}"#;
const METADATA: &str =
    r#"{"type":"response.metadata","headers":{"X-Codex-Turn-State":["s"]},"response_id":"resp_0"}"#;
const METADATA_OF_CODEX: &str =
    r#"{"type":"codex.response.metadata","response":{"headers":{"x-codex-turn-state":"t"}}}"#;
const START: &str = r#"{"type":"message_start","message":{"id":"msg_1","usage":{"input_tokens":5,"output_tokens":1,"cache_read_input_tokens":7}}}"#;
const ROLE: &str = r#"{"id":"c1","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"finish_reason":null}]}"#;

#[test]
#[rustfmt::skip]
fn tells_bookkeeping_from_output() {
    use Surface::{Chat, Messages, Responses};
    let cases = [
        ("created",        Responses, data(&[CREATED]),                                            false, false),
        ("codex's own",    Responses, data(&[CREATED, r#"{"type":"codex.rate_limits"}"#]),         false, false),
        ("headers",        Responses, data(&[METADATA, METADATA_OF_CODEX, CREATED]),               false, false),
        ("text",           Responses, data(&[CREATED, r#"{"type":"response.output_text.delta"}"#]), true, false),
        ("an item",        Responses, data(&[r#"{"type":"response.output_item.added"}"#]),         true,  false),
        ("type comes last", Responses, data(&[r#"{"a":1,"type":"response.in_progress"}"#]),        false, false),
        ("a new event",    Responses, data(&[r#"{"type":"response.hologram"}"#]),                  true,  false),
        ("junk",           Responses, data(&["{broken", "1", "[]"]),                               false, false),
        ("completed",      Responses, data(&[r#"{"type":"response.completed","response":{}}"#]),   true,  true),
        ("incomplete",     Responses, data(&[r#"{"type":"response.incomplete","response":{}}"#]),  true,  true),
        ("start, ping",    Messages,  data(&[START, r#"{"type":"ping"}"#]),                        false, false),
        ("a block",        Messages,  data(&[START, r#"{"type":"content_block_start"}"#]),         true,  false),
        ("stop",           Messages,  data(&[START, r#"{"type":"message_stop"}"#]),                true,  true),
        ("role only",      Chat,      data(&[ROLE]),                                               false, false),
        ("content",        Chat,      data(&[r#"{"choices":[{"delta":{"content":"x"}}]}"#]),       true,  false),
        ("a tool",         Chat,      data(&[r#"{"choices":[{"delta":{"tool_calls":[{}]}}]}"#]),   true,  false),
        ("done",           Chat,      data(&[ROLE, "[DONE]"]),                                     true,  true),
    ];
    for (name, surface, stream, semantic, finished) in cases {
        let tap = tap(surface, &stream);
        assert_eq!((tap.semantic, tap.finished), (semantic, finished), "{name}");
        assert_eq!(tap.error, None, "{name}");
    }
}

#[test]
fn what_tells_headers_begins_no_response() {
    let mut tap = tap(Surface::Responses, &data(&[METADATA, METADATA_OF_CODEX]));
    assert!(!tap.created);
    tap.feed(&Bytes::from(data(&[CREATED])));
    assert!(tap.created);
    assert_eq!(tap.response_id.as_deref(), Some("resp_1"));
}

#[test]
fn a_turns_messages_tell_what_a_streams_events_do() {
    let said = [
        r#"{"type":"codex.rate_limits"}"#,
        METADATA,
        r#"{"type":"keepalive"}"#,
        CREATED,
        r#"{"type":"response.output_text.delta"}"#,
        r#"{"type":"response.failed","response":{"error":{"code":"c","message":"m"}}}"#,
    ];
    let mut events = Tap::new(Surface::Responses, true, Timestamp(0));
    let mut messages = Tap::messages(Surface::Responses, Timestamp(0));
    let facts = |tap: &Tap| {
        let Tap { created, semantic, finished, moved, failed, error, response_id, .. } = tap;
        format!("{created} {semantic} {finished} {moved} {failed} {error:?} {response_id:?}")
    };
    for message in said {
        events.feed(&Bytes::from(data(&[message])));
        messages.feed(&Bytes::from(message));
        assert_eq!(facts(&messages), facts(&events), "behind {message}");
        assert!(messages.is_between_events());
    }
    assert!(messages.finished && messages.error.is_some());
}

#[test]
fn tells_signs_of_life_from_more() {
    use Surface::{Chat, Messages, Responses};
    for (surface, stream, more) in [
        (Responses, ": comment\n\n".to_owned(), false),
        (Responses, data(&[r#"{"type":"keepalive","sequence_number":3}"#]), false),
        (Messages, "event: ping\ndata: {\"type\":\"ping\"}\n\n".to_owned(), false),
        (Responses, data(&[CREATED]), true),
        (Chat, data(&[ROLE]), true),
    ] {
        assert_eq!(tap(surface, &stream).moved, more, "{stream}");
    }
}

#[test]
fn finds_errors_before_output() {
    let failed =
        r#"{"type":"response.failed","response":{"error":{"code":"server_error","message":"m"}}}"#;
    let overloaded = r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#;
    let cases = [
        (Surface::Responses, data(&[CREATED, failed]), "server_error", ""),
        (Surface::Messages, data(&[START, overloaded]), "", "overloaded_error"),
        (Surface::Chat, data(&[r#"{"error":{"code":"c","type":"t"}}"#]), "c", "t"),
        (Surface::Chat, data(&[r#"{"id":1,"error":{"code":"c","type":"t"}}"#]), "c", "t"),
        (
            Surface::Chat,
            data(&[
                ROLE,
                r#"{"id":"c1","error":{"code":"c","type":"t"},"choices":[{"delta":{"content":""},"finish_reason":"error"}]}"#,
            ]),
            "c",
            "t",
        ),
    ];
    let ended = cases.clone().map(|(surface, stream, code, kind)| {
        let end = match surface {
            Surface::Responses => r#"{"type":"response.completed"}"#,
            Surface::Messages => r#"{"type":"message_stop"}"#,
            _ => "[DONE]",
        };
        (surface, stream + &data(&[end]), code, kind)
    });
    for (surface, stream, code, kind) in cases.into_iter().chain(ended) {
        let tap = tap(surface, &stream);
        let error = tap.error.as_ref().expect("an error");
        assert_eq!((error.code.as_str(), error.kind.as_str()), (code, kind), "{stream}");
        assert!(!tap.semantic, "{stream}");
    }
}

#[test]
fn counts_tokens_in_every_dialect() {
    let responses = r#"{"type":"response.completed","response":{"id":"resp_1","usage":{"input_tokens":100,
        "input_tokens_details":{"cached_tokens":60},"output_tokens":9,"output_tokens_details":{"reasoning_tokens":4}}}}"#
        .replace('\n', " ");
    let got = tap(Surface::Responses, &data(&[CREATED, &responses]));
    let want = TokenUsage {
        input: Some(40),
        output: Some(9),
        cache_read: Some(60),
        cache_write: None,
        reasoning: Some(4),
    };
    assert_eq!((got.usage, got.response_id.as_deref()), (want, Some("resp_1")));

    let delta = r#"{"type":"message_delta","usage":{"output_tokens":30}}"#;
    let got = tap(Surface::Messages, &data(&[START, delta]));
    let want = TokenUsage {
        input: Some(5),
        output: Some(30),
        cache_read: Some(7),
        cache_write: None,
        reasoning: None,
    };
    assert_eq!((got.usage, got.response_id.as_deref()), (want, Some("msg_1")));

    let text = r#"{"id":"c1","choices":[{"index":0,"delta":{"content":"a"}}],"usage":null}"#;
    let last = r#"{"id":"c1","choices":[],"usage":{"prompt_tokens":8,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":3}}}"#;
    // With blanks, as Python writes it, and in the words of two dialects, of which one counts nothing.
    let spaced = last.replace(':', ": ");
    let zeros = r#""usage":{"input_tokens":0,"input_tokens_details":{"cached_tokens":0},"#;
    let both = last.replace(r#""usage":{"#, zeros);
    for last in [last, &spaced, &both] {
        let got = tap(Surface::Chat, &data(&[ROLE, text, last, "[DONE]"])).usage;
        assert_eq!((got.input, got.output, got.cache_read), (Some(5), Some(2), Some(3)), "{last}");
    }
}

/// What goes wrong behind output is known for what it is, whatever is said behind it.
#[test]
fn finds_errors_of_a_chat_behind_output() {
    let text =
        r#"{"id":"c1","choices":[{"index":0,"delta":{"content":"\"error\":{"}}],"error":null}"#;
    let choice = r#"{"index":0,"delta":{"content":""},"finish_reason":"error"}"#;
    let error = r#""error":{"message":"no","code":"server_error"}"#;
    for error in [
        format!("{{{error}}}"),
        format!(r#"{{"id":"c1",{error},"choices":[{choice}],"usage":{{"prompt_tokens":3}}}}"#),
        format!(r#"{{"id":"c1","choices":[{choice}], {error}}}"#),
    ] {
        let tap = tap(Surface::Chat, &data(&[ROLE, text, &error, "[DONE]"]));
        assert!(tap.semantic && tap.finished, "{error}");
        assert_eq!(tap.usage.input.is_some(), error.contains("usage"), "{error}");
        assert_eq!(tap.error.unwrap().code, "server_error", "{error}");
    }
    let mut tap = tap(Surface::Chat, &data(&[ROLE, text, "[DONE]"]));
    assert!(tap.end() && tap.error.is_none(), "{text}");
}

#[test]
fn counts_tokens_in_json() {
    let mut tap = Tap::new(Surface::Messages, false, Timestamp(0));
    tap.feed(&Bytes::from_static(br#"{"id":"msg_1","usage":{"input_"#));
    assert!(!tap.finished && !tap.is_between_events());
    tap.feed(&Bytes::from_static(br#"tokens":3,"output_tokens":4}}"#));
    assert!(tap.end() && !tap.garbled);
    assert_eq!((tap.usage.input, tap.usage.output), (Some(3), Some(4)));
}

#[test]
fn tells_garbage_from_the_unforeseen() {
    let cases: [(&[u8], bool); 7] = [
        (b"{\"id\":\"a\"}\n", false),
        (b"{\"id\":1,\"usage\":\"none\"}", false),
        (b"[1,2]", false),
        (b"", true),
        (b"{\"id\":\"a\"", true),
        (b"{\"id\":1}}", true),
        (b"{\"x\":\"\xff\"}", true),
    ];
    for (body, garbled) in cases {
        let mut tap = Tap::new(Surface::Responses, false, Timestamp(0));
        tap.feed(&Bytes::from_static(body));
        assert!(tap.end());
        assert_eq!(tap.garbled, garbled, "{}", body.escape_ascii());
    }
}

#[test]
fn junk_that_names_a_reason_is_no_end() {
    for (chunk, want) in [
        (r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#, true),
        (r#"{"choices":[{"delta":{}"finish_reason":"stop"}]}"#, false),
        (r#"{"finish_reason":"stop"}"#, false),
    ] {
        assert_eq!(tap(Surface::Chat, &data(&[ROLE, chunk])).end(), want, "{chunk}");
    }
}

#[test]
fn an_unfinished_stream_is_not_whole() {
    let mut tap = tap(Surface::Responses, &data(&[CREATED]));
    assert!(!tap.end());
}

#[test]
fn takes_quota_windows_out_of_codexs_own_event() {
    let limits = r#"{"type":"codex.rate_limits","rate_limits":{"primary":{"used_percent":1,"window_minutes":300,"reset_at":1795312935}}}"#;
    let mut tap = tap(Surface::Responses, &data(&[CREATED, limits, limits]));
    assert!(!tap.semantic, "it is no output");
    let told = std::mem::take(&mut tap.readings);
    let used = told.iter().map(|r| r.used.map(poolgate_core::units::Fraction::percent));
    assert_eq!(used.collect::<Vec<_>>(), [Some(1.0), Some(1.0)]);
    tap.feed(&Bytes::from(data(&[r#"{"type":"codex.keepalive"}"#])));
    assert_eq!(tap.readings, [], "taken once");
}
