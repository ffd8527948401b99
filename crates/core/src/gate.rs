//! Gated models: those with an additional limit of their own, beside the account's ordinary one.
//!
//! A gated request is judged and ranked by that limit's windows only. That the ordinary quota is
//! spent or capped does not exclude an account from it; pauses, stops, rate limits, cooldowns and
//! backoff do, as ever. Nothing seen on such a request is stored as ordinary state, and ordinary
//! requests are unaffected. Accounts whose plan the limit does not govern follow the ordinary rules.

use std::time::Duration;

use crate::account::model_matches;
use crate::availability::Account;
use crate::quota::{Limit, Window};
use crate::units::Timestamp;

/// A row older than this says nothing any more.
pub const ROW_FRESH_FOR: Duration = Duration::from_hours(2);
/// So long after a quota error the account rests, gated or not.
pub const REST_AFTER_QUOTA_ERROR: Duration = Duration::from_mins(2);

/// An additional limit, and what it governs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    pub id: String,
    /// Other names under which upstreams report it.
    pub aliases: Vec<String>,
    /// Patterns of models, in lower case.
    pub models: Vec<String>,
    /// Plans it governs; empty: all.
    pub plans: Vec<String>,
}

impl Gate {
    pub fn covers(&self, model: &str) -> bool {
        let model = model.to_ascii_lowercase();
        self.models.iter().any(|pattern| model_matches(pattern, &model))
    }

    /// An account whose plan is unknown is taken to be governed: the limit's own row decides.
    pub fn governs(&self, plan: Option<&str>) -> bool {
        self.plans.is_empty() || plan.is_none_or(|plan| self.plans.iter().any(|p| p == plan))
    }

    /// Whether an upstream that reports `name` means this limit.
    pub fn is_named(&self, name: &str) -> bool {
        let same = |known: &str| known.eq_ignore_ascii_case(name);
        same(&self.id) || self.aliases.iter().any(|alias| same(alias))
    }

    /// The limit's own fresh windows. Rows under several names stand side by side: the fuller one
    /// decides, wherever windows are compared. None: nothing is known, which ranks neutral.
    pub fn windows<'a>(
        &'a self,
        account: &'a Account,
        now: Timestamp,
    ) -> impl Iterator<Item = &'a Window> {
        account.quota.windows().iter().filter(move |w| {
            let named = matches!(&w.limit, Limit::Named(name) if self.is_named(name));
            named && now <= w.observed_at.plus(ROW_FRESH_FOR)
        })
    }
}

#[cfg(test)]
pub(crate) fn spark() -> Gate {
    let owned = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect();
    Gate {
        id: "codex_spark".into(),
        aliases: owned(&["codex_bengalfox", "codex_other", "gpt-5.3-codex-spark"]),
        models: owned(&["*codex-spark*"]),
        plans: owned(&["pro"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_models_and_plans() {
        let gate = spark();
        assert!(gate.covers("GPT-5.3-Codex-Spark") && !gate.covers("gpt-5.5"));
        assert!(gate.governs(Some("pro")) && gate.governs(None) && !gate.governs(Some("plus")));
    }
}
