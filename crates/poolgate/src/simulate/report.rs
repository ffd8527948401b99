//! Strategies side by side, as a table for people and as JSON for machines.

use poolgate_core::strategy::Strategy;
use serde::Serialize;

use super::arrivals::Demand;
use super::bound::bound;
use super::figures::{Figures, percent};
use super::scenario::Scenario;
use super::world::run;
use crate::table::clean;

/// One scenario; figures are means over its runs.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub scenario: String,
    pub about: String,
    pub days: f64,
    pub accounts: usize,
    pub runs: usize,
    /// Units wanted, as a share of what the windows could give in the period.
    pub load: f64,
    pub turns: f64,
    pub units: f64,
    /// No policy can serve more units than this.
    pub bound_units: f64,
    /// … and so every policy loses at least this share of the work.
    pub bound_lost_work_percent: f64,
    pub strategies: Vec<Row>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub strategy: &'static str,
    pub lost_percent: f64,
    pub lost_work_percent: f64,
    pub cold_percent: f64,
    pub unused_percent: f64,
    pub served: f64,
    pub lost: f64,
    pub refusals: f64,
    pub moves: f64,
    pub failed_attempts: f64,
    pub served_units: f64,
    pub cold_units: f64,
    pub unused_units: f64,
}

impl Row {
    fn of(strategy: Strategy, mean: &Figures) -> Self {
        Self {
            strategy: strategy.name(),
            lost_percent: mean.lost_percent(),
            lost_work_percent: mean.lost_work_percent(),
            cold_percent: mean.cold_percent(),
            unused_percent: mean.unused_percent(),
            served: mean.served,
            lost: mean.lost,
            refusals: mean.refusals,
            moves: mean.moves,
            failed_attempts: mean.failed_attempts,
            served_units: mean.served_units,
            cold_units: mean.cold_units,
            unused_units: mean.unused_units,
        }
    }
}

/// Runs every strategy on the same demands, each of which comes with its seed; there is one at least.
pub fn compare(
    scenario: &Scenario,
    strategies: &[Strategy],
    demands: &[(u64, Demand)],
) -> Comparison {
    #[expect(clippy::cast_precision_loss, reason = "a few runs")]
    let runs = demands.len() as f64;
    let mean = |of: &dyn Fn(&Demand) -> f64| demands.iter().map(|(_, d)| of(d)).sum::<f64>() / runs;
    let units = mean(&Demand::units);
    let bound_units = mean(&|demand| bound(scenario, demand));
    let row = |strategy: &Strategy| {
        let run = |(seed, demand): &(u64, Demand)| run(scenario, demand, *strategy, *seed);
        let runs: Vec<Figures> = demands.iter().map(run).collect();
        Row::of(*strategy, &Figures::mean(&runs))
    };
    #[expect(clippy::cast_precision_loss, reason = "turns")]
    let turns = mean(&|demand| demand.turns().count() as f64);
    Comparison {
        scenario: scenario.name.clone(),
        about: scenario.about.clone(),
        days: scenario.period.as_secs_f64() / 86_400.0,
        accounts: scenario.accounts.len(),
        runs: demands.len(),
        load: units / scenario.capacity_of_all(),
        turns,
        units,
        bound_units,
        bound_lost_work_percent: percent(units - bound_units, units),
        strategies: strategies.iter().map(row).collect(),
    }
}

const TITLES: [&str; 7] =
    ["strategy", "lost turns", "lost work", "refusals", "moves", "cold cost", "unused"];

/// For people; no line ends in spaces.
pub fn table(comparison: &Comparison) -> String {
    let c = comparison;
    let days = (c.days * 10.0).round() / 10.0;
    let runs = if c.runs == 1 { "1 run".to_owned() } else { format!("mean of {} runs", c.runs) };
    let mut text = format!("{}: {}\n", clean(&c.scenario), clean(&c.about));
    let accounts = if c.accounts == 1 { "account" } else { "accounts" };
    text += &format!(
        "{days} days, {} {accounts}, {} turns ({runs}), load {:.2}; any policy loses at least {:.1} % \
         of the work\n\n",
        c.accounts,
        grouped(c.turns),
        c.load,
        c.bound_lost_work_percent
    );
    let share = |value: f64| format!("{value:.2} %");
    let rows = c.strategies.iter().map(|row| {
        [
            row.strategy.to_owned(),
            share(row.lost_percent),
            share(row.lost_work_percent),
            grouped(row.refusals),
            grouped(row.moves),
            share(row.cold_percent),
            share(row.unused_percent),
        ]
    });
    let rows: Vec<_> = std::iter::once(TITLES.map(str::to_owned)).chain(rows).collect();
    for row in &rows {
        for (i, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[i].len()).max().unwrap_or(0);
            text += &if i == 0 { format!("{cell:<width$}") } else { format!("  {cell:>width$}") };
        }
        text.push('\n');
    }
    text
}

/// A whole number in groups of three digits.
fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_digits() {
        let cases = [(0.0, "0"), (999.4, "999"), (1000.0, "1,000"), (1_234_567.0, "1,234,567")];
        for (value, want) in cases {
            assert_eq!(grouped(value), want);
        }
    }
}
