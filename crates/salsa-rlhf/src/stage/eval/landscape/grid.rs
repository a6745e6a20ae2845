//! The points of a landscape.

/// Weights `1 - t` and `t` with `t` equally spaced from `start` to `end`; 0 and 1 are inserted if they are in between
/// and not among the points.
pub(super) fn line(start: f64, end: f64, steps: usize) -> Vec<Vec<f64>> {
    let place = |i: usize| rounded(start + (end - start) * i as f64 / (steps - 1) as f64);
    let mut places: Vec<f64> = (0..steps).map(place).collect();
    for model in [0.0, 1.0] {
        if (start..=end).contains(&model) && !places.contains(&model) {
            places.push(model);
        }
    }
    places.sort_by(f64::total_cmp);
    places.into_iter().map(|t| vec![rounded(1.0 - t), t]).collect()
}

/// The number of points of [`plane`].
pub(super) fn plane_points(divisions: usize, margin: f64) -> usize {
    let edge = divisions + 3 * beyond(divisions, margin) as usize;
    (edge + 1) * (edge + 2) / 2
}

/// Rows beyond the triangle. A margin that is a multiple of a step up to rounding counts as one.
fn beyond(divisions: usize, margin: f64) -> i64 {
    (margin * divisions as f64 + 1e-9).floor() as i64
}

/// A triangular grid of weights that sum to 1: every multiple of `1 / divisions` that is not below `-margin`, row by row.
pub(super) fn plane(divisions: usize, margin: f64) -> Vec<Vec<f64>> {
    let n = divisions as i64;
    let beyond = beyond(divisions, margin);
    let weight = |k: i64| k as f64 / divisions as f64;
    let mut points = Vec::new();
    for c in -beyond..=n + 2 * beyond {
        for b in -beyond..=n + beyond - c {
            let a = n - b - c;
            if a >= -beyond {
                points.push(vec![weight(a), weight(b), weight(c)]);
            }
        }
    }
    points
}

/// Rounds off noise in the last digits: `0.30000000000000004` becomes `0.3`.
fn rounded(x: f64) -> f64 {
    let rounded = (x * 1e12).round() / 1e12;
    if rounded == 0.0 { 0.0 } else { rounded }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_its_ends_and_both_models() {
        let places = |start, end, steps| -> Vec<f64> { line(start, end, steps).iter().map(|w| w[1]).collect() };
        assert_eq!(places(-0.5, 1.5, 5), [-0.5, 0.0, 0.5, 1.0, 1.5]);
        assert_eq!(places(-0.5, 1.5, 3), [-0.5, 0.0, 0.5, 1.0, 1.5]);
        assert_eq!(places(0.0, 1.0, 11)[3], 0.3);
        assert_eq!(places(0.25, 0.75, 2), [0.25, 0.75]);
        assert_eq!(line(0.0, 1.0, 11)[7], [0.3, 0.7]);
        assert!(line(-0.5, 1.5, 17).contains(&vec![1.0, 0.0]) && line(-0.5, 1.5, 17).len() == 17);
    }

    #[test]
    fn a_plane_is_a_triangle_of_triangles() {
        assert_eq!(plane(1, 0.0), [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
        assert_eq!(plane(4, 0.0).len(), 15);
        // One more row on each side: an edge of 4 + 3 steps.
        assert_eq!(plane(4, 0.25).len(), 36);
        assert_eq!(plane(4, 0.3), plane(4, 0.25));
        assert_eq!(plane(10, 0.3).len(), 20 * 21 / 2);
        for (divisions, margin) in [(1, 0.0), (4, 0.25), (10, 0.3), (3, 2.0)] {
            assert_eq!(plane_points(divisions, margin), plane(divisions, margin).len());
        }
        for point in plane(4, 0.5) {
            assert!((point.iter().sum::<f64>() - 1.0).abs() < 1e-12 && point.iter().all(|w| *w >= -0.5), "{point:?}");
        }
        for corner in [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]] {
            assert!(plane(3, 0.5).contains(&corner.to_vec()));
        }
    }
}
