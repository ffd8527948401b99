//! Made-up developers: each works, thinks, works on, and starts a new session now and then.

use std::time::Duration;

use futures_util::future::join_all;
use poolgate_sim::Kind;
use rand::random_range;

use super::client::Client;
use super::request::Request;
use super::world::subscriptions;
use super::{Demo, client_key};

#[derive(Clone, Copy, Debug)]
enum Developer {
    /// Streams from `/backend-api/codex/responses`.
    Codex,
    /// Streams from `/v1/messages`.
    ClaudeCode,
    /// A script on an SDK: other endpoints, streaming or not.
    Script,
}

const TEAM: [Developer; 9] = [
    Developer::Codex,
    Developer::ClaudeCode,
    Developer::Codex,
    Developer::Codex,
    Developer::ClaudeCode,
    Developer::Codex,
    Developer::Script,
    Developer::ClaudeCode,
    Developer::Codex,
];

const PROMPTS: [&str; 8] = [
    "Why does the parser drop the last line?",
    "Write a table test for the retry rules.",
    "Rename this module and fix the imports.",
    "Explain this stack trace.",
    "Make the build faster without new dependencies.",
    "Review the diff for races.",
    "Port this loop to an iterator.",
    "Summarise what changed since yesterday.",
];

const GPT: [&str; 2] = ["gpt-5.5", "gpt-6-astra"];
const CLAUDE: [&str; 2] = ["claude-sonnet-5-5", "claude-opus-5-5"];

/// Until the demo stops; requests that are running then are finished.
pub async fn run(demo: &Demo) {
    if let Err(error) = meet(demo).await {
        demo.tally.happened(format!("the accounts could not be met: {error:#}"));
    }
    match Client::new(demo) {
        Ok(client) => {
            let client = &client;
            let team = TEAM.iter().enumerate();
            join_all(team.map(|(i, developer)| work(demo, client, *developer, i))).await;
        }
        Err(error) => demo.tally.happened(format!("there is no traffic: {error:#}")),
    }
}

/// One small request to each subscription: a gateway learns an account's windows from its answers,
/// and here it has just met all of them.
async fn meet(demo: &Demo) -> anyhow::Result<()> {
    let mut clients = Vec::new();
    for (name, kind) in subscriptions() {
        let key = client_key(&demo.app, name, vec![name.into()]).await?;
        let request = match kind {
            Kind::Claude => Request::messages(CLAUDE[0], "hello"),
            _ => Request::responses(GPT[0], "hello"),
        };
        clients.push((Client::with_key(demo, &key)?, request));
    }
    join_all(clients.iter().map(async |(client, request)| {
        demo.tally.begin();
        demo.tally.end(client.ask(request).await);
    }))
    .await;
    Ok(())
}

async fn work(demo: &Demo, client: &Client<'_>, developer: Developer, number: usize) {
    // Not all at once, but each within the first second, so that there is something to see.
    let mut pause = Duration::from_millis(100 * u64::try_from(number).unwrap_or(0));
    while demo.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        let session = uuid::Uuid::now_v7().to_string();
        for _ in 0..random_range(2..6) {
            let request = next_request(developer, &session);
            demo.tally.begin();
            demo.tally.end(client.ask(&request).await);
            let think = Duration::from_millis(random_range(300..2500));
            if demo.stop.run_until_cancelled(tokio::time::sleep(think)).await.is_none() {
                return;
            }
        }
        pause = Duration::ZERO;
    }
}

fn next_request(developer: Developer, session: &str) -> Request {
    let text = prompt();
    let (gpt, claude) = (GPT[random_range(0..2)], CLAUDE[random_range(0..2)]);
    match developer {
        Developer::Codex => Request::codex(gpt, &text, session),
        Developer::ClaudeCode => Request::claude_code(claude, &text, session),
        Developer::Script => match random_range(0..4) {
            0 => Request::responses(gpt, &text),
            1 => Request::messages(claude, &text),
            streams => Request::chat(gpt, &text, streams == 2),
        },
    }
}

/// With directives for the simulator: an answer that takes 1 to 4 s, and plausible token counts.
fn prompt() -> String {
    let prompt = PROMPTS[random_range(0..PROMPTS.len())];
    let (events, gap) = (random_range(20..50), random_range(40..75));
    let (input, output) = (random_range(4_000..40_000), random_range(100..900));
    format!(
        "{prompt} [[events={events}]][[gap_ms={gap}]][[first_ms=150]]\
         [[input_tokens={input}]][[output_tokens={output}]]"
    )
}
