//! How long an answer may go on: until its request's deadline, as long as its upstream is heard, and
//! says something now and then that is more than a sign of life (reliability §8, §9).

use std::time::Duration;

use tokio::time::Instant;

/// Comments and pings keep a stream alive for so long.
const SIGNS_OF_LIFE: Duration = Duration::from_mins(30);

#[derive(Debug)]
pub struct Span {
    /// Without a byte.
    idle: Duration,
    heard_at: Instant,
    moved_at: Instant,
    deadline: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    /// The upstream says nothing, or nothing of worth.
    Silent,
    /// The request has taken as long as one may.
    Request,
}

impl Span {
    pub fn new(now: Instant, idle: Duration, deadline: Instant) -> Self {
        Self { idle, heard_at: now, moved_at: now, deadline }
    }

    pub fn heard(&mut self, now: Instant) {
        self.heard_at = now;
    }

    /// When to look again. `has_moved`: since the last look there was more than signs of life.
    pub fn look(&mut self, now: Instant, has_moved: bool) -> Result<Instant, Spent> {
        if has_moved {
            self.moved_at = now;
        }
        if self.deadline <= now {
            return Err(Spent::Request);
        }
        let until = (self.heard_at + self.idle).min(self.moved_at + SIGNS_OF_LIFE);
        if until <= now { Err(Spent::Silent) } else { Ok(until.min(self.deadline)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_mins(5);
    const REQUEST: Duration = Duration::from_hours(1);

    /// What comes every minute, and when that ends an answer, in minutes.
    fn ends(comes: bool, moves: bool) -> (u64, Spent) {
        let began = Instant::now();
        let mut span = Span::new(began, IDLE, began + REQUEST);
        for minute in 1.. {
            let now = began + Duration::from_mins(minute);
            if comes {
                span.heard(now);
            }
            match span.look(now, moves) {
                Ok(next) => assert!(next > now && next <= began + REQUEST),
                Err(spent) => return (minute, spent),
            }
        }
        unreachable!("a request ends")
    }

    #[test]
    fn reliability_8_pings_count_for_half_an_hour_and_a_request_lasts_for_one() {
        assert_eq!(ends(false, false), (5, Spent::Silent), "nothing");
        assert_eq!(ends(true, false), (30, Spent::Silent), "comments and pings");
        assert_eq!(ends(true, true), (60, Spent::Request), "events");
    }
}
