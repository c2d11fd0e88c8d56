//! Decides which fault hits which request or connection.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use super::clock::randomness;
use super::load::share;
use super::script::{Fault, FaultKind, Script};
use crate::model::Endpoint;

/// The faults of a script, with the random generator that selects them.
#[derive(Debug)]
pub(super) struct Faults {
    faults: Vec<Fault>,
    regions: Vec<String>,
    rng: StdRng,
}

// === impl Faults ===

impl Faults {
    pub(super) fn new(script: &Script) -> Self {
        Self {
            faults: script.faults.clone(),
            regions: script.regions.iter().map(|it| it.name.clone()).collect(),
            rng: randomness(script.seed, 1),
        }
    }

    /// Replaces the faults from now on.
    pub(super) fn replace(&mut self, faults: Vec<Fault>) {
        self.faults = faults;
    }

    /// The fault that hits an attempt to connect.
    pub(super) fn strike_connection(&mut self, now: Duration, region: usize) -> Option<FaultKind> {
        let name = self.regions.get(region);
        let is_meant =
            |fault: &Fault| fault.kind.strikes_connections() && fits(&fault.region, name);
        strike(&self.faults, &mut self.rng, now, is_meant).map(|fault| fault.kind)
    }

    /// The fault that hits a request.
    pub(super) fn strike_request(
        &mut self,
        now: Duration,
        region: usize,
        app_id: &str,
        endpoint: Endpoint,
    ) -> Option<Fault> {
        let name = self.regions.get(region);
        let is_meant = |fault: &Fault| {
            !fault.kind.strikes_connections()
                && fits(&fault.region, name)
                && fault.app_id.as_deref().is_none_or(|it| it == app_id)
                && fault.endpoint.is_none_or(|it| it == endpoint)
        };
        strike(&self.faults, &mut self.rng, now, is_meant).cloned()
    }

    /// The periods in which a region refuses every connection, so that its listener may be closed.
    pub(super) fn closed(&self, region: usize) -> Vec<(Duration, Duration)> {
        let name = self.regions.get(region);
        let is_meant = |fault: &&Fault| {
            fault.kind == FaultKind::Refused && fault.share >= 1.0 && fits(&fault.region, name)
        };
        let refusals = self.faults.iter().filter(is_meant);
        refusals.map(|it| (it.from, it.until.unwrap_or(Duration::MAX))).collect()
    }
}

fn fits(wanted: &Option<String>, name: Option<&String>) -> bool {
    wanted.is_none() || wanted.as_ref() == name
}

/// The first fault that is active, applies, and is drawn.
fn strike<'a>(
    faults: &'a [Fault],
    rng: &mut StdRng,
    now: Duration,
    is_meant: impl Fn(&Fault) -> bool,
) -> Option<&'a Fault> {
    let mut possible = faults.iter().filter(|fault| fault.is_on(now) && is_meant(fault));
    possible.find(|fault| rng.random_bool(share(fault.share)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::script::RegionScript;

    const APP: &str = "app";

    fn faults(faults: Vec<Fault>) -> Faults {
        let regions = vec![RegionScript::new("eu"), RegionScript::new("ap")];
        Faults::new(&Script { regions, faults, ..Script::default() })
    }

    #[test]
    fn a_fault_strikes_only_whom_it_is_meant_for() {
        let second = Duration::from_secs;
        let base = Fault::new(FaultKind::Cut).between(second(1), second(2)).region("ap");
        let mut faults = faults(vec![Fault {
            app_id: Some(APP.into()),
            endpoint: Some(Endpoint::User),
            ..base
        }]);
        let mut strikes = |now, region, app, endpoint| {
            faults.strike_request(now, region, app, endpoint).is_some()
        };
        let (early, late) = (Duration::from_millis(999), second(2));
        assert!(strikes(second(1), 1, APP, Endpoint::User));
        assert!(!strikes(early, 1, APP, Endpoint::User));
        assert!(!strikes(late, 1, APP, Endpoint::User));
        assert!(!strikes(second(1), 0, APP, Endpoint::User));
        assert!(!strikes(second(1), 1, "other", Endpoint::User));
        assert!(!strikes(second(1), 1, APP, Endpoint::Channel));
        assert_eq!(faults.strike_connection(second(1), 1), None);
    }

    #[test]
    fn a_share_is_a_share() {
        let mut faults = faults(vec![Fault::new(FaultKind::Failed).share(0.25)]);
        let count = (0..4_000)
            .filter(|_| faults.strike_request(Duration::ZERO, 0, APP, Endpoint::User).is_some())
            .count();
        assert!((850..1_150).contains(&count), "{count}");
    }

    #[test]
    fn a_region_that_refuses_everybody_is_closed() {
        let second = Duration::from_secs;
        let faults = faults(vec![
            Fault::new(FaultKind::Refused).between(second(1), second(2)).region("eu"),
            Fault::new(FaultKind::Refused).share(0.5),
            Fault::new(FaultKind::BlackHole),
        ]);
        assert_eq!(faults.closed(0), [(second(1), second(2))]);
        assert_eq!(faults.closed(1), []);
    }
}
