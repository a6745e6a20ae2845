//! A quantity on the plane of three models: a honeycomb with one cell per point, lighter for better values.

use std::fmt::Write;

use super::Estimate;
use super::html::escape;
use super::number::{estimate, number};

const WIDTH: f64 = 420.0;
const MARGIN: f64 = 8.0;
/// Space above, and below for the scale.
const HEAD: f64 = 8.0;
const SCALE: f64 = 46.0;
const LEAST_CELL_FOR_TEXT: f64 = 15.0;

/// A chart; `draw` renders it as a `<figure>`.
pub(super) struct Plane {
    /// The heading: the quantity shown by the colour.
    pub(super) title: String,
    /// Names of the models: bottom left, bottom right, top.
    pub(super) corners: [String; 3],
    /// Weights of the models and the value at each point.
    pub(super) cells: Vec<([f64; 3], Estimate)>,
    /// Which extreme is outlined as the best.
    pub(super) best: Best,
}

/// Which extreme is the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Best {
    Largest,
    Least,
}

/// Mapping from weights to pixels.
struct Frame {
    left: f64,
    bottom: f64,
    /// Pixels between two corners.
    edge: f64,
    /// Pixels between two cells.
    step: f64,
    height: f64,
}

impl Plane {
    /// Renders the chart as a `<figure>`; if there is no data, the figure contains a note.
    pub(super) fn draw(&self) -> String {
        let mut out = format!("<figure class=\"chart\"><figcaption>{}</figcaption>", escape(&self.title));
        let values = || self.cells.iter().map(|(_, e)| e.mean).filter(|v| v.is_finite());
        if values().next().is_none() {
            return out + "<p class=\"nothing\">nothing was measured</p></figure>";
        }
        let (low, high) = values().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let frame = Frame::around(&self.cells);
        let _ = write!(
            out,
            r#"<svg viewBox="0 0 {WIDTH} {:.0}" role="img" aria-label="{} on the plane of {}">"#,
            frame.height + SCALE,
            escape(&self.title),
            escape(&self.corners.join(", "))
        );
        let good = |value: f64| match self.best {
            Best::Largest => share(value, low, high),
            Best::Least => 1.0 - share(value, low, high),
        };
        for (weights, value) in &self.cells {
            self.draw_cell(&mut out, &frame, weights, value, good(value.mean));
        }
        let finite = self.cells.iter().filter(|(_, e)| e.mean.is_finite());
        if let Some((weights, _)) = finite.max_by(|(_, a), (_, b)| good(a.mean).total_cmp(&good(b.mean))) {
            let _ = write!(out, r#"<path class="best" d="{}"/>"#, frame.hexagon(weights, 0.94));
        }
        draw_triangle(&mut out, &frame);
        for (weights, value) in self.cells.iter().filter(|(_, e)| e.mean.is_finite()) {
            self.draw_text(&mut out, &frame, weights, value, good(value.mean));
        }
        let ends = if self.best == Best::Largest { [low, high] } else { [high, low] };
        draw_scale(&mut out, frame.height, ends);
        out + "</svg></figure>"
    }

    fn draw_cell(&self, out: &mut String, frame: &Frame, weights: &[f64; 3], value: &Estimate, good: f64) {
        let place: Vec<String> =
            self.corners.iter().zip(weights).map(|(name, weight)| format!("{} {name}", number(*weight))).collect();
        let hover = format!("{}: {}", place.join(", "), estimate(value, number));
        let fill = if value.mean.is_finite() { colour(good) } else { "none".to_owned() };
        let _ = write!(
            out,
            r#"<path class="cell" fill="{fill}" d="{}"><title>{}</title></path>"#,
            frame.hexagon(weights, 1.0),
            escape(&hover)
        );
    }

    /// Writes the value into its cell if there is room, and the model's name into a corner cell.
    fn draw_text(&self, out: &mut String, frame: &Frame, weights: &[f64; 3], value: &Estimate, good: f64) {
        let [x, y] = frame.at(weights);
        let (ink, halo) = (if good > 0.55 { "#101010" } else { "#ffffff" }, colour(good));
        let mut text = |class: &str, y: f64, text: &str| {
            let _ = write!(
                out,
                r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="middle" style="fill:{ink};stroke:{halo}">{}</text>"#,
                escape(text)
            );
        };
        let corner = CORNERS.iter().position(|corner| corner == weights);
        if let Some(corner) = corner {
            text("corner", y - 3.0, &shortened(&self.corners[corner]));
        }
        if frame.step >= 2.0 * LEAST_CELL_FOR_TEXT {
            text("cell-value", if corner.is_some() { y + 9.5 } else { y + 3.6 }, &number(value.mean));
        }
    }
}

const CORNERS: [[f64; 3]; 3] = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];

/// Draws the triangle of the models.
fn draw_triangle(out: &mut String, frame: &Frame) {
    let corner = |corner: &[f64; 3]| {
        let [x, y] = frame.at(corner);
        format!("{x:.1} {y:.1}")
    };
    let path = CORNERS.iter().map(corner).collect::<Vec<_>>().join("L");
    let _ = write!(out, r#"<path class="triangle" d="M{path}Z"/>"#);
}

/// Shortens a name to fit into a cell.
fn shortened(name: &str) -> String {
    if name.chars().count() <= 8 { name.to_owned() } else { name.chars().take(7).chain(['…']).collect() }
}

impl Frame {
    /// The mapping under which all cells fit.
    fn around(cells: &[([f64; 3], Estimate)]) -> Frame {
        let least = |i: usize| cells.iter().map(|(w, _)| w[i]).fold(0.0, f64::min);
        let (a, b, c) = (least(0), least(1), least(2));
        // The edge of the triangle that contains all cells, relative to the edge between the models.
        let size = 1.0 - a - b - c;
        let mut rows: Vec<f64> = cells.iter().map(|(w, _)| w[2]).collect();
        rows.sort_by(f64::total_cmp);
        let gap = rows.windows(2).map(|pair| pair[1] - pair[0]).filter(|gap| *gap > 1e-9).fold(1.0, f64::min);
        let edge = (WIDTH - 2.0 * MARGIN) / (size + gap);
        let (step, rise) = (edge * gap, 3f64.sqrt() / 2.0);
        let radius = step / 3f64.sqrt();
        // The point with the smallest weights of A and C is at the right end of the lowest row.
        let left = MARGIN + step / 2.0 - (b + c / 2.0) * edge;
        let bottom = HEAD + radius + (size + c) * edge * rise;
        Frame { left, bottom, edge, step, height: bottom - c * edge * rise + radius + 4.0 }
    }

    fn at(&self, [_, b, c]: &[f64; 3]) -> [f64; 2] {
        [self.left + (b + c / 2.0) * self.edge, self.bottom - c * self.edge * 3f64.sqrt() / 2.0]
    }

    fn hexagon(&self, weights: &[f64; 3], size: f64) -> String {
        let [x, y] = self.at(weights);
        let radius = self.step / 3f64.sqrt() * size;
        let corner = |i: u32| {
            let angle = f64::from(i).mul_add(60.0, 30.0).to_radians();
            format!("{:.1} {:.1}", x + radius * angle.cos(), y + radius * angle.sin())
        };
        format!("M{}Z", (0..6).map(corner).collect::<Vec<_>>().join("L"))
    }
}

/// Draws the colour scale from the worst to the best value.
fn draw_scale(out: &mut String, top: f64, [worst, best]: [f64; 2]) {
    let (left, width, y) = (WIDTH / 2.0 - 90.0, 180.0, top + 16.0);
    let parts = 36;
    for i in 0..parts {
        let part = width / f64::from(parts);
        let _ = write!(
            out,
            r#"<rect x="{:.1}" y="{y:.1}" width="{:.1}" height="9" fill="{}"/>"#,
            left + f64::from(i) * part,
            part + 0.4,
            colour((f64::from(i) + 0.5) / f64::from(parts))
        );
    }
    for (x, value, anchor) in [(left - 6.0, worst, "end"), (left + width + 6.0, best, "start")] {
        let _ = write!(
            out,
            r#"<text class="tick" x="{x:.1}" y="{:.1}" text-anchor="{anchor}">{}</text>"#,
            y + 8.4,
            number(value)
        );
    }
}

/// The position of a value between the minimum and the maximum, in [0, 1].
fn share(value: f64, low: f64, high: f64) -> f64 {
    if high > low { ((value - low) / (high - low)).clamp(0.0, 1.0) } else { 0.5 }
}

/// From dark to light in steps of equal lightness, distinguishable without colour vision.
fn colour(share: f64) -> String {
    const STOPS: [[f64; 3]; 5] =
        [[54.0, 20.0, 60.0], [128.0, 28.0, 72.0], [203.0, 66.0, 50.0], [240.0, 146.0, 60.0], [252.0, 225.0, 150.0]];
    let at = share.clamp(0.0, 1.0) * (STOPS.len() - 1) as f64;
    let from = (at as usize).min(STOPS.len() - 2);
    let mix = |i: usize| STOPS[from][i] + (at - from as f64) * (STOPS[from + 1][i] - STOPS[from][i]);
    format!("#{:02x}{:02x}{:02x}", mix(0).round() as u8, mix(1).round() as u8, mix(2).round() as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plane(cells: &[([f64; 3], f64)]) -> Plane {
        let cells = cells.iter().map(|(w, v)| (*w, Estimate::new(*v, v - 0.1, v + 0.1))).collect();
        Plane { title: "Gold".to_owned(), corners: ["a", "b", "c"].map(str::to_owned), cells, best: Best::Largest }
    }

    #[test]
    fn all_cells_lie_in_the_picture_and_touch() {
        let n = 4;
        let mut cells = Vec::new();
        for b in -1..=n + 2 {
            for c in -1..=n + 1 - b {
                let a = n - b - c;
                if a >= -1 {
                    cells.push(([a, b, c].map(|k| f64::from(k) / f64::from(n)), f64::from(a * b)));
                }
            }
        }
        let plane = plane(&cells);
        let frame = Frame::around(&plane.cells);
        let radius = frame.step / 3f64.sqrt();
        let places: Vec<[f64; 2]> = cells.iter().map(|(w, _)| frame.at(w)).collect();
        for [x, y] in &places {
            assert!(*x >= frame.step / 2.0 && *x <= WIDTH - frame.step / 2.0, "{x}");
            assert!(*y >= radius && *y <= frame.height - radius, "{y}");
        }
        let distance = |a: &[f64; 2], b: &[f64; 2]| (a[0] - b[0]).hypot(a[1] - b[1]);
        let nearest = |a| places.iter().map(|b| distance(a, b)).filter(|d| *d > 1e-6).fold(f64::INFINITY, f64::min);
        assert!(places.iter().all(|place| (nearest(place) - frame.step).abs() < 1e-6));
        let svg = plane.draw();
        assert_eq!(svg.matches("class=\"cell\"").count(), cells.len());
        assert!(svg.contains("<title>0.500 a, 0.250 b, 0.250 c: 2.00 (1.90 to 2.10)</title>"), "{svg}");
    }

    #[test]
    fn the_best_is_outlined() {
        let mut plane = plane(&[([1.0, 0.0, 0.0], 1.0), ([0.0, 1.0, 0.0], 2.0), ([0.0, 0.0, 1.0], 3.0)]);
        let frame = Frame::around(&plane.cells);
        let outline = |corner: [f64; 3]| format!("<path class=\"best\" d=\"{}\"/>", frame.hexagon(&corner, 0.94));
        assert!(plane.draw().contains(&outline([0.0, 0.0, 1.0])));
        plane.best = Best::Least;
        assert!(plane.draw().contains(&outline([1.0, 0.0, 0.0])));
    }

    #[test]
    fn nothing_is_said_and_one_value_has_a_colour() {
        assert!(plane(&[]).draw().contains("nothing was measured"));
        assert!(plane(&[([1.0, 0.0, 0.0], f64::NAN)]).draw().contains("nothing was measured"));
        assert!(plane(&[([1.0, 0.0, 0.0], 2.0)]).draw().contains(&colour(0.5)));
    }

    #[test]
    fn colours_get_lighter() {
        let light = |share| {
            let text = colour(share);
            let part = |i: usize| f64::from(u8::from_str_radix(&text[i..i + 2], 16).unwrap());
            0.3 * part(1) + 0.59 * part(3) + 0.11 * part(5)
        };
        assert!((0..20).all(|i| light(f64::from(i) / 20.0) < light(f64::from(i + 1) / 20.0)));
    }
}
