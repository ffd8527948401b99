//! Reading a request body without building a tree, and changing it without re-serialising it.
//!
//! [`Document`] knows where each top-level member of an object stands. Fields are read from those
//! ranges, and a rule that must change one splices the bytes; everything else reaches the upstream
//! as the client wrote it, which keeps signatures, number formats and prompt caches intact.
//!
//! A repeated top-level key is refused: two readers of such a body could see different requests.

mod plain;
mod scan;
mod text;

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

pub use scan::Scan;
use scan::Span;
pub use text::{Text, TextBody};

/// Deeper nesting is refused; no client comes near, and recursive readers upstream would suffer.
pub const MAX_DEPTH: usize = 128;
/// More members of the outermost object are refused: clients send some twenty, and each name is compared
/// with all before it.
pub const MAX_MEMBERS: usize = 1024;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Invalid {
    #[error("the request body is empty")]
    Empty,
    #[error("the request body is not valid UTF-8")]
    NotUtf8,
    #[error("the request body is not valid JSON: {0}")]
    Syntax(String),
    #[error("the request body is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    #[error("the request body must be a JSON object")]
    NotAnObject,
    #[error("the request body has more than {MAX_MEMBERS} fields")]
    TooManyFields,
    #[error("the field `{0}` occurs more than once")]
    Repeated(String),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the field `{field}` must be {wanted}")]
pub struct WrongType {
    pub field: &'static str,
    pub wanted: &'static str,
}

/// Text of one JSON object, and where its members stand in it.
#[derive(Clone, Debug)]
pub struct Document {
    text: Text,
    members: Vec<Span>,
    /// Names that cannot be compared where they stand, by the index of their members: written with escapes, or
    /// in a text of several pieces.
    kept: Vec<(usize, String)>,
}

impl Document {
    /// Checks the whole text: UTF-8, depth, syntax, and that it is one object without repeated keys.
    pub fn parse(text: Bytes) -> Result<Self, Invalid> {
        let mut scan = Scan::default();
        scan.feed(&text)?;
        Self::scanned(text.into(), scan)
    }

    /// From a text that `scan` has been fed piece by piece.
    pub fn scanned(text: Text, scan: Scan) -> Result<Self, Invalid> {
        let members = scan.finish()?;
        let is_whole = text.parts().len() == 1;
        let mut names: Vec<Cow<'_, str>> = Vec::with_capacity(members.len());
        for member in &members {
            let name = match text.slice(member.key.clone()) {
                Cow::Borrowed(key) if is_whole => name(key),
                key => Cow::Owned(name(&key).into_owned()),
            };
            if names.contains(&name) {
                return Err(Invalid::Repeated(name.chars().take(64).collect()));
            }
            names.push(name);
        }
        let kept = |(index, name)| match name {
            Cow::Owned(name) => Some((index, name)),
            Cow::Borrowed(_) => None,
        };
        let kept = names.into_iter().enumerate().filter_map(kept).collect();
        Ok(Self { text, members, kept })
    }

    fn find(&self, name: &str) -> Option<usize> {
        (0..self.members.len()).find(|index| self.is_named(*index, name))
    }

    fn is_named(&self, index: usize, name: &str) -> bool {
        if let Ok(at) = self.kept.binary_search_by_key(&index, |(at, _)| *at) {
            return self.kept[at].1 == name;
        }
        let Range { start, end } = self.members[index].key;
        end - start == name.len() + 2 && *self.text.slice(start + 1..end - 1) == *name.as_bytes()
    }

    fn value(&self, name: &str) -> Option<Range<usize>> {
        Some(self.members[self.find(name)?].value.clone())
    }

    pub fn text(&self) -> &Text {
        &self.text
    }

    /// The member's value as written; `None` when absent.
    pub fn raw(&self, name: &str) -> Option<Cow<'_, str>> {
        match self.text.slice(self.value(name)?) {
            Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
            Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
        }
    }

    /// The last bytes of the member's value, at most `most` of them; nothing when absent.
    pub fn tail(&self, name: &str, most: usize) -> Cow<'_, [u8]> {
        let range = self.value(name).unwrap_or_default();
        self.text.slice(range.end.saturating_sub(most).max(range.start)..range.end)
    }

    /// Whether the member is there and its value begins with `byte`.
    pub fn begins_with(&self, name: &str, byte: u8) -> bool {
        let value = self.value(name);
        value.is_some_and(|at| *self.text.slice(at.start..at.start + 1) == [byte])
    }

    /// A text field. Absent and `null` are `None`.
    pub fn string(&self, field: &'static str) -> Result<Option<Cow<'_, str>>, WrongType> {
        let Some(raw) = self.raw(field).filter(|raw| raw != "null") else { return Ok(None) };
        // Escapes need a copy, and so does a value that lies in two pieces.
        if let Cow::Borrowed(raw) = raw
            && let Some(plain) = plain_text(raw.as_bytes())
        {
            return Ok(Some(Cow::Borrowed(plain)));
        }
        serde_json::from_str::<String>(&raw)
            .map(|text| Some(Cow::Owned(text)))
            .map_err(|_| WrongType { field, wanted: "a string" })
    }

    /// A yes-or-no field. Absent and `null` are `None`.
    pub fn boolean(&self, field: &'static str) -> Result<Option<bool>, WrongType> {
        match self.raw(field).as_deref() {
            None | Some("null") => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => Err(WrongType { field, wanted: "true or false" }),
        }
    }

    /// An object field, itself ready to be read and patched, by the rules of the outermost. `None` if absent
    /// or anything else.
    pub fn object(&self, field: &str) -> Result<Option<Self>, Invalid> {
        match self.raw(field).filter(|raw| raw.starts_with('{')) {
            Some(raw) => Self::parse(Bytes::copy_from_slice(raw.as_bytes())).map(Some),
            None => Ok(None),
        }
    }
}

const JOINED_BELOW: usize = 16 << 10;

/// Changes to a document, applied in one pass.
#[derive(Debug, Default)]
pub struct Patch {
    /// By index of the member; `None` cuts it out.
    changes: Vec<(usize, Option<String>)>,
    inserts: Vec<String>,
}

impl Patch {
    /// Sets `name` to `value`, a piece of JSON. A value already written so is left alone.
    pub fn set(&mut self, document: &Document, name: &str, value: &str) {
        match document.find(name) {
            Some(_) if document.raw(name).as_deref() == Some(value) => {}
            Some(index) => self.changes.push((index, Some(value.to_owned()))),
            None => self.inserts.push(format!("{}:{value}", quote(name))),
        }
    }

    /// Cuts `name` out, with a comma that belonged to it.
    pub fn remove(&mut self, document: &Document, name: &str) {
        if let Some(index) = document.find(name) {
            self.changes.push((index, None));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.inserts.is_empty()
    }

    /// The document's text with all changes made; the very same pieces when there are none.
    pub fn apply(&self, document: &Document) -> Text {
        if self.is_empty() {
            return document.text.clone();
        }
        let (text, members) = (&document.text, &document.members);
        let open = Self::open(document);
        let mut out = Text::default();
        out.append(text, 0..open);
        let put = |out: &mut Text, new: &str| out.push(Bytes::copy_from_slice(new.as_bytes()));
        put(&mut out, &self.inserts.join(","));
        let mut bare = self.inserts.is_empty();
        for (index, member) in members.iter().enumerate() {
            let change = self.changes.iter().find(|(at, _)| *at == index).map(|(_, new)| new);
            if matches!(change, Some(None)) {
                continue;
            }
            // What stood before this member: space, and a comma unless it was the first.
            let before = match index.checked_sub(1) {
                Some(previous) => members[previous].value.end..member.key.start,
                None => open..member.key.start,
            };
            match (std::mem::take(&mut bare), index) {
                (true, _) => out.append(text, open..members[0].key.start),
                (false, 0) => {
                    put(&mut out, ",");
                    out.append(text, before);
                }
                (false, _) => out.append(text, before),
            }
            match change {
                Some(Some(new)) => {
                    out.append(text, member.key.start..member.value.start);
                    put(&mut out, new);
                }
                _ => out.append(text, member.key.start..member.value.end),
            }
        }
        out.append(text, members.last().map_or(open, |m| m.value.end)..text.len());
        // A short one is cheaper in one piece.
        if out.len() < JOINED_BELOW { out.to_bytes().into() } else { out }
    }

    /// Position right after the opening brace.
    fn open(document: &Document) -> usize {
        let first = document.members.first().map_or(document.text.len(), |m| m.key.start);
        let head = document.text.slice(0..first);
        memchr::memchr(b'{', &head).expect("a document is an object") + 1
    }
}

/// `text` as a JSON string.
pub fn quote(text: &str) -> String {
    serde_json::to_string(text).expect("a string is always JSON")
}

/// A key without its quotes and escapes.
fn name(quoted: &[u8]) -> Cow<'_, str> {
    if let Some(plain) = plain_text(quoted) {
        return Cow::Borrowed(plain);
    }
    // A lone surrogate is JSON and no string: such a key matches nothing of ours.
    let read = serde_json::from_slice(quoted);
    Cow::Owned(read.unwrap_or_else(|_| String::from_utf8_lossy(quoted).into_owned()))
}

/// What a JSON value says that is a string without escapes.
fn plain_text(value: &[u8]) -> Option<&str> {
    let inside = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if memchr::memchr(b'\\', inside).is_some() {
        return None;
    }
    std::str::from_utf8(inside).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Document, Invalid> {
        Document::parse(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn reads_fields_where_they_stand() {
        let document = parse(
            r#" {"a\"b": 1, "model" : "gpt-5.5","stream":true , "t":[{"x":"}"}], "e":"\u00e9", "n":null}"#,
        )
        .unwrap();
        assert_eq!(document.string("model").unwrap().as_deref(), Some("gpt-5.5"));
        assert_eq!(document.string("e").unwrap().as_deref(), Some("é"));
        assert_eq!(document.string("n"), Ok(None));
        assert_eq!(document.boolean("stream"), Ok(Some(true)));
        assert_eq!(document.raw("t").as_deref(), Some(r#"[{"x":"}"}]"#));
        assert_eq!(document.raw("a\"b").as_deref(), Some("1"));
        let backspace = parse(r#"{"a\b":1,"a\\b":2}"#).unwrap();
        assert_eq!(backspace.raw("a\\b").as_deref(), Some("2"));
        assert_eq!(document.string("absent"), Ok(None));
        assert!(document.string("stream").is_err());
        assert!(document.boolean("model").is_err());
    }

    #[test]
    fn refuses() {
        let object = |fields| {
            let fields: Vec<String> = (0..fields).map(|n| format!("\"{n}\":0")).collect();
            format!("{{{}}}", fields.join(","))
        };
        assert!(parse(&object(MAX_MEMBERS)).is_ok());
        assert!(
            parse(r#"{"\ud800":1,"\\ud800":2}"#).is_ok(),
            "one is half a character, one is text"
        );
        let deep = "[".repeat(10_000) + &"]".repeat(10_000);
        let cases = [
            ("nothing", String::new(), Invalid::Empty),
            ("space", "  \n".into(), Invalid::Empty),
            ("list", "[1]".into(), Invalid::NotAnObject),
            ("many", object(MAX_MEMBERS + 1), Invalid::TooManyFields),
            ("very many", object(1 << 20), Invalid::TooManyFields),
            ("too deep", format!("{{\"a\":{deep}}}"), Invalid::TooDeep),
            ("unclosed and deep", "[".repeat(10_000), Invalid::TooDeep),
            ("twice", r#"{"model":"a","model":"b"}"#.into(), Invalid::Repeated("model".into())),
            (
                "twice, in disguise",
                r#"{"model":"a","mod\u0065l":"b"}"#.into(),
                Invalid::Repeated("model".into()),
            ),
            (
                "twice, in disguise first",
                r#"{"mod\u0065l":"a","model":"b"}"#.into(),
                Invalid::Repeated("model".into()),
            ),
            (
                "half a character twice",
                r#"{"\ud800":"a","\ud800":"b"}"#.into(),
                Invalid::Repeated("\"\\ud800\"".into()),
            ),
            (
                "twice in two disguises",
                r#"{"\u006dodel":"a","mod\u0065l":"b"}"#.into(),
                Invalid::Repeated("model".into()),
            ),
        ];
        for (name, text, want) in cases {
            assert_eq!(parse(&text).err(), Some(want), "{name}");
        }
        for text in ["{", "{\"a\":}", "{\"a\":1}x", "nul", "{\"a\":\"", "{'a':1}", "{\"a\":1,}"] {
            assert!(matches!(parse(text), Err(Invalid::Syntax(_))), "{text}");
        }
        let bytes = Bytes::from_static(b"{\"a\":\"\xff\"}");
        assert_eq!(Document::parse(bytes).err(), Some(Invalid::NotUtf8));
    }

    #[test]
    #[rustfmt::skip]
    fn patches() {
        type Edit = fn(&mut Patch, &Document);
        let cases: [(&str, &str, Edit, &str); 11] = [
            ("replace",         r#"{"a":1,"stream":false}"#, |p, d| p.set(d, "stream", "true"), r#"{"a":1,"stream":true}"#),
            ("the same",        r#"{"stream":true }"#,       |p, d| p.set(d, "stream", "true"), r#"{"stream":true }"#),
            ("insert",          r#"{ "a":1}"#,               |p, d| p.set(d, "b", "2"),         r#"{"b":2, "a":1}"#),
            ("insert alone",    "{ }",                    |p, d| p.set(d, "b", "2"),         r#"{"b":2 }"#),
            ("insert twice",    r#"{"a":1}"#,                |p, d| { p.set(d, "b", "2"); p.set(d, "c", "3"); }, r#"{"b":2,"c":3,"a":1}"#),
            ("cut the first",   r#"{"a":1, "b":2}"#,         |p, d| p.remove(d, "a"),           r#"{"b":2}"#),
            ("cut the last",    r#"{"a":1, "b":2 }"#,        |p, d| p.remove(d, "b"),           r#"{"a":1 }"#),
            ("cut the only",    r#"{"a":1}"#,                |p, d| p.remove(d, "a"),           "{}"),
            ("cut neighbours",  r#"{"a":1,"b":2,"c":3}"#,    |p, d| { p.remove(d, "b"); p.remove(d, "c"); }, r#"{"a":1}"#),
            ("cut all, insert", r#"{"a":1}"#,                |p, d| { p.remove(d, "a"); p.set(d, "z", "0"); }, r#"{"z":0}"#),
            ("cut the absent",  r#"{"a":1}"#,                |p, d| p.remove(d, "x"),           r#"{"a":1}"#),
        ];
        for (name, text, edit, want) in cases {
            let document = parse(text).unwrap();
            let mut patch = Patch::default();
            edit(&mut patch, &document);
            assert_eq!(std::str::from_utf8(&patch.apply(&document).to_bytes()).unwrap(), want, "{name}");
        }
    }

    fn value() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            ".{0,12}".prop_map(Into::into),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::btree_map("[a-e\"\\\\]{1,2}", inner, 0..4)
                    .prop_map(|m| serde_json::Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_patched_document_is_what_a_tree_would_give(
            fields in prop::collection::btree_map("[a-f]", value(), 0..6),
            set in prop::collection::btree_map("[a-h]", value(), 0..3),
            cut in prop::collection::btree_set("[i-k]|[a-f]", 0..4),
            pretty in any::<bool>(),
        ) {
            let tree: serde_json::Map<_, _> = fields.into_iter().collect();
            let text = if pretty {
                serde_json::to_string_pretty(&tree).unwrap()
            } else {
                serde_json::to_string(&tree).unwrap()
            };
            let document = parse(&text).unwrap();
            let (mut patch, mut want) = (Patch::default(), tree);
            for (name, value) in &set {
                patch.set(&document, name, &value.to_string());
                want.insert(name.clone(), value.clone());
            }
            for name in cut.iter().filter(|name| !set.contains_key(*name)) {
                patch.remove(&document, name);
                want.remove(name);
            }
            let got: serde_json::Value = serde_json::from_slice(&patch.apply(&document).to_bytes()).unwrap();
            prop_assert_eq!(got, serde_json::Value::Object(want));
        }
    }
}
