//! Rewards on a line or a plane of models: the numbers of `landscape.json`, and their charts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use serde::{Deserialize, Serialize};

use super::Estimate;
use super::html::{Look, escape};
use super::labels::label;
use super::number::{ends, estimate, number};
use super::page::{self, Section, Width};
use super::plane::{Best, Plane};
use super::xy::{Chart, Dot, Kind, Series};

/// The contents of `landscape.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Landscape {
    /// Names of the models at the ends of the line or the corners of the triangle: two or three.
    pub models: Vec<String>,
    /// Number of prompts per point.
    pub prompts: usize,
    /// Sampling temperature.
    pub temperature: f64,
    /// Sampling seed.
    pub seed: u64,
    /// The points, along the line or row by row.
    pub points: Vec<GridPoint>,
}

/// One point: a weighted mean of the models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GridPoint {
    /// The weights of the models, summing to 1. For two models, the second weight is `t`.
    pub weights: Vec<f64>,
    /// Gold reward; absent if the data has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gold_reward: Option<Estimate>,
    /// Gold reward minus that of the first model, prompt by prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gold_difference: Option<Estimate>,
    /// Reward-model score.
    pub proxy_score: Estimate,
    /// Other rewards, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rewards: BTreeMap<String, Estimate>,
    /// Reward-model score minus that of the first model, prompt by prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_difference: Option<Estimate>,
    /// Mean loss per held-out token in nats; absent if not requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Estimate>,
    /// Loss minus that of the first model, example by example.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_difference: Option<Estimate>,
    /// Mean length of the answers, tokens.
    pub length_mean: f64,
}

impl GridPoint {
    /// The first model's difference from itself; none for other points.
    fn nothing_to_itself(&self) -> Option<Estimate> {
        (self.weights.first() == Some(&1.0)).then(|| Estimate::new(0.0, 0.0, 0.0))
    }
}

/// A measured quantity of a point.
type Quantity = fn(&GridPoint) -> Option<Estimate>;

/// A quantity shown on the page, if it was measured.
struct Shown {
    title: &'static str,
    look: &'static str,
    pick: Quantity,
    /// The difference from the first model, on the same prompts.
    difference: Quantity,
    best: Best,
}

const SHOWN: [Shown; 3] = [
    Shown {
        title: "Gold reward",
        look: "salsa",
        pick: |spot| spot.gold_reward,
        difference: |spot| spot.gold_difference,
        best: Best::Largest,
    },
    Shown {
        title: "Proxy score",
        look: "soup",
        pick: |spot| Some(spot.proxy_score),
        difference: |spot| spot.proxy_difference,
        best: Best::Largest,
    },
    Shown {
        title: "Loss (nats per token)",
        look: "sft_a",
        pick: |spot| spot.loss,
        difference: |spot| spot.loss_difference,
        best: Best::Least,
    },
];

impl Landscape {
    /// Renders a self-contained HTML page.
    pub fn html(&self) -> String {
        let heading = if self.models.len() == 3 { "On the plane" } else { "Along the line" };
        let section = self.section("landscape", heading);
        let lead = format!(
            "Models whose weights are means of those of {}, measured on {} prompts.",
            self.models.join(", "),
            self.prompts
        );
        page::standalone("Reward landscape", &lead, &[section])
    }

    /// Renders a section of a page.
    pub(super) fn section(&self, id: &str, heading: &str) -> Section {
        let picture = match self.models.len() {
            _ if self.points.is_empty() => String::new(),
            3 => format!("<div class=\"charts\">{}</div>{}", self.charts(|shown| self.plane(shown)), self.table()),
            _ => {
                let first = self.models.first().map_or("", String::as_str);
                let levels = self.charts(|shown| self.line(shown.title.to_owned(), shown.look, shown.pick));
                let differences = self.charts(|shown| {
                    let title = format!("{}, less that of {first}", shown.title);
                    self.line(title, shown.look, |spot| (shown.difference)(spot).or_else(|| spot.nothing_to_itself()))
                });
                format!(
                    "<div class=\"charts\">{levels}</div>{}<h3 class=\"apart\">Prompt by prompt against {}</h3>\
                     <div class=\"charts\">{differences}</div>{}",
                    self.fronts(),
                    escape(first),
                    self.table()
                )
            }
        };
        Section {
            id: id.to_owned(),
            heading: heading.to_owned(),
            width: Width::BesideText,
            explanation: self.explanation(),
            picture,
        }
    }

    fn charts(&self, draw: impl Fn(&Shown) -> String) -> String {
        let measured = |shown: &&Shown| self.points.iter().any(|spot| (shown.pick)(spot).is_some());
        SHOWN.iter().filter(measured).map(draw).collect()
    }

    fn explanation(&self) -> String {
        let name = |i: usize| escape(self.models.get(i).map_or("", String::as_str));
        let (a, b, c) = (name(0), name(1), name(2));
        let what = match self.models.len() {
            3 => format!(
                "<p>Each cell is a model whose weights are <code>a · {a} + b · {b} + c · {c}</code> with <code>a + b + c = 1</code>. \
                 The corners of the triangle are the three models; inside it lie their averages, outside of it \
                 extrapolations. The lighter, the better; the best cell is outlined.</p>"
            ),
            _ => format!(
                "<p>Each point is a model whose weights are <code>(1 − t) · {a} + t · {b}</code>: the straight line through both \
                 in weight space. Between the dashed lines lie their averages, outside extrapolations.</p>"
            ),
        };
        format!(
            "{what}<p>All points answer the same {} prompts with the same random numbers. Bars are 95 % intervals of the mean; \
             differences taken prompt by prompt are surer than the bars of two points suggest.</p>\
             <p>A level line or an arch between the models says that they lie in one basin and that their average is a sound \
             reference; a dip says that averaging breaks something.</p>",
            self.prompts
        )
    }

    fn line(&self, title: String, look: &str, pick: impl Fn(&GridPoint) -> Option<Estimate>) -> String {
        let dot = |spot: &GridPoint| {
            let (t, e) = (spot.weights[1], pick(spot)?);
            let hover = format!("t {}: {}", number(t), estimate(&e, number));
            Some(Dot { x: t, y: e.mean, x_ci: None, y_ci: Some(e.ci95), hover })
        };
        let dots = self.points.iter().filter_map(dot).collect();
        let series = vec![Series { name: title.clone(), look: Look::of(look, 0), kind: Kind::Profile, dots }];
        let marks = (0..).map(f64::from).zip(self.models.iter().cloned()).collect();
        let x_label = format!("t: weight of {}", self.models.get(1).map_or("", String::as_str));
        Chart { title, x_label, marks, series, ..Chart::default() }.draw()
    }

    /// Each further reward against the proxy score along a line: what one gains the other may lose.
    fn fronts(&self) -> String {
        let names: BTreeSet<&String> = self.points.iter().flat_map(|spot| spot.rewards.keys()).collect();
        if names.is_empty() {
            return String::new();
        }
        let charts: String = names.into_iter().map(|name| self.front(name)).collect();
        format!(
            "<h3 class=\"apart\">Rewards against each other</h3><p class=\"hint\">Each mark is a point of the line, with the \
             95 % intervals of both means. A mark above and to the right of others is better in both; a curve that bulges \
             that way offers more than a choice between the ends.</p><div class=\"charts\">{charts}</div>"
        )
    }

    fn front(&self, name: &str) -> String {
        let dot = |spot: &GridPoint| {
            let (x, y) = (spot.proxy_score, *spot.rewards.get(name)?);
            let hover = format!(
                "t {}: proxy score {}, {name} {}",
                number(spot.weights[1]),
                estimate(&x, number),
                estimate(&y, number)
            );
            Some(Dot { x: x.mean, y: y.mean, x_ci: Some(x.ci95), y_ci: Some(y.ci95), hover })
        };
        let dots = self.points.iter().filter_map(dot).collect();
        let series = vec![Series { name: name.to_owned(), look: Look::of("salsa", 0), kind: Kind::Profile, dots }];
        Chart { title: label(name), x_label: "Proxy score".to_owned(), series, ..Chart::default() }.draw()
    }

    fn plane(&self, shown: &Shown) -> String {
        let cell = |spot: &GridPoint| {
            let [a, b, c] = spot.weights[..] else { return None };
            Some(([a, b, c], (shown.pick)(spot)?))
        };
        let cells = self.points.iter().filter_map(cell).collect();
        let corner = |i: usize| self.models.get(i).cloned().unwrap_or_default();
        let corners = [corner(0), corner(1), corner(2)];
        Plane { title: shown.title.to_owned(), corners, cells, best: shown.best }.draw()
    }

    /// A collapsible table of all numbers.
    fn table(&self) -> String {
        let has = |pick: Quantity| self.points.iter().any(|spot| pick(spot).is_some());
        let columns: [(&str, Quantity); 6] = [
            ("gold reward", |spot| spot.gold_reward),
            ("gold against the first", |spot| spot.gold_difference),
            ("proxy score", |spot| Some(spot.proxy_score)),
            ("proxy against the first", |spot| spot.proxy_difference),
            ("loss", |spot| spot.loss),
            ("loss against the first", |spot| spot.loss_difference),
        ];
        let columns: Vec<_> = columns.into_iter().filter(|(_, pick)| has(*pick)).collect();
        let others: BTreeSet<&String> = self.points.iter().flat_map(|spot| spot.rewards.keys()).collect();
        let mut out = format!(
            "<details><summary>All {} points</summary><div class=\"scroll\" tabindex=\"0\"><table class=\"numbers\">\
             <caption>Small: 95 % interval.</caption><thead><tr>",
            self.points.len()
        );
        let heads = match self.models.len() {
            3 => self.models.clone(),
            _ => vec!["t".to_owned()],
        };
        let heads = heads.iter().map(String::as_str).chain(columns.iter().map(|(name, _)| *name));
        let heads = heads.chain(others.iter().map(|name| name.as_str())).chain(["length"]);
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
            let measured = columns.iter().map(|(_, pick)| pick(spot));
            for measured in measured.chain(others.iter().map(|name| spot.rewards.get(*name).copied())) {
                let cell = measured.map_or("–".to_owned(), |e| {
                    let interval = e.has_interval().then(|| format!("<small>{}</small>", ends(e.ci95.map(number))));
                    number(e.mean) + &interval.unwrap_or_default()
                });
                let _ = write!(out, "<td>{cell}</td>");
            }
            let _ = write!(out, "<td>{}</td></tr>", number(spot.length_mean));
        }
        out + "</tbody></table></div></details>"
    }
}
