//! Factors: what is varied, what each value sets in the recipe, and the names of settings.
use anyhow::{bail, ensure};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::config::{Usage, names, paths::visit_strings};

/// A factor that is varied.
#[derive(Clone, Debug, PartialEq)]
pub struct Factor {
    /// Its name.
    pub name: String,
    /// Its values, in the order of the file.
    pub values: Vec<Value>,
    /// Key paths with the values they are set to, in which `${NAME}` is the value of the factor of that name.
    pub set: Vec<(String, Value)>,
    /// Whether its values are repetitions or settings.
    pub role: Role,
}

/// The role of a factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Its values are repetitions of one experiment; results are averaged over them.
    Seed,
    /// Its values are settings that are compared.
    Setting,
}

/// The value of every factor, in the order of the factors.
pub(super) type Setting = Vec<Value>;

const KEYS: [&str; 3] = ["values", "set", "role"];

impl Factor {
    /// Builds a factor from its entry in the file; `meant` returns the target of a factor without `set`.
    ///
    /// # Errors
    /// No values, two equal values, an unknown key or role, no target.
    pub fn new(
        name: &str,
        given: &Value,
        meant: impl FnOnce(&str) -> anyhow::Result<Vec<(String, Value)>>,
    ) -> anyhow::Result<Factor> {
        let (values, set, role) = match given {
            Value::Array(values) => (values, None, None),
            Value::Object(given) => {
                if let Some(key) = given.keys().find(|key| !KEYS.contains(&key.as_str())) {
                    bail!("{key}: unknown key; {}", names::hint(key, KEYS.into_iter()));
                }
                let Some(Value::Array(values)) = given.get("values") else {
                    bail!("values: expected a list of values")
                };
                (values, given.get("set"), given.get("role"))
            }
            other => bail!("expected a list of values, got {other}"),
        };
        ensure!(!values.is_empty(), "there is no value");
        for (i, value) in values.iter().enumerate() {
            ensure!(!values[..i].contains(value), "the value {value} is given twice");
        }
        let set = match set {
            None => meant(name)?,
            Some(Value::Object(set)) if !set.is_empty() => set.clone().into_iter().collect(),
            Some(other) => bail!("set: expected key paths with values, got {other}"),
        };
        let role = match role.map(Value::as_str) {
            None if name.ends_with("seed") => Role::Seed,
            None => Role::Setting,
            Some(Some("seed")) => Role::Seed,
            Some(Some("setting")) => Role::Setting,
            Some(_) => bail!("role: expected seed or setting"),
        };
        Ok(Factor { name: name.to_owned(), values: values.clone(), set, role })
    }
}

/// The placeholder for the value of a factor.
pub(super) fn placeholder(name: &str) -> String {
    format!("${{{name}}}")
}

/// Replaces every `${NAME}` of a factor in a value. A text that consists of one placeholder becomes the value
/// unchanged; one that contains others is parsed as YAML, so that `"${world_seed}1"` is a number.
pub(super) fn fill(template: &Value, factors: &[Factor], setting: &Setting) -> Value {
    let mut filled = template.clone();
    let mut replace = |_: &str, text: &str| {
        let mut new = text.to_owned();
        for (factor, value) in factors.iter().zip(setting) {
            let name = placeholder(&factor.name);
            if text == name {
                return Ok(Some(value.clone()));
            }
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            new = new.replace(&name, &value);
        }
        let is_changed = new != text;
        Ok(is_changed.then(|| crate::config::parse(&new).unwrap_or_else(|_| new.clone().into())))
    };
    visit_strings(&mut filled, "", &mut replace).expect("this visit cannot fail");
    filled
}

/// All combinations of values; the last factor varies fastest.
pub(super) fn settings(factors: &[Factor]) -> Vec<Setting> {
    factors.iter().fold(vec![Vec::new()], |settings, factor| {
        let with = |setting: &Setting| -> Vec<Setting> {
            factor.values.iter().map(|value| setting.iter().cloned().chain([value.clone()]).collect()).collect()
        };
        settings.iter().flat_map(with).collect()
    })
}

/// A setting as a path component: `world_seed=1,kl_coef=0.1`; `run` if there are no factors.
pub(super) fn path_of(factors: &[Factor], setting: &Setting) -> String {
    let parts: Vec<String> =
        factors.iter().zip(setting).map(|(factor, value)| format!("{}={}", factor.name, short(value))).collect();
    if parts.is_empty() { "run".to_owned() } else { parts.join(",") }
}

/// A value as a short text that any file system accepts; if it does not fit, a digest makes it unique.
pub(super) fn short(value: &Value) -> String {
    const MOST: usize = 32;
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '_');
    if text.chars().all(is_plain) && (1..=MOST).contains(&text.len()) {
        return text;
    }
    let words: Vec<&str> = text.split(|c: char| !is_plain(c)).filter(|word| !word.is_empty()).collect();
    let kept: String = words.join("+").trim_start_matches('.').chars().take(MOST).collect();
    let digest = Sha256::digest(text.as_bytes());
    format!("{kept}~{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2])
}

/// A selection of cells: `--only arm=salsa,ppo --only kl_coef=0.1`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Only(Vec<(String, Vec<Value>)>);

impl Only {
    /// Parses the words of the command line, each `NAME=VALUE[,VALUE…]`.
    ///
    /// # Errors
    /// A word without `=`.
    pub fn parse(words: &[String]) -> Result<Only, Usage> {
        let part = |word: &String| match word.split_once('=') {
            Some((name, values)) if !name.is_empty() && !values.is_empty() => {
                let value = |text: &str| crate::config::parse(text).unwrap_or_else(|_| text.into());
                Ok((name.to_owned(), values.split(',').map(value).collect()))
            }
            _ => Err(Usage(format!("--only {word}: write it as arm=NAME or FACTOR=VALUE; several values with commas"))),
        };
        words.iter().map(part).collect::<Result<_, _>>().map(Only)
    }

    /// Checks that every name is `arm` or a factor, and every value one of its values.
    ///
    /// # Errors
    /// The first invalid name or value.
    pub fn check(&self, factors: &[Factor], arms: &[&str]) -> Result<(), Usage> {
        for (name, values) in &self.0 {
            let factor = factors.iter().find(|factor| factor.name == *name);
            for value in values {
                let wrong = |what: &str, known: Vec<String>| {
                    let shown = short(value);
                    let hint = names::hint(&shown, known.iter().map(String::as_str));
                    Err(Usage(format!("--only {name}={shown}: there is no such {what}; {hint}")))
                };
                match factor {
                    Some(factor) if factor.values.contains(value) => {}
                    Some(factor) => return wrong("value", factor.values.iter().map(short).collect()),
                    None if is_arm(name) && arms.contains(&value.as_str().unwrap_or_default()) => {}
                    None if is_arm(name) => return wrong("arm", arms.iter().map(|arm| (*arm).to_owned()).collect()),
                    None => {
                        let known = ["arm"].into_iter().chain(factors.iter().map(|factor| factor.name.as_str()));
                        return Err(Usage(format!(
                            "--only {name}: there is no such factor; {}",
                            names::hint(name, known)
                        )));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether a cell is selected.
    pub fn has(&self, factors: &[Factor], arm: &str, setting: &Setting) -> bool {
        self.0.iter().all(|(name, values)| match factors.iter().position(|factor| factor.name == *name) {
            Some(at) => values.contains(&setting[at]),
            None => values.iter().any(|value| value.as_str() == Some(arm)),
        })
    }
}

fn is_arm(name: &str) -> bool {
    name.eq_ignore_ascii_case("arm")
}

/// The values of a setting by the names of the factors.
pub(super) fn named(factors: &[Factor], setting: &Setting) -> Map<String, Value> {
    factors.iter().zip(setting).map(|(factor, value)| (factor.name.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn factor(name: &str, given: Value) -> anyhow::Result<Factor> {
        Factor::new(name, &given, |name| Ok(vec![(format!("arm.{name}"), placeholder(name).into())]))
    }

    #[test]
    fn values_fill_texts_and_stay_numbers() {
        let factors = [factor("world_seed", json!([1, 2])).unwrap(), factor("models", json!([["a", "b"]])).unwrap()];
        let setting = vec![json!(2), json!(["a", "b"])];
        let filled = |template: Value| fill(&template, &factors, &setting);
        assert_eq!(filled(json!("${world_seed}")), json!(2));
        assert_eq!(filled(json!("${world_seed}1")), json!(21));
        assert_eq!(filled(json!("seed ${world_seed}")), json!("seed 2"));
        assert_eq!(
            filled(json!({"kind": "soup", "models": "${models}"})),
            json!({"kind": "soup", "models": ["a", "b"]})
        );
        assert_eq!(filled(json!("${vars.data}/x")), json!("${vars.data}/x"), "others are the recipe's");
    }

    #[test]
    fn settings_are_every_choice_of_values_and_have_names() {
        let factors = [factor("seed", json!([1, 2])).unwrap(), factor("kl_coef", json!([0.1, 0.2])).unwrap()];
        let settings = settings(&factors);
        let names: Vec<String> = settings.iter().map(|setting| path_of(&factors, setting)).collect();
        assert_eq!(names, ["seed=1,kl_coef=0.1", "seed=1,kl_coef=0.2", "seed=2,kl_coef=0.1", "seed=2,kl_coef=0.2"]);
        assert_eq!(super::settings(&[]), [Vec::<Value>::new()]);
        assert_eq!(path_of(&[], &vec![]), "run");
        assert_eq!((factors[0].role, factors[1].role), (Role::Seed, Role::Setting));
    }

    #[test]
    fn long_and_odd_values_have_names_that_differ() {
        let names =
            [json!(["a", "b"]), json!(["a/b"]), json!("../x"), json!("x".repeat(99)), json!("")].map(|v| short(&v));
        for (i, name) in names.iter().enumerate() {
            assert!(name.len() < 48 && !name.contains(['/', ' ', '"']) && !name.starts_with('.'), "{name}");
            assert!(!names[..i].contains(name), "{name}");
        }
        assert!(names[0].starts_with("a+b~"), "{}", names[0]);
    }

    #[test]
    fn a_factor_that_makes_no_sense_is_refused() {
        let told = |given: Value| factor("x", given).unwrap_err().to_string();
        assert_eq!(told(json!([])), "there is no value");
        assert_eq!(told(json!([1, 2, 1])), "the value 1 is given twice");
        assert_eq!(told(json!({"valeus": [1]})), "valeus: unknown key; did you mean \"values\"?");
        assert_eq!(told(json!({"values": [1], "set": {}})), "set: expected key paths with values, got {}");
        assert_eq!(told(json!(1)), "expected a list of values, got 1");
    }

    #[test]
    fn only_names_arms_and_values() {
        let factors = [factor("kl_coef", json!([0.1, 0.2])).unwrap()];
        let only = |words: &[&str]| {
            let only = Only::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())?;
            only.check(&factors, &["ppo", "salsa"]).map(|()| only)
        };
        let some = only(&["ARM=salsa", "kl_coef=0.1,0.2"]).unwrap();
        assert!(some.has(&factors, "salsa", &vec![json!(0.2)]) && !some.has(&factors, "ppo", &vec![json!(0.2)]));
        assert!(Only::default().has(&factors, "ppo", &vec![json!(0.1)]));
        let told = |word: &str| only(&[word]).unwrap_err().0;
        assert_eq!(told("arm=slasa"), "--only arm=slasa: there is no such arm; did you mean \"salsa\"?");
        assert_eq!(told("kl_coef=0.3"), "--only kl_coef=0.3: there is no such value; did you mean \"0.1\"?");
        assert_eq!(told("kl=0.1"), "--only kl: there is no such factor; valid: arm, kl_coef");
        assert!(told("salsa").contains("write it as arm=NAME"));
    }
}
