//! Measures what open sockets cost the simulator: `cargo run --release -p poolgate-sim --example
//! sockets -- [SOCKETS [TURNS]]`.
//!
//! The simulator runs in a child process on one thread, so its memory and CPU time
//! (`/proc/<pid>/statm` and `stat`) are told apart from the loader's. All sockets are opened, then
//! small turns are asked one after the other, each on the next socket.

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::time::Instant;

use futures_util::{SinkExt as _, StreamExt as _};
use poolgate_sim::{AccountSpec, Kind, Scenario, Sim, WindowSpec};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::{WebSocketStream, client_async};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Of `/proc/<pid>/stat`; 100 on every Linux in use.
const TICKS_PER_S: f64 = 100.0;
/// Of `/proc/<pid>/statm`; 4 KiB where this is measured.
const PAGE_KIB: f64 = 4.0;
const FRAME: &str = r#"{"type":"response.create","model":"gpt-5.5","stream":true,"store":false,"input":[{"role":"user","content":"hi"}]}"#;

fn main() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "serve") {
        return runtime.block_on(serve());
    }
    let number = |at: usize, usual| {
        arguments.get(at).map_or(Ok(usual), |text| text.parse().map_err(io::Error::other))
    };
    runtime.block_on(load(number(0, 1_000)?, number(1, 50_000)?))
}

/// The child: prints address and credentials, ends when its stdin does.
async fn serve() -> io::Result<()> {
    let unlimited = WindowSpec { length_s: 18_000, capacity: 1e12, used: 0.0, resets_in_s: None };
    let mut spec = AccountSpec::new(Kind::Codex, "load");
    spec.windows = Some(vec![unlimited]);
    let scenario = Scenario { journal: false, accounts: vec![spec], ..Scenario::default() };
    let sim = Sim::start(scenario).await?;
    let account = sim.account("load").expect("the scenario has it");
    let address = sim.url().replace("http://", "");
    println!("{address} {} {}", account.credential(), account.account_id());
    let end = tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut Vec::new()));
    end.await.map_err(io::Error::other)??;
    sim.stop().await;
    Ok(())
}

async fn load(sockets: usize, turns: usize) -> io::Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("serve")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut greeting = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut greeting)?;
    let before = resident_kib(child.id())?;
    let mut open = Vec::with_capacity(sockets);
    for _ in 0..sockets {
        open.push(connect(greeting.trim()).await?);
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let (sockets, asked) = (sockets as f64, turns as f64);
    println!("{:.1} KiB per idle socket", (resident_kib(child.id())? - before) / sockets);

    let (started, busy) = (Instant::now(), cpu_s(child.id())?);
    let count = open.len();
    for turn in 0..turns {
        ask(&mut open[turn % count]).await?;
    }
    let cpu_us = (cpu_s(child.id())? - busy) / asked * 1e6;
    let rate = asked / started.elapsed().as_secs_f64();
    println!("{cpu_us:.1} us of CPU per turn, {rate:.0} turns/s");
    println!("{:.1} KiB per socket after that", (resident_kib(child.id())? - before) / sockets);
    drop(child.stdin.take());
    child.wait().map(drop)
}

async fn connect(greeting: &str) -> io::Result<WebSocketStream<TcpStream>> {
    let words: Vec<&str> = greeting.split(' ').collect();
    let [address, credential, account] = words[..] else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let url = format!("ws://{address}/backend-api/codex/responses");
    let mut request = url.into_client_request().map_err(io::Error::other)?;
    for (name, value) in [
        ("authorization", format!("Bearer {credential}")),
        ("chatgpt-account-id", account.to_owned()),
        ("openai-beta", "responses_websockets=2026-02-06".to_owned()),
    ] {
        request.headers_mut().insert(name, value.parse().map_err(io::Error::other)?);
    }
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(client_async(request, stream).await.map_err(io::Error::other)?.0)
}

async fn ask(socket: &mut WebSocketStream<TcpStream>) -> io::Result<()> {
    socket.send(Message::text(FRAME)).await.map_err(io::Error::other)?;
    loop {
        let message = socket.next().await.ok_or(io::ErrorKind::UnexpectedEof)?;
        let message = message.map_err(io::Error::other)?;
        if message.to_text().is_ok_and(|text| text.starts_with(r#"{"type":"response.completed""#)) {
            return Ok(());
        }
    }
}

fn resident_kib(process: u32) -> io::Result<f64> {
    let statm = std::fs::read_to_string(format!("/proc/{process}/statm"))?;
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok());
    pages.map(|pages| pages * PAGE_KIB).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// User and system time, seconds.
fn cpu_s(process: u32) -> io::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').ok_or(io::ErrorKind::InvalidData)?;
    let ticks: f64 = fields.split(' ').skip(12).take(2).filter_map(|t| t.parse::<f64>().ok()).sum();
    Ok(ticks / TICKS_PER_S)
}
