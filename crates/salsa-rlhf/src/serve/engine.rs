//! The engine of the server: one thread owns all models and computes for all requests.
//!
//! Requests arrive as [`Command`]s. Each model is a [`Lane`] with its sequences; the lanes take turns, one
//! decoding step each, and between steps one forward pass is run for requests of scores or log-probs.
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError},
    },
};

use salsa_engine::Model;

use super::{catalogue::Size, metrics::Metrics};

mod command;
mod lane;
mod pass;

pub(super) use command::{Asked, Command, Generation, Pass, Passed, Place, Queue, Reading, Request, SampledToken};
use lane::Lane;

/// Processes commands until all senders are dropped and everything is finished.
pub(super) fn run(models: &[Model], contexts: &[usize], size: &Size, commands: &Receiver<Command>, metrics: &Metrics) {
    let lane = |(model, &context)| Lane::new(model, context, size, metrics);
    let mut lanes: Vec<Option<Lane<'_>>> = models.iter().zip(contexts).map(lane).collect();
    let mut passes: VecDeque<pass::Job> = VecDeque::new();
    while receive(&mut lanes, &mut passes, commands) {
        for lane in lanes.iter_mut().flatten() {
            lane.step();
        }
        metrics.set_running(lanes.iter().flatten().map(Lane::running).sum());
        if let Some(mut job) = passes.pop_front() {
            // Other jobs have their turn before the rest of a long one.
            if job.step(models, size.batched_tokens) == pass::Progress::More {
                passes.push_back(job);
            }
        }
    }
}

/// Receives commands, blocking if idle. Returns whether there is, or may be, something to do.
fn receive(lanes: &mut [Option<Lane<'_>>], passes: &mut VecDeque<pass::Job>, commands: &Receiver<Command>) -> bool {
    loop {
        let is_idle = passes.is_empty() && lanes.iter().flatten().all(Lane::is_idle);
        let command = match commands.try_recv() {
            Ok(command) => command,
            Err(TryRecvError::Empty) if !is_idle => return true,
            Err(TryRecvError::Disconnected) => return !is_idle,
            Err(TryRecvError::Empty) => match commands.recv() {
                Ok(command) => command,
                Err(_) => return false,
            },
        };
        match command {
            Command::Pass(pass) => passes.push_back(pass::Job::new(pass)),
            Command::Generate(generation) => {
                let lane = lanes[generation.model].as_mut().expect("requests for replies go to language models");
                lane.queue(generation);
            }
        }
    }
}

/// Checks that all outputs of a model are finite.
fn finite<'a>(values: impl IntoIterator<Item = &'a f32>) -> Result<(), Arc<str>> {
    match values.into_iter().find(|value| !value.is_finite()) {
        None => Ok(()),
        Some(value) => {
            Err(format!("the model gave {value}: its numbers overflow on this input; check its weights").into())
        }
    }
}
