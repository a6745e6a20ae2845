//! The sections about RL training: training curves, and reward against KL.

use super::columns::splits;
use super::html::{Fill, Look, escape, legend};
use super::labels::spoken;
use super::number::{estimate, number};
use super::page::{Section, Width, split_name};
use super::xy::{Chart, Dot, Kind, Series, smooth};
use super::{Estimate, Point, Report, Run, SplitSummary};

/// A measured quantity of a step.
type Quantity<'a> = &'a dyn Fn(&Point) -> Option<f64>;

/// The KL to an anchor.
fn kl_to(anchor: &str) -> impl Fn(&Point) -> Option<f64> {
    move |point| point.kls.get(anchor).copied().flatten()
}

/// The anchors of the runs.
fn anchors(report: &Report) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in report.runs.iter().flat_map(|run| &run.points).flat_map(|point| point.kls.iter()) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names
}

/// The anchor that KL is measured to: that of the evaluation if the runs have it too, else their first.
fn common_anchor(report: &Report) -> Option<&str> {
    let names = anchors(report);
    report.summary.anchor().filter(|name| names.contains(name)).or(names.first().copied())
}

pub(super) fn training(report: &Report) -> Section {
    let kls = anchors(report).into_iter().map(|name| (kl_title(name), kl_to(name))).collect::<Vec<_>>();
    let first: [(&str, Quantity<'_>); 2] = [("Proxy score", &|p| p.score), ("Gold reward", &|p| p.gold)];
    let last: [(&str, Quantity<'_>); 4] = [
        ("KL to the run’s own reference", &|p| p.kl),
        ("Response length (tokens)", &|p| p.length),
        ("Entropy (nats per token)", &|p| p.entropy),
        ("Share of empty responses", &|p| p.empty),
    ];
    let kls = kls.iter().map(|(title, pick)| (title.as_str(), pick as Quantity<'_>));
    let panels = first.into_iter().chain(kls).chain(last);
    let measured = |pick: Quantity<'_>| report.runs.iter().flat_map(|r| &r.points).any(|p| pick(p).is_some());
    let charts: String = panels
        .filter(|&(_, pick)| measured(pick))
        .map(|(title, pick)| {
            let (raw, smoothed): (Vec<_>, Vec<_>) = report.runs.iter().map(|run| curves(report, run, pick)).unzip();
            let series = raw.into_iter().chain(smoothed).collect();
            Chart { title: title.to_owned(), x_label: "step".to_owned(), series, ..Chart::default() }.draw()
        })
        .collect();
    Section {
        id: "training".to_owned(),
        heading: "Training curves".to_owned(),
        width: Width::BesideText,
        explanation: format!(
            "<p>What each RL run measured on its own samples as it went. The faint line is the raw value of a step, the \
            strong one its moving average.</p>\
            <p>The <strong>proxy score</strong> should rise: it is what is optimised.{}</p>\
            <p><strong>KL to an anchor</strong> is measured for all arms alike and tells how far a policy has moved. A run whose \
            reference is not the model it starts from, such as a soup, has a KL above zero from the start. <strong>Length</strong> \
            or <strong>entropy</strong> falling towards zero warn of collapse.</p>",
            if measured(&|p| p.gold) {
                " <strong>Gold</strong>, never seen by the training, should follow; where it bends down while the proxy \
                climbs, over-optimisation has set in."
            } else {
                ""
            }
        ),
        picture: if charts.is_empty() {
            charts
        } else {
            format!("{}<div class=\"charts\">{charts}</div>", legend(&run_legend(report)))
        },
    }
}

/// The heading of a KL chart, or the label of a KL axis.
fn kl_title(anchor: &str) -> String {
    format!("KL to {} (nats per response)", spoken(anchor))
}

fn run_legend(report: &Report) -> Vec<(Look, Fill, String)> {
    report.runs.iter().map(|run| (report.look(&run.arm), Fill::Solid, report.label(&run.arm))).collect()
}

/// The raw and the smoothed curve of one quantity of a run.
fn curves(report: &Report, run: &Run, pick: Quantity<'_>) -> (Series, Series) {
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
    let anchor = common_anchor(report).unwrap_or_default();
    let chart = |what: &str, split: &str, pick: Quantity<'_>, end: fn(&SplitSummary) -> Option<Estimate>| {
        let title = if split.is_empty() { what.to_owned() } else { format!("{what}, {}", split_name(split)) };
        let mut series: Vec<Series> = report.runs.iter().map(|run| trajectory(report, run, anchor, pick)).collect();
        series.extend(report.arm_keys().into_iter().filter_map(|key| end_point(report, key, split, anchor, end)));
        series.retain(|s| s.dots.iter().any(|d| d.x.is_finite() && d.y.is_finite()));
        if series.is_empty() {
            return String::new();
        }
        let x_label = kl_title(anchor);
        Chart { title, x_label, series, ..Chart::default() }.draw()
    };
    let mut splits = splits(&report.summary);
    if splits.is_empty() {
        // Runs without an evaluation: curves only.
        splits.push("");
    }
    let mut charts = String::new();
    for split in splits.into_iter().filter(|_| !anchor.is_empty()) {
        charts += &chart("Gold reward", split, &|p| p.gold, |s| s.gold_reward);
        charts += &chart("Proxy score", split, &|p| p.score, |s| Some(s.proxy_score));
    }
    let mut entries = run_legend(report);
    let arms = report.summary.arms.iter();
    entries
        .extend(arms.map(|(key, _)| (report.look(key), Fill::Hollow, format!("{}, final model", report.label(key)))));
    Section {
        id: "frontier".to_owned(),
        heading: "Reward against KL".to_owned(),
        width: Width::BesideText,
        explanation: format!(
            "<p>How much reward an arm bought for how much movement. Every arm’s KL is measured to the <em>same</em> \
            anchor{}: a KL to each arm’s own reference could not be compared.</p>\
            <p>A line follows one run from its start (ring) to its end (filled mark), smoothed. At the same KL, the higher line \
            is the better trade. Two runs on one line differ only in how far they went, which a different beta would also have \
            done. Hollow marks are the final models on the held-out prompts that the heading names, with 95 % intervals; the \
            lines are the runs on their training prompts, the same in every chart.</p>",
            if anchor.is_empty() { String::new() } else { format!(", {}", escape(&spoken(anchor))) }
        ),
        picture: if charts.is_empty() {
            charts
        } else {
            format!("{}<div class=\"charts\">{charts}</div>", legend(&entries))
        },
    }
}

fn trajectory(report: &Report, run: &Run, anchor: &str, pick: Quantity<'_>) -> Series {
    let width = smoothing_width(run.points.len());
    let column = |pick: Quantity<'_>| {
        smooth(&run.points.iter().map(|p| pick(p).unwrap_or(f64::NAN)).collect::<Vec<f64>>(), width)
    };
    let (xs, ys, name) = (column(&kl_to(anchor)), column(pick), report.label(&run.arm));
    let dot = |(p, (&x, &y)): (&Point, (&f64, &f64))| {
        Dot::new(x, y, format!("{name}, step {}: {} at KL {}", p.step, number(y), number(x)))
    };
    let dots = run.points.iter().zip(xs.iter().zip(&ys)).map(dot).collect();
    Series { name: name.clone(), look: report.look(&run.arm), kind: Kind::Trajectory, dots }
}

/// The final model of an arm on a split.
fn end_point(
    report: &Report,
    key: &str,
    split: &str,
    anchor: &str,
    pick: fn(&SplitSummary) -> Option<Estimate>,
) -> Option<Series> {
    let numbers = report.summary.arms.get(key)?.get(split)?;
    let (e, kl, name) = (pick(numbers)?, numbers.versus.kls.get(anchor)?, report.label(key));
    let hover = format!("{name} on {split}: {} at KL {}", estimate(&e, number), number(kl.mean));
    let dot = Dot { x: kl.mean, y: e.mean, x_ci: Some(kl.ci95), y_ci: Some(e.ci95), hover };
    Some(Series { name, look: report.look(key), kind: Kind::Scatter, dots: vec![dot] })
}
