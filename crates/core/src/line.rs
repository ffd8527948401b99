//! The order of requests that wait for an account: the line.
//!
//! Client keys take turns, and the requests of one key are served as they came. Whenever an account
//! may have become able to serve, a *round of calls* goes through the line from its head: each one
//! called looks whether it can have an account now, so that nobody is overtaken by a request that
//! wants the same. Requests that want the same fail together: one is called for all of them.
//!
//! A round goes to its end, past all who waited when it began; what is freed and who joins meanwhile
//! is for the next one. So every round ends, and those at the tail have their turn however often
//! something is freed.

use std::collections::BTreeMap;

/// Requests that may wait at the same time.
pub const PLACES: usize = 64;

/// Where a request stands; lower is called earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// How often its key has its turn before, counted since the line was made.
    turn: u64,
    arrival: u64,
}

/// Who waits, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The client key.
    pub key: i64,
    /// Requests with the same wants can be served by the same accounts.
    pub wants: u64,
    /// It is called even if others that want the same were called in vain.
    pub is_due: bool,
}

#[derive(Debug, Default)]
pub struct Line {
    waiting: BTreeMap<Place, Waiting>,
    arrivals: u64,
    /// The latest in which a request was served.
    turn: u64,
    calls: Calls,
}

#[derive(Debug, Default)]
enum Calls {
    #[default]
    None,
    Round {
        called: Place,
        /// Wants that nobody can serve, as far as this round knows.
        in_vain: Vec<u64>,
        /// Who arrived from here on came after the round had begun.
        newest: u64,
        /// Something was freed meanwhile.
        again: bool,
    },
}

/// What joining came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    At(Place),
    /// The same, in the place of the last of a key that has more requests waiting.
    Instead {
        at: Place,
        of: Place,
    },
    /// Nobody has to make room for it.
    Full {
        /// Somebody waits for the same.
        behind_others: bool,
    },
}

/// What a request in the line may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Take an account, if it can have one.
    Take,
    /// Only look what it waits for: others that want the same were called before it, in vain.
    Look,
    /// Leave: its place was given to somebody else.
    Out,
}

impl Line {
    /// A request that joins is due: it has to learn what it waits for.
    pub fn join(&mut self, key: i64, wants: u64) -> Joined {
        let of_key = self.waiting.iter().rev().find(|(_, waiting)| waiting.key == key);
        let turn = of_key.map_or(self.turn, |(last, _)| last.turn) + 1;
        let at = Place { turn, arrival: self.arrivals };
        let mut joined = Joined::At(at);
        if self.waiting.len() >= PLACES {
            let last = self.waiting.last_key_value().map(|(place, _)| *place);
            let last = last.filter(|last| turn < last.turn && !self.is_called(*last));
            let Some(of) = last else {
                let behind_others = self.waiting.values().any(|other| other.wants == wants);
                return Joined::Full { behind_others };
            };
            self.waiting.remove(&of);
            joined = Joined::Instead { at, of };
        }
        self.arrivals += 1;
        self.waiting.insert(at, Waiting { key, wants, is_due: true });
        joined
    }

    /// An account may have become able to serve. Returns who is called; `None`: nobody waits, or the
    /// round under way will be followed by another.
    pub fn freed(&mut self) -> Option<Place> {
        match &mut self.calls {
            Calls::Round { again, .. } => {
                *again = true;
                None
            }
            Calls::None => self.begin_round(),
        }
    }

    /// What who was called may do.
    pub fn turn(&self, place: Place) -> Turn {
        match (self.waiting.get(&place), &self.calls) {
            (None, _) => Turn::Out,
            (Some(waiting), Calls::Round { called, in_vain, .. })
                if *called == place && !in_vain.contains(&waiting.wants) =>
            {
                Turn::Take
            }
            _ => Turn::Look,
        }
    }

    /// It has waited for long enough to want to look itself. Returns who is called.
    pub fn due(&mut self, place: Place) -> Option<Place> {
        if let Some(waiting) = self.waiting.get_mut(&place) {
            waiting.is_due = true;
        }
        self.freed()
    }

    /// It was called, and can have no account now. Returns who is called next.
    pub fn in_vain(&mut self, place: Place) -> Option<Place> {
        self.next(place, self.waiting.get(&place).map(|waiting| waiting.wants))
    }

    /// It has an account. Returns who is called next.
    pub fn served(&mut self, place: Place) -> Option<Place> {
        if self.waiting.contains_key(&place) {
            self.turn = self.turn.max(place.turn);
        }
        self.gave_up(place)
    }

    /// It waits no longer. Returns who is called next, if it was its turn.
    pub fn gave_up(&mut self, place: Place) -> Option<Place> {
        self.waiting.remove(&place);
        self.next(place, None)
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Somebody was called and has not said yet what came of it.
    pub const fn is_calling(&self) -> bool {
        matches!(self.calls, Calls::Round { .. })
    }

    fn is_called(&self, place: Place) -> bool {
        matches!(&self.calls, Calls::Round { called, .. } if *called == place)
    }

    fn next(&mut self, place: Place, vain: Option<u64>) -> Option<Place> {
        if !self.is_called(place) {
            return None;
        }
        match std::mem::take(&mut self.calls) {
            Calls::Round { mut in_vain, newest, again, .. } => {
                in_vain.extend(vain);
                let next = self.call_from(Some(place), in_vain, newest, again);
                // What was freed may be for somebody passed over.
                next.or_else(|| again.then(|| self.begin_round()).flatten())
            }
            Calls::None => None,
        }
    }

    fn begin_round(&mut self) -> Option<Place> {
        self.call_from(None, Vec::new(), self.arrivals, false)
    }

    fn call_from(
        &mut self,
        after: Option<Place>,
        in_vain: Vec<u64>,
        newest: u64,
        again: bool,
    ) -> Option<Place> {
        let is_next = |place: &Place, waiting: &Waiting| {
            after.is_none_or(|after| *place > after)
                && place.arrival < newest
                && (waiting.is_due || !in_vain.contains(&waiting.wants))
        };
        let found = self.waiting.iter_mut().find(|(place, waiting)| is_next(place, waiting));
        let (called, waiting) = found?;
        waiting.is_due = false;
        let called = *called;
        self.calls = Calls::Round { called, in_vain, newest, again };
        Some(called)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: u64 = 1;

    fn join(line: &mut Line, key: i64, wants: u64) -> Place {
        match line.join(key, wants) {
            Joined::At(at) | Joined::Instead { at, .. } => at,
            Joined::Full { .. } => panic!("full"),
        }
    }

    /// Calls one after the other, each of which is served.
    fn all_served(line: &mut Line) -> Vec<Place> {
        let mut order = Vec::new();
        let mut called = line.freed();
        while let Some(place) = called {
            order.push(place);
            called = line.served(place);
        }
        order
    }

    /// Everybody has looked once, in vain.
    fn all_in_vain(line: &mut Line) {
        let mut called = line.freed();
        while let Some(place) = called {
            called = line.in_vain(place);
        }
    }

    #[test]
    fn one_key_is_served_in_the_order_it_came() {
        let mut line = Line::default();
        let came: Vec<_> = (0..5).map(|_| join(&mut line, 7, ANY)).collect();
        assert_eq!(all_served(&mut line), came);
        assert!(line.is_empty());
    }

    #[test]
    fn keys_take_turns_however_many_requests_one_has() {
        let mut line = Line::default();
        let many: Vec<_> = (0..3).map(|_| join(&mut line, 1, ANY)).collect();
        let few: Vec<_> = (0..2).map(|_| join(&mut line, 2, ANY)).collect();
        assert_eq!(all_served(&mut line), [many[0], few[0], many[1], few[1], many[2]]);
    }

    #[test]
    fn a_key_that_comes_late_has_no_turns_saved() {
        let mut line = Line::default();
        let first: Vec<_> = (0..3).map(|_| join(&mut line, 1, ANY)).collect();
        assert_eq!(line.freed(), Some(first[0]));
        assert_eq!(line.served(first[0]), Some(first[1]));
        assert_eq!(line.served(first[1]), Some(first[2]));
        let late = [join(&mut line, 2, ANY), join(&mut line, 2, ANY)];
        assert_eq!(line.freed(), None, "as whoever joins asks");
        assert_eq!(line.in_vain(first[2]), Some(first[2]), "the next round, from the head");
        assert_eq!(line.in_vain(first[2]), Some(late[0]), "due, as who joins is");
        assert_eq!(line.in_vain(late[0]), Some(late[1]));
        assert_eq!(line.in_vain(late[1]), None);
        assert_eq!(all_served(&mut line), [first[2], late[0], late[1]]);
    }

    #[test]
    fn a_key_that_comes_again_and_again_starves_nobody() {
        let mut line = Line::default();
        let patient: Vec<_> = (0..3).map(|_| join(&mut line, 1, ANY)).collect();
        let mut order = Vec::new();
        for _ in 0..3 {
            join(&mut line, 2, ANY);
            // Two slots are freed, one by one.
            for _ in 0..2 {
                let called = line.freed().unwrap();
                order.push(patient.contains(&called));
                let mut next = line.served(called);
                while let Some(place) = next {
                    next = line.in_vain(place);
                }
            }
        }
        assert_eq!(order, [true, false, true, false, true, false]);
    }

    #[test]
    fn one_is_called_for_all_who_want_the_same() {
        let mut line = Line::default();
        let gated = [join(&mut line, 1, 5), join(&mut line, 1, 5)];
        let other = join(&mut line, 1, 6);
        all_in_vain(&mut line);
        assert_eq!(line.freed(), Some(gated[0]));
        assert_eq!(line.in_vain(gated[0]), Some(other), "the second gated one would fail too");
        assert_eq!(line.served(other), None);
        assert_eq!(line.freed(), Some(gated[0]));
        assert_eq!(line.served(gated[0]), Some(gated[1]), "there may be more where that was");
    }

    #[test]
    fn what_is_freed_during_a_round_begins_another_at_the_head() {
        let mut line = Line::default();
        let [a, b] = [join(&mut line, 1, ANY), join(&mut line, 1, 2)];
        all_in_vain(&mut line);
        assert_eq!(line.freed(), Some(a));
        assert_eq!(line.freed(), None, "one round at a time");
        assert_eq!(line.in_vain(a), Some(b), "and to its end");
        assert_eq!(line.in_vain(b), Some(a));
        assert_eq!(line.in_vain(a), Some(b));
        assert_eq!(line.in_vain(b), None);
    }

    #[test]
    fn who_is_due_is_called_though_others_failed() {
        let mut line = Line::default();
        let [a, b] = [join(&mut line, 1, ANY), join(&mut line, 1, ANY)];
        all_in_vain(&mut line);
        assert_eq!(line.due(b), Some(a), "those before it first");
        assert_eq!(line.in_vain(a), Some(b));
        assert_eq!(line.in_vain(b), None);
    }

    #[test]
    fn a_request_that_leaves_when_called_hands_the_call_on() {
        let mut line = Line::default();
        let [a, b] = [join(&mut line, 1, ANY), join(&mut line, 1, ANY)];
        assert_eq!(line.freed(), Some(a));
        assert_eq!(line.gave_up(a), Some(b));
        assert_eq!(line.gave_up(b), None);
        assert_eq!(line.freed(), None);
    }

    #[test]
    fn a_full_line_makes_room_for_a_key_with_fewer_requests_in_it() {
        let mut line = Line::default();
        let many: Vec<_> = (0..PLACES).map(|_| join(&mut line, 1, ANY)).collect();
        assert_eq!(line.join(1, ANY), Joined::Full { behind_others: true });
        assert_eq!(line.join(1, 2), Joined::Full { behind_others: false });
        let Joined::Instead { at, of } = line.join(2, ANY) else { panic!() };
        assert_eq!(of, many[PLACES - 1]);
        assert_eq!(line.len(), PLACES);
        assert_eq!(line.gave_up(of), None, "it is out already");
        assert_eq!(line.turn(of), Turn::Out);
        assert_eq!(all_served(&mut line)[1], at);
    }

    #[test]
    fn who_is_out_and_served_all_the_same_moves_no_turns() {
        let mut line = Line::default();
        let many: Vec<_> = (0..PLACES).map(|_| join(&mut line, 1, ANY)).collect();
        let Joined::Instead { of, .. } = line.join(2, ANY) else { panic!() };
        line.served(of);
        line.gave_up(many[PLACES - 2]);
        let late = join(&mut line, 3, ANY);
        let at = all_served(&mut line).iter().position(|place| *place == late);
        assert_eq!(at, Some(2), "behind the first requests of the two other keys");
    }

    #[test]
    fn the_tail_is_called_though_something_is_freed_during_each_look() {
        let mut line = Line::default();
        let all: Vec<_> = (0..4).map(|wants| join(&mut line, 1, wants)).collect();
        let mut called = line.freed();
        for place in all.iter().chain(&all) {
            assert_eq!(called, Some(*place));
            line.freed();
            called = line.in_vain(*place);
        }
    }

    #[test]
    fn a_round_ends_though_others_join_and_are_served() {
        let mut line = Line::default();
        let head = join(&mut line, 1, ANY);
        assert_eq!(line.freed(), Some(head));
        let other = join(&mut line, 2, 2);
        line.freed();
        assert_eq!(line.in_vain(head), Some(head), "the other came during the round");
        assert_eq!(line.in_vain(head), Some(other));
        join(&mut line, 2, 2);
        line.freed();
        assert_eq!(line.served(other), Some(head));
    }

    #[test]
    fn who_is_due_only_looks_behind_others_that_want_the_same() {
        let mut line = Line::default();
        let [a, b] = [join(&mut line, 1, ANY), join(&mut line, 1, ANY)];
        assert_eq!(line.turn(b), Turn::Look, "not its turn");
        assert_eq!(line.freed(), Some(a));
        assert_eq!(line.turn(a), Turn::Take);
        // Freed behind the back of the first: the second must not have it.
        assert_eq!(line.freed(), None);
        assert_eq!(line.in_vain(a), Some(b));
        assert_eq!(line.turn(b), Turn::Look);
        assert_eq!(line.in_vain(b), Some(a));
        assert_eq!(line.served(a), Some(b));
        assert_eq!(line.turn(b), Turn::Take);
    }
}
