//! The page: head, summary, and the sections in order. Everything is inline; there are no scripts or external
//! resources.

use std::fmt::Write;

use super::html::{Look, escape};
use super::{Estimate, Report, SplitSummary, glance, history, profile, sections};

/// A section: a heading, an explanation, and a figure.
pub(super) struct Section {
    pub(super) id: String,
    pub(super) heading: String,
    pub(super) width: Width,
    /// Paragraphs of HTML.
    pub(super) explanation: String,
    /// The figure; a section without one is left out.
    pub(super) picture: String,
}

/// Position of the figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// Beside the explanation.
    BesideText,
    /// Below it, over the whole width.
    Full,
}

/// Renders the whole page.
pub(super) fn page(report: &Report) -> String {
    let mut sections = vec![sections::pipeline(report), sections::evaluation(report), profile::section(report)];
    for (i, (heading, landscape)) in report.landscapes.iter().enumerate() {
        sections.push(landscape.section(&format!("landscape-{}", i + 1), heading));
    }
    for (i, judgments) in report.judgments.iter().enumerate() {
        sections.push(judgments.section(&format!("judgments-{}", i + 1)));
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
    glance::draw(&mut out, report);
    sections.iter().for_each(|section| section.draw(&mut out));
    end(out, &report.summary.version)
}

/// Renders a page that consists of the given sections.
pub(super) fn standalone(title: &str, lead: &str, sections: &[Section]) -> String {
    let mut out = begin(title);
    let _ = write!(out, "<header><h1>{}</h1><p class=\"lead\">{}</p></header>\n<main>\n", escape(title), escape(lead));
    sections.iter().for_each(|section| section.draw(&mut out));
    end(out, env!("CARGO_PKG_VERSION"))
}

/// Renders a page with a heading, facts and links, followed by sections.
pub(super) fn with_facts(
    title: &str,
    lead: &str,
    facts: &[(&str, String)],
    sections: &[Section],
    version: &str,
) -> String {
    let mut out = begin(title);
    begin_header(&mut out, (title, lead), facts, sections);
    out.push_str("<main>\n");
    sections.iter().for_each(|section| section.draw(&mut out));
    end(out, version)
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
    begin_header(out, (&report.title, &report.description), &facts, sections);
}

/// Writes the heading, some facts, and a link to each section.
fn begin_header(out: &mut String, (title, lead): (&str, &str), facts: &[(&str, String)], sections: &[Section]) {
    let _ = write!(out, "<header><h1>{}</h1><p class=\"lead\">{}</p><dl class=\"facts\">", escape(title), escape(lead));
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = write!(out, "<div><dt>{name}</dt><dd>{}</dd></div>", escape(value));
    }
    out.push_str("</dl><nav>");
    for section in sections {
        let _ = write!(out, "<a href=\"#{}\">{}</a>", section.id, escape(&section.heading));
    }
    out.push_str("</nav></header>\n");
}

/// The gold reward if there is one, else the proxy score.
pub(super) fn headline(numbers: &SplitSummary) -> (&'static str, Estimate) {
    numbers.gold_reward.map_or(("proxy score", numbers.proxy_score), |gold| ("gold reward", gold))
}

/// The readable name of a split.
pub(super) fn split_name(key: &str) -> String {
    if key == "ood" { "out of distribution".to_owned() } else { key.to_owned() }
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

    /// The readable name of an arm.
    pub(super) fn label(&self, key: &str) -> String {
        self.arms.iter().find(|arm| arm.key == key).map_or(key, |arm| &arm.label).to_owned()
    }

    /// The short description of an arm.
    pub(super) fn role(&self, key: &str) -> String {
        self.arms.iter().find(|arm| arm.key == key).map_or("", |arm| &arm.role).to_owned()
    }

    /// The arm's colour and shape.
    pub(super) fn look(&self, key: &str) -> Look {
        Look::of(key, self.arm_keys().iter().position(|&k| k == key).unwrap_or(0))
    }
}
