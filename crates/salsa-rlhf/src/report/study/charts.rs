//! The charts of a study.

use serde_json::Value;

use super::super::html::{Fill, Look, legend};
use super::super::labels::spoken;
use super::super::number::number;
use super::super::page::split_name;
use super::super::xy::{Chart, Dot, Kind, Series};
use super::{ArmNumbers, Frontier, OverSeeds, StudyReport, Sweep, shown, variant};

/// The look of an arm, consistent over the page.
pub(super) fn look(report: &StudyReport, arm: &str) -> Look {
    let mut arms: Vec<&str> = Vec::new();
    for known in report.arms.iter().map(|arm| arm.arm.as_str()) {
        if !Look::is_known(known) && !arms.contains(&known) {
            arms.push(known);
        }
    }
    Look::among_many(arm, arms.iter().position(|known| *known == arm).unwrap_or(0))
}

/// The legend of the arms.
pub(super) fn arms(report: &StudyReport) -> String {
    let mut entries: Vec<(Look, Fill, String)> = Vec::new();
    for arm in &report.arms {
        let name = super::super::label(&arm.arm);
        if !entries.iter().any(|(_, _, known)| *known == name) {
            entries.push((look(report, &arm.arm), Fill::Solid, name));
        }
    }
    legend(&entries)
}

/// Reward against KL on one set: the mean curve of each arm with its band, and its measured points.
pub(super) fn frontier(report: &StudyReport, set: &str) -> String {
    let mut series = Vec::new();
    for frontier in report.frontiers.iter().filter(|frontier| frontier.set == set) {
        series.extend(of_frontier(report, frontier));
    }
    if series.is_empty() {
        return String::new();
    }
    let anchor = report.anchor.as_deref().unwrap_or_default();
    let x_label = format!("KL to {} (nats per response)", spoken(anchor));
    Chart { title: format!("{}, {}", report.measured(), split_name(set)), x_label, series, ..Chart::default() }.draw()
}

fn of_frontier(report: &StudyReport, frontier: &Frontier) -> Vec<Series> {
    let (name, look) = (variant(&frontier.arm, &frontier.at), look(report, &frontier.arm));
    let band =
        frontier.band.iter().map(|point| Dot { y_ci: point.ci95, ..Dot::new(point.kl, point.reward, String::new()) });
    let points = frontier.points.iter().map(|point| {
        let at = format!("{name}, {} {}", frontier.along, shown(&point.value));
        let hover = format!("{at}: {} at KL {}", over_seeds(&point.reward), over_seeds(&point.kl));
        Dot { x_ci: point.kl.ci95, y_ci: point.reward.ci95, ..Dot::new(point.kl.mean, point.reward.mean, hover) }
    });
    let series = |kind, dots| Series { name: name.clone(), look, kind, dots };
    vec![series(Kind::Band, band.collect()), series(Kind::Scatter, points.collect())]
}

/// A number of each arm along a factor, on one set.
pub(super) fn sweep(
    report: &StudyReport,
    (factor, set): (&str, &str),
    title: &str,
    pick: fn(&ArmNumbers) -> Option<&OverSeeds>,
) -> String {
    let sweeps: Vec<&Sweep> = report.sweeps.iter().filter(|s| s.factor == factor && s.set == set).collect();
    let values: Vec<&Value> = report.factors.iter().filter(|f| f.name == factor).flat_map(|f| &f.values).collect();
    let all_numbers = values.iter().all(|value| value.is_number());
    let place = |value: &Value| match value.as_f64() {
        Some(number) if all_numbers => number,
        _ => values.iter().position(|known| *known == value).unwrap_or(0) as f64,
    };
    let of_sweep = |sweep: &&Sweep| {
        let name = variant(&sweep.arm, &sweep.at);
        let dot = |point: &super::SweepPoint| {
            let value = pick(&point.numbers)?;
            let hover = format!("{name}, {factor} {}: {}", shown(&point.value), over_seeds(value));
            Some(Dot { y_ci: value.ci95, ..Dot::new(place(&point.value), value.mean, hover) })
        };
        let dots: Vec<Dot> = sweep.points.iter().filter_map(dot).collect();
        (!dots.is_empty()).then(|| Series {
            name: name.clone(),
            look: look(report, &sweep.arm),
            kind: Kind::Profile,
            dots,
        })
    };
    let series: Vec<Series> = sweeps.iter().filter_map(of_sweep).collect();
    if series.is_empty() {
        return String::new();
    }
    let x_names = values.iter().map(|value| (place(value), shown(value))).collect();
    Chart { title: title.to_owned(), x_label: spoken(factor), x_names, series, ..Chart::default() }.draw()
}

/// Reward along the line between two models, one line for each set.
pub(super) fn landscape(report: &StudyReport) -> String {
    let of_set = |(at, set): (usize, &String)| {
        let points = report.landscape.iter().filter(|point| point.set == *set);
        let dot = |point: &super::LineOverSeeds| {
            let hover = format!("{}, alpha {}: {}", split_name(set), point.alpha, over_seeds(&point.reward));
            Dot { y_ci: point.reward.ci95, ..Dot::new(point.alpha, point.reward.mean, hover) }
        };
        let dots: Vec<Dot> = points.map(dot).collect();
        let title = format!("{}, {}", report.measured(), split_name(set));
        let series = vec![Series { name: title.clone(), look: Look::among_many("", at), kind: Kind::Profile, dots }];
        Chart { title, x_label: "weight of the second model".to_owned(), series, ..Chart::default() }.draw()
    };
    if report.landscape.is_empty() { String::new() } else { report.sets.iter().enumerate().map(of_set).collect() }
}

/// The gain of the first comparison against the distance of the ingredients, one mark for each seed.
pub(super) fn distances(report: &StudyReport) -> String {
    let of_set = |set: &String| {
        let dot = |point: &super::DistanceAndGain| {
            let gain = *point.gains.get(set)?;
            let hover = format!("seed {}{}: {}", point.seed, variant("", &point.at), number(gain));
            Some(Dot::new(point.distance, gain, hover))
        };
        let dots: Vec<Dot> = report.distances.iter().filter_map(dot).collect();
        if dots.is_empty() {
            return String::new();
        }
        let series = vec![Series { name: set.clone(), look: Look::of("salsa", 0), kind: Kind::Scatter, dots }];
        let title = format!("gain, {}", split_name(set));
        Chart { title, x_label: "distance of the ingredients".to_owned(), series, ..Chart::default() }.draw()
    };
    report.sets.iter().map(of_set).collect()
}

/// Formats a mean over seeds.
pub(super) fn over_seeds(value: &OverSeeds) -> String {
    match value.ci95 {
        Some([low, high]) => format!("{} ({} to {})", number(value.mean), number(low), number(high)),
        None => number(value.mean),
    }
}
