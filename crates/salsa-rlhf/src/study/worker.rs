//! A stage of a study in a process of its own, so that several stages run at a time with a part of the cores each.
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

/// How often a finished process is looked for.
const PAUSE: Duration = Duration::from_millis(20);

/// What a process is told about its stage.
pub(super) struct Order {
    dir: std::path::PathBuf,
    line: String,
}

impl Order {
    pub(super) fn new(node: &Node) -> Order {
        let order = json!({"kind": node.kind.name, "dir": node.dir, "config": node.planned.config});
        Order { dir: node.dir.clone(), line: format!("{order}\n") }
    }

    /// Runs the stage in a process with so many threads, to its end.
    ///
    /// # Errors
    /// What the process says of its failure.
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
            // A process that is gone already says why below.
            let _ = stdin.write_all(self.line.as_bytes()).and_then(|()| stdin.flush());
        }
        let said = listen(&mut child);
        let status = loop {
            if let Some(status) = child.try_wait().context("a process for a stage")? {
                break status;
            }
            if context.interrupted() {
                // The end of its input asks it to stop.
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

/// Reads what a process says, so that it never waits for a reader.
fn listen(child: &mut Child) -> thread::JoinHandle<String> {
    let stderr = child.stderr.take();
    thread::spawn(move || {
        let mut said = Vec::new();
        if let Some(mut stderr) = stderr {
            // What cannot be read is only talk.
            let _ = stderr.read_to_end(&mut said);
        }
        String::from_utf8_lossy(&said).into_owned()
    })
}

/// Does the work of one stage, which standard input names in its first line. When standard input ends before the stage
/// does, as when the process of the study was killed, the stage stops where it can be resumed.
///
/// # Errors
/// As the stage.
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
        // Nothing more comes; the end does.
        let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
        asked.interrupt();
    });
    let config = (planned.config.clone(), planned.places.clone());
    run_stage(kind.name, Path::new(dir), config, context, &planned.work)?;
    Ok(())
}
