//! Decisions as they are stored: those of a batch of requests, compressed together. They are written
//! for every request and read for a few.

use std::io;

use async_compression::Level;
use async_compression::tokio::write::{ZstdDecoder, ZstdEncoder};
use tokio::io::AsyncWriteExt;

use super::Ended;

/// Lines of an id, a space and a JSON list.
#[derive(Debug)]
pub struct Archive {
    /// When the first and the last of its requests ended, in milliseconds since the Unix epoch.
    pub first_end: i64,
    pub last_end: i64,
    pub lines: Vec<u8>,
}

impl<D> super::End<'_, D> {
    pub fn ended_at(&self) -> i64 {
        self.begin.at + self.total_ms
    }
}

/// Decisions that are gathered for an [`Archive`].
#[derive(Debug, Default)]
pub struct Gathered {
    text: String,
    /// When the first and the last ended, once there is any.
    times: Option<(i64, i64)>,
}

impl Gathered {
    pub fn add(&mut self, ends: &[Ended<'_>]) {
        // Of some nobody had to decide anything.
        for end in ends.iter().filter(|end| !matches!(end.decisions, "" | "[]")) {
            for part in [&*end.begin.id, " ", end.decisions, "\n"] {
                self.text.push_str(part);
            }
            let at = end.ended_at();
            let (first, last) = self.times.unwrap_or((at, at));
            self.times = Some((first.min(at), last.max(at)));
        }
    }

    pub async fn pack(self) -> io::Result<Option<Archive>> {
        let Some((first_end, last_end)) = self.times else { return Ok(None) };
        let mut encoder = ZstdEncoder::with_quality(Vec::new(), Level::Fastest);
        encoder.write_all(self.text.as_bytes()).await?;
        encoder.shutdown().await?;
        Ok(Some(Archive { first_end, last_end, lines: encoder.into_inner() }))
    }
}

/// The JSON list of the request `id`, if the archive has it.
pub async fn find(lines: &[u8], id: &str) -> io::Result<Option<String>> {
    let mut decoder = ZstdDecoder::new(Vec::new());
    decoder.write_all(lines).await?;
    decoder.shutdown().await?;
    let text = decoder.into_inner();
    let mut lines = text.split(|byte| *byte == b'\n');
    let found = lines.find_map(|line| line.strip_prefix(id.as_bytes())?.strip_prefix(b" "));
    Ok(found.map(|json| String::from_utf8_lossy(json).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::Begin;
    use super::*;

    #[tokio::test]
    async fn finds_what_was_packed() {
        let end = |id: &'static str, at, decisions| Ended {
            begin: Begin { id: id.into(), at, ..Begin::default() },
            total_ms: 5,
            decisions,
            ..Ended::default()
        };
        let ends = [
            end("a", 10, r#"[{"at":1}]"#),
            end("ab", 30, r#"[{"at":2}]"#),
            end("b", 99, "[]"),
            end("c", 99, ""),
        ];
        let gather = |ends: &[Ended<'_>]| {
            let mut gathered = Gathered::default();
            gathered.add(ends);
            gathered.pack()
        };
        let archive = gather(&ends).await.unwrap().unwrap();
        assert_eq!((archive.first_end, archive.last_end), (15, 35));
        for (id, want) in [("a", Some(r#"[{"at":1}]"#)), ("ab", Some(r#"[{"at":2}]"#)), ("b", None)]
        {
            assert_eq!(find(&archive.lines, id).await.unwrap().as_deref(), want, "{id}");
        }
        assert!(gather(&ends[2..]).await.unwrap().is_none());
    }
}
