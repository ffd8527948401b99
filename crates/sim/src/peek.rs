//! The few fields the simulator reads of a request body, borrowed from its bytes.
//!
//! One pass, no tree: unknown fields are skipped, whatever they hold. The three APIs put their
//! messages in different places but in like shapes, so one set of types serves all.

mod visit;

use std::borrow::Cow;

use serde::Deserialize;

pub use visit::{Content, Items, Present};

/// A string, borrowed unless it holds escapes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text<'a>(pub Cow<'a, str>);

/// A request to any of the model endpoints.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Peek<'a> {
    #[serde(borrow)]
    pub model: Option<Text<'a>>,
    pub stream: Option<bool>,
    pub store: Option<bool>,
    stream_options: Option<StreamOptions>,
    /// A frame's.
    #[serde(borrow, rename = "type")]
    pub kind: Option<Text<'a>>,
    /// `false` in the frame of a warm-up.
    pub generate: Option<bool>,
    #[serde(borrow)]
    pub previous_response_id: Option<Text<'a>>,
    /// In a frame about an answer that is being given.
    #[serde(borrow)]
    pub response_id: Option<Text<'a>>,
    /// Responses API.
    #[serde(borrow)]
    input: Items<'a>,
    /// Chat Completions and Messages.
    #[serde(borrow)]
    messages: Items<'a>,
    max_output_tokens: Present,
    temperature: Present,
    top_p: Present,
    user: Present,
    metadata: Present,
    prompt_cache_retention: Present,
    safety_identifier: Present,
    truncation: Present,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct StreamOptions {
    pub include_usage: Option<bool>,
}

/// One input item or message.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Item<'a> {
    #[serde(borrow, rename = "type")]
    pub kind: Option<Text<'a>>,
    #[serde(borrow)]
    pub role: Option<Text<'a>>,
    #[serde(borrow)]
    pub content: Content<'a>,
    #[serde(borrow)]
    pub encrypted_content: Option<Text<'a>>,
    #[serde(borrow)]
    pub call_id: Option<Text<'a>>,
    #[serde(borrow)]
    pub output: Content<'a>,
}

impl<'a> Peek<'a> {
    pub fn read(body: &'a [u8]) -> serde_json::Result<Self> {
        // Once for all of it, and not for each string.
        match str::from_utf8(body) {
            Ok(body) => serde_json::from_str(body),
            Err(_) => serde_json::from_slice(body),
        }
    }

    pub fn model(&self) -> &str {
        self.model.as_ref().map_or("", |model| &model.0)
    }

    pub fn streams(&self) -> bool {
        self.stream == Some(true)
    }

    /// Whether a chat stream is to end with the usage.
    pub fn includes_usage(&self) -> bool {
        self.stream_options.as_ref().is_some_and(|options| options.include_usage == Some(true))
    }

    /// The last text a user said; empty if none did.
    pub fn user_text(&self) -> &str {
        let text = self.input.user_text.as_ref().or(self.messages.user_text.as_ref());
        text.map_or("", |text| &text.0)
    }

    /// The call that was answered since the user spoke last, and its output.
    pub fn tool_output(&self) -> Option<(&str, &str)> {
        self.input.tool_output.as_ref().map(|(call, output)| (&*call.0, &*output.0))
    }

    /// Whether the last input item is a `compaction_trigger`.
    pub fn wants_compaction(&self) -> bool {
        self.input.ends_in_trigger
    }

    /// The `encrypted_content` of reasoning and compaction items.
    pub fn sealed(&self) -> impl Iterator<Item = &str> {
        self.input.sealed.iter().map(|text| &*text.0)
    }

    /// The first parameter the `ChatGPT` backend does not take.
    pub fn unsupported(&self) -> Option<&'static str> {
        [
            (&self.max_output_tokens, "max_output_tokens"),
            (&self.temperature, "temperature"),
            (&self.top_p, "top_p"),
            (&self.user, "user"),
            (&self.metadata, "metadata"),
            (&self.prompt_cache_retention, "prompt_cache_retention"),
            (&self.safety_identifier, "safety_identifier"),
            (&self.truncation, "truncation"),
        ]
        .into_iter()
        .find_map(|(field, name)| field.0.then_some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn finds_the_last_user_text() {
        let cases = [
            (r#"{"input":"hi"}"#, "hi"),
            (r#"{"input":[{"role":"user","content":"a"},{"role":"developer","content":"b"}]}"#, "a"),
            (r#"{"input":[{"type":"message","role":"user","content":[{"type":"input_text","text":"a"},
                {"type":"input_text","text":"\u00e4b"}]},{"type":"function_call_output","output":"x"}]}"#, "äb"),
            (r#"{"messages":[{"role":"user","content":[{"type":"text","text":"q"}]},
                {"role":"user","content":[{"type":"tool_result","content":"r","tool_use_id":"t"}]},
                {"role":"system","content":[{"type":"text","text":"s"}]}]}"#, "q"),
            (r#"{"messages":[{"role":"assistant","content":null}]}"#, ""),
            (r"{}", ""),
        ];
        for (body, want) in cases {
            assert_eq!(Peek::read(body.as_bytes()).unwrap().user_text(), want, "{body}");
        }
    }

    #[test]
    fn finds_the_last_tool_output_since_the_user_spoke() {
        let called = r#"{"type":"function_call_output","call_id":"c","output":"x"}"#;
        let parts = r#"{"type":"function_call_output","call_id":"d","output":[{"type":"input_text","text":"y"}]}"#;
        let user = r#"{"role":"user","content":"q"}"#;
        let cases = [
            (format!("[{user},{called}]"), Some(("c", "x"))),
            (format!("[{called},{parts}]"), Some(("d", "y"))),
            (format!("[{called},{user}]"), None),
        ];
        for (input, want) in cases {
            let body = format!("{{\"input\":{input}}}");
            assert_eq!(Peek::read(body.as_bytes()).unwrap().tool_output(), want, "{input}");
        }
    }

    #[test]
    fn finds_sealed_items_the_trigger_and_unsupported_parameters() {
        let body = br#"{"top_p":null,"input":[{"type":"reasoning","encrypted_content":"x"},
            {"type":"other","encrypted_content":"y"},{"type":"compaction_trigger"}]}"#;
        let peek = Peek::read(body).unwrap();
        assert_eq!(peek.sealed().collect::<Vec<_>>(), ["x"]);
        assert!(peek.wants_compaction());
        assert_eq!(peek.unsupported(), Some("top_p"));
        assert!(Peek::read(b"{\"input\":").is_err());
    }
}
