//! The listening socket: our own, or one that was handed over.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use anyhow::Context;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpListener;

/// Connections that wait for us to accept them. A restart may leave them there for a while.
const BACKLOG: i32 = 4096;

/// systemd sets it for a service that is started by a socket.
const HANDED_OVER: &str = "LISTEN_FDS";

/// And whether somebody else holds it too.
pub fn listen(address: SocketAddr, reuse_port: bool) -> anyhow::Result<(TcpListener, bool)> {
    if std::env::var_os(HANDED_OVER).is_some_and(|count| count != "0") {
        return Ok((handed_over()?, true));
    }
    let bound = bind(address, reuse_port)
        .with_context(|| format!("listening on {address}: is something else using the port?"))?;
    Ok((bound, false))
}

fn bind(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// The socket on standard input. It stays open there, and in whoever handed it over.
fn handed_over() -> anyhow::Result<TcpListener> {
    let stdin = std::io::stdin();
    let is_listening = SockRef::from(&stdin.as_fd()).is_listener();
    anyhow::ensure!(
        is_listening.unwrap_or(false),
        "{HANDED_OVER} is set, and standard input is no listening socket: \
         set StandardInput=socket in the service's unit, or unset {HANDED_OVER}"
    );
    let listener = std::net::TcpListener::from(stdin.as_fd().try_clone_to_owned()?);
    listener.set_nonblocking(true)?;
    Ok(TcpListener::from_std(listener)?)
}

/// How many descriptors the process may have open; `None`: any number, or it cannot be told.
pub fn descriptors() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_of_descriptors_is_known_here() {
        assert!(descriptors().is_some_and(|count| count >= 20), "{:?}", descriptors());
    }

    #[tokio::test]
    async fn a_port_is_shared_only_if_both_say_so() {
        let any = "127.0.0.1:0".parse().unwrap();
        let first = bind(any, true).unwrap();
        let address = first.local_addr().unwrap();
        assert!(bind(address, true).is_ok());
        assert!(bind(address, false).is_err());
        let alone = bind(any, false).unwrap();
        assert!(bind(alone.local_addr().unwrap(), true).is_err());
    }
}
