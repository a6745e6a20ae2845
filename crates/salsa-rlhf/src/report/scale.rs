//! Mapping from numbers to pixels: axis ranges, round ticks, and tick labels.

use super::number::fixed;

/// An axis: range, ticks and position.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    pixels: [f64; 2],
    /// Round values inside the range.
    pub(super) ticks: Vec<f64>,
    decimals: usize,
}

/// Extension of an axis beyond its data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Margin {
    /// Not at all.
    None,
    /// Some on both sides, but not below zero if the data is not.
    Padded,
}

impl Axis {
    /// An axis over the finite ones of `values`, from `pixels[0]` to `pixels[1]`, with about `target` ticks. Without
    /// finite values it ranges from 0 to 1; a single value is padded on both sides.
    pub(super) fn fit(values: impl Iterator<Item = f64>, margin: Margin, pixels: [f64; 2], target: usize) -> Axis {
        let (low, high) = values
            .filter(|v| v.is_finite() && v.abs() < 1e300)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        let (mut low, mut high) = if low <= high { (low, high) } else { (0.0, 1.0) };
        if high - low <= 1e-9 * high.abs().max(low.abs()) || high == low {
            let room = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
            (low, high) = (if low == 0.0 { 0.0 } else { low - room }, high + room);
        }
        if margin == Margin::Padded {
            let pad = (high - low) * 0.06;
            low = if low >= 0.0 { (low - pad).max(0.0) } else { low - pad };
            high += pad;
        }
        let (ticks, decimals) = ticks(low, high, target);
        Axis { low, high, pixels, ticks, decimals }
    }

    /// The position of `value` in pixels, rounded to a tenth.
    pub(super) fn at(&self, value: f64) -> f64 {
        let share = (value - self.low) / (self.high - self.low);
        ((self.pixels[0] + share * (self.pixels[1] - self.pixels[0])) * 10.0).round() / 10.0
    }

    /// The label of a tick.
    pub(super) fn label(&self, tick: f64) -> String {
        if self.decimals > 4 || tick.abs() >= 1e6 {
            return if tick == 0.0 { "0".to_owned() } else { format!("{tick:.1e}") };
        }
        fixed(tick, self.decimals)
    }
}

/// About `target` round values in `low..=high`, spaced by 1, 2 or 5 times a power of ten, and the decimals they need.
fn ticks(low: f64, high: f64, target: usize) -> (Vec<f64>, usize) {
    let rough = (high - low) / target.max(1) as f64;
    let power = rough.log10().floor();
    let unit = 10f64.powf(power);
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * unit >= rough * 0.72).unwrap_or(10.0);
    let step = factor * unit;
    if !step.is_finite() || step <= 0.0 {
        return (vec![low], 0);
    }
    let decimals = (-step.log10() - 1e-9).ceil().clamp(0.0, 12.0) as usize;
    let (first, last) = ((low / step - 1e-9).ceil(), (high / step + 1e-9).floor());
    let count = (last - first).clamp(0.0, 50.0) as usize;
    ((0..=count).map(|i| (first + i as f64) * step).collect(), decimals)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(values: &[f64], margin: Margin, target: usize) -> Vec<String> {
        let axis = Axis::fit(values.iter().copied(), margin, [0.0, 100.0], target);
        axis.ticks.iter().map(|&t| axis.label(t)).collect()
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(labels(&[0.0, 1.0], Margin::None, 5), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(&[0.0, 600.0], Margin::None, 4), ["0", "200", "400", "600"]);
        assert_eq!(labels(&[0.52, 0.74], Margin::None, 4), ["0.55", "0.60", "0.65", "0.70"]);
        assert_eq!(labels(&[-1.3, 2.1], Margin::None, 4), ["−1", "0", "1", "2"]);
        assert_eq!(labels(&[0.0, 12_000.0], Margin::None, 3), ["0", "5,000", "10,000"]);
        assert_eq!(labels(&[0.0, 0.00004], Margin::None, 4), ["0", "1.0e-5", "2.0e-5", "3.0e-5", "4.0e-5"]);
    }

    #[test]
    fn values_go_to_their_pixels() {
        let axis = Axis::fit([0.0, f64::NAN, 4.0, f64::INFINITY].into_iter(), Margin::None, [200.0, 0.0], 4);
        assert_eq!((axis.at(0.0), axis.at(1.0), axis.at(4.0)), (200.0, 150.0, 0.0));
        let padded = Axis::fit([0.0, 100.0].into_iter(), Margin::Padded, [0.0, 106.0], 4);
        assert_eq!((padded.at(0.0), padded.at(100.0)), (0.0, 100.0));
    }

    #[test]
    fn odd_data_still_gives_an_axis() {
        for values in [&[][..], &[f64::NAN], &[3.0], &[0.0, 0.0], &[-5.0, -5.0], &[1e308, -1e308], &[1e-300, 2e-300]] {
            for margin in [Margin::None, Margin::Padded] {
                let axis = Axis::fit(values.iter().copied(), margin, [0.0, 100.0], 4);
                assert!(!axis.ticks.is_empty() && axis.ticks.len() <= 51, "{values:?} {:?}", axis.ticks);
                for &value in values.iter().filter(|v| v.is_finite() && v.abs() < 1e300) {
                    assert!((0.0..=100.0).contains(&axis.at(value)), "{values:?}");
                }
            }
        }
    }
}
