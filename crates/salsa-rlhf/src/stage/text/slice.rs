//! Slices of splits, in the syntax of the `datasets` library: `train[:500]`, `train[10%:20%]`, `test[-100:]`.
use std::{fmt, ops::Range};

/// A half-open range of records; bounds may count from the end, or be percentages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    from: Option<i64>,
    to: Option<i64>,
    unit: Unit,
}

/// The unit of a slice's bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Records,
    Percent,
}

impl Slice {
    /// Parses `train[:500]` into the name of the split and the slice; `None` if the text is no slice.
    pub fn parse(text: &str) -> Option<(&str, Slice)> {
        let (name, bounds) = text.strip_suffix(']')?.split_once('[')?;
        let (from, to) = bounds.split_once(':')?;
        let bound = |text: &str| -> Option<Option<(i64, Unit)>> {
            let (digits, unit) = match text.strip_suffix('%') {
                Some(share) => (share, Unit::Percent),
                None => (text, Unit::Records),
            };
            let number = || digits.replace('_', "").parse().ok();
            if text.is_empty() { Some(None) } else { Some(Some((number()?, unit))) }
        };
        let (from, to) = (bound(from.trim())?, bound(to.trim())?);
        let unit = from.or(to).map_or(Unit::Records, |(_, unit)| unit);
        let is_sound = |bound: Option<(i64, Unit)>| {
            bound.is_none_or(|(number, of)| of == unit && (unit == Unit::Records || number.abs() <= 100))
        };
        let number = |bound: Option<(i64, Unit)>| bound.map(|(number, _)| number);
        let slice = Slice { from: number(from), to: number(to), unit };
        (!name.is_empty() && is_sound(from) && is_sound(to)).then_some((name, slice))
    }

    /// The selected records of a split of `count` records.
    ///
    /// ```text
    /// percent: p count / 100, rounded to the nearest whole number, halves to the even one
    /// below 0: count more;   then at least 0, at most count
    /// ```
    pub fn range(&self, count: usize) -> Range<usize> {
        let at = |bound: i64| -> usize {
            let record = match self.unit {
                Unit::Records => bound,
                Unit::Percent => (bound as f64 * count as f64 / 100.0).round_ties_even() as i64,
            };
            let record = if record < 0 { record.saturating_add_unsigned(count as u64) } else { record };
            usize::try_from(record).map_or(0, |record| record.min(count))
        };
        let (from, to) = (self.from.map_or(0, at), self.to.map_or(count, at));
        from..to.max(from)
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = if self.unit == Unit::Percent { "%" } else { "" };
        let bound = |bound: Option<i64>| bound.map_or(String::new(), |number| format!("{number}{unit}"));
        write!(f, "[{}:{}]", bound(self.from), bound(self.to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ranges that `datasets.load_dataset(…, split=…)` selects from as many records.
    #[test]
    fn a_slice_means_what_it_means_to_the_datasets_library() {
        for (text, count, range) in [
            ("train[:500]", 1000, 0..500),
            ("train[:500]", 10, 0..10),
            ("train[10:20]", 15, 10..15),
            ("train[-3:]", 10, 7..10),
            ("train[-30:]", 10, 0..10),
            ("train[:-3]", 10, 0..7),
            ("train[20:]", 10, 10..10),
            ("train[5:2]", 10, 5..5),
            ("train[:]", 10, 0..10),
            ("train[1_000:2_000]", 5000, 1000..2000),
            ("train[:10%]", 25, 0..2),
            ("train[:30%]", 25, 0..8),
            ("train[50%:]", 11, 6..11),
            ("train[-20%:]", 10, 8..10),
            ("train[10%:20%]", 1000, 100..200),
        ] {
            let (name, slice) = Slice::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((name, slice.range(count)), ("train", range), "{text} of {count}");
            assert_eq!(Slice::parse(&format!("{name}{slice}")), Some((name, slice)), "{text}");
        }
        for text in ["train", "[:5]", "train[5]", "train[a:b]", "train[:5%:]", "train[10%:50]", "train[:101%]", "t[:5"]
        {
            assert_eq!(Slice::parse(text), None, "{text}");
        }
    }
}
