//! Counters of the server in Prometheus' text format.
use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::stage::memory::available::resident_bytes;

/// Upper bounds of the histograms' buckets, in seconds.
const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Counters since the start of the server.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    running: AtomicUsize,
    connections: AtomicUsize,
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    first_token: Histogram,
    duration: Histogram,
    /// Requests by path and status.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
}

/// A histogram of times, with the buckets of [`SECONDS`].
#[derive(Debug, Default)]
struct Histogram {
    buckets: [AtomicU64; SECONDS.len()],
    count: AtomicU64,
    microseconds: AtomicU64,
}

impl Histogram {
    fn observe(&self, time: Duration) {
        let at = SECONDS.iter().position(|seconds| time.as_secs_f64() <= *seconds);
        if let Some(at) = at {
            self.buckets[at].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.microseconds.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    fn write(&self, text: &mut String, name: &str, help: &str) {
        let mut sum = 0;
        let mut line = |line: String| *text += &line;
        line(format!("# HELP {name} {help}\n# TYPE {name} histogram\n"));
        for (bucket, seconds) in self.buckets.iter().zip(SECONDS) {
            sum += bucket.load(Ordering::Relaxed);
            line(format!("{name}_bucket{{le=\"{seconds}\"}} {sum}\n"));
        }
        let count = self.count.load(Ordering::Relaxed);
        let seconds = self.microseconds.load(Ordering::Relaxed) as f64 / 1e6;
        line(format!("{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {seconds}\n{name}_count {count}\n"));
    }
}

impl Metrics {
    /// Sets the number of running sequences.
    pub(crate) fn set_running(&self, count: usize) {
        self.running.store(count, Ordering::Relaxed);
    }

    /// Sets the number of open connections.
    pub(crate) fn set_connections(&self, count: usize) {
        self.connections.store(count, Ordering::Relaxed);
    }

    /// Adds prompt tokens that were processed.
    pub(crate) fn add_prompt_tokens(&self, count: usize) {
        self.prompt_tokens.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Adds generated tokens.
    pub(crate) fn add_generated_tokens(&self, count: usize) {
        self.generated_tokens.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Records the time from a request to the first token of its reply.
    pub(crate) fn first_token(&self, time: Duration) {
        self.first_token.observe(time);
    }

    /// Records a finished request, and the time until its response began.
    pub(crate) fn answered(&self, path: &'static str, status: u16, time: Duration) {
        *self.requests.lock().unwrap_or_else(PoisonError::into_inner).entry((path, status)).or_default() += 1;
        self.duration.observe(time);
    }

    /// All metrics, including the number of waiting sequences.
    pub(crate) fn text(&self, waiting: usize) -> String {
        let mut text = String::new();
        let mut number = |name: &str, kind: &str, help: &str, value: u64| {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        };
        let load = |count: &AtomicUsize| count.load(Ordering::Relaxed) as u64;
        number("salsa_sequences_running", "gauge", "Sequences being decoded.", load(&self.running));
        number("salsa_sequences_waiting", "gauge", "Sequences that wait for a slot.", waiting as u64);
        number("salsa_connections", "gauge", "Open connections.", load(&self.connections));
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        number("salsa_prompt_tokens_total", "counter", "Tokens of prompts read.", load(&self.prompt_tokens));
        number("salsa_generated_tokens_total", "counter", "Tokens drawn.", load(&self.generated_tokens));
        if let Some(bytes) = resident_bytes() {
            number("process_resident_memory_bytes", "gauge", "Resident memory of the process.", bytes);
        }
        text += "# HELP salsa_requests_total Requests by path and status.\n# TYPE salsa_requests_total counter\n";
        for ((path, status), count) in self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(text, "salsa_requests_total{{path=\"{path}\",status=\"{status}\"}} {count}");
        }
        let help = "Time from a request to the first token of its reply.";
        self.first_token.write(&mut text, "salsa_time_to_first_token_seconds", help);
        let help = "Time from a request to the beginning of its answer.";
        self.duration.write(&mut text, "salsa_request_duration_seconds", help);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_cumulative() {
        let metrics = Metrics::default();
        for milliseconds in [4, 6, 6, 100_000] {
            metrics.first_token(Duration::from_millis(milliseconds));
        }
        metrics.answered("/health", 200, Duration::ZERO);
        let text = metrics.text(3);
        for line in [
            "salsa_time_to_first_token_seconds_bucket{le=\"0.005\"} 1",
            "salsa_time_to_first_token_seconds_bucket{le=\"0.01\"} 3",
            "salsa_time_to_first_token_seconds_bucket{le=\"30\"} 3",
            "salsa_time_to_first_token_seconds_bucket{le=\"+Inf\"} 4",
            "salsa_time_to_first_token_seconds_sum 100.016",
            "salsa_sequences_waiting 3",
            "salsa_requests_total{path=\"/health\",status=\"200\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
