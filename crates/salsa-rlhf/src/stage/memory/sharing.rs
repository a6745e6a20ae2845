//! What the processes that train a model together need each.
use salsa_engine::comm::Comm;

use super::shape::F32;

/// How the training of a model is shared: by how many processes, in how many gradient units a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sharing {
    /// Processes.
    pub processes: usize,
    /// Gradient units of a step, of which each process has as many as the others.
    pub units: usize,
}

/// Numbers of a slice that the engine exchanges at a time.
const PIECE: usize = 1 << 18;

/// Numbers by which slices differ in length.
const BLOCK: usize = 1 << 14;

impl Sharing {
    /// One process, one unit.
    pub(crate) const ALONE: Sharing = Sharing { processes: 1, units: 1 };

    /// That of a stage whose key `gradient_units` is `key`.
    pub(crate) fn of(ranks: &dyn Comm, key: Option<usize>) -> Sharing {
        Sharing { processes: ranks.size(), units: key.unwrap_or(1).max(ranks.size()) }
    }

    /// Bytes of the flat buffers of so many trained parameters in each process.
    ///
    /// ```text
    /// weights, gradients               4 + 4 B per parameter
    /// sums of finished units           4 B per parameter for each doubling of the units of a process
    /// moments                          8 B per parameter of its slice
    /// pieces sent, received and added  of every process
    /// ```
    pub(crate) fn trained(self, parameters: usize) -> u64 {
        let Sharing { processes, units } = self;
        let (slice, exchanged) = match processes {
            1 => (parameters, 0),
            _ => {
                let slice = parameters.min(parameters.div_ceil(processes) + BLOCK);
                (slice, 3 * processes * slice.min(PIECE))
            }
        };
        let sums = (units / processes).max(1).ilog2() as usize;
        F32 * (parameters * (2 + sums) + 2 * slice + exchanged) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_sliced_and_sums_of_units_are_kept() {
        let of = |processes, units| Sharing { processes, units }.trained(64 << 20) as f64 / f64::from(64 << 20);
        assert_eq!(of(1, 1), 16.0);
        assert_eq!(of(1, 8), 16.0 + 4.0 * 3.0);
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 0.5, "{found} {expected}");
        near(of(8, 8), 8.0 + 1.0);
        near(of(2, 8), 8.0 + 4.0 + 4.0 * 2.0);
        // A model smaller than a block is in one slice.
        assert_eq!(Sharing { processes: 4, units: 4 }.trained(100), 4 * (200 + 200 + 3 * 4 * 100));
    }
}
