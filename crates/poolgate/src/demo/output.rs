//! What the demo prints: a live picture on a terminal, plain lines into a pipe, or JSON.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::Demo;
use super::guide::Guide;
use super::screen::Screen;
use super::tally::{Event, Tally, Totals};
use super::watch::Watch;
use crate::admin::Status;
use crate::table::{Style, cut, render};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Time for the first answers, so that the first picture is not empty.
const FIRST_LOOK: Duration = Duration::from_millis(300);
/// Looks between two summaries in a pipe.
const SUMMARY_EVERY: u32 = 2;
/// Events that stay in the live picture.
const RECENT: usize = 5;

pub struct Output {
    form: Form,
    to: Box<dyn Write + Send>,
    watch: Watch,
}

enum Form {
    Live { screen: Screen, style: Style, recent: VecDeque<String> },
    Lines,
    Json,
}

impl Output {
    pub fn stdout(json: bool) -> Self {
        let is_terminal = io::stdout().is_terminal();
        let form = if json {
            Form::Json
        } else if is_terminal {
            Form::Live {
                screen: Screen::default(),
                style: Style::detect(true),
                recent: VecDeque::new(),
            }
        } else {
            Form::Lines
        };
        Self { form, to: Box::new(io::stdout()), watch: Watch::default() }
    }

    #[cfg(test)]
    pub fn json_to(to: impl Write + Send + 'static) -> Self {
        Self { form: Form::Json, to: Box::new(to), watch: Watch::default() }
    }

    pub fn guide(&mut self, guide: &Guide) -> io::Result<()> {
        match self.form {
            Form::Json => {
                let clients = guide.clients.iter();
                let clients =
                    clients.map(|client| (client.id.to_owned(), client.text.clone().into()));
                let clients: serde_json::Map<String, Value> = clients.collect();
                self.line(&json!({
                    "event": "started", "url": guide.url, "key": guide.key,
                    "watch": guide.watch, "note": guide.note, "clients": clients,
                }))
            }
            _ => self.line(&guide.text()),
        }
    }

    /// Shows what happens until `served`; the last picture is of the end.
    pub async fn follow(&mut self, demo: &Demo, served: &CancellationToken) {
        let mut ticks = interval_at(Instant::now() + FIRST_LOOK, LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut resized = signal(SignalKind::window_change()).ok();
        if let Form::Live { screen, .. } = &mut self.form {
            screen.measure();
        }
        for look in 0.. {
            tokio::select! {
                _ = ticks.tick() => {}
                () = served.cancelled() => {}
                Some(()) = async { resized.as_mut()?.recv().await } => self.measure(),
            }
            let is_last = served.is_cancelled();
            // Nobody reads on.
            if self.look(demo, look, is_last).is_err() {
                demo.stop.cancel();
            }
            if is_last {
                return;
            }
        }
    }

    fn measure(&mut self) {
        if let Form::Live { screen, style, .. } = &mut self.form {
            screen.measure();
            *style = Style::detect(true);
        }
    }

    fn look(&mut self, demo: &Demo, look: u32, is_last: bool) -> io::Result<()> {
        let status = Status::of(&demo.app);
        self.watch.look(&status, &demo.tally);
        let (totals, events) = (demo.tally.totals(), demo.tally.take_events());
        match &mut self.form {
            Form::Live { screen, style, recent } => {
                recent.extend(events.iter().map(event_line));
                recent.drain(..recent.len().saturating_sub(RECENT));
                let hint = match (is_last, demo.stop.is_cancelled()) {
                    (true, _) => String::new(),
                    (_, true) => format!("Stopping: {} requests may finish", totals.running),
                    _ => "Ctrl-C ends the demo. Above: how to point clients at it.".into(),
                };
                let mut picture = render(&status, *style);
                let lines = [String::new(), summary(&totals), String::new()];
                let lines = lines.iter().chain(recent.iter()).chain([&hint]);
                for line in lines {
                    picture.extend([cut(line, style.width).as_str(), "\n"]);
                }
                let bytes = screen.replace(&picture);
                self.to.write_all(bytes.as_bytes())?;
                self.to.flush()
            }
            Form::Lines => {
                events.iter().try_for_each(|event| self.line(&event_line(event)))?;
                if look.is_multiple_of(SUMMARY_EVERY) {
                    let accounts = &status.pool.accounts;
                    let ready = accounts.iter().filter(|a| a.state == "ready").count();
                    let ready = format!("{ready} of {} accounts ready", accounts.len());
                    self.line(&format!("{ready}. {}", summary(&totals)))?;
                }
                Ok(())
            }
            Form::Json => {
                for event in events {
                    let line = json!({"event": "happened", "at": event.at.0, "text": event.text});
                    self.line(&line)?;
                }
                let clients = numbers(&totals);
                self.line(&json!({"event": "status", "status": status, "clients": clients}))
            }
        }
    }

    /// `clean`: every running request could finish.
    pub fn finish(&mut self, tally: &Tally, clean: bool) -> io::Result<()> {
        let totals = tally.totals();
        if matches!(self.form, Form::Json) {
            let (clients, reasons) = (numbers(&totals), &totals.reasons);
            let line = json!({
                "event": "finished", "clients": clients, "unexpected": reasons, "drained": clean,
            });
            return self.line(&line);
        }
        let end = if clean { "Drained and gone." } else { "Gone; some requests were cut short." };
        self.line(&end)?;
        self.line(&summary(&totals))?;
        totals.reasons.iter().try_for_each(|reason| self.line(&format!("Unexpected: {reason}")))
    }

    fn line(&mut self, line: &impl ToString) -> io::Result<()> {
        writeln!(self.to, "{}", line.to_string())?;
        self.to.flush()
    }
}

fn event_line(event: &Event) -> String {
    let at = jiff::Timestamp::from_millisecond(event.at.0).unwrap_or_default();
    format!("{}  {}", at.strftime("%H:%M:%S"), event.text)
}

fn summary(totals: &Totals) -> String {
    let spent = match totals.spent {
        0 => String::new(),
        spent => format!(", {spent} told to wait for quota"),
    };
    format!(
        "Clients: {} answered, {} failed{spent}; {} failovers; {} tokens in, {} out",
        totals.done,
        totals.failed,
        totals.failovers,
        short(totals.tokens.input),
        short(totals.tokens.output),
    )
}

fn short(count: u64) -> String {
    match count {
        0..10_000 => count.to_string(),
        10_000..1_000_000 => format!("{}k", count / 1000),
        _ => format!("{}.{}M", count / 1_000_000, count / 100_000 % 10),
    }
}

fn numbers(totals: &Totals) -> Value {
    json!({
        "running": totals.running, "answered": totals.done, "failed": totals.failed,
        "out_of_quota": totals.spent, "failovers": totals.failovers,
        "input_tokens": totals.tokens.input, "output_tokens": totals.tokens.output,
    })
}
