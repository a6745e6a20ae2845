//! A reward computed by a program of the user's: JSON lines in, JSON lines out.
//!
//! ```text
//! in    {"id": 0, "prompt": "...", "response": "...", "columns": {"answer": "4"}}    one line per response
//!       (an empty line)                                                              the batch is complete
//! out   {"id": 0, "reward": 1.0}                                                     one line per response, in any order
//! ```
//!
//! One process serves the whole run. Rewards are matched by `id`; anything else on standard output is a failure: then
//! the process is killed, started anew, and gets the whole batch again.
use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::bail;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Answered, Unavailable};
use crate::stage::StageContext;

/// The longest line of a program, in bytes.
const LONGEST_LINE: u64 = 1 << 20;

/// Lines that may wait to be read; with more the program waits.
const WAITING_LINES: usize = 1024;

/// How often a waiting stage looks for an interruption.
const LOOK: Duration = Duration::from_millis(50);

/// How long a program may take to end after its input was closed.
const FAREWELL: Duration = Duration::from_secs(2);

/// Lines of standard error that are kept for messages.
const KEPT_LINES: usize = 5;

/// A program and its limits; started with the first batch.
pub(super) struct Program {
    name: String,
    command: Vec<String>,
    timeout: Duration,
    retries: u32,
    running: Option<Running>,
}

/// What a program wrote.
enum Output {
    Line(String),
    /// A line that is too long, or no UTF-8.
    Unreadable(&'static str),
}

/// A started program.
struct Running {
    child: Child,
    /// None after the input was closed.
    stdin: Option<ChildStdin>,
    lines: Receiver<Output>,
    last_words: Arc<Mutex<VecDeque<String>>>,
}

/// A line of a program.
#[derive(Deserialize)]
struct Line {
    id: Option<u64>,
    reward: Option<f64>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// Why a batch failed, and at which of its responses, if known.
struct Failure {
    what: String,
    at: Option<usize>,
}

impl Failure {
    fn new(what: impl Into<String>) -> Failure {
        Failure { what: what.into(), at: None }
    }
}

impl Program {
    pub(super) fn new(name: &str, command: Vec<String>, timeout: f64, retries: u32) -> Program {
        Program { name: name.to_owned(), command, timeout: Duration::from_secs_f64(timeout), retries, running: None }
    }

    /// The rewards of the responses of an update; the ids of their lines are `first` and following.
    ///
    /// # Errors
    /// [`Unavailable`] if the program fails more often than it may, or cannot be started.
    pub(super) fn rewards(
        &mut self,
        answered: &[Answered<'_>],
        first: u64,
        context: &StageContext,
    ) -> anyhow::Result<Vec<f64>> {
        let text = Arc::from(lines(answered, first));
        let mut attempt = 0;
        loop {
            let failure = match self.attempt(&text, answered.len(), first, context) {
                Ok(rewards) => return Ok(rewards),
                Err(failure) => failure,
            };
            let said = self.running.take().map(Running::kill).unwrap_or_default();
            let what = format!("reward {}: {} {}{said}", self.name, self.command.join(" "), failure.what);
            let prompt = failure.at.map(|at| answered[at].prompt);
            let unavailable = Unavailable::new(what, prompt);
            if context.interrupted() || attempt == self.retries {
                bail!(unavailable);
            }
            attempt += 1;
            context.say(&format!("{unavailable}; started anew ({attempt} of {} retries)", self.retries));
        }
    }

    /// Sends the batch and receives its rewards.
    fn attempt(
        &mut self,
        text: &Arc<str>,
        count: usize,
        first: u64,
        context: &StageContext,
    ) -> Result<Vec<f64>, Failure> {
        if self.running.is_none() {
            self.running = Some(Running::start(&self.command)?);
        }
        let running = self.running.as_mut().expect("it was started above");
        if let Ok(output) = running.lines.try_recv() {
            return Err(Failure::new(format!("wrote more lines than it got: {}", output.shown())));
        }
        let Some(mut stdin) = running.stdin.take() else { return Err(Failure::new("has a closed input")) };
        let until = Instant::now() + self.timeout;
        // The program may answer before it has read everything, so its input is written by a thread of its own.
        let (text, (sender, written)) = (text.clone(), sync_channel(1));
        thread::spawn(move || {
            // A program that ended is noticed by its output, and a receiver that is gone has failed already.
            let _ = stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush());
            let _ = sender.send(stdin);
        });
        let rewards = running.receive(count, first, until, context)?;
        let left = until.saturating_duration_since(Instant::now());
        let stdin = written.recv_timeout(left).map_err(|_| Failure::new("did not read all of its input"))?;
        running.stdin = Some(stdin);
        Ok(rewards)
    }
}

/// The lines of a batch, and an empty one.
fn lines(answered: &[Answered<'_>], first: u64) -> String {
    let mut text = String::new();
    for (at, one) in answered.iter().enumerate() {
        let line = json!({
            "id": first + at as u64,
            "prompt": one.prompt,
            "response": one.text,
            "columns": one.columns,
        });
        text += &line.to_string();
        text.push('\n');
    }
    text.push('\n');
    text
}

impl Running {
    fn start(command: &[String]) -> Result<Running, Failure> {
        let mut child = Command::new(&command[0])
            .args(&command[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: Ctrl-C lets the program finish the batch, and all its children can be killed.
            .process_group(0)
            .spawn()
            .map_err(|error| Failure::new(format!("cannot be started: {error}")))?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(Failure::new("has no standard input and output"));
        };
        let (sender, lines) = sync_channel(WAITING_LINES);
        thread::spawn(move || read_lines(BufReader::new(stdout), &sender));
        let last_words = Arc::new(Mutex::new(VecDeque::new()));
        let kept = last_words.clone();
        thread::spawn(move || keep_last(BufReader::new(stderr), &kept));
        Ok(Running { child, stdin: Some(stdin), lines, last_words })
    }

    /// Receives one reward for each response.
    fn receive(
        &mut self,
        count: usize,
        first: u64,
        until: Instant,
        context: &StageContext,
    ) -> Result<Vec<f64>, Failure> {
        let (mut rewards, mut missing) = (vec![None; count], count);
        while missing > 0 {
            let now = Instant::now();
            let output = match self.lines.recv_timeout(LOOK.min(until.saturating_duration_since(now))) {
                Ok(output) => output,
                Err(RecvTimeoutError::Timeout) if context.interrupted() => {
                    return Err(Failure::new("was interrupted"));
                }
                Err(RecvTimeoutError::Timeout) if now < until => continue,
                Err(RecvTimeoutError::Timeout) => {
                    let at = rewards.iter().position(Option::is_none);
                    let what = format!("gave {} of {count} rewards within the time limit", count - missing);
                    return Err(Failure { what, at });
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let at = rewards.iter().position(Option::is_none);
                    let what = format!("{} after {} of {count} rewards", self.ending(), count - missing);
                    return Err(Failure { what, at });
                }
            };
            let (at, reward) = output.reward(first, count)?;
            if rewards[at].replace(reward).is_some() {
                return Err(Failure { what: "rewarded a response twice".to_owned(), at: Some(at) });
            }
            missing -= 1;
        }
        Ok(rewards.into_iter().flatten().collect())
    }

    /// How the program ended, having closed its output.
    fn ending(&mut self) -> String {
        let until = Instant::now() + FAREWELL;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return in_words(status),
                Ok(None) if Instant::now() < until => thread::sleep(Duration::from_millis(5)),
                _ => return "closed its output".to_owned(),
            }
        }
    }

    /// Kills the program and its children.
    fn kill_now(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // The group exists: its leader was not waited for yet. If it ends in this moment, nothing is left to kill.
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        }
        // It has ended, or cannot be killed; either way there is nothing more to do.
        let _ = self.child.wait();
    }

    /// Kills the program. Returns the last lines of its standard error, for a message.
    fn kill(mut self) -> String {
        self.kill_now();
        // The thread that keeps them may need a moment for the last one.
        thread::sleep(Duration::from_millis(20));
        let kept = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.is_empty() {
            return String::new();
        }
        let kept: Vec<&str> = kept.iter().map(String::as_str).collect();
        format!("; it said: {}", kept.join(" | "))
    }
}

/// Closes the program's input, which asks it to end, and kills it if it does not.
impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let until = Instant::now() + FAREWELL;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        self.kill_now();
    }
}

impl Output {
    /// The response that the line is about, counted from `first`, and its reward.
    fn reward(self, first: u64, count: usize) -> Result<(usize, f64), Failure> {
        let shown = self.shown();
        let Output::Line(text) = self else { return Err(Failure::new(format!("wrote {shown}"))) };
        let line: Line = serde_json::from_str(&text).map_err(|error| {
            Failure::new(format!("wrote a line that is not {{\"id\": N, \"reward\": X}}: {shown} ({error})"))
        })?;
        let at = line.id.and_then(|id| id.checked_sub(first)).and_then(|at| usize::try_from(at).ok());
        let Some(at) = at.filter(|at| *at < count) else {
            return Err(Failure::new(format!("wrote a line with an id that it did not get: {shown}")));
        };
        match (line.reward, line.others.get("error")) {
            (Some(reward), None) => Ok((at, reward)),
            (_, Some(error)) => Err(Failure { what: format!("reports an error: {error}"), at: Some(at) }),
            (None, None) => Err(Failure { what: format!("wrote a line without a reward: {shown}"), at: Some(at) }),
        }
    }

    /// The beginning of the line.
    fn shown(&self) -> String {
        match self {
            Output::Line(text) => {
                let start: String = text.chars().take(80).collect();
                format!("{start:?}{}", if start.len() < text.len() { "…" } else { "" })
            }
            Output::Unreadable(what) => (*what).to_owned(),
        }
    }
}

/// Sends the lines of a program, up to the first that cannot be read.
fn read_lines(mut output: impl BufRead, sender: &SyncSender<Output>) {
    loop {
        let mut line = Vec::new();
        match output.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let is_whole = line.last() == Some(&b'\n') || (line.len() as u64) < LONGEST_LINE;
        let output = match String::from_utf8(line) {
            _ if !is_whole => Output::Unreadable("a line of more than a megabyte"),
            Err(_) => Output::Unreadable("a line that is no UTF-8"),
            Ok(line) if line.trim().is_empty() => continue,
            Ok(line) => Output::Line(line.trim_end().to_owned()),
        };
        let ends = matches!(output, Output::Unreadable(_));
        if sender.send(output).is_err() || ends {
            return;
        }
    }
}

/// Keeps the last lines of a program's standard error.
fn keep_last(mut stderr: impl BufRead, kept: &Mutex<VecDeque<String>>) {
    loop {
        let mut line = Vec::new();
        match stderr.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let line: String = String::from_utf8_lossy(&line).trim_end().chars().take(200).collect();
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT_LINES {
            kept.pop_front();
        }
        kept.push_back(line);
    }
}

fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}
