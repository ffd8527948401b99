//! TLS on the listener: both protocols, and new certificates without losing a connection.

use std::path::Path;
use std::sync::Arc;

use poolgate::config::{RawListener, RawTls};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::{Harness, PATIENCE, Setup};
use crate::process::Place;
use crate::wire::{Got, Raw};

/// Self-signed, for localhost, for a hundred years; used nowhere else.
fn fixture(name: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tls/");
    std::fs::read_to_string(format!("{path}{name}")).unwrap()
}

fn certificate(name: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(fixture(name).as_bytes()).unwrap()
}

fn install(dir: &Path, certificate: &str, key: &str) {
    for (name, text) in [("cert.pem", certificate), ("key.pem", key)] {
        std::fs::write(dir.join(name), fixture(text)).unwrap();
    }
}

async fn start() -> Harness {
    let mut setup = Setup::new().await;
    setup.codex("a");
    install(setup.dir.path(), "first.crt", "first.key");
    setup.raw.tls = Some(RawTls {
        cert_file: setup.dir.path().join("cert.pem"),
        key_file: setup.dir.path().join("key.pem"),
    });
    setup.raw.listener = RawListener {
        drain_delay_s: Some(0),
        handshake_timeout_s: Some(1),
        ..RawListener::default()
    };
    setup.start().await
}

type Secure = TlsStream<TcpStream>;

/// `None`: no connection that trusts these.
async fn connect(h: &Harness, trusted: &[&str], alpn: &[&str]) -> Option<Secure> {
    let mut roots = rustls::RootCertStore::empty();
    for name in trusted {
        roots.add(certificate(name)).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let raw = Raw::connect(h).await;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, raw.0).await.ok()
}

async fn ask(stream: &mut Secure) -> Got {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    let read = async {
        while !all.ends_with(b"ok\n") {
            assert!(stream.read_buf(&mut all).await.unwrap() > 0);
        }
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap();
    Got::read(&all).unwrap()
}

fn shown(stream: &Secure) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

/// multiplexer 18.5 #59: what was agreed on by ALPN is what is spoken, through all that lies between.
#[tokio::test]
async fn both_protocols_are_spoken_inside() {
    let h = start().await;
    for (offered, chosen) in [
        (&["h2", "http/1.1"][..], Some(&b"h2"[..])),
        (&["http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ] {
        let mut stream = connect(&h, &["first.crt"], offered).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), chosen);
        if chosen == Some(b"h2") {
            let io = hyper_util::rt::TokioIo::new(stream);
            let handshake =
                hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io);
            let (mut sender, connection) = handshake.await.unwrap();
            let request = http::Request::get("https://localhost/healthz")
                .body(http_body_util::Empty::<bytes::Bytes>::new())
                .unwrap();
            let answer = sender.send_request(request);
            tokio::select! {
                answer = answer => assert_eq!(answer.unwrap().status(), 200),
                _ = connection => panic!("it ends"),
            }
        } else {
            assert_eq!(ask(&mut stream).await.status, 200);
        }
    }
    assert!(connect(&h, &["second.crt"], &[]).await.is_none(), "and it is checked by the client");
    h.finish().await;
}

#[tokio::test]
async fn who_speaks_no_tls_is_closed_in_time() {
    let h = start().await;
    let mut plain = Raw::connect(&h).await;
    plain.write("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let answer = plain.rest().await;
    assert!(Got::read(&answer).is_none(), "{answer:?}");
    let mut mute = Raw::connect(&h).await;
    assert!(mute.rest().await.is_empty());
    h.finish().await;
}

#[tokio::test]
async fn a_new_certificate_is_taken_up_and_a_bad_one_is_not() {
    let h = start().await;
    let both = ["first.crt", "second.crt"];
    let mut old = connect(&h, &both, &[]).await.unwrap();
    assert_eq!(shown(&old), certificate("first.crt"));
    // A key that does not belong to the certificate; then one that does.
    install(h.dir.path(), "second.crt", "first.key");
    for _ in 0..20 {
        let stream = connect(&h, &both, &[]).await.unwrap();
        assert_eq!(shown(&stream), certificate("first.crt"));
    }
    install(h.dir.path(), "second.crt", "second.key");
    let renewed = async {
        while shown(&connect(&h, &both, &[]).await.unwrap()) != certificate("second.crt") {}
    };
    tokio::time::timeout(PATIENCE, renewed).await.expect("it is taken up");
    assert_eq!(ask(&mut old).await.status, 200, "running connections stay");
    drop(old);
    h.finish().await;
}

/// The operator's commands know their own gateway by the certificate that the configuration names.
#[tokio::test]
async fn an_operators_commands_find_it() {
    let mut setup = Setup::new().await;
    setup.codex("a");
    let dir = setup.dir.path().to_owned();
    install(&dir, "first.crt", "first.key");
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    let tls = format!(
        "listener.drain_delay_s = 0\ntls = {{ cert_file = {cert:?}, key_file = {key:?} }}\n"
    );
    let place = Place::new(&setup, &tls).await;
    let mut gateway = place.start("gateway", &[]).await;
    let run = async |command: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_poolgate"))
            .args([command, "--config"])
            .arg(place.file())
            .output()
            .await
            .unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), said)
    };
    let (code, said) = run("status").await;
    assert!(code == Some(0) && said.contains("1 of 1 accounts ready"), "{said}");
    let (_, said) = run("doctor").await;
    assert!(said.contains("ok       gateway: running"), "{said}");
    // Whoever else answers there is not told the operator's token.
    install(&dir, "second.crt", "first.key");
    let (code, said) = run("status").await;
    assert_eq!(code, Some(1));
    assert!(said.contains("not the one in tls.cert_file"), "{said}");
    gateway.signal("TERM").await;
    assert_eq!(gateway.ended().await.code(), Some(0));
}
