//! Norms, angles and distances of the ingredients and the soup: whether averaging has an effect.
use std::fmt::Write;

use salsa_algo::soup::Gram;
use serde_json::{Value, json};

use super::{arithmetic::Arithmetic, ingredients::Ingredients};
use crate::{
    checkpoint::NewTensor,
    report::{GeometryPart, SoupGeometry, letter},
};

/// Norms, angles and distances for each tensor, for each layer, and for the whole model.
#[derive(Debug)]
pub(crate) struct Geometry {
    ingredients: Vec<String>,
    base: Option<String>,
    /// `None` if they vary by tensor.
    weights: Option<Vec<f64>>,
    overall: Part,
    groups: Vec<Part>,
    tensors: Vec<Part>,
}

/// The statistics of some of the weights.
#[derive(Debug)]
struct Part {
    name: String,
    parameters: usize,
    /// Inner products of the ingredients and, last, the soup.
    gram: Gram,
}

impl Geometry {
    /// Sums the Gram matrices of the tensors' pieces; `grams` are in a fixed order.
    pub(super) fn new(
        ingredients: &Ingredients,
        arithmetic: &Arithmetic,
        tensors: &[NewTensor],
        grams: impl Iterator<Item = (usize, Gram)>,
    ) -> Geometry {
        let points = ingredients.models.len() + 1;
        let part = |name: &str, parameters| Part { name: name.to_owned(), parameters, gram: Gram::new(points) };
        let mut parts: Vec<Part> = tensors.iter().map(|t| part(&t.name, t.shape.iter().product())).collect();
        grams.for_each(|(tensor, gram)| parts[tensor].gram.merge(&gram));
        let mut groups: Vec<Part> = Vec::new();
        let mut overall = part("all", 0);
        for tensor in &parts {
            let name = group(&tensor.name);
            if groups.last().is_none_or(|last| last.name != name) {
                groups.push(part(&name, 0));
            }
            for sum in groups.last_mut().into_iter().chain([&mut overall]) {
                sum.gram.merge(&tensor.gram);
                sum.parameters += tensor.parameters;
            }
        }
        let name = |model: &crate::checkpoint::Checkpoint| model.dir().display().to_string();
        Geometry {
            ingredients: ingredients.models.iter().map(name).collect(),
            base: ingredients.base.as_ref().map(name),
            weights: arithmetic.constant_weights(),
            overall,
            groups,
            tensors: parts,
        }
    }

    /// The content of `geometry.json`.
    pub(crate) fn to_json(&self) -> Value {
        let all = |parts: &[Part]| parts.iter().map(|part| self.part(part)).collect::<Vec<_>>();
        json!({
            "ingredients": self.ingredients,
            "base": self.base,
            "weights": self.weights,
            "overall": self.part(&self.overall),
            "groups": all(&self.groups),
            "tensors": all(&self.tensors),
        })
    }

    /// The content of `geometry.html`.
    pub(crate) fn html(&self) -> String {
        let page = SoupGeometry {
            ingredients: self.ingredients.clone(),
            base: self.base.clone(),
            weights: self.weights.clone(),
            parts: self.groups.iter().map(|part| self.picture(part)).collect(),
            overall: self.picture(&self.overall),
        };
        page.html()
    }

    fn picture(&self, part: &Part) -> GeometryPart {
        let (count, gram, pairs) = (self.ingredients.len(), &part.gram, self.pairs());
        let (norms, cosines) = match self.base {
            None => (Vec::new(), Vec::new()),
            Some(_) => (
                (0..=count).map(|i| gram.norm(i)).collect(),
                pairs.iter().map(|&(i, j)| ([i, j], gram.cosine(i, j))).collect(),
            ),
        };
        let has_base = self.base.is_some();
        GeometryPart {
            name: part.name.clone(),
            norms,
            cosines,
            distances: pairs.iter().map(|&(i, j)| ([i, j], gram.distance(i, j))).collect(),
            soup_distances: (0..count).map(|i| gram.distance(i, count)).collect(),
            shrinkage: self.shrinkage(gram).filter(|_| has_base),
            predicted_shrinkage: self.predicted_shrinkage(gram).filter(|_| has_base),
        }
    }

    fn part(&self, part: &Part) -> Value {
        let (count, gram) = (self.ingredients.len(), &part.gram);
        let matrix = |entry: &dyn Fn(usize, usize) -> Value| -> Vec<Vec<Value>> {
            (0..count).map(|i| (0..count).map(|j| entry(i, j)).collect()).collect()
        };
        let mut json = json!({
            "name": part.name,
            "parameters": part.parameters,
            "distances": matrix(&|i, j| json!(gram.distance(i, j))),
            "soup_distances": (0..count).map(|i| gram.distance(i, count)).collect::<Vec<_>>(),
        });
        if self.base.is_some() {
            json["task_vector_norms"] = json!((0..count).map(|i| gram.norm(i)).collect::<Vec<_>>());
            json["cosines"] = json!(matrix(&|i, j| json!(gram.cosine(i, j))));
            json["soup_norm"] = json!(gram.norm(count));
            json["shrinkage"] = json!(self.shrinkage(gram));
            json["predicted_shrinkage"] = json!(self.predicted_shrinkage(gram));
        }
        json
    }

    /// The soup's distance from the base divided by the mean distance of its ingredients; `None` if that is 0, or if
    /// weights vary by tensor.
    fn shrinkage(&self, gram: &Gram) -> Option<f64> {
        self.share(gram, gram.norm(self.ingredients.len()))
    }

    /// The same quotient for the weighted mean, computed from norms and cosines alone, for any method of the soup.
    ///
    /// ```text
    /// sqrt(sum_ij w_i w_j |d_i| |d_j| cos_ij) / sum_i w_i |d_i|
    /// ```
    fn predicted_shrinkage(&self, gram: &Gram) -> Option<f64> {
        let weights = self.weights.as_ref()?;
        let mut square = 0.0;
        for (i, wi) in weights.iter().enumerate() {
            for (j, wj) in weights.iter().enumerate() {
                square += wi * wj * gram.norm(i) * gram.norm(j) * gram.cosine(i, j).unwrap_or(0.0);
            }
        }
        self.share(gram, square.max(0.0).sqrt())
    }

    fn share(&self, gram: &Gram, norm: f64) -> Option<f64> {
        let mean: f64 = self.weights.as_ref()?.iter().enumerate().map(|(i, w)| w * gram.norm(i)).sum();
        (mean != 0.0).then(|| norm / mean)
    }

    /// The report as a table: a line for each layer and one for the whole. Ingredients are called A, B, C and so on.
    pub(crate) fn table(&self) -> String {
        let count = self.ingredients.len();
        let mut rows = vec![self.head()];
        rows.extend(self.groups.iter().chain([&self.overall]).map(|part| self.row(part)));
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
        let mut text = String::new();
        for (i, name) in self.ingredients.iter().enumerate() {
            // Writing to a string cannot fail.
            let weight = self.weights.as_ref().map_or("by tensor".to_owned(), |weights| format!("{:.4}", weights[i]));
            let _ = writeln!(text, "{}  weight {weight}  {name}", letter(i));
        }
        if let Some(base) = &self.base {
            let _ = writeln!(text, "0  base           {base}");
        }
        text.push('\n');
        for row in &rows {
            let mut line = format!("{:<1$}", row[0], widths[0]);
            for (cell, width) in row.iter().zip(&widths).skip(1) {
                let _ = write!(line, "  {cell:>width$}");
            }
            text += line.trim_end();
            text.push('\n');
        }
        if self.base.is_some() && count > 1 {
            text += "\n|A| is the length of A's difference from the base; shrinkage is |soup| over the weighted mean of these\n";
        }
        text
    }

    fn head(&self) -> Vec<String> {
        let names: Vec<String> = (0..self.ingredients.len()).map(letter).collect();
        let mut head = vec!["weights".to_owned(), "parameters".to_owned()];
        if self.base.is_some() {
            head.extend(names.iter().map(|name| format!("|{name}|")));
            head.push("|soup|".to_owned());
            head.push("shrinkage".to_owned());
            head.extend(self.pairs().iter().map(|(i, j)| format!("cos({},{})", letter(*i), letter(*j))));
        }
        head.extend(self.pairs().iter().map(|(i, j)| format!("|{}-{}|", letter(*i), letter(*j))));
        head.extend(names.iter().map(|name| format!("|soup-{name}|")));
        head
    }

    fn row(&self, part: &Part) -> Vec<String> {
        let (count, gram) = (self.ingredients.len(), &part.gram);
        let number = |x: f64| format!("{x:.4}");
        let maybe = |x: Option<f64>| x.map_or("-".to_owned(), number);
        let mut row = vec![part.name.clone(), part.parameters.to_string()];
        if self.base.is_some() {
            row.extend((0..=count).map(|i| number(gram.norm(i))));
            row.push(maybe(self.shrinkage(gram)));
            row.extend(self.pairs().iter().map(|(i, j)| maybe(gram.cosine(*i, *j))));
        }
        row.extend(self.pairs().iter().map(|(i, j)| number(gram.distance(*i, *j))));
        row.extend((0..count).map(|i| number(gram.distance(i, count))));
        row
    }

    /// The pairs shown in table and page; with more than three ingredients, those with the first.
    fn pairs(&self) -> Vec<(usize, usize)> {
        let count = self.ingredients.len();
        let firsts = if count > 3 { 1 } else { count };
        (0..firsts).flat_map(|i| (i + 1..count).map(move |j| (i, j))).collect()
    }
}

/// The layer of a tensor, or its own name outside the layers.
fn group(tensor: &str) -> String {
    let layer = tensor.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
    match layer {
        Some(layer) => format!("layer {layer}"),
        None => tensor.trim_start_matches("model.").trim_end_matches(".weight").to_owned(),
    }
}
