//! The process's figures in the format that Prometheus reads (`docs/metrics.md` says what they mean).
//!
//! Labels come from closed sets, and from the names that the operator gave accounts: nothing a client
//! sends becomes one.

use std::fmt;
use std::sync::Arc;

use http::{Response, StatusCode};
use poolgate_core::account::Surface;
use poolgate_core::outcome::Outcome;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::admission::Bound;
use crate::app::App;
use crate::error::Error;
use crate::gateway::{Outgoing, whole};
use crate::keys::KeyLimit;
use crate::metrics::{BOUNDS_MS, CLASSES, Ending, Histogram, PHASES, Refreshed, Shed};

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub fn metrics(app: &Arc<App>) -> Result<Response<Outgoing>, Error> {
    let mut registry = Registry::with_prefix("poolgate");
    registry.register_collector(Box::new(Scrape(Arc::clone(app))));
    let mut body = String::with_capacity(16 << 10);
    text::encode(&mut body, &registry).map_err(|_| Error::Internal)?;
    Ok(whole(StatusCode::OK, CONTENT_TYPE, body.into()))
}

#[derive(Debug)]
struct Scrape(Arc<App>);

type Labels = Vec<(&'static str, String)>;

fn labels<const N: usize>(pairs: [(&'static str, &str); N]) -> Labels {
    pairs.map(|(name, value)| (name, value.to_owned())).to_vec()
}

/// Families written one after the other.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn family(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        rows: impl IntoIterator<Item = Labels>,
        mut write: impl FnMut(&mut MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for labels in rows {
            if labels.is_empty() {
                write(&mut family)?;
            } else {
                write(&mut family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        let (labels, values): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
        let mut values = values.into_iter();
        self.family(name, help, MetricType::Counter, labels, |row| {
            row.encode_counter::<NoLabelSet, _, u64>(&values.next().unwrap_or_default(), None)
        })
    }

    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels, f64)>,
    ) -> fmt::Result {
        let (labels, values): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
        let mut values = values.into_iter();
        self.family(name, help, MetricType::Gauge, labels, |row| {
            row.encode_gauge(&values.next().unwrap_or_default())
        })
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.gauges(name, help, [(Labels::new(), value)])
    }

    fn histograms<'h>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Labels, &'h Histogram)>,
    ) -> fmt::Result {
        let (labels, values): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
        let mut values = values.into_iter();
        self.family(name, help, MetricType::Histogram, labels, |row| {
            let Some(histogram) = values.next() else { return Ok(()) };
            let (counts, sum) = histogram.read();
            let bounds = BOUNDS_MS.iter().map(|ms| seconds(*ms)).chain([f64::MAX]);
            let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
            row.encode_histogram::<NoLabelSet>(
                sum.as_secs_f64(),
                counts.iter().sum(),
                &buckets,
                None,
            )
        })
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (app, mut page) = (&*self.0, Page(encoder));
        requests(&mut page, app)?;
        admission(&mut page, app)?;
        accounts(&mut page, app)?;
        process(&mut page, app)
    }
}

fn requests(page: &mut Page<'_>, app: &App) -> fmt::Result {
    let metrics = &app.metrics;
    let mut counted = Vec::new();
    for surface in Surface::ALL {
        for (ending, classes) in Ending::ALL.iter().zip(metrics.requests(surface)) {
            for (class, count) in CLASSES.iter().zip(classes).filter(|(_, count)| *count > 0) {
                let row =
                    [("surface", surface.name()), ("outcome", ending.name()), ("status", class)];
                counted.push((labels(row), count));
            }
        }
    }
    page.counters("requests", "Requests and turns that have ended", counted)?;
    let phases = Surface::ALL.into_iter().flat_map(|surface| {
        let row = move |phase| labels([("surface", surface.name()), ("phase", phase)]);
        PHASES.iter().zip(metrics.phases(surface)).map(move |(phase, h)| (row(phase), h))
    });
    page.histograms("request_seconds", "From a request's arrival to the end of a phase", phases)?;
    let connects = [(Labels::new(), app.egress.connects())];
    page.histograms("connect_seconds", "New connections to upstreams, failed ones too", connects)?;
    let outcomes = Outcome::NAMES.iter().zip(metrics.attempts.read());
    let outcomes = outcomes.map(|(name, count)| (labels([("outcome", *name)]), count));
    page.counters("attempts", "Calls of upstreams, by what they came to", outcomes)
}

fn admission(page: &mut Page<'_>, app: &App) -> fmt::Result {
    let kind = |bound: Bound| if bound.is_lane() { "lane" } else { "stage" };
    let row = |bound: Bound| labels([("kind", kind(bound)), ("name", bound.name())]);
    let levels = Bound::ALL.map(|bound| (bound, app.admission.level(bound)));
    let in_use = levels.iter().map(|(bound, level)| (row(*bound), number(level.in_use)));
    page.gauges("admission_in_use", "Places taken in a lane or stage", in_use)?;
    let size = levels.iter().map(|(bound, level)| (row(*bound), number(level.size)));
    page.gauges("admission_size", "Places of a lane or stage; 0: unlimited", size)?;
    let refused = levels.iter().map(|(bound, level)| (row(*bound), level.refused));
    page.counters("admission_refusals", "Refused by us because a lane or stage was full", refused)?;
    let keys = KeyLimit::NAMES.iter().zip(app.metrics.key_refusals.read());
    let keys = keys.map(|(limit, count)| (labels([("limit", *limit)]), count));
    page.counters("key_refusals", "Refused by us because a client key had reached a limit", keys)?;
    let sheds = Shed::ALL.iter().zip(app.metrics.sheds());
    let sheds = sheds.map(|(why, count)| (labels([("reason", why.name())]), count));
    page.counters("sheds", "Refused by us for want of something else than a place", sheds)?;
    let waiting = number(app.pool.line().waiting());
    page.gauge("waiting_requests", "Requests in line for an account", waiting)?;
    page.gauge("sockets", "Clients' web sockets", number(app.sockets.len()))
}

fn accounts(page: &mut Page<'_>, app: &App) -> fmt::Result {
    let accounts = app.pool.view(app.clock.now()).accounts;
    let name = |account: &crate::pool::AccountView| labels([("account", &account.name)]);
    let states =
        accounts.iter().map(|a| (labels([("account", &a.name), ("state", &a.state)]), 1.0));
    page.gauges("account_state", "1 for the state that an account is in", states)?;
    let in_flight = accounts.iter().map(|a| (name(a), f64::from(a.in_flight)));
    page.gauges("account_in_flight", "Attempts running now", in_flight)?;
    let attempts = accounts.iter().map(|a| (name(a), a.attempts));
    page.counters("account_attempts", "Requests that an account was chosen for", attempts)?;
    let served = accounts.iter().map(|a| (name(a), a.served));
    page.counters("account_served", "Attempts that were answered well", served)?;
    let failovers = accounts.iter().map(|a| (name(a), a.failovers));
    page.counters("account_failovers", "Requests that left an account for another", failovers)?;
    let refreshes = Refreshed::ALL.iter().zip(app.metrics.refreshes.read());
    let refreshes = refreshes.map(|(result, count)| (labels([("result", result.name())]), count));
    page.counters("refreshes", "Renewals of sign-ins, by what they came to", refreshes)
}

fn process(page: &mut Page<'_>, app: &App) -> fmt::Result {
    #[expect(clippy::cast_precision_loss, reason = "nobody reads the last of 2^53 bytes")]
    let waiting = app.spool.waiting() as f64;
    page.gauge("spool_bytes", "Records that wait for the database", waiting)?;
    let lag = app.spool.lag().as_secs_f64();
    page.gauge("ledger_lag_seconds", "How long the oldest of them may have waited", lag)?;
    if let Some(bytes) = resident_bytes() {
        page.gauge("resident_memory_bytes", "Memory of the process", bytes)?;
    }
    let build = [(labels([("version", env!("CARGO_PKG_VERSION"))]), 1.0)];
    page.gauges("build_info", "Always 1", build)
}

/// From the kernel, which counts in KiB.
fn resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
}

#[expect(clippy::cast_precision_loss, reason = "counts of places")]
fn number(count: usize) -> f64 {
    count as f64
}

#[expect(clippy::cast_precision_loss, reason = "bounds of buckets")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}
