//! The pipeline diagram: boxes on a grid with arrows between them, read from top to bottom.

use std::fmt::Write;

use super::html::{Look, escape};
use super::{Flow, Pipeline, Stage};

const BOX_WIDTH: f64 = 224.0;
const COLUMN_GAP: f64 = 54.0;
const ROW_GAP: f64 = 58.0;
const MARGIN: f64 = 8.0;
/// Distance between two arrows at the same side of a box.
const PORT: f64 = 36.0;
/// Width of a character of a label, and height of a label.
const LABEL_CHARACTER: f64 = 6.3;
const LABEL_HEIGHT: f64 = 15.0;
/// A longer fact is squeezed into its box.
const MOST_CHARACTERS: usize = 30;

impl Pipeline {
    /// Renders the diagram as SVG; empty if there are no stages.
    pub(super) fn draw(&self) -> String {
        let layout = Layout::of(self);
        if self.stages.is_empty() {
            return String::new();
        }
        let mut out = format!(
            r#"<svg class="pipeline" viewBox="0 0 {} {}" role="img" aria-label="{}">"#,
            layout.width,
            layout.height,
            escape(&self.in_words())
        );
        let mut labels = Labels::around(self.stages.iter().map(|stage| layout.rect(stage)).collect());
        for flow in &self.flows {
            self.draw_flow(&mut out, &mut labels, flow, &layout);
        }
        for stage in &self.stages {
            layout.draw_stage(&mut out, stage);
        }
        out + &labels.svg + "</svg>"
    }

    fn in_words(&self) -> String {
        let title = |key: &str| self.stages.iter().find(|s| s.key == key).map_or(key.to_owned(), |s| s.title.clone());
        let arrows: Vec<String> =
            self.flows.iter().map(|f| format!("{} to {}", title(&f.from), title(&f.to))).collect();
        format!("Pipeline: {}", arrows.join(", "))
    }

    fn draw_flow(&self, out: &mut String, labels: &mut Labels, flow: &Flow, layout: &Layout) {
        let find = |key: &str| self.stages.iter().find(|stage| stage.key == key);
        let (Some(from), Some(to)) = (find(&flow.from), find(&flow.to)) else { return };
        let (x0, y0) = (layout.x(from) + self.port(from, flow, Side::Out), layout.bottom(from));
        let class = if flow.label.contains("reference") { "flow reference" } else { "flow" };
        let (path, head, places) = if self.blocked(from, to) {
            let same = to.column == from.column;
            let toward = if to.column > from.column || (same && from.column < 2) { 1.0 } else { -1.0 };
            // For a target in the same column, the arrow returns from the gutter it went down.
            let inward = if same { -toward } else { toward };
            let gutter = layout.x(from) + toward * (BOX_WIDTH + COLUMN_GAP) / 2.0;
            let side = layout.x(to) - inward * BOX_WIDTH / 2.0;
            let y = layout.middle(to);
            let turn = y0 + ROW_GAP * 0.5;
            let path = format!(
                "M{x0} {y0}C{x0} {turn} {gutter} {turn} {gutter} {}V{}Q{gutter} {y} {} {y}H{}",
                y0 + ROW_GAP,
                y - 16.0,
                gutter + inward * 16.0,
                side - inward * 5.0
            );
            let head = format!("M{} {}v9l{} -4.5Z", side - inward * 9.0, y - 4.5, inward * 9.0);
            let down = |share: f64| (gutter, y0 + ROW_GAP + share * (y - y0 - ROW_GAP));
            (path, head, [0.5, 0.7, 0.3, 0.9, 0.1].map(down).to_vec())
        } else {
            let (mut x0, mut x1, y1) = (x0, layout.x(to) + self.port(to, flow, Side::In), layout.top(to));
            let straight = from.column == to.column;
            if straight && self.flows.iter().filter(|f| f.from == flow.from).count() == 1 {
                x0 = x1;
            } else if straight {
                x1 = x0;
            }
            let bend = (ROW_GAP * 0.62).max((y1 - y0) * 0.4);
            let path = format!("M{x0} {y0}C{x0} {} {x1} {} {x1} {}", y0 + bend, y1 - bend, y1 - 5.0);
            let head = format!("M{} {}h9l-4.5 9Z", x1 - 4.5, y1 - 9.0);
            let on = |t: f64| (bezier(t, x0, x0, x1, x1), bezier(t, y0, y0 + bend, y1 - bend, y1));
            (path, head, [0.5, 0.62, 0.74, 0.4, 0.3, 0.84, 0.2].map(on).to_vec())
        };
        let colour = Look::of(&flow.from, 0).class();
        let _ = write!(
            out,
            r#"<path class="{class} {colour}" d="{path}"/><path class="arrow{} {colour}" d="{head}"/>"#,
            &class[4..]
        );
        labels.place(&flow.label, &places);
    }

    /// Whether a box blocks an arrow that spans more than one row.
    fn blocked(&self, from: &Stage, to: &Stage) -> bool {
        let (left, right) = (from.column.min(to.column), from.column.max(to.column));
        self.stages.iter().any(|s| s.row > from.row && s.row < to.row && (left..=right).contains(&s.column))
    }

    /// The offset of an arrow's end from the centre of a box side: arrows at the same side are spread out, in the order
    /// of the columns they come from or go to.
    fn port(&self, stage: &Stage, flow: &Flow, side: Side) -> f64 {
        let find = |key: &str| self.stages.iter().find(|stage| stage.key == key);
        let mut others: Vec<(u8, &Flow)> = self
            .flows
            .iter()
            .filter_map(|f| {
                let (from, to) = (find(&f.from)?, find(&f.to)?);
                let (own, other) = if side == Side::Out { (from, to) } else { (to, from) };
                let blocked = self.blocked(from, to);
                // In half columns: an arrow routed around a box starts on the side of its gutter.
                let toward = match (blocked, other.column.cmp(&own.column)) {
                    (true, std::cmp::Ordering::Greater) => 2 * own.column,
                    (true, std::cmp::Ordering::Equal) if own.column < 2 => 2 * own.column + 1,
                    _ => 2 * other.column,
                };
                let by_the_side = side == Side::In && blocked;
                (own.key == stage.key && !by_the_side).then_some((toward, f))
            })
            .collect();
        // Stable sort: flows of one column keep their order.
        others.sort_by_key(|&(column, _)| column);
        let place = others.iter().position(|(_, f)| std::ptr::eq(*f, flow)).unwrap_or(0) as f64;
        (place - (others.len().max(1) - 1) as f64 / 2.0) * PORT
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Out,
    In,
}

/// Vertical positions and heights of the rows.
struct Layout {
    tops: Vec<f64>,
    heights: Vec<f64>,
    width: f64,
    height: f64,
}

impl Layout {
    fn of(pipeline: &Pipeline) -> Layout {
        let rows = pipeline.stages.iter().map(|s| usize::from(s.row) + 1).max().unwrap_or(0);
        let columns = pipeline.stages.iter().map(|s| usize::from(s.column) + 1).max().unwrap_or(0);
        let tallest = |row: usize| {
            let facts = pipeline.stages.iter().filter(|s| usize::from(s.row) == row).map(|s| s.facts.len()).max();
            facts.map_or(0.0, box_height)
        };
        let heights: Vec<f64> = (0..rows).map(tallest).collect();
        let above = |row: usize| heights[..row].iter().map(|height| height + ROW_GAP).sum::<f64>();
        let tops = (0..rows).map(|row| MARGIN + above(row)).collect();
        let height = above(rows) - ROW_GAP + 2.0 * MARGIN;
        let width = columns as f64 * (BOX_WIDTH + COLUMN_GAP) - COLUMN_GAP + 2.0 * MARGIN;
        Layout { tops, heights, width, height }
    }

    fn x(&self, stage: &Stage) -> f64 {
        MARGIN + f64::from(stage.column) * (BOX_WIDTH + COLUMN_GAP) + BOX_WIDTH / 2.0
    }

    fn rect(&self, stage: &Stage) -> Rect {
        let x = self.x(stage);
        Rect { left: x - BOX_WIDTH / 2.0, right: x + BOX_WIDTH / 2.0, top: self.top(stage), bottom: self.bottom(stage) }
    }

    fn middle(&self, stage: &Stage) -> f64 {
        let row = usize::from(stage.row);
        self.tops[row] + self.heights[row] / 2.0
    }

    fn top(&self, stage: &Stage) -> f64 {
        self.middle(stage) - box_height(stage.facts.len()) / 2.0
    }

    fn bottom(&self, stage: &Stage) -> f64 {
        self.middle(stage) + box_height(stage.facts.len()) / 2.0
    }

    fn draw_stage(&self, out: &mut String, stage: &Stage) {
        let (x, y, height) = (self.x(stage), self.top(stage), box_height(stage.facts.len()));
        let left = x - BOX_WIDTH / 2.0;
        let class = if is_arm(&stage.key) { Look::of(&stage.key, 0).class() } else { "plain".to_owned() };
        let _ = write!(
            out,
            r#"<g class="stage {class}"><rect x="{left}" y="{y}" width="{BOX_WIDTH}" height="{height}" rx="9"/><rect class="edge" x="{left}" y="{}" width="4" height="{}" rx="2"/><text class="stage-title" x="{x}" y="{}">{}</text>"#,
            y + 9.0,
            height - 18.0,
            y + 24.0,
            escape(&stage.title)
        );
        for (i, fact) in stage.facts.iter().enumerate() {
            let squeeze = if fact.chars().count() > MOST_CHARACTERS {
                format!(r#" textLength="{}" lengthAdjust="spacingAndGlyphs""#, BOX_WIDTH - 22.0)
            } else {
                String::new()
            };
            let _ = write!(
                out,
                r#"<text class="stage-fact" x="{x}" y="{}"{squeeze}>{}</text>"#,
                y + 43.0 + i as f64 * 17.0,
                escape(fact)
            );
        }
        out.push_str("</g>");
    }
}

/// A rectangle of the diagram.
#[derive(Clone, Copy, Debug)]
struct Rect {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Rect {
    fn overlaps(&self, other: &Rect) -> bool {
        self.left < other.right && other.left < self.right && self.top < other.bottom && other.top < self.bottom
    }
}

/// The labels of the arrows: each at the first position on its arrow where it covers neither a box nor another label.
struct Labels {
    svg: String,
    taken: Vec<Rect>,
}

impl Labels {
    fn around(taken: Vec<Rect>) -> Labels {
        Labels { svg: String::new(), taken }
    }

    /// Writes `text` centred on the first free one of `places`, or on the first one if none is free.
    fn place(&mut self, text: &str, places: &[(f64, f64)]) {
        if text.is_empty() {
            return;
        }
        let half = text.chars().count() as f64 * LABEL_CHARACTER / 2.0 + 3.0;
        let around = |&(x, y): &(f64, f64)| Rect {
            left: x - half,
            right: x + half,
            top: y - LABEL_HEIGHT / 2.0,
            bottom: y + LABEL_HEIGHT / 2.0,
        };
        let is_free = |place: &&(f64, f64)| !self.taken.iter().any(|taken| taken.overlaps(&around(place)));
        let Some(place) = places.iter().find(is_free).or(places.first()) else { return };
        self.taken.push(around(place));
        let (x, y) = (place.0, place.1 + 4.0);
        let _ = write!(
            self.svg,
            r#"<text class="flow-label" text-anchor="middle" x="{x:.1}" y="{y:.1}">{}</text>"#,
            escape(text)
        );
    }
}

fn is_arm(key: &str) -> bool {
    !matches!(key, "base" | "reward" | "eval" | "evaluation")
}

fn box_height(facts: usize) -> f64 {
    if facts == 0 { 38.0 } else { 40.0 + 17.0 * facts as f64 }
}

fn bezier(t: f64, a: f64, b: f64, c: f64, d: f64) -> f64 {
    let u = 1.0 - t;
    u * u * u * a + 3.0 * u * u * t * b + 3.0 * u * t * t * c + t * t * t * d
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture;

    #[test]
    fn arrows_that_share_a_side_stand_apart_and_go_round_boxes() {
        let pipeline = fixture::pipeline();
        let stage = |key: &str| pipeline.stages.iter().find(|s| s.key == key).unwrap();
        assert!(pipeline.blocked(stage("sft_a"), stage("salsa")));
        assert!(!pipeline.blocked(stage("sft_a"), stage("ppo")));
        let ports: Vec<f64> = pipeline
            .flows
            .iter()
            .filter(|f| f.from == "base")
            .map(|f| pipeline.port(stage("base"), f, Side::Out))
            .collect();
        assert_eq!(ports, [-18.0, 18.0]);
    }

    /// Several labelled arrows into one box, as when two runs share a reward model.
    #[test]
    fn labels_cover_neither_boxes_nor_each_other() {
        let mut labels = Labels::around(vec![Rect { left: 0.0, right: 100.0, top: 0.0, bottom: 40.0 }]);
        let places = [(50.0, 30.0), (50.0, 60.0), (50.0, 80.0)];
        labels.place("score", &places);
        labels.place("score", &places);
        labels.place("score", &places);
        let ys: Vec<&str> = labels.svg.split(" y=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        assert_eq!(ys, ["64.0", "84.0", "34.0"], "the last one has nowhere to go");
    }

    #[test]
    fn flows_to_nowhere_and_empty_pipelines_are_left_out() {
        assert_eq!(Pipeline::default().draw(), "");
        let mut pipeline = fixture::pipeline();
        let arrows = pipeline.draw().matches("class=\"arrow").count();
        pipeline.flows.push(Flow { from: "salsa".to_owned(), to: "nowhere".to_owned(), label: String::new() });
        assert_eq!(pipeline.draw().matches("class=\"arrow").count(), arrows);
    }
}
