//! Chooses again and again, for counting instructions: `choose ACCOUNTS TIMES [explained]`.
//!
//! `scripts/bench.sh` runs it under callgrind twice and takes the difference.

use std::hint::black_box;
use std::time::Duration;

use poolgate_core::account::{AccountId, Caps, Kind, Speaks, Surface};
use poolgate_core::availability::{Account, Ask};
use poolgate_core::choose::{Choice, choose};
use poolgate_core::explain::explain;
use poolgate_core::health::Health;
use poolgate_core::quota::{FIVE_HOURS, Limit, Quota, Reading, Source, WEEK};
use poolgate_core::strategy::Strategy;
use poolgate_core::units::{Fraction, Timestamp};

const NOW: Timestamp = Timestamp(1_800_000_000_000);

fn account(id: i64) -> Account {
    let reading = |length: Duration, part: u32| Reading {
        limit: Limit::Ordinary,
        length,
        used: Some(Fraction::from_ppm(part * 7 % 1_000_000)),
        resets_at: Some(NOW.plus(length / 3)),
    };
    let mut quota = Quota::default();
    let part = u32::try_from(id).unwrap_or(1) * 13_579;
    quota.merge(&[reading(FIVE_HOURS, part), reading(WEEK, part + 5)], Source::Poll, NOW);
    Account {
        id: AccountId(id),
        kind: Kind::Codex,
        speaks: Speaks::default(),
        priority: 0,
        plan: Some("plus".into()),
        weight: 1.0,
        caps: Caps::default(),
        models: vec![],
        max_in_flight: 8,
        paused: false,
        has_credential: true,
        quota,
        health: Health::default(),
        in_flight: 1,
        probing_until: None,
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let mut number = || args.next().and_then(|arg| arg.parse::<u64>().ok()).unwrap_or(10);
    let (accounts, times) = (number(), number());
    let explained = args.next().is_some();
    let accounts: Vec<Account> =
        (1..).map(account).take(usize::try_from(accounts).unwrap_or(10)).collect();
    let accounts: Vec<&Account> = accounts.iter().collect();
    for seed in 0..times {
        let choice = Choice {
            ask: Ask { surface: Surface::Responses, model: "gpt-5.5", gate: None },
            strategy: Strategy::Headroom,
            rebalance_threshold: None,
            owner: None,
            home: None,
            tried: &[],
            turn: seed,
            seed,
            now: NOW,
        };
        if explained {
            black_box(explain(black_box(&accounts), &choice));
        } else {
            let _ = black_box(choose(black_box(&accounts), &choice));
        }
    }
}
