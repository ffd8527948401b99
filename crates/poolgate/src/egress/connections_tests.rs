use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::json::Text;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn connections(connect_timeout: Duration) -> Arc<Connections> {
    let tls = super::super::tls_config().unwrap();
    Arc::new(Connections::new(Dialer::new(tls, connect_timeout, Arc::default())))
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

fn get(uri: &str) -> Request<TextBody> {
    Request::builder().uri(uri).body(Text::default().into()).unwrap()
}

async fn ask(connections: &Arc<Connections>, uri: &str) -> Result<Bytes, SendError> {
    let response = connections.send(get(uri), &Way::default()).await?;
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
        let response = connections.send(get(&uri), &Way::default()).await.unwrap();
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
        let lost = ask(&connections, &uri).await;
        assert!(matches!(lost, Err(SendError::Broke(_))), "{lost:?}");
    };
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        read(&mut stream).await.unwrap();
        stream.write_all(ANSWER).await.unwrap();
        read(&mut stream).await.unwrap();
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
        let marked = connections.send(get(&uri), &Way::ANYWHERE).await.unwrap();
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

#[test]
fn hosts_are_named_as_they_are_called() {
    for (uri, host, path) in [
        ("https://api.openai.com/v1/x?y=1", "api.openai.com", "/v1/x?y=1"),
        ("https://api.openai.com:443/", "api.openai.com", "/"),
        ("http://h:80/", "h", "/"),
        ("http://h:8080", "h:8080", "/"),
        ("https://[::1]:8443/a", "[::1]:8443", "/a"),
    ] {
        let mut request = get(uri);
        address(&mut request).unwrap();
        assert_eq!(
            (request.headers()["host"].to_str().unwrap(), request.uri().to_string()),
            (host, path.to_owned()),
            "{uri}"
        );
    }
}
