//! The sections of the page: the content of each figure, and how to read it.

use std::fmt::Write;

use super::columns::{Cell, columns, splits};
use super::forest::{Forest, Group};
use super::html::{Fill, Look, escape, legend};
use super::labels::spoken;
use super::number::{ends, number, percent};
use super::page::{Section, Width, split_name};
use super::{Estimate, Report, Sample, SplitSummary};
use crate::progress::human_time;

/// Number of visible samples; the others are collapsed.
const OPEN_SAMPLES: usize = 4;

pub(super) fn pipeline(report: &Report) -> Section {
    Section {
        id: "pipeline".to_owned(),
        heading: "Pipeline".to_owned(),
        width: Width::BesideText,
        explanation: "<p>RLHF trains a policy to please a reward model, and a <em>KL penalty</em> holds the policy close to a \
            frozen reference so that it does not forget how to speak or learn to fool the reward model. Plain PPO uses the SFT \
            model it started from as the reference.</p>\
            <p>SALSA (<cite>arXiv 2411.01798</cite>) changes only the reference: it is a <em>model soup</em>, the weight average \
            of SFT models trained independently from one base. The paper’s reasoning: such models lie in one basin of low \
            loss, their average already scores higher than either, and a policy tied to it may explore a wider and better \
            region.</p>\
            <p>Read from top to bottom. Dashed arrows are the references: they are all that sets the two arms apart.</p>"
            .to_owned(),
        picture: match report.pipeline.draw() {
            svg if svg.is_empty() => svg,
            svg => format!("<div class=\"scroll\" tabindex=\"0\">{svg}</div>"),
        },
    }
}

pub(super) fn evaluation(report: &Report) -> Section {
    let splits = splits(&report.summary);
    let fill = |split: &str| if splits.first() == Some(&split) { Fill::Solid } else { Fill::Hollow };
    let forest = |title: &str, format: fn(f64) -> String, line, pick: &dyn Fn(&SplitSummary) -> Option<Estimate>| {
        let group = |(key, by_split): &(String, super::Ordered<SplitSummary>)| {
            let row = |(split, s): &(String, SplitSummary)| Some((split_name(split), fill(split), pick(s)?));
            let rows: Vec<_> = by_split.iter().filter_map(row).collect();
            (!rows.is_empty()).then(|| Group { name: report.label(key), look: report.look(key), rows })
        };
        let groups: Vec<Group> = report.summary.arms.iter().filter_map(group).collect();
        if groups.is_empty() { String::new() } else { Forest { title: title.to_owned(), format, line, groups }.draw() }
    };
    let mut picture = String::new();
    if !splits.is_empty() {
        let entries: Vec<_> = splits.iter().map(|&s| (Look::of("sft_a", 0), fill(s), split_name(s))).collect();
        picture += &legend(&entries);
        picture += "<div class=\"charts\">";
        picture += &forest("Gold reward", number, None, &|s| s.gold_reward);
        picture += &forest("Proxy score", number, None, &|s| Some(s.proxy_score));
        if let Some(name) = report.summary.baseline() {
            let title = format!("Win rate against {}", spoken(name));
            picture += &forest(&title, percent, Some(0.5), &|s| s.versus.win_rates.get(name).copied());
        }
        if let Some(name) = report.summary.anchor() {
            let title = format!("KL to {} (nats per response)", spoken(name));
            picture += &forest(&title, number, None, &|s| s.versus.kls.get(name).copied());
        }
        picture += "</div>";
        picture += &evaluation_table(report, &splits);
    }
    Section {
        id: "evaluation".to_owned(),
        heading: "Evaluation".to_owned(),
        width: Width::BesideText,
        explanation: evaluation_in_words(report.summary.has_gold()),
        picture,
    }
}

fn evaluation_in_words(has_gold: bool) -> String {
    let rewards = if has_gold {
        "<p><strong>Gold reward</strong> is the true goal, known here because the data are made. <strong>Proxy score</strong> \
        is the reward model’s opinion, which is all that training sees. A proxy that rises while gold does not means that the \
        policy exploits the reward model’s mistakes.</p>"
    } else {
        "<p><strong>Proxy score</strong> is the reward model’s opinion, and the reward model is what training optimises: a \
        higher score need not be a better answer. Read the samples, and have another reward model or a judge look at them.</p>"
    };
    format!(
        "<p>Every arm answers the same held-out prompts. The mark is the mean, the bar its 95 % interval: two arms \
        whose bars do not overlap differ by more than chance. Where bars overlap, only a comparison prompt by prompt can \
        tell, as at the top of the page.</p>{rewards}\
        <p><strong>Win rate</strong> compares answers to the same prompt with the baseline’s, ties counting half; at the \
        50 % line neither is better. <strong>Empty</strong> and <strong>length</strong> expose a known trap: a short answer \
        pays little KL penalty, so a high penalty can teach silence.</p>"
    )
}

fn evaluation_table(report: &Report, splits: &[&str]) -> String {
    let columns = columns(&report.summary);
    let mut out = String::from(
        "<div class=\"scroll\" tabindex=\"0\"><table class=\"numbers\"><caption>Small: 95 % interval.</caption><thead><tr><th scope=\"col\">arm</th>",
    );
    for column in &columns {
        let _ = write!(out, "<th scope=\"col\">{}</th>", escape(&column.heading).replace("SFT A", "SFT\u{a0}A"));
    }
    out.push_str("</tr></thead>");
    for &split in splits {
        let _ = write!(
            out,
            "<tbody><tr class=\"split\"><th scope=\"rowgroup\" colspan=\"{}\">{}</th></tr>",
            columns.len() + 1,
            escape(&split_name(split))
        );
        for (key, by_split) in report.summary.arms.iter() {
            let Some(numbers) = by_split.get(split) else { continue };
            let mark = report.look(key).mark(7.0, 7.0, 4.5, Fill::Solid, "");
            let _ = write!(
                out,
                "<tr><th scope=\"row\"><svg viewBox=\"0 0 14 14\" width=\"14\" height=\"14\" aria-hidden=\"true\">{mark}</svg>{}</th>",
                escape(&report.label(key))
            );
            for column in &columns {
                let Cell { value, interval } = column.cell(numbers);
                let interval = interval.map_or(String::new(), |i| format!("<small>{}</small>", ends(i)));
                let _ = write!(out, "<td>{value}{interval}</td>");
            }
            out.push_str("</tr>");
        }
        out.push_str("</tbody>");
    }
    out + "</table></div>"
}

pub(super) fn samples(report: &Report) -> Section {
    let mut picture: String = report.samples.iter().take(OPEN_SAMPLES).map(|s| sample(report, s)).collect();
    if let Some(rest) = report.samples.get(OPEN_SAMPLES..).filter(|rest| !rest.is_empty()) {
        let more: String = rest.iter().map(|s| sample(report, s)).collect();
        let _ = write!(picture, "<details><summary>More prompts ({})</summary>{more}</details>", rest.len());
    }
    Section {
        id: "samples".to_owned(),
        heading: "Sample responses".to_owned(),
        width: Width::Full,
        explanation: format!(
            "<p>The same prompts, answered by every arm. Numbers summarise; reading shows what was learned.</p>\
             <p>Under each answer: {}. Look for answers that score well and read badly, which is the reward model’s blind spot, \
             and for answers that grow alike.</p>",
            if report.summary.has_gold() { "its gold reward and its proxy score" } else { "its proxy score" }
        ),
        picture,
    }
}

fn sample(report: &Report, sample: &Sample) -> String {
    let mut out = format!(
        "<article class=\"sample\"><p class=\"prompt\"><span>{}</span>{}</p><div class=\"answers\">",
        escape(&split_name(&sample.split)),
        escape(&sample.prompt)
    );
    for answer in &sample.answers {
        let text = if answer.text.trim().is_empty() { "<em>(empty)</em>".to_owned() } else { escape(&answer.text) };
        let gold = answer.gold.map_or(String::new(), |gold| format!("<span>gold <b>{}</b></span>", number(gold)));
        let score = answer.score.map_or(String::new(), |score| format!("<span>proxy <b>{}</b></span>", number(score)));
        let _ = write!(
            out,
            "<div class=\"answer {}\"><h4>{}</h4><p class=\"response\">{text}</p><p class=\"scores\">{gold}{score}</p></div>",
            report.look(&answer.arm).class(),
            escape(&report.label(&answer.arm))
        );
    }
    out + "</div></article>"
}

pub(super) fn settings(report: &Report) -> Section {
    let mut picture = String::new();
    let seconds = &report.summary.seconds;
    let longest = seconds.iter().map(|(_, s)| *s).filter(|s| s.is_finite()).fold(0.0, f64::max);
    if longest > 0.0 {
        let total: f64 = seconds.iter().map(|(_, s)| *s).filter(|s| s.is_finite()).sum();
        let _ = write!(picture, "<h3>Time: {}</h3><dl class=\"times\">", human_time(total));
        for (stage, time) in seconds.iter() {
            let share = if time.is_finite() { (time / longest * 100.0).clamp(0.0, 100.0) } else { 0.0 };
            let _ = write!(
                picture,
                "<dt>{}</dt><dd><span class=\"bar\"><i style=\"width:{share:.1}%\"></i></span>{}</dd>",
                escape(&report.label(stage)),
                human_time(*time)
            );
        }
        picture.push_str("</dl>");
    }
    if !report.settings.is_empty() {
        let count = report.settings.len();
        let _ = write!(picture, "<details><summary>All {count} settings</summary><table class=\"settings\"><tbody>");
        for (key, value) in &report.settings {
            let _ = write!(picture, "<tr><th scope=\"row\">{}</th><td>{}</td></tr>", escape(key), escape(value));
        }
        picture.push_str("</tbody></table></details>");
    }
    Section {
        id: "settings".to_owned(),
        heading: "Time and settings".to_owned(),
        width: Width::BesideText,
        explanation:
            "<p>Where the time went, and every value the run was made with. The same settings, seed and instruction \
            set give the same numbers again.</p>"
                .to_owned(),
        picture,
    }
}
