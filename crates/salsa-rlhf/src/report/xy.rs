//! A chart of series over two axes: curves, trajectories, points with intervals. Inline SVG, styled by the page.

use std::fmt::Write;

use super::html::{Fill, Look, escape};
use super::scale::{Axis, Margin};

const WIDTH: f64 = 380.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 40.0;

/// Maximum number of hover marks on a curve; more would only enlarge the file.
const MOST_HOVERS: usize = 80;

/// A chart; `draw` renders it as a `<figure>`.
#[derive(Debug, Default)]
pub(super) struct Chart {
    /// The heading: the quantity of the vertical axis.
    pub(super) title: String,
    /// The quantity of the horizontal axis.
    pub(super) x_label: String,
    /// Named positions on the horizontal axis, instead of ticks.
    pub(super) x_names: Vec<(f64, String)>,
    /// Named positions on the horizontal axis that are marked by a line.
    pub(super) marks: Vec<(f64, String)>,
    /// The series, drawn in this order.
    pub(super) series: Vec<Series>,
}

/// One series of a [`Chart`].
#[derive(Debug)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) look: Look,
    pub(super) kind: Kind,
    pub(super) dots: Vec<Dot>,
}

/// The style of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A faint line: the raw values behind a smoothed curve.
    Raw,
    /// A line, with hover texts.
    Curve,
    /// A line through marks with intervals.
    Profile,
    /// The path of a run: a line from a ring to a mark.
    Trajectory,
    /// Unconnected marks with intervals.
    Scatter,
    /// A line with its intervals as a band.
    Band,
}

/// A point of a series. A non-finite coordinate makes a gap.
#[derive(Clone, Debug)]
pub(super) struct Dot {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) x_ci: Option<[f64; 2]>,
    pub(super) y_ci: Option<[f64; 2]>,
    pub(super) hover: String,
}

impl Dot {
    /// A point without intervals.
    pub(super) fn new(x: f64, y: f64, hover: String) -> Dot {
        Dot { x, y, x_ci: None, y_ci: None, hover }
    }

    fn is_finite(&self) -> bool {
        self.x.is_finite() && self.y.is_finite()
    }
}

impl Chart {
    /// Renders the chart as a `<figure>`; if there is no data, the figure contains a note.
    pub(super) fn draw(&self) -> String {
        let dots = || self.series.iter().flat_map(|s| &s.dots).filter(|d| d.is_finite());
        let mut out = format!("<figure class=\"chart\"><figcaption>{}</figcaption>", escape(&self.title));
        if dots().next().is_none() {
            return out + "<p class=\"nothing\">nothing was measured</p></figure>";
        }
        let margin = if self.series.iter().all(|s| matches!(s.kind, Kind::Raw | Kind::Curve)) {
            Margin::None
        } else {
            Margin::Padded
        };
        let xs = dots().flat_map(|d| [d.x].into_iter().chain(d.x_ci.into_iter().flatten()));
        let ys = dots().flat_map(|d| [d.y].into_iter().chain(d.y_ci.into_iter().flatten()));
        let x = Axis::fit(xs, margin, [LEFT, WIDTH - RIGHT], 5);
        let y = Axis::fit(ys, Margin::Padded, [HEIGHT - BOTTOM, TOP], 4);
        let names: Vec<&str> = self.series.iter().filter(|s| s.kind != Kind::Raw).map(|s| s.name.as_str()).collect();
        let _ = write!(
            out,
            r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{} against {}: {}">"#,
            escape(&self.title),
            escape(&self.x_label),
            escape(&names.join(", "))
        );
        self.draw_axes(&mut out, &x, &y);
        for series in &self.series {
            series.draw(&mut out, &x, &y);
        }
        out + "</svg></figure>"
    }

    fn draw_axes(&self, out: &mut String, x: &Axis, y: &Axis) {
        let (right, floor) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for &tick in &y.ticks {
            let (at, label) = (y.at(tick), y.label(tick));
            let _ = write!(
                out,
                r#"<path class="grid" d="M{LEFT} {at}H{right}"/><text class="tick" x="{}" y="{}" text-anchor="end">{label}</text>"#,
                LEFT - 7.0,
                at + 3.8
            );
        }
        let _ = write!(out, r#"<path class="axis" d="M{LEFT} {floor}H{right}"/>"#);
        for (place, name) in &self.marks {
            let at = x.at(*place);
            let _ = write!(
                out,
                r#"<path class="line" d="M{at} {TOP}V{floor}"/><text class="name" x="{}" y="{}" text-anchor="start">{}</text>"#,
                at + 4.0,
                TOP + 9.0,
                escape(name)
            );
        }
        let plain = x.ticks.iter().map(|&t| (t, x.label(t)));
        let named = self.x_names.iter().cloned();
        let ticks: Vec<(f64, String)> = if self.x_names.is_empty() { plain.collect() } else { named.collect() };
        for (tick, label) in ticks {
            let at = x.at(tick);
            let _ = write!(
                out,
                r#"<path class="axis" d="M{at} {floor}v4"/><text class="tick" x="{at}" y="{}" text-anchor="middle">{}</text>"#,
                floor + 16.0,
                escape(&label)
            );
        }
        let _ = write!(
            out,
            r#"<text class="label" x="{}" y="{}" text-anchor="middle">{}</text>"#,
            (LEFT + right) / 2.0,
            HEIGHT - 6.0,
            escape(&self.x_label)
        );
    }
}

impl Series {
    fn draw(&self, out: &mut String, x: &Axis, y: &Axis) {
        let finite: Vec<&Dot> = self.dots.iter().filter(|d| d.is_finite()).collect();
        let class = self.look.class();
        if self.kind == Kind::Band {
            let _ = write!(out, r#"<path class="band {class}" d="{}"/>"#, self.band(x, y));
        }
        if self.kind != Kind::Scatter {
            let kind = if self.kind == Kind::Raw { "raw" } else { "curve" };
            let _ = write!(out, r#"<path class="{kind} {class}" d="{}"/>"#, self.path(x, y));
        }
        match self.kind {
            Kind::Raw | Kind::Band => {}
            Kind::Curve => {
                self.hovers(out, &finite, x, y);
                if let [only] = finite[..] {
                    out.push_str(&self.look.mark(x.at(only.x), y.at(only.y), 3.0, Fill::Solid, &only.hover));
                }
            }
            Kind::Trajectory => {
                self.hovers(out, &finite, x, y);
                if let [first, .., last] = finite[..] {
                    out.push_str(&self.look.mark(x.at(first.x), y.at(first.y), 3.0, Fill::Hollow, "start of training"));
                    out.push_str(&self.look.mark(x.at(last.x), y.at(last.y), 3.4, Fill::Solid, &last.hover));
                }
            }
            Kind::Profile | Kind::Scatter => {
                for dot in finite {
                    whiskers(out, dot, x, y, &class);
                    let fill = if self.kind == Kind::Scatter { Fill::Hollow } else { Fill::Solid };
                    out.push_str(&self.look.mark(x.at(dot.x), y.at(dot.y), 4.2, fill, &dot.hover));
                }
            }
        }
    }

    /// The line, interrupted at non-finite points.
    fn path(&self, x: &Axis, y: &Axis) -> String {
        let mut path = String::new();
        let mut pen = 'M';
        for dot in &self.dots {
            if dot.is_finite() {
                let _ = write!(path, "{pen}{} {}", x.at(dot.x), y.at(dot.y));
            }
            pen = if dot.is_finite() { 'L' } else { 'M' };
        }
        path
    }

    /// The outline of the intervals: along the upper ends and back along the lower ones.
    fn band(&self, x: &Axis, y: &Axis) -> String {
        let ends = |dot: &Dot| dot.y_ci.filter(|[low, high]| dot.is_finite() && low.is_finite() && high.is_finite());
        let with_ends: Vec<(f64, [f64; 2])> = self.dots.iter().filter_map(|dot| Some((dot.x, ends(dot)?))).collect();
        let upper = with_ends.iter().map(|(at, [_, high])| (*at, *high));
        let lower = with_ends.iter().rev().map(|(at, [low, _])| (*at, *low));
        let mut path = String::new();
        for (at, value) in upper.chain(lower) {
            let pen = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{pen}{} {}", x.at(at), y.at(value));
        }
        if path.is_empty() { path } else { path + "Z" }
    }

    /// Writes invisible discs with the hover texts, thinned out on long curves.
    fn hovers(&self, out: &mut String, finite: &[&Dot], x: &Axis, y: &Axis) {
        let every = finite.len().div_ceil(MOST_HOVERS).max(1);
        for dot in finite.iter().rev().step_by(every) {
            let (cx, cy) = (x.at(dot.x), y.at(dot.y));
            let _ = write!(
                out,
                r#"<circle class="hit {}" cx="{cx}" cy="{cy}" r="5"><title>{}</title></circle>"#,
                self.look.class(),
                escape(&dot.hover)
            );
        }
    }
}

fn whiskers(out: &mut String, dot: &Dot, x: &Axis, y: &Axis, class: &str) {
    let finite = |ends: &[f64; 2]| ends.iter().all(|end| end.is_finite());
    if let Some([low, high]) = dot.y_ci.filter(finite) {
        let _ = write!(out, r#"<path class="whisker {class}" d="M{} {}V{}"/>"#, x.at(dot.x), y.at(low), y.at(high));
    }
    if let Some([low, high]) = dot.x_ci.filter(finite) {
        let _ = write!(out, r#"<path class="whisker {class}" d="M{} {}H{}"/>"#, x.at(low), y.at(dot.y), x.at(high));
    }
}

/// The centred moving average over `width` (odd) values. Near the ends the window is truncated: the last value is the
/// mean of the last `width / 2 + 1`. A missing value stays a gap.
pub(super) fn smooth(values: &[f64], width: usize) -> Vec<f64> {
    let reach = width / 2;
    let mean_around = |i: usize| {
        let (sum, count) = values[i.saturating_sub(reach)..values.len().min(i + reach + 1)]
            .iter()
            .filter(|v| v.is_finite())
            .fold((0.0, 0), |(sum, count), v| (sum + v, count + 1));
        if values[i].is_finite() { sum / f64::from(count) } else { f64::NAN }
    };
    (0..values.len()).map(mean_around).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_is_a_moving_mean_that_keeps_gaps_and_smooths_the_ends() {
        assert_eq!(smooth(&[1.0, 2.0, 6.0, 4.0], 3), [1.5, 3.0, 4.0, 5.0]);
        assert_eq!(smooth(&[1.0, 2.0, 6.0], 1), [1.0, 2.0, 6.0]);
        let gap = smooth(&[1.0, 2.0, f64::NAN, 4.0, 5.0], 3);
        assert_eq!((gap[1], gap[3]), (1.5, 4.5));
        assert!(gap[2].is_nan());
        assert!(smooth(&[], 5).is_empty());
    }

    fn series(kind: Kind, ys: &[f64]) -> Series {
        let dots = ys.iter().enumerate().map(|(i, &y)| Dot::new(i as f64, y, format!("step {i}"))).collect();
        Series { name: "PPO".to_owned(), look: Look::of("ppo", 0), kind, dots }
    }

    #[test]
    fn a_line_breaks_at_a_gap() {
        let axis = |pixels| Axis::fit([0.0, 4.0].into_iter(), Margin::None, pixels, 4);
        let path = series(Kind::Curve, &[0.0, 1.0, f64::NAN, 3.0, 4.0]).path(&axis([0.0, 40.0]), &axis([40.0, 0.0]));
        assert_eq!(path, "M0 40L10 30M30 10L40 0");
    }

    #[test]
    fn charts_without_data_say_so() {
        for ys in [&[][..], &[f64::NAN, f64::INFINITY]] {
            let chart = Chart { title: "score".to_owned(), series: vec![series(Kind::Curve, ys)], ..Chart::default() };
            assert!(chart.draw().contains("nothing was measured"));
        }
    }
}
