//! Scores by a judge, with the counting rule of each.
use std::fmt::Write;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    html::escape,
    number::{MISSING, ends, number},
    page::{Section, Width},
};

/// The results of a judge for some models.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Judgments {
    /// The name of the stage.
    pub heading: String,
    /// The judge's name.
    pub judge: String,
    /// One table per rule.
    pub tables: Vec<JudgedTable>,
    /// Number of calls.
    pub calls: u64,
    /// Calls without a reply.
    pub failures: u64,
}

/// Scores by one rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JudgedTable {
    /// The category of the prompts, if there are several categories.
    pub caption: String,
    /// The rule by which the score is counted.
    pub rule: String,
    /// The models.
    pub rows: Vec<JudgedRow>,
}

/// The score of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JudgedRow {
    /// The model.
    pub model: String,
    /// Its score.
    pub score: Option<f64>,
    /// The 95 % interval over prompts.
    pub interval: Option<[f64; 2]>,
    /// Number of judged rows.
    pub rows: Option<u64>,
    /// Number of rows without a verdict.
    pub dropped: Option<u64>,
}

/// Keys of a score in the results; the first existing one is used.
const SCORES: &[&str] = &["score", "win_rate_adjusted", "win_rate"];

impl Judgments {
    /// Extracts the judgments from the results of a stage.
    pub fn from_results(heading: &str, results: &Value) -> Judgments {
        let mut tables = Vec::new();
        match results["categories"].as_object() {
            Some(categories) => {
                for (name, category) in categories {
                    tables.extend(table(name, &results["rule"], &category["models"]));
                    let styled = &category["style_controlled"];
                    tables.extend(table(name, &styled["rule"], &styled["models"]));
                }
            }
            None => tables.extend(table("", &results["rule"], &results["models"])),
        }
        tables.extend(at_equal_length(&results["models"]));
        Judgments {
            heading: heading.to_owned(),
            judge: results["judge"]["model"].as_str().unwrap_or_default().to_owned(),
            tables,
            calls: results["calls"].as_u64().unwrap_or_default(),
            failures: results["failures"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum(),
        }
    }

    pub(super) fn section(&self, id: &str) -> Section {
        let by = if self.judge.is_empty() { String::new() } else { format!(" by {}", escape(&self.judge)) };
        let failed = match (self.calls, self.failures) {
            (0, _) => String::new(),
            (calls, failures) => format!(" {calls} calls, {failures} of them without a reply."),
        };
        let mut picture = String::new();
        self.tables.iter().for_each(|table| table.draw(&mut picture));
        Section {
            id: id.to_owned(),
            heading: format!("{}: judged{}", self.heading, if by.is_empty() { "" } else { by.as_str() }),
            width: Width::BesideText,
            explanation: format!(
                "<p>Scores that a language model gave as the judge.{failed} Each benchmark counts in its own way: compare \
                 scores by the same rule only.</p><p>The interval draws prompts, each with all that was judged of it. It \
                 says nothing of what the judge prefers for no good reason, such as length or its own style.</p>"
            ),
            picture,
        }
    }
}

/// The table of some models; none if there are none.
fn table(caption: &str, rule: &Value, models: &Value) -> Option<JudgedTable> {
    let row = |(model, found): (&String, &Value)| JudgedRow {
        model: model.clone(),
        score: SCORES.iter().find_map(|key| found[*key].as_f64()),
        interval: interval(found.as_object()),
        rows: ["rows", "n_total"].iter().find_map(|key| found[*key].as_u64()),
        dropped: ["dropped", "games_without_label"].iter().find_map(|key| found[*key].as_u64()),
    };
    let rows: Vec<JudgedRow> = models.as_object()?.iter().map(row).collect();
    let rule = rule.as_str().unwrap_or_default().to_owned();
    (!rows.is_empty()).then(|| JudgedTable { caption: caption.to_owned(), rule, rows })
}

/// AlpacaEval's length-controlled win rates.
fn at_equal_length(models: &Value) -> Option<JudgedTable> {
    let (mut rule, mut rows) = (String::new(), Vec::new());
    for (model, found) in models.as_object()? {
        for key in ["length_controlled", "win_rate_at_equal_length"] {
            let Some(controlled) = found[key].as_object() else { continue };
            controlled["rule"].as_str().unwrap_or_default().clone_into(&mut rule);
            let score = controlled["win_rate"].as_f64();
            rows.push(JudgedRow { model: model.clone(), score, interval: None, rows: None, dropped: None });
        }
    }
    (!rows.is_empty()).then(|| JudgedTable { caption: "at equal length".to_owned(), rule, rows })
}

fn interval(found: Option<&Map<String, Value>>) -> Option<[f64; 2]> {
    let (_, ends) = found?.iter().find(|(key, _)| key.starts_with("ci95"))?;
    Some([ends.get(0)?.as_f64()?, ends.get(1)?.as_f64()?])
}

impl JudgedTable {
    fn draw(&self, out: &mut String) {
        let caption = if self.caption.is_empty() { String::new() } else { format!("{}: ", escape(&self.caption)) };
        let _ = write!(
            out,
            "<div class=\"scroll\" tabindex=\"0\"><table class=\"numbers\"><caption>{caption}{}</caption><thead><tr>\
             <th scope=\"col\">model</th><th scope=\"col\">score</th><th scope=\"col\">judged</th>\
             <th scope=\"col\">no verdict</th></tr></thead><tbody>",
            escape(&self.rule)
        );
        let count = |count: Option<u64>| count.map_or_else(|| MISSING.to_owned(), |count| count.to_string());
        for row in &self.rows {
            let interval = row.interval.map_or(String::new(), |i| format!("<small>{}</small>", ends(i.map(number))));
            let _ = write!(
                out,
                "<tr><th scope=\"row\">{}</th><td>{}{interval}</td><td>{}</td><td>{}</td></tr>",
                escape(&row.model),
                row.score.map_or_else(|| MISSING.to_owned(), number),
                count(row.rows),
                count(row.dropped)
            );
        }
        out.push_str("</tbody></table></div>");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_score_is_shown_without_its_rule() {
        let pairs = json!({"rule": "of <pairs>", "judge": {"model": "gpt"}, "calls": 8, "failures": {"empty": 2}, "models": {
            "one": {"win_rate_adjusted": 0.75, "win_rate": 0.5, "ci95_over_questions": [0.5, 1.0], "rows": 4, "dropped": 1,
                "win_rate_at_equal_length": {"rule": "of lengths", "win_rate": 61.0}}}});
        let arena = json!({"rule": "of games", "categories": {"hard": {
            "models": {"one": {"score": 41.0, "ci95_over_prompts": [30.0, 52.0], "rows": 9, "games_without_label": 0}},
            "style_controlled": {"rule": "of style", "models": {"one": {"score": 39.0}}}}}});
        for (results, shown) in [
            (
                pairs,
                vec!["of &lt;pairs&gt;", "0.750", "0.500 to 1", "of lengths", "61.0", "8 calls, 2 of them", "by gpt"],
            ),
            (arena, vec!["hard: of games", "41.0", "30.0 to 52.0", "hard: of style", "39.0"]),
        ] {
            let judgments = Judgments::from_results("judged", &results);
            let section = judgments.section("judgments-1");
            let page = format!("{}{}{}", section.heading, section.explanation, section.picture);
            for text in shown {
                assert!(page.contains(text), "{text}: {page}");
            }
            assert!(judgments.tables.iter().all(|table| !table.rule.is_empty()));
        }
        assert!(Judgments::from_results("judged", &json!({})).section("x").picture.is_empty());
    }
}
