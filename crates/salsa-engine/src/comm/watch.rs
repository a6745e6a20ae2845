//! A limit on calls that return by themselves or never.

use std::io::Write;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// Runs `work`; if it has not returned after `limit`, prints `message` as an error and ends the process with `code`.
pub(super) fn within<R>(limit: Duration, message: String, code: i32, work: impl FnOnce() -> R) -> R {
    let (done, ended) = mpsc::channel::<()>();
    let watch = thread::spawn(move || {
        if ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            report(&message);
            exit(code);
        }
    });
    let result = work();
    drop(done);
    let _ = watch.join();
    result
}

/// Prints one line on stderr that begins with `error:`.
pub(super) fn report(message: &str) {
    // If stderr is closed, only the exit code reports the error.
    // Written at once: the launcher prints too.
    let _ = std::io::stderr().write_all(format!("error: {message}\n").as_bytes());
}

/// Ends the process without the handlers that libraries have registered, which may wait for other processes.
pub(super) fn exit(code: i32) -> ! {
    // SAFETY: it takes no pointer and does not return.
    unsafe { libc::_exit(code) }
}
