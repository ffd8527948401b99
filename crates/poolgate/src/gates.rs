//! The table of gated models, compiled in from `data/quota-limits.toml`.

use std::sync::Arc;

use poolgate_core::gate::Gate;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    limit: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: String,
    aliases: Vec<String>,
    models: Vec<String>,
    plans: Vec<String>,
}

/// Few, and looked through for each request.
#[derive(Clone, Debug)]
pub struct Gates(Vec<Arc<Gate>>);

impl Gates {
    pub fn builtin() -> Self {
        let table: Table = toml::from_str(include_str!("../data/quota-limits.toml"))
            .expect("a test reads the table that is compiled in");
        let gate = |row: Row| {
            let Row { id, aliases, models, plans } = row;
            Arc::new(Gate { id, aliases, models, plans })
        };
        Self(table.limit.into_iter().map(gate).collect())
    }

    pub fn of(&self, model: &str) -> Option<&Arc<Gate>> {
        self.0.iter().find(|gate| gate.covers(model))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_and_matches() {
        let gates = Gates::builtin();
        assert_eq!(
            gates.of("GPT-5.3-Codex-Spark").map(|gate| gate.id.as_str()),
            Some("codex_spark")
        );
        assert_eq!(gates.of("gpt-5.5"), None);
    }
}
