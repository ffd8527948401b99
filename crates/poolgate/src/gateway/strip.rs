//! Cuts out of a history what only the account that made it can read: reasoning items with
//! `encrypted_content` (Responses), thinking blocks with a `signature` (Messages).
//!
//! Affinity avoids the need; after a move, an upstream's structured "cannot be verified" is answered
//! by one more try without those parts. Everything else keeps its bytes.

use poolgate_core::account::Surface;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::read::Payload;
use crate::json::{Document, Patch};

#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow, default)]
    r#type: Option<&'a str>,
    #[serde(borrow, default)]
    encrypted_content: Option<&'a RawValue>,
}

/// `None`: there is nothing of the kind in it.
pub fn strip(surface: Surface, payload: &Payload) -> Option<Payload> {
    let document = &payload.document;
    let (field, list) = match surface {
        Surface::Responses | Surface::Compact => {
            ("input", without_reasoning(&document.raw("input")?))
        }
        Surface::Messages | Surface::CountTokens => {
            ("messages", without_thinking(&document.raw("messages")?))
        }
        Surface::Chat => return None,
    };
    let mut patch = Patch::default();
    patch.set(document, field, &list?);
    let text = patch.apply(document).to_bytes();
    let document = Document::parse(text.clone()).ok()?;
    Some(Payload { wire: text.into(), encoding: None, document })
}

fn items(list: &str) -> Option<Vec<&RawValue>> {
    serde_json::from_str(list).ok()
}

fn join<'a>(items: impl Iterator<Item = &'a str>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(","))
}

fn without_reasoning(input: &str) -> Option<String> {
    let all = items(input)?;
    let foreign = |raw: &&&RawValue| {
        let item = serde_json::from_str::<Item<'_>>(raw.get());
        item.is_ok_and(|item| item.r#type == Some("reasoning") && item.encrypted_content.is_some())
    };
    let kept: Vec<&str> = all.iter().filter(|raw| !foreign(raw)).map(|raw| raw.get()).collect();
    (kept.len() < all.len()).then(|| join(kept.into_iter()))
}

fn without_thinking(messages: &str) -> Option<String> {
    let mut changed = false;
    let messages: Vec<String> = items(messages)?
        .into_iter()
        .map(|message| {
            let stripped = without_thinking_blocks(message.get());
            changed |= stripped.is_some();
            stripped.unwrap_or_else(|| message.get().to_owned())
        })
        .collect();
    changed.then(|| join(messages.iter().map(String::as_str)))
}

fn without_thinking_blocks(message: &str) -> Option<String> {
    let document = Document::parse(message.to_owned().into()).ok()?;
    let content = document.raw("content")?;
    let all = items(&content)?;
    let foreign = |raw: &&&RawValue| {
        let item = serde_json::from_str::<Item<'_>>(raw.get());
        item.is_ok_and(|item| matches!(item.r#type, Some("thinking" | "redacted_thinking")))
    };
    let kept: Vec<&str> = all.iter().filter(|raw| !foreign(raw)).map(|raw| raw.get()).collect();
    if kept.len() == all.len() {
        return None;
    }
    let mut patch = Patch::default();
    patch.set(&document, "content", &join(kept.into_iter()));
    String::from_utf8(patch.apply(&document).to_bytes().to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn stripped(surface: Surface, text: &str) -> Option<String> {
        let wire = Bytes::copy_from_slice(text.as_bytes());
        let document = Document::parse(wire.clone()).unwrap();
        let payload = strip(surface, &Payload { wire: wire.into(), encoding: None, document })?;
        Some(String::from_utf8(payload.wire.to_bytes().to_vec()).unwrap())
    }

    #[test]
    #[rustfmt::skip]
    fn cuts_only_what_another_account_cannot_read() {
        use Surface::{Chat, Messages, Responses};
        let cases = [
            ("reasoning goes", Responses, r#"{"input":[{"type":"message","x":1.0},{"type":"reasoning","encrypted_content":"e"},{"type":"compaction","encrypted_content":"c"}],"model":"m"}"#,
             Some(r#"{"input":[{"type":"message","x":1.0},{"type":"compaction","encrypted_content":"c"}],"model":"m"}"#)),
            ("readable reasoning stays", Responses, r#"{"input":[{"type":"reasoning","summary":[]}]}"#, None),
            ("text input", Responses, r#"{"input":"hi"}"#, None),
            ("thinking goes", Messages, r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":[{"type":"thinking","signature":"s"},{"type":"text","text":"a"}]}]}"#,
             Some(r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":[{"type":"text","text":"a"}]}]}"#)),
            ("nothing to cut", Messages, r#"{"messages":[{"role":"user","content":"q"}]}"#, None),
            ("chat has none", Chat, r#"{"messages":[]}"#, None),
        ];
        for (name, surface, text, want) in cases {
            assert_eq!(stripped(surface, text).as_deref(), want, "{name}");
        }
    }
}
