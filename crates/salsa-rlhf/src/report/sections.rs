//! The sections of the page: what each picture shows, and how to read it.

use std::fmt::Write;

use super::columns::{Cell, columns, splits};
use super::forest::{Forest, Group};
use super::html::{Fill, Look, escape, legend};
use super::number::{estimate, number, percent};
use super::page::{Section, headline};
use super::xy::{Chart, Dot, Kind, Series, smooth};
use super::{Estimate, Point, Report, Run, Sample, SplitSummary};
use crate::progress::human_time;

/// Samples shown at once; the others are behind a click.
const OPEN_SAMPLES: usize = 4;

pub(super) fn pipeline(report: &Report) -> Section {
    Section {
        id: "pipeline",
        heading: "Pipeline",
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
            svg => format!("<div class=\"scroll\">{svg}</div>"),
        },
    }
}

pub(super) fn evaluation(report: &Report) -> Section {
    let splits = splits(&report.summary);
    let fill = |split: &str| if splits.first() == Some(&split) { Fill::Solid } else { Fill::Hollow };
    let forest = |title: &str, format: fn(f64) -> String, line, pick: fn(&SplitSummary) -> Option<Estimate>| {
        let group = |(key, by_split): &(String, super::Ordered<SplitSummary>)| {
            let row = |(split, s): &(String, SplitSummary)| Some((split.clone(), fill(split), pick(s)?));
            let rows: Vec<_> = by_split.iter().filter_map(row).collect();
            (!rows.is_empty()).then(|| Group { name: report.label(key), look: report.look(key), rows })
        };
        let groups: Vec<Group> = report.summary.arms.iter().filter_map(group).collect();
        if groups.is_empty() { String::new() } else { Forest { title: title.to_owned(), format, line, groups }.draw() }
    };
    let mut picture = String::new();
    if !splits.is_empty() {
        let entries: Vec<_> = splits.iter().map(|&s| (Look::of("sft_a", 0), fill(s), s.to_owned())).collect();
        picture += &legend(&entries);
        picture += "<div class=\"charts\">";
        picture += &forest("Gold reward", number, None, |s| s.gold_reward);
        picture += &forest("Proxy score", number, None, |s| Some(s.proxy_score));
        picture += &forest("Win rate against SFT A", percent, Some(0.5), |s| s.win_rate_vs_sft_a);
        picture += "</div>";
        picture += &evaluation_table(report, &splits);
    }
    Section {
        id: "evaluation",
        heading: "Evaluation",
        explanation: "<p>Every arm answers the same held-out prompts. The mark is the mean, the bar its 95 % interval: two arms \
            whose bars do not overlap differ by more than chance; where bars overlap, this run does not settle the matter.</p>\
            <p><strong>Gold reward</strong> is the true goal, where it is known. <strong>Proxy score</strong> is the reward \
            model’s opinion, which is all that training sees. A proxy that rises while gold does not means that the policy \
            exploits the reward model’s mistakes.</p>\
            <p><strong>Win rate</strong> compares answers to the same prompt with SFT A’s, ties counting half; at the 50 % line \
            neither is better. <strong>Empty</strong> and <strong>length</strong> expose a known trap: a short answer pays \
            little KL penalty, so a high penalty can teach silence.</p>"
            .to_owned(),
        picture,
    }
}

fn evaluation_table(report: &Report, splits: &[&str]) -> String {
    let columns = columns(&report.summary);
    let mut out = String::from("<div class=\"scroll\"><table class=\"numbers\"><thead><tr><th scope=\"col\">arm</th>");
    for column in &columns {
        let _ = write!(out, "<th scope=\"col\">{}</th>", column.heading);
    }
    out.push_str("</tr></thead>");
    for &split in splits {
        let _ = write!(
            out,
            "<tbody><tr class=\"split\"><th scope=\"rowgroup\" colspan=\"{}\">{}</th></tr>",
            columns.len() + 1,
            escape(split)
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
                let Cell { value, interval } = (column.cell)(numbers).unwrap_or(Cell::missing());
                let interval = interval.map_or(String::new(), |[low, high]| format!("<small>{low} to {high}</small>"));
                let _ = write!(out, "<td>{value}{interval}</td>");
            }
            out.push_str("</tr>");
        }
        out.push_str("</tbody>");
    }
    out + "</table></div>"
}

pub(super) fn landscape(report: &Report) -> Section {
    let points = &report.summary.landscape;
    let chart = |title: &str, look: &str, pick: fn(&super::LandscapePoint) -> Option<Estimate>| {
        let dot = |p: &super::LandscapePoint| {
            let e = pick(p)?;
            let hover = format!("alpha {}: {}", number(p.alpha), estimate(&e, number));
            Some(Dot { x: p.alpha, y: e.mean, x_ci: None, y_ci: Some(e.ci95), hover })
        };
        let dots: Vec<Dot> = points.iter().filter_map(dot).collect();
        if dots.is_empty() {
            return String::new();
        }
        let name = |p: &super::LandscapePoint| {
            let text = match p.alpha {
                0.0 => "SFT A".to_owned(),
                0.5 => "soup ½".to_owned(),
                1.0 => "SFT B".to_owned(),
                alpha => alpha.to_string(),
            };
            (p.alpha, text)
        };
        let series = vec![Series { name: title.to_owned(), look: Look::of(look, 0), kind: Kind::Profile, dots }];
        let x_label = "alpha: weight of SFT B".to_owned();
        Chart { title: title.to_owned(), x_label, x_names: points.iter().map(name).collect(), series }.draw()
    };
    let charts =
        chart("Gold reward", "soup", |p| p.gold_reward) + &chart("Proxy score", "soup", |p| Some(p.proxy_score));
    Section {
        id: "landscape",
        heading: "Reward landscape",
        explanation: "<p>Each point is a model whose weights are <code>(1 − alpha) · SFT A + alpha · SFT B</code>, without any \
            RL: the straight line between the two SFT models in weight space.</p>\
            <p>A line that stays level or arches in the middle says that the two models lie in one basin and their average is \
            a sound reference; a dip says that averaging breaks something. The paper reports a peak at one half. Two SFT models \
            that differ little give a flat line.</p>"
            .to_owned(),
        picture: if charts.is_empty() { charts } else { format!("<div class=\"charts\">{charts}</div>") },
    }
}

pub(super) fn training(report: &Report) -> Section {
    let panels: [(&str, fn(&Point) -> Option<f64>); 8] = [
        ("Proxy score", |p| p.score),
        ("Gold reward", |p| p.gold),
        ("KL to SFT A (nats per response)", |p| p.kl_sft_a),
        ("KL to the soup (nats per response)", |p| p.kl_soup),
        ("KL to the run’s own reference", |p| p.kl),
        ("Response length (tokens)", |p| p.length),
        ("Entropy (nats per token)", |p| p.entropy),
        ("Share of empty responses", |p| p.empty),
    ];
    let measured =
        |pick: fn(&Point) -> Option<f64>| report.runs.iter().flat_map(|r| &r.points).any(|p| pick(p).is_some());
    let charts: String = panels
        .into_iter()
        .filter(|&(_, pick)| measured(pick))
        .map(|(title, pick)| {
            let (raw, smoothed): (Vec<_>, Vec<_>) = report.runs.iter().map(|run| curves(report, run, pick)).unzip();
            let series = raw.into_iter().chain(smoothed).collect();
            Chart { title: title.to_owned(), x_label: "step".to_owned(), series, ..Chart::default() }.draw()
        })
        .collect();
    Section {
        id: "training",
        heading: "Training curves",
        explanation: "<p>What each RL run measured on its own samples as it went. The faint line is the raw value of a step, the \
            strong one its moving average.</p>\
            <p>The <strong>proxy score</strong> should rise: it is what is optimised. <strong>Gold</strong>, never seen by the \
            training, should follow; where it bends down while the proxy climbs, over-optimisation has set in.</p>\
            <p><strong>KL to SFT A</strong> is measured for all arms alike and tells how far a policy has moved. A run with the \
            soup as its reference starts with a KL above zero, since it starts at SFT A. <strong>Length</strong> or \
            <strong>entropy</strong> falling towards zero warn of collapse.</p>"
            .to_owned(),
        picture: if charts.is_empty() {
            charts
        } else {
            format!("{}<div class=\"charts\">{charts}</div>", legend(&run_legend(report)))
        },
    }
}

fn run_legend(report: &Report) -> Vec<(Look, Fill, String)> {
    report.runs.iter().map(|run| (report.look(&run.arm), Fill::Solid, report.label(&run.arm))).collect()
}

/// The raw and the smoothed curve of one quantity of a run.
fn curves(report: &Report, run: &Run, pick: fn(&Point) -> Option<f64>) -> (Series, Series) {
    let (name, look) = (report.label(&run.arm), report.look(&run.arm));
    let values: Vec<f64> = run.points.iter().map(|p| pick(p).unwrap_or(f64::NAN)).collect();
    let smoothed = smooth(&values, smoothing_width(values.len()));
    let dot = |(p, &y): (&Point, &f64)| Dot::new(p.step as f64, y, format!("{name}, step {}: {}", p.step, number(y)));
    let series = |kind, ys: &[f64]| Series {
        name: name.clone(),
        look,
        kind,
        dots: run.points.iter().zip(ys).map(dot).collect(),
    };
    (series(Kind::Raw, &values), series(Kind::Curve, &smoothed))
}

/// An odd number of steps, about a twelfth of the run.
fn smoothing_width(steps: usize) -> usize {
    steps / 24 * 2 + 1
}

pub(super) fn frontier(report: &Report) -> Section {
    let chart = |title: &str, pick: fn(&Point) -> Option<f64>, end: fn(&SplitSummary) -> Option<Estimate>| {
        let mut series: Vec<Series> = report.runs.iter().map(|run| trajectory(report, run, pick)).collect();
        series.extend(report.arm_keys().into_iter().filter_map(|key| end_point(report, key, end)));
        series.retain(|s| s.dots.iter().any(|d| d.x.is_finite() && d.y.is_finite()));
        if series.is_empty() {
            return String::new();
        }
        let x_label = "KL to SFT A (nats per response)".to_owned();
        Chart { title: title.to_owned(), x_label, series, ..Chart::default() }.draw()
    };
    let with_run = report.runs.iter().any(|run| run.points.iter().any(|p| p.kl_sft_a.is_some()));
    let charts = if with_run {
        chart("Gold reward", |p| p.gold, |s| s.gold_reward)
            + &chart("Proxy score", |p| p.score, |s| Some(s.proxy_score))
    } else {
        String::new()
    };
    let mut entries = run_legend(report);
    let split = splits(&report.summary).first().map_or("test", |&s| s).to_owned();
    entries.extend(
        report
            .summary
            .arms
            .iter()
            .map(|(key, _)| (report.look(key), Fill::Hollow, format!("{} on {split}", report.label(key)))),
    );
    Section {
        id: "frontier",
        heading: "Reward against KL",
        explanation: "<p>How much reward an arm bought for how much movement. Every arm’s KL is measured to the <em>same</em> \
            anchor, SFT A: a KL to each arm’s own reference could not be compared.</p>\
            <p>A line follows one run from its start (ring) to its end (filled mark), smoothed. At the same KL, the higher line \
            is the better trade. Two runs on one line differ only in how far they went, which a different beta would also have \
            done. Hollow marks are the final models on held-out prompts, with 95 % intervals.</p>"
            .to_owned(),
        picture: if charts.is_empty() {
            charts
        } else {
            format!("{}<div class=\"charts\">{charts}</div>", legend(&entries))
        },
    }
}

fn trajectory(report: &Report, run: &Run, pick: fn(&Point) -> Option<f64>) -> Series {
    let width = smoothing_width(run.points.len());
    let column = |pick: fn(&Point) -> Option<f64>| {
        smooth(&run.points.iter().map(|p| pick(p).unwrap_or(f64::NAN)).collect::<Vec<f64>>(), width)
    };
    let (xs, ys, name) = (column(|p| p.kl_sft_a), column(pick), report.label(&run.arm));
    let dot = |(p, (&x, &y)): (&Point, (&f64, &f64))| {
        Dot::new(x, y, format!("{name}, step {}: {} at KL {}", p.step, number(y), number(x)))
    };
    let dots = run.points.iter().zip(xs.iter().zip(&ys)).map(dot).collect();
    Series { name: name.clone(), look: report.look(&run.arm), kind: Kind::Trajectory, dots }
}

/// The final model of an arm on the first split.
fn end_point(report: &Report, key: &str, pick: fn(&SplitSummary) -> Option<Estimate>) -> Option<Series> {
    let (split, numbers) = report.summary.arms.get(key)?.first()?;
    let (e, kl, name) = (pick(numbers)?, numbers.kl_sft_a?, report.label(key));
    let hover = format!("{name} on {split}: {} at KL {}", estimate(&e, number), number(kl));
    let dot = Dot { x: kl, y: e.mean, x_ci: numbers.kl_sft_a_ci95, y_ci: Some(e.ci95), hover };
    Some(Series { name, look: report.look(key), kind: Kind::Scatter, dots: vec![dot] })
}

pub(super) fn samples(report: &Report) -> Section {
    let mut picture: String = report.samples.iter().take(OPEN_SAMPLES).map(|s| sample(report, s)).collect();
    if let Some(rest) = report.samples.get(OPEN_SAMPLES..).filter(|rest| !rest.is_empty()) {
        let more: String = rest.iter().map(|s| sample(report, s)).collect();
        let _ = write!(picture, "<details><summary>{} more prompts</summary>{more}</details>", rest.len());
    }
    let gold = report.summary.arms.iter().flat_map(|(_, s)| s.iter()).any(|(_, s)| headline(s).0 == "gold reward");
    Section {
        id: "samples",
        heading: "Sample responses",
        explanation: format!(
            "<p>The same prompts, answered by every arm. Numbers summarise; reading shows what was learned.</p>\
             <p>Under each answer: {}. Look for answers that score well and read badly, which is the reward model’s blind spot, \
             and for answers that grow alike.</p>",
            if gold { "its gold reward and its proxy score" } else { "its proxy score" }
        ),
        picture,
    }
}

fn sample(report: &Report, sample: &Sample) -> String {
    let mut out = format!(
        "<article class=\"sample\"><p class=\"prompt\"><span>{}</span>{}</p><div class=\"answers\">",
        escape(&sample.split),
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
                escape(stage),
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
        id: "settings",
        heading: "Time and settings",
        explanation:
            "<p>Where the time went, and every value the run was made with. The same settings, seed and instruction \
            set give the same numbers again.</p>"
                .to_owned(),
        picture,
    }
}
