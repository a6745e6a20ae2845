//! The section about the line between two models: rewards of their weight averages, split by split.

use std::fmt::Write;

use super::html::{Look, escape};
use super::number::{estimate, number, signed};
use super::page::{Section, Width, split_name};
use super::xy::{Chart, Dot, Kind, Series};
use super::{Estimate, LandscapePoint, Report};

/// Charts for each split, and a sentence about the best point between the ends.
pub(super) fn section(report: &Report) -> Section {
    let ends = report.line.clone().unwrap_or_else(|| ["SFT A", "SFT B"].map(str::to_owned));
    let (mut charts, mut findings) = (String::new(), String::new());
    for (split, points) in by_split(&report.summary.landscape) {
        let title =
            |what: &str| if split.is_empty() { what.to_owned() } else { format!("{what}, {}", split_name(split)) };
        charts += &chart(&title("Gold reward"), &ends, &points, |p| p.gold_reward);
        charts += &chart(&title("Proxy score"), &ends, &points, |p| Some(p.proxy_score));
        if let Some(finding) = best_between(&points) {
            let _ = write!(findings, "<p>{}: {}</p>", escape(&split_name(split)), escape(&finding));
        }
    }
    let [from, to] = &ends;
    Section {
        id: "landscape".to_owned(),
        heading: "Reward landscape".to_owned(),
        width: Width::BesideText,
        explanation: format!(
            "<p>Each point is a model whose weights are <code>(1 − alpha) · {} + alpha · {}</code>, without any \
            RL: the straight line between the two models in weight space.</p>\
            <p>A line that stays level or arches in the middle says that the two models lie in one basin and their average is \
            a sound reference; a dip says that averaging breaks something. The paper reports a peak at one half. Two models \
            that differ little give a flat line.</p>",
            escape(from),
            escape(to)
        ),
        picture: if charts.is_empty() { charts } else { format!("<div class=\"charts\">{charts}</div>{findings}") },
    }
}

/// The points of each split, in the order of the evaluation.
fn by_split(points: &[LandscapePoint]) -> Vec<(&str, Vec<&LandscapePoint>)> {
    let mut splits: Vec<(&str, Vec<&LandscapePoint>)> = Vec::new();
    for point in points {
        match splits.iter_mut().find(|(split, _)| *split == point.split) {
            Some((_, points)) => points.push(point),
            None => splits.push((&point.split, vec![point])),
        }
    }
    splits
}

fn chart(
    title: &str,
    [from, to]: &[String; 2],
    points: &[&LandscapePoint],
    pick: fn(&LandscapePoint) -> Option<Estimate>,
) -> String {
    let dot = |p: &&LandscapePoint| {
        let e = pick(p)?;
        let hover = format!("alpha {}: {}", number(p.alpha), estimate(&e, number));
        Some(Dot { x: p.alpha, y: e.mean, x_ci: None, y_ci: Some(e.ci95), hover })
    };
    let dots: Vec<Dot> = points.iter().filter_map(dot).collect();
    if dots.is_empty() {
        return String::new();
    }
    let name = |p: &&LandscapePoint| {
        let text = match p.alpha {
            0.0 => from.clone(),
            0.5 => "soup ½".to_owned(),
            1.0 => to.clone(),
            alpha => alpha.to_string(),
        };
        (p.alpha, text)
    };
    Chart {
        title: title.to_owned(),
        x_label: format!("alpha: weight of {to}"),
        x_names: points.iter().map(name).collect(),
        series: vec![Series { name: title.to_owned(), look: Look::of("soup", 0), kind: Kind::Profile, dots }],
        ..Chart::default()
    }
    .draw()
}

/// A sentence that compares the best point between the ends with the better end.
fn best_between(points: &[&LandscapePoint]) -> Option<String> {
    let between = points.iter().filter_map(|point| Some((point, point.over_better_end?)));
    let (point, over) = between.max_by(|(_, a), (_, b)| a.mean.total_cmp(&b.mean))?;
    let what = if point.gold_reward.is_some() { "gold reward" } else { "proxy score" };
    let verdict = match over {
        over if over.is_above(0.0) => "the average is better",
        over if over.is_below(0.0) => "the average is worse",
        _ => "this run cannot tell them apart",
    };
    let value = estimate(&over, signed);
    let alpha = number(point.alpha);
    Some(format!("the best point between the ends, alpha {alpha}, against the better end, {what}: {value}; {verdict}."))
}
