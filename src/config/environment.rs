//! The environment as a layer: `AGORA_RTM_BRIDGE__APPS__0__APP_ID`, two underscores per level.
//!
//! Values stay strings. A variable with an index replaces only that array element; an array of
//! strings can also be given whole, separated by commas.

use std::collections::BTreeMap;

use super::fault::Origin;
use super::keys;
use super::keys::{Kind, PREFIX, Place};
use super::layer::Layer;

/// Reads the variables that start with our prefix.
pub(super) fn read(variables: &[(String, String)]) -> Layer {
    let mut layer = Layer::default();
    let mut seen = BTreeMap::new();
    for (name, value) in variables {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        let path = keys::path_of_variable(rest);
        let origin = Origin::Variable(name.clone());
        match keys::place(&path) {
            Place::Value(key) => {
                if let Some(other) = seen.insert(path.clone(), name.clone()) {
                    layer.fault(&path, format!("is also set by {other}"), &origin);
                }
                let is_element = path.ends_with(']');
                match key.kind {
                    Kind::Texts if !is_element => layer.give_parts(path, value, &origin),
                    _ => layer.give(path, value.as_str(), &origin),
                }
            }
            Place::Group | Place::List => {
                layer.fault(&path, "is a group of keys: set one of its keys instead", &origin);
            }
            Place::Unknown => layer.fault(&path, unknown(&path), &origin),
        }
    }
    for (path, whole, origin) in twofold(&seen) {
        layer.fault(path, format!("the whole array is also set by {whole}"), &origin);
    }
    layer
}

/// Array elements whose array is also set as a whole, which is ambiguous.
fn twofold(seen: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str, Origin)> {
    seen.iter().filter_map(|(path, name)| {
        let array = path.strip_suffix(']')?.rsplit_once('[')?.0;
        let whole = seen.get(array)?;
        Some((path.as_str(), whole.as_str(), Origin::Variable(name.clone())))
    })
}

fn unknown(path: &str) -> String {
    match keys::nearest(path) {
        Some(name) => format!("is unknown; did you mean {}?", keys::variable(&name)),
        None => "is unknown".to_owned(),
    }
}
