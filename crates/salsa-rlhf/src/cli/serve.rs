//! `salsa serve MODEL…`
use std::{
    net::{SocketAddr, TcpListener, ToSocketAddrs},
    path::PathBuf,
    process,
    time::Duration,
};

use anyhow::Context;
use salsa_engine::Device;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::watch;

use crate::{
    config::Usage,
    serve::{
        Server,
        app::Limits,
        catalogue::{Catalogue, Named, Size},
        keys::Keys,
    },
    stage::{
        StageContext,
        device::Choice as DeviceChoice,
        keys::{ByteSize, ComputeType, MOST_SEQUENCES, MOST_TOKENS, check_count},
    },
};

/// Models and serving options.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
        salsa serve runs/quickstart/salsa\n  \
        salsa serve policy=runs/a/salsa reward=runs/a/reward --port 9000 --api-key-file keys.txt\n  \
        salsa serve meta-llama/Llama-3.2-1B --adapter sft=runs/lora/sft-a --adapter dpo=runs/lora/dpo\n\n\
    Then, with a client of OpenAI's protocol:\n  \
        curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\\n    \
        -d '{\"model\": \"runs/quickstart/salsa\", \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'\n\n\
    Paths: /v1/chat/completions, /v1/completions, /v1/models, /score, /logprobs, /health, /metrics. Ctrl-C lets what\n\
    runs finish; once more ends at once.")]
pub(super) struct Arguments {
    /// Checkpoint directories or ids of the Hugging Face hub, each as PATH or NAME=PATH. NAME is the name in requests,
    /// by default PATH. A reward model is served at /score.
    #[arg(required = true, value_name = "MODEL", value_parser = named)]
    models: Vec<Named>,
    /// Adapter (a PEFT directory) as NAME=PATH; adapters share their base model.
    #[arg(long, value_name = "NAME=PATH", value_parser = adapter, visible_alias = "lora-modules", num_args = 1..)]
    adapter: Vec<Named>,
    /// Address to listen on. Anyone who can reach it may send requests, unless keys are set.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 takes a free one, which is printed on stderr.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// File of API keys, one per line; requests need one of them in the header Authorization: Bearer KEY.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Maximum number of tokens of a prompt plus reply; by default the model's context.
    #[arg(long, value_name = "TOKENS")]
    max_model_len: Option<usize>,
    /// Sequences of one model decoded at once. Affects memory and speed, not replies.
    #[arg(long, value_name = "COUNT", default_value_t = 32)]
    max_num_seqs: usize,
    /// Maximum number of prompt tokens per prefill pass; a longer prompt gets its own pass. Does not affect replies.
    #[arg(long, value_name = "TOKENS", default_value_t = 2048)]
    max_num_batched_tokens: usize,
    /// Maximum number of waiting sequences; further requests are rejected with status 429.
    #[arg(long, value_name = "COUNT", default_value_t = 1024)]
    max_queue: usize,
    /// Maximum number of open connections; further ones wait.
    #[arg(long, value_name = "COUNT", default_value_t = 256)]
    max_connections: usize,
    /// Maximum size of a request body: bytes, or a size such as 4MB.
    #[arg(long, value_name = "SIZE", default_value = "4MB")]
    max_body: String,
    /// Seconds that a client may take to send a request or to receive a piece of a response.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    client_timeout: u64,
    /// Seconds that running requests may take to finish after Ctrl-C or SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    shutdown_timeout: u64,
    /// Number type of matrix products: auto (bfloat16 where this machine multiplies it faster), f32 or bf16.
    #[arg(long, default_value = "auto", value_parser = dtype)]
    dtype: ComputeType,
    /// Device to compute on: auto (the GPU with the most free memory if one can be used, else the CPU), cpu, cuda or
    /// cuda:N.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
}

/// Serves until interrupted.
pub(super) fn main(arguments: &Arguments) -> anyhow::Result<()> {
    let (size, limits) = (arguments.size()?, arguments.limits()?);
    let keys = arguments.api_key_file.as_deref().map(Keys::read).transpose()?.unwrap_or_default();
    let context = StageContext::default();
    let listener = arguments.listen(&keys, &context)?;
    let address = listener.local_addr().context("cannot listen")?;
    let stop = on_signals()?;
    let opened = arguments.device.open(arguments.dtype)?;
    let context = context.on(opened.device);
    context.say(&opened.line);
    let named = [&arguments.models[..], &arguments.adapter].concat();
    let (catalogue, models) = Catalogue::open(&named, &size, &context)?;
    let names: Vec<&str> = named.iter().map(|named| named.name.as_str()).collect();
    context.say(&format!("serving {} at http://{address}/v1", names.join(", ")));
    let (queue, fingerprint) = (arguments.max_queue, fingerprint(&context.device));
    Server { catalogue, models, size, queue, keys, limits, fingerprint }.run(listener, stop)
}

impl Arguments {
    fn size(&self) -> anyhow::Result<Size> {
        let usage = |error: anyhow::Error| Usage(format!("{error:#}"));
        check_count("--max-num-seqs", self.max_num_seqs as u64, MOST_SEQUENCES).map_err(usage)?;
        check_count("--max-num-batched-tokens", self.max_num_batched_tokens as u64, MOST_TOKENS).map_err(usage)?;
        if let Some(longest) = self.max_model_len {
            check_count("--max-model-len", longest as u64, MOST_TOKENS).map_err(usage)?;
        }
        Ok(Size {
            sequences: self.max_num_seqs,
            batched_tokens: self.max_num_batched_tokens,
            longest: self.max_model_len,
        })
    }

    fn limits(&self) -> anyhow::Result<Limits> {
        let usage = |error: anyhow::Error| Usage(format!("{error:#}"));
        check_count("--max-queue", self.max_queue as u64, MOST_SEQUENCES).map_err(usage)?;
        check_count("--max-connections", self.max_connections as u64, MOST_SEQUENCES).map_err(usage)?;
        check_count("--client-timeout", self.client_timeout, A_DAY).map_err(usage)?;
        if self.shutdown_timeout > A_DAY {
            return Err(Usage(format!("--shutdown-timeout is more than a day, {A_DAY} seconds")).into());
        }
        let body = ByteSize::deserialize(json!(self.max_body));
        let body = body.map_err(|error: serde_json::Error| Usage(format!("--max-body: {error}")))?;
        check_count("--max-body", body.0, 1 << 30).map_err(usage)?;
        Ok(Limits {
            body: body.0 as usize,
            connections: self.max_connections,
            client: Duration::from_secs(self.client_timeout),
            shutdown: Duration::from_secs(self.shutdown_timeout),
        })
    }

    /// Binds the address before anything is read, so that an occupied address is reported immediately.
    fn listen(&self, keys: &Keys, context: &StageContext) -> anyhow::Result<TcpListener> {
        let at = format!("{}:{}", self.host, self.port);
        let addresses = (self.host.as_str(), self.port).to_socket_addrs();
        let addresses: Vec<SocketAddr> = addresses.map_err(|error| Usage(format!("--host {at}: {error}")))?.collect();
        let listener = TcpListener::bind(&addresses[..])
            .with_context(|| format!("cannot listen at {at}; take another --port, or 0 for a free one"))?;
        let is_open = listener.local_addr().is_ok_and(|address| !address.ip().is_loopback());
        if is_open && keys.is_empty() {
            context.say(&format!(
                "warning: {at} can be reached from other machines, and everybody who reaches it may ask; --api-key-file \
                 FILE asks for a key"
            ));
        }
        Ok(listener)
    }
}

/// Seconds.
const A_DAY: u64 = 86_400;

/// Returns a flag that is set at the first Ctrl-C or SIGTERM; the second one ends the process.
fn on_signals() -> anyhow::Result<watch::Receiver<bool>> {
    let (stop, stopped) = watch::channel(false);
    ctrlc::set_handler(move || {
        if stop.send_replace(true) {
            process::exit(130);
        }
        StageContext::default().say("stopping: what runs is finished (once more to stop at once)");
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(stopped)
}

/// Identifies everything but the request that the bytes of a reply depend on.
fn fingerprint(device: &Device) -> String {
    format!("salsa-{}-{}-{}", env!("CARGO_PKG_VERSION"), device.name(), device.dtype().name())
}

/// `PATH` or `NAME=PATH`.
fn named(text: &str) -> Result<Named, String> {
    let (name, path) = text.split_once('=').unwrap_or((text.trim_end_matches('/'), text));
    if name.is_empty() || path.is_empty() {
        return Err("say PATH or NAME=PATH".to_owned());
    }
    Ok(Named { name: name.to_owned(), path: path.to_owned() })
}

/// `NAME=PATH`.
fn adapter(text: &str) -> Result<Named, String> {
    if text.contains('=') { named(text) } else { Err("say NAME=PATH: requests need a name for it".to_owned()) }
}

fn dtype(name: &str) -> Result<ComputeType, String> {
    ComputeType::deserialize(json!(name)).map_err(|_| "say auto, f32 or bf16".to_owned())
}
