//! Faults in a configuration: all of them at once, each with its location.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;

use config::{Value, ValueKind};

use super::keys;
use super::keys::PREFIX;

/// Maximum length of a value in a fault, in characters; longer values are cut off.
const SHOWN: usize = 80;

/// All faults in a configuration, in reading order: the file from top to bottom, then the
/// environment.
#[derive(Debug)]
pub struct Faults(Vec<Fault>);

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key, as in `apps[0].app_id`; empty if the fault is in the file as a whole.
    pub key: String,
    /// The value as TOML writes it. Never set for a secret.
    pub value: Option<String>,
    /// What is wrong and why it matters, worded to follow the key: "is unknown".
    pub reason: String,
    /// Where the value was set.
    pub origin: Origin,
}

/// Where each value was set, by path.
#[derive(Debug, Default)]
pub struct Origins(BTreeMap<String, Origin>);

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A line of the file, counted from 1.
    Line {
        /// The path of the file as given.
        file: String,
        /// The line.
        line: usize,
    },
    /// An environment variable.
    Variable(String),
    /// The default in the table of keys.
    Default,
    /// Not set at all, which is the fault.
    Nowhere,
}

// === impl Faults ===

impl Faults {
    /// `None` if there are no faults.
    pub(super) fn found(mut faults: Vec<Fault>) -> Option<Self> {
        faults.sort_by(|a, b| a.origin.cmp(&b.origin));
        faults.dedup();
        (!faults.is_empty()).then_some(Self(faults))
    }

    /// Iterates over the faults in reading order.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }
}

impl fmt::Display for Faults {
    /// One fault per line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            let line_break = if index == 0 { "" } else { "\n" };
            write!(f, "{line_break}{fault}")?;
        }
        Ok(())
    }
}

impl Error for Faults {}

// === impl Fault ===

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, reason, origin } = self;
        // An unknown name can contain anything; in quotes, even a newline.
        let key = key.replace(char::is_control, "?");
        if *origin != Origin::Nowhere {
            write!(f, "{origin}: ")?;
        }
        match value {
            Some(value) => write!(f, "{key} = {value}: {reason}"),
            None if key.is_empty() => f.write_str(reason),
            None => write!(f, "{key}: {reason}"),
        }
    }
}

// === impl Origins ===

impl Origins {
    /// The origins of all values that were set.
    pub(super) fn of_all(merged: &Value) -> Self {
        let mut origins = Self::default();
        origins.note(String::new(), merged);
        origins
    }

    /// Where the value at this path was set. For an array, where its first element was set.
    pub fn of(&self, path: &str) -> &Origin {
        let first = || self.0.get(&format!("{path}[0]"));
        self.0.get(path).or_else(first).unwrap_or(&Origin::Default)
    }

    fn note(&mut self, path: String, value: &Value) {
        match &value.kind {
            ValueKind::Table(table) => {
                for (name, value) in table {
                    self.note(keys::child(&path, name), value);
                }
            }
            ValueKind::Array(elements) => {
                for (index, value) in elements.iter().enumerate() {
                    self.note(format!("{path}[{index}]"), value);
                }
            }
            _ => {
                self.0.insert(path, Origin::of(value));
            }
        }
    }
}

// === impl Origin ===

impl Origin {
    /// Parses the output of `Display`, which is how the `config` crate carries an origin.
    pub(super) fn of(value: &Value) -> Self {
        let Some(text) = value.origin() else { return Self::Nowhere };
        let line = text.rsplit_once(':').and_then(|(file, line)| Some((file, line.parse().ok()?)));
        match line {
            _ if text.starts_with(PREFIX) => Self::Variable(text.to_owned()),
            Some((file, line)) => Self::Line { file: file.to_owned(), line },
            None => Self::Nowhere,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { file, line } => write!(f, "{file}:{line}"),
            Self::Variable(name) => f.write_str(name),
            Self::Default => f.write_str("default"),
            Self::Nowhere => f.write_str("nowhere"),
        }
    }
}

/// A value as a fault shows it: cut to length and without passwords in URLs. `None` for a secret.
pub(super) fn shown(path: &str, kind: &ValueKind) -> Option<String> {
    if keys::is_secret(path) {
        return None;
    }
    let text = match kind {
        ValueKind::String(text) => quoted(&without_password(text)),
        ValueKind::Array(elements) => {
            let elements: Vec<_> = elements.iter().filter_map(|it| shown(path, &it.kind)).collect();
            format!("[{}]", elements.join(", "))
        }
        ValueKind::Nil | ValueKind::Table(_) => return None,
        scalar => scalar.to_string(),
    };
    let cut = text.char_indices().nth(SHOWN).and_then(|(end, _)| text.get(..end));
    Some(cut.map_or(text.clone(), |start| format!("{start}…")))
}

/// A string quoted and escaped as TOML does it.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            _ if letter.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(letter))),
            _ => out.push(letter),
        }
    }
    out.push('"');
    out
}

/// `http://user:password@host` → `http://***@host`, anywhere in the text.
pub(super) fn without_password(text: &str) -> String {
    match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 <= at => {
            let (before, after) = (text.get(..scheme + 3), text.get(at..));
            format!("{}***{}", before.unwrap_or_default(), after.unwrap_or_default())
        }
        _ => text.to_owned(),
    }
}
