//! Runs a stage of a study in its own process, so that several stages run at a time, each with a share of the cores.
use std::{
    io::{BufRead, Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::plan::Node;
use crate::{
    config::Origin,
    stage::{StageContext, run_stage, table},
};

/// Interval of polling for the end of a process.
const PAUSE: Duration = Duration::from_millis(20);

/// The message to a worker process about its stage.
pub(super) struct Order {
    dir: std::path::PathBuf,
    line: String,
}

impl Order {
    pub(super) fn new(node: &Node) -> Order {
        let order = json!({"kind": node.kind.name, "dir": node.dir, "config": node.planned.config});
        Order { dir: node.dir.clone(), line: format!("{order}\n") }
    }

    /// Runs the stage to its end in a process with this number of threads.
    ///
    /// # Errors
    /// The error that the process reports.
    pub(super) fn carry_out(&self, threads: usize, context: &StageContext) -> anyhow::Result<()> {
        let program = std::env::current_exe().context("cannot find this program's file")?;
        let mut child = Command::new(program)
            .args(["study", "--worker"])
            .env("RAYON_NUM_THREADS", threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start a process for a stage")?;
        let mut stdin = child.stdin.take();
        if let Some(stdin) = &mut stdin {
            // If the process has ended already, its error is reported below.
            let _ = stdin.write_all(self.line.as_bytes()).and_then(|()| stdin.flush());
        }
        let said = listen(&mut child);
        let status = loop {
            if let Some(status) = child.try_wait().context("a process for a stage")? {
                break status;
            }
            if context.interrupted() {
                // Closing its input requests it to stop.
                stdin = None;
            }
            thread::sleep(PAUSE);
        };
        drop(stdin);
        let said = said.join().unwrap_or_default();
        if status.success() {
            return Ok(());
        }
        let error = said.lines().rev().find_map(|line| line.strip_prefix("error: "));
        match error.or(said.lines().next_back()) {
            Some(error) => bail!("{error}"),
            None => bail!("the process for {} ended with {status}", self.dir.display()),
        }
    }
}

/// Reads the output of a process in the background, so that the process never blocks on it.
fn listen(child: &mut Child) -> thread::JoinHandle<String> {
    let stderr = child.stderr.take();
    thread::spawn(move || {
        let mut said = Vec::new();
        if let Some(mut stderr) = stderr {
            // Unreadable output is only a lost message.
            let _ = stderr.read_to_end(&mut said);
        }
        String::from_utf8_lossy(&said).into_owned()
    })
}

/// Runs one stage, described by the first line of standard input. If standard input ends before the stage does, as when
/// the process of the study was killed, the stage stops at a point from which it can be resumed.
///
/// # Errors
/// Any error of the stage.
pub fn work(context: &StageContext) -> anyhow::Result<()> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("cannot read the stage from standard input")?;
    let order: Value = serde_json::from_str(&line).context("standard input names no stage")?;
    let kind = order["kind"].as_str().and_then(table::find).context("standard input names no kind of stage")?;
    let (dir, Value::Object(config)) = (order["dir"].as_str().unwrap_or_default(), &order["config"]) else {
        bail!("standard input gives no configuration");
    };
    ensure!(!dir.is_empty(), "standard input gives no directory");
    let origin = Origin::File { path: dir.into(), prefix: String::new() };
    let planned = (kind.from_mapping)(config, &origin, &mut |_, _, _| Ok(None))?;
    let asked = context.clone();
    thread::spawn(move || {
        // Nothing more is sent; this returns at the end of the input.
        let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
        asked.interrupt();
    });
    let config = (planned.config.clone(), planned.places.clone());
    run_stage(kind.name, Path::new(dir), config, context, &planned.work)?;
    Ok(())
}
