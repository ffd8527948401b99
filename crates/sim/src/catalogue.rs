//! The models on offer, in the three shapes in which they are listed.
//!
//! Every model but [`NO_SUCH_MODEL`] is answered, listed or not. Fields of codex's list as
//! Codex CLI 0.169.0 reads them; its texts are our own.

use std::sync::LazyLock;

use bytes::Bytes;
use serde_json::{Value, json};

/// The one model that does not exist.
pub const NO_SUCH_MODEL: &str = "no-such-model";

pub const ETAG: &str = "\"sim-models-1\"";

static CODEX: LazyLock<Bytes> = LazyLock::new(|| {
    let models = [
        codex_model("gpt-6.1-sol", "GPT-6.1-Sol", "Everyday coding.", 1, true),
        codex_model("gpt-6-astra", "GPT-6-Astra", "The hardest work.", 2, true),
        codex_model("gpt-5.5", "GPT-5.5", "General work.", 3, false),
        codex_model("gpt-5.5-mini", "GPT-5.5-Mini", "Small and quick.", 4, false),
    ];
    Bytes::from(json!({"models": models}).to_string())
});

static OPENAI: LazyLock<Bytes> = LazyLock::new(|| {
    let model = |id: &str| json!({"id": id, "object": "model", "created": 1_700_000_000, "owned_by": "openai"});
    let data = ["gpt-5.5", "gpt-5.5-mini", "gpt-6-astra", "gpt-6.1-sol"].map(model);
    Bytes::from(json!({"object": "list", "data": data}).to_string())
});

static ANTHROPIC: LazyLock<Bytes> = LazyLock::new(|| {
    let ids = ["claude-opus-5-5", "claude-sonnet-5-5", "claude-sonnet-5", "claude-haiku-4-5"];
    let created_at = "2025-01-01T00:00:00Z";
    let model =
        |id: &str| json!({"type": "model", "id": id, "display_name": id, "created_at": created_at});
    let data = ids.map(model);
    let list = json!({
        "data": data, "has_more": false, "first_id": ids[0], "last_id": ids[ids.len() - 1],
    });
    Bytes::from(list.to_string())
});

pub fn codex() -> Bytes {
    CODEX.clone()
}

pub fn openai() -> Bytes {
    OPENAI.clone()
}

pub fn anthropic() -> Bytes {
    ANTHROPIC.clone()
}

/// `lite`: takes its tools as an input item.
fn codex_model(slug: &str, name: &str, description: &str, priority: u32, lite: bool) -> Value {
    let level = |effort: &str| json!({"effort": effort, "description": format!("Effort {effort}")});
    let levels = ["low", "medium", "high", "xhigh"].map(level);
    json!({
        "slug": slug,
        "display_name": name,
        "description": description,
        "default_reasoning_level": "medium",
        "supported_reasoning_levels": levels,
        "shell_type": "unified_exec",
        "visibility": "list",
        "supported_in_api": true,
        "priority": priority,
        "additional_speed_tiers": ["fast"],
        "service_tiers": [{"id": "priority", "name": "Fast", "description": "Quicker, costs more"}],
        "availability_nux": null,
        "upgrade": null,
        "model_messages": null,
        "include_skills_usage_instructions": false,
        "include_plugin_usage_instructions": false,
        "include_apps_usage_instructions": false,
        "default_reasoning_summary": "none",
        "support_verbosity": true,
        "default_verbosity": "low",
        "apply_patch_tool_type": "freeform",
        "web_search_tool_type": "text_and_image",
        "truncation_policy": {"mode": "tokens", "limit": 10_000},
        "supports_image_detail_original": true,
        "context_window": 272_000,
        "max_context_window": 872_000,
        "comp_hash": "3000",
        "effective_context_window_percent": 95,
        "experimental_supported_tools": [],
        "input_modalities": ["text", "image"],
        "supports_search_tool": true,
        "supports_experimental_context": false,
        "use_responses_lite": lite,
        "supports_reasoning_effort_updates": true,
        "node_repl_auto_review_required": false,
        "node_repl_disabled": false,
        "tool_mode": if lite { json!("code_mode_only") } else { Value::Null },
        "multi_agent_version": "v2",
        "multi_agent_reasoning_effort": "xhigh",
        "base_instructions": "You are a coding agent in a simulation.",
    })
}
