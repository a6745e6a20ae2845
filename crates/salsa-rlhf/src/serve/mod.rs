//! `salsa serve`: an OpenAI-compatible server for several checkpoints and adapters.
//!
//! # Layout
//!
//! ```text
//! http      connections, their limits, shutdown                     (threads of the runtime)
//! routes    routing by path
//! completion, messages, parameters, readings, fields   parsed and checked requests
//! app       state shared by all connections
//! engine    one thread that owns the models: lanes of sequences, forward passes
//! choices, generated, text, tokens     from tokens to pieces of text with log-probs
//! reply, respond                       pieces in OpenAI's form, whole or as a stream
//! ```
//!
//! On the CPU, a reply is a function of its request alone, to the byte (except for its id and time): the engine's
//! output does not depend on concurrent sequences, and pieces of several choices have a fixed order.
use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
        mpsc,
    },
    thread,
};

use anyhow::{Context, anyhow};
use salsa_engine::Model;
use tokio::sync::watch;

pub(crate) mod app;
pub(crate) mod catalogue;
mod choices;
mod completion;
mod engine;
mod error;
mod fields;
mod generated;
mod http;
pub(crate) mod keys;
mod messages;
mod metrics;
mod parameters;
mod readings;
mod reply;
mod respond;
mod routes;
mod text;
mod timed;
mod tokens;

use app::{App, Limits};
use catalogue::{Catalogue, Size};
use keys::Keys;

/// A server that is ready to start.
pub(crate) struct Server {
    /// The models without their weights.
    pub catalogue: Catalogue,
    /// The models, in the catalogue's order.
    pub models: Vec<Model>,
    /// Sizes of the computation.
    pub size: Size,
    /// Maximum number of waiting sequences.
    pub queue: usize,
    /// The accepted API keys.
    pub keys: Keys,
    /// Limits on clients.
    pub limits: Limits,
    /// Program, instruction set and number type: everything but the request that the bytes of a reply depend on.
    pub fingerprint: String,
}

impl Server {
    /// Serves until `stop` is set. This thread runs the engine, others handle the connections.
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub(crate) fn run(self, listener: TcpListener, stop: watch::Receiver<bool>) -> anyhow::Result<()> {
        let Server { catalogue, models, size, queue, keys, limits, fingerprint } = self;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(8)
            .enable_all()
            .build()
            .context("cannot start the threads of the server")?;
        let contexts: Vec<usize> = catalogue.models.iter().map(|served| served.context).collect();
        let (engine, commands) = mpsc::channel();
        let metrics = Arc::new(metrics::Metrics::default());
        let app = Arc::new(App {
            catalogue,
            keys,
            limits,
            queue: engine::Queue::new(queue),
            metrics: metrics.clone(),
            engine,
            fingerprint,
            began: app::now(),
            is_stopping: AtomicBool::new(false),
            named: AtomicU64::new(0),
        });
        let serving = thread::Builder::new()
            .name("serve".to_owned())
            .spawn(move || {
                let served = runtime.block_on(http::serve(app, listener, stop));
                // Drops the remaining connections, and with the last of them the channel to the engine.
                runtime.shutdown_background();
                served
            })
            .context("cannot start the threads of the server")?;
        engine::run(&models, &contexts, &size, &commands, &metrics);
        serving.join().map_err(|_| anyhow!("the server's thread panicked"))?
    }
}
