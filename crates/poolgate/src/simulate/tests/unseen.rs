//! Scenarios that are not shipped, made up from a seed, so that nothing can be fitted to them.

use std::fmt::Write;

use super::{Scenario, behind, compared, is_soak};
use crate::simulate::random::Random;
use crate::simulate::{Demand, bound, run};

fn one<'a>(random: &mut Random, of: &[&'a str]) -> &'a str {
    of[random.among(&vec![1.0; of.len()])]
}

fn between(random: &mut Random, least: f64, most: f64) -> f64 {
    least + (most - least) * random.unit()
}

/// Two to twelve accounts of any size, at 0.6 to 1.3 of what they could give, for `days`.
pub fn scenario(seed: u64, days: u32) -> Scenario {
    let random = &mut Random::new(seed);
    let mut text = format!("days = {days}\n");
    let kind = one(random, &["codex", "claude"]);
    let accounts = 2 + random.among(&[1.0; 11]);
    for account in 0..accounts {
        let weight = one(random, &["1", "1", "2", "5", "10", "20"]);
        let reset_h = between(random, 1.0, 168.0);
        let _ = write!(
            text,
            "[[account]]\nname = 'a{account}'\nkind = '{kind}'\nweight = {weight}\n\
             weekly_reset_h = {reset_h:.1}\n"
        );
        if random.unit() < 0.3 {
            let _ = writeln!(text, "used = {:.2}", random.unit());
        }
    }
    let model = if kind == "claude" { "claude-opus-5-5" } else { "gpt-5.5" };
    let _ = writeln!(text, "[[traffic]]\nmodel = '{model}'");
    let _ = writeln!(text, "load = {:.2}", between(random, 0.6, 1.3));
    let _ = writeln!(text, "turns = {:.0}", between(random, 2.0, 40.0));
    let _ = writeln!(text, "think_s = {:.0}", between(random, 5.0, 180.0));
    let _ = writeln!(text, "turn_s = {:.0}", between(random, 5.0, 90.0));
    let _ = writeln!(text, "units = {:.1}", between(random, 0.5, 3.0));
    let _ = writeln!(text, "burst = {}", one(random, &["1", "1", "1", "4", "12"]));
    if random.unit() < 0.7 {
        let hours: Vec<f64> = (0..24_u32)
            .map(|hour| if (8..19).contains(&hour) { between(random, 3.0, 10.0) } else { 0.5 })
            .collect();
        let _ = writeln!(text, "hours = {hours:?}\nweekdays = [5, 5, 5, 5, 4, 1, 1]");
    }
    text += match random.among(&[1.0; 3]) {
        0 => "[user]\nafter_refusal = 'give_up'\n",
        1 => "[user]\nafter_refusal = 'wait'\npatience_h = 2\n",
        _ => "[user]\nafter_refusal = 'retry'\nretry_min = 20\nretries = 4\n",
    };
    Scenario::parse(&format!("unseen {seed}"), &text).unwrap_or_else(|e| panic!("{e:#}\n{text}"))
}

#[test]
fn the_bound_holds_on_scenarios_nobody_has_seen() {
    let count = if is_soak() { 60 } else { 2 };
    for seed in 0..count {
        let scenario = scenario(seed, 2);
        let demand = Demand::of(&scenario, seed);
        let most = bound(&scenario, &demand);
        for strategy in poolgate_core::strategy::Strategy::ALL {
            let figures = run(&scenario, &demand, strategy, seed);
            let served = figures.served_units;
            assert!(served <= most + 1e-6, "{} {strategy:?}: {served} > {most}", scenario.name);
        }
    }
}

/// On average within half a point of the best of eleven, and nowhere over two.
#[test]
fn headroom_holds_up_on_scenarios_nobody_has_seen() {
    if !is_soak() {
        return;
    }
    let mut sum = 0.0;
    let seeds = 1000..1024;
    for seed in seeds.clone() {
        let scenario = scenario(seed, 14);
        let comparison = compared(&scenario, 1..3);
        let (points, best) = behind(&comparison);
        println!(
            "{}: {} accounts, load {:.2}: {points:.2} points behind {best}",
            scenario.name, comparison.accounts, comparison.load
        );
        assert!(points <= 2.0, "{}: {points:.2} points behind {best}", scenario.name);
        sum += points;
    }
    #[expect(clippy::cast_precision_loss, reason = "two dozen")]
    let mean = sum / seeds.count() as f64;
    println!("mean: {mean:.2} points");
    assert!(mean <= 0.5, "{mean:.2} points behind on average");
}
