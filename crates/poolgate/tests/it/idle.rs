//! What sockets cost that do nothing, and that nothing of them stays.
//!
//! 500 here, 5,000 with `make soak`; resident memory of a process of its own.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use poolgate::keys::generate;
use poolgate::store::Store;

use crate::harness::{PATIENCE, Setup};
use crate::kill::start;
use crate::socket_client::{Client, create, said};

/// Both legs together, in KiB: the promise, and some for an unoptimised build.
const MOST: u64 = 40;

/// Bytes of a conversation as they are sent with each turn.
const LONG: usize = 100_000;

/// Resident memory of a process, in KiB.
pub fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_socket_costs_little_and_leaves_nothing() {
    let count = if std::env::var_os("POOLGATE_SOAK").is_some() { 5000 } else { 500 };
    let mut setup = Setup::new().await;
    let a = setup.codex("a");
    let dir = setup.dir.path().to_owned();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut file = format!("listen = \"127.0.0.1:{port}\"\ndata_dir = {:?}\n", dir.join("data"));
    file += "[limits]\nproxy_websocket = 0\nsocket_idle_timeout_s = 3600\n";
    for account in &setup.raw.account {
        file += "[[account]]\n";
        file += &toml::to_string(account).unwrap();
    }
    std::fs::write(dir.join("poolgate.toml"), file).unwrap();
    let (key, new) = generate("idle".into(), vec![], vec![], None).unwrap();
    crate::canary::secret("a client key", &key);
    let store = Store::open(&dir.join("data")).await.unwrap();
    store.add_client_key(&new, poolgate_core::units::Timestamp(0)).await.unwrap();
    store.close().await;
    let mut gateway = start(&dir, port).await;
    let pid = gateway.child.id().unwrap();

    let open = async |count: usize| -> Vec<Client> {
        let one = async |_| {
            let mut client = Client::at(&gateway.url, &key).await;
            client.next().await.unwrap().unwrap();
            assert_eq!(said(&client.turn(&create("hi")).await), "completed");
            client
        };
        stream::iter(0..count).map(one).buffer_unordered(16).collect().await
    };
    let closed = async || {
        let gone = async {
            while a.open_sockets() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.expect("the upstream's sockets are closed");
    };
    // What is kept once, like the database's pages, is there before the first look.
    let mut warm = open(16).await;
    for client in &mut warm {
        for _ in 0..60 {
            assert_eq!(said(&client.turn(&create("hi")).await), "completed");
        }
    }
    drop(warm);
    closed().await;
    // So is what the opening of many takes for a moment, which is of no socket.
    let mut clients = open(250).await;
    let before = resident(pid);
    clients.append(&mut open(count).await);
    let full = resident(pid);
    let each = (full - before) / u64::try_from(count).unwrap();
    println!("{each} KiB for each of {count} idle sockets");
    assert!(each <= MOST, "{each} KiB for each idle socket");
    let long = create(&"a conversation ".repeat(LONG / 15));
    let send = async |mut client: Client| {
        assert_eq!(said(&client.turn(&long).await), "completed");
        client
    };
    let clients: Vec<Client> = stream::iter(clients).map(send).buffer_unordered(4).collect().await;
    let all = clients.len();
    let more = resident(pid).saturating_sub(full) / u64::try_from(all).unwrap();
    println!("{more} KiB more for each, behind turns of {LONG} bytes");
    assert!(each + more <= MOST, "{each} and {more} KiB for each idle socket");
    let full = resident(pid);
    drop(clients);
    closed().await;
    let again = open(all).await;
    let grown = resident(pid).saturating_sub(full) / u64::try_from(count).unwrap();
    // Were anything kept, it would be as much again; the rest is what the process keeps once.
    assert!(grown < each / 2, "{grown} KiB more for each, the second time, of {each}");
    drop(again);
    closed().await;
    gateway.child.start_kill().unwrap();
    gateway.child.wait().await.unwrap();
}
