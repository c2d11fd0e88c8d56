//! Configuration keys, and how a name in the file or the environment is matched to one.
//!
//! A *path* is the name of one value (`apps[0].hosts[1]`); a *pattern* is the name of a key in
//! [`KEYS`] (`apps[].hosts`). Reading, defaults, refusals and documentation all use the table, so
//! they can't disagree about which keys exist.

use super::table::KEYS;

/// Prefix of all our environment variables.
///
/// It ends with two underscores because Kubernetes sets variables such as `AGORA_RTM_BRIDGE_PORT`
/// for a service that has our name, and those must not be reported as unknown keys.
pub(super) const PREFIX: &str = "AGORA_RTM_BRIDGE__";

/// The group of librdkafka settings. Their names contain dots, and every name counts as a key.
const OPTIONS: &str = "kafka.options";

/// librdkafka settings whose names can't be derived from their variables: an underscore stays one,
/// or the final `_FILE` is part of the name.
const UNUSUAL_OPTIONS: [&str; 4] = [
    "log_level",
    "sasl.oauthbearer.assertion.file",
    "sasl.oauthbearer.assertion.jwt.template.file",
    "sasl.oauthbearer.assertion.private.key.file",
];

/// A key: one row of the table.
#[derive(Debug)]
pub(super) struct Key {
    /// The pattern. `[]` matches an index, and `*` any name.
    pub(super) name: &'static str,
    /// The accepted values.
    pub(super) kind: Kind,
    /// What applies if the key is not set.
    pub(super) absent: Absent,
    /// What the key is for, and why it has this default. Shown on the reference page.
    pub(super) why: &'static str,
}

/// The accepted values of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Any string; the code that reads it applies further rules.
    Text,
    /// A string that is never shown. Can be given as `NAME_file`.
    Secret,
    /// A path.
    Path,
    /// An address and a port.
    Address,
    /// `true` or `false`.
    Flag,
    /// A whole number.
    Count(Bounds),
    /// A duration with its unit.
    Duration(Bounds),
    /// A number of bytes with its unit.
    Size(Bounds),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Strings: an array, or one comma-separated string.
    Texts,
    /// A librdkafka setting: string, number or boolean. Can be given as `NAME_file`.
    Setting,
}

/// The minimum and maximum as a user writes them, and the reason for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) least: &'static str,
    pub(super) most: &'static str,
    pub(super) because: &'static str,
}

/// What applies if a key is not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absent {
    /// This default, as it would be written in the environment.
    Default(&'static str),
    /// The host name.
    HostName,
    /// A default derived from other keys: an example, and a remark for the reference page.
    Computed(&'static str, &'static str),
    /// None: the key is required. The text is an example.
    Required(&'static str),
    /// None: the key is optional. The text is an example.
    Optional(&'static str),
}

/// What a path refers to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// A value.
    Value(&'static Key),
    /// A group of keys: `kafka.topics`.
    Group,
    /// A list of groups: `apps`.
    List,
    /// No key that exists.
    Unknown,
}

// === impl Key ===

impl Key {
    /// The expected form, worded to follow "must be".
    pub(super) fn expected(&self) -> &'static str {
        match self.kind {
            Kind::Text | Kind::Secret | Kind::Path | Kind::Choice(_) => "a quoted string",
            Kind::Address => r#"a quoted address and port, as in "127.0.0.1:9464""#,
            Kind::Flag => "true or false",
            Kind::Count(_) => "a whole number",
            Kind::Duration(_) => r#"a quoted duration with its unit, as in "250ms""#,
            Kind::Size(_) => r#"a quoted size with its unit, as in "4GiB""#,
            Kind::Texts => "an array of strings, or one comma-separated string",
            Kind::Setting => "a string, a number, true or false",
        }
    }

    /// Whether the value can be read from a file that `NAME_file` names.
    fn takes_file(&self) -> bool {
        matches!(self.kind, Kind::Secret | Kind::Setting)
    }
}

/// What the path refers to.
pub(super) fn place(path: &str) -> Place {
    let pattern = pattern(path);
    if let Some(key) = key(&pattern) {
        return Place::Value(key);
    }
    let opens = |suffix: &str| {
        let start = format!("{pattern}{suffix}");
        KEYS.iter().any(|key| key.name.starts_with(&start))
    };
    match () {
        () if opens(".") => Place::Group,
        () if opens("[].") => Place::List,
        () => Place::Unknown,
    }
}

/// The key with this pattern: itself, as `NAME_file`, or as an element of an array of strings.
fn key(pattern: &str) -> Option<&'static Key> {
    let named = |name: &str| KEYS.iter().find(|key| key.name == name);
    if let Some(option) = option_of(pattern) {
        return if option.is_empty() { None } else { named("kafka.options.*") };
    }
    let element = || named(pattern.strip_suffix("[]")?).filter(|key| key.kind == Kind::Texts);
    let file = || named(pattern.strip_suffix("_file")?).filter(|key| key.takes_file());
    named(pattern).or_else(element).or_else(file)
}

/// The name of the librdkafka setting, if the path is one.
pub(super) fn option_of(path: &str) -> Option<&str> {
    path.strip_prefix(OPTIONS)?.strip_prefix('.')
}

/// Whether the value at this path must never be shown.
pub(super) fn is_secret(path: &str) -> bool {
    if path.ends_with("_file") {
        return false;
    }
    match (option_of(path), place(path)) {
        (Some(option), _) => is_secret_option(option),
        (None, Place::Value(key)) => key.kind == Kind::Secret,
        // The operator may have put a secret where a group belongs, or misspelt its key.
        (None, Place::Group | Place::List | Place::Unknown) => true,
    }
}

/// Whether a librdkafka setting is a secret.
///
/// Close misspellings count too: librdkafka refuses them, and its error message would otherwise
/// reveal the value.
fn is_secret_option(name: &str) -> bool {
    let telling = |part: &str| {
        ["password", "passphrase", "secret"]
            .iter()
            .any(|word| strsim::damerau_levenshtein(part, word) <= 2)
    };
    name.split(['.', '_']).any(telling)
        || name.ends_with("key.pem")
        || ["ssl_key", "sasl.oauthbearer.config"].contains(&name)
}

/// The path of a key inside a group; the empty path is the file itself.
pub(super) fn child(group: &str, name: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{group}.{name}") }
}

/// `apps[0].hosts[1]` → `apps[].hosts[]`. Names of librdkafka settings are left unchanged.
fn pattern(path: &str) -> String {
    if option_of(path).is_some() {
        return path.to_owned();
    }
    let mut inside = false;
    let outside_brackets = |letter: &char| {
        inside = (inside || *letter == '[') && *letter != ']';
        !inside || *letter == '['
    };
    path.chars().filter(outside_brackets).collect()
}

/// The nearest existing name, with the indices of the path.
///
/// Near means a few letters away, or the right name in the wrong group.
pub(super) fn nearest(path: &str) -> Option<String> {
    let pattern = pattern(path);
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let allowed = (last(&pattern).len() / 3).max(2);
    let spelling = names()
        .map(|name| (strsim::damerau_levenshtein(&name, &pattern), name))
        .filter(|(distance, _)| *distance <= allowed)
        .min();
    let elsewhere = || names().find(|name| last(name) == last(&pattern));
    spelling.map(|(_, name)| name).or_else(elsewhere).map(|name| with_indices(&name, path))
}

/// Every valid pattern: keys, their `_file` forms, groups and lists.
fn names() -> impl Iterator<Item = String> {
    KEYS.iter().filter(|key| !key.name.ends_with('*')).flat_map(|key| {
        let groups = key.name.match_indices('.').filter_map(|(dot, _)| key.name.get(..dot));
        let lists = key.name.match_indices("[]").filter_map(|(dot, _)| key.name.get(..dot));
        let file = key.takes_file().then(|| format!("{}_file", key.name));
        [key.name].into_iter().chain(groups).chain(lists).map(str::to_owned).chain(file)
    })
}

fn with_indices(pattern: &str, path: &str) -> String {
    let indices = path.split('[').skip(1).filter_map(|rest| rest.split(']').next());
    indices.fold(pattern.to_owned(), |name, index| name.replacen("[]", &format!("[{index}]"), 1))
}

/// The environment variable that sets the value at this path.
pub(super) fn variable(path: &str) -> String {
    let name = match option_of(path) {
        Some(option) => format!("{OPTIONS}.").replace('.', "__") + &option.replace('.', "_"),
        None => path.replace("[]", "[0]").replace(['.', '['], "__").replace(']', ""),
    };
    format!("{PREFIX}{}", name.to_uppercase())
}

/// The path that a variable sets; the key need not exist. `name` is the part after [`PREFIX`].
pub(super) fn path_of_variable(name: &str) -> String {
    // An array is allocated up to its largest index: a typo must not exhaust the memory.
    let is_index = |part: &str| {
        (1..=4).contains(&part.len()) && part.bytes().all(|digit| digit.is_ascii_digit())
    };
    let name = name.to_lowercase();
    if let Some(option) = name.strip_prefix("kafka__options__") {
        return child(OPTIONS, &option_of_variable(option));
    }
    name.split("__").fold(String::new(), |path, part| match part.parse::<u16>() {
        Ok(index) if is_index(part) => format!("{path}[{index}]"),
        _ => child(&path, part),
    })
}

/// `sasl_password_file` → `sasl.password_file`.
fn option_of_variable(name: &str) -> String {
    let dotted = |name: &str| {
        let name = name.replace("__", ".").replace('_', ".");
        UNUSUAL_OPTIONS
            .into_iter()
            .find(|unusual| unusual.replace('_', ".") == name)
            .map_or(name, str::to_owned)
    };
    let whole = dotted(name);
    match name.strip_suffix("_file") {
        Some(stem) if !UNUSUAL_OPTIONS.contains(&whole.as_str()) => dotted(stem) + "_file",
        _ => whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_found_by_its_variable() {
        for key in KEYS.iter().filter(|key| !key.name.ends_with('*')) {
            let path = key.name.replace("[]", "[12]");
            let name = variable(&path);
            assert_eq!(path_of_variable(name.strip_prefix(PREFIX).unwrap()), path);
            assert!(matches!(place(&path), Place::Value(found) if found.name == key.name));
        }
    }

    #[test]
    fn the_variable_of_a_setting_of_librdkafka_is_written_with_underscores() {
        for (name, path) in [
            ("SECURITY_PROTOCOL", "kafka.options.security.protocol"),
            ("SASL_PASSWORD_FILE", "kafka.options.sasl.password_file"),
            ("security.protocol", "kafka.options.security.protocol"),
            ("LOG_LEVEL", "kafka.options.log_level"),
            ("SASL_OAUTHBEARER_ASSERTION_FILE", "kafka.options.sasl.oauthbearer.assertion.file"),
        ] {
            assert_eq!(path_of_variable(&format!("KAFKA__OPTIONS__{name}")), path);
        }
    }

    #[test]
    fn the_nearest_name_is_a_slip_away_or_in_another_group() {
        for (wrong, right) in [
            ("kafka.bootstrap_server", Some("kafka.bootstrap_servers")),
            ("kafak", Some("kafka")),
            ("app", Some("apps")),
            ("apps[3].app_idd", Some("apps[3].app_id")),
            ("apps[3].auth.customer_secret_fle", Some("apps[3].auth.customer_secret_file")),
            ("apps[3].customer_id", Some("apps[3].auth.customer_id")),
            ("max_size", Some("journal.max_size")),
            ("flux_compensation", None),
        ] {
            assert_eq!(nearest(wrong).as_deref(), right, "{wrong}");
        }
    }

    #[test]
    fn a_misspelt_password_is_still_a_secret() {
        for name in ["sasl.password", "sasl.pasword", "ssl.key.pem", "my_secrt", "passwrod"] {
            assert!(is_secret(&format!("kafka.options.{name}")), "{name}");
        }
        for name in ["sasl.username", "linger.ms", "sasl.password_file", "partitioner"] {
            assert!(!is_secret(&format!("kafka.options.{name}")), "{name}");
        }
    }
}
