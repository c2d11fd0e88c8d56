//! A script from TOML, and what in it is wrong.
//!
//! TOML becomes a plain tree first and that becomes a [`Script`]: the tree is what serde reads.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde::Deserializer;
use serde::de::Error as _;
use serde_json::Value as Plain;
use toml_edit::Document;
use toml_edit::Item;
use toml_edit::Table;
use toml_edit::Value;

use super::AppScript;
use super::FaultKind;
use super::Load;
use super::Script;
use crate::model::AppId;
use crate::model::Endpoint;
use crate::model::Timestamp;

/// Why a script can't be played.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// The text is not TOML.
    #[error("the script is not TOML")]
    Syntax(#[source] Box<toml_edit::TomlError>),
    /// A key or a value is unknown or has the wrong form.
    #[error("the script has a wrong key or value")]
    Form(#[source] serde_json::Error),
    /// A value makes no sense.
    #[error("`{key}` in the script: {reason}")]
    Value {
        /// Where it stands.
        key: String,
        /// What has to hold.
        reason: &'static str,
    },
}

// === impl Script ===

impl FromStr for Script {
    type Err = ScriptError;

    /// Reads TOML and [checks](Script::check) it.
    fn from_str(text: &str) -> Result<Self, ScriptError> {
        let document =
            Document::parse(text).map_err(|error| ScriptError::Syntax(Box::new(error)))?;
        let script: Self =
            serde_json::from_value(plain_item(document.as_item())).map_err(ScriptError::Form)?;
        script.check()?;
        Ok(script)
    }
}

impl Script {
    /// Whether it can be played as it is meant.
    ///
    /// # Errors
    ///
    /// The first value that makes no sense: no App ID, a share above one, a fault for a region
    /// that is not there.
    pub fn check(&self) -> Result<(), ScriptError> {
        require(!self.apps.is_empty(), || "apps".into(), "there has to be at least one")?;
        require(self.apps.len() <= 10_000, || "apps".into(), "there can be at most 10,000")?;
        require(!self.regions.is_empty(), || "regions".into(), "there has to be at least one")?;
        require(self.regions.len() <= 100, || "regions".into(), "there can be at most 100")?;
        let regions: BTreeSet<&str> = self.regions.iter().map(|it| it.name.as_str()).collect();
        let apps: BTreeSet<&str> = self.apps.iter().map(|it| it.app_id.as_str()).collect();
        require(regions.len() == self.regions.len(), || "regions".into(), "names must differ")?;
        require(apps.len() == self.apps.len(), || "apps".into(), "App IDs must differ")?;
        for region in &self.regions {
            let known = region.detours.iter().all(|it| regions.contains(it.region.as_str()));
            require(
                known,
                || format!("regions.{}.detours", region.name),
                "there is no such region",
            )?;
        }
        self.apps.iter().try_for_each(check_app)?;
        for (index, fault) in self.faults.iter().enumerate() {
            let key = |name: &str| format!("faults[{index}].{name}");
            require(is_share(fault.share), || key("share"), "a share lies between 0 and 1")?;
            let (statuses, reason) = match fault.kind {
                FaultKind::Denied => (400..=499, "a denial lies between 400 and 499"),
                _ => (500..=599, "a server error lies between 500 and 599"),
            };
            let is_meant = fault.status.is_none_or(|status| statuses.contains(&status));
            require(is_meant, || key("status"), reason)?;
            let has_pace = fault.bytes_per_second > 0;
            require(has_pace, || key("bytes_per_second"), "a slow body still has a pace")?;
            let known_region = fault.region.as_deref().is_none_or(|name| regions.contains(name));
            require(known_region, || key("region"), "there is no such region")?;
            let known_app = fault.app_id.as_deref().is_none_or(|id| apps.contains(id));
            require(known_app, || key("app_id"), "there is no such App ID")?;
        }
        Ok(())
    }
}

fn check_app(app: &AppScript) -> Result<(), ScriptError> {
    let key = |name: &str| format!("apps.{}.{name}", app.app_id);
    require(is_share(app.malformed), || key("malformed"), "a share lies between 0 and 1")?;
    for (count, name) in
        [(app.users, "users"), (app.channels, "channels"), (app.members, "members")]
    {
        require(count > 0, || key(name), "there has to be at least one")?;
    }
    for endpoint in Endpoint::ALL {
        let key = |name: &str| key(&format!("{endpoint}.{name}"));
        let Load { rate, ramp, random_bursts, .. } = app.load(endpoint);
        require(is_rate(*rate), || key("rate"), "a rate lies between 0 and 1,000,000 a second")?;
        for point in ramp {
            require(is_rate(point.rate), || key("ramp"), "a rate lies between 0 and 1,000,000")?;
        }
        let in_order = ramp.is_sorted_by(|earlier, later| earlier.at < later.at);
        require(in_order, || key("ramp"), "the points come one after the other")?;
        let per_minute = random_bursts.map_or(0.0, |it| it.per_minute);
        require(
            is_rate(per_minute),
            || key("random_bursts"),
            "a rate lies between 0 and 1,000,000",
        )?;
    }
    Ok(())
}

fn require(
    holds: bool,
    key: impl FnOnce() -> String,
    reason: &'static str,
) -> Result<(), ScriptError> {
    if holds { Ok(()) } else { Err(ScriptError::Value { key: key(), reason }) }
}

fn is_share(number: f64) -> bool {
    (0.0..=1.0).contains(&number)
}

fn is_rate(number: f64) -> bool {
    (0.0..=1e6).contains(&number)
}

// === TOML as a plain tree ===

fn plain_item(item: &Item) -> Plain {
    match item {
        Item::None => Plain::Null,
        Item::Value(value) => plain(value),
        Item::Table(table) => plain_table(table),
        Item::ArrayOfTables(tables) => tables.iter().map(plain_table).collect(),
    }
}

fn plain_table(table: &Table) -> Plain {
    table.iter().map(|(key, item)| (key.to_owned(), plain_item(item))).collect()
}

fn plain(value: &Value) -> Plain {
    match value {
        Value::String(it) => it.value().as_str().into(),
        Value::Integer(it) => (*it.value()).into(),
        Value::Float(it) => (*it.value()).into(),
        Value::Boolean(it) => (*it.value()).into(),
        Value::Datetime(it) => it.value().to_string().into(),
        Value::Array(it) => it.iter().map(plain).collect(),
        Value::InlineTable(it) => it.iter().map(|(key, v)| (key.to_owned(), plain(v))).collect(),
    }
}

// === the forms of single values ===

pub(super) fn all() -> f64 {
    1.0
}

pub(super) fn slow_pace() -> u32 {
    20_000
}

pub(super) fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    humantime::parse_duration(&text)
        .map_err(|error| D::Error::custom(format_args!("`{text}` is not a duration: {error}")))
}

pub(super) fn maybe_duration<'de, D>(from: D) -> Result<Option<Duration>, D::Error>
where
    D: Deserializer<'de>,
{
    duration(from).map(Some)
}

pub(super) fn moment<'de, D: Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(from)?;
    let moment = humantime::parse_rfc3339_weak(&text)
        .map_err(|error| D::Error::custom(format_args!("`{text}` is not a time: {error}")))?;
    let since = moment.duration_since(std::time::UNIX_EPOCH).map_err(D::Error::custom)?;
    Ok(Timestamp::default().after(since))
}

pub(super) fn app_id<'de, D: Deserializer<'de>>(from: D) -> Result<AppId, D::Error> {
    String::deserialize(from).map(AppId::new)
}

pub(super) fn named<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: std::fmt::Display>,
{
    let text = String::deserialize(from)?;
    text.parse().map_err(|error| D::Error::custom(format_args!("`{text}` is {error}")))
}

pub(super) fn maybe_endpoint<'de, D>(from: D) -> Result<Option<Endpoint>, D::Error>
where
    D: Deserializer<'de>,
{
    let text = String::deserialize(from)?;
    let endpoint = text.parse().map_err(|()| {
        D::Error::custom(format_args!("`{text}` is neither user_events nor channel_events"))
    })?;
    Ok(Some(endpoint))
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;
    use crate::simulator::script::Spread;

    #[test]
    fn a_script_says_only_what_it_is_about() {
        let script: Script = r#"
            seed = 7
            epoch = 2024-02-29T12:00:00Z
            quiet_from = "1m"
            regions = [{ name = "eu" }, { name = "ap" }]

            [network]
            rtt = "250ms..350ms"
            framing = "mixed"
            page_time = "700ms"

            [[apps]]
            app_id = "one"
            user_events = { rate = 12.5, bursts = [{ at = "5s", events = 3000 }] }
            channel_events = { ramp = [{ at = "0s", rate = 1 }, { at = "10s", rate = 500 }] }
            dialect = { old_names = true, empty = "absent" }

            [[faults]]
            kind = "cut"
            share = 0.25
            region = "ap"
            from = "10s"
        "#
        .parse()
        .unwrap();
        assert_eq!(script.epoch.to_string(), "2024-02-29T12:00:00.000Z");
        assert_eq!(script.network.rtt, Spread::millis(250, 350));
        assert_eq!(script.network.page_time, Some(Duration::from_millis(700)));
        assert_eq!(script.apps[0].user_events.bursts[0].events, 3_000);
        assert_eq!(script.apps[0].channel_events.ramp.len(), 2);
        assert_eq!(script.apps[0].users, 1_000, "not named, so the default");
        assert_eq!(script.faults[0].kind, FaultKind::Cut);
        assert!(script.faults[0].is_on(Duration::from_secs(10)));
        assert!(!script.faults[0].is_on(Duration::from_millis(9_999)));
    }

    #[test]
    fn what_is_wrong_in_a_script_is_named() {
        for (text, named) in [
            ("seed = ", "not TOML"),
            ("sede = 1", "unknown field `sede`"),
            ("apps = []", "at least one"),
            ("quiet_from = \"soon\"", "`soon` is not a duration"),
            ("[[faults]]\nkind = \"cute\"", "`cute` is not a fault; there are refused,"),
            ("[[faults]]\nkind = \"cut\"\nshare = 1.5", "between 0 and 1"),
            ("[[faults]]\nkind = \"cut\"\nregion = \"eu\"", "no such region"),
            ("[[faults]]\nkind = \"denied\"\nstatus = 503", "between 400 and 499"),
            ("[[faults]]\nkind = \"server_error\"\nstatus = 404", "between 500 and 599"),
            (
                "regions = [{ name = \"eu\", detours = [{ from = \"1s\", region = \"ap\" }] }]",
                "`regions.eu.detours` in the script: there is no such region",
            ),
            ("network.rtt = \"40ms..20ms\"", "not a range of time"),
            ("[[apps]]\nuser_events.rate = -1", "`apps."),
        ] {
            let error = text.parse::<Script>().unwrap_err();
            let told = match error.source() {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            };
            assert!(told.contains(named), "{text}: {told}");
        }
    }

    #[test]
    fn every_default_can_be_played() {
        Script::default().check().unwrap();
        "".parse::<Script>().unwrap();
    }
}
