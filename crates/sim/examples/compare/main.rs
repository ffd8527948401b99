//! Measures what proxies cost: the same work against the simulator directly and through each proxy,
//! in turns, so that a change in the machine's mood meets all of them. `scripts/bench.sh` starts what
//! it needs, and explains the figures.
//!
//! `compare --target direct,HOST:PORT,KEY --target nginx,HOST:PORT,KEY,PID+PID --target ...`

mod client;
mod report;
mod socket;
mod work;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::Parser;

use client::{Connection, Times};
use report::{Report, Round};
use work::{Work, shapes};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// After a round, so that what a proxy does later is counted with the requests it is done for.
const SETTLE: Duration = Duration::from_millis(400);
const WARM_UP: Duration = Duration::from_millis(500);
/// Longer than any answer takes.
const STUCK: Duration = Duration::from_secs(30);
/// One after the other to each target in turn, after each round; with a pause for what comes behind.
const LONE: usize = 100;
const LONE_PAUSE: Duration = Duration::from_millis(2);
/// CPU times are not counted for the direct connection: it needs less time.
const DIRECT_SHARE: f64 = 0.5;

#[derive(Parser)]
struct Arguments {
    /// Name, address, API key, and the processes whose CPU time counts. The first is the direct
    /// connection; the last is compared with the one before it.
    #[arg(long = "target", required = true)]
    targets: Vec<Target>,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Scales the length of all rounds.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Only the shapes whose name begins so.
    #[arg(long)]
    only: Option<String>,
    /// CPU per request of the last target may be so many times that of the one before it.
    #[arg(long, default_value_t = 2.0)]
    limit: f64,
    /// What is compared, for the head of the table; repeat for more.
    #[arg(long = "about")]
    about: Vec<String>,
    /// Only does the work, for a program that watches itself.
    #[arg(long)]
    unjudged: bool,
    /// File for the figures of every round.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone)]
struct Target {
    name: String,
    address: SocketAddr,
    key: String,
    pids: Vec<u32>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(',').collect();
        let [name, address, key, pids @ ..] = parts.as_slice() else {
            return Err("wanted: NAME,ADDRESS,KEY[,PID+PID]".into());
        };
        let pids = pids.iter().flat_map(|pids| pids.split('+'));
        let pids: Result<_, _> = pids.map(str::parse).collect();
        Ok(Self {
            name: (*name).to_owned(),
            address: address.parse().map_err(|e| format!("{address}: {e}"))?,
            key: (*key).to_owned(),
            pids: pids.map_err(|e| format!("process ids: {e}"))?,
        })
    }
}

fn main() -> io::Result<ExitCode> {
    let arguments = Arguments::parse();
    // One thread: the machine is small, and the proxies need the rest.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(run(&arguments))?;
    if let Some(path) = &arguments.json {
        std::fs::write(path, report.to_json(arguments.limit))?;
    }
    Ok(if arguments.unjudged { ExitCode::SUCCESS } else { report.judge(arguments.limit) })
}

async fn run(arguments: &Arguments) -> io::Result<Report> {
    let names = arguments.targets.iter().map(|t| t.name.clone()).collect();
    let mut report = Report::new(names, arguments.about.clone());
    report.print_head();
    for shape in shapes() {
        if let Some(only) = &arguments.only
            && !shape.name.starts_with(only.as_str())
        {
            continue;
        }
        let works: Vec<Work> = arguments
            .targets
            .iter()
            .map(|target| shape.work(target.address, &target.key))
            .collect();
        check_equal(&arguments.targets, &works).await?;
        for (target, work) in arguments.targets.iter().zip(&works) {
            round(target, work, WARM_UP).await?;
        }
        let mut rounds: Vec<Vec<Round>> = vec![Vec::new(); works.len()];
        for _ in 0..arguments.rounds {
            for (index, (target, work)) in arguments.targets.iter().zip(&works).enumerate() {
                let share = if index == 0 { DIRECT_SHARE } else { 1.0 };
                let time = shape.time.mul_f64(arguments.scale * share);
                rounds[index].push(round(target, work, time).await?);
            }
            if shape.streams() {
                for (rounds, times) in rounds.iter_mut().zip(alone(&works).await?) {
                    rounds.last_mut().expect("one was pushed").note_alone(&times);
                }
            }
        }
        report.add(&shape, rounds);
        report.print_last();
    }
    Ok(report)
}

/// The answers must be the same, or the work was not.
async fn check_equal(targets: &[Target], works: &[Work]) -> io::Result<()> {
    let mut expected = None;
    for (target, work) in targets.iter().zip(works) {
        let mut connection = Connection::open(work).await?;
        connection.exchange(&work.requests[0], work.streams()).await?;
        let body = connection.body()?;
        if *expected.get_or_insert_with(|| body.clone()) != body {
            let name = &target.name;
            return Err(io::Error::other(format!("{name} answers something else")));
        }
    }
    Ok(())
}

/// Keeps all connections busy for `time`, each with one request after the other.
async fn round(target: &Target, work: &Work, time: Duration) -> io::Result<Round> {
    let mut connections = Vec::new();
    for _ in &work.requests {
        connections.push(Connection::open(work).await?);
    }
    let before = cpu(&target.pids)?;
    let start = Instant::now();
    let end = start + time;
    let busy = connections.into_iter().zip(&work.requests).map(|(mut connection, request)| {
        let (request, streams) = (request.clone(), work.streams());
        tokio::spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < end {
                times.push(connection.exchange(&request, streams).await?);
            }
            io::Result::Ok(times)
        })
    });
    let mut times = Vec::new();
    for task in busy.collect::<Vec<_>>() {
        let done = tokio::time::timeout(time + STUCK, task).await;
        times.append(&mut done.map_err(io::Error::other)?.map_err(io::Error::other)??);
    }
    let took = start.elapsed();
    tokio::time::sleep(SETTLE).await;
    let after = cpu(&target.pids)?;
    Ok(Round::new(&times, took, (after.0 - before.0, after.1 - before.1)))
}

/// What a proxy makes the beginning later by is asked for with nothing beside it: among many streams it
/// depends on which of their events fall together.
async fn alone(works: &[Work]) -> io::Result<Vec<Vec<Times>>> {
    let mut connections = Vec::new();
    for work in works {
        connections.push(Connection::open(work).await?);
    }
    let mut times = vec![Vec::with_capacity(LONE); works.len()];
    for _ in 0..LONE {
        for ((connection, work), times) in connections.iter_mut().zip(works).zip(&mut times) {
            let done = connection.exchange(&work.lone, work.streams());
            times.push(tokio::time::timeout(STUCK, done).await.map_err(io::Error::other)??);
            tokio::time::sleep(LONE_PAUSE).await;
        }
    }
    Ok(times)
}

/// User and system time of processes with all their threads, in ticks of 10 ms.
fn cpu(pids: &[u32]) -> io::Result<(u64, u64)> {
    let mut sum = (0, 0);
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The second field is a name in brackets which may hold spaces; the fields follow it.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let field = |index: usize| fields.get(index).and_then(|f| f.parse::<u64>().ok());
        let times = field(11).zip(field(12));
        let (user, system) = times.ok_or_else(|| io::Error::other("unreadable /proc/PID/stat"))?;
        sum.0 += user;
        sum.1 += system;
    }
    Ok(sum)
}
