use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::FutureExt;
use http::Uri;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::super::resolve::Names;
use super::*;
use crate::config::Way;
use crate::json::Text;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn connections(connect_timeout: Duration) -> Arc<Connections> {
    connections_by(Names::system(), connect_timeout)
}

fn connections_by(names: Names, connect_timeout: Duration) -> Arc<Connections> {
    let tls = super::super::tls_config().unwrap();
    Arc::new(Connections::new(Dialer::new(tls, connect_timeout, Arc::default(), names)))
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, format!("http://{address}/v1?q"))
}

/// Reads one request without a body; `None`: the other side has closed.
async fn read(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return None,
        }
    }
    Some(String::from_utf8(head).unwrap())
}

async fn send(
    connections: &Arc<Connections>,
    uri: &str,
    way: Way,
) -> Result<Response<Received>, SendError> {
    let uri: Uri = uri.parse().unwrap();
    let place = Arc::new(Place::of(&uri, way).unwrap());
    let path = uri.path_and_query().unwrap().clone();
    let request = Request::builder().uri(path).body(Text::default().into()).unwrap();
    connections.send(request, &place).await
}

async fn ask(connections: &Arc<Connections>, uri: &str) -> Result<Bytes, SendError> {
    let response = send(connections, uri, Way::default()).await?;
    Ok(response.into_body().collect().await.unwrap().to_bytes())
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    let (listener, uri) = listen().await;
    let host = listener.local_addr().unwrap();
    let connections = connections(Duration::from_secs(5));
    let client = async {
        for _ in 0..3 {
            assert_eq!(ask(&connections, &uri).await.unwrap(), "ok");
        }
    };
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        for _ in 0..3 {
            let head = read(&mut stream).await.unwrap();
            assert!(head.starts_with("GET /v1?q HTTP/1.1\r\n"), "{head}");
            assert!(head.contains(&format!("\r\nhost: {host}\r\n")), "{head}");
            stream.write_all(ANSWER).await.unwrap();
        }
    };
    tokio::join!(client, server);
}

#[tokio::test]
async fn one_that_the_upstream_closed_meanwhile_is_replaced() {
    let (listener, uri) = listen().await;
    let connections = connections(Duration::from_secs(5));
    let client = async {
        for _ in 0..3 {
            assert_eq!(ask(&connections, &uri).await.unwrap(), "ok");
        }
    };
    let server = async {
        for _ in 0..3 {
            let (mut stream, _) = listener.accept().await.unwrap();
            read(&mut stream).await.unwrap();
            stream.write_all(ANSWER).await.unwrap();
        }
    };
    tokio::join!(client, server);
}

#[tokio::test]
async fn a_body_that_is_dropped_closes_its_connection() {
    let (listener, uri) = listen().await;
    let connections = connections(Duration::from_secs(5));
    let client = async {
        let response = send(&connections, &uri, Way::default()).await.unwrap();
        drop(response);
        assert_eq!(ask(&connections, &uri).await.unwrap(), "ok", "on another");
    };
    let server = async {
        let (mut first, _) = listener.accept().await.unwrap();
        read(&mut first).await.unwrap();
        first.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nhalf").await.unwrap();
        assert_eq!(read(&mut first).await, None);
        let (mut second, _) = listener.accept().await.unwrap();
        read(&mut second).await.unwrap();
        second.write_all(ANSWER).await.unwrap();
    };
    tokio::join!(client, server);
}

#[tokio::test]
async fn a_request_that_was_sent_is_not_sent_again() {
    let (listener, uri) = listen().await;
    let connections = connections(Duration::from_secs(5));
    let client = async {
        assert_eq!(ask(&connections, &uri).await.unwrap(), "ok");
        // Whoever asked knows whether it may be sent once more.
        let lost = ask(&connections, &uri).await;
        assert!(matches!(lost, Err(SendError::Stale(_))), "a kept one: {lost:?}");
        let lost = ask(&connections, &uri).await;
        assert!(matches!(lost, Err(SendError::Broke(_))), "a new one: {lost:?}");
        assert_eq!(ask(&connections, &uri).await.unwrap(), "ok");
        let lost = ask(&connections, &uri).await;
        assert!(matches!(lost, Err(SendError::Broke(_))), "it was worked on: {lost:?}");
    };
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        read(&mut stream).await.unwrap();
        stream.write_all(ANSWER).await.unwrap();
        read(&mut stream).await.unwrap();
        drop(stream);
        let (mut stream, _) = listener.accept().await.unwrap();
        read(&mut stream).await.unwrap();
        drop(stream);
        let (mut stream, _) = listener.accept().await.unwrap();
        read(&mut stream).await.unwrap();
        stream.write_all(ANSWER).await.unwrap();
        read(&mut stream).await.unwrap();
        // The bound itself is what is tried.
        tokio::time::sleep(STALE_WITHIN).await;
    };
    tokio::join!(client, server);
}

/// reliability §8: the accounts stay where they can be reached.
#[tokio::test]
async fn a_resolver_that_fails_stops_nobody() {
    let (listener, uri) = listen().await;
    let uri = uri.replace("127.0.0.1", "upstream.test");
    let fails = Arc::new(AtomicBool::new(false));
    let names = Names::by({
        let fails = Arc::clone(&fails);
        move |_| {
            let fails = fails.load(Ordering::Relaxed);
            let found = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
            let error = || std::io::Error::other("Temporary failure in name resolution");
            async move { if fails { Err(error()) } else { Ok(found) } }.boxed()
        }
    });
    let connections = connections_by(names, Duration::from_secs(5));
    let client = async {
        for _ in 0..2 {
            // The body is dropped, and its connection with it: the next one is new.
            send(&connections, &uri, Way::ANYWHERE).await.unwrap();
            fails.store(true, Ordering::Relaxed);
        }
        let other = uri.replace("upstream", "other");
        let Err(SendError::Connect(unknown)) = send(&connections, &other, Way::ANYWHERE).await
        else {
            panic!("a name that never meant anything");
        };
        assert!(!unknown.durable && unknown.cause.contains("Temporary failure"), "{unknown}");
    };
    let server = async {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            read(&mut stream).await.unwrap();
            stream.write_all(ANSWER).await.unwrap();
        }
    };
    tokio::join!(client, server);
}

/// reliability SSRF-2.
#[tokio::test]
async fn a_connection_into_a_private_network_serves_no_account_that_may_not_go_there() {
    let (listener, uri) = listen().await;
    // Only the system's resolver takes this for an address.
    let uri = uri.replace("127.0.0.1", "127.1");
    let connections = connections(Duration::from_secs(5));
    let client = async {
        let marked = send(&connections, &uri, Way::ANYWHERE).await.unwrap();
        marked.into_body().collect().await.unwrap();
        let refused = ask(&connections, &uri).await;
        let Err(SendError::Connect(refused)) = refused else { panic!("{refused:?}") };
        assert!(refused.durable && refused.cause.contains("private_upstream"), "{refused}");
    };
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        read(&mut stream).await.unwrap();
        stream.write_all(ANSWER).await.unwrap();
    };
    tokio::join!(client, server);
}

#[tokio::test]
async fn an_upstream_that_never_answers_tls_was_sent_nothing() {
    let (listener, uri) = listen().await;
    let connections = connections(Duration::from_millis(50));
    let never = ask(&connections, &uri.replace("http:", "https:")).await;
    assert!(matches!(never, Err(SendError::Connect(_))), "{never:?}");
    drop(listener);
}

/// Its clock runs from the first poll on. Whatever holds this machine up, what is due first comes first.
#[tokio::test]
async fn a_connection_has_the_time_that_was_set_and_no_more() {
    let (listener, uri) = listen().await;
    let uri = uri.replace("http:", "https:");
    for limit in [30, 150].map(Duration::from_millis) {
        let connections = connections(limit);
        let began = Instant::now();
        let mut asked = pin!(ask(&connections, &uri));
        assert!(asked.as_mut().now_or_never().is_none());
        let later = tokio::time::sleep(limit + Duration::from_millis(20));
        tokio::select! {
            biased;
            never = asked => assert!(matches!(never, Err(SendError::Connect(_))), "{never:?}"),
            () = later => panic!("it goes on after {limit:?}"),
        }
        assert!(began.elapsed() >= limit);
    }
    drop(listener);
}

#[tokio::test]
async fn old_ones_are_swept() {
    let (listener, uri) = listen().await;
    let connections = connections(Duration::from_secs(5));
    let client = async {
        ask(&connections, &uri).await.unwrap();
        for idle in connections.idle.lock().values_mut().flatten() {
            idle.since -= IDLE_FOR;
        }
        connections.sweep();
        assert!(connections.idle.lock().is_empty());
    };
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        read(&mut stream).await.unwrap();
        stream.write_all(ANSWER).await.unwrap();
        assert_eq!(read(&mut stream).await, None, "it is closed");
    };
    tokio::join!(client, server);
}
