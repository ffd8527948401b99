//! What a newcomer needs to know: where it listens, and what to paste into which client.

use super::Demo;
use super::world::WINDOW;

#[derive(Debug)]
pub struct Guide {
    pub url: String,
    pub key: String,
    /// A command that shows the same picture from elsewhere.
    pub watch: String,
    pub note: Option<String>,
    pub clients: [Client; 5],
}

#[derive(Debug)]
pub struct Client {
    /// Stable word for machines.
    pub id: &'static str,
    /// For people: which client, and where the text goes.
    pub title: &'static str,
    pub text: String,
}

impl Guide {
    pub fn new(demo: &Demo, note: Option<String>) -> Self {
        let (url, key) = (&demo.url, &demo.key);
        let client = |id, title, text| Client { id, title, text };
        // As it was called: it need not be in the path.
        let program = std::env::args().next().unwrap_or_else(|| "poolgate".into());
        let data = demo.app.config.data_dir.display();
        Self {
            url: url.clone(),
            key: key.clone(),
            watch: format!("{program} status --url {url} --data {data}"),
            note,
            clients: [
                client("codex", "Codex, in ~/.codex/config.toml", codex(url, key)),
                client("claude-code", "Claude Code, in your shell", claude_code(url, key)),
                client("openai-python", "OpenAI SDK for Python", openai(url, key)),
                client("anthropic-python", "Anthropic SDK for Python", anthropic(url, key)),
                client("curl", "curl", curl(url, key)),
            ],
        }
    }

    pub fn text(&self) -> String {
        let mut text = format!(
            "poolgate demo: a real gateway, simulated providers, made-up developers.\n\
             Quotas run fast here: a 5-hour window lasts {} minutes.\n\n",
            WINDOW.as_secs() / 60
        );
        if let Some(note) = &self.note {
            text.extend([note, "\n"]);
        }
        text.push_str(&format!("Gateway  {}\nKey      {}\n", self.url, self.key));
        text.push_str(&format!("Watch    {}\n", self.watch));
        for client in &self.clients {
            text.push_str(&format!("\n── {}\n{}\n", client.title, client.text));
        }
        text
    }
}

fn codex(url: &str, key: &str) -> String {
    format!(
        r#"model = "gpt-5.5"
model_provider = "poolgate"
[model_providers.poolgate]
name = "poolgate"
base_url = "{url}/backend-api/codex"
env_key = "POOLGATE_KEY"
wire_api = "responses"
supports_websockets = true
# then, in your shell:
# export POOLGATE_KEY={key}"#
    )
}

fn claude_code(url: &str, key: &str) -> String {
    format!(
        "export ANTHROPIC_BASE_URL={url}\n\
         export ANTHROPIC_AUTH_TOKEN={key}\n\
         export CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1"
    )
}

fn openai(url: &str, key: &str) -> String {
    format!(
        r#"from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key="{key}")
print(client.responses.create(model="gpt-5.5", input="say hi").output_text)"#
    )
}

fn anthropic(url: &str, key: &str) -> String {
    format!(
        r#"from anthropic import Anthropic
client = Anthropic(base_url="{url}", api_key="{key}")
answer = client.messages.create(model="claude-sonnet-5-5", max_tokens=64,
                                messages=[{{"role": "user", "content": "say hi"}}])
print(answer.content[0].text)"#
    )
}

fn curl(url: &str, key: &str) -> String {
    format!(
        r#"curl {url}/v1/responses -H "Authorization: Bearer {key}" \
     -H "Content-Type: application/json" -d '{{"model":"gpt-5.5","input":"say hi"}}'"#
    )
}
