//! What is wrong with a configuration: all of it, each with where it stands.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;

use config::{Value, ValueKind};

use super::keys;
use super::keys::PREFIX;

/// The longest value that is shown whole, in characters.
const SHOWN: usize = 80;

/// Everything that is wrong with a configuration, in the order in which a person would go through
/// it: the file from top to bottom, then the environment.
#[derive(Debug)]
pub struct Faults(Vec<Fault>);

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key, as in `apps[0].app_id`; empty where the file as a whole is meant.
    pub key: String,
    /// What was written, as it would stand in the file. Never a secret's.
    pub value: Option<String>,
    /// What is wrong with it, and why that matters. Goes on from the key: "is unknown".
    pub reason: String,
    /// Where it was written.
    pub origin: Origin,
}

/// Where each value was written, by its path.
#[derive(Debug, Default)]
pub struct Origins(BTreeMap<String, Origin>);

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A line of the file; the first is 1.
    Line {
        /// The file as it was named.
        file: String,
        /// The line.
        line: usize,
    },
    /// A variable of the environment.
    Variable(String),
    /// The table of keys.
    Default,
    /// Nowhere: that is what is wrong.
    Nowhere,
}

// === impl Faults ===

impl Faults {
    /// None where there is nothing wrong.
    pub(super) fn found(mut faults: Vec<Fault>) -> Option<Self> {
        faults.sort_by(|a, b| a.origin.cmp(&b.origin));
        faults.dedup();
        (!faults.is_empty()).then_some(Self(faults))
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }
}

impl fmt::Display for Faults {
    /// One line each.
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
        // A name that nobody knows can hold anything, in quotes even a new line.
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
    /// Those of everything that was written.
    pub(super) fn of_all(merged: &Value) -> Self {
        let mut origins = Self::default();
        origins.note(String::new(), merged);
        origins
    }

    /// Where the value at this path was written. An array is where its first element is.
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
    /// Reads back what `Display` wrote, which is what the `config` crate carries.
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

/// A value as a fault may show it: none for a secret, shortened, without passwords in URLs.
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

/// A text as TOML writes it.
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

/// `http://user:password@host` → `http://***@host`, wherever in the text it stands.
pub(super) fn without_password(text: &str) -> String {
    match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 <= at => {
            let (before, after) = (text.get(..scheme + 3), text.get(at..));
            format!("{}***{}", before.unwrap_or_default(), after.unwrap_or_default())
        }
        _ => text.to_owned(),
    }
}
