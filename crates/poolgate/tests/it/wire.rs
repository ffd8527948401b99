//! A client that writes its bytes itself.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{Harness, PATIENCE};

pub struct Raw(pub TcpStream);

/// The head of an answer, and what came of its body.
#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Got {
    pub fn code(&self) -> &str {
        let line = self.head.lines().find_map(|line| line.strip_prefix("x-poolgate-error: "));
        line.unwrap_or_default()
    }

    /// `None`: nothing came.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() })
    }
}

impl Raw {
    pub async fn connect(h: &Harness) -> Self {
        Self::to(h.url.trim_start_matches("http://")).await
    }

    pub async fn to(address: &str) -> Self {
        Self(timeout(PATIENCE, TcpStream::connect(address)).await.unwrap().unwrap())
    }

    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        // Whoever has refused already may have closed.
        let _ = self.0.write_all(bytes.as_ref()).await;
    }

    /// Until the other end closes.
    pub async fn rest(&mut self) -> Vec<u8> {
        self.rest_within(PATIENCE).await.expect("it is closed in time")
    }

    pub async fn rest_within(&mut self, patience: Duration) -> Option<Vec<u8>> {
        let mut all = Vec::new();
        let read = async {
            let mut part = [0; 4096];
            while let Ok(n @ 1..) = self.0.read(&mut part).await {
                all.extend_from_slice(&part[..n]);
            }
        };
        timeout(patience, read).await.ok().map(|()| all)
    }

    /// Until `end` has been read.
    pub async fn until(&mut self, end: &str) -> String {
        let mut all = Vec::new();
        let read = async {
            let mut part = [0; 4096];
            while !String::from_utf8_lossy(&all).contains(end) {
                let n = self.0.read(&mut part).await.unwrap();
                assert!(n > 0, "it ends before {end:?}: {}", String::from_utf8_lossy(&all));
                all.extend_from_slice(&part[..n]);
            }
        };
        timeout(PATIENCE, read).await.unwrap_or_else(|_| panic!("{end:?} does not come"));
        String::from_utf8(all).unwrap()
    }

    /// One request, and what comes until the other end closes.
    pub async fn ask(h: &Harness, bytes: impl AsRef<[u8]>) -> Option<Got> {
        let mut raw = Self::connect(h).await;
        raw.write(bytes).await;
        Got::read(&raw.rest().await)
    }
}
