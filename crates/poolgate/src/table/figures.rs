//! What stands in a row: the state, and what remains of a window.

use std::time::Duration;

use super::cell::{Cell, Paint};
use super::span::span;
use super::text::clean;
use crate::pool::{AccountView, WindowView};

pub fn state(account: &AccountView, now: i64, with_time: bool) -> Cell {
    let word = clean(&account.state.replace('_', " "));
    let paint = match account.state.as_str() {
        "ready" => Paint::Good,
        "limited" | "capped" | "cooling" | "backoff" | "paused" => Paint::Fair,
        _ => Paint::Bad,
    };
    let mut cell = Cell::of(&word, paint);
    if let Some(until) = account.until.filter(|until| *until > now) {
        let text = if with_time {
            format!(" until {} (in {})", clock(until, now), span(between(now, until), " "))
        } else {
            format!(" {}", span(between(now, until), ""))
        };
        cell.push(&text, Paint::Plain);
    }
    cell
}

/// `14:05 UTC`, with the day if that is another one.
fn clock(at: i64, now: i64) -> String {
    let read = |millis| jiff::Timestamp::from_millisecond(millis).unwrap_or_default();
    let day = |millis| read(millis).strftime("%Y-%m-%d").to_string();
    let format = if day(at) == day(now) { "%H:%M UTC" } else { "%b %d %H:%M UTC" };
    read(at).strftime(format).to_string()
}

fn between(now: i64, later: i64) -> Duration {
    Duration::from_millis(u64::try_from(later.saturating_sub(now)).unwrap_or(0))
}

pub fn heard(account: &AccountView, now: i64) -> String {
    match account.heard_at {
        Some(at) => format!("{} ago", span(between(at, now), " ")),
        None => "never".into(),
    }
}

pub fn reset(window: &WindowView, now: i64, spelled: bool) -> String {
    let Some(at) = window.resets_at.filter(|at| *at > now) else {
        return String::new();
    };
    if spelled { format!("in {}", span(between(now, at), " ")) } else { span(between(now, at), "") }
}

/// `████████░░  81%`. Rounded down: `100%` is untouched. Something left is never an empty bar.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=100")]
pub fn remaining(window: &WindowView, cells: usize) -> Cell {
    let left = (100.0 - window.used_percent).clamp(0.0, 100.0).floor() as usize;
    let paint = match left {
        0..=10 => Paint::Bad,
        11..=30 => Paint::Fair,
        _ => Paint::Good,
    };
    let full = ((left * cells + 50) / 100).max(usize::from(left > 0));
    let mut cell = Cell::of(&"█".repeat(full), paint);
    cell.push(&"░".repeat(cells - full), Paint::Faint);
    cell.push(&format!(" {left:>3}%"), Paint::Plain);
    cell
}
