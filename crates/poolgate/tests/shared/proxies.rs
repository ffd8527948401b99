//! A small proxy that speaks `CONNECT` and SOCKS5, counts, and misbehaves as told. Names that end in
//! `.invalid` it takes for the simulator: nobody else can resolve them.

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::canary;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Well,
    /// It connects to nowhere: 403, or "not allowed".
    Refuses,
    /// It cannot reach the upstream: 502, or "host unreachable".
    CannotReach,
    /// It takes the connection and says nothing.
    Hangs,
    /// It takes the connection and closes it.
    Closes,
    /// Its answer is neither HTTP nor SOCKS.
    Babbles,
}

#[derive(Debug)]
struct State {
    manner: Manner,
    /// User name and password that it wants.
    login: Option<(String, String)>,
    simulator: SocketAddr,
    /// Hosts and ports it was asked for, as they were sent.
    asked: Vec<String>,
    /// Refused logins.
    refused: usize,
}

pub struct TestProxy {
    state: Arc<Mutex<State>>,
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for TestProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TestProxy {
    /// In front of what listens at `simulator`, a URL.
    #[expect(clippy::disallowed_methods, reason = "the proxy is aborted when it is dropped")]
    pub async fn start(simulator: &str, login: Option<(&str, &str)>) -> Self {
        if let Some((_, password)) = login {
            canary::secret("a proxy's password", password);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            manner: Manner::Well,
            login: login.map(|(user, password)| (user.into(), password.into())),
            simulator: simulator.trim_start_matches("http://").parse().unwrap(),
            asked: Vec::new(),
            refused: 0,
        }));
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let state = Arc::clone(&shared);
                tokio::spawn(async move { serve(stream, &state).await });
            }
        });
        Self { state, address, task }
    }

    pub fn is(&self, manner: Manner) {
        self.state.lock().manner = manner;
    }

    pub fn asked(&self) -> Vec<String> {
        self.state.lock().asked.clone()
    }

    pub fn refused(&self) -> usize {
        self.state.lock().refused
    }

    /// Nothing listens there any more.
    pub fn stop(&self) {
        self.task.abort();
    }
}

/// `None`: the other side has gone, or is refused.
async fn serve(mut stream: TcpStream, state: &Mutex<State>) -> Option<()> {
    let first = stream.read_u8().await.ok()?;
    let manner = state.lock().manner;
    match manner {
        Manner::Hangs => {
            while stream.read_u8().await.is_ok() {}
            return None;
        }
        Manner::Closes => return None,
        Manner::Babbles => {
            stream.write_all(b"220 mail.example ESMTP\r\n").await.ok()?;
            return None;
        }
        _ => {}
    }
    let target = if first == 5 {
        socks(&mut stream, state, manner).await?
    } else {
        connect(&mut stream, first, state, manner).await?
    };
    let (host, _) = target.rsplit_once(':')?;
    let simulator = state.lock().simulator;
    let upstream = if host.ends_with(".invalid") {
        TcpStream::connect(simulator).await
    } else {
        TcpStream::connect(&target).await
    };
    copy_bidirectional(&mut stream, &mut upstream.ok()?).await.ok()?;
    Some(())
}

async fn connect(
    stream: &mut TcpStream,
    first: u8,
    state: &Mutex<State>,
    manner: Manner,
) -> Option<String> {
    let mut head = vec![first];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.strip_prefix("CONNECT ")?.split(' ').next()?.to_owned();
    let wanted = state.lock().login.clone();
    if let Some((user, password)) = wanted {
        let basic = STANDARD.encode(format!("{user}:{password}"));
        let is_there = head.lines().any(|line| {
            let Some((name, value)) = line.split_once(": ") else { return false };
            name.eq_ignore_ascii_case("proxy-authorization") && value == format!("Basic {basic}")
        });
        if !is_there {
            state.lock().refused += 1;
            let answer = b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(answer).await.ok()?;
            return None;
        }
    }
    state.lock().asked.push(target.clone());
    let status = match manner {
        Manner::Refuses => "403 Forbidden\r\ncontent-length: 2\r\n\r\nno",
        Manner::CannotReach => "502 Bad Gateway\r\ncontent-length: 0\r\n\r\n",
        _ => "200 Connection established\r\n\r\n",
    };
    stream.write_all(format!("HTTP/1.1 {status}").as_bytes()).await.ok()?;
    (manner == Manner::Well).then_some(target)
}

async fn socks(stream: &mut TcpStream, state: &Mutex<State>, manner: Manner) -> Option<String> {
    let text = async |stream: &mut TcpStream| {
        let mut bytes = vec![0; usize::from(stream.read_u8().await.ok()?)];
        stream.read_exact(&mut bytes).await.ok()?;
        Some(bytes)
    };
    let methods = text(stream).await?;
    let wanted = state.lock().login.clone();
    let method = if wanted.is_some() { 2 } else { 0 };
    if !methods.contains(&method) {
        state.lock().refused += 1;
        stream.write_all(&[5, 0xff]).await.ok()?;
        return None;
    }
    stream.write_all(&[5, method]).await.ok()?;
    if let Some((user, password)) = wanted {
        assert_eq!(stream.read_u8().await.ok()?, 1);
        let good = text(stream).await? == user.as_bytes();
        let good = text(stream).await? == password.as_bytes() && good;
        stream.write_all(&[1, u8::from(!good)]).await.ok()?;
        if !good {
            state.lock().refused += 1;
            return None;
        }
    }
    let mut head = [0; 4];
    stream.read_exact(&mut head).await.ok()?;
    assert_eq!(head[..3], [5, 1, 0]);
    let host = match head[3] {
        3 => String::from_utf8(text(stream).await?).unwrap(),
        1 => {
            let mut address = [0; 4];
            stream.read_exact(&mut address).await.ok()?;
            std::net::Ipv4Addr::from(address).to_string()
        }
        other => panic!("address type {other}"),
    };
    let target = format!("{host}:{}", stream.read_u16().await.ok()?);
    state.lock().asked.push(target.clone());
    let code = match manner {
        Manner::Refuses => 2,
        Manner::CannotReach => 4,
        _ => 0,
    };
    stream.write_all(&[5, code, 0, 1, 127, 0, 0, 1, 0, 80]).await.ok()?;
    (manner == Manner::Well).then_some(target)
}
