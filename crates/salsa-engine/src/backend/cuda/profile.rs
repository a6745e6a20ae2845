//! GPU time by kernel and product, enabled by `SALSA_CUDA_PROFILE=1`.

use super::error::locked;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

/// Seconds by kernel and by product. Profiling waits for each one, which makes the whole slower.
#[derive(Default)]
pub(super) struct Profile(Mutex<BTreeMap<String, (u64, f64)>>);

impl Profile {
    /// Returns a profile if the environment enables it.
    pub(super) fn asked_for() -> Option<Profile> {
        std::env::var("SALSA_CUDA_PROFILE").is_ok_and(|value| value == "1").then(Profile::default)
    }

    /// Counts work that began at `since` and has just ended.
    pub(super) fn count(&self, name: String, since: Instant) {
        let mut all = locked(&self.0);
        let (count, seconds) = all.entry(name).or_default();
        *count += 1;
        *seconds += since.elapsed().as_secs_f64();
    }

    /// Returns `(name, calls, seconds)`, longest first, and resets the counts.
    pub(super) fn take(&self) -> Vec<(String, u64, f64)> {
        let mut all: Vec<_> =
            std::mem::take(&mut *locked(&self.0)).into_iter().map(|(name, (count, s))| (name, count, s)).collect();
        all.sort_by(|a, b| b.2.total_cmp(&a.2));
        all
    }
}
