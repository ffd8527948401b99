//! Measures what a request costs the simulator: `cargo run --release -p poolgate-sim --example
//! load -- [REQUESTS [CONNECTIONS]]`.
//!
//! The simulator runs in a child process on one thread, so its CPU time (`/proc/<pid>/stat`,
//! user and system) is told apart from the loader's. Requests are a small streamed codex turn.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Instant;

use poolgate_sim::{AccountSpec, Kind, Scenario, Sim, WindowSpec};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Of `/proc/<pid>/stat`; 100 on every Linux in use.
const TICKS_PER_S: f64 = 100.0;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("serve") => serve(),
        requests => {
            let requests = requests.map_or(Ok(200_000), str::parse).map_err(io::Error::other)?;
            let connections = arguments.next().map_or(Ok(16), |n| n.parse());
            load(requests, connections.map_err(io::Error::other)?)
        }
    }
}

/// The child: prints the address and the head of requests, ends when its stdin does.
fn serve() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let unlimited =
            WindowSpec { length_s: 18_000, capacity: 1e12, used: 0.0, resets_in_s: None };
        let mut spec = AccountSpec::new(Kind::Codex, "load");
        spec.windows = Some(vec![unlimited]);
        let scenario = Scenario { journal: false, accounts: vec![spec], ..Scenario::default() };
        let sim = Sim::start(scenario).await?;
        let account = sim.account("load").expect("the scenario has it");
        println!("{}", sim.url().trim_start_matches("http://"));
        println!("{}", account.credential());
        println!("{}", account.account_id());
        let mut end = tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut Vec::new()));
        (&mut end).await.map_err(io::Error::other)??;
        sim.stop().await;
        Ok(())
    })
}

fn load(requests: usize, connections: usize) -> io::Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("serve")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut line = || lines.next().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()));
    let (address, token, workspace) = (line()?, line()?, line()?);
    let body = r#"{"model":"gpt-5.5","stream":true,"store":false,"input":[{"type":"message","role":"user","content":[{"type":"input_text","text":"say hi"}]}]}"#;
    let request = format!(
        "POST /backend-api/codex/responses HTTP/1.1\r\nhost: sim\r\nauthorization: Bearer {token}\r\n\
         chatgpt-account-id: {workspace}\r\ncontent-type: application/json\r\n\
         accept: text/event-stream\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );

    let mut sockets = Vec::new();
    for _ in 0..connections {
        let socket = TcpStream::connect(&address)?;
        socket.set_nodelay(true)?;
        sockets.push(socket);
    }
    let pid = child.id().to_string();
    let rounds = requests / connections;
    run(&mut sockets, &request, rounds.min(500))?;
    let (sim_before, own_before, start) = (cpu(&pid)?, cpu("self")?, Instant::now());
    run(&mut sockets, &request, rounds)?;
    let (sim_after, own_after, took) = (cpu(&pid)?, cpu("self")?, start.elapsed());

    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 requests")]
    let done = (rounds * connections) as f64;
    let per_request = |ticks: u64| {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 ticks")]
        let ticks = ticks as f64;
        ticks / TICKS_PER_S * 1e6 / done
    };
    println!("requests/s          {:.0}", done / took.as_secs_f64());
    println!("sim user µs/req     {:.2}", per_request(sim_after.0 - sim_before.0));
    println!("sim system µs/req   {:.2}", per_request(sim_after.1 - sim_before.1));
    let own = own_after.0 + own_after.1 - own_before.0 - own_before.1;
    println!("loader µs/req       {:.2}", per_request(own));
    drop(child.stdin.take());
    child.wait()?;
    Ok(())
}

/// One request on every connection, then all the answers, so the simulator finds work in batches
/// as it does under load.
fn run(sockets: &mut [TcpStream], request: &str, rounds: usize) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    for _ in 0..rounds {
        for socket in &mut *sockets {
            socket.write_all(request.as_bytes())?;
        }
        for socket in &mut *sockets {
            let mut filled = 0;
            while !buffer[..filled].ends_with(b"\r\n0\r\n\r\n") {
                let read = socket.read(&mut buffer[filled..])?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                filled += read;
            }
            if !buffer.starts_with(b"HTTP/1.1 200") {
                let head = String::from_utf8_lossy(&buffer[..filled.min(300)]).into_owned();
                return Err(io::Error::other(head));
            }
        }
    }
    Ok(())
}

/// User and system ticks of a process.
fn cpu(pid: &str) -> io::Result<(u64, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is a name in brackets which may hold spaces; the fields follow it.
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let field = |index: usize| fields.get(index).and_then(|field| field.parse().ok());
    field(11).zip(field(12)).ok_or_else(|| io::Error::other("unreadable /proc/<pid>/stat"))
}
