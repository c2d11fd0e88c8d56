//! The file as a layer: TOML, with the line of every value.

use std::fs;
use std::ops::Range;
use std::path::Path;

use config::ValueKind;
use toml_edit::{Array, Document, Item, TableLike, Value as Toml};

use super::fault::Origin;
use super::keys::{Key, Kind, Place};
use super::layer::Layer;
use super::{keys, layer};

/// Reads the file. If it can't be read or parsed, the error is a layer that holds only that fault.
pub(super) fn read(path: &Path) -> Result<Layer, Layer> {
    let file = path.display().to_string();
    let unreadable = |origin, reason: String| {
        let mut layer = Layer::default();
        layer.fault("", reason, &origin);
        layer
    };
    let text = fs::read_to_string(path)
        .map_err(|cause| unreadable(Origin::Nowhere, format!("{file} can't be read: {cause}")))?;
    let document = Document::parse(text.as_str()).map_err(|error| {
        let line = Lines::of(&text).at(error.span());
        let line = Origin::Line { file: file.clone(), line };
        // Only the message: the full error quotes the line, which may contain a secret.
        unreadable(line, format!("is not TOML: {}", error.message()))
    })?;
    let mut walk = Walk { file: &file, lines: Lines::of(&text), layer: Layer::default() };
    walk.group(document.as_table(), "");
    Ok(walk.layer)
}

struct Walk<'a> {
    file: &'a str,
    lines: Lines,
    layer: Layer,
}

/// Offsets of the line ends, in order. Found once, because a file of 10,000 apps needs the line of
/// every key in it.
struct Lines(Vec<usize>);

impl Walk<'_> {
    fn group(&mut self, table: &dyn TableLike, group: &str) {
        for (name, item) in table.iter() {
            let span = table.key(name).and_then(toml_edit::Key::span).or_else(|| item.span());
            let origin = self.origin(span);
            let path = keys::child(group, name);
            // Quoted dots and brackets are part of the name, but would be parsed as a path later.
            let is_plain = keys::option_of(&path).is_some() || !name.contains(['.', '[', ']']);
            match keys::place(&path) {
                _ if !is_plain => {
                    let reason =
                        "is a single name: in quotes, dots and brackets are part of the name";
                    self.layer.fault(&path, reason, &origin);
                }
                Place::Value(key) => self.value(key, path, item, &origin),
                Place::Group => self.subgroup(path, item, origin),
                Place::List => self.list(&path, item, &origin),
                Place::Unknown => self.layer.fault(&path, unknown(&path), &origin),
            }
        }
    }

    fn subgroup(&mut self, path: String, item: &Item, origin: Origin) {
        match item.as_table_like() {
            Some(table) => {
                self.group(table, &path);
                self.layer.groups.insert(path, origin);
            }
            None => {
                self.layer.fault(&path, format!("must be a group of keys: [{path}]"), &origin);
            }
        }
    }

    fn list(&mut self, path: &str, item: &Item, origin: &Origin) {
        let groups: Option<Vec<(&dyn TableLike, _)>> = match item {
            Item::ArrayOfTables(tables) => {
                Some(tables.iter().map(|table| (table as &dyn TableLike, table.span())).collect())
            }
            Item::Value(Toml::Array(array)) => {
                array.iter().map(|it| Some((it.as_inline_table()? as _, it.span()))).collect()
            }
            _ => None,
        };
        let Some(groups) = groups else {
            let reason = format!("must be a list of groups: [[{}]]", path.replace("[0]", ""));
            return self.layer.fault(path, reason, origin);
        };
        for (index, (table, span)) in groups.into_iter().enumerate() {
            let path = format!("{path}[{index}]");
            self.layer.groups.insert(path.clone(), self.origin(span));
            self.group(table, &path);
        }
    }

    fn value(&mut self, key: &Key, path: String, item: &Item, origin: &Origin) {
        match (item, key.kind) {
            (Item::Value(Toml::Array(array)), Kind::Texts) => self.texts(path, array, origin),
            (Item::Value(Toml::String(text)), Kind::Texts) => {
                self.layer.give_parts(path, text.value(), origin);
            }
            _ => match (item.as_table_like(), item.as_value().and_then(kind_of)) {
                // Without quotes, `security.protocol = …` is a table in TOML. It means the same.
                (Some(table), _) if key.kind == Kind::Setting => self.group(table, &path),
                (_, Some(kind)) => self.layer.give(path, kind, origin),
                _ => self.layer.fault(&path, format!("must be {}", key.expected()), origin),
            },
        }
    }

    fn texts(&mut self, path: String, array: &Array, origin: &Origin) {
        let mut texts = Vec::new();
        for (index, element) in array.iter().enumerate() {
            let origin = self.origin(element.span());
            match element.as_str() {
                Some(text) => texts.push(layer::value(text, &origin)),
                None => {
                    let path = format!("{path}[{index}]");
                    self.layer.fault(&path, "must be a quoted string", &origin);
                    // A placeholder, so that later elements keep their indices.
                    texts.push(layer::value(ValueKind::Nil, &origin));
                }
            }
        }
        self.layer.give(path, texts, origin);
    }

    fn origin(&self, span: Option<Range<usize>>) -> Origin {
        Origin::Line { file: self.file.to_owned(), line: self.lines.at(span) }
    }
}

/// The reason given for an unknown name.
fn unknown(path: &str) -> String {
    match keys::nearest(path) {
        Some(name) => format!("is unknown; did you mean {name}?"),
        None => "is unknown".to_owned(),
    }
}

fn kind_of(scalar: &Toml) -> Option<ValueKind> {
    match scalar {
        Toml::String(text) => Some(text.value().as_str().into()),
        Toml::Integer(number) => Some((*number.value()).into()),
        Toml::Float(number) => Some((*number.value()).into()),
        Toml::Boolean(flag) => Some((*flag.value()).into()),
        Toml::Datetime(_) | Toml::Array(_) | Toml::InlineTable(_) => None,
    }
}

// === impl Lines ===

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.match_indices('\n').map(|(end, _)| end).collect())
    }

    /// The line in which a span begins, counted from 1.
    fn at(&self, span: Option<Range<usize>>) -> usize {
        let begin = span.map_or(0, |span| span.start);
        1 + self.0.partition_point(|end| *end < begin)
    }
}
