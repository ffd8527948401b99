//! What a choice saw and what came of it, as kept with the record of the request.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use poolgate_core::availability::Reason;
use poolgate_core::explain::{Explanation, Verdict};
use poolgate_core::strategy::Strategy;
use poolgate_core::units::{Fraction, Timestamp};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Serialize, Serializer};

/// Accounts kept with a decision; of the others only the number.
const KEPT: usize = 16;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Milliseconds since the Unix epoch, as all times here.
    pub at: i64,
    pub strategy: Cow<'static, str>,
    pub chosen: Option<i64>,
    /// The rule that chose, or why nobody was.
    pub because: Cow<'static, str>,
    /// What chance, or whose turn it was, said: with it the candidates give the same choice again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draw: Option<u64>,
    pub candidates: Vec<Candidate>,
    /// How many more there were, by verdict.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<Cow<'static, str>, u32>,
}

/// Written as a list, since every request has some.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(from = "Row")]
pub struct Candidate {
    pub account: i64,
    /// `ready`, `probe`, `tried`, or the reason why not.
    pub verdict: Cow<'static, str>,
    /// When the reason ends.
    pub until: Option<i64>,
    pub priority: i32,
    /// In millionths: integers are written and read sooner.
    pub score: Option<i64>,
    /// Of the 5-hour and the weekly window: what is left, in parts per million, and seconds to the
    /// reset.
    pub short: Option<(u32, u64)>,
    pub weekly: Option<(u32, u64)>,
    pub in_flight: u32,
    pub errors: u32,
}

type Row = (
    i64,
    Cow<'static, str>,
    Option<i64>,
    i32,
    Option<i64>,
    Option<(u32, u64)>,
    Option<(u32, u64)>,
    u32,
    u32,
);

impl From<Row> for Candidate {
    fn from(row: Row) -> Self {
        let (account, verdict, until, priority, score, short, weekly, in_flight, errors) = row;
        Self { account, verdict, until, priority, score, short, weekly, in_flight, errors }
    }
}

impl Serialize for Candidate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut row = serializer.serialize_tuple(9)?;
        row.serialize_element(&self.account)?;
        row.serialize_element(&self.verdict)?;
        row.serialize_element(&self.until)?;
        row.serialize_element(&self.priority)?;
        row.serialize_element(&self.score)?;
        row.serialize_element(&self.short)?;
        row.serialize_element(&self.weekly)?;
        row.serialize_element(&self.in_flight)?;
        row.serialize_element(&self.errors)?;
        row.end()
    }
}

impl Decision {
    pub fn new(mut explanation: Explanation, strategy: Strategy, now: Timestamp) -> Self {
        let left_out = explanation.keep(KEPT);
        let (chosen, because) = match explanation.chosen {
            Ok(chosen) => (Some(chosen.id.0), chosen.because.name()),
            Err(refusal) => (None, refusal.name()),
        };
        Self {
            at: now.0,
            strategy: strategy.name().into(),
            chosen,
            because: because.into(),
            draw: explanation.draw,
            candidates: explanation.verdicts.iter().map(Candidate::from).collect(),
            left_out: left_out.into_iter().map(|(word, count)| (word.into(), count)).collect(),
        }
    }
}

impl From<&Verdict> for Candidate {
    fn from(verdict: &Verdict) -> Self {
        let window = |part: Option<(Fraction, Duration)>| {
            part.map(|(left, until_reset)| (left.ppm(), until_reset.as_secs()))
        };
        Self {
            account: verdict.id.0,
            verdict: verdict.name().into(),
            until: verdict.fit.err().and_then(Reason::until).map(|at| at.0),
            priority: verdict.priority,
            score: verdict.score.map(millionths),
            short: window(verdict.parts.short),
            weekly: window(verdict.parts.weekly),
            in_flight: verdict.parts.in_flight,
            errors: verdict.parts.errors,
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a score that large is the largest there is")]
fn millionths(score: f64) -> i64 {
    (score * 1e6).round() as i64
}
