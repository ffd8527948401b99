//! An answer's id and its token counts. They stand at the ends of what may be long: a whole response is
//! told at the beginning, with all its instructions and tools, and at the end, with all its output. What
//! is between need not be parsed.
//!
//! A name with both its quotes is inside no text of valid JSON, where the quotes would be escaped; behind a
//! backslash it is the end of another name. An object behind an event's response, with counts of its own,
//! would be taken for it: nobody is known to send one.

use std::sync::LazyLock;

use memchr::memmem::{Finder, FinderRev};
use poolgate_core::usage::TokenUsage;
use serde::Deserialize;

/// The counts are looked for in no longer an end.
const END_MAX: usize = 4 << 10;

const RESPONSE: &[u8] = br#""response":{"#;
// Prepared once: that costs more than a search in what is short.
static FIRST_RESPONSE: LazyLock<Finder<'_>> = LazyLock::new(|| Finder::new(RESPONSE));
static LAST_USAGE: LazyLock<FinderRev<'_>> = LazyLock::new(|| FinderRev::new(br#""usage""#));

/// The names of all dialects' documents and events.
#[derive(Debug, Deserialize, PartialEq)]
pub struct Report {
    #[serde(default)]
    response: Option<Inner>,
    #[serde(default)]
    message: Option<Inner>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Debug, Deserialize, PartialEq)]
struct Inner {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    usage: Option<Usage>,
}

impl Report {
    pub fn has_id(&self) -> bool {
        self.id.is_some()
    }

    pub fn split(self) -> (Option<String>, TokenUsage) {
        let (id, usage) = match self.response.or(self.message) {
            Some(inner) => (inner.id, inner.usage.or(self.usage)),
            None => (self.id, self.usage),
        };
        (id, usage.map(|usage| usage.disjoint()).unwrap_or_default())
    }
}

/// The three dialects' counts; the names do not collide, except `input_tokens`, which Anthropic
/// means without the cache and `OpenAI` with it.
#[derive(Debug, Deserialize, PartialEq)]
struct Usage {
    input_tokens: Option<Count>,
    output_tokens: Option<Count>,
    prompt_tokens: Option<Count>,
    completion_tokens: Option<Count>,
    cache_read_input_tokens: Option<Count>,
    cache_creation_input_tokens: Option<Count>,
    // Some servers speak two dialects at once: an alias would be the same field twice.
    input_tokens_details: Option<InputDetails>,
    prompt_tokens_details: Option<InputDetails>,
    output_tokens_details: Option<OutputDetails>,
    completion_tokens_details: Option<OutputDetails>,
}

#[derive(Debug, Deserialize, PartialEq)]
struct InputDetails {
    cached_tokens: Option<Count>,
}

#[derive(Debug, Deserialize, PartialEq)]
struct OutputDetails {
    reasoning_tokens: Option<Count>,
}

/// A million times the longest context. Eight million such answers can be added up; one of what a strange
/// upstream may say could not be added to any other.
const TOKENS_MAX: u64 = 1 << 40;

/// Of tokens. Servers that count in floating point write `12.0`. At most [`TOKENS_MAX`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(from = "f64")]
struct Count(u64);

impl From<f64> for Count {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast saturates")]
    fn from(number: f64) -> Self {
        Self((number as u64).min(TOKENS_MAX))
    }
}

impl Usage {
    fn disjoint(&self) -> TokenUsage {
        let number = |count: Option<Count>| count.map(|count| count.0);
        let either =
            |one, other| number(one).filter(|number| *number > 0).or(number(other)).or(number(one));
        let cached = |details: &Option<InputDetails>| details.as_ref()?.cached_tokens;
        let cached =
            either(cached(&self.input_tokens_details), cached(&self.prompt_tokens_details));
        let thought = |details: &Option<OutputDetails>| details.as_ref()?.reasoning_tokens;
        let input = either(self.input_tokens, self.prompt_tokens);
        TokenUsage {
            input: input.map(|all| all.saturating_sub(cached.unwrap_or(0))),
            output: either(self.output_tokens, self.completion_tokens),
            cache_read: number(self.cache_read_input_tokens).or(cached),
            cache_write: number(self.cache_creation_input_tokens),
            reasoning: either(
                thought(&self.output_tokens_details),
                thought(&self.completion_tokens_details),
            ),
        }
    }
}

/// Of a JSON body. `None`: they do not stand at its ends, or it is garbled.
///
/// If what begins with the counts is the rest of exactly one object, that object is the body itself.
pub fn ends_of_body(body: &[u8]) -> Option<Report> {
    let inside = body.trim_ascii_start().strip_prefix(b"{")?;
    let report: Report = serde_json::from_slice(&[b"{", end(body)?].concat()).ok()?;
    Some(Report { id: first_id(inside), ..report })
}

/// Of an event; `None`: it is none that can be read.
pub fn of_event(event: &[u8]) -> Option<Report> {
    ends_of_event(event).or_else(|| serde_json::from_slice(event).ok())
}

/// The id of the response that an event tells of as a whole, or names as the one that it is of.
pub fn response_id(event: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Told {
        #[serde(default)]
        response: Option<Named>,
        #[serde(default)]
        response_id: Option<String>,
    }
    #[derive(Deserialize)]
    struct Named {
        #[serde(default)]
        id: Option<String>,
    }
    let told = || serde_json::from_slice::<Told>(event).ok();
    let named = |told: Told| told.response.and_then(|response| response.id).or(told.response_id);
    response(event).and_then(first_id).or_else(|| told().and_then(named))
}

fn ends_of_event(event: &[u8]) -> Option<Report> {
    let inside = response(event)?;
    let id = first_id(inside)?;
    let rest = [br#"{"response":{"#, end(inside)?].concat();
    let report: Report = serde_json::from_slice(&rest).ok()?;
    let response = report.response.map(|response| Inner { id: Some(id), ..response });
    Some(Report { response, ..report })
}

/// What is inside an event's response, and behind it. With nothing nested in front, it is the event's own.
fn response(event: &[u8]) -> Option<&[u8]> {
    let at = FIRST_RESPONSE.find(event).filter(|at| is_whole(event, *at))?;
    let nested = event[..at].iter().filter(|byte| matches!(byte, b'{' | b'[')).count();
    (nested == 1).then(|| &event[at + RESPONSE.len()..])
}

fn end(json: &[u8]) -> Option<&[u8]> {
    let at = LAST_USAGE.rfind(json).filter(|at| is_whole(json, *at))?;
    (json.len() - at <= END_MAX).then(|| &json[at..])
}

/// A name begins there, and not the end of one that has a quote.
fn is_whole(json: &[u8], at: usize) -> bool {
    json[..at].last() != Some(&b'\\')
}

/// The id, if it comes first.
fn first_id(inside: &[u8]) -> Option<String> {
    let rest = inside.trim_ascii_start().strip_prefix(b"\"id\"")?.trim_ascii_start();
    let rest = rest.strip_prefix(b":")?.trim_ascii_start().strip_prefix(b"\"")?;
    let end = memchr::memchr2(b'"', b'\\', rest).filter(|end| rest[*end] == b'"')?;
    str::from_utf8(&rest[..end]).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_a_body_say_what_all_of_it_does() {
        let cases = [
            (r#"{"id":"r","usage":{"input_tokens":3}}"#, true),
            (
                "{\n  \"id\": \"r\",\n  \"usage\": {\"input_tokens\": 3},\n  \"user\": null\n}\n",
                true,
            ),
            (
                r#"{"id":"r","output":"\"usage\":{\"input_tokens\":9}","usage":{"input_tokens":3},"a":[]}"#,
                true,
            ),
            (
                r#"{"id":"r","metadata":{"usage":{"input_tokens":9}},"usage":{"input_tokens":3}}"#,
                true,
            ),
            (
                r#"{"id":"r","usage":{"input_tokens":3},"metadata":{"usage":{"input_tokens":9}}}"#,
                false,
            ),
            (r#"{"id":"r","usage":{"input_tokens":3},"tools":["usage"]}"#, false),
            (r#"{"id":"r\u0041","usage":{"input_tokens":3}}"#, false),
            (r#"{"output":[],"id":"r","usage":{"input_tokens":3}}"#, false),
        ];
        for (body, by_ends) in cases {
            let whole: Report = serde_json::from_str(body).unwrap();
            let ends = ends_of_body(body.as_bytes());
            assert_eq!(ends.as_ref().is_some_and(|ends| ends.id.is_some()), by_ends, "{body}");
            if let Some(ends) = ends {
                assert!(ends.id.is_none() || ends.id == whole.id, "{body}");
                let input = |report: Report| report.usage.and_then(|usage| usage.input_tokens);
                assert_eq!(input(ends), input(whole), "{body}");
            }
        }
        for garbled in [&br#"{"usage":{"input_tokens":3}"#[..], br#"{"usage":{"input_tokens":3}}}"#]
        {
            assert!(ends_of_body(garbled).is_none());
        }
    }

    #[test]
    fn counts_in_floating_point_count() {
        let body = br#"{"id":"r","usage":{"input_tokens":12.0,"output_tokens":3e1,"input_tokens_details":{"cached_tokens":2.0}}}"#;
        let (id, usage) = ends_of_body(body).unwrap().split();
        assert_eq!(id.as_deref(), Some("r"));
        assert_eq!((usage.input, usage.output, usage.cache_read), (Some(10), Some(30), Some(2)));
        let odd = br#"{"usage":{"input_tokens":-1.0,"output_tokens":9007199254740993}}"#;
        let (_, usage) = ends_of_body(odd).unwrap().split();
        assert_eq!((usage.input, usage.output), (Some(0), Some(TOKENS_MAX)));
    }

    #[test]
    fn the_ends_of_an_event_say_what_all_of_it_does() {
        let cases = [
            (
                r#"{"type":"response.completed","response":{"id":"r","usage":{"input_tokens":3}}}"#,
                true,
            ),
            (
                r#"{"type":"t","sequence_number":4,"response":{"id":"r","output":[{"id":"x"}],"usage":{"input_tokens":3},"metadata":{}},"n":{}}"#,
                true,
            ),
            (r#"{"type":"t","response":{"id":"r","usage":null},"sequence_number":9}"#, true),
            (
                r#"{"type":"t","response":{"id":"r","output":"\"usage\":{}","usage":{"input_tokens":3}}}"#,
                true,
            ),
            // Of something else, or in another order.
            (
                r#"{"type":"t","response":{"id":"r","usage":{"input_tokens":3},"metadata":{"usage":{"input_tokens":9}}}}"#,
                false,
            ),
            (r#"{"type":"t","response":{"id":"r"},"usage":{"input_tokens":3}}"#, false),
            (r#"{"item":{"response":{"id":"r","usage":{"input_tokens":3}}}}"#, false),
            (r#"{"item":{"id":"x"},"response":{"id":"r","usage":{"input_tokens":3}}}"#, false),
            (r#"{"type":"t","response":{"usage":{"input_tokens":3},"id":"r"}}"#, false),
            (
                r#"{"type":"t","response":{"id":"r","usage":{"input_tokens":3},"b\"usage":null}}"#,
                false,
            ),
            (
                r#"{"a\"response":{"id":"x","usage":{}},"response":{"id":"r","usage":{"input_tokens":3}}}"#,
                false,
            ),
            (r#"{"type":"t","response":{"id":"r"}}"#, false),
            (r#"{"type":"t"}"#, false),
        ];
        for (event, by_ends) in cases {
            let whole: Report = serde_json::from_str(event).unwrap();
            assert_eq!(ends_of_event(event.as_bytes()).is_some(), by_ends, "{event}");
            let id = whole.response.as_ref().and_then(|response| response.id.clone());
            assert_eq!(response_id(event.as_bytes()), id, "{event}");
            assert_eq!(of_event(event.as_bytes()).unwrap().split(), whole.split(), "{event}");
        }
        for garbled in
            [r#"{"response":{"id":"r","usage":{}}"#, r#"{"response":{"id":"r","usage":{}}}}"#]
        {
            assert!(of_event(garbled.as_bytes()).is_none(), "{garbled}");
        }
    }
}
