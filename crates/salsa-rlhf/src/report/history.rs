//! The sections about the RL runs as they went: training curves, and reward against KL.

use super::columns::splits;
use super::html::{Fill, Look, legend};
use super::number::{estimate, number};
use super::page::{Section, Width, split_name};
use super::xy::{Chart, Dot, Kind, Series, smooth};
use super::{Estimate, Point, Report, Run, SplitSummary};

/// One measured quantity of a step.
type Quantity = fn(&Point) -> Option<f64>;

pub(super) fn training(report: &Report) -> Section {
    let panels: [(&str, Quantity); 8] = [
        ("Proxy score", |p| p.score),
        ("Gold reward", |p| p.gold),
        ("KL to SFT A (nats per response)", |p| p.kl_sft_a),
        ("KL to the soup (nats per response)", |p| p.kl_soup),
        ("KL to the run’s own reference", |p| p.kl),
        ("Response length (tokens)", |p| p.length),
        ("Entropy (nats per token)", |p| p.entropy),
        ("Share of empty responses", |p| p.empty),
    ];
    let measured = |pick: Quantity| report.runs.iter().flat_map(|r| &r.points).any(|p| pick(p).is_some());
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
        id: "training".to_owned(),
        heading: "Training curves".to_owned(),
        width: Width::BesideText,
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
fn curves(report: &Report, run: &Run, pick: Quantity) -> (Series, Series) {
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
    let chart = |title: &str, pick: Quantity, end: fn(&SplitSummary) -> Option<Estimate>| {
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
    let split = split_name(splits(&report.summary).first().copied().unwrap_or("test"));
    entries.extend(
        report
            .summary
            .arms
            .iter()
            .map(|(key, _)| (report.look(key), Fill::Hollow, format!("{}, {split}", report.label(key)))),
    );
    Section {
        id: "frontier".to_owned(),
        heading: "Reward against KL".to_owned(),
        width: Width::BesideText,
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

fn trajectory(report: &Report, run: &Run, pick: Quantity) -> Series {
    let width = smoothing_width(run.points.len());
    let column =
        |pick: Quantity| smooth(&run.points.iter().map(|p| pick(p).unwrap_or(f64::NAN)).collect::<Vec<f64>>(), width);
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
    let (e, kl, name) = (pick(numbers)?, numbers.versus.kls.get("sft_a")?, report.label(key));
    let hover = format!("{name} on {split}: {} at KL {}", estimate(&e, number), number(kl.mean));
    let dot = Dot { x: kl.mean, y: e.mean, x_ci: Some(kl.ci95), y_ci: Some(e.ci95), hover };
    Some(Series { name, look: report.look(key), kind: Kind::Scatter, dots: vec![dot] })
}
