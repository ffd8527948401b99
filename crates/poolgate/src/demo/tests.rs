use std::io::{self, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use super::*;

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn three_seconds_of_traffic_without_a_failure() {
    let captured = Captured::default();
    let options = Options {
        listen: Some("127.0.0.1:0".into()),
        json: true,
        duration: Some(Duration::from_secs(3)),
        stop: CancellationToken::new(),
    };
    let tally = run_on(options, Output::json_to(captured.clone())).await.unwrap();
    let totals = tally.totals();
    assert!(totals.done >= 5, "{totals:?}");
    assert!(totals.tokens.output > 0, "{totals:?}");
    assert_eq!((totals.failed, totals.running), (0, 0), "{totals:?}");

    let text = String::from_utf8(captured.0.lock().clone()).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (first, last) = (&lines[0], &lines[lines.len() - 1]);
    assert_eq!((&first["event"], &last["event"]), (&"started".into(), &"finished".into()));
    assert_eq!(last["drained"], true);
    assert!(first["clients"]["codex"].as_str().unwrap().contains("env_key"));
    let status = lines.iter().rfind(|line| line["event"] == "status").unwrap();
    assert_eq!(status["status"]["accounts"].as_array().unwrap().len(), 8);
    let data = first["watch"].as_str().unwrap().rsplit(' ').next().unwrap();
    assert!(!std::path::Path::new(data).exists(), "{data} is left");
}
