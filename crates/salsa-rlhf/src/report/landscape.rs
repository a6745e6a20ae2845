//! Rewards on a line or a plane of models: the numbers of `landscape.json`, and their picture.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::Estimate;
use super::html::{Look, escape};
use super::number::{estimate, interval, number};
use super::page::{self, Section, Width};
use super::plane::{Best, Plane};
use super::xy::{Chart, Dot, Kind, Series};

/// What `landscape.json` holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Landscape {
    /// Names of the models at the ends of the line or the corners of the triangle: two or three.
    pub models: Vec<String>,
    /// How many prompts every point answered.
    pub prompts: usize,
    /// Sampling temperature.
    pub temperature: f64,
    /// Seed of the answers.
    pub seed: u64,
    /// The points: along the line, or row by row.
    pub points: Vec<Spot>,
}

/// One point: a weighted mean of the models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spot {
    /// The weights of the models; they sum to 1. Of two, the second is `t`.
    pub weights: Vec<f64>,
    /// Gold reward; absent where the data has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gold_reward: Option<Estimate>,
    /// Gold reward less that of the first model, prompt by prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gold_difference: Option<Estimate>,
    /// Reward-model score.
    pub proxy_score: Estimate,
    /// Reward-model score less that of the first model, prompt by prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_difference: Option<Estimate>,
    /// Mean loss of a held-out token, nats; absent where it was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Estimate>,
    /// Mean length of the answers, tokens.
    pub length_mean: f64,
}

/// One measured quantity of a point.
type Quantity = fn(&Spot) -> Option<Estimate>;

/// What is shown, if it was measured: with its heading, its look and what is good.
const QUANTITIES: [(&str, Quantity, &str, Best); 3] = [
    ("Gold reward", |spot| spot.gold_reward, "salsa", Best::Largest),
    ("Proxy score", |spot| Some(spot.proxy_score), "soup", Best::Largest),
    ("Loss (nats per token)", |spot| spot.loss, "sft_a", Best::Least),
];

impl Landscape {
    /// The page: HTML that needs nothing else.
    pub fn html(&self) -> String {
        let section = self.section("landscape", "Reward landscape");
        let lead = format!(
            "Models whose weights are means of those of {}, measured on {} prompts.",
            self.models.join(", "),
            self.prompts
        );
        page::standalone("Reward landscape", &lead, &[section])
    }

    /// The section of a page.
    pub(super) fn section(&self, id: &str, heading: &str) -> Section {
        let measured =
            |(_, pick, ..): &&(&str, Quantity, &str, Best)| self.points.iter().any(|spot| pick(spot).is_some());
        let chart = |(title, pick, look, best): &(&str, Quantity, &str, Best)| match self.models.len() {
            3 => self.plane(title, *pick, *best),
            _ => self.line(title, *pick, look),
        };
        let charts: String = QUANTITIES.iter().filter(measured).map(chart).collect();
        let picture = if self.points.is_empty() {
            String::new()
        } else {
            format!("<div class=\"charts\">{charts}</div>{}", self.table())
        };
        Section {
            id: id.to_owned(),
            heading: heading.to_owned(),
            width: Width::BesideText,
            explanation: self.explanation(),
            picture,
        }
    }

    fn explanation(&self) -> String {
        let name = |i: usize| escape(self.models.get(i).map_or("", String::as_str));
        let (a, b, c) = (name(0), name(1), name(2));
        let what = match self.models.len() {
            3 => format!(
                "<p>Each cell is a model whose weights are <code>a · {a} + b · {b} + c · {c}</code> with <code>a + b + c = 1</code>. \
                 The corners of the triangle are the three models; inside it lie their averages, outside of it \
                 extrapolations.</p>"
            ),
            _ => format!(
                "<p>Each point is a model whose weights are <code>(1 − t) · {a} + t · {b}</code>: the straight line through both \
                 in weight space. Between the dashed lines lie their averages, outside extrapolations.</p>"
            ),
        };
        format!(
            "{what}<p>All points answer the same {} prompts with the same random numbers. Bars are 95 % intervals of the mean; \
             the differences in the table are taken prompt by prompt and are surer than the bars suggest.</p>\
             <p>A level line or an arch between the models says that they lie in one basin and that their average is a sound \
             reference; a dip says that averaging breaks something.</p>",
            self.prompts
        )
    }

    fn line(&self, title: &str, pick: Quantity, look: &str) -> String {
        let dot = |spot: &Spot| {
            let (t, e) = (spot.weights[1], pick(spot)?);
            let hover = format!("t {}: {}", number(t), estimate(&e, number));
            Some(Dot { x: t, y: e.mean, x_ci: None, y_ci: Some(e.ci95), hover })
        };
        let dots = self.points.iter().filter_map(dot).collect();
        let series = vec![Series { name: title.to_owned(), look: Look::of(look, 0), kind: Kind::Profile, dots }];
        let marks = (0..).map(f64::from).zip(self.models.iter().cloned()).collect();
        let x_label = format!("t: weight of {}", self.models.get(1).map_or("", String::as_str));
        Chart { title: title.to_owned(), x_label, marks, series, ..Chart::default() }.draw()
    }

    fn plane(&self, title: &str, pick: Quantity, best: Best) -> String {
        let cell = |spot: &Spot| {
            let [a, b, c] = spot.weights[..] else { return None };
            Some(([a, b, c], pick(spot)?))
        };
        let cells = self.points.iter().filter_map(cell).collect();
        let corner = |i: usize| self.models.get(i).cloned().unwrap_or_default();
        Plane { title: title.to_owned(), corners: [corner(0), corner(1), corner(2)], cells, best }.draw()
    }

    /// Every number, behind a click.
    fn table(&self) -> String {
        let has = |pick: Quantity| self.points.iter().any(|spot| pick(spot).is_some());
        let columns: [(&str, Quantity); 5] = [
            ("gold reward", |spot| spot.gold_reward),
            ("gold against the first", |spot| spot.gold_difference),
            ("proxy score", |spot| Some(spot.proxy_score)),
            ("proxy against the first", |spot| spot.proxy_difference),
            ("loss", |spot| spot.loss),
        ];
        let columns: Vec<_> = columns.into_iter().filter(|(_, pick)| has(*pick)).collect();
        let mut out = format!(
            "<details><summary>All {} points</summary><div class=\"scroll\" tabindex=\"0\"><table class=\"numbers\">\
             <caption>Small: 95 % interval.</caption><thead><tr>",
            self.points.len()
        );
        let heads = match self.models.len() {
            3 => self.models.clone(),
            _ => vec!["t".to_owned()],
        };
        let heads = heads.iter().map(String::as_str).chain(columns.iter().map(|(name, _)| *name)).chain(["length"]);
        for head in heads {
            let _ = write!(out, "<th scope=\"col\">{}</th>", escape(head));
        }
        out.push_str("</tr></thead><tbody>");
        for spot in &self.points {
            let places = if self.models.len() == 3 { &spot.weights[..] } else { &spot.weights[1..] };
            out.push_str("<tr>");
            for (i, place) in places.iter().enumerate() {
                let tag = if i == 0 { "th scope=\"row\"" } else { "td" };
                let _ = write!(out, "<{tag}>{}</{}>", number(*place), &tag[..2]);
            }
            for (_, pick) in &columns {
                let cell = pick(spot).map_or("–".to_owned(), |e| {
                    format!("{}<small>{}</small>", number(e.mean), interval(e.ci95, number))
                });
                let _ = write!(out, "<td>{cell}</td>");
            }
            let _ = write!(out, "<td>{}</td></tr>", number(spot.length_mean));
        }
        out + "</tbody></table></div></details>"
    }
}
