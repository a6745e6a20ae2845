//! How calls reach a judge: over HTTP, as files of a batch, or to a checkpoint on this machine.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(super) mod batch;
pub(super) mod local;

/// How calls reach the judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// To an OpenAI-compatible server at `base_url`, call by call.
    Http,
    /// As `requests.jsonl` for OpenAI's batch interface or vLLM's `run_batch`; reads `responses.jsonl` if it exists.
    Batch,
    /// To the checkpoint `judge_path` on this machine.
    Local,
    /// No calls: `judgments` must contain all that are needed.
    Recorded,
}
