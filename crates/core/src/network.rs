//! Whose fault is a connection that could not be made: the address's, or our own network's?
//!
//! One failed connect does not tell. So it is only noted, and judged by what comes next:
//!
//! - an answer from another address: the network works, and the account is charged;
//! - an answer from the same address: it was a hiccup, and is forgotten;
//! - a failure at a second address before anyone answers: the network is down, and nobody is
//!   charged for anything until an answer shows that it is back.
//!
//! A pool with one address is therefore never charged, which is right: with nowhere else to go,
//! resting it would only keep it away for longer than the trouble lasts.

use crate::account::AccountId;

/// A failed connect that nobody has been charged for yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    pub id: AccountId,
    /// Where it could not be reached: scheme, host and port.
    pub address: String,
    /// It will not cure itself within seconds: refused, no such name, a bad certificate.
    pub durable: bool,
}

/// Connects that failed since the last answer; at most one for each account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    suspects: Vec<Suspect>,
}

impl Network {
    pub fn failed(&mut self, suspect: Suspect) {
        self.suspects.retain(|known| known.id != suspect.id);
        self.suspects.push(suspect);
    }

    /// Connects to two addresses have failed, and none has answered since.
    pub fn is_down(&self) -> bool {
        let first = self.suspects.first().map(|suspect| &suspect.address);
        self.suspects.iter().any(|suspect| Some(&suspect.address) != first)
    }

    /// No connect has failed since the last answer.
    pub fn is_quiet(&self) -> bool {
        self.suspects.is_empty()
    }

    /// An upstream at `address` has answered. Returns whom to charge.
    pub fn answered(&mut self, address: &str) -> Vec<Suspect> {
        let was_down = self.is_down();
        let mut suspects = std::mem::take(&mut self.suspects);
        suspects.retain(|suspect| !was_down && suspect.address != address);
        suspects
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Step {
        Fails(i64, &'static str),
        Answers(&'static str),
    }

    #[test]
    #[rustfmt::skip]
    fn charges_a_failed_connect_only_when_the_network_works() {
        use Step::{Answers, Fails};
        let cases: [(&str, &[Step], &[i64]); 9] = [
            ("another address answers",            &[Fails(1, "x"), Answers("y")],                              &[1]),
            ("nobody has answered yet",            &[Fails(1, "x")],                                            &[]),
            ("the same address answers",           &[Fails(1, "x"), Answers("x")],                              &[]),
            ("one address, two accounts",          &[Fails(1, "x"), Fails(2, "x"), Answers("y")],               &[1, 2]),
            ("two addresses: the network is down", &[Fails(1, "x"), Fails(2, "y"), Answers("y")],               &[]),
            ("however long it was down",           &[Fails(1, "x"), Fails(2, "y"), Fails(3, "z"), Fails(1, "x"), Answers("x")], &[]),
            ("charged once",                       &[Fails(1, "x"), Fails(1, "x"), Answers("y"), Answers("y")], &[1]),
            ("back, and then one fails",           &[Fails(1, "x"), Fails(2, "y"), Answers("x"), Fails(2, "y"), Answers("x")], &[2]),
            ("a fresh account's first failure",    &[Answers("y"), Fails(1, "x"), Answers("y")],                &[1]),
        ];
        for (name, steps, want) in cases {
            let mut network = Network::default();
            let mut charged = Vec::new();
            for step in steps {
                match step {
                    Fails(id, address) => network.failed(Suspect {
                        id: AccountId(*id),
                        address: (*address).to_owned(),
                        durable: true,
                    }),
                    Answers(address) => charged.extend(network.answered(address)),
                }
            }
            let charged: Vec<i64> = charged.iter().map(|suspect| suspect.id.0).collect();
            assert_eq!(charged, want, "{name}");
        }
    }
}
