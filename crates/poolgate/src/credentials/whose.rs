//! Whether a credential is still the same person's after somebody has put other tokens in its place.
//!
//! Our own renewals do not change that. A file that Claude Code shares does not say whose it is, so
//! whatever another program writes there may be somebody else's: what was learnt about the person is
//! forgotten then, and learnt anew.

use parking_lot::Mutex;

use super::identity::is_telling;
use super::{Identity, Likeness, SignIn};

/// How often it was exchanged, counted since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Owner {
    /// For a sign-in that is known to be somebody else's.
    others: u64,
    /// For one of which too little is known.
    unknown: u64,
}

impl Owner {
    /// What became of it since it was `before`.
    pub fn since(self, before: Self) -> Likeness {
        if self.others != before.others {
            Likeness::Other
        } else if self.unknown != before.unknown {
            Likeness::Unknown
        } else {
            Likeness::Same
        }
    }
}

#[derive(Debug, Default)]
pub struct Whose {
    /// Which tokens were last seen, and whose they were. `None`: there were none.
    last: Option<([u8; 32], Identity)>,
    pub owner: Owner,
}

impl Whose {
    /// These tokens are in its place now.
    pub fn read(&mut self, content: [u8; 32], sign_in: &SignIn) -> Likeness {
        if self.last.as_ref().is_some_and(|(known, _)| *known == content) {
            return Likeness::Same;
        }
        let is = sign_in.identity();
        let before = self.last.as_ref().map(|(_, was)| was.compare(&is));
        self.last = Some((content, is));
        match before {
            Some(Likeness::Other) => self.owner.others += 1,
            Some(Likeness::Unknown) => self.owner.unknown += 1,
            Some(Likeness::Same) | None => {}
        }
        before.unwrap_or(Likeness::Same)
    }

    /// We have renewed its tokens, which are these now.
    pub fn renewed(&mut self, content: [u8; 32]) {
        if let Some((known, _)) = &mut self.last {
            *known = content;
        }
    }
}

/// Names of its owner, as headers of answers tell them beside errors that quote them. A key says of itself
/// whose it is nowhere else.
#[derive(Debug, Default)]
pub struct Told(Mutex<Vec<String>>);

/// An organization and a project, and those before them.
const TOLD_KEPT: usize = 8;

impl Told {
    pub fn note<'a>(&self, names: impl Iterator<Item = &'a str>) {
        for name in names.filter(|name| is_telling(name)) {
            let mut known = self.0.lock();
            if !known.iter().any(|other| other == name) {
                known.truncate(TOLD_KEPT - 1);
                known.insert(0, name.to_owned());
            }
        }
    }

    pub fn names(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use poolgate_core::account::Kind;
    use serde_json::json;

    use super::*;

    #[test]
    fn tells_what_an_exchange_means() {
        let sign_in = |person: Option<&str>| {
            let mut document = json!({"claudeAiOauth": {"accessToken": "a", "refreshToken": "r"}});
            if let Some(person) = person {
                document["oauthAccount"] = json!({"accountUuid": person});
            }
            SignIn::parse(Kind::Claude, document.to_string().as_bytes()).unwrap()
        };
        let (ann, bob, nobody) = (sign_in(Some("ann")), sign_in(Some("bob")), sign_in(None));
        let cases = [
            ("the very same tokens", &ann, 1, Likeness::Same),
            ("others of hers", &ann, 2, Likeness::Same),
            ("his", &bob, 2, Likeness::Other),
            ("nobody says whose", &nobody, 2, Likeness::Unknown),
        ];
        for (name, is, content, want) in cases {
            let mut whose = Whose::default();
            let before = whose.owner;
            assert_eq!(whose.read([1; 32], &ann), Likeness::Same, "the first are nobody else's");
            assert_eq!(whose.read([content; 32], is), want, "{name}");
            assert_eq!(whose.owner.since(before), want, "{name}");
        }
        let mut whose = Whose::default();
        whose.read([1; 32], &nobody);
        whose.renewed([2; 32]);
        assert_eq!(whose.read([2; 32], &nobody), Likeness::Same, "renewed by us");
    }

    #[test]
    fn the_last_names_are_kept() {
        let told = Told::default();
        told.note(["acme-corp", "short", "anybodys", "acme-corp"].into_iter());
        assert_eq!(told.names(), ["acme-corp"]);
        let others: Vec<_> = (0..9).map(|n| format!("project-{n}")).collect();
        told.note(others.iter().map(String::as_str));
        assert_eq!((told.names().len(), told.names()[0].as_str()), (8, "project-8"));
    }
}
