//! The scripted faults of an account, and which one a request gets.

use serde::Deserialize;

use super::Fault;

/// A fault, how often and where.
#[derive(Clone, Debug, Deserialize)]
pub struct Script {
    pub fault: Fault,
    /// `None`: for ever.
    #[serde(default)]
    pub times: Option<u32>,
    /// Path prefix; `None`: model calls.
    #[serde(default)]
    pub on: Option<String>,
}

/// What an account has been told to do wrong, the oldest first.
#[derive(Debug, Default)]
pub struct Faults(Vec<Script>);

impl Faults {
    pub fn push(&mut self, script: Script) {
        if script.times != Some(0) {
            self.0.push(script);
        }
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The fault for a request to `path`, counted.
    pub fn take(&mut self, path: &str, is_model_call: bool) -> Option<Fault> {
        let fits = |script: &Script| match &script.on {
            Some(prefix) => path.starts_with(prefix.as_str()),
            None => is_model_call,
        };
        let at = self.0.iter().position(fits)?;
        match &mut self.0[at].times {
            None => Some(self.0[at].fault.clone()),
            Some(1) => Some(self.0.remove(at).fault),
            Some(times) => {
                *times -= 1;
                Some(self.0[at].fault.clone())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_oldest_fitting_until_it_runs_out() {
        let mut faults = Faults::default();
        let script =
            |fault, times, on: Option<&str>| Script { fault, times, on: on.map(ToOwned::to_owned) };
        faults.push(script(Fault::Forbidden, Some(2), None));
        faults.push(script(Fault::Unauthorized, None, Some("/usage")));
        faults.push(script(Fault::Overloaded, Some(1), None));
        assert!(matches!(faults.take("/usage", false), Some(Fault::Unauthorized)));
        assert!(faults.take("/models", false).is_none());
        for _ in 0..2 {
            assert!(matches!(faults.take("/call", true), Some(Fault::Forbidden)));
        }
        assert!(matches!(faults.take("/call", true), Some(Fault::Overloaded)));
        assert!(faults.take("/call", true).is_none());
        assert_eq!(faults.len(), 1);
    }
}
