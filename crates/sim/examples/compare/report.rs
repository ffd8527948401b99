//! Figures of rounds, their medians, and what is printed of them.
#![expect(clippy::cast_precision_loss, reason = "counts and microseconds are far below 2^52")]

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::Times;
use crate::work::Shape;

const US_PER_TICK: f64 = 10_000.0;
/// Below it the counting of ticks alone may be wrong by 2 percent.
const TICKS_ENOUGH: u64 = 50;

/// What one target did in one round. Times in milliseconds are of one request.
#[derive(Clone)]
pub struct Round {
    requests: usize,
    seconds: f64,
    ticks: (u64, u64),
    p50: f64,
    p99: f64,
    /// To the first byte and the first text of a stream with nothing beside it; 0 until measured.
    first_p50: f64,
    text_p50: f64,
}

pub struct Report {
    names: Vec<String>,
    about: Vec<String>,
    shapes: Vec<Figures>,
}

struct Figures {
    name: &'static str,
    connections: usize,
    streams: bool,
    allowance: f64,
    delay_limit: Option<f64>,
    /// By target.
    rounds: Vec<Vec<Round>>,
}

impl Round {
    pub fn new(times: &[Times], took: Duration, ticks: (u64, u64)) -> Self {
        Self {
            requests: times.len(),
            seconds: took.as_secs_f64(),
            ticks,
            p50: percentile(times, 50, |t| t.whole),
            p99: percentile(times, 99, |t| t.whole),
            first_p50: 0.0,
            text_p50: 0.0,
        }
    }

    pub fn note_alone(&mut self, times: &[Times]) {
        self.first_p50 = percentile(times, 50, |t| t.first);
        self.text_p50 = percentile(times, 50, |t| t.text);
    }

    fn user(&self) -> f64 {
        self.ticks.0 as f64 * US_PER_TICK / self.requests as f64
    }

    fn system(&self) -> f64 {
        self.ticks.1 as f64 * US_PER_TICK / self.requests as f64
    }

    fn cpu(&self) -> f64 {
        self.user() + self.system()
    }

    fn rate(&self) -> f64 {
        self.requests as f64 / self.seconds
    }

    fn to_json(&self) -> Value {
        json!({"requests": self.requests, "seconds": self.seconds, "cpu_us": self.cpu(),
            "user_us": self.user(), "system_us": self.system(), "p50_ms": self.p50,
            "p99_ms": self.p99, "first_byte_p50_ms": self.first_p50,
            "first_text_p50_ms": self.text_p50})
    }
}

impl Figures {
    fn median(&self, target: usize, figure: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds[target].iter().map(figure).collect())
    }

    /// CPU of the last target over that of the one before it, round by round; the median first,
    /// then the least and the greatest. `None`: nothing to compare, or no CPU was seen.
    fn ratio(&self) -> Option<(f64, f64, f64)> {
        let [.., reference, subject] = self.rounds.as_slice() else {
            return None;
        };
        let pairs = subject.iter().zip(reference);
        let mut ratios: Vec<f64> = pairs.map(|(s, r)| s.cpu() / r.cpu()).collect();
        ratios.sort_unstable_by(f64::total_cmp);
        let (least, greatest) = (*ratios.first()?, *ratios.last()?);
        greatest.is_finite().then(|| (median(ratios), least, greatest))
    }

    /// What a target adds to the time that a direct connection takes, in milliseconds, round by round.
    fn added(&self, target: usize, time: impl Fn(&Round) -> f64) -> f64 {
        let pairs = self.rounds[target].iter().zip(&self.rounds[0]);
        median(pairs.map(|(through, direct)| time(through) - time(direct)).collect())
    }

    /// The first text's delay by the last target over that by the one before it. `None`: as there is no
    /// such, or it is lost in noise.
    fn delay_ratio(&self) -> Option<f64> {
        let last = self.rounds.len().checked_sub(1).filter(|last| *last > 1 && self.streams)?;
        let [reference, subject] =
            [last - 1, last].map(|target| self.added(target, |r| r.text_p50));
        (reference > 0.0).then(|| subject / reference)
    }

    fn is_short(&self) -> bool {
        let mut measured = self.rounds.iter().skip(1).flatten();
        measured.any(|round| round.ticks.0 + round.ticks.1 < TICKS_ENOUGH)
    }
}

impl Report {
    pub fn new(names: Vec<String>, about: Vec<String>) -> Self {
        Self { names, about, shapes: Vec::new() }
    }

    pub fn add(&mut self, shape: &Shape, rounds: Vec<Vec<Round>>) {
        self.shapes.push(Figures {
            name: shape.name,
            connections: shape.connections,
            streams: shape.streams(),
            allowance: shape.allowance,
            delay_limit: shape.delay_limit,
            rounds,
        });
    }

    pub fn print_head(&self) {
        for line in &self.about {
            println!("{line}");
        }
    }

    pub fn print_last(&self) {
        let Some(figures) = self.shapes.last() else {
            return;
        };
        let what = if figures.streams { "stream" } else { "request" };
        println!("\n{}, {} at a time", figures.name, figures.connections);
        let mut columns = format!(
            "  {:<10} {:>10} {:>7} {:>7} {:>10} {:>9} {:>9}",
            "",
            format!("µs/{what}"),
            "user",
            "system",
            format!("{what}s/s"),
            "p50 ms",
            "p99 ms"
        );
        if figures.streams {
            columns += "   + 1st byte   + 1st text";
        }
        println!("{columns}");
        for (target, name) in self.names.iter().enumerate() {
            let median = |figure: fn(&Round) -> f64| figures.median(target, figure);
            let cpu = |figure: fn(&Round) -> f64| match target {
                0 => "–".to_owned(),
                _ => format!("{:.1}", median(figure)),
            };
            let mut line = format!(
                "  {name:<10} {:>10} {:>7} {:>7} {:>10.0} {:>9.2} {:>9.2}",
                cpu(Round::cpu),
                cpu(Round::user),
                cpu(Round::system),
                median(Round::rate),
                median(|r| r.p50),
                median(|r| r.p99)
            );
            if figures.streams && target > 0 {
                let added = |time: fn(&Round) -> f64| figures.added(target, time);
                let _ = write!(
                    line,
                    " {:>9.3} ms {:>9.3} ms",
                    added(|r| r.first_p50),
                    added(|r| r.text_p50)
                );
            }
            println!("{line}");
        }
        if let ([.., reference, subject], Some((ratio, least, greatest))) =
            (self.names.as_slice(), figures.ratio())
        {
            print!("  {subject} / {reference}: {ratio:.2}  ({least:.2} to {greatest:.2})");
            let delay = figures.delay_ratio().map(|ratio| format!(", delay {ratio:.2}"));
            println!("{}", delay.unwrap_or_default());
        }
        if figures.is_short() {
            println!("  note: less than 0.5 s of CPU in a round, which is counted in 10 ms");
        }
    }

    /// Says which ratios are above the limit.
    pub fn judge(&self, limit: f64) -> ExitCode {
        let mut code = ExitCode::SUCCESS;
        println!();
        for figures in &self.shapes {
            match figures.ratio() {
                Some((ratio, ..)) if ratio <= limit * figures.allowance => {}
                Some((ratio, ..)) => {
                    let limit = limit * figures.allowance;
                    println!("ABOVE {limit:.1}: {}: {ratio:.2}", figures.name);
                    code = ExitCode::FAILURE;
                }
                None => {
                    println!("NOT MEASURED: {}", figures.name);
                    code = ExitCode::FAILURE;
                }
            }
            let late = figures.delay_limit.filter(|l| figures.delay_ratio().is_none_or(|r| r > *l));
            if let Some(limit) = late {
                let ratio =
                    figures.delay_ratio().map_or("lost in noise".into(), |r| format!("{r:.2}"));
                println!("ABOVE {limit:.1}: {}, first text: {ratio}", figures.name);
                code = ExitCode::FAILURE;
            }
        }
        if code == ExitCode::SUCCESS {
            println!("all ratios are within their limits");
        }
        code
    }

    pub fn to_json(&self, limit: f64) -> String {
        let shapes: Vec<Value> = self.shapes.iter().map(|f| self.shape_to_json(f)).collect();
        let value = json!({"about": self.about, "limit": limit, "shapes": shapes});
        format!("{value:#}\n")
    }

    fn shape_to_json(&self, figures: &Figures) -> Value {
        let targets = self.names.iter().zip(&figures.rounds).enumerate();
        let targets: Vec<Value> = targets
            .map(|(index, (name, rounds))| {
                let rounds: Vec<Value> = rounds.iter().map(Round::to_json).collect();
                json!({"name": name, "cpu_us": figures.median(index, Round::cpu),
                    "per_second": figures.median(index, Round::rate), "rounds": rounds})
            })
            .collect();
        json!({"name": figures.name, "at_a_time": figures.connections,
            "ratio": figures.ratio().map(|(ratio, ..)| ratio),
            "delay_ratio": figures.delay_ratio(), "targets": targets})
    }
}

/// In milliseconds.
fn percentile(times: &[Times], percent: usize, time: fn(&Times) -> Duration) -> f64 {
    let mut all: Vec<Duration> = times.iter().map(time).collect();
    all.sort_unstable();
    let index = (all.len() * percent / 100).min(all.len().saturating_sub(1));
    all.get(index).map_or(f64::NAN, |t| t.as_secs_f64() * 1e3)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length.is_multiple_of(2) => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}
