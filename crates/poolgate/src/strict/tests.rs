use super::*;

fn framing(text: &str) -> Result<Framing, Fault> {
    check(text.as_bytes())
}

/// Fields after a request line that is right, with a Host.
fn with(fields: &str) -> Result<Framing, Fault> {
    framing(&format!("POST /v1/responses HTTP/1.1\r\nHost: a.example:80\r\n{fields}\r\n"))
}

#[test]
fn what_is_said_one_way_is_read() {
    for (fields, want) in [
        ("", Framing::Length(0)),
        ("Content-Length: 0\r\n", Framing::Length(0)),
        ("content-length:  17 \r\n", Framing::Length(17)),
        ("Transfer-Encoding: Chunked\r\n", Framing::Chunked),
        ("Connection: upgrade\r\nUpgrade: WebSocket\r\n", Framing::Upgrade),
        ("Upgrade: h2c, websocket\r\n", Framing::Upgrade),
        ("Upgrade: h2c\r\nUpgrade: websocket\r\n", Framing::Upgrade),
        ("Upgrade: h2c\r\nContent-Length: 5\r\n", Framing::Length(5)),
        ("X: \tb\u{e4}r\t\r\nEmpty:\r\n", Framing::Length(0)),
    ] {
        assert_eq!(with(fields), Ok(want), "{fields:?}");
    }
    for start in [
        "GET / HTTP/1.0\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a:1/x HTTP/1.1\r\nHost: a:1\r\n\r\n",
        "GET /?q=http://other HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n",
    ] {
        assert_eq!(framing(start), Ok(Framing::Length(0)), "{start:?}");
    }
}

#[test]
fn what_two_readers_could_read_differently_is_refused() {
    for fields in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: 05\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length:\r\n",
        "Content-Length: 99999999999999999999\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding\r\n : chunked\r\n",
        "X: a\r\n b\r\n",
        "X: a\r\n\tContent-Length: 5\r\n",
        "X: a\rContent-Length: 5\r\n",
        "X: a\nContent-Length: 5\r\n",
        "X: a\0b\r\n",
        "X: a\x7f\r\n",
        "X\0: a\r\n",
        "X Y: a\r\n",
        ": a\r\n",
        "X\r\n",
        "Host: a.example:80\r\n",
        "Upgrade: websocket\r\nContent-Length: 5\r\n",
        "Upgrade: h2c, websocket\r\nContent-Length: 5\r\n",
    ] {
        assert!(matches!(with(fields), Err(Fault::Malformed(_))), "{fields:?}");
    }
    for head in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:123456\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\n\r\n",
        "GET http://u@a/ HTTP/1.1\r\nHost: u@a\r\n\r\n",
        "GET file:///x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /\u{e4} HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /#x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
        "GET / http/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET /\r\n\r\n",
        "G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        assert!(matches!(framing(head), Err(Fault::Malformed(_))), "{head:?}");
    }
}

#[test]
fn other_faults_have_their_own_name() {
    let long = "a".repeat(TARGET_MAX);
    let many = "X: y\r\n".repeat(HEADERS_MAX);
    for (head, want) in [
        (format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"), Fault::TargetTooLong),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"), Fault::HeadTooLarge),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n".to_owned(), Fault::Method),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), Fault::Method),
    ] {
        assert_eq!(framing(&head), Err(want), "{head:.40}");
    }
}

#[test]
fn a_head_is_found_however_it_arrives() {
    for head in ["GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\nHost: a\n\n"] {
        let bytes = [head.as_bytes(), b"body"].concat();
        for cut in 0..bytes.len() {
            let early = head_end(&bytes[..cut], 0);
            assert_eq!(early, (cut >= head.len()).then_some(head.len()), "{cut}");
            assert_eq!(early.or_else(|| head_end(&bytes, cut)), Some(head.len()), "{cut}");
        }
    }
}

#[test]
fn an_answer_to_a_bad_head_finds_its_dialect() {
    for (head, want) in [
        ("POST /v1/messages?x HTTP/1.1\r\n", "/v1/messages"),
        ("POST /v1/messages\r\nHost", "/"),
        ("GET /v1/\u{e4} HTTP/1.1\r\n", "/"),
        ("GET http://a/v1 HTTP/1.1\r\n", "/"),
        ("\r\n\r\n", "/"),
    ] {
        assert_eq!(path_of(head.as_bytes()), want, "{head:?}");
    }
}

#[test]
fn chunks_end_where_they_say() {
    let bodies = [
        "0\r\n\r\n",
        "5\r\nhello\r\n0\r\n\r\n",
        "A;ext=\"1\"\r\n0123456789\r\n00\r\nTrailer: x\r\nOther: y\r\n\r\n",
        "000000000000003\r\nabc\r\n0\r\n\r\n",
    ];
    for body in bodies {
        let bytes = [body.as_bytes(), b"GET / HTTP/1.1"].concat();
        for cut in 0..=body.len() {
            let mut chunks = Chunks::default();
            assert_eq!(chunks.feed(&bytes[..cut]), Ok(cut), "{body:?} at {cut}");
            assert_eq!(chunks.is_done(), cut == body.len(), "{body:?} at {cut}");
            assert_eq!(chunks.feed(&bytes[cut..]), Ok(body.len() - cut), "{body:?} at {cut}");
            assert!(chunks.is_done());
        }
    }
}

#[test]
fn chunks_that_could_be_read_otherwise_are_refused() {
    let long = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(EXTENSION_LIMIT + 1));
    let trailers = format!("0\r\n{}", "X: y\r\n".repeat(3000));
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhelloo\r\n0\r\n\r\n",
        "\r\n\r\n",
        ";x\r\n",
        "-5\r\n",
        "+5\r\n",
        "0x5\r\n",
        "5 \r\nhello",
        " 5\r\nhello",
        "5;a\nb\r\n",
        "5;a\rb",
        "1000000000000000\r\n",
        "ffffffffffffffffff\r\n",
        "0\r\nX: y\n\r\n",
        "0\r\n\rX",
        &long,
        &trailers,
    ] {
        assert!(Chunks::default().feed(body.as_bytes()).is_err(), "{body:.40?}");
    }
}

const EXTENSION_LIMIT: usize = 256;

proptest::proptest! {
    /// Whatever comes, there is an answer, and the same one however it arrives.
    #[test]
    fn anything_is_judged(bytes: Vec<u8>, cut: usize) {
        let cut = cut % (bytes.len() + 1);
        let end = head_end(&bytes, 0);
        proptest::prop_assert_eq!(end, head_end(&bytes[..cut], 0).or_else(|| head_end(&bytes, cut)));
        let _ = check(&bytes);
        let _ = path_of(&bytes);
        let (mut whole, mut parts) = (Chunks::default(), Chunks::default());
        let once = whole.feed(&bytes);
        let first = parts.feed(&bytes[..cut]);
        let both = first.and_then(|n| if n < cut { Ok(n) } else { Ok(n + parts.feed(&bytes[cut..])?) });
        proptest::prop_assert_eq!(once, both);
    }

    /// Bytes near what heads are made of find more than any bytes do.
    #[test]
    fn what_is_accepted_has_one_length(fields in "((Content-Length: [0-9+, ]{1,3}|Transfer-Encoding: (chunked|gzip|, )+|X: [ -~]*)\r\n){0,4}") {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let lower = head.to_ascii_lowercase();
        let lengths = lower.matches("\r\ncontent-length:").count();
        let codings = lower.matches("\r\ntransfer-encoding:").count();
        match check(head.as_bytes()) {
            Ok(Framing::Chunked) => proptest::prop_assert_eq!((lengths, codings), (0, 1)),
            Ok(_) => proptest::prop_assert!(lengths <= 1 && codings == 0),
            Err(_) => {}
        }
    }
}
