//! The page of a soup's geometry: task vectors layer by layer, and the effect of averaging on their length.

use std::fmt::Write;

use super::html::{Fill, Look, escape, legend};
use super::number::{MISSING, number};
use super::page::{self, Section, Width};
use super::xy::{Chart, Dot, Kind, Series};

/// The geometry of a soup's ingredients, layer by layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SoupGeometry {
    /// The ingredients, by paths.
    pub ingredients: Vec<String>,
    /// The common base they were fine-tuned from, if known.
    pub base: Option<String>,
    /// Their weights, if they are the same in all tensors.
    pub weights: Option<Vec<f64>>,
    /// Embedding, layers, last norm and head, in order.
    pub parts: Vec<GeometryPart>,
    /// All parts together.
    pub overall: GeometryPart,
}

/// A part of the weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct GeometryPart {
    /// `layer 0`, `embed_tokens`, …
    pub name: String,
    /// Lengths of the task vectors and, last, of the soup's; empty without a base.
    pub norms: Vec<f64>,
    /// Pairs of ingredients with the cosine of the angle between their task vectors; empty without a base.
    pub cosines: Vec<([usize; 2], Option<f64>)>,
    /// Pairs of ingredients with their distance.
    pub distances: Vec<([usize; 2], f64)>,
    /// Distances of the soup from its ingredients.
    pub soup_distances: Vec<f64>,
    /// Length of the soup's task vector, divided by the mean length of its ingredients'.
    pub shrinkage: Option<f64>,
    /// The same for the weighted mean, computed from lengths and angles alone.
    pub predicted_shrinkage: Option<f64>,
}

/// A line of a chart: its name, its look, and its value for a part.
type Line<'a> = (String, Look, Box<dyn Fn(&GeometryPart) -> Option<f64> + 'a>);

/// Number of layer names that fit below a chart.
const MOST_NAMES: usize = 10;

impl SoupGeometry {
    /// Renders a self-contained HTML page.
    pub(crate) fn html(&self) -> String {
        let lead = match &self.base {
            Some(base) => format!("{} models fine-tuned from {base}, and their soup.", self.ingredients.len()),
            None => format!("{} models and their soup.", self.ingredients.len()),
        };
        page::standalone("Soup geometry", &lead, &[self.charts(), self.table()])
    }

    fn charts(&self) -> Section {
        let count = self.ingredients.len();
        let soup = || Look::of("soup", 0);
        let norms = (0..=count).map(|i| -> Line<'_> {
            let (name, look) = if i == count { ("soup".to_owned(), soup()) } else { (letter(i), look(i)) };
            (name, look, Box::new(move |part: &GeometryPart| part.norms.get(i).copied()))
        });
        let pairs = self.overall.distances.iter().map(|(pair, _)| *pair).enumerate();
        let cosines = pairs.clone().map(|(at, pair)| -> Line<'_> {
            (between(pair), look(at), Box::new(move |part: &GeometryPart| part.cosines.get(at).and_then(|(_, c)| *c)))
        });
        let between_models = pairs.map(|(at, pair)| -> Line<'_> {
            (between(pair), look(at), Box::new(move |part: &GeometryPart| part.distances.get(at).map(|(_, d)| *d)))
        });
        let to_soup = (0..count).map(|i| -> Line<'_> {
            (
                format!("soup–{}", letter(i)),
                look(self.overall.distances.len() + i),
                Box::new(move |part: &GeometryPart| part.soup_distances.get(i).copied()),
            )
        });
        let shrinkage: [Line<'_>; 2] = [
            ("predicted for the mean".to_owned(), look(0), Box::new(|part| part.predicted_shrinkage)),
            ("the soup as written".to_owned(), soup(), Box::new(|part| part.shrinkage)),
        ];
        let picture = [
            self.chart("Length of the task vectors", norms.collect()),
            self.chart("Cosine between task vectors", cosines.collect()),
            self.chart("Length of the soup’s task vector, as a share", shrinkage.into_iter().collect()),
            self.chart("Distances", between_models.chain(to_soup).collect()),
        ];
        Section {
            id: "geometry".to_owned(),
            heading: "Layer by layer".to_owned(),
            width: Width::BesideText,
            explanation: self.explanation(),
            picture: format!("<div class=\"charts\">{}</div>", picture.concat()),
        }
    }

    /// A chart with its own legend; empty if it has no data.
    fn chart(&self, title: &str, lines: Vec<Line<'_>>) -> String {
        let series: Vec<Series> = lines
            .iter()
            .map(|(name, look, value)| {
                let dot = |(i, part): (usize, &GeometryPart)| {
                    let y = value(part).unwrap_or(f64::NAN);
                    Dot::new(i as f64, y, format!("{name}, {}: {}", part.name, number(y)))
                };
                let dots = self.parts.iter().enumerate().map(dot).collect();
                Series { name: name.clone(), look: *look, kind: Kind::Profile, dots }
            })
            .filter(|series: &Series| series.dots.iter().any(|dot| dot.y.is_finite()))
            .collect();
        if series.is_empty() {
            return String::new();
        }
        let entries: Vec<_> = series.iter().map(|s| (s.look, Fill::Solid, s.name.clone())).collect();
        let every = self.parts.len().div_ceil(MOST_NAMES).max(1);
        let last = self.parts.len().saturating_sub(1);
        let named = |(i, _): &(usize, &GeometryPart)| *i == last || (i.is_multiple_of(every) && i + every <= last);
        let names = self.parts.iter().enumerate().filter(named).map(|(i, part)| (i as f64, short(&part.name)));
        let chart = Chart {
            title: title.to_owned(),
            x_label: "layer".to_owned(),
            x_names: names.collect(),
            series,
            ..Chart::default()
        };
        format!("<div>{}{}</div>", chart.draw(), legend(&entries))
    }

    fn explanation(&self) -> String {
        let mut out = String::from("<p>");
        for (i, name) in self.ingredients.iter().enumerate() {
            let weight = self.weights.as_ref().map_or(String::new(), |w| format!(", weight {}", number(w[i])));
            let _ = write!(out, "<strong>{}</strong> {}{weight}<br>", letter(i), escape(name));
        }
        out.push_str("</p>");
        if self.base.is_none() {
            out.push_str(
                "<p>Distances only: with the base they were fine-tuned from (<code>--base DIR</code>) there are task vectors, \
                 and angles between them.</p>",
            );
            return out;
        }
        out.push_str(
            "<p>A <em>task vector</em> is what fine-tuning added to the base. Where two of them point the same way (cosine near \
             1) the models learned the same and averaging changes little; at right angles (near 0) they learned different \
             things, and the mean is shorter than its ingredients: of two of one length, by the factor <code>cos(angle / 2)</code>.</p>\
             <p>The <em>share</em> is the length of the soup’s task vector over the weighted mean of its ingredients’. What \
             lengths and angles predict for the mean and what was written agree for a linear soup, up to rounding; other \
             methods part from it.</p>",
        );
        out
    }

    fn table(&self) -> Section {
        let count = self.ingredients.len();
        let mut out = String::from(
            "<div class=\"scroll\" tabindex=\"0\"><table class=\"numbers\"><thead><tr><th scope=\"col\">weights</th>",
        );
        let mut heads: Vec<String> = Vec::new();
        if self.base.is_some() {
            heads.extend((0..count).map(|i| format!("|{}|", letter(i))));
            heads.extend(["|soup|", "share", "predicted"].map(str::to_owned));
            heads.extend(self.overall.cosines.iter().map(|(pair, _)| format!("cos {}", between(*pair))));
        }
        heads.extend(self.overall.distances.iter().map(|(pair, _)| between(*pair)));
        heads.extend((0..count).map(|i| format!("soup–{}", letter(i))));
        heads.iter().for_each(|head| {
            let _ = write!(out, "<th scope=\"col\">{}</th>", escape(head));
        });
        out.push_str("</tr></thead><tbody>");
        for part in self.parts.iter().chain([&self.overall]) {
            let _ = write!(out, "<tr><th scope=\"row\">{}</th>", escape(&part.name));
            let mut cells: Vec<Option<f64>> = part.norms.iter().copied().map(Some).collect();
            if self.base.is_some() {
                cells.extend([part.shrinkage, part.predicted_shrinkage]);
                cells.extend(part.cosines.iter().map(|(_, cosine)| *cosine));
            }
            cells.extend(part.distances.iter().map(|(_, distance)| Some(*distance)));
            cells.extend(part.soup_distances.iter().copied().map(Some));
            cells.iter().for_each(|cell| {
                let _ = write!(out, "<td>{}</td>", cell.map_or(MISSING.to_owned(), number));
            });
            out.push_str("</tr>");
        }
        out.push_str("</tbody></table></div>");
        Section {
            id: "numbers".to_owned(),
            heading: "The numbers".to_owned(),
            width: Width::Full,
            explanation: "<p>The same, with all weights together in the last row. Single tensors are in \
                <code>geometry.json</code>.</p>"
                .to_owned(),
            picture: out,
        }
    }
}

/// The first ingredients look like the known arms of the report.
fn look(i: usize) -> Look {
    let known = ["sft_a", "sft_b", "salsa", "ppo"];
    Look::of(known.get(i).copied().unwrap_or("other"), i)
}

/// A, B, …, Z, then numbers.
pub(crate) fn letter(i: usize) -> String {
    u8::try_from(i).ok().filter(|i| *i < 26).map_or_else(|| format!("#{}", i + 1), |i| char::from(b'A' + i).to_string())
}

fn between([i, j]: [usize; 2]) -> String {
    format!("{}–{}", letter(i), letter(j))
}

/// A short name that fits below an axis.
fn short(part: &str) -> String {
    match part {
        "embed_tokens" => "emb".to_owned(),
        "lm_head" => "head".to_owned(),
        other => other.strip_prefix("layer ").unwrap_or(other).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, base: bool) -> GeometryPart {
        GeometryPart {
            name: name.to_owned(),
            norms: if base { vec![3.0, 4.0, 2.5] } else { Vec::new() },
            cosines: if base { vec![([0, 1], Some(0.0))] } else { Vec::new() },
            distances: vec![([0, 1], 5.0)],
            soup_distances: vec![2.5, 2.5],
            shrinkage: base.then_some(0.714),
            predicted_shrinkage: base.then_some(0.714),
        }
    }

    fn geometry(base: bool) -> SoupGeometry {
        let layers = (0..30).map(|i| part(&format!("layer {i}"), base));
        SoupGeometry {
            ingredients: vec!["a <b>".to_owned(), "b".to_owned()],
            base: base.then(|| "base".to_owned()),
            weights: Some(vec![0.5, 0.5]),
            parts: [part("embed_tokens", base)].into_iter().chain(layers).chain([part("lm_head", base)]).collect(),
            overall: part("all", base),
        }
    }

    #[test]
    fn the_page_shows_what_there_is() {
        let html = geometry(true).html();
        for title in ["Length of the task vectors", "Cosine between task vectors", "as a share", "Distances"] {
            assert!(html.contains(title), "{title}");
        }
        assert!(html.contains("a &lt;b&gt;") && !html.contains("a <b>"));
        assert!(html.contains("A–B, layer 7: 5.00"), "hover");
        let bare = geometry(false).html();
        assert!(!bare.contains("Cosine between") && bare.contains("Distances") && bare.contains("--base DIR"));
    }

    #[test]
    fn names_below_an_axis_do_not_crowd() {
        let html = geometry(true).html();
        let chart = &html[html.find("Distances").unwrap()..];
        let names = chart[..chart.find("</svg>").unwrap()].matches("text-anchor=\"middle\"").count();
        assert!((6..=MOST_NAMES + 2).contains(&names), "{names}");
        assert!(chart.contains(">emb<") && chart.contains(">head<"));
    }
}
