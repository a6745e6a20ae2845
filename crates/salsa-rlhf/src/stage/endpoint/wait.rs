//! Pauses before retries.
use std::time::Duration;

use jiff::{Timestamp, fmt::rfc2822};
use salsa_algo::random::uniform;

/// Longer pauses are not waited for.
pub(super) const LONGEST: Duration = Duration::from_secs(120);

/// The pause requested by a server: `retry-after-ms`, else `retry-after` in seconds or as a date.
pub(super) fn wanted<'a>(header: &dyn Fn(&str) -> Option<&'a str>, now: Timestamp) -> Option<Duration> {
    let seconds = |text: &str, unit: f64| {
        let number: f64 = text.trim().parse().ok()?;
        Duration::try_from_secs_f64(number.max(0.0) * unit).ok()
    };
    if let Some(wait) = header("retry-after-ms").and_then(|text| seconds(text, 0.001)) {
        return Some(wait);
    }
    let text = header("retry-after")?;
    seconds(text, 1.0).or_else(|| {
        let date = rfc2822::parse(text.trim()).ok()?.timestamp();
        Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
    })
}

/// The default pause before a retry (counted from 0): ½ s, 1 s, 2 s … 8 s, reduced by up to a quarter depending on the
/// number of the call.
pub(super) fn backoff(retry: u32, call: u64) -> Duration {
    let seconds = (0.5 * 2f64.powi(retry.min(10) as i32)).min(8.0);
    Duration::from_secs_f64(seconds * (1.0 - 0.25 * uniform(0, call, retry.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_say_it_in_three_ways() {
        let now: Timestamp = "2026-11-30T12:00:00Z".parse().unwrap();
        let of = |headers: &[(&str, &'static str)]| {
            let headers = headers.to_vec();
            wanted(&move |name| headers.iter().find(|(key, _)| *key == name).map(|(_, value)| *value), now)
        };
        assert_eq!(of(&[("retry-after-ms", "1500"), ("retry-after", "9")]), Some(Duration::from_millis(1500)));
        assert_eq!(of(&[("retry-after", "2.5")]), Some(Duration::from_millis(2500)));
        assert_eq!(of(&[("retry-after", "Mon, 30 Nov 2026 12:00:30 GMT")]), Some(Duration::from_secs(30)));
        assert_eq!(of(&[("retry-after", "Mon, 30 Nov 2026 11:00:00 GMT")]), Some(Duration::ZERO));
        assert_eq!(of(&[("retry-after", "-3")]), Some(Duration::ZERO));
        assert_eq!((of(&[("retry-after", "soon")]), of(&[])), (None, None));
    }

    #[test]
    fn pauses_double_up_to_eight_seconds() {
        for (retry, most) in [(0, 0.5), (1, 1.0), (2, 2.0), (4, 8.0), (30, 8.0)] {
            for call in 0..20 {
                let wait = backoff(retry, call).as_secs_f64();
                assert!((0.75 * most..=most).contains(&wait), "{retry}: {wait}");
            }
        }
    }
}
