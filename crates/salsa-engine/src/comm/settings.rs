//! Deadline and message size, from the environment.

use super::LaunchError;
use std::time::Duration;

/// The largest piece of a broadcast: it is sent on while the next one arrives.
const PIECE: usize = 4 << 20;

/// How processes exchange bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// How long an operation waits while no message leaves or arrives.
    timeout: Option<Duration>,
    /// The largest message in bytes; MPI counts them in 31 bits.
    pub(super) chunk: usize,
}

impl Settings {
    /// The settings of `SALSA_COMM_TIMEOUT` (seconds, 0: no limit, default 1800) and `SALSA_COMM_CHUNK` (bytes, default
    /// 2^30).
    ///
    /// # Errors
    ///
    /// If a value is out of range.
    pub(super) fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Settings, LaunchError> {
        let number = |name: &str, default: u64, most: u64| match variable(name).filter(|text| !text.is_empty()) {
            None => Ok(default),
            Some(text) => text
                .parse()
                .ok()
                .filter(|&number| number <= most)
                .ok_or_else(|| LaunchError(format!("{name}={text}: expected a whole number of at most {most}"))),
        };
        let timeout = number("SALSA_COMM_TIMEOUT", 1800, u64::from(u32::MAX))?;
        let chunk = number("SALSA_COMM_CHUNK", 1 << 30, i32::MAX as u64)?.max(1) as usize;
        Ok(Settings { timeout: (timeout > 0).then(|| Duration::from_secs(timeout)), chunk })
    }

    /// The deadline.
    pub(super) fn limit(&self) -> Duration {
        self.timeout.unwrap_or(Duration::MAX)
    }

    /// The deadline in a sentence.
    pub(super) fn in_words(&self) -> String {
        format!("{} s", self.limit().as_secs())
    }

    /// The largest piece of a broadcast.
    pub(super) fn piece(&self) -> usize {
        self.chunk.min(PIECE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Settings, LaunchError> {
        Settings::of(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_environment_sets_deadline_and_message_size() {
        let default = of(&[]).unwrap();
        assert_eq!((default.in_words().as_str(), default.chunk, default.piece()), ("1800 s", 1 << 30, 4 << 20));
        let set = of(&[("SALSA_COMM_TIMEOUT", "5"), ("SALSA_COMM_CHUNK", "1000")]).unwrap();
        assert_eq!((set.limit(), set.chunk, set.piece()), (Duration::from_secs(5), 1000, 1000));
        assert_eq!(of(&[("SALSA_COMM_TIMEOUT", "0")]).unwrap().limit(), Duration::MAX);
        for (name, value) in [("SALSA_COMM_TIMEOUT", "soon"), ("SALSA_COMM_CHUNK", "2147483648")] {
            assert!(of(&[(name, value)]).unwrap_err().to_string().contains(&format!("{name}={value}")));
        }
    }
}
