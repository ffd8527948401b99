//! The hand-written part of reading a body: values which may be a string, a list or absent, of
//! which only a summary is kept.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, SeqAccess, Visitor};

use super::{Item, Text};

/// Whether a field was there, whatever its value.
#[derive(Debug, Default)]
pub struct Present(pub bool);

/// The last text of a content: a plain string or a list of parts.
#[derive(Debug, Default)]
pub struct Content<'a>(pub Option<Text<'a>>);

/// What matters of a list of input items or messages.
#[derive(Debug, Default)]
pub struct Items<'a> {
    pub user_text: Option<Text<'a>>,
    pub ends_in_trigger: bool,
    pub sealed: Vec<Text<'a>>,
    pub tool_output: Option<(Text<'a>, Text<'a>)>,
}

#[derive(serde::Deserialize)]
struct Part<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<Text<'a>>,
    #[serde(borrow, default)]
    text: Option<Text<'a>>,
}

impl<'de> Deserialize<'de> for Present {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self(true))
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a list of parts or null")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Content<'de>, E> {
        Ok(Content(Some(Text(Cow::Borrowed(text)))))
    }

    fn visit_str<E>(self, text: &str) -> Result<Content<'de>, E> {
        Ok(Content(Some(Text(Cow::Owned(text.to_owned())))))
    }

    fn visit_unit<E>(self) -> Result<Content<'de>, E> {
        Ok(Content(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Content<'de>, A::Error> {
        let mut last = None;
        while let Some(part) = parts.next_element::<Part<'de>>()? {
            let kind = part.kind.as_ref().map_or("text", |kind| &kind.0);
            if matches!(kind, "text" | "input_text") && part.text.is_some() {
                last = part.text;
            }
        }
        Ok(Content(last))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Content<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ItemsVisitor;

impl<'de> Visitor<'de> for ItemsVisitor {
    type Value = Items<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a list of items or null")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Items<'de>, E> {
        Ok(Items { user_text: Some(Text(Cow::Borrowed(text))), ..Items::default() })
    }

    fn visit_str<E>(self, text: &str) -> Result<Items<'de>, E> {
        Ok(Items { user_text: Some(Text(Cow::Owned(text.to_owned()))), ..Items::default() })
    }

    fn visit_unit<E>(self) -> Result<Items<'de>, E> {
        Ok(Items::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Items<'de>, A::Error> {
        let mut items = Items::default();
        while let Some(item) = list.next_element::<Item<'de>>()? {
            items.note(item);
        }
        Ok(items)
    }
}

impl<'a> Items<'a> {
    fn note(&mut self, item: Item<'a>) {
        let kind = item.kind.as_ref().map_or("message", |kind| &kind.0);
        self.ends_in_trigger = kind == "compaction_trigger";
        if let ("reasoning" | "compaction" | "compaction_summary", Some(content)) =
            (kind, item.encrypted_content)
        {
            self.sealed.push(content);
        }
        if let ("function_call_output", Some(call), Some(output)) =
            (kind, item.call_id, item.output.0)
        {
            self.tool_output = Some((call, output));
        }
        if item.role.is_some_and(|role| role.0 == "user") && item.content.0.is_some() {
            self.user_text = item.content.0;
            self.tool_output = None;
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Items<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemsVisitor)
    }
}
