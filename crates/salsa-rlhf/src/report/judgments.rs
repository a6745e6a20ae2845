//! Scores by a judge, with the counting rule of each.
use std::{collections::BTreeSet, fmt::Write};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    html::escape,
    number::{MISSING, ends, number, signed},
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
    /// Calls without a reply, by the kind of their failure.
    pub failures: Vec<(String, u64)>,
    /// The models that answered, as named by the server, with the number of their answers.
    pub answered_by: Vec<(String, u64)>,
    /// How far the order of the answers decided, if both orders were judged.
    pub orders: Option<Orders>,
}

/// Pairs judged in both orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// Pairs with a verdict in both orders.
    pub rows: u64,
    /// Pairs with different verdicts in the two orders.
    pub disagree: u64,
    /// Pairs in which the answer shown first won both times.
    pub first_won_both: u64,
}

/// Scores by one rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JudgedTable {
    /// The category of the prompts, if there are several categories.
    pub caption: String,
    /// The rule by which the score is counted.
    pub rule: String,
    /// Names of the parts of the prompts, such as categories; empty for a table of all prompts.
    pub parts: Vec<String>,
    /// The models.
    pub rows: Vec<JudgedRow>,
}

/// The score of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    /// Mean number of characters by which its answers are longer than those of the other.
    pub longer: Option<f64>,
    /// How far the order of the answers decided.
    pub orders: Option<Orders>,
    /// Its scores in the parts of the prompts.
    pub parts: Vec<Option<f64>>,
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
        tables.extend(by_part(&results["rule"], &results["models"]));
        tables.extend(at_equal_length(&results["models"]));
        Judgments {
            heading: heading.to_owned(),
            judge: results["judge"]["model"].as_str().unwrap_or_default().to_owned(),
            tables,
            calls: results["calls"].as_u64().unwrap_or_default(),
            failures: counts(&results["failures"]),
            answered_by: counts(&results["judge"]["answered_by"]),
            orders: orders(&results["position_bias"]),
        }
    }

    pub(super) fn section(&self, id: &str) -> Section {
        let by = if self.judge.is_empty() { String::new() } else { format!(" by {}", escape(&self.judge)) };
        let failures: u64 = self.failures.iter().map(|(_, count)| count).sum();
        let failed = match (self.calls, failures) {
            (0, _) => String::new(),
            (calls, 0) => format!(" {calls} calls, all of them with a reply."),
            (calls, _) => format!(" {calls} calls, {failures} of them without a reply ({}).", listed(&self.failures)),
        };
        let answered = match self.answered_by.as_slice() {
            [] => String::new(),
            found => format!(" Answered by {}.", listed(found)),
        };
        let orders = self.orders.map_or_else(String::new, |orders| {
            let Orders { rows, disagree, first_won_both } = orders;
            format!(
                " The two orders of a pair disagree in {disagree} of {rows} rows; in {first_won_both} of them the answer \
                 shown first won both times."
            )
        });
        let mut picture = String::new();
        self.tables.iter().for_each(|table| table.draw(&mut picture));
        Section {
            id: id.to_owned(),
            heading: format!("{}: judged{}", self.heading, if by.is_empty() { "" } else { by.as_str() }),
            width: Width::BesideText,
            explanation: format!(
                "<p>Scores that a language model gave as the judge.{failed}{answered}{orders} Each benchmark counts in its own \
                 way: compare scores by the same rule only.</p><p>The interval draws prompts, each with all that was judged of it. It \
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
        longer: found["mean_length_difference"].as_f64(),
        orders: orders(&found["position_bias"]),
        parts: Vec::new(),
    };
    let rows: Vec<JudgedRow> = models.as_object()?.iter().map(row).collect();
    let rule = rule.as_str().unwrap_or_default().to_owned();
    (!rows.is_empty()).then(|| JudgedTable { caption: caption.to_owned(), rule, parts: Vec::new(), rows })
}

/// MT-Bench's scores of the two turns and of the categories.
fn by_part(rule: &Value, models: &Value) -> Option<JudgedTable> {
    const TURNS: [(&str, &str); 2] = [("turn_1", "turn\u{a0}1"), ("turn_2", "turn\u{a0}2")];
    let models = models.as_object()?;
    let has_turns = models.values().any(|found| found.get(TURNS[0].0).is_some());
    let names = models.values().filter_map(|found| found["categories"].as_object()).flat_map(Map::keys);
    let categories: BTreeSet<&String> = names.collect();
    let row = |(model, found): (&String, &Value)| {
        let turns = TURNS.iter().filter(|_| has_turns).map(|(key, _)| found[*key].as_f64());
        let parts = turns.chain(categories.iter().map(|name| found["categories"][*name].as_f64())).collect();
        JudgedRow { model: model.clone(), parts, ..JudgedRow::default() }
    };
    let turns = TURNS.iter().filter(|_| has_turns).map(|(_, name)| (*name).to_owned());
    let parts: Vec<String> = turns.chain(categories.iter().map(|name| (*name).clone())).collect();
    let (caption, rule) = ("by turn and category".to_owned(), rule.as_str().unwrap_or_default().to_owned());
    (!parts.is_empty()).then(|| JudgedTable { caption, rule, parts, rows: models.iter().map(row).collect() })
}

fn orders(bias: &Value) -> Option<Orders> {
    let count = |key: &str| bias[key].as_u64();
    let (rows, disagree) = (count("rows").filter(|rows| *rows > 0)?, count("orders_disagree")?);
    Some(Orders { rows, disagree, first_won_both: count("first_shown_won_both")? })
}

fn counts(found: &Value) -> Vec<(String, u64)> {
    found.as_object().into_iter().flatten().filter_map(|(name, count)| Some((name.clone(), count.as_u64()?))).collect()
}

fn listed(counts: &[(String, u64)]) -> String {
    counts.iter().map(|(name, count)| format!("{count} {}", escape(name))).collect::<Vec<_>>().join(", ")
}

/// AlpacaEval's length-controlled win rates.
fn at_equal_length(models: &Value) -> Option<JudgedTable> {
    let (mut rule, mut rows) = (String::new(), Vec::new());
    for (model, found) in models.as_object()? {
        for key in ["length_controlled", "win_rate_at_equal_length"] {
            let Some(controlled) = found[key].as_object() else { continue };
            controlled["rule"].as_str().unwrap_or_default().clone_into(&mut rule);
            let score = controlled["win_rate"].as_f64();
            rows.push(JudgedRow { model: model.clone(), score, ..JudgedRow::default() });
        }
    }
    (!rows.is_empty()).then(|| JudgedTable { caption: "at equal length".to_owned(), rule, parts: Vec::new(), rows })
}

fn interval(found: Option<&Map<String, Value>>) -> Option<[f64; 2]> {
    let (_, ends) = found?.iter().find(|(key, _)| key.starts_with("ci95"))?;
    Some([ends.get(0)?.as_f64()?, ends.get(1)?.as_f64()?])
}

impl JudgedTable {
    fn draw(&self, out: &mut String) {
        let caption = if self.caption.is_empty() { String::new() } else { format!("{}: ", escape(&self.caption)) };
        let columns = self.columns();
        let _ = write!(
            out,
            "<div class=\"scroll\" tabindex=\"0\"><table class=\"numbers\"><caption>{caption}{}</caption><thead><tr>\
             <th scope=\"col\">model</th>",
            escape(&self.rule)
        );
        for (name, _) in &columns {
            let _ = write!(out, "<th scope=\"col\">{}</th>", escape(name));
        }
        out.push_str("</tr></thead><tbody>");
        for (i, row) in self.rows.iter().enumerate() {
            let _ = write!(out, "<tr><th scope=\"row\">{}</th>", escape(&row.model));
            for (_, cells) in &columns {
                let _ = write!(out, "<td>{}</td>", cells[i]);
            }
            out.push_str("</tr>");
        }
        out.push_str("</tbody></table></div>");
    }

    /// The headings, each with the cells below it. What no row has is left out, except for counts.
    fn columns(&self) -> Vec<(&str, Vec<String>)> {
        let column = |cell: &dyn Fn(&JudgedRow) -> Option<String>| {
            self.rows.iter().map(|row| cell(row).unwrap_or_else(|| MISSING.to_owned())).collect::<Vec<_>>()
        };
        if !self.parts.is_empty() {
            let part = |(i, name): (usize, _)| (name, column(&|row| row.parts[i].map(number)));
            return self.parts.iter().map(String::as_str).enumerate().map(part).collect();
        }
        let score = |row: &JudgedRow| {
            let interval = row.interval.map(|i| format!("<small>{}</small>", ends(i.map(number))));
            let score = row.score.map_or_else(|| MISSING.to_owned(), number);
            Some(format!("{score}{}", interval.unwrap_or_default()))
        };
        let mut columns = vec![
            ("score", column(&score)),
            ("judged", column(&|row| row.rows.map(|count| count.to_string()))),
            ("no verdict", column(&|row| row.dropped.map(|count| count.to_string()))),
        ];
        if self.rows.iter().any(|row| row.orders.is_some()) {
            let disagree = |orders: Orders| format!("{} of {}", orders.disagree, orders.rows);
            columns.push(("orders disagree", column(&|row| row.orders.map(disagree))));
        }
        if self.rows.iter().any(|row| row.longer.is_some()) {
            columns.push(("characters more", column(&|row| row.longer.map(signed))));
        }
        columns
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_score_is_shown_without_its_rule() {
        let pairs = json!({"rule": "of <pairs>", "judge": {"model": "gpt", "answered_by": {"gpt-4 fp_1": 6}}, "calls": 8,
            "failures": {"empty": 2},
            "position_bias": {"rows": 3, "orders_disagree": 2, "first_shown_won_both": 1, "second_shown_won_both": 1},
            "models": {
            "one": {"win_rate_adjusted": 0.75, "win_rate": 0.5, "ci95_over_questions": [0.5, 1.0], "rows": 4, "dropped": 1,
                "mean_length_difference": -12.0, "win_rate_at_equal_length": {"rule": "of lengths", "win_rate": 61.0}}}});
        let arena = json!({"rule": "of games", "categories": {"hard": {
            "models": {"one": {"score": 41.0, "ci95_over_prompts": [30.0, 52.0], "rows": 9, "games_without_label": 0,
                "position_bias": {"rows": 9, "orders_disagree": 4, "first_shown_won_both": 3}}},
            "style_controlled": {"rule": "of style", "models": {"one": {"score": 39.0}}}}}});
        let single = json!({"rule": "of grades", "calls": 4, "failures": {}, "models": {
            "one": {"score": 6.5, "turn_1": 7.25, "turn_2": null, "categories": {"math": 2.5, "writing": 8.75}},
            "two": {"score": 5.5, "turn_1": 5.0, "turn_2": 6.0, "categories": {"math": null}}}});
        for (results, shown) in [
            (
                pairs,
                vec![
                    "of &lt;pairs&gt;",
                    "0.750",
                    "0.500 to 1",
                    "of lengths",
                    "61.0",
                    "8 calls, 2 of them without a reply (2 empty)",
                    "by gpt",
                    "Answered by 6 gpt-4 fp_1.",
                    "disagree in 2 of 3 rows; in 1 of them the answer shown first won",
                    "characters more</th>",
                    "<td>−12.0</td>",
                ],
            ),
            (
                arena,
                vec![
                    "hard: of games",
                    "41.0",
                    "30.0 to 52.0",
                    "hard: of style",
                    "39.0",
                    "orders disagree</th>",
                    "4 of 9",
                ],
            ),
            (
                single,
                vec![
                    "4 calls, all of them with a reply",
                    "by turn and category: of grades",
                    "turn\u{a0}1</th><th scope=\"col\">turn\u{a0}2</th><th scope=\"col\">math</th><th scope=\"col\">writing</th>",
                    "one</th><td>7.25</td><td>–</td><td>2.50</td><td>8.75</td>",
                    "two</th><td>5.00</td><td>6.00</td><td>–</td><td>–</td>",
                ],
            ),
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
