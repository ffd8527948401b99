//! Clients of HTTP/2 that keep us busy without asking anything: each is closed after a bounded number
//! of frames, or not read from any more. Written frame by frame, since no client's library would.

use poolgate::config::RawListener;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::harness::{Harness, PATIENCE, Setup};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Most that the system's buffers of a connection hold, for whoever stops reading in time.
const BUFFERS: usize = 8 << 20;
/// Of the client's end, which some systems let grow to more than that.
const OWN_BUFFER: u32 = 64 << 10;
const FRAMES: u32 = 2_000_000;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_HEADERS: u8 = 4;
/// RFC 9113, 7.
const ENHANCE_YOUR_CALM: u32 = 0xb;

/// `GET / HTTP/2` of the static table (RFC 7541, appendix A), and `a: b`.
const GET: [u8; 3] = [0x82, 0x86, 0x84];
const FIELD: [u8; 5] = [0, 1, b'a', 1, b'b'];

/// RFC 9113, 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

async fn open(h: &Harness) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(OWN_BUFFER).unwrap();
    socket.set_send_buffer_size(OWN_BUFFER).unwrap();
    let address = h.url.trim_start_matches("http://").parse().unwrap();
    let mut stream = timeout(PATIENCE, socket.connect(address)).await.unwrap().unwrap();
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    stream
}

/// Bytes written before the other end closed, while its own were read.
async fn until_closed(stream: TcpStream, next: impl Fn(u32) -> Vec<u8>) -> (usize, Vec<u8>) {
    let (mut reader, mut writer) = stream.into_split();
    let write = async {
        let mut written = 0;
        for n in 0..FRAMES {
            let frame = next(n);
            if writer.write_all(&frame).await.is_err() {
                break;
            }
            written += frame.len();
        }
        written
    };
    let read = async {
        let mut all = Vec::new();
        let mut part = [0; 4096];
        while let Ok(n @ 1..) = reader.read(&mut part).await {
            all.extend_from_slice(&part[..n]);
        }
        all
    };
    timeout(PATIENCE, futures_util::future::join(write, read)).await.expect("it is closed")
}

/// The code of the GOAWAY that was said last.
fn goaway(mut bytes: &[u8]) -> Option<u32> {
    let mut code = None;
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        if let ([_, _, _, _, said @ ..], true) = (rest, *kind == GOAWAY) {
            code = said.first_chunk().map(|said| u32::from_be_bytes(*said));
        }
        bytes = rest.get(length..).unwrap_or_default();
    }
    code
}

/// CVE-2024-27316 and its kin: a head that goes on for ever.
#[tokio::test]
async fn reliability_http_8_a_head_that_never_ends_is_cut_off() {
    let (h, _) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let large: Vec<u8> = FIELD.repeat(3000);
    let cases: [(&str, &[u8]); 3] =
        [("large frames", &large), ("a field each", &FIELD), ("empty", &[])];
    for (name, more) in cases {
        let stream = open(&h).await;
        let next = |n| match n {
            0 => frame(HEADERS, 0, 1, &GET),
            _ => frame(CONTINUATION, 0, 1, more),
        };
        let (written, answer) = until_closed(stream, next).await;
        assert!(written < BUFFERS, "{name}: {written} bytes");
        assert_eq!(goaway(&answer), Some(ENHANCE_YOUR_CALM), "{name}");
    }
    assert_eq!(h.get("/healthz", &[]).await.status, 200);
    h.finish().await;
}

/// CVE-2023-44487: it asks and takes back, and waits for nothing.
#[tokio::test]
async fn reliability_http_8_who_resets_faster_than_it_is_served_is_closed() {
    let (h, _) = Harness::start(|s: &mut Setup| s.codex("a")).await;
    let stream = open(&h).await;
    let next = |n: u32| {
        let stream = n * 2 + 1;
        let asked = frame(HEADERS, END_HEADERS, stream, &GET);
        [asked, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    };
    let (written, answer) = until_closed(stream, next).await;
    assert!(written < BUFFERS, "{written} bytes");
    assert_eq!(goaway(&answer), Some(ENHANCE_YOUR_CALM));
    assert_eq!(h.get("/healthz", &[]).await.status, 200);
    h.finish().await;
}

/// CVE-2019-9512, 9515: each wants an answer that is never taken. Nothing is read from whoever does
/// not read, until it is closed.
#[tokio::test]
async fn reliability_http_8_answers_that_nobody_takes_are_not_piled_up() {
    let mut setup = Setup::new().await;
    setup.raw.listener = RawListener { write_timeout_s: Some(1), ..RawListener::default() };
    setup.codex("a");
    let h = setup.start().await;
    for (name, one) in
        [("ping", frame(PING, 0, 0, &[7; 8])), ("settings", frame(SETTINGS, 0, 0, &[]))]
    {
        let mut stream = open(&h).await;
        let many = one.repeat(1000);
        let flood = async {
            let mut written = 0;
            while written < 2 * BUFFERS && stream.write_all(&many).await.is_ok() {
                written += many.len();
            }
            written
        };
        let written = timeout(PATIENCE, flood).await.expect("it is closed");
        assert!(written < BUFFERS, "{name}: {written} bytes");
    }
    assert_eq!(h.get("/healthz", &[]).await.status, 200);
    h.finish().await;
}
