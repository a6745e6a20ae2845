//! The page of a study: the claims first, then the supporting results.

use std::fmt::Write;

use super::super::html::{Fill, escape};
use super::super::labels::spoken;
use super::super::number::{MISSING, ends, number, p_value, percent, signed};
use super::super::page::{Section, Width, split_name, with_facts};
use super::{ArmNumbers, Claim, OverSeeds, Seconds, StudyArm, StudyReport, charts, shown, variant};
use crate::progress::human_time;

/// Renders the whole page.
pub(super) fn page(report: &StudyReport, seconds: &Seconds) -> String {
    let mut sections = vec![claims(report), arms(report), frontiers(report)];
    sections
        .extend(report.factors.iter().filter(|factor| factor.role != "seed").map(|factor| sweep(report, &factor.name)));
    sections.extend([landscape(report), distances(report), costs(report, seconds), cells(report)]);
    sections.retain(|section| !section.picture.is_empty());
    let seeds = report.factors.iter().filter(|factor| factor.role == "seed");
    let seeds =
        seeds.map(|factor| format!("{} values of {}", factor.values.len(), spoken(&factor.name))).collect::<Vec<_>>();
    let total = report.cells.len() + report.missing.len();
    let facts = [
        ("recipe", report.recipe.clone()),
        (
            "cells",
            if report.missing.is_empty() { total.to_string() } else { format!("{} of {total}", report.cells.len()) },
        ),
        ("repeated", seeds.join(" × ")),
        ("kernels", report.isa.clone()),
        ("version", report.version.clone()),
    ];
    with_facts(&report.title, &report.description, &facts, &sections, &report.version)
}

fn claims(report: &StudyReport) -> Section {
    let mut picture = String::new();
    if !report.claims.is_empty() {
        picture += "<div class=\"scroll\" tabindex=\"0\"><table class=\"numbers claims\"><caption>Small: 95 % interval over seeds; \
            seeds above and below 0; p of a paired t test, in brackets after Holm’s correction for all claims.</caption><thead><tr>\
            <th scope=\"col\">claim</th><th scope=\"col\">verdict</th><th scope=\"col\">difference</th>\
            <th scope=\"col\">seeds</th><th scope=\"col\">p</th></tr></thead><tbody>";
        report.claims.iter().for_each(|claim| picture += &claim_row(claim));
        picture += "</tbody></table></div>";
    }
    let margin = if report.margin > 0.0 { number(report.margin) } else { "0".to_owned() };
    Section {
        id: "claims".to_owned(),
        heading: "Claims".to_owned(),
        width: Width::Full,
        explanation: format!(
            "<p>A claim is about the next seed, so the seed is the unit: every seed counts as one number, and its interval \
            is Student’s t on those numbers. <strong>Supported</strong>: the whole interval is above 0. <strong>Not \
            supported</strong>: it does not reach above {margin}. <strong>Cannot tell</strong>: it holds both, or there are \
            fewer than three seeds; then the table says how many it would take to find a difference of that size four times \
            in five.</p>"
        ),
        picture,
    }
}

fn claim_row(claim: &Claim) -> String {
    let (mut value, mut seeds) = (MISSING.to_owned(), MISSING.to_owned());
    if let Some(difference) = &claim.difference {
        value = signed(difference.mean);
        if let Some(ci95) = difference.ci95 {
            let _ = write!(value, "<small>{}</small>", ends(ci95.map(signed)));
        }
        seeds = difference.seeds.len().to_string();
    }
    if let Some(signs) = &claim.signs {
        let _ = write!(seeds, "<small>{} above, {} below</small>", signs.above, signs.below);
    }
    if !claim.excluded.is_empty() {
        let _ = write!(seeds, "<small>without {}</small>", escape(&claim.excluded.join(", ")));
    }
    let corrected = claim.p_holm.map_or(String::new(), |p| format!("<small>({})</small>", p_value(p)));
    let p = claim.p.map_or(MISSING.to_owned(), p_value) + &corrected;
    let class = claim.verdict.replace(' ', "-");
    let more = match (claim.verdict.as_str(), claim.seeds_needed) {
        ("cannot tell", Some(needed)) => format!("<small>would take {needed} seeds</small>"),
        _ => String::new(),
    };
    format!(
        "<tr><th scope=\"row\">{}<small class=\"words\">{}</small></th>\
         <td><span class=\"conclusion {class}\">{}</span>{more}</td><td>{value}</td><td>{seeds}</td><td>{p}</td></tr>",
        escape(&claim.claim),
        escape(&claim.measured),
        escape(&claim.verdict)
    )
}

fn arms(report: &StudyReport) -> Section {
    let mut picture = String::new();
    if !report.arms.is_empty() {
        picture += "<div class=\"scroll\" tabindex=\"0\"><table class=\"numbers\"><caption>Small: 95 % interval over seeds.</caption>\
            <thead><tr><th scope=\"col\">arm</th>";
        for heading in headings(report) {
            let _ = write!(picture, "<th scope=\"col\">{}</th>", escape(&heading));
        }
        picture += "</tr></thead>";
        for set in &report.sets {
            let span = headings(report).len() + 1;
            let name = escape(&split_name(set));
            let _ = write!(
                picture,
                "<tbody><tr class=\"split\"><th scope=\"rowgroup\" colspan=\"{span}\">{name}</th></tr>"
            );
            report.before.iter().chain(&report.arms).for_each(|arm| picture += &arm_row(report, arm, set));
            picture += "</tbody>";
        }
        picture += "</table></div>";
    }
    let chosen = match &report.validation {
        Some(on) => format!(
            "<p>Each arm stands at the setting with the highest mean {} on the set <em>{}</em>, chosen across seeds. The sets \
            below were not looked at for the choice.</p>",
            report.measured(),
            escape(on)
        ),
        None => String::new(),
    };
    Section {
        id: "arms".to_owned(),
        heading: "Arms".to_owned(),
        width: Width::Full,
        explanation: format!(
            "{chosen}<p>Models before RL are above, arms below. Intervals are of each arm by itself; worlds differ more than \
            arms do, so two arms whose intervals overlap may still differ in every seed: the claims are paired, these are not.</p>"
        ),
        picture,
    }
}

fn headings(report: &StudyReport) -> Vec<String> {
    let mut headings = vec![report.measured(), "proxy score".to_owned()];
    headings.extend(report.anchor.as_ref().map(|anchor| format!("KL to {}", spoken(anchor))));
    headings.extend(["length".to_owned(), "empty".to_owned()]);
    if report.arms.iter().any(|arm| !arm.chosen.is_empty()) {
        headings.push("chosen".to_owned());
    }
    headings
}

fn arm_row(report: &StudyReport, arm: &StudyArm, set: &str) -> String {
    let Some(numbers) = arm.sets.get(set) else { return String::new() };
    let mark = charts::look(report, &arm.arm).mark(7.0, 7.0, 4.5, Fill::Solid, "");
    let mut row = format!(
        "<tr><th scope=\"row\"><svg viewBox=\"0 0 14 14\" width=\"14\" height=\"14\" aria-hidden=\"true\">{mark}</svg>{}</th>",
        escape(&variant(&arm.arm, &arm.at))
    );
    let mut cell = |value: Option<&OverSeeds>, format: fn(f64) -> String| {
        let text = value.map_or(MISSING.to_owned(), |value| {
            let interval =
                value.ci95.map_or(String::new(), |ci95| format!("<small>{}</small>", ends(ci95.map(format))));
            format(value.mean) + &interval
        });
        let _ = write!(row, "<td>{text}</td>");
    };
    cell(Some(&numbers.reward), number);
    cell(Some(&numbers.proxy_score), number);
    if report.anchor.is_some() {
        cell(numbers.kl.as_ref(), number);
    }
    cell(Some(&numbers.length), number);
    cell(Some(&numbers.empty), percent);
    if report.arms.iter().any(|arm| !arm.chosen.is_empty()) {
        let chosen = arm.chosen.iter().map(|(factor, value)| format!("{} {}", spoken(factor), shown(value)));
        let _ = write!(row, "<td>{}</td>", escape(&chosen.collect::<Vec<_>>().join(", ")));
    }
    row + "</tr>"
}

fn frontiers(report: &StudyReport) -> Section {
    let drawn: String = report.sets.iter().map(|set| charts::frontier(report, set)).collect();
    let along = report.frontiers.first().map_or(String::new(), |frontier| spoken(&frontier.along));
    Section {
        id: "frontier".to_owned(),
        heading: "Reward against KL".to_owned(),
        width: Width::BesideText,
        explanation: format!(
            "<p>A policy may earn more because it is trained better, or only because it was allowed to move further. So \
            arms are compared at <em>equal KL</em> to one model, the same for all.</p><p>Each mark is one value of {}: its \
            means over seeds. The line is the mean of the seeds’ own curves, drawn only over the KL that every seed reaches; \
            the band around it is its 95 % interval at each KL.</p><p>Higher at the same KL is better.</p>",
            escape(&along)
        ),
        picture: with_legend(report, drawn),
    }
}

/// The number of an arm that a chart shows.
type Pick = fn(&ArmNumbers) -> Option<&OverSeeds>;

fn sweep(report: &StudyReport, factor: &str) -> Section {
    let mut drawn = String::new();
    let measured = report.measured();
    let has = |set: &&String| report.sweeps.iter().any(|sweep| sweep.factor == factor && sweep.set == **set);
    let all = report.validation.iter().chain(&report.sets).filter(has);
    for set in all {
        let title = format!("{measured}, {}", split_name(set));
        drawn += &charts::sweep(report, (factor, set), &title, |numbers| Some(&numbers.reward));
    }
    for set in report.sets.iter().filter(has) {
        let on = split_name(set);
        let kl: Pick = |numbers| numbers.kl.as_ref();
        let length: Pick = |numbers| Some(&numbers.length);
        drawn += &charts::sweep(report, (factor, set), &format!("KL, {on}"), kl);
        drawn += &charts::sweep(report, (factor, set), &format!("response length, {on}"), length);
    }
    let silence = if factor.contains("kl") || factor.contains("beta") {
        "<p>Watch the <strong>length</strong>: a short answer pays little KL, so a strong penalty can teach silence instead of \
        restraint.</p>"
    } else {
        ""
    };
    Section {
        id: format!("sweep-{factor}"),
        heading: format!("Sweep: {}", spoken(factor)),
        width: Width::BesideText,
        explanation: format!(
            "<p>Each arm at every value of {}, means over seeds with 95 % intervals; other factors stand at what the arm’s \
            validation chose.</p>{silence}",
            escape(&spoken(factor))
        ),
        picture: with_legend(report, drawn),
    }
}

fn landscape(report: &StudyReport) -> Section {
    let drawn = charts::landscape(report);
    Section {
        id: "landscape".to_owned(),
        heading: "Between the models before RL".to_owned(),
        width: Width::BesideText,
        explanation:
            "<p>The reward of models on the straight line between two models before RL, without any further training, \
            averaged over seeds. Where the middle stands above both ends, averaging weights helps by itself.</p>"
                .to_owned(),
        picture: if drawn.is_empty() { drawn } else { format!("<div class=\"charts\">{drawn}</div>") },
    }
}

fn distances(report: &StudyReport) -> Section {
    let drawn = charts::distances(report);
    Section {
        id: "distance".to_owned(),
        heading: "Gain against the distance of the ingredients".to_owned(),
        width: Width::BesideText,
        explanation: "<p>One mark for each seed: how far the soup’s ingredients lie apart (Euclidean, all weights), and by how \
            much the first arm of the first comparison is ahead of the second. A soup of equal models is that model, so without \
            distance there is nothing to gain.</p>"
            .to_owned(),
        picture: if drawn.is_empty() { drawn } else { format!("<div class=\"charts\">{drawn}</div>") },
    }
}

fn costs(report: &StudyReport, seconds: &Seconds) -> Section {
    let mut picture = String::new();
    if !report.costs.is_empty() {
        picture += "<div class=\"scroll\" tabindex=\"0\"><table class=\"numbers\"><thead><tr><th scope=\"col\">arm</th><th scope=\"col\">\
            stages</th><th scope=\"col\">tokens of SFT</th><th scope=\"col\">responses of RL</th><th scope=\"col\">time</th></tr>\
            </thead><tbody>";
        for cost in &report.costs {
            let stages: Vec<String> = cost.stages.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            let count = |count: Option<u64>| count.map_or(MISSING.to_owned(), |count| number(count as f64));
            let time = seconds.get(&cost.arm);
            let _ = write!(
                picture,
                "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(&variant(&cost.arm, &cost.at)),
                escape(&stages.join(", ")),
                count(cost.sft_tokens),
                count(cost.episodes),
                time.map_or(MISSING.to_owned(), |seconds| human_time(*seconds))
            );
        }
        picture += "</tbody></table></div>";
    }
    Section {
        id: "costs".to_owned(),
        heading: "Cost".to_owned(),
        width: Width::Full,
        explanation:
            "<p>What it takes to train each arm once from nothing, evaluation apart. An arm that needs more SFT models \
            pays for them; a comparison at equal compute gives the cheaper arm the difference, in RL or in SFT.</p>"
                .to_owned(),
        picture,
    }
}

fn cells(report: &StudyReport) -> Section {
    let mut picture = String::new();
    if !report.cells.is_empty() {
        let _ = write!(
            picture,
            "<details><summary>All {} cells</summary><div class=\"scroll\" tabindex=\"0\"><table class=\"numbers\"><thead><tr>\
             <th scope=\"col\">run</th>",
            report.cells.len()
        );
        let sets: Vec<&String> = report.validation.iter().chain(&report.sets).collect();
        for set in &sets {
            let _ = write!(picture, "<th scope=\"col\">{}, {}</th>", escape(&report.measured()), escape(set));
        }
        picture += "</tr></thead><tbody>";
        for cell in &report.cells {
            let page = escape(&format!("{}/report.html", cell.run));
            let name = escape(cell.run.trim_start_matches("cells/"));
            let _ = write!(picture, "<tr><th scope=\"row\"><a href=\"{page}\">{name}</a></th>");
            for set in &sets {
                let reward = cell.sets.get(set).map_or(MISSING.to_owned(), |numbers| number(numbers.reward));
                let _ = write!(picture, "<td>{reward}</td>");
            }
            picture += "</tr>";
        }
        picture += "</tbody></table></div></details>";
    }
    if !report.missing.is_empty() {
        let names: String = report.missing.iter().map(|name| format!("<li>{}</li>", escape(name))).collect();
        let _ = write!(
            picture,
            "<details><summary>{} cells are missing</summary><ul>{names}</ul></details>",
            report.missing.len()
        );
    }
    Section {
        id: "cells".to_owned(),
        heading: "Cells".to_owned(),
        width: Width::Full,
        explanation: "<p>One arm at one value of every factor. Each is a run directory with a report of its own.</p>"
            .to_owned(),
        picture,
    }
}

fn with_legend(report: &StudyReport, drawn: String) -> String {
    if drawn.is_empty() { drawn } else { format!("{}<div class=\"charts\">{drawn}</div>", charts::arms(report)) }
}
