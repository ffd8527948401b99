//! A request's body: read as `serde_json` reads it, however it arrives, and changed only where a rule
//! changes it.

use std::fmt;

use bytes::Bytes;
use http::HeaderMap;
use poolgate::gateway::steps::{Payload, peek, strip, turn_field};
use poolgate::json::{Document, Invalid, MAX_DEPTH, MAX_MEMBERS, Patch, Scan, Text};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::input::{SURFACES, pieces};

pub fn run(input: &[u8]) {
    let Some((body, pieces)) = pieces(input) else { return };
    let whole = Document::parse(Bytes::copy_from_slice(body));
    let arrived = arrive(&pieces);
    match (&whole, &arrived) {
        (Ok(one), Ok(other)) => assert_eq!(members(one), members(other), "as it arrived"),
        // Which of two mistakes is met first may depend on where it was cut.
        (Err(one), Err(other)) => {
            let same = std::mem::discriminant(one) == std::mem::discriminant(other);
            assert!(same || std::str::from_utf8(body).is_err(), "{one:?}, but {other:?}");
        }
        (one, other) => {
            panic!("{:?}, but as it arrived {:?}", one.as_ref().err(), other.as_ref().err())
        }
    }
    let read = std::str::from_utf8(body)
        .ok()
        .and_then(|text| serde_json::from_str::<&RawValue>(text).ok());
    match whole {
        Ok(document) => {
            assert!(read.is_some(), "taken, and no JSON");
            fields_are_the_same(body, &document);
            for document in [&document, &arrived.unwrap()] {
                patches(document);
                understand(document);
            }
        }
        Err(Invalid::TooDeep) => assert!(depth(body) > MAX_DEPTH, "not that deep"),
        Err(Invalid::TooManyFields) => {
            assert!(body.split(|byte| *byte == b':').count() > MAX_MEMBERS, "not that many");
        }
        Err(Invalid::Repeated(_)) => assert!(read.is_some(), "repeated, and no JSON"),
        Err(Invalid::NotAnObject) => {
            assert!(read.is_some_and(|read| !read.get().starts_with('{')), "no object");
        }
        Err(wrong) => assert!(read.is_none(), "{wrong}, but it is JSON"),
    }
}

fn arrive(pieces: &[&[u8]]) -> Result<Document, Invalid> {
    let (mut scan, mut text) = (Scan::default(), Text::default());
    for piece in pieces {
        scan.feed(piece)?;
        text.push(Bytes::copy_from_slice(piece));
    }
    Document::scanned(text, scan)
}

/// More brackets than are ever open at once, unless some stand in text.
fn depth(body: &[u8]) -> usize {
    body.iter().filter(|byte| matches!(byte, b'{' | b'[')).count()
}

/// Every member with its text as written, in order; as serde reads them.
#[derive(Debug, PartialEq)]
struct Members(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Members;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut pairs = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                    pairs.push((name, value.get().to_owned()));
                }
                Ok(Members(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// `None`: a name in it is half a character, which JSON allows and no text of ours can be.
fn members(document: &Document) -> Option<Members> {
    serde_json::from_slice(&document.text().to_bytes()).ok()
}

fn fields_are_the_same(body: &[u8], document: &Document) {
    let Some(Members(members)) = members(document) else {
        assert!(
            memchr::memmem::find(&body.to_ascii_lowercase(), b"\\ud").is_some(),
            "unread names"
        );
        return;
    };
    for (name, value) in &members {
        assert_eq!(document.raw(name).as_deref(), Some(value.as_str()), "the field {name:?}");
        assert!(document.begins_with(name, value.as_bytes()[0]));
        let object = matches!(document.object(name), Ok(Some(_)));
        assert!(!object || value.starts_with('{'), "{value} is an object");
    }
    for name in ["model", "stream", "store"] {
        let written = members.iter().find(|member| member.0 == name).map(|member| &*member.1);
        let text = written.and_then(|value| serde_json::from_str::<Option<String>>(value).ok());
        assert_eq!(
            document.string(name).ok().map(|text| text.map(Into::into)),
            text.or(written.is_none().then_some(None))
        );
        let truth = written.map_or(Some(None), |value| serde_json::from_str(value).ok());
        assert_eq!(document.boolean(name).ok(), truth, "{written:?}");
    }
}

/// Each of the first members is exchanged and cut in turn, and one is added.
fn patches(document: &Document) {
    let Some(Members(members)) = members(document) else { return };
    let names: Vec<&String> = members.iter().map(|(name, _)| name).take(4).collect();
    let new = "{\"new\": [1]}";
    let mut cases: Vec<(Vec<&str>, Vec<&str>)> = vec![(vec!["\u{1}fresh\""], vec![])];
    for (n, name) in names.iter().enumerate() {
        cases.push((vec![name], vec![]));
        cases.push((vec!["fresh"], vec![name]));
        cases.push((names[..n].iter().map(|n| n.as_str()).collect(), vec![name]));
        cases.push((vec![], names[..=n].iter().map(|n| n.as_str()).collect()));
    }
    for (set, cut) in cases {
        if members.iter().any(|(name, _)| name.ends_with("fresh") || name.ends_with("fresh\"")) {
            return;
        }
        let mut patch = Patch::default();
        for name in &set {
            patch.set(document, name, new);
        }
        for name in &cut {
            patch.remove(document, name);
        }
        let patched = patch.apply(document).to_bytes();
        let Members(got) = serde_json::from_slice(&patched).expect("a patched document is JSON");
        let added = set.iter().filter(|name| !members.iter().any(|member| member.0 == **name));
        let added = added.map(|name| ((*name).to_owned(), new.to_owned()));
        let kept = members.iter().filter(|(name, _)| !cut.contains(&name.as_str()));
        let kept = kept.map(|(name, value)| {
            let value = if set.contains(&name.as_str()) { new } else { value };
            (name.clone(), value.to_owned())
        });
        assert_eq!(got, added.chain(kept).collect::<Vec<_>>(), "set {set:?}, cut {cut:?}");
        Document::parse(patched).expect("a patched document is one of ours");
    }
}

/// What is read of it before it is sent on, and what is cut out after a move.
fn understand(document: &Document) {
    let headers = HeaderMap::new();
    let payload =
        Payload { wire: document.text().clone(), encoding: None, document: document.clone() };
    let _ = turn_field(document, 7);
    for surface in SURFACES {
        if let Ok(head) = peek(surface, &headers, document, 7) {
            assert!(!head.model.trim().is_empty(), "a model has a name");
        }
        if let Some(stripped) = strip(surface, &payload) {
            let (before, after) = (payload.wire.len(), stripped.wire.len());
            assert!(after <= before, "stripped of {before} bytes to {after}");
        }
    }
}
