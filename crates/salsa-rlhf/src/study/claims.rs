//! The claims of a study: statement, measurement, and verdict over seeds.
use anyhow::Context;
use salsa_algo::stats::study::{
    Conclusion, SeedEstimate, SeedInterval, SeedSample, holm, mean_over_seeds, seeds_needed, sign_test,
};

use super::{
    analysis::{Analysis, Variant},
    config::Measure,
    gather::Before,
};
use crate::report::{Claim, Signs, label, variant as in_words};

/// The power for which the number of needed seeds is computed, and the level of all intervals.
const POWER: f64 = 0.8;
const LEVEL: f64 = 0.95;

/// A claim with its measurement, before the correction for multiple claims.
struct Measured {
    claim: String,
    measured: String,
    set: String,
    difference: Option<SeedEstimate>,
    excluded: Vec<String>,
}

/// The claims of all comparisons on all reported sets, and the claim about the soup.
pub(super) fn claims(
    analysis: &Analysis<'_>,
    variants: &[Variant<'_>],
    before: &[(u64, Before)],
) -> anyhow::Result<Vec<Claim>> {
    let mut measured = Vec::new();
    for (a, b) in &analysis.study.file.config.compare {
        for first in variants.iter().filter(|variant| variant.arm == a) {
            let second = variants.iter().find(|variant| variant.arm == b && variant.at == first.at);
            let Some(second) = second else { continue };
            for set in analysis.reported() {
                measured.extend(comparison(analysis, first, second, set)?);
            }
        }
    }
    for set in analysis.reported() {
        measured.extend(middle_of_the_line(analysis, before, set)?);
    }
    finish(analysis, measured)
}

fn comparison(analysis: &Analysis<'_>, a: &Variant<'_>, b: &Variant<'_>, set: &str) -> anyhow::Result<Vec<Measured>> {
    let what = analysis.study.measured.measure.words();
    let (first, second) = (in_words(a.arm, &a.at), label(b.arm));
    let factors = &analysis.study.factors;
    let chosen: Vec<&str> = analysis.study.measured.chosen.iter().map(|&at| factors[at].name.as_str()).collect();
    let each = match &analysis.study.measured.validation {
        Some(on) => format!("each at its {} chosen on {on}", chosen.join(" and ")),
        None => "at one setting".to_owned(),
    };
    let mut measured = vec![Measured {
        claim: format!("{first} earns more {what} than {second} ({set})"),
        measured: format!("difference of {what}, {each}, paired by seed and prompt"),
        set: set.to_owned(),
        difference: analysis.difference(a, b, set)?,
        excluded: Vec::new(),
    }];
    let several = a.settings.len() > 1 && b.settings.len() > 1;
    if let Some(over) = analysis.difference_at_equal_kl(a, b, set)?.filter(|_| several) {
        let anchor = analysis.study.measured.anchor.as_deref().unwrap_or_default();
        measured.push(Measured {
            claim: format!("{first} earns more {what} than {second} at equal KL ({set})"),
            measured: format!("difference of {what} over the KL to {} that both reach", label(anchor)),
            set: set.to_owned(),
            difference: over.estimate,
            excluded: over.excluded.iter().map(|&seed| analysis.seed(seed)).collect(),
        });
    }
    Ok(measured)
}

/// The claim that the middle of the line between two models is above the better of them.
fn middle_of_the_line(
    analysis: &Analysis<'_>,
    before: &[(u64, Before)],
    set: &str,
) -> anyhow::Result<Option<Measured>> {
    let gain = |(seed, before): &(u64, Before)| {
        let middle = before.landscape.iter().find(|point| point.split == set && point.alpha == 0.5)?;
        Some(SeedSample { seed: *seed, values: vec![middle.over_better_end?.mean] })
    };
    let samples: Option<Vec<SeedSample>> = before.iter().map(gain).collect();
    let has_gold = before.iter().all(|(_, before)| before.landscape.iter().any(|point| point.gold_reward.is_some()));
    let is_measured = has_gold == (analysis.study.measured.measure == Measure::GoldReward);
    let Some(samples) = samples.filter(|samples| is_measured && !samples.is_empty()) else { return Ok(None) };
    let what = analysis.study.measured.measure.words();
    Ok(Some(Measured {
        claim: format!("The even soup of the two models before RL earns more {what} than the better of them ({set})"),
        measured: format!("difference of {what} at alpha 0.5, paired by prompt"),
        set: set.to_owned(),
        difference: Some(mean_over_seeds(&samples, SeedInterval::default())?),
        excluded: Vec::new(),
    }))
}

/// Tests the claims, corrects for their number, and draws conclusions.
fn finish(analysis: &Analysis<'_>, measured: Vec<Measured>) -> anyhow::Result<Vec<Claim>> {
    let ps: Vec<Option<f64>> =
        measured.iter().map(|measured| measured.difference.as_ref().and_then(SeedEstimate::p_value)).collect();
    let mut corrected = holm(&ps.iter().flatten().copied().collect::<Vec<f64>>())?.into_iter();
    let mut claims = Vec::new();
    for (measured, p) in measured.into_iter().zip(ps) {
        let p_holm = if p.is_some() { corrected.next() } else { None };
        let margin = analysis.study.file.config.margin;
        let verdict = match &measured.difference {
            Some(difference) => Conclusion::of(difference, margin)?,
            None => Conclusion::CannotTell,
        };
        let difference = measured.difference.as_ref();
        let signs = difference.map(|difference| {
            let means: Vec<f64> = difference.seeds.iter().map(|seed| seed.mean).collect();
            sign_test(&means).map(|test| Signs { above: test.positive, below: test.negative, p: test.p_value })
        });
        claims.push(Claim {
            difference: difference.map(|difference| analysis.over_seeds(difference)).transpose()?,
            seeds_needed: difference.and_then(needed).transpose().context("seeds needed")?,
            claim: measured.claim,
            measured: measured.measured,
            set: measured.set,
            verdict: verdict.to_string(),
            p,
            p_holm,
            signs: signs.transpose()?,
            excluded: measured.excluded,
        });
    }
    Ok(claims)
}

/// The number of seeds needed to detect a difference of this size, if it is nonzero.
fn needed(difference: &SeedEstimate) -> Option<anyhow::Result<usize>> {
    let deviation = difference.deviation?;
    if difference.mean == 0.0 {
        return None;
    }
    seeds_needed(difference.mean, deviation, POWER, LEVEL).map_err(Into::into).transpose()
}
