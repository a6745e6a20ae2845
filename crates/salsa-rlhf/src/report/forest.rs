//! Forest plot: one row per arm and split, each an estimate with its interval.

use std::fmt::Write;

use super::Estimate;
use super::html::{Fill, Look, escape};
use super::number::estimate;
use super::scale::{Axis, Margin};

const WIDTH: f64 = 380.0;
const LEFT: f64 = 74.0;
const RIGHT: f64 = 62.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 26.0;
const ROW: f64 = 17.0;
const GROUP_GAP: f64 = 9.0;

/// A forest plot; `draw` renders it as a `<figure>`.
#[derive(Debug)]
pub(super) struct Forest {
    /// The heading: the estimated quantity.
    pub(super) title: String,
    /// The number format.
    pub(super) format: fn(f64) -> String,
    /// A reference value drawn as a line, and its name.
    pub(super) line: Option<f64>,
    /// The arms.
    pub(super) groups: Vec<Group>,
}

/// One arm of a [`Forest`]: a row per split.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) look: Look,
    pub(super) rows: Vec<(String, Fill, Estimate)>,
}

impl Forest {
    /// Renders the chart as a `<figure>`; if there is no data, the figure contains a note.
    pub(super) fn draw(&self) -> String {
        let rows = || self.groups.iter().flat_map(|g| &g.rows).filter(|(_, _, e)| e.mean.is_finite());
        let mut out = format!("<figure class=\"chart\"><figcaption>{}</figcaption>", escape(&self.title));
        if rows().next().is_none() {
            return out + "<p class=\"nothing\">nothing was measured</p></figure>";
        }
        let count = self.groups.iter().map(|g| g.rows.len()).sum::<usize>() as f64;
        let floor = TOP + count * ROW + self.groups.len() as f64 * GROUP_GAP;
        let values = rows().flat_map(|(_, _, e)| [e.mean, e.ci95[0], e.ci95[1]]).chain(self.line);
        let axis = Axis::fit(values, Margin::Padded, [LEFT, WIDTH - RIGHT], 4);
        let _ = write!(
            out,
            r#"<svg viewBox="0 0 {WIDTH} {}" role="img" aria-label="{}, with 95 % intervals">"#,
            floor + BOTTOM,
            escape(&self.title)
        );
        for &tick in &axis.ticks {
            let at = axis.at(tick);
            let label =
                if (self.format)(0.5).ends_with('%') { format!("{:.0} %", tick * 100.0) } else { axis.label(tick) };
            let _ = write!(
                out,
                r#"<path class="grid" d="M{at} {TOP}V{floor}"/><text class="tick" x="{at}" y="{}" text-anchor="middle">{label}</text>"#,
                floor + 16.0
            );
        }
        if let Some(line) = self.line {
            let _ = write!(out, r#"<path class="line" d="M{} {TOP}V{floor}"/>"#, axis.at(line));
        }
        let mut top = TOP + GROUP_GAP / 2.0;
        for group in &self.groups {
            group.draw(&mut out, top, &axis, self.format);
            top += group.rows.len() as f64 * ROW + GROUP_GAP;
        }
        out + "</svg></figure>"
    }
}

impl Group {
    fn draw(&self, out: &mut String, top: f64, axis: &Axis, format: fn(f64) -> String) {
        let middle = top + self.rows.len() as f64 * ROW / 2.0;
        let _ = write!(
            out,
            r#"<text class="name" x="{}" y="{}" text-anchor="end">{}</text>"#,
            LEFT - 10.0,
            middle + 4.0,
            escape(&self.name)
        );
        for (i, (split, fill, value)) in self.rows.iter().enumerate() {
            let y = top + (i as f64 + 0.5) * ROW;
            let class = self.look.class();
            let [low, high] = value.ci95;
            if low.is_finite() && high.is_finite() {
                let _ = write!(out, r#"<path class="whisker {class}" d="M{} {y}H{}"/>"#, axis.at(low), axis.at(high));
            }
            if value.mean.is_finite() {
                let hover = format!("{}, {split}: {}", self.name, estimate(value, format));
                out.push_str(&self.look.mark(axis.at(value.mean), y, 4.2, *fill, &hover));
            }
            let _ = write!(
                out,
                r#"<text class="value" x="{}" y="{}" text-anchor="end">{}</text>"#,
                WIDTH - 4.0,
                y + 3.8,
                format(value.mean)
            );
        }
    }
}
