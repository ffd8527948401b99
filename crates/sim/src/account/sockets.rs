//! The open sockets of an account, and how to reach them.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_util::sync::CancellationToken;

/// What a WebSocket is told to do between two frames.
#[derive(Clone, Debug)]
pub enum Command {
    Push(Utf8Bytes),
    Close(u16),
}

#[derive(Debug, Default)]
pub struct Sockets(Mutex<BTreeMap<u64, Line>>);

/// The simulator's end of a line to a WebSocket.
#[derive(Debug)]
struct Line {
    commands: UnboundedSender<Command>,
    cut: CancellationToken,
}

/// A WebSocket's place among the open ones, given back when dropped.
#[derive(Debug)]
pub struct Seat {
    sockets: Arc<Sockets>,
    number: u64,
    pub commands: UnboundedReceiver<Command>,
    /// The connection is to be cut, even in the middle of a frame.
    pub cut: CancellationToken,
}

impl Sockets {
    pub fn seat(self: &Arc<Self>, number: u64) -> Seat {
        let (sender, commands) = unbounded_channel();
        let cut = CancellationToken::new();
        let line = Line { commands: sender, cut: cut.clone() };
        self.0.lock().insert(number, line);
        Seat { sockets: Arc::clone(self), number, commands, cut }
    }

    pub fn count(&self) -> usize {
        self.0.lock().len()
    }

    /// Tells all; how many there are.
    pub fn tell(&self, command: &Command) -> usize {
        let lines = self.0.lock();
        for line in lines.values() {
            // One that has just ended needs no telling.
            let _ = line.commands.send(command.clone());
        }
        lines.len()
    }

    /// Cuts all; how many there are.
    pub fn cut(&self) -> usize {
        let lines = self.0.lock();
        for line in lines.values() {
            line.cut.cancel();
        }
        lines.len()
    }
}

impl Seat {
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.sockets.0.lock().remove(&self.number);
    }
}
