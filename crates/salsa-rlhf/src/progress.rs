//! Progress of a long task on stderr: a bar on a terminal, else occasional plain lines.
//!
//! ```text
//! SFT A       ████████████████░░░░░░░░░░  420/600  12.3 steps/s  15 s left  loss 1.234
//! SFT A: 420/600 steps (70 %), 12.3 steps/s, 15 s left, loss 1.234
//! ```

use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

/// Minimum time between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// The progress of one task with a known number of units (steps, responses, tokens, …). Methods take `&self` and may be
/// called from any thread.
pub(crate) struct Progress {
    title: String,
    unit: String,
    total: u64,
    view: View,
}

enum View {
    Bar(ProgressBar),
    Lines(Mutex<Lines>),
}

/// State of plain output: the last line printed, and the start of the rate measurement.
struct Lines {
    out: Box<dyn Write + Send>,
    since: Instant,
    first: Option<u64>,
    position: u64,
    printed: Instant,
    message: String,
}

impl Progress {
    /// Starts the clock. Shows a bar if stderr is a terminal, plain lines otherwise. `unit` is a plural (`"steps"`,
    /// `"tok"`).
    pub(crate) fn new(title: &str, total: u64, unit: &str) -> Progress {
        let bar = ProgressBar::new(total);
        if bar.is_hidden() {
            return Progress::lines(title, total, unit, Box::new(std::io::stderr()));
        }
        bar.set_style(style(unit));
        bar.set_prefix(title.to_owned());
        bar.enable_steady_tick(Duration::from_millis(250));
        Progress { title: title.to_owned(), unit: unit.to_owned(), total, view: View::Bar(bar) }
    }

    /// The progress of a task that another process shows.
    pub(crate) fn silent(title: &str, total: u64, unit: &str) -> Progress {
        Progress::lines(title, total, unit, Box::new(std::io::sink()))
    }

    fn lines(title: &str, total: u64, unit: &str, out: Box<dyn Write + Send>) -> Progress {
        let now = Instant::now();
        let lines = Lines { out, since: now, first: None, position: 0, printed: now, message: String::new() };
        Progress { title: title.to_owned(), unit: unit.to_owned(), total, view: View::Lines(Mutex::new(lines)) }
    }

    /// Sets the work done by an earlier run: moves the position to `units` without counting it in the rate.
    pub(crate) fn start_at(&self, units: u64) {
        match &self.view {
            View::Bar(bar) => {
                bar.set_position(units);
                bar.reset_eta();
            }
            View::Lines(lines) => {
                let mut lines = lock(lines);
                lines.since = Instant::now();
                lines.first = Some(units);
                lines.position = units;
            }
        }
    }

    /// Sets the number of finished units.
    pub(crate) fn set(&self, units: u64) {
        self.set_at(units, Instant::now());
    }

    fn set_at(&self, units: u64, now: Instant) {
        match &self.view {
            View::Bar(bar) => bar.set_position(units),
            View::Lines(lines) => {
                let mut lines = lock(lines);
                lines.position = units;
                if now.duration_since(lines.printed) >= LINE_INTERVAL {
                    lines.printed = now;
                    self.print(&mut lines, now);
                }
            }
        }
    }

    /// Sets a message shown after the rate, such as the key metric: `"loss 1.234"`.
    pub(crate) fn message(&self, text: &str) {
        match &self.view {
            View::Bar(bar) => bar.set_message(text.to_owned()),
            View::Lines(lines) => lock(lines).message = text.to_owned(),
        }
    }

    /// Ends the display with a last line: title, units done, time taken and `text`.
    pub(crate) fn finish(&self, text: &str) {
        self.finish_at(text, Instant::now());
    }

    fn finish_at(&self, text: &str, now: Instant) {
        let tail = if text.is_empty() { String::new() } else { format!(", {text}") };
        match &self.view {
            View::Bar(bar) => {
                let (done, time) = (bar.position(), human_time(bar.elapsed().as_secs_f64()));
                let last = format!("{:<12} {done} {} in {time}{tail}", self.title, self.unit);
                bar.println(last);
                bar.finish_and_clear();
            }
            View::Lines(lines) => {
                let mut lines = lock(lines);
                let time = human_time(now.duration_since(lines.since).as_secs_f64());
                let done = lines.position;
                // Write errors of stderr are ignored; the task continues.
                let _ = writeln!(lines.out, "{}: {done} {} in {time}{tail}", self.title, self.unit);
            }
        }
    }

    fn print(&self, lines: &mut Lines, now: Instant) {
        let done = lines.position.saturating_sub(lines.first.unwrap_or(0)) as f64;
        let per_second = done / now.duration_since(lines.since).as_secs_f64().max(1e-9);
        let percent = (lines.position as f64 / self.total.max(1) as f64 * 100.0).floor();
        let mut line = format!("{}: {}/{} {} ({percent} %)", self.title, lines.position, self.total, self.unit);
        if per_second > 0.0 {
            let left = self.total.saturating_sub(lines.position) as f64 / per_second;
            line += &format!(", {}, {} left", human_rate(per_second, &self.unit), human_time(left));
        }
        if !lines.message.is_empty() {
            line += &format!(", {}", lines.message);
        }
        let _ = writeln!(lines.out, "{line}");
    }
}

/// A panic in one thread must not stop the progress of others.
fn lock(lines: &Mutex<Lines>) -> MutexGuard<'_, Lines> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

fn style(unit: &str) -> ProgressStyle {
    let unit = unit.to_owned();
    ProgressStyle::with_template("{prefix:<12} {bar:28.red/dim} {pos}/{len}  {rate}  {left}  {wide_msg}")
        .expect("the template is fixed and valid")
        .progress_chars("█▉▊▋▌▍▎▏░")
        .with_key("rate", move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let rate = state.per_sec();
            let _ = if rate > 0.0 { out.write_str(&human_rate(rate, &unit)) } else { Ok(()) };
        })
        .with_key("left", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let left = state.eta().as_secs_f64();
            let _ = if left > 0.0 { write!(out, "{} left", human_time(left)) } else { Ok(()) };
        })
}

/// `12.3 steps/s`, or `2.5 s/step` for slow rates.
fn human_rate(per_second: f64, unit: &str) -> String {
    match per_second {
        r if r >= 100.0 => format!("{r:.0} {unit}/s"),
        r if r >= 0.5 => format!("{r:.1} {unit}/s"),
        r => format!("{} per {}", human_time(1.0 / r), unit.strip_suffix('s').unwrap_or(unit)),
    }
}

/// Formats seconds: `4.2 s`, `48 s`, `3 min 05 s`, `2 h 10 min`.
pub(crate) fn human_time(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".to_owned();
    }
    let whole = seconds.round() as u64;
    match whole {
        _ if seconds < 9.95 => format!("{seconds:.1} s"),
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn plain(total: u64) -> (Progress, Sink, Instant) {
        let sink = Sink::default();
        let progress = Progress::lines("SFT A", total, "steps", Box::new(sink.clone()));
        let View::Lines(lines) = &progress.view else { unreachable!() };
        let start = lines.lock().unwrap().since;
        (progress, sink, start)
    }

    fn text(sink: &Sink) -> String {
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn plain_lines_come_every_ten_seconds_and_at_the_end() {
        let (progress, sink, start) = plain(600);
        for second in 1..=25 {
            progress.message(&format!("loss {second}"));
            progress.set_at(second * 12, start + Duration::from_secs(second));
        }
        progress.finish_at("loss 0.5", start + Duration::from_secs(25));
        assert_eq!(
            text(&sink),
            "SFT A: 120/600 steps (20 %), 12.0 steps/s, 40 s left, loss 10\n\
             SFT A: 240/600 steps (40 %), 12.0 steps/s, 30 s left, loss 20\n\
             SFT A: 300 steps in 25 s, loss 0.5\n"
        );
    }

    #[test]
    fn work_of_an_earlier_run_is_not_speed() {
        let (progress, sink, _) = plain(100);
        progress.start_at(90);
        let View::Lines(lines) = &progress.view else { unreachable!() };
        let start = lines.lock().unwrap().since;
        progress.set_at(95, start + Duration::from_secs(20));
        assert_eq!(text(&sink), "SFT A: 95/100 steps (95 %), 4.0 s per step, 20 s left\n");
    }

    #[test]
    fn odd_totals_do_not_panic() {
        let (progress, sink, start) = plain(0);
        progress.set_at(3, start + Duration::from_secs(11));
        progress.set_at(0, start + Duration::from_secs(22));
        progress.finish("");
        assert!(text(&sink).starts_with("SFT A: 3/0 steps"), "{}", text(&sink));
    }

    #[test]
    fn times_and_rates_read_well() {
        let times = [(0.0, "0.0 s"), (4.24, "4.2 s"), (9.96, "10 s"), (59.4, "59 s"), (185.0, "3 min 05 s")];
        for (seconds, said) in times {
            assert_eq!(human_time(seconds), said);
        }
        assert_eq!(human_time(7800.0), "2 h 10 min");
        assert_eq!(human_time(f64::NAN), "?");
        assert_eq!(human_rate(1234.4, "tok"), "1234 tok/s");
        assert_eq!(human_rate(0.4, "steps"), "2.5 s per step");
    }

    /// The bar's template and keys are rendered on a hidden target.
    #[test]
    fn the_bar_accepts_its_style() {
        let bar = ProgressBar::hidden();
        bar.set_style(style("steps"));
        bar.set_length(10);
        bar.set_position(5);
        bar.tick();
        assert_eq!(bar.position(), 5);
    }
}
