//! The top of the page: a card for each arm, and the conclusions that the intervals support, split by split. Every
//! split of the evaluation is shown, independently of its position.

use std::fmt::Write;

use super::columns::splits;
use super::html::escape;
use super::labels::{label, spoken};
use super::number::{ends, estimate, number, percent, signed};
use super::page::{headline, split_name};
use super::{Comparison, Ordered, Report, SplitSummary};

/// Writes the cards, then the sentences.
pub(super) fn draw(out: &mut String, report: &Report) {
    let splits = splits(&report.summary);
    if splits.is_empty() {
        return;
    }
    out.push_str("<div class=\"cards\">");
    for (key, by_split) in report.summary.arms.iter().filter(|(_, by_split)| !by_split.is_empty()) {
        card(out, report, key, by_split);
    }
    out.push_str("</div>\n<div class=\"verdict\">");
    for &split in &splits {
        let sentences = sentences(report, split);
        if sentences.is_empty() && report.summary.comparisons.iter().all(|c| c.split != split) {
            continue;
        }
        let count = report.summary.prompts.get(split).map(|count| format!(" <small>{count}</small>"));
        let _ = write!(out, "<h3>{}{}</h3>", escape(&label(&split_name(split))), count.unwrap_or_default());
        for (sentence, warning) in sentences {
            let class = if warning { " class=\"warning\"" } else { "" };
            let _ = write!(out, "<p{class}>{}</p>", escape(&sentence));
        }
    }
    if !report.summary.comparisons.is_empty() {
        let _ = write!(out, "<p class=\"hint\">{SCOPE}</p>");
    }
    out.push_str("</div>\n");
}

/// What the intervals of one evaluation cover.
const SCOPE: &str = "Each arm was trained once; the intervals are over prompts. They say how these models compare, not \
    how another seed of the training would turn out: <code>salsa study</code> repeats a recipe over seeds.";

/// One arm: its headline number on every split, each with the difference from the baseline.
fn card(out: &mut String, report: &Report, key: &str, by_split: &Ordered<SplitSummary>) {
    let baseline = report.summary.baseline().filter(|name| *name != key);
    let _ = write!(
        out,
        "<div class=\"card {}\"><h3>{}</h3><p class=\"role\">{}</p>",
        report.look(key).class(),
        escape(&report.label(key)),
        escape(&report.role(key))
    );
    for (split, numbers) in by_split.iter() {
        let (name, value) = headline(numbers);
        let range = if value.has_interval() { ends(value.ci95.map(number)) } else { String::new() };
        let _ = write!(
            out,
            "<p class=\"big\">{}</p><p>{name}, {}</p><p class=\"range\">{range}</p>",
            number(value.mean),
            escape(&split_name(split))
        );
        let against = baseline.and_then(|name| Some((name, report.summary.arms.get(name)?.get(split)?)));
        if let Some((name, other)) = against {
            let difference = value.mean - headline(other).1.mean;
            let name = escape(&spoken(name)).replace(' ', "\u{a0}");
            let _ = write!(out, "<p class=\"delta\">{} vs {name}</p>", signed(difference));
        }
    }
    if baseline.is_none() && report.summary.baseline().is_some() {
        out.push_str("<p class=\"delta\">the baseline</p>");
    }
    out.push_str("</div>");
}

/// Sentences about one split, and whether each is a warning.
fn sentences(report: &Report, split: &str) -> Vec<(String, bool)> {
    let on = |key: &str| report.summary.arms.get(key).and_then(|splits| splits.get(split));
    let baseline = report.summary.baseline().and_then(|name| Some((name, on(name)?)));
    let mut sentences = Vec::new();
    for run in &report.runs {
        let Some((name, base)) = baseline.filter(|(name, _)| *name != run.arm) else { continue };
        let Some(arm) = on(&run.arm) else { continue };
        sentences.push((against_baseline(report, &run.arm, arm, name, base), false));
        sentences.extend(warning(report, &run.arm, arm, name, base).map(|warning| (warning, true)));
    }
    let here = report.summary.comparisons.iter().filter(|comparison| comparison.split == split);
    sentences.extend(here.map(|comparison| (comparison_in_words(report, comparison), false)));
    sentences
}

fn comparison_in_words(report: &Report, comparison: &Comparison) -> String {
    let (arm, versus) = (report.label(&comparison.arm), report.label(&comparison.versus));
    let value = estimate(&comparison.estimate, comparison.metric.format());
    let higher = comparison.higher().map(|arm| format!("{} is higher on these prompts", report.label(arm)));
    let verdict = higher.unwrap_or_else(|| "these prompts cannot tell them apart".to_owned());
    let distance = distances(report, comparison).unwrap_or_default();
    format!("{arm} against {versus}, {}: {value}; {verdict}{distance}.", comparison.metric.words())
}

/// How far the two arms went for it: their KLs to the report's anchor.
fn distances(report: &Report, comparison: &Comparison) -> Option<String> {
    let anchor = report.summary.anchor()?;
    let kl = |arm: &str| report.summary.arms.get(arm)?.get(&comparison.split)?.versus.kls.get(anchor);
    let (arm, versus) = (kl(&comparison.arm)?, kl(&comparison.versus)?);
    Some(format!(" (KL to {}: {} against {})", spoken(anchor), number(arm.mean), number(versus.mean)))
}

fn against_baseline(report: &Report, key: &str, arm: &SplitSummary, name: &str, base: &SplitSummary) -> String {
    let (label, against) = (report.label(key), report.label(name));
    let ((name, value), (_, start)) = (headline(arm), headline(base));
    let verdict = if value.is_above(start.ci95[1]) {
        format!(", above {against}: the 95 % intervals do not overlap")
    } else if value.is_below(start.ci95[0]) {
        format!(", below {against}: the 95 % intervals do not overlap")
    } else if value.has_interval() && start.has_interval() {
        format!(", not clearly different from {against}: the 95 % intervals overlap")
    } else {
        format!("; without an interval it cannot be told from {against}")
    };
    format!("{label} ends with a {name} of {}{verdict}.", estimate(&value, number))
}

/// A sign of collapse: empty or much shorter responses.
fn warning(report: &Report, key: &str, arm: &SplitSummary, name: &str, base: &SplitSummary) -> Option<String> {
    let (label, against) = (report.label(key), report.label(name));
    if arm.empty_rate > 0.05 && arm.empty_rate > 2.0 * base.empty_rate {
        let share = percent(arm.empty_rate);
        return Some(format!(
            "{label} answers nothing at all in {share} of the cases: with a strong KL penalty, silence is the cheapest \
             answer. A smaller kl_coef helps."
        ));
    }
    (arm.length_mean < 0.5 * base.length_mean).then(|| {
        format!(
            "{label}’s responses are less than half as long as {against}’s: look at the samples before trusting its score."
        )
    })
}
