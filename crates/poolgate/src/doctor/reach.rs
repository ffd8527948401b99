//! Can the accounts' endpoints be reached, and does this machine's clock agree with theirs?
//!
//! Asked with `HEAD` and without a credential: any answer shows that there is somebody, and its date
//! what time it is there.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use http::{HeaderMap, Method, Uri, header};
use poolgate_core::units::Timestamp;

use super::Check;
use super::accounts::Found;
use crate::config::Way;
use crate::egress::{Egress, SendError};
use crate::table::span;

const TIMEOUT: Duration = Duration::from_secs(10);
/// Dates have whole seconds, and answers take time.
const SKEW_SEEN: Duration = Duration::from_secs(30);
/// Tokens and resets are then judged wrongly.
const SKEW_HARMS: Duration = Duration::from_mins(5);

pub async fn check(accounts: &[Found], connect_timeout: Duration, now: Timestamp) -> Vec<Check> {
    let egress = match Egress::new(connect_timeout, 0) {
        Ok(egress) => egress,
        Err(error) => {
            let advice = "see whether the system's certificates can be read";
            return vec![Check::problem("network", format!("{error:#}"), advice)];
        }
    };
    let places = places(accounts);
    let asked = places.iter().map(async |(about, Place { url, way, names })| {
        let call = egress.call(Method::HEAD, url.clone(), way, &[], None, TIMEOUT);
        let (check, date) = match call.await {
            Ok((head, _)) => (reached(about, head.status.as_u16(), names), date(&head.headers)),
            Err(error) => (unreached(about, &error, names), None),
        };
        (check, date)
    });
    let answers = join_all(asked).await;
    let dates: Vec<Timestamp> = answers.iter().filter_map(|(_, date)| *date).collect();
    let mut checks: Vec<Check> = answers.into_iter().map(|(check, _)| check).collect();
    checks.push(clock(&dates, now));
    checks
}

/// An origin, and the way there.
struct Place<'a> {
    /// One of its URLs.
    url: Uri,
    way: Way,
    /// Whose it is.
    names: Vec<&'a str>,
}

/// By origin and way.
fn places(accounts: &[Found]) -> BTreeMap<String, Place<'_>> {
    let mut places: BTreeMap<String, Place<'_>> = BTreeMap::new();
    for account in accounts {
        let Ok(spec) = &account.spec else { continue };
        let way = &spec.upstream.place.way;
        let base = format!("{}{}/", spec.upstream.place, spec.upstream.prefix).parse().ok();
        for url in base.into_iter().chain(spec.upstream.token_url.clone()) {
            let (Some(scheme), Some(authority)) = (url.scheme_str(), url.authority()) else {
                continue;
            };
            let about = format!("{scheme}://{authority}{way}");
            let new = Place { url, way: way.clone(), names: Vec::new() };
            let names = &mut places.entry(about).or_insert(new).names;
            if !names.contains(&account.name.as_str()) {
                names.push(&account.name);
            }
        }
    }
    places
}

fn reached(origin: &str, status: u16, names: &[&str]) -> Check {
    let found = format!("answers {status}; for {}", names.join(", "));
    match status {
        500.. => Check::warning(origin, found, "the upstream is in trouble: try again later"),
        _ => Check::ok(origin, format!("can be reached, for {}", names.join(", "))),
    }
}

fn unreached(about: &str, error: &anyhow::Error, names: &[&str]) -> Check {
    let by_proxy = match error.downcast_ref() {
        Some(SendError::Connect(unreachable)) => unreachable.by.is_some(),
        _ => false,
    };
    let error = format!("{error:#}");
    let advice = if by_proxy {
        "correct the account's proxy, or see what is wrong with it: nothing is sent around it"
    } else if error.contains("private_upstream") {
        "say so, if the upstream is in there; else somebody has changed what the name means"
    } else if error.contains("certificate") {
        "check the clock, and that the authority behind it is among the system's certificates"
    } else {
        "check the name, the network and the firewall; HTTPS_PROXY is not read, an account's own \
         proxy is"
    };
    Check::problem(about, format!("{error}; for {}", names.join(", ")), advice)
}

fn date(headers: &HeaderMap) -> Option<Timestamp> {
    let text = headers.get(header::DATE)?.to_str().ok()?;
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Timestamp(date.as_millisecond()))
}

/// Of several opinions the nearest to ours: one wrong upstream is not our clock's fault.
fn clock(dates: &[Timestamp], now: Timestamp) -> Check {
    let apart = |at: &Timestamp| at.until(now).max(now.until(*at));
    let Some(nearest) = dates.iter().min_by_key(|at| apart(at)) else {
        return Check::ok("clock", "no upstream told the time");
    };
    let skew = apart(nearest);
    let way = if *nearest < now { "ahead of" } else { "behind" };
    let found = format!("{} {way} the upstreams'", span(skew, " "));
    let advice = "set it, and keep it right with NTP (timedatectl set-ntp true)";
    match skew {
        _ if skew >= SKEW_HARMS => Check::problem("clock", found, advice),
        _ if skew >= SKEW_SEEN => Check::warning("clock", found, advice),
        _ => Check::ok("clock", "agrees with the upstreams'"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;

    #[test]
    fn grades_the_clock() {
        let now = Timestamp(1_795_300_000_000);
        let at = |seconds: i64| Timestamp(now.0 + seconds * 1000);
        let cases: [(&str, &[i64], Grade); 7] = [
            ("nobody said", &[], Grade::Ok),
            ("right", &[0], Grade::Ok),
            ("almost", &[-29], Grade::Ok),
            ("ahead", &[-30], Grade::Warning),
            ("behind", &[120], Grade::Warning),
            ("far off", &[-300, 400], Grade::Problem),
            ("one upstream's", &[-9000, 1], Grade::Ok),
        ];
        for (name, dates, want) in cases {
            let dates: Vec<_> = dates.iter().map(|seconds| at(*seconds)).collect();
            let check = clock(&dates, now);
            assert_eq!(check.grade, want, "{name}: {check:?}");
        }
        assert!(clock(&[at(-600)], now).found.contains("10m ahead"));
        assert!(clock(&[at(600)], now).found.contains("10m behind"));
    }

    #[test]
    fn any_answer_is_a_sign_of_life() {
        for (status, want) in
            [(200, Grade::Ok), (401, Grade::Ok), (404, Grade::Ok), (502, Grade::Warning)]
        {
            assert_eq!(reached("https://x", status, &["a"]).grade, want, "{status}");
        }
    }
}
