//! One source of values: the file, or the environment.
//!
//! Each becomes a [`Layer`]: values by path, with their origins, and without unknown names. The
//! `config` crate merges the two.

use std::collections::{BTreeMap, HashMap};

use config::{Config, ConfigError, Source, Value, ValueKind};

use super::fault::{Fault, Origin};
use super::keys;

/// Values by path, and the faults found while collecting them.
#[derive(Clone, Debug, Default)]
pub(super) struct Layer {
    given: Vec<(String, Value)>,
    /// Where each group begins, so that a key missing from it can be reported with a line.
    pub(super) groups: BTreeMap<String, Origin>,
    pub(super) faults: Vec<Fault>,
}

// === impl Layer ===

impl Layer {
    /// Adds a value.
    pub(super) fn give(&mut self, path: String, kind: impl Into<ValueKind>, origin: &Origin) {
        self.given.push((path, value(kind, origin)));
    }

    /// Adds an array of strings that was written as one comma-separated string.
    pub(super) fn give_parts(&mut self, path: String, text: &str, origin: &Origin) {
        let parts: Vec<_> = text.split(',').map(|part| value(part.trim(), origin)).collect();
        self.give(path, parts, origin);
    }

    /// Records a fault without the value, which may be a secret in the wrong place.
    pub(super) fn fault(&mut self, path: &str, reason: impl Into<String>, origin: &Origin) {
        let (key, reason) = (path.to_owned(), reason.into());
        self.faults.push(Fault { key, value: None, reason, origin: origin.clone() });
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<HashMap<String, Value>, ConfigError> {
        let mut values = HashMap::new();
        let mut options = HashMap::new();
        for (path, value) in &self.given {
            // The crate takes a dot for a level, but names of librdkafka settings contain dots.
            match keys::option_of(path) {
                Some(option) => options.insert(option.to_owned(), value.clone()),
                None => values.insert(path.clone(), value.clone()),
            };
        }
        if !options.is_empty() {
            values.insert("kafka.options".to_owned(), options.into());
        }
        Ok(values)
    }
}

/// A value with its origin.
pub(super) fn value(kind: impl Into<ValueKind>, origin: &Origin) -> Value {
    Value::new(Some(&origin.to_string()), kind)
}

/// Merges the two; the environment takes precedence.
pub(super) fn merged(file: &Layer, environment: &Layer) -> Value {
    let layers = Config::builder().add_source(file.clone()).add_source(environment.clone());
    layers.build().expect("both layers only hand over what they hold").cache
}
