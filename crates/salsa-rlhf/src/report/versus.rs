//! Measurements of one arm against other models: win rates and KLs, by model name.

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeMap};
use serde_json::Value;

use super::{Estimate, Ordered};

/// Numbers of one arm that involve another model.
///
/// In JSON they are stored beside the arm's other numbers:
///
/// ```json
/// {"win_rate_vs_NAME": {"mean": 0.5, "ci95": [0.4, 0.6]}, "kl_NAME": 8.1, "kl_NAME_ci95": [7.9, 8.3]}
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Versus {
    /// Win rate over each model on the same prompts in [0, 1]; ties count half.
    pub win_rates: Ordered<Estimate>,
    /// Mean KL per response to each model, nats.
    pub kls: Ordered<Estimate>,
}

const WIN_RATE: &str = "win_rate_vs_";
const KL: &str = "kl_";

/// Suffix of the key of an interval; no anchor name ends with it.
pub(crate) const INTERVAL: &str = "_ci95";

impl Serialize for Versus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, rate) in self.win_rates.iter() {
            map.serialize_entry(&format!("{WIN_RATE}{name}"), rate)?;
        }
        for (name, kl) in self.kls.iter() {
            map.serialize_entry(&format!("{KL}{name}"), &kl.mean)?;
            map.serialize_entry(&format!("{KL}{name}{INTERVAL}"), &kl.ci95)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Versus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Versus, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Versus;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Versus, A::Error> {
                let mut versus = Versus::default();
                while let Some((key, value)) = map.next_entry::<String, Value>()? {
                    versus.read(&key, &value).map_err(|error| A::Error::custom(format!("{key}: {error}")))?;
                }
                Ok(versus)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl Versus {
    /// Reads one entry; ignores entries that are not part of this struct.
    fn read(&mut self, key: &str, value: &Value) -> Result<(), serde_json::Error> {
        if let Some(name) = key.strip_prefix(WIN_RATE) {
            self.win_rates.insert(name, Estimate::deserialize(value)?);
        } else if let Some(name) = key.strip_prefix(KL) {
            let (name, interval) = name.strip_suffix(INTERVAL).map_or((name, false), |name| (name, true));
            let mut kl = self.kls.get(name).copied().unwrap_or(Estimate::new(f64::NAN, f64::NAN, f64::NAN));
            let number = |value: Option<f64>| value.unwrap_or(f64::NAN);
            match interval {
                true => kl.ci95 = <[Option<f64>; 2]>::deserialize(value)?.map(number),
                false => kl.mean = number(Option::deserialize(value)?),
            }
            self.kls.insert(name, kl);
        }
        Ok(())
    }
}
