//! `salsa study --check`: the number of missing stages, and an estimate of their time and disk space from the finished
//! ones.
use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::ensure;
use serde::Deserialize;
use serde_json::Value;

use super::{
    factors::Only,
    plan::{Node, Study},
};
use crate::{
    config::paths::PathKind, input, progress::human_time, recipe::ErrorList,
    stage::supervised::pretrain::PretrainConfig,
};

/// Time and disk space of one stage; none if unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Cost {
    seconds: Option<f64>,
    bytes: Option<u64>,
}

/// The stages of one name.
#[derive(Default)]
struct Group<'a> {
    kind: &'a str,
    done: Vec<Cost>,
    /// Indices of the unfinished ones.
    to_do: Vec<usize>,
}

/// Totals over all stages.
#[derive(Default)]
struct Sum {
    stages: usize,
    done: usize,
    seconds: f64,
    bytes: u64,
    /// Names of stages whose time, and whose size, is not known yet.
    unknown: [Vec<String>; 2],
}

impl Study {
    /// Checks the study without running anything. Returns a line about the stages of each name and one about all of
    /// them, and the errors of the cells' inputs.
    ///
    /// # Errors
    /// If the disk is too small.
    pub fn check(&self, only: &Only) -> anyhow::Result<(Vec<String>, ErrorList)> {
        let groups = self.groups(only);
        let mut lines = Vec::new();
        for (name, group) in &groups {
            lines.push(self.line(name, group));
        }
        let mut faults = ErrorList::default();
        let mut told: Vec<String> = Vec::new();
        for at in 0..self.arms.len() {
            // The cells of an arm share their errors.
            let Some(cell) = self.cells.iter().find(|cell| cell.arm == at) else { continue };
            // A cell's own directory holds links to shared stages, whose inputs have other paths than the cell's recipe.
            for fault in cell.recipe.check(&cell.recipe.all_anew()).faults.iter() {
                let text = format!("{fault:#}");
                if !told.contains(&text) {
                    faults.add(anyhow::anyhow!("{}: {text}", self.name_of(cell)));
                    told.push(text);
                }
            }
        }
        let sum = self.sum(&groups);
        lines.push(self.in_sum(&sum, only));
        self.check_room(&sum)?;
        Ok((lines, faults))
    }

    /// Checks that the missing stages fit on the disk, as far as their size is known.
    ///
    /// # Errors
    /// If they do not fit.
    pub(super) fn check_disk(&self) -> anyhow::Result<()> {
        self.check_room(&self.sum(&self.groups(&Only::default())))
    }

    fn check_room(&self, sum: &Sum) -> anyhow::Result<()> {
        let place = existing(&self.out);
        if let Some(most) = self.file.config.max_disk {
            let used = size_of(&self.out);
            ensure!(
                used + sum.bytes <= most.0,
                "{}: max_disk: the study takes about {} of disk ({} are there already), which is more than {}; raise max_disk, \
                 or take fewer cells",
                self.file.path.display(),
                human_bytes(used + sum.bytes),
                human_bytes(used),
                human_bytes(most.0)
            );
        }
        if let Some(free) = free_bytes(&place) {
            ensure!(
                sum.bytes <= free,
                "the stages to be made take about {} of disk, but only {} are free in {}; make room, or choose another --out",
                human_bytes(sum.bytes),
                human_bytes(free),
                place.display()
            );
        }
        Ok(())
    }

    /// The stages grouped by their names in the recipe, in its order.
    fn groups(&self, only: &Only) -> Vec<(String, Group<'_>)> {
        let mut wanted = vec![false; self.nodes.len()];
        for cell in self.cells.iter().filter(|cell| only.has(&self.factors, &self.arms[cell.arm].name, &cell.setting)) {
            cell.stages.iter().for_each(|(_, node)| wanted[*node] = true);
        }
        let mut groups: Vec<(String, Group<'_>)> = Vec::new();
        for (at, node) in self.nodes.iter().enumerate().filter(|(at, _)| wanted[*at]) {
            let place = groups.iter().position(|(name, group)| *name == node.name && group.kind == node.kind.name);
            let place = place.unwrap_or_else(|| {
                groups.push((node.name.clone(), Group { kind: node.kind.name, ..Group::default() }));
                groups.len() - 1
            });
            let group = &mut groups[place].1;
            if node.is_done() { group.done.push(cost_of(&node.dir)) } else { group.to_do.push(at) }
        }
        groups
    }

    fn sum(&self, groups: &[(String, Group<'_>)]) -> Sum {
        let (mut sum, mut largest) = (Sum::default(), 0);
        for (name, group) in groups {
            sum.stages += group.done.len() + group.to_do.len();
            sum.done += group.done.len();
            let each = self.expected(name, group, groups);
            let count = group.to_do.len();
            match each.seconds {
                Some(seconds) => sum.seconds += seconds * count as f64,
                None if count > 0 => sum.unknown[0].push(name.clone()),
                None => {}
            }
            match each.bytes {
                Some(bytes) => sum.bytes += bytes * count as u64,
                None if count > 0 => sum.unknown[1].push(name.clone()),
                None => {}
            }
            let running = group.to_do.first().and_then(|&at| self.checkpoint_bytes(&self.nodes[at]));
            largest = largest.max(running.unwrap_or(0));
        }
        sum.bytes += largest;
        sum
    }

    /// The expected cost of a stage of a group: the mean of the finished ones; else of those of its kind; else the cost
    /// in a run of the base recipe; else, for disk space, the size of its model.
    fn expected(&self, name: &str, group: &Group<'_>, groups: &[(String, Group<'_>)]) -> Cost {
        let of_kind: Vec<Cost> = groups
            .iter()
            .filter(|(_, other)| other.kind == group.kind)
            .flat_map(|(_, other)| other.done.clone())
            .collect();
        let earlier = self.base.own_run().map(|dir| dir.join(name)).filter(|dir| dir.join("stage.json").exists());
        let earlier = earlier.map(|dir| cost_of(&dir)).unwrap_or_default();
        let (own, kind) = (mean(&group.done), mean(&of_kind));
        let model = || group.to_do.first().and_then(|&at| self.bytes_of(&self.nodes[at]));
        Cost {
            seconds: own.seconds.or(kind.seconds).or(earlier.seconds),
            bytes: own.bytes.or(kind.bytes).or(earlier.bytes).or_else(model),
        }
    }

    /// The size of the product of a stage that makes a model.
    fn bytes_of(&self, node: &Node) -> Option<u64> {
        let model = self.model_bytes(node)?;
        // A policy is saved with its critic.
        Some(if node.kind.name == "ppo" { 2 * model } else { model })
    }

    /// The size of the checkpoints of a stage in training: two, each with weights and both Adam moments.
    fn checkpoint_bytes(&self, node: &Node) -> Option<u64> {
        if node.kind.name == "soup" { None } else { self.bytes_of(node).map(|bytes| 2 * 3 * bytes) }
    }

    /// The size of the model that a stage produces: that of the first model it reads, or computed from its shape.
    fn model_bytes(&self, node: &Node) -> Option<u64> {
        let config = &node.planned.config;
        match node.kind.name {
            "pretrain" => {
                let pretrain = PretrainConfig::deserialize(config).ok()?;
                Some(4 * pretrain.spec(config["vocab_size"].as_u64()?.try_into().ok()?).parameters() as u64)
            }
            "sft" | "dpo" | "kto" | "orpo" | "cpo" | "soup" | "reward" | "ppo" | "grpo" | "online_dpo" => {
                let first = first_model(node)?;
                match node.needs.iter().map(|&need| &self.nodes[need]).find(|need| first.starts_with(&need.dir)) {
                    Some(from) => self.model_bytes(from),
                    None if first.is_dir() => Some(size_of(&first)),
                    None => None,
                }
            }
            _ => None,
        }
    }

    fn line(&self, name: &str, group: &Group<'_>) -> String {
        let all = group.done.len() + group.to_do.len();
        let mut line = format!("{name} ({}): {all} {}", group.kind, plural(all, "stage"));
        if !group.done.is_empty() {
            line += &format!(", {} done", group.done.len());
        }
        let each = mean(&group.done);
        if let Some(seconds) = each.seconds {
            line += &format!(", {} each", human_time(seconds));
        }
        if let Some(bytes) = each.bytes {
            line += &format!(", {} each", human_bytes(bytes));
        }
        line
    }

    fn in_sum(&self, sum: &Sum, only: &Only) -> String {
        let has = |cell: &&super::Cell| only.has(&self.factors, &self.arms[cell.arm].name, &cell.setting);
        let cells = self.cells.iter().filter(has).count();
        let to_do = sum.stages - sum.done;
        let mut line = format!("{cells} {}, {} {}", plural(cells, "cell"), sum.stages, plural(sum.stages, "stage"));
        if sum.done > 0 {
            line += &format!(", {} of them done", sum.done);
        }
        if to_do > 0 {
            let [no_time, no_size] = &sum.unknown;
            let time = known_and_not(human_time(sum.seconds), sum.seconds > 0.0, no_time);
            let size = known_and_not(human_bytes(sum.bytes), sum.bytes > 0, no_size);
            line += &format!("; {to_do} to make; time: {time}; disk: {size}");
        }
        if let Some(free) = free_bytes(&existing(&self.out)) {
            line += &format!("; {} are free", human_bytes(free));
        }
        line
    }
}

/// Formats an amount, with the names of the stages for which it is unknown.
fn known_and_not(amount: String, is_known: bool, unknown: &[String]) -> String {
    match (is_known, unknown) {
        (_, []) => amount,
        (true, names) => format!("{amount} and what {} take, which is not known yet", names.join(", ")),
        (false, _) => "not known yet".to_owned(),
    }
}

fn first_model(node: &Node) -> Option<PathBuf> {
    let mut first = None;
    let found = node.planned.places.visit(&mut node.planned.config.clone(), &mut |kind, _, text| {
        if kind == PathKind::Model && first.is_none() {
            first = Some(PathBuf::from(text));
        }
        Ok(None)
    });
    found.expect("this visit cannot fail");
    first
}

/// The cost of a finished stage.
fn cost_of(dir: &Path) -> Cost {
    let timings = input::read(&dir.join("timings.json")).ok();
    let timings: Option<Value> = timings.and_then(|text| serde_json::from_slice(&text).ok());
    Cost { seconds: timings.and_then(|timings| timings["seconds"].as_f64()), bytes: Some(size_of(dir)) }
}

fn mean(costs: &[Cost]) -> Cost {
    let seconds: Vec<f64> = costs.iter().filter_map(|cost| cost.seconds).collect();
    let bytes: Vec<u64> = costs.iter().filter_map(|cost| cost.bytes).collect();
    Cost {
        seconds: (!seconds.is_empty()).then(|| seconds.iter().sum::<f64>() / seconds.len() as f64),
        bytes: (!bytes.is_empty()).then(|| bytes.iter().sum::<u64>() / bytes.len() as u64),
    }
}

/// Bytes of all files under a directory, links not followed.
fn size_of(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    entries
        .filter_map(|entry| Some((entry.metadata().ok()?, entry.path())))
        .map(|(what, path)| if what.is_dir() { size_of(&path) } else { what.len() })
        .sum()
}

/// The nearest existing ancestor of a path.
fn existing(path: &Path) -> PathBuf {
    let mut parents = path.ancestors().filter(|path| !path.as_os_str().is_empty());
    parents.find(|path| path.exists()).map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Free disk space for this user at a directory.
#[cfg(unix)]
fn free_bytes(dir: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(dir).ok()?;
    disk.f_bavail.checked_mul(disk.f_frsize)
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

/// A size in powers of ten, as disks are sold: `3.2 GB`.
fn human_bytes(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        b if b >= 1e9 => format!("{:.1} GB", b / 1e9),
        b if b >= 1e6 => format!("{:.1} MB", b / 1e6),
        b => format!("{:.1} KB", b / 1e3),
    }
}

fn plural(count: usize, noun: &str) -> String {
    if count == 1 { noun.to_owned() } else { format!("{noun}s") }
}
