//! The claims as text for a terminal.

use super::super::number::{number, signed};
use super::super::table::aligned;
use super::StudyReport;

/// The arms and the claims as aligned text.
pub(crate) fn study_table(report: &StudyReport) -> String {
    let mut arms =
        vec![vec!["arm".to_owned(), "set".to_owned(), report.measured(), "KL".to_owned(), "chosen".to_owned()]];
    for arm in &report.arms {
        for (set, numbers) in arm.sets.iter() {
            arms.push(vec![
                super::variant(&arm.arm, &arm.at),
                set.clone(),
                with_interval(&numbers.reward, number),
                numbers.kl.as_ref().map_or(String::new(), |kl| number(kl.mean)),
                arm.chosen
                    .iter()
                    .map(|(name, value)| format!("{name} {}", super::shown(value)))
                    .collect::<Vec<_>>()
                    .join(", "),
            ]);
        }
    }
    let claim = |claim: &super::Claim| {
        let difference = claim.difference.as_ref();
        vec![
            claim.claim.clone(),
            difference.map_or(String::new(), |difference| with_interval(difference, signed)),
            difference.map_or(String::new(), |difference| format!("{} seeds", difference.seeds.len())),
            claim.verdict.clone(),
        ]
    };
    let claims: Vec<Vec<String>> = report.claims.iter().map(claim).collect();
    let mut text = aligned(&arms);
    if !claims.is_empty() {
        text += &format!("\n{}", aligned(&claims));
    }
    if !report.missing.is_empty() {
        text += &format!("\n{} cells are not done yet; the same command goes on with them\n", report.missing.len());
    }
    text
}

fn with_interval(value: &super::OverSeeds, format: fn(f64) -> String) -> String {
    match value.ci95 {
        Some([low, high]) => format!("{} [{}, {}]", format(value.mean), format(low), format(high)),
        None => format(value.mean),
    }
}
