//! Running statistics of a logging window: exact means over tokens or pairs, regardless of the split into passes.
use salsa_engine::comm::Comm;
use serde::{Deserialize, Serialize};

use crate::stage::ranks;

/// Named statistics in the order in which they were first added.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tally {
    entries: Vec<(String, Statistic)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Statistic {
    Mean {
        sum: f64,
        count: f64,
    },
    /// Two sums, each with its count.
    Difference {
        a: (f64, f64),
        b: (f64, f64),
    },
    Min(f64),
    Max(f64),
}

/// The kind of a statistic and the bits of its numbers.
type Bits = (u8, [u64; 4]);

impl Statistic {
    fn bits(self) -> Bits {
        let (kind, numbers) = match self {
            Statistic::Mean { sum, count } => (0, [sum, count, 0.0, 0.0]),
            Statistic::Difference { a, b } => (1, [a.0, a.1, b.0, b.1]),
            Statistic::Min(value) => (2, [value, 0.0, 0.0, 0.0]),
            Statistic::Max(value) => (3, [value, 0.0, 0.0, 0.0]),
        };
        (kind, numbers.map(f64::to_bits))
    }

    fn of_bits((kind, bits): Bits) -> Statistic {
        let [a, b, c, d] = bits.map(f64::from_bits);
        match kind {
            0 => Statistic::Mean { sum: a, count: b },
            1 => Statistic::Difference { a: (a, b), b: (c, d) },
            2 => Statistic::Min(a),
            _ => Statistic::Max(a),
        }
    }
}

impl Tally {
    /// An empty tally.
    pub(crate) fn new() -> Tally {
        Tally::default()
    }

    /// Adds `count` observations that sum to `sum`; the value is their mean.
    pub(crate) fn mean(&mut self, name: &str, sum: f64, count: f64) {
        self.merge(name, Statistic::Mean { sum, count });
    }

    /// Adds observations, as sum and count, of two kinds; the value is the difference of their means.
    pub(crate) fn difference(&mut self, name: &str, a: (f64, f64), b: (f64, f64)) {
        self.merge(name, Statistic::Difference { a, b });
    }

    /// Adds an observation to a minimum.
    pub(crate) fn min(&mut self, name: &str, value: f64) {
        self.merge(name, Statistic::Min(value));
    }

    /// Adds an observation to a maximum.
    pub(crate) fn max(&mut self, name: &str, value: f64) {
        self.merge(name, Statistic::Max(value));
    }

    /// Adds all observations of another tally.
    pub(crate) fn absorb(&mut self, other: &Tally) {
        for (name, statistic) in &other.entries {
            self.merge(name, *statistic);
        }
    }

    /// The sum of tallies, those of each process in order of processes: its own here.
    ///
    /// # Errors
    /// If the processes cannot exchange bytes.
    pub(crate) fn sum(ranks: &dyn Comm, own: Vec<Tally>) -> anyhow::Result<Tally> {
        // As bits: a number that is not finite has no JSON form.
        let own = own.into_iter().map(|tally| tally.entries.into_iter().map(|(name, of)| (name, of.bits())).collect());
        let all: Vec<Vec<(String, Bits)>> = ranks::concat_values(ranks, own.collect())?;
        let mut sum = Tally::new();
        for (name, bits) in all.into_iter().flatten() {
            sum.merge(&name, Statistic::of_bits(bits));
        }
        Ok(sum)
    }

    /// The value of a statistic, if it was ever added with a count above 0.
    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        self.values().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// All values, in order of first addition; means with count 0 are omitted.
    pub(crate) fn values(&self) -> impl Iterator<Item = (&str, f64)> {
        self.entries.iter().filter_map(|(name, statistic)| match *statistic {
            Statistic::Mean { count: 0.0, .. } => None,
            Statistic::Mean { sum, count } => Some((name.as_str(), sum / count)),
            Statistic::Difference { a: (_, n), b: (_, m) } if n == 0.0 || m == 0.0 => None,
            Statistic::Difference { a, b } => Some((name.as_str(), a.0 / a.1 - b.0 / b.1)),
            Statistic::Min(value) | Statistic::Max(value) => Some((name.as_str(), value)),
        })
    }

    fn merge(&mut self, name: &str, new: Statistic) {
        let Some((_, old)) = self.entries.iter_mut().find(|(found, _)| found == name) else {
            self.entries.push((name.to_owned(), new));
            return;
        };
        *old = match (*old, new) {
            (Statistic::Mean { sum: a, count: n }, Statistic::Mean { sum: b, count: m }) => {
                Statistic::Mean { sum: a + b, count: n + m }
            }
            (Statistic::Difference { a, b }, Statistic::Difference { a: c, b: d }) => {
                Statistic::Difference { a: (a.0 + c.0, a.1 + c.1), b: (b.0 + d.0, b.1 + d.1) }
            }
            (Statistic::Min(a), Statistic::Min(b)) => Statistic::Min(a.min(b)),
            (Statistic::Max(a), Statistic::Max(b)) => Statistic::Max(a.max(b)),
            (old, new) => panic!("statistic {name:?} added as {old:?} and as {new:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_weigh_by_count_and_keep_their_order() {
        let mut tally = Tally::new();
        tally.mean("loss", 6.0, 2.0);
        tally.min("low", 4.0);
        tally.max("high", 4.0);
        let mut other = Tally::new();
        other.max("high", 5.0);
        other.min("low", 5.0);
        other.mean("loss", 1.0, 2.0);
        other.mean("nothing", 0.0, 0.0);
        tally.absorb(&other);
        assert_eq!(tally.values().collect::<Vec<_>>(), [("loss", 1.75), ("low", 4.0), ("high", 5.0)]);
        assert_eq!((tally.get("loss"), tally.get("nothing"), tally.get("other")), (Some(1.75), None, None));
    }

    #[test]
    fn a_difference_of_means_weighs_each_kind_by_its_own_count() {
        let mut tally = Tally::new();
        tally.difference("margin", (6.0, 2.0), (0.0, 0.0));
        assert_eq!(tally.get("margin"), None, "one kind alone has no difference");
        tally.difference("margin", (0.0, 1.0), (1.0, 1.0));
        assert_eq!(tally.get("margin"), Some(6.0 / 3.0 - 1.0));
    }

    #[test]
    fn a_round_trip_through_json_changes_no_bit() {
        let mut tally = Tally::new();
        tally.mean("loss", 0.1 + 0.2, 3.0);
        let text = serde_json::to_string(&tally).unwrap();
        assert_eq!(serde_json::from_str::<Tally>(&text).unwrap(), tally);
    }
}
