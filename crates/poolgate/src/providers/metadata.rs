//! Events that tell headers of an answer, the turn state above all. Public clients and gateways know them by
//! two names; they come before the response is created, or at any time behind that, and are no output.

pub fn is_metadata(kind: &[u8]) -> bool {
    matches!(kind, b"response.metadata" | b"codex.response.metadata")
}
