//! The objects of the Responses API, displayed as JSON.

use std::fmt::{self, Display};

use crate::answer::{CREATED_AT, Quoted};
use crate::directives::Shape;

/// An output item.
pub enum Item<'a> {
    Message {
        id: String,
        text: &'a str,
    },
    Reasoning {
        id: String,
        sealed: String,
    },
    Compaction {
        id: String,
        sealed: String,
    },
    /// Of Codex's shell tool.
    Call {
        id: String,
        call: String,
        command: String,
    },
}

/// The response object, in one of its states.
pub struct Envelope<'a> {
    pub id: &'a str,
    pub status: &'a str,
    pub model: &'a str,
    pub output: &'a [Item<'a>],
    pub shape: &'a Shape,
}

/// A content part.
pub struct Part<'a>(pub &'a str);

impl Display for Part<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = Quoted(self.0);
        write!(f, r#"{{"type":"output_text","text":{text},"annotations":[],"logprobs":[]}}"#)
    }
}

impl Display for Item<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message { id, text } => {
                let part = Part(text);
                write!(
                    f,
                    r#"{{"type":"message","id":"{id}","role":"assistant","status":"completed","content":[{part}]}}"#
                )
            }
            Self::Reasoning { id, sealed } => {
                let sealed = Quoted(sealed);
                write!(
                    f,
                    r#"{{"type":"reasoning","id":"{id}","summary":[],"encrypted_content":{sealed}}}"#
                )
            }
            Self::Compaction { id, sealed } => {
                let sealed = Quoted(sealed);
                write!(f, r#"{{"type":"compaction","id":"{id}","encrypted_content":{sealed}}}"#)
            }
            Self::Call { id, call, command } => {
                let arguments = format!(r#"{{"cmd":{}}}"#, Quoted(command));
                let arguments = Quoted(&arguments);
                write!(
                    f,
                    r#"{{"type":"function_call","id":"{id}","call_id":"{call}","name":"exec_command","arguments":{arguments},"status":"completed"}}"#
                )
            }
        }
    }
}

/// Items, with commas between them.
pub struct List<'a>(pub &'a [Item<'a>]);

impl Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, item) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{item}")?;
        }
        Ok(())
    }
}

/// Token counts.
pub struct Usage<'a>(pub &'a Shape);

impl Display for Usage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { input_tokens, output_tokens, cached_tokens, .. } = self.0;
        let total = input_tokens + output_tokens;
        write!(
            f,
            r#"{{"input_tokens":{input_tokens},"input_tokens_details":{{"cached_tokens":{cached_tokens}}},"output_tokens":{output_tokens},"output_tokens_details":{{"reasoning_tokens":0}},"total_tokens":{total}}}"#
        )
    }
}

impl Display for Envelope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, status, output) = (self.id, self.status, List(self.output));
        let model = Quoted(self.model);
        write!(
            f,
            r#"{{"id":"{id}","object":"response","created_at":{CREATED_AT},"status":"{status}","model":{model},"output":[{output}],"#
        )?;
        f.write_str(
            r#""parallel_tool_calls":true,"previous_response_id":null,"prompt_cache_key":null,"reasoning":{"effort":null,"summary":null},"service_tier":"default","store":false,"temperature":1.0,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"top_p":1.0,"truncation":"disabled","user":null,"metadata":{},"error":null,"incomplete_details":null,"instructions":null,"#,
        )?;
        if status == "completed" {
            let usage = Usage(self.shape);
            write!(f, r#""usage":{usage},"completed_at":{CREATED_AT}}}"#)
        } else {
            f.write_str(r#""usage":null}"#)
        }
    }
}
