//! One source of values: the file, or the environment.
//!
//! Both become the same thing, a [`Layer`]: values by path, each with its origin, none with an
//! unknown name. The `config` crate lays one over the other.

use std::collections::{BTreeMap, HashMap};

use config::{Config, ConfigError, Source, Value, ValueKind};

use super::fault::{Fault, Origin};
use super::keys;

/// Values by path, with the faults that were seen while they were collected.
#[derive(Clone, Debug, Default)]
pub(super) struct Layer {
    given: Vec<(String, Value)>,
    /// Where groups begin, so that what is missing in one has a line.
    pub(super) groups: BTreeMap<String, Origin>,
    pub(super) faults: Vec<Fault>,
}

// === impl Layer ===

impl Layer {
    /// Takes a value up.
    pub(super) fn give(&mut self, path: String, kind: impl Into<ValueKind>, origin: &Origin) {
        self.given.push((path, value(kind, origin)));
    }

    /// Takes up what was written for an array of texts as one text with commas.
    pub(super) fn give_parts(&mut self, path: String, text: &str, origin: &Origin) {
        let parts: Vec<_> = text.split(',').map(|part| value(part.trim(), origin)).collect();
        self.give(path, parts, origin);
    }

    /// Notes a fault. The value is left out: it may be a secret in the wrong place.
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
            // The crate takes a dot for a level. In the names of librdkafka's settings it is none.
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

/// The environment over the file.
pub(super) fn merged(file: &Layer, environment: &Layer) -> Value {
    let layers = Config::builder().add_source(file.clone()).add_source(environment.clone());
    layers.build().expect("both layers only hand over what they hold").cache
}
