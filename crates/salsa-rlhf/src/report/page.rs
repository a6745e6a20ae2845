//! The page: head, glance, and the sections in order. Everything is inline; there is no script and no outside resource.

use std::fmt::Write;

use super::html::{Look, escape};
use super::labels::spoken;
use super::number::{ends, estimate, number, percent};
use super::{Contrast, Report, SplitSummary, history, sections};

/// One section: a heading, an explanation beside the picture, the picture.
pub(super) struct Section {
    pub(super) id: String,
    pub(super) heading: String,
    pub(super) width: Width,
    /// Plain English, as paragraphs of HTML.
    pub(super) explanation: String,
    /// The picture; a section without one is left out.
    pub(super) picture: String,
}

/// Where the picture of a section stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// Beside the explanation.
    BesideText,
    /// Below it, over the whole width.
    Full,
}

/// The whole page.
pub(super) fn page(report: &Report) -> String {
    let mut sections = vec![sections::pipeline(report), sections::evaluation(report), sections::landscape(report)];
    for (i, (heading, landscape)) in report.landscapes.iter().enumerate() {
        sections.push(landscape.section(&format!("landscape-{}", i + 1), heading));
    }
    sections.extend([
        history::training(report),
        history::frontier(report),
        sections::samples(report),
        sections::settings(report),
    ]);
    sections.retain(|section| !section.picture.is_empty());
    let mut out = begin(&report.title);
    head(&mut out, report, &sections);
    out.push_str("<main>\n");
    glance(&mut out, report);
    sections.iter().for_each(|section| section.draw(&mut out));
    end(out, &report.summary.version)
}

/// A page of its own for some sections.
pub(super) fn standalone(title: &str, lead: &str, sections: &[Section]) -> String {
    let mut out = begin(title);
    let _ = write!(out, "<header><h1>{}</h1><p class=\"lead\">{}</p></header>\n<main>\n", escape(title), escape(lead));
    sections.iter().for_each(|section| section.draw(&mut out));
    end(out, env!("CARGO_PKG_VERSION"))
}

fn begin(title: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n<style>\n{}</style>\n</head>\n<body>\n",
        escape(title),
        include_str!("style.css")
    )
}

fn end(mut out: String, version: &str) -> String {
    let _ = write!(out, "</main>\n<footer>Written by salsa {}.</footer>\n</body>\n</html>\n", escape(version));
    out
}

impl Section {
    fn draw(&self, out: &mut String) {
        let class = if self.width == Width::Full { " class=\"full\"" } else { "" };
        let _ = write!(
            out,
            "<section id=\"{}\"{class}>\n<div class=\"text\"><h2>{}</h2>{}</div>\n<div class=\"picture\">{}</div>\n</section>\n",
            self.id,
            escape(&self.heading),
            self.explanation,
            self.picture
        );
    }
}

fn head(out: &mut String, report: &Report, sections: &[Section]) {
    let summary = &report.summary;
    let facts = [
        ("recipe", report.recipe.clone()),
        ("seed", summary.seed.to_string()),
        ("kernels", summary.isa.clone()),
        ("threads", if report.threads == 0 { String::new() } else { report.threads.to_string() }),
        ("version", summary.version.clone()),
    ];
    let _ = write!(
        out,
        "<header><h1>{}</h1><p class=\"lead\">{}</p><dl class=\"facts\">",
        escape(&report.title),
        escape(&report.description)
    );
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = write!(out, "<div><dt>{name}</dt><dd>{}</dd></div>", escape(value));
    }
    out.push_str("</dl><nav>");
    for section in sections {
        let _ = write!(out, "<a href=\"#{}\">{}</a>", section.id, escape(&section.heading));
    }
    out.push_str("</nav></header>\n");
}

/// The main split of each arm as a card, and what the intervals allow to say.
fn glance(out: &mut String, report: &Report) {
    let arms = &report.summary.arms;
    let Some(split) = arms.iter().find_map(|(_, splits)| splits.first()).map(|(key, _)| key.as_str()) else { return };
    let baseline = report.summary.baseline().and_then(|name| Some((name, arms.get(name)?.get(split)?)));
    out.push_str("<div class=\"cards\">");
    for (key, splits) in arms.iter() {
        let Some(numbers) = splits.get(split) else { continue };
        card(out, report, key, numbers, baseline.filter(|(name, _)| name != key));
    }
    out.push_str("</div>\n<div class=\"verdict\">");
    for (sentence, warning) in verdicts(report, split) {
        let class = if warning { " class=\"warning\"" } else { "" };
        let _ = write!(out, "<p{class}>{}</p>", escape(&sentence));
    }
    out.push_str("</div>\n");
}

fn card(out: &mut String, report: &Report, key: &str, numbers: &SplitSummary, baseline: Option<(&str, &SplitSummary)>) {
    let (name, value) = headline(numbers);
    let range = if value.has_interval() { ends(value.ci95.map(number)) } else { String::new() };
    let _ = write!(
        out,
        "<div class=\"card {}\"><h3>{}</h3><p class=\"role\">{}</p><p class=\"big\">{}</p><p>{name}</p><p class=\"range\">{range}</p>",
        report.look(key).class(),
        escape(&report.label(key)),
        escape(&report.role(key)),
        number(value.mean)
    );
    match baseline {
        Some((name, baseline)) => {
            let difference = value.mean - headline(baseline).1.mean;
            let sign = if difference >= 0.0 { "+" } else { "" };
            let _ = write!(
                out,
                "<p class=\"delta\">{sign}{} vs {}</p></div>",
                number(difference),
                escape(&spoken(name)).replace(" ", "\u{a0}")
            );
        }
        None => out.push_str("<p class=\"delta\">the starting point</p></div>"),
    }
}

/// Gold reward where there is one, else the proxy score.
pub(super) fn headline(numbers: &SplitSummary) -> (&'static str, super::Estimate) {
    numbers.gold_reward.map_or(("proxy score", numbers.proxy_score), |gold| ("gold reward", gold))
}

/// A split as people call it.
pub(super) fn split_name(key: &str) -> String {
    if key == "ood" { "out of distribution".to_owned() } else { key.to_owned() }
}

/// Sentences about the trained arms, and whether each is a warning.
fn verdicts(report: &Report, split: &str) -> Vec<(String, bool)> {
    let mut sentences = Vec::new();
    let on = |key: &str| report.summary.arms.get(key).and_then(|splits| splits.get(split));
    let baseline = report.summary.baseline();
    for run in &report.runs {
        let (Some(arm), Some(name)) = (on(&run.arm), baseline.filter(|name| *name != run.arm)) else { continue };
        let Some(base) = on(name) else { continue };
        let (label, against) = (report.label(&run.arm), report.label(name));
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
        sentences.push((format!("{label} ends with a {name} of {}{verdict}.", estimate(&value, number)), false));
        if arm.empty_rate > 0.05 && arm.empty_rate > 2.0 * base.empty_rate {
            let share = percent(arm.empty_rate);
            sentences.push((
                format!("{label} answers nothing at all in {share} of the cases: with a strong KL penalty, silence is the cheapest answer. A smaller beta helps."),
                true,
            ));
        } else if arm.length_mean < 0.5 * base.length_mean {
            sentences.push((
                format!("{label}'s responses are less than half as long as {against}'s: look at the samples before trusting its score."),
                true,
            ));
        }
    }
    for comparison in report.summary.comparisons.iter().filter(|c| c.split == split) {
        let (what, format): (_, fn(f64) -> String) = match comparison.metric {
            Contrast::WinRate => ("win rate", percent),
            Contrast::GoldDifference => ("difference of gold reward", number),
            Contrast::ProxyDifference => ("difference of proxy score", number),
        };
        let (arm, versus) = (report.label(&comparison.arm), report.label(&comparison.versus));
        let draw = comparison.metric.draw();
        let verdict = match comparison.estimate {
            e if e.is_above(draw) => format!("{arm} is better"),
            e if e.is_below(draw) => format!("{versus} is better"),
            _ => "this run cannot tell them apart".to_owned(),
        };
        let value = estimate(&comparison.estimate, format);
        sentences.push((format!("{arm} against {versus}, {what}: {value}; {verdict}."), false));
    }
    sentences
}

impl Report {
    /// The arms of the page: those of the summary, then those that only have a run.
    pub(super) fn arm_keys(&self) -> Vec<&str> {
        let all = self.summary.arms.iter().map(|(key, _)| key.as_str()).chain(self.runs.iter().map(|r| r.arm.as_str()));
        let mut keys = Vec::new();
        for key in all {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys
    }

    /// The arm's name for people.
    pub(super) fn label(&self, key: &str) -> String {
        self.arms.iter().find(|arm| arm.key == key).map_or(key, |arm| &arm.label).to_owned()
    }

    /// The arm in a few words.
    fn role(&self, key: &str) -> String {
        self.arms.iter().find(|arm| arm.key == key).map_or("", |arm| &arm.role).to_owned()
    }

    /// The arm's colour and shape.
    pub(super) fn look(&self, key: &str) -> Look {
        Look::of(key, self.arm_keys().iter().position(|&k| k == key).unwrap_or(0))
    }
}
