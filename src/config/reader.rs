//! Reads typed values from the merged layers, using the table of keys.
//!
//! A read that fails records its fault and returns [`Noted`], so that one run finds all faults. A
//! caller that gets a `Noted` has nothing to add.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use config::{Value, ValueKind};

use super::fault::{Fault, Origin};
use super::keys::{Absent, Bounds, Key, Kind, Place};
use super::secret::Secret;
use super::{fault, keys, units};

/// The fault has been recorded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noted;

/// A value, or the proof that its fault has been recorded.
pub(super) type Read<T> = Result<T, Noted>;

/// Reads values and collects faults.
#[derive(Debug)]
pub(super) struct Reader {
    /// The merged layers.
    pub(super) merged: Value,
    /// Where each group begins.
    pub(super) groups: BTreeMap<String, Origin>,
    /// systemd's `$CREDENTIALS_DIRECTORY`.
    pub(super) credentials: Option<PathBuf>,
    /// The faults found so far.
    pub(super) faults: Vec<Fault>,
}

impl Reader {
    /// A value that is set or has a default, and passes the check.
    pub(super) fn checked<T>(
        &mut self,
        path: &str,
        check: impl FnOnce(&str) -> Result<T, String>,
    ) -> Read<T> {
        match self.text(path)? {
            Some(text) => check(&text).map_err(|reason| self.fault(path, reason)),
            None => Err(self.missing(path)),
        }
    }

    /// An optional value.
    pub(super) fn optional<T>(
        &mut self,
        path: &str,
        check: impl FnOnce(&str) -> Result<T, String>,
    ) -> Read<Option<T>> {
        match self.text(path)? {
            Some(text) => check(&text).map(Some).map_err(|reason| self.fault(path, reason)),
            None => Ok(None),
        }
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, path: &str) -> Read<bool> {
        self.checked(path, |text| text.parse().map_err(|_| "must be true or false".to_owned()))
    }

    /// A duration within its bounds.
    pub(super) fn duration(&mut self, path: &str) -> Read<Duration> {
        self.bounded(path, units::duration)
    }

    /// A number of bytes within its bounds.
    pub(super) fn size(&mut self, path: &str) -> Read<u64> {
        self.bounded(path, units::size)
    }

    /// A whole number within its bounds, which lie within those of the type.
    pub(super) fn count<T: FromStr>(&mut self, path: &str) -> Read<T> {
        let whole = |text: &str| text.parse().map_err(|_| "must be a whole number".to_owned());
        let number: i64 = self.bounded(path, whole)?;
        Ok(number.to_string().parse().ok().expect("the bounds in the table suit the type"))
    }

    /// One of the words that the table lists.
    pub(super) fn choice<T: Copy>(&mut self, path: &str, words: &[(&str, T)]) -> Read<T> {
        let names: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        self.checked(path, |text| {
            let chosen = words.iter().find(|(word, _)| *word == text);
            chosen.map(|(_, value)| *value).ok_or_else(|| format!("must be {}", names.join(" or ")))
        })
    }

    /// The elements of an array of strings, each with its path. Faulty elements are recorded and
    /// skipped, so that the others are checked too. Empty only if all elements are faulty.
    pub(super) fn texts(&mut self, path: &str) -> Read<Vec<(String, String)>> {
        let given = self.find(path).map(|value| value.kind.clone());
        let Some(ValueKind::Array(elements)) = given else {
            let Some(text) = self.text(path)? else { return Err(self.missing(path)) };
            return Ok(text.split(", ").map(|part| (path.to_owned(), part.to_owned())).collect());
        };
        if elements.is_empty() {
            return Err(self.fault(path, "must contain at least one element"));
        }
        let mut texts = Vec::new();
        for (index, element) in elements.into_iter().enumerate() {
            match element.kind {
                ValueKind::String(text) => texts.push((format!("{path}[{index}]"), text)),
                _ => {
                    self.hole(path, index);
                }
            }
        }
        Ok(texts)
    }

    /// The path of a readable file.
    pub(super) fn file(&mut self, path: &str) -> Read<Option<PathBuf>> {
        let Some(written) = self.text(path)? else { return Ok(None) };
        let file = self.located(&written);
        match File::open(&file) {
            Ok(_) => Ok(Some(file)),
            Err(cause) => {
                Err(self.fault(path, format!("failed to open {}: {cause}", file.display())))
            }
        }
    }

    /// A secret, given as `NAME` or as `NAME_file`; the environment takes precedence.
    pub(super) fn secret(&mut self, path: &str) -> Read<Option<Secret>> {
        let file_path = format!("{path}_file");
        let is_variable =
            |path: &str| matches!(self.find(path).map(Origin::of), Some(Origin::Variable(_)));
        match (self.is_given(path), self.is_given(&file_path)) {
            (true, true) if is_variable(path) == is_variable(&file_path) => {
                let name = path.rsplit('.').next().unwrap_or_default();
                Err(self.fault(&file_path, format!("can't be combined with {name}")))
            }
            (true, true) if is_variable(path) => self.secret_value(path),
            (_, true) => self.secret_file(&file_path).map(Some),
            _ => self.secret_value(path),
        }
    }

    fn secret_value(&mut self, path: &str) -> Read<Option<Secret>> {
        self.optional(path, |text| match text {
            "" => Err("is empty".to_owned()),
            text => Ok(Secret::from_value(text)),
        })
    }

    fn secret_file(&mut self, path: &str) -> Read<Secret> {
        let Some(ValueKind::String(written)) = self.find(path).map(|value| &value.kind) else {
            return Err(self.fault(path, "must be a quoted path"));
        };
        let secret = Secret::from_file(self.located(written));
        match secret.reveal() {
            // Bad content in the file of one app must not keep the others from running: the file is
            // read again for each request.
            Err(error) if error.is_about_content() && path.starts_with("apps[") => Ok(secret),
            Err(error) => {
                let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
                Err(self.fault(path, format!("failed to {error}{cause}")))
            }
            Ok(_) => Ok(secret),
        }
    }

    /// The number of groups in a list, including empty ones.
    pub(super) fn len(&self, list: &str) -> usize {
        let given = match self.find(list).map(|value| &value.kind) {
            Some(ValueKind::Array(elements)) => elements.len(),
            _ => 0,
        };
        let begun = |count: &usize| self.groups.contains_key(&format!("{list}[{count}]"));
        given.max((0..).take_while(begun).count())
    }

    /// The names of the librdkafka settings that are set, without any `_file` suffix.
    pub(super) fn options(&self) -> Vec<String> {
        let Some(ValueKind::Table(options)) = self.find("kafka.options").map(|it| &it.kind) else {
            return Vec::new();
        };
        let bare = |name: &String| name.strip_suffix("_file").unwrap_or(name).to_owned();
        let mut names: Vec<_> = options.keys().map(bare).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Whether anything was set at this path, even if it is only the header of a group.
    pub(super) fn is_given(&self, path: &str) -> bool {
        self.find(path).is_some() || self.groups.contains_key(path)
    }

    /// Records a fault in the value that is, or should be, at this path.
    pub(super) fn fault(&mut self, path: &str, reason: impl Into<String>) -> Noted {
        let (value, origin) = match (self.find(path), keys::place(path)) {
            (Some(value), Place::Value(_)) => (fault::shown(path, &value.kind), Origin::of(value)),
            (None, Place::Value(Key { absent: Absent::Default(text), .. })) => {
                (Some(fault::quoted(text)), Origin::Default)
            }
            _ => (None, self.group_of(path)),
        };
        let key = path.to_owned();
        self.faults.push(Fault { key, value, reason: reason.into(), origin });
        Noted
    }

    /// Records that two values contradict each other: as a fault in the first, unless only the
    /// second was set explicitly.
    pub(super) fn conflict(
        &mut self,
        (first, first_reason): (&str, String),
        (second, second_reason): (&str, String),
    ) -> Noted {
        if !self.is_given(first) && self.is_given(second) {
            self.fault(second, second_reason)
        } else {
            self.fault(first, first_reason)
        }
    }

    fn missing(&mut self, path: &str) -> Noted {
        let (variable, why) = (keys::variable(path), key(path).why);
        self.fault(path, format!("is required, here or as {variable}: {why}"))
    }

    /// Records that an element is missing, unless it already has a fault.
    pub(super) fn hole(&mut self, list: &str, index: usize) -> Noted {
        let key = format!("{list}[{index}]");
        if !self.faults.iter().any(|fault| fault.key == key) {
            let reason = "is missing: indices start at 0 without gaps".to_owned();
            let origin = self.group_of(list);
            self.faults.push(Fault { key, value: None, reason, origin });
        }
        Noted
    }

    fn bounded<T: PartialOrd>(
        &mut self,
        path: &str,
        read: fn(&str) -> Result<T, String>,
    ) -> Read<T> {
        let (Kind::Count(bounds) | Kind::Duration(bounds) | Kind::Size(bounds)) = key(path).kind
        else {
            unreachable!("`{path}` is read as a number, and the table gives it no bounds");
        };
        let Bounds { least, most, because } = bounds;
        self.checked(path, |text| {
            let value = read(text)?;
            let bound = |text| read(text).expect("the bounds in the table are legal");
            if value < bound(least) || value > bound(most) {
                return Err(format!("must be from {least} to {most}: {because}"));
            }
            Ok(value)
        })
    }

    /// The value that was set, or the default, as a string.
    fn text(&mut self, path: &str) -> Read<Option<String>> {
        let key = key(path);
        let Some(value) = self.find(path) else {
            return Ok(match key.absent {
                Absent::Default(text) => Some(text.to_owned()),
                Absent::HostName => Some(host_name()),
                Absent::Required(_) | Absent::Optional(_) | Absent::Computed(..) => None,
            });
        };
        match (&value.kind, key.kind) {
            (ValueKind::String(text), _) => Ok(Some(text.clone())),
            (ValueKind::I64(_), Kind::Count(_))
            | (ValueKind::Boolean(_), Kind::Flag)
            | (ValueKind::I64(_) | ValueKind::Boolean(_) | ValueKind::Float(_), Kind::Setting) => {
                Ok(Some(value.kind.to_string()))
            }
            _ => Err(self.fault(path, format!("must be {}", key.expected()))),
        }
    }

    /// Resolves a relative path against systemd's credentials directory, if there is one.
    fn located(&self, written: &str) -> PathBuf {
        match &self.credentials {
            Some(directory) => directory.join(written),
            None => PathBuf::from(written),
        }
    }

    fn find(&self, path: &str) -> Option<&Value> {
        if let Some(option) = keys::option_of(path) {
            return within(self.find("kafka.options")?, option);
        }
        let mut steps = path.split(['.', '[']).map(|step| step.trim_end_matches(']'));
        let found = steps.try_fold(&self.merged, within)?;
        (found.kind != ValueKind::Nil).then_some(found)
    }

    /// Where the innermost group around the path begins.
    fn group_of(&self, path: &str) -> Origin {
        let ends = path.match_indices(['.', '[']).filter_map(|(end, _)| path.get(..end));
        let mut around = ends.chain([path]).filter_map(|group| self.groups.get(group));
        around.next_back().cloned().unwrap_or(Origin::Nowhere)
    }
}

/// One level down: a name in a table, or an index in an array.
fn within<'a>(value: &'a Value, step: &str) -> Option<&'a Value> {
    match &value.kind {
        ValueKind::Table(table) => table.get(step),
        ValueKind::Array(array) => array.get(step.parse::<usize>().ok()?),
        _ => None,
    }
}

fn key(path: &str) -> &'static Key {
    match keys::place(path) {
        Place::Value(key) => key,
        _ => unreachable!("`{path}` is read, and the table does not have it"),
    }
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
