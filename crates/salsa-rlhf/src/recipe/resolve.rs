//! Resolution of the strings of a recipe: variables, stages, paths.
use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    path::{Component, Path, PathBuf},
};

use anyhow::{bail, ensure};
use serde_json::{Map, Value};

use super::ErrorList;
use crate::{
    config::{
        names,
        paths::{PathKind, visit_strings},
    },
    hub::{self, Network},
};

/// Maximum number of bytes that the variables of a recipe, or those of one stage, may expand to.
const MOST_COPIED: usize = 8 << 20;

/// Size of a value without its text, in bytes.
const VALUE: usize = 64;

/// Maximum nesting of a value; safe for recursive functions.
const DEEPEST_VALUE: usize = 100;

/// Everything that can be named in a recipe.
pub(crate) struct Names<'a> {
    /// `${out}`
    pub out: &'a Path,
    /// `${name}`
    pub name: &'a str,
    /// `${seed}`
    pub seed: Option<u64>,
    /// `${vars.x}`
    pub vars: &'a Map<String, Value>,
    /// `${stages.x}`, and plain names where a path is expected.
    pub stages: Vec<StageName>,
}

/// A stage as seen from other stages.
pub(crate) struct StageName {
    /// Its name.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
    /// Its product when named as data: the directory or a file in it.
    pub product: PathBuf,
}

/// Resolves the strings of one stage.
pub(crate) struct Resolver<'a> {
    /// Everything that can be named.
    pub names: &'a Names<'a>,
    /// The stage's position; it may refer to earlier ones.
    pub position: usize,
    /// The base of relative paths.
    pub base: &'a Path,
    /// Whether ids of the hub are downloaded; otherwise they stay ids unless they are in the cache.
    pub network: Network,
    /// Texts that result from `${stages.x}` or `${out}`; as paths they are resolved already.
    rooted: RefCell<HashSet<String>>,
}

impl<'a> Resolver<'a> {
    /// The resolver of the stage at this position.
    pub(crate) fn new(names: &'a Names<'a>, position: usize, base: &'a Path, network: Network) -> Resolver<'a> {
        Resolver { names, position, base, network, rooted: RefCell::default() }
    }

    /// Replaces every `${name}` by its value.
    ///
    /// # Errors
    /// All unknown names and references to later stages, each with its key.
    pub(crate) fn variables(&self, given: &mut Map<String, Value>) -> Result<(), ErrorList> {
        let mut value = Value::Object(std::mem::take(given));
        let (mut faults, budget) = (ErrorList::default(), Budget::default());
        let mut visit = |place: &str, text: &str| {
            Ok(faults.take(self.replace(text, &budget).map_err(|error| error.context(place.to_owned()))))
        };
        visit_strings(&mut value, "", &mut visit).expect("this visit cannot fail");
        if let Value::Object(value) = value {
            *given = value;
        }
        faults.none_or(())
    }

    /// Resolves an input to a path.
    ///
    /// # Errors
    /// If it is a later stage, or does not exist.
    pub(crate) fn input(&self, kind: PathKind, text: &str) -> anyhow::Result<Value> {
        if self.rooted.borrow().contains(text) {
            return Ok(text.into());
        }
        Ok(self.find(kind, text)?.to_string_lossy().into_owned().into())
    }

    /// Resolves `text` to the product of an earlier stage, or to an existing path.
    fn find(&self, kind: PathKind, text: &str) -> anyhow::Result<PathBuf> {
        if let Some(stage) = self.stage(text)? {
            return Ok(match kind {
                PathKind::Model => stage.dir.clone(),
                PathKind::Data => stage.product.clone(),
            });
        }
        let path = join(self.base, text);
        if path.exists() || path.starts_with(self.names.out) {
            return Ok(path);
        }
        if hub::is_id(text) {
            return match self.network {
                Network::Online => hub::resolve(text, kind.into()),
                Network::Offline => Ok(hub::cached(text, kind.into()).unwrap_or_else(|| text.into())),
            };
        }
        let earlier = self.names.stages[..self.position].iter().map(|stage| stage.name.as_str());
        let hint = match names::nearest(text, earlier) {
            Some(near) => format!("did you mean the stage {near:?}?"),
            None => "check the path; relative paths start at the recipe's directory".to_owned(),
        };
        match kind {
            PathKind::Model => {
                bail!("no earlier stage is called {text:?}, and no directory {}; {hint}", path.display())
            }
            PathKind::Data => bail!("there is no file {}; {hint}", path.display()),
        }
    }

    /// The stage of this name, which must be an earlier one.
    fn stage(&self, name: &str) -> anyhow::Result<Option<&StageName>> {
        let Some(position) = self.names.stages.iter().position(|stage| stage.name == name) else { return Ok(None) };
        ensure!(position != self.position, "the stage {name:?} refers to itself");
        ensure!(position < self.position, "refers to the stage {name:?}, which comes later; move that one up");
        Ok(Some(&self.names.stages[position]))
    }

    fn replace(&self, text: &str, budget: &Budget) -> anyhow::Result<Value> {
        let mut is_rooted = false;
        let value = substitute(text, &mut |name| match name.split_once('.') {
            Some(("vars", name)) => variable(self.names.vars, name, budget),
            Some(("stages", name)) => {
                is_rooted = true;
                let known = self.names.stages[..self.position].iter().map(|stage| stage.name.as_str());
                match self.stage(name)? {
                    Some(stage) => Ok(stage.dir.to_string_lossy().into_owned().into()),
                    None => bail!("there is no stage {name:?}; {}", names::hint(name, known)),
                }
            }
            None if name == "out" => {
                is_rooted = true;
                Ok(self.names.out.to_string_lossy().into_owned().into())
            }
            None if name == "name" => Ok(self.names.name.into()),
            None if name == "seed" && self.names.seed.is_some() => Ok(self.names.seed.into()),
            _ => bail!("${{{name}}} is unknown; there are vars.NAME, stages.NAME, out, name, seed"),
        })?;
        if let Some(text) = value.as_str().filter(|_| is_rooted) {
            self.rooted.borrow_mut().insert(text.to_owned());
        }
        Ok(value)
    }
}

/// Resolves the variables in order; each may use earlier ones.
///
/// # Errors
/// If one uses a name that is no earlier variable.
pub(crate) fn vars(given: &Map<String, Value>) -> anyhow::Result<Map<String, Value>> {
    let (mut done, budget) = (Map::new(), Budget::default());
    for (name, value) in given {
        let mut value = value.clone();
        visit_strings(&mut value, &format!("vars.{name}"), &mut |place, text| {
            let replaced = substitute(text, &mut |name| match name.split_once('.') {
                Some(("vars", name)) => variable(&done, name, &budget),
                _ => bail!("${{{name}}} is not known here; a variable may use the variables above it"),
            });
            replaced.map(Some).map_err(|error| error.context(place.to_owned()))
        })?;
        done.insert(name.clone(), value);
    }
    Ok(done)
}

/// The remaining size of copies of variables: a variable that uses another one twice, and is used twice itself, doubles
/// the size with every line of the recipe.
struct Budget {
    left: Cell<usize>,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget { left: Cell::new(MOST_COPIED) }
    }
}

impl Budget {
    /// Deducts the size of a copy of `value` before it is made.
    fn charge(&self, value: &Value, depth: usize) -> anyhow::Result<()> {
        ensure!(depth < DEEPEST_VALUE, "variables are nested more than {DEEPEST_VALUE} deep; write them flatter");
        let size = match value {
            Value::String(text) => text.len() + VALUE,
            Value::Object(fields) => fields.keys().map(String::len).sum::<usize>() + VALUE,
            _ => VALUE,
        };
        let Some(left) = self.left.get().checked_sub(size) else {
            bail!(
                "the variables become more than {} MiB of values once they are filled in; use fewer of them",
                MOST_COPIED >> 20
            );
        };
        self.left.set(left);
        match value {
            Value::Array(items) => items.iter().try_for_each(|item| self.charge(item, depth + 1)),
            Value::Object(fields) => fields.values().try_for_each(|field| self.charge(field, depth + 1)),
            _ => Ok(()),
        }
    }
}

fn variable(vars: &Map<String, Value>, name: &str, budget: &Budget) -> anyhow::Result<Value> {
    match vars.get(name) {
        Some(value) => {
            budget.charge(value, 0)?;
            Ok(value.clone())
        }
        None => bail!("there is no variable {name:?}; {}", names::hint(name, vars.keys().map(String::as_str))),
    }
}

/// Replaces each `${name}`. A text that consists of one `${name}` becomes its value unchanged, so numbers stay numbers.
fn substitute(text: &str, look_up: &mut dyn FnMut(&str) -> anyhow::Result<Value>) -> anyhow::Result<Value> {
    if let Some(name) = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'))
        && !name.contains(['$', '{', '}'])
    {
        return look_up(name);
    }
    let (mut done, mut rest) = (String::new(), text);
    while let Some(start) = rest.find("${") {
        if let Some(before) = rest[..start].strip_suffix('$') {
            done += before;
            done += "${";
            rest = &rest[start + 2..];
            continue;
        }
        let Some(length) = rest[start..].find('}') else { bail!("{text:?} opens ${{ and never closes it") };
        done += &rest[..start];
        match look_up(&rest[start + 2..start + length])? {
            Value::String(value) => done += &value,
            value @ (Value::Number(_) | Value::Bool(_)) => done += &value.to_string(),
            other => bail!("{} is {other}, which cannot be part of a text", &rest[start..=start + length]),
        }
        rest = &rest[start + length + 1..];
    }
    done += rest;
    Ok(done.into())
}

/// `path` relative to `base`, without needless `..`.
pub(crate) fn join(base: &Path, path: &str) -> PathBuf {
    let joined = base.join(path);
    let mut short = PathBuf::new();
    for component in joined.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if matches!(short.components().next_back(), Some(Component::Normal(_))) => {
                short.pop();
            }
            other => short.push(other),
        }
    }
    if short.as_os_str().is_empty() {
        // A recipe with `out: .` whose path has no folder.
        return std::env::current_dir().unwrap_or(joined);
    }
    // `a/../b` differs from `b` if `a` is a symbolic link.
    match (joined.canonicalize(), short.canonicalize()) {
        (Ok(long), Ok(other)) if long != other => joined,
        (Ok(_), Err(_)) => joined,
        _ => short,
    }
}
