//! `study.json` and `study.html`.
use anyhow::Context;
use serde_json::{Map, Value};

use super::{
    analysis::{Analysis, Variant},
    claims,
    factors::{Role, named, path_of},
    gather::record,
    plan::{Cell, Study},
};
use crate::{
    atomic, input,
    report::{CellNumbers, CellSet, Cost, DistanceAndGain, Ordered, Seconds, StudyFactor, StudyReport, study_table},
};

/// The numbers of a study.
pub(super) const STUDY: &str = "study.json";

impl Study {
    /// Writes `study.json` and `study.html` from the finished cells.
    ///
    /// # Errors
    /// If a file of a stage is damaged, or on an I/O error.
    pub(super) fn write_results(&self) -> anyhow::Result<()> {
        let report = self.results()?;
        let text = serde_json::to_string_pretty(&report).context("the study as JSON")? + "\n";
        atomic::write(&self.out.join(STUDY), text.as_bytes())?;
        atomic::write(&self.out.join("study.html"), report.html(&self.seconds()).as_bytes())
    }

    /// The claims and arms of `study.json` as a table for a terminal.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn table(&self) -> anyhow::Result<String> {
        let path = self.out.join(STUDY);
        let bytes = input::read(&path)?;
        Ok(study_table(&serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?))
    }

    fn results(&self) -> anyhow::Result<StudyReport> {
        let analysis = Analysis::new(self)?;
        let variants = analysis.variants()?;
        let before = variants.first().map(|first| analysis.before(first)).transpose()?.unwrap_or_default();
        let (mut frontiers, mut sweeps) = (Vec::new(), Vec::new());
        for variant in &variants {
            for set in analysis.reported() {
                frontiers.extend(analysis.frontier(variant, set)?);
            }
            sweeps.extend(analysis.sweeps_of_choices(variant)?);
        }
        sweeps.extend(analysis.sweeps_of_contexts(&variants)?);
        let config = &self.file.config;
        Ok(StudyReport {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            isa: salsa_engine::isa().to_owned(),
            name: config.name.clone(),
            title: if config.title.is_empty() { config.name.clone() } else { config.title.clone() },
            description: config.description.clone(),
            recipe: config.recipe.clone(),
            measure: self.measured.measure.key().to_owned(),
            anchor: self.measured.anchor.clone(),
            sets: analysis.reported().into_iter().map(str::to_owned).collect(),
            validation: self.measured.validation.clone(),
            unit: self
                .factors
                .iter()
                .find(|factor| factor.role == Role::Seed)
                .map_or(String::new(), |f| f.name.clone()),
            margin: config.margin,
            factors: self.factors_in_words(),
            before: analysis.arms_before(&before)?,
            arms: variants.iter().map(|variant| analysis.arm(variant)).collect::<anyhow::Result<_>>()?,
            claims: claims::claims(&analysis, &variants, &before)?,
            frontiers,
            sweeps,
            landscape: analysis.landscape(&before)?,
            distances: self.distances(&analysis, &variants)?,
            costs: self.costs(&variants, &analysis)?,
            cells: self.cells_in_numbers(&analysis),
            missing: self.missing(&analysis),
        })
    }

    fn factors_in_words(&self) -> Vec<StudyFactor> {
        let factors = self.factors.iter().enumerate();
        let factor = |(at, factor): (usize, &super::factors::Factor)| {
            let role = match factor.role {
                Role::Seed => "seed",
                Role::Setting if self.measured.chosen.contains(&at) => "chosen",
                Role::Setting => "setting",
            };
            StudyFactor { name: factor.name.clone(), role: role.to_owned(), values: factor.values.clone() }
        };
        factors.map(factor).collect()
    }

    fn cells_in_numbers(&self, analysis: &Analysis<'_>) -> Vec<CellNumbers> {
        let cells = self.cells.iter().enumerate();
        let numbers = |(at, cell): (usize, &Cell)| {
            let outcome = analysis.outcome(at)?;
            let sets = self.measured.sets.iter().zip(&outcome.sets).map(|(set, numbers)| {
                let summary = &numbers.summary;
                let cell = CellSet {
                    reward: numbers.rewards.iter().sum::<f64>() / numbers.rewards.len() as f64,
                    proxy_score: summary.proxy_score.mean,
                    kl: analysis.kl(summary),
                    length: summary.length_mean,
                    empty: summary.empty_rate,
                };
                (set.clone(), cell)
            });
            let arm = &self.arms[cell.arm].name;
            Some(CellNumbers {
                arm: arm.clone(),
                at: named(&self.factors, &cell.setting),
                run: format!("cells/{arm}/{}", path_of(&self.factors, &cell.setting)),
                sets: sets.collect(),
            })
        };
        cells.filter_map(numbers).collect()
    }

    fn missing(&self, analysis: &Analysis<'_>) -> Vec<String> {
        let cells = self.cells.iter().enumerate().filter(|(at, _)| analysis.outcome(*at).is_none());
        cells.map(|(_, cell)| self.name_of(cell)).collect()
    }

    /// For each seed, the gain of the first comparison and the distance between its soup's ingredients; the latter is
    /// from the report of a soup stage, if a cell of the first arm has one.
    fn distances(&self, analysis: &Analysis<'_>, variants: &[Variant<'_>]) -> anyhow::Result<Vec<DistanceAndGain>> {
        let Some((a, b)) = self.file.config.compare.first() else { return Ok(Vec::new()) };
        let mut points = Vec::new();
        for first in variants.iter().filter(|variant| variant.arm == a) {
            let second = variants.iter().find(|variant| variant.arm == b && variant.at == first.at);
            let Some(second) = second else { continue };
            let mut gains: Vec<(&str, _)> = Vec::new();
            for set in analysis.reported() {
                gains.extend(analysis.difference(first, second, set)?.map(|difference| (set, difference)));
            }
            for (seed, runs) in analysis.chosen_cells(first) {
                let Some(distance) = runs.first().map(|&run| self.distance(&self.cells[run])).transpose()?.flatten()
                else {
                    continue;
                };
                let of_seed = |(set, difference): &(&str, salsa_algo::stats::study::SeedEstimate)| {
                    let mean = difference.seeds.iter().find(|mean| mean.seed == *seed)?.mean;
                    Some(((*set).to_owned(), mean))
                };
                let gains: Ordered<f64> = gains.iter().filter_map(of_seed).collect();
                points.push(DistanceAndGain { seed: analysis.seed(*seed), at: first.at.clone(), distance, gains });
            }
        }
        Ok(points)
    }

    /// Mean distance between the ingredients of the first soup of a cell whose stage reports its geometry.
    fn distance(&self, cell: &Cell) -> anyhow::Result<Option<f64>> {
        for (_, node) in &cell.stages {
            let path = self.nodes[*node].dir.join("geometry.json");
            if self.nodes[*node].kind.name != "soup" || !path.exists() {
                continue;
            }
            let bytes = input::read(&path)?;
            let geometry: Value =
                serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
            let rows = geometry["overall"]["distances"].as_array().into_iter().flatten().enumerate();
            let above = rows.flat_map(|(i, row)| row.as_array().into_iter().flatten().skip(i + 1));
            let distances: Vec<f64> = above.filter_map(Value::as_f64).collect();
            if !distances.is_empty() {
                return Ok(Some(distances.iter().sum::<f64>() / distances.len() as f64));
            }
        }
        Ok(None)
    }

    /// The training costs of one cell of each arm at its chosen setting.
    fn costs(&self, variants: &[Variant<'_>], analysis: &Analysis<'_>) -> anyhow::Result<Vec<Cost>> {
        let mut costs = Vec::new();
        for variant in variants {
            let Some(&run) = analysis.chosen_cells(variant).first().and_then(|(_, runs)| runs.first()) else {
                continue;
            };
            let (mut stages, mut tokens) = (Ordered::new(), None);
            for (_, node) in self.own_stages(&self.cells[run]) {
                let node = &self.nodes[node];
                let count: usize = stages.get(node.kind.name).copied().unwrap_or(0);
                stages.insert(node.kind.name, count + 1);
                if node.kind.name == "sft" {
                    let results = record(node)?.unwrap_or_default();
                    let trained = results["training"]["num_tokens"].as_u64();
                    tokens = trained.map(|trained| trained + tokens.unwrap_or(0));
                }
            }
            let episodes = analysis.outcome(run).and_then(|outcome| outcome.episodes);
            let (arm, at) = (variant.arm.to_owned(), variant.at.clone());
            costs.push(Cost { arm, at, stages, sft_tokens: tokens, episodes });
        }
        Ok(costs)
    }

    /// The stages that the arm itself needs, without those that only evaluate or are only measured against.
    fn own_stages<'c>(&self, cell: &'c Cell) -> Vec<(&'c str, usize)> {
        let arm = &self.arms[cell.arm].name;
        let own = cell.stages.iter().find(|(name, _)| name == arm).map(|(_, node)| *node);
        let mut needed = vec![false; self.nodes.len()];
        let mut to_look_at: Vec<usize> = own.into_iter().collect();
        while let Some(at) = to_look_at.pop() {
            if !needed[at] {
                needed[at] = true;
                to_look_at.extend(self.nodes[at].trained_from(&self.nodes));
            }
        }
        cell.stages.iter().filter(|(_, node)| needed[*node]).map(|(name, node)| (name.as_str(), *node)).collect()
    }

    /// Wall-clock time of the stages that an arm's cells need, the mean over finished cells.
    fn seconds(&self) -> Seconds {
        let mut seconds = Ordered::new();
        for (at, arm) in self.arms.iter().enumerate() {
            let cells = self.cells.iter().filter(|cell| cell.arm == at);
            let all: Vec<f64> = cells.filter_map(|cell| self.seconds_of(cell)).collect();
            if !all.is_empty() {
                seconds.insert(&arm.name, all.iter().sum::<f64>() / all.len() as f64);
            }
        }
        seconds
    }

    fn seconds_of(&self, cell: &Cell) -> Option<f64> {
        let seconds = |(_, node): &(&str, usize)| {
            let text = input::read(&self.nodes[*node].dir.join("timings.json")).ok()?;
            serde_json::from_slice::<Map<String, Value>>(&text).ok()?.get("seconds")?.as_f64()
        };
        self.own_stages(cell).iter().map(seconds).sum()
    }
}
