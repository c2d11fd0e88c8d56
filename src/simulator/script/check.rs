//! Whether a script can be played as it is meant.

use std::collections::BTreeSet;

use super::{AppScript, FaultKind, Load, Script};
use crate::model::Endpoint;

/// A value of a script makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("`{key}`: {reason}")]
pub struct ScriptError {
    /// Which value.
    pub key: String,
    /// What has to hold.
    pub reason: &'static str,
}

// === impl Script ===

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
    if holds { Ok(()) } else { Err(ScriptError { key: key(), reason }) }
}

fn is_share(number: f64) -> bool {
    (0.0..=1.0).contains(&number)
}

fn is_rate(number: f64) -> bool {
    (0.0..=1e6).contains(&number)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::simulator::script::{Fault, RegionScript};

    #[test]
    fn what_is_wrong_in_a_script_is_named() {
        let fault = |fault: Fault| Script { faults: vec![fault], ..Script::default() };
        let app = |app: AppScript| Script { apps: vec![app], ..Script::default() };
        let cut = || Fault::new(FaultKind::Cut);
        let detour = RegionScript::new("eu").detour(Duration::from_secs(1), "ap");
        for (script, named) in [
            (
                Script { apps: Vec::new(), ..Script::default() },
                "`apps`: there has to be at least one",
            ),
            (fault(cut().share(1.5)), "`faults[0].share`: a share lies between 0 and 1"),
            (fault(cut().region("eu")), "`faults[0].region`: there is no such region"),
            (fault(Fault::new(FaultKind::Denied).status(503)), "between 400 and 499"),
            (fault(Fault::new(FaultKind::ServerError).status(404)), "between 500 and 599"),
            (
                Script { regions: vec![detour], ..Script::default() },
                "`regions.eu.detours`: there is no such region",
            ),
            (
                app(AppScript::numbered(0).rates(-1.0, 0.0)),
                "user_events.rate`: a rate lies between",
            ),
        ] {
            let error = script.check().unwrap_err().to_string();
            assert!(error.contains(named), "{named}: {error}");
        }
    }

    #[test]
    fn every_default_can_be_played() {
        Script::default().check().unwrap();
    }
}
