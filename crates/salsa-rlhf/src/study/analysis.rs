//! Computes the numbers of `study.json` from the measurements of the cells.
use std::collections::HashMap;

use anyhow::{Context, anyhow};
use salsa_algo::stats::study::{
    Curve, KlAxis, KlRange, OverKl, Point, Scores, SeedCurve, SeedEstimate, SeedInterval, SeedSample, Test, Validation,
    average_runs, common_range, difference_over_kl, difference_over_seeds, frontier, kl_values, mean_over_seeds,
};
use serde_json::{Map, Value};

use super::{
    factors::{Role, Setting, short},
    gather::{Before, Outcome},
    plan::{Cell, Study},
};
use crate::report::{
    ArmNumbers, BandPoint, Frontier, FrontierPoint, LineOverSeeds, Ordered, OverSeeds, SplitSummary, StudyArm, Sweep,
    SweepPoint,
};

/// Number of points of a mean curve.
const BAND_POINTS: usize = 25;

/// The arms of a study with the measurements of their cells.
pub(super) struct Analysis<'a> {
    pub study: &'a Study,
    outcomes: HashMap<usize, Outcome>,
    /// The values of the factor that is the unit of analysis, in order; a single none if there is no such factor.
    units: Vec<Option<Value>>,
    unit: Option<usize>,
}

/// An arm at one value of each factor that is neither a seed nor chosen.
pub(super) struct Variant<'a> {
    pub arm: &'a str,
    pub at: Map<String, Value>,
    /// The values of the chosen factors, in the order of the study.
    pub settings: Vec<Setting>,
    /// For each setting and each complete seed: the cells, i.e. the runs of the seed.
    cells: Vec<Vec<(u64, Vec<usize>)>>,
    /// The index of the chosen setting.
    pub chosen: usize,
}

impl<'a> Analysis<'a> {
    /// Reads the finished cells.
    pub(super) fn new(study: &'a Study) -> anyhow::Result<Analysis<'a>> {
        let mut outcomes = HashMap::new();
        for (at, cell) in study.cells.iter().enumerate() {
            outcomes.extend(study.outcome(cell)?.map(|outcome| (at, outcome)));
        }
        let unit = study.factors.iter().position(|factor| factor.role == Role::Seed);
        let units = match unit {
            Some(at) => study.factors[at].values.iter().cloned().map(Some).collect(),
            None => vec![None],
        };
        Ok(Analysis { study, outcomes, units, unit })
    }

    /// The measurements of a cell, if it is done.
    pub(super) fn outcome(&self, cell: usize) -> Option<&Outcome> {
        self.outcomes.get(&cell)
    }

    /// The name of a seed, by its index among the units.
    pub(super) fn seed(&self, place: u64) -> String {
        self.units[place as usize].as_ref().map_or("1".to_owned(), short)
    }

    /// Every arm at every value of the factors that are neither seeds nor chosen, if it has at least one complete seed.
    pub(super) fn variants(&self) -> anyhow::Result<Vec<Variant<'a>>> {
        let mut variants: Vec<Variant<'a>> = Vec::new();
        for (arm, name) in self.study.arms.iter().enumerate() {
            let mut contexts: Vec<Setting> = Vec::new();
            for cell in self.study.cells.iter().filter(|cell| cell.arm == arm) {
                let context = self.context(&cell.setting);
                if !contexts.contains(&context) {
                    contexts.push(context);
                }
            }
            for context in contexts {
                variants.extend(self.variant((arm, &name.name), &context)?);
            }
        }
        Ok(variants)
    }

    fn is_context(&self, at: usize) -> bool {
        self.study.factors[at].role == Role::Setting && !self.study.measured.chosen.contains(&at)
    }

    fn context(&self, setting: &Setting) -> Setting {
        (0..setting.len()).filter(|&at| self.is_context(at)).map(|at| setting[at].clone()).collect()
    }

    fn choice(&self, setting: &Setting) -> Setting {
        self.study.measured.chosen.iter().map(|&at| setting[at].clone()).collect()
    }

    fn variant(&self, (arm, name): (usize, &'a str), context: &Setting) -> anyhow::Result<Option<Variant<'a>>> {
        let own = |cell: &&(usize, &Cell)| cell.1.arm == arm && self.context(&cell.1.setting) == *context;
        let all: Vec<(usize, &Cell)> = self.study.cells.iter().enumerate().collect();
        let own: Vec<&(usize, &Cell)> = all.iter().filter(own).collect();
        let mut settings: Vec<Setting> = Vec::new();
        for (_, cell) in &own {
            let choice = self.choice(&cell.setting);
            if !settings.contains(&choice) {
                settings.push(choice);
            }
        }
        let of_unit = |unit: &Option<Value>| {
            let is_of = |cell: &Cell| self.unit.is_none_or(|at| Some(&cell.setting[at]) == unit.as_ref());
            own.iter().filter(move |(_, cell)| is_of(cell)).map(|(at, cell)| (*at, *cell)).collect::<Vec<_>>()
        };
        // A seed counts if all its cells are done: every setting, every inner seed.
        let whole: Vec<(u64, Vec<(usize, &Cell)>)> = (0..)
            .zip(self.units.iter().map(of_unit))
            .filter(|(_, cells)| cells.iter().all(|(at, _)| self.outcomes.contains_key(at)))
            .collect();
        if whole.is_empty() {
            return Ok(None);
        }
        let of_setting = |setting: &Setting| {
            let runs = |(seed, cells): &(u64, Vec<(usize, &Cell)>)| {
                let own = cells.iter().filter(|(_, cell)| self.choice(&cell.setting) == *setting);
                (*seed, own.map(|(at, _)| *at).collect())
            };
            whole.iter().map(runs).collect()
        };
        let cells: Vec<Vec<(u64, Vec<usize>)>> = settings.iter().map(of_setting).collect();
        let names = (0..self.study.factors.len()).filter(|&at| self.is_context(at));
        let at = names.map(|at| self.study.factors[at].name.clone()).zip(context.iter().cloned()).collect();
        let mut variant = Variant { arm: name, at, settings, cells, chosen: 0 };
        if let Some(set) = &self.study.measured.validation {
            let scores = (0..variant.settings.len()).map(|setting| self.rewards(&variant, setting, set));
            let scores: Scores<Validation> = Scores::new(scores.collect::<anyhow::Result<_>>()?)?;
            let chosen = scores.select_across_seeds().setting();
            variant.chosen = chosen.expect("one setting is selected across seeds");
        }
        Ok(Some(variant))
    }

    /// The rewards of a variant at a setting, by seed and prompt; runs of one seed are averaged prompt by prompt.
    pub(super) fn rewards(&self, variant: &Variant<'_>, setting: usize, set: &str) -> anyhow::Result<Vec<SeedSample>> {
        let place = self.place(set)?;
        let of_seed = |(seed, runs): &(u64, Vec<usize>)| {
            let runs: Vec<&[f64]> = runs.iter().map(|run| &self.outcomes[run].sets[place].rewards[..]).collect();
            let sample = average_runs(*seed, &runs);
            sample.map_err(|error| anyhow!("arm {}, seed {}: {error}", variant.arm, self.seed(*seed)))
        };
        variant.cells[setting].iter().map(of_seed).collect()
    }

    /// The rewards of a variant on a set, at the setting chosen on the validation set.
    pub(super) fn chosen_rewards(&self, variant: &Variant<'_>, set: &str) -> anyhow::Result<Vec<SeedSample>> {
        let Some(validation) = &self.study.measured.validation else { return self.rewards(variant, 0, set) };
        let on = |set: &str| (0..variant.settings.len()).map(|at| self.rewards(variant, at, set)).collect();
        let validation: Scores<Validation> = Scores::new({
            let scores: anyhow::Result<Vec<_>> = on(validation);
            scores?
        })?;
        let test: Scores<Test> = Scores::new({
            let scores: anyhow::Result<Vec<_>> = on(set);
            scores?
        })?;
        Ok(validation.select_across_seeds().on_test(&test)?)
    }

    /// A statistic of a variant at a setting: its mean over seeds; none if a run lacks it.
    pub(super) fn number(
        &self,
        (variant, setting): (&Variant<'_>, usize),
        set: &str,
        pick: impl Fn(&SplitSummary) -> Option<f64>,
    ) -> anyhow::Result<Option<OverSeeds>> {
        let samples = self.samples((variant, setting), set, pick)?;
        samples.map(|samples| self.over_seeds(&mean_over_seeds(&samples, SeedInterval::default())?)).transpose()
    }

    /// A sample for each seed: the values of its runs.
    fn samples(
        &self,
        (variant, setting): (&Variant<'_>, usize),
        set: &str,
        pick: impl Fn(&SplitSummary) -> Option<f64>,
    ) -> anyhow::Result<Option<Vec<SeedSample>>> {
        let place = self.place(set)?;
        let mut samples = Vec::new();
        for (seed, runs) in &variant.cells[setting] {
            let values: Option<Vec<f64>> =
                runs.iter().map(|run| pick(&self.outcomes[run].sets[place].summary)).collect();
            let Some(values) = values else { return Ok(None) };
            samples.push(SeedSample { seed: *seed, values });
        }
        Ok(Some(samples))
    }

    fn place(&self, set: &str) -> anyhow::Result<usize> {
        self.study.measured.sets.iter().position(|known| known == set).with_context(|| format!("there is no set {set}"))
    }

    /// Converts an estimate to its form in `study.json`.
    pub(super) fn over_seeds(&self, estimate: &SeedEstimate) -> anyhow::Result<OverSeeds> {
        let seeds = estimate.seeds.iter().map(|seed| (self.seed(seed.seed), seed.mean)).collect();
        let ci95 = estimate.interval.map(|interval| [interval.low, interval.high]);
        Ok(OverSeeds { mean: estimate.mean, ci95, seeds })
    }

    /// All statistics of a variant at a setting on a set.
    pub(super) fn numbers(&self, variant: &Variant<'_>, setting: usize, set: &str) -> anyhow::Result<ArmNumbers> {
        let rewards = self.rewards(variant, setting, set)?;
        let always = |pick: fn(&SplitSummary) -> f64| -> anyhow::Result<OverSeeds> {
            let number = self.number((variant, setting), set, |summary| Some(pick(summary)))?;
            Ok(number.expect("every run has it"))
        };
        Ok(ArmNumbers {
            reward: self.over_seeds(&mean_over_seeds(&rewards, SeedInterval::default())?)?,
            proxy_score: always(|summary| summary.proxy_score.mean)?,
            kl: self.number((variant, setting), set, |summary| self.kl(summary))?,
            length: always(|summary| summary.length_mean)?,
            empty: always(|summary| summary.empty_rate)?,
        })
    }

    /// KL to the anchor.
    pub(super) fn kl(&self, summary: &SplitSummary) -> Option<f64> {
        Some(summary.versus.kls.get(self.study.measured.anchor.as_deref()?)?.mean)
    }

    /// The reported sets: all but the one on which settings are chosen.
    pub(super) fn reported(&self) -> Vec<&'a str> {
        let measured = &self.study.measured;
        measured.sets.iter().filter(|set| Some(*set) != measured.validation.as_ref()).map(String::as_str).collect()
    }

    /// A variant at its chosen setting.
    pub(super) fn arm(&self, variant: &Variant<'_>) -> anyhow::Result<StudyArm> {
        let mut sets = Ordered::new();
        for set in self.reported() {
            sets.insert(set, self.numbers(variant, variant.chosen, set)?);
        }
        let names = self.study.measured.chosen.iter().map(|&at| self.study.factors[at].name.clone());
        let chosen = names.zip(variant.settings[variant.chosen].iter().cloned()).collect();
        Ok(StudyArm { arm: variant.arm.to_owned(), at: variant.at.clone(), chosen, sets })
    }

    /// The settings of a variant along one chosen factor, with the others at their chosen values.
    fn along(&self, variant: &Variant<'_>, factor: usize) -> Vec<(Value, usize)> {
        let chosen = &variant.settings[variant.chosen];
        let differs_only_there =
            |setting: &Setting| (0..setting.len()).all(|at| at == factor || setting[at] == chosen[at]);
        let settings = variant.settings.iter().enumerate().filter(|(_, setting)| differs_only_there(setting));
        settings.map(|(at, setting)| (setting[factor].clone(), at)).collect()
    }

    /// The curve of each seed along the first chosen factor; none if KL is not measured.
    pub(super) fn curves(&self, variant: &Variant<'_>, set: &str) -> anyhow::Result<Option<Vec<SeedCurve>>> {
        if self.study.measured.chosen.is_empty() || self.study.measured.anchor.is_none() {
            return Ok(None);
        }
        let mut by_seed: Vec<(u64, Vec<Point>)> = Vec::new();
        for (_, setting) in self.along(variant, 0) {
            let rewards = self.rewards(variant, setting, set)?;
            let Some(kls) = self.samples((variant, setting), set, |summary| self.kl(summary))? else { return Ok(None) };
            for (reward, kl) in rewards.iter().zip(&kls) {
                let point = Point { kl: mean(&kl.values), reward: mean(&reward.values) };
                match by_seed.iter_mut().find(|(seed, _)| *seed == reward.seed) {
                    Some((_, points)) => points.push(point),
                    None => by_seed.push((reward.seed, vec![point])),
                }
            }
        }
        let curve =
            |(seed, points): (u64, Vec<Point>)| Ok(SeedCurve { seed, curve: Curve::new(&points, KlAxis::default())? });
        by_seed.into_iter().map(curve).collect::<anyhow::Result<_>>().map(Some)
    }

    /// The frontier of a variant on a set, if it has several settings.
    pub(super) fn frontier(&self, variant: &Variant<'_>, set: &str) -> anyhow::Result<Option<Frontier>> {
        let Some(curves) = self.curves(variant, set)? else { return Ok(None) };
        let settings = self.along(variant, 0);
        if settings.len() < 2 {
            return Ok(None);
        }
        let mut points = Vec::new();
        for (value, setting) in settings {
            let numbers = self.numbers(variant, setting, set)?;
            let kl = numbers.kl.context("curves have a KL")?;
            points.push(FrontierPoint { value, kl, reward: numbers.reward });
        }
        let band = match common_range(curves.iter().map(|curve| &curve.curve)) {
            Some(range) => band(&curves, range)?,
            None => Vec::new(),
        };
        let along = self.study.factors[self.study.measured.chosen[0]].name.clone();
        let (arm, at, set) = (variant.arm.to_owned(), variant.at.clone(), set.to_owned());
        Ok(Some(Frontier { arm, at, set, along, points, band }))
    }

    /// The chosen factors of a variant, each along its values.
    pub(super) fn sweeps_of_choices(&self, variant: &Variant<'_>) -> anyhow::Result<Vec<Sweep>> {
        let mut sweeps = Vec::new();
        for (place, &factor) in self.study.measured.chosen.iter().enumerate() {
            let settings = self.along(variant, place);
            for set in self.study.measured.sets.iter().filter(|_| settings.len() > 1) {
                let point = |(value, setting): &(Value, usize)| {
                    Ok(SweepPoint { value: value.clone(), numbers: self.numbers(variant, *setting, set)? })
                };
                sweeps.push(Sweep {
                    factor: self.study.factors[factor].name.clone(),
                    arm: variant.arm.to_owned(),
                    at: variant.at.clone(),
                    set: set.clone(),
                    points: settings.iter().map(point).collect::<anyhow::Result<_>>()?,
                });
            }
        }
        Ok(sweeps)
    }

    /// Each arm along the values of the factors that are not chosen, at the setting chosen for each value.
    pub(super) fn sweeps_of_contexts(&self, variants: &[Variant<'_>]) -> anyhow::Result<Vec<Sweep>> {
        let mut sweeps: Vec<Sweep> = Vec::new();
        for factor in (0..self.study.factors.len()).filter(|&at| self.is_context(at)) {
            let name = &self.study.factors[factor].name;
            for (variant, set) in
                variants.iter().flat_map(|variant| self.reported().into_iter().map(move |set| (variant, set)))
            {
                let mut at = variant.at.clone();
                let value = at.shift_remove(name).context("a variant has a value of every such factor")?;
                let point = SweepPoint { value, numbers: self.numbers(variant, variant.chosen, set)? };
                let is_it = |sweep: &&mut Sweep| {
                    sweep.factor == *name && sweep.arm == variant.arm && sweep.at == at && sweep.set == set
                };
                match sweeps.iter_mut().find(is_it) {
                    Some(sweep) => sweep.points.push(point),
                    None => sweeps.push(Sweep {
                        factor: name.clone(),
                        arm: variant.arm.to_owned(),
                        at,
                        set: set.to_owned(),
                        points: vec![point],
                    }),
                }
            }
        }
        Ok(sweeps)
    }

    /// The difference of two variants on a set, each at its chosen setting, over the seeds that both have.
    pub(super) fn difference(
        &self,
        a: &Variant<'_>,
        b: &Variant<'_>,
        set: &str,
    ) -> anyhow::Result<Option<SeedEstimate>> {
        let (a, b) = in_common(self.chosen_rewards(a, set)?, self.chosen_rewards(b, set)?, |sample| sample.seed);
        if a.is_empty() {
            return Ok(None);
        }
        Ok(Some(difference_over_seeds(&a, &b, SeedInterval::default())?))
    }

    /// The difference of two variants on a set over the KL range that both reach.
    pub(super) fn difference_at_equal_kl(
        &self,
        a: &Variant<'_>,
        b: &Variant<'_>,
        set: &str,
    ) -> anyhow::Result<Option<OverKl>> {
        let (Some(a), Some(b)) = (self.curves(a, set)?, self.curves(b, set)?) else { return Ok(None) };
        let (a, b) = in_common(a, b, |curve| curve.seed);
        if a.is_empty() {
            return Ok(None);
        }
        Ok(Some(difference_over_kl(&a, &b, SeedInterval::default())?))
    }

    /// The cells of a variant at its chosen setting, by seed.
    pub(super) fn chosen_cells<'v>(&self, variant: &'v Variant<'_>) -> &'v [(u64, Vec<usize>)] {
        &variant.cells[variant.chosen]
    }

    /// The measurements of the models before RL in each seed of a variant at its chosen setting.
    pub(super) fn before(&self, variant: &Variant<'_>) -> anyhow::Result<Vec<(u64, Before)>> {
        let stage = format!("{}-before", self.study.base.evaluate);
        let mut all = Vec::new();
        for (seed, runs) in self.chosen_cells(variant) {
            let Some(node) = runs.first().and_then(|&run| self.study.node_of(&self.study.cells[run], &stage)) else {
                continue;
            };
            all.extend(self.study.before(node)?.map(|before| (*seed, before)));
        }
        Ok(all)
    }

    /// The models before RL, averaged over seeds.
    pub(super) fn arms_before(&self, before: &[(u64, Before)]) -> anyhow::Result<Vec<StudyArm>> {
        let Some((_, first)) = before.first() else { return Ok(Vec::new()) };
        let arm = |(at, (name, _)): (usize, &(String, _))| {
            let mut sets = Ordered::new();
            for set in self.reported() {
                let place = self.place(set)?;
                let over = |pick: &dyn Fn(&super::gather::OfSet) -> f64| {
                    let sample = |(seed, before): &(u64, Before)| SeedSample {
                        seed: *seed,
                        values: vec![pick(&before.arms[at].1[place])],
                    };
                    let samples: Vec<SeedSample> = before.iter().map(sample).collect();
                    self.over_seeds(&mean_over_seeds(&samples, SeedInterval::default())?)
                };
                let has_kl = before.iter().all(|(_, before)| self.kl(&before.arms[at].1[place].summary).is_some());
                let kl = has_kl.then(|| over(&|of_set| self.kl(&of_set.summary).unwrap_or(f64::NAN))).transpose()?;
                sets.insert(
                    set,
                    ArmNumbers {
                        reward: over(&|of_set| mean(&of_set.rewards))?,
                        proxy_score: over(&|of_set| of_set.summary.proxy_score.mean)?,
                        kl,
                        length: over(&|of_set| of_set.summary.length_mean)?,
                        empty: over(&|of_set| of_set.summary.empty_rate)?,
                    },
                );
            }
            Ok(StudyArm { arm: name.clone(), at: Map::new(), chosen: Map::new(), sets })
        };
        first.arms.iter().enumerate().map(arm).collect()
    }

    /// The line between two models, over seeds, set by set.
    pub(super) fn landscape(&self, before: &[(u64, Before)]) -> anyhow::Result<Vec<LineOverSeeds>> {
        let Some((_, first)) = before.first() else { return Ok(Vec::new()) };
        let mut line = Vec::new();
        for (at, point) in first.landscape.iter().enumerate() {
            let sample = |(seed, before): &(u64, Before)| {
                let point = before.landscape.get(at)?;
                let reward = match self.study.measured.measure {
                    super::Measure::GoldReward => point.gold_reward?.mean,
                    super::Measure::ProxyScore => point.proxy_score.mean,
                };
                Some(SeedSample { seed: *seed, values: vec![reward] })
            };
            let samples: Option<Vec<SeedSample>> = before.iter().map(sample).collect();
            if let Some(samples) = samples {
                let reward = self.over_seeds(&mean_over_seeds(&samples, SeedInterval::default())?)?;
                line.push(LineOverSeeds { set: point.split.clone(), alpha: point.alpha, reward });
            }
        }
        Ok(line)
    }
}

/// The mean curve of an arm and its band.
fn band(curves: &[SeedCurve], range: KlRange) -> anyhow::Result<Vec<BandPoint>> {
    let kls = kl_values(range, KlAxis::default(), BAND_POINTS);
    let points = frontier(curves, &kls, SeedInterval::default())?;
    let point = |at: &salsa_algo::stats::study::AtKl| {
        let estimate = at.estimate.as_ref()?;
        let ci95 = estimate.interval.map(|interval| [interval.low, interval.high]);
        Some(BandPoint { kl: at.kl, reward: estimate.mean, ci95 })
    };
    Ok(points.iter().filter_map(point).collect())
}

/// The elements of two lists whose seeds occur in both.
fn in_common<T>(mut a: Vec<T>, mut b: Vec<T>, seed: impl Fn(&T) -> u64) -> (Vec<T>, Vec<T>) {
    let seeds = |list: &[T]| list.iter().map(&seed).collect::<Vec<u64>>();
    let (of_a, of_b) = (seeds(&a), seeds(&b));
    a.retain(|one| of_b.contains(&seed(one)));
    b.retain(|one| of_a.contains(&seed(one)));
    (a, b)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
