//! One request of a connection: refused at the door, or handed to the gateway.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use tokio::time::Instant;

use super::sending::{Running, Sending};
use super::state::{Answered, State};
use super::wire::REFUSED;
use crate::app::App;
use crate::error::Error;
use crate::gateway::{self, Outgoing};
use crate::metrics::Shed;
use crate::strict::{self, Fault};

pub async fn respond(
    app: Arc<App>,
    state: Arc<State>,
    request: Request<Incoming>,
) -> Response<Sending> {
    let is_stream = request.version() == Version::HTTP_2;
    state.ends_with_connection.set(request.version() == Version::HTTP_10);
    let is_head = request.method() == Method::HEAD;
    let mut running = Running::new(&state, is_stream);
    let upgrades = request.headers().contains_key(header::UPGRADE);
    let dialect = gateway::dialect(request.uri().path(), request.headers());
    let mut answer = match check(&app, &state, &request) {
        Ok(()) => gateway::handle(Arc::clone(&app), dialect, request).await,
        Err(error) => {
            tracing::info!(code = error.parts().1, %error, "refused at the door");
            if matches!(error, Error::ShortOfMemory) {
                app.metrics.shed(Shed::Memory);
            }
            error.render(dialect).map(Outgoing::Whole)
        }
    };
    let is_stranger = answer.status() == StatusCode::UNAUTHORIZED;
    if is_stranger && state.address.is_some_and(|ip| app.strangers.failed(ip, Instant::now())) {
        app.metrics.shed(Shed::Strangers);
        answer = Error::TooManyStrangers.render(dialect).map(Outgoing::Whole);
        answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if is_stream && is_head {
        answer = without_body(answer);
    }
    if upgrades {
        let is_upgraded = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
        state.answered.set(if is_upgraded { Answered::Upgraded } else { Answered::Refused });
    }
    running.is_answered = answer.body().is_end_stream();
    let (mut head, body) = answer.into_parts();
    if !is_stream {
        // Requests may follow each other before anybody looks at the connection.
        if state.requests.load(Ordering::Relaxed) >= app.config.listener.requests {
            head.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        return Response::from_parts(head, Sending::new(body, running));
    }
    let (body, watched) = Sending::watched(body, running);
    state.streams.lock().push(watched);
    Response::from_parts(head, body)
}

/// hyper leaves the body of an answer to HEAD out over HTTP/1 only.
fn without_body(answer: Response<Outgoing>) -> Response<Outgoing> {
    let (mut head, body) = answer.into_parts();
    if let Some(length) = body.size_hint().exact() {
        head.headers.insert(header::CONTENT_LENGTH, length.into());
    }
    Response::from_parts(head, Outgoing::Whole(Full::default()))
}

fn check(app: &App, state: &State, request: &Request<Incoming>) -> Result<(), Error> {
    if request.method().as_str() == REFUSED {
        let fault = state.fault.lock().take();
        return Err(fault.unwrap_or(Fault::Method).into());
    }
    if request.version() == Version::HTTP_2 {
        check_stream(request.method(), request.uri(), request.headers())?;
    }
    let is_health = matches!(request.uri().path(), "/healthz" | "/readyz" | "/metrics");
    if !is_health && !app.memory.admits(gateway::wants_socket(request.headers())) {
        return Err(Error::ShortOfMemory);
    }
    Ok(())
}

/// The rules of `strict` that HTTP/2 leaves open.
fn check_stream(method: &Method, uri: &http::Uri, headers: &HeaderMap) -> Result<(), Fault> {
    if matches!(*method, Method::CONNECT | Method::TRACE) {
        return Err(Fault::Method);
    }
    let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
    if target > strict::TARGET_MAX {
        return Err(Fault::TargetTooLong);
    }
    if headers.len() > strict::HEADERS_MAX {
        return Err(Fault::HeadTooLarge);
    }
    let mut hosts = headers.get_all(header::HOST).iter().map(HeaderValue::as_bytes);
    let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
    match (authority, hosts.next(), hosts.next()) {
        (_, _, Some(_)) => Err(Fault::Malformed("more than one Host")),
        (None, None, None) => Err(Fault::Malformed("neither :authority nor Host")),
        (Some(authority), Some(host), None) if authority != host => {
            Err(Fault::Malformed(":authority and Host differ"))
        }
        (authority, host, None) => match authority.or(host) {
            Some(name) if strict::is_authority(name) => Ok(()),
            _ => Err(Fault::Malformed(":authority is not a host and maybe a port")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn streams_name_one_host() {
        let cases: [(&str, &[&str], bool); 8] = [
            ("http://a/x",   &[],         true),
            ("http://a:1/x", &["a:1"],    true),
            ("/x",           &["a"],      true),
            ("/x",           &[],         false),
            ("http://a/x",   &["b"],      false),
            ("http://a/x",   &["a", "a"], false),
            ("http://u@a/x", &[],         false),
            ("/x",           &["a/b"],    false),
        ];
        for (uri, hosts, good) in cases {
            let hosts = hosts.iter().map(|host| (header::HOST, host.parse().unwrap()));
            let headers: HeaderMap = hosts.fold(HeaderMap::new(), |mut all, (name, host)| {
                all.append(name, host);
                all
            });
            let got = check_stream(&Method::GET, &uri.parse().unwrap(), &headers);
            assert_eq!(got.is_ok(), good, "{uri} {headers:?}: {got:?}");
        }
    }

    #[test]
    fn streams_have_the_bounds_of_heads() {
        let mut headers = HeaderMap::from_iter([(header::HOST, "a".parse().unwrap())]);
        let long: http::Uri = format!("/{}", "a".repeat(strict::TARGET_MAX)).parse().unwrap();
        assert_eq!(check_stream(&Method::GET, &long, &headers), Err(Fault::TargetTooLong));
        let uri = "/".parse().unwrap();
        assert_eq!(check_stream(&Method::TRACE, &uri, &headers), Err(Fault::Method));
        for _ in 0..strict::HEADERS_MAX {
            headers.append("x", "y".parse().unwrap());
        }
        assert_eq!(check_stream(&Method::GET, &uri, &headers), Err(Fault::HeadTooLarge));
    }
}
