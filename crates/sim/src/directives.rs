//! What the last user text asks the simulator to do, and the text and token counts that follow.
//!
//! The answer is `You said: <last user text>`, the directives included. A text may hold:
//!
//! | directive | effect |
//! |---|---|
//! | `[[events=20]]` | number of text deltas (4); a shorter answer is filled up with dots |
//! | `[[gap_ms=5]]` | pause after each event (none) |
//! | `[[text_gap_ms=5]]` | pause after each that carries content, the opening and the end coming at once (none) |
//! | `[[bytes=1000]]` | exact size of the answer text, cut or filled up with dots |
//! | `[[first_ms=100]]` | delay before the response head |
//! | `[[say=some words]]` | answer exactly these words (then at most one delta per character) |
//! | `[[reason]]` | a reasoning item with `encrypted_content` first (Responses API only) |
//! | `[[metadata]]` `[[metadata=late]]` | both events that tell headers of the answer: before all others, or behind the text (Responses API only) |
//! | `[[steps=3]]` | so many calls of Codex's shell tool that print the words, one after the other; then says what the last one printed (Responses API only) |
//! | `[[input_tokens=5]]` `[[output_tokens=5]]` `[[cached_tokens=5]]` | the usage to report |
//!
//! Usage: input tokens are 8 plus a quarter of the bytes of the last user text, output tokens are
//! 1 plus a quarter of the bytes of the answer text, both rounded down; cached tokens are 0.
//! `OpenAI` counts cached tokens within its input tokens, Anthropic beside them.

use std::time::Duration;

use memchr::memmem;

use crate::answer::Gap;

/// Deltas of an answer that asked for nothing else.
const DELTAS: usize = 4;
/// More would only be a way to exhaust memory.
const TEXT_MAX_BYTES: usize = 64 << 20;

/// How to answer one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pub text: String,
    /// Text deltas wanted; [`Shape::deltas`] never gives more than there are characters.
    pub events: usize,
    pub gap: Gap,
    pub first: Duration,
    pub reason: bool,
    /// `None`: nowhere.
    pub metadata: Option<Metadata>,
    /// Stands in place of the text.
    pub call: Option<Call>,
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cached_tokens: u64,
}

/// Where the events that tell headers stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metadata {
    First,
    Late,
}

/// One of several tool calls in a row. Its id says which, so that whoever goes on from it, on
/// whatever account, needs to remember nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub number: usize,
    pub of: usize,
}

impl Call {
    pub fn id(self) -> String {
        format!("call_{}_of_{}", self.number, self.of)
    }

    fn read(id: &str) -> Option<Self> {
        let (number, of) = id.strip_prefix("call_")?.split_once("_of_")?;
        Some(Self { number: number.parse().ok()?, of: of.parse().ok()? })
    }

    fn next(self) -> Option<Self> {
        (self.number < self.of).then_some(Self { number: self.number + 1, ..self })
    }
}

/// In front of what a command printed, in the output of Codex's shell tool (fixture
/// `codex-chatgpt-tool-turn-ws`).
const PRINTED: &str = "Output:\n";

#[derive(Default)]
struct Wishes<'a> {
    events: Option<usize>,
    bytes: Option<usize>,
    gap: Gap,
    first_ms: u64,
    say: Option<&'a str>,
    reason: bool,
    metadata: Option<Metadata>,
    steps: usize,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cached_tokens: u64,
}

impl<'a> Wishes<'a> {
    fn read(user_text: &'a str) -> Self {
        let mut wishes = Self::default();
        let mut rest = user_text;
        while let Some(start) = memmem::find(rest.as_bytes(), b"[[") {
            rest = &rest[start + 2..];
            let Some(end) = memmem::find(rest.as_bytes(), b"]]") else {
                break;
            };
            wishes.note(&rest[..end]);
            rest = &rest[end + 2..];
        }
        wishes
    }

    /// An unknown or malformed directive is only text.
    fn note(&mut self, directive: &'a str) {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        match name {
            "events" => self.events = value.parse().ok(),
            "bytes" => self.bytes = value.parse().ok(),
            "gap_ms" => self.gap.event = millis(value),
            "text_gap_ms" => self.gap.text = millis(value),
            "first_ms" => self.first_ms = value.parse().unwrap_or(0),
            "say" => self.say = Some(value),
            "reason" => self.reason = true,
            "metadata" => {
                let is_late = value == "late";
                self.metadata = Some(if is_late { Metadata::Late } else { Metadata::First });
            }
            "steps" => self.steps = value.parse().unwrap_or(0),
            "input_tokens" => self.input_tokens = value.parse().ok(),
            "output_tokens" => self.output_tokens = value.parse().ok(),
            "cached_tokens" => self.cached_tokens = value.parse().unwrap_or(0),
            _ => {}
        }
    }

    fn text(&self, user_text: &str) -> String {
        let mut text = match self.say {
            Some(words) => words.to_owned(),
            None => ["You said: ", user_text].concat(),
        };
        if let Some(bytes) = self.bytes {
            resize(&mut text, bytes.min(TEXT_MAX_BYTES));
        } else if let (None, Some(events)) = (self.say, self.events) {
            let missing = events.min(TEXT_MAX_BYTES).saturating_sub(text.chars().count());
            fill(&mut text, missing);
        }
        text
    }
}

impl Shape {
    pub fn of(user_text: &str) -> Self {
        let wishes = Wishes::read(user_text);
        let text = wishes.text(user_text);
        Self {
            events: wishes.events.unwrap_or(DELTAS),
            gap: wishes.gap,
            first: Duration::from_millis(wishes.first_ms),
            reason: wishes.reason,
            metadata: wishes.metadata,
            call: (wishes.steps > 0).then_some(Call { number: 1, of: wishes.steps }),
            input_tokens: wishes.input_tokens.unwrap_or(8 + user_text.len() as u64 / 4),
            output_tokens: wishes.output_tokens.unwrap_or(1 + text.len() as u64 / 4),
            cached_tokens: wishes.cached_tokens,
            text,
        }
    }

    /// After the output of a tool call; `None`: it is not one of ours.
    pub fn after(call: &str, output: &str) -> Option<Self> {
        let call = Call::read(call)?;
        let printed = output.rsplit(PRINTED).next().unwrap_or_default().trim();
        let words = format!("[[say={printed}]]");
        Some(Self { call: call.next(), ..Self::of(&words) })
    }

    /// The text in about equal parts, none of them empty.
    pub fn deltas(&self) -> impl Iterator<Item = &str> {
        let starts: Option<Vec<usize>> =
            (!self.text.is_ascii()).then(|| self.text.char_indices().map(|(at, _)| at).collect());
        let characters = starts.as_ref().map_or(self.text.len(), Vec::len);
        let parts = self.events.min(characters);
        let place = move |part: usize| {
            let character = part * characters / parts;
            let starts = starts.as_ref();
            starts.map_or(character, |s| s.get(character).copied().unwrap_or(self.text.len()))
        };
        (0..parts).map(move |part| &self.text[place(part)..place(part + 1)])
    }
}

fn millis(value: &str) -> Duration {
    Duration::from_millis(value.parse().unwrap_or(0))
}

fn resize(text: &mut String, bytes: usize) {
    if text.len() > bytes {
        text.truncate(text.floor_char_boundary(bytes));
    }
    let missing = bytes - text.len();
    fill(text, missing);
}

/// Piece by piece: dot by dot was a twelfth of all work for a small request.
fn fill(text: &mut String, mut missing: usize) {
    const DOTS: &str = "................................................................";
    text.reserve(missing);
    while missing > 0 {
        let piece = missing.min(DOTS.len());
        text.push_str(&DOTS[..piece]);
        missing -= piece;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn text_and_deltas() {
        let cases = [
            ("hi",                       "You said: hi",                        4),
            ("hi [[events=2]]",          "You said: hi [[events=2]]",           2),
            ("[[say=ok]]",               "ok",                                  2),
            ("[[say=hello]][[events=3]]", "hello",                              3),
            ("[[bytes=12]]",             "You said: [[",                        4),
            ("ä[[bytes=11]]",            "You said: .",                         4),
            ("[[say=ä€ü]]",              "ä€ü",                                 3),
            ("[[events=26]] ",           "You said: [[events=26]] ..",         26),
            ("[[events=",                "You said: [[events=",                 4),
            ("[[say=]]",                 "",                                    0),
        ];
        for (user_text, text, deltas) in cases {
            let shape = Shape::of(user_text);
            assert_eq!(shape.text, text, "{user_text}");
            assert_eq!(shape.deltas().count(), deltas, "{user_text}");
            assert_eq!(shape.deltas().collect::<String>(), text, "{user_text}");
            assert!(shape.deltas().all(|delta| !delta.is_empty()), "{user_text}");
        }
    }

    #[test]
    fn usage_follows_the_rule_or_the_wish() {
        let shape = Shape::of("four");
        assert_eq!((shape.input_tokens, shape.output_tokens, shape.cached_tokens), (9, 4, 0));
        let shape = Shape::of("[[input_tokens=7]][[output_tokens=9]][[cached_tokens=3]]");
        assert_eq!((shape.input_tokens, shape.output_tokens, shape.cached_tokens), (7, 9, 3));
    }

    #[test]
    fn tool_calls_follow_one_another() {
        let first = Shape::of("do it [[steps=2]][[say=some words]]");
        assert_eq!(first.call.unwrap().id(), "call_1_of_2");
        let output = "Chunk ID: 1\nProcess exited with code 0\nOutput:\nsome words\n";
        let second = Shape::after("call_1_of_2", output).unwrap();
        assert_eq!(
            (second.call.unwrap().id(), &*second.text),
            ("call_2_of_2".into(), "some words")
        );
        let last = Shape::after("call_2_of_2", "some words\n").unwrap();
        assert_eq!((last.call, &*last.text), (None, "some words"));
        assert_eq!(Shape::after("call_1", "x"), None);
    }
}
