//! The demo's script: the load and faults of the simulated Agora, and the timeline.
//!
//! Times are fractions of the whole duration, so that a short run shows the same as a long one. The
//! load stays below what Agora's buffers hold, so that all losses are intended.

use std::ops::Range;
use std::time::Duration;

use crate::model::{Endpoint, Timestamp};
use crate::simulator::{AppScript, Burst, Dialect, Fault, FaultKind, RegionScript, Script};

/// The regions. Both are drained, so the second repeats the events of the first.
pub(super) const REGIONS: [&str; 2] = ["eu", "ap"];

/// Number of events in the burst.
const BURST: u32 = 1_500;

/// Fraction of the events that are user events.
const USER_SHARE: f64 = 0.3;

/// Fraction of the elements that are not events.
const MALFORMED: f64 = 0.005;

/// The user's choices.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wishes {
    /// How long events are generated.
    pub(super) length: Duration,
    /// Events per second for each App ID.
    pub(super) rate: u32,
    /// Number of App IDs.
    pub(super) apps: u16,
    /// Seed for all random choices.
    pub(super) seed: u64,
}

/// The timeline.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// The script of the simulated Agora.
    pub(super) script: Script,
    /// Special phases, in order.
    pub(super) scenes: Vec<Scene>,
    /// When the broker is unavailable.
    pub(super) pause: Range<Duration>,
}

/// A special phase.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    /// When it happens.
    pub(super) during: Range<Duration>,
    /// Its name.
    pub(super) title: &'static str,
    /// A sentence that describes it.
    pub(super) told: String,
}

// === impl Plan ===

impl Plan {
    /// Makes the plan for these choices. Simulated time zero is `epoch`.
    pub(super) fn new(wishes: &Wishes, epoch: Timestamp) -> Self {
        let part = |share: f64| wishes.length.mul_f64(share);
        let burst_at = part(0.2);
        // Long enough to hit some requests: a busy feed is polled every 250 to 450 ms.
        let cut = part(0.05).clamp(Duration::from_millis(700), Duration::from_millis(1_000));
        let pause = part(0.15).clamp(Duration::from_millis(1_000), Duration::from_millis(2_000));
        let from = |start: Duration, length: Duration| start..start + length;
        // Copies reach the other region up to 400 ms later: both must fall into this period.
        let long_cut = part(0.15).clamp(Duration::from_millis(900), Duration::from_millis(1_600));
        let (one_region, both_regions) = (from(part(0.4), cut), from(part(0.8), long_cut));
        let pause = from(part(0.55), pause);

        let mut apps: Vec<AppScript> = (0..wishes.apps).map(|index| app(index, wishes)).collect();
        if let Some(first) = apps.first_mut() {
            let burst = Burst { at: burst_at, events: BURST, over: Duration::ZERO };
            first.channel_events.bursts.push(burst);
        }
        let id = |app: Option<&AppScript>| app.map(|app| app.app_id.as_str().to_owned());
        let cut_in_one = Fault {
            app_id: id(apps.first()),
            endpoint: Some(Endpoint::User),
            ..cut_during(&one_region).region(REGIONS[0])
        };
        let cut_in_both = Fault {
            app_id: id(apps.last()),
            endpoint: Some(Endpoint::Channel),
            ..cut_during(&both_regions)
        };
        let [eu, ap] = REGIONS;
        let last = wishes.apps;
        let scene = |during, title, told| Scene { during, title, told };
        let scenes = vec![
            scene(
                from(burst_at, Duration::from_secs(1)),
                "burst",
                format!(
                    "1,500 channel events of app 1 happen at once; {eu} and {ap} both hold them"
                ),
            ),
            scene(
                one_region,
                "cut answers",
                format!("{eu} cuts off answers to app 1's user events; {ap} has copies"),
            ),
            scene(
                pause.clone(),
                "broker paused",
                "draining continues, and the journal keeps the pages".to_owned(),
            ),
            scene(
                both_regions,
                "cut answers",
                format!(
                    "{eu} and {ap} cut off answers to app {last}'s channel events; gaps report the \
                     loss"
                ),
            ),
        ];
        let script = Script {
            seed: wishes.seed,
            epoch,
            apps,
            regions: REGIONS.map(RegionScript::new).into(),
            faults: vec![cut_in_one, cut_in_both],
            ..Script::default()
        };
        Self { script, scenes, pause }
    }

    /// The special phase at a moment, if there is one.
    pub(super) fn at(&self, moment: Duration) -> Option<&Scene> {
        self.scenes.iter().find(|scene| scene.during.contains(&moment))
    }
}

fn app(index: u16, wishes: &Wishes) -> AppScript {
    let rate = f64::from(wishes.rate);
    let plain = AppScript::numbered(index.into());
    AppScript {
        malformed: MALFORMED,
        // Every other App ID uses the old documents' dialect and human-chosen names.
        dialect: Dialect { old_names: index % 2 == 1, ..Dialect::default() },
        wild_names: index % 2 == 1,
        ..plain.rates(rate * USER_SHARE, rate * (1.0 - USER_SHARE))
    }
}

fn cut_during(time: &Range<Duration>) -> Fault {
    Fault::new(FaultKind::Cut).between(time.start, time.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(seconds: u64, apps: u16) -> Plan {
        let length = Duration::from_secs(seconds);
        Plan::new(&Wishes { length, rate: 100, apps, seed: 7 }, Timestamp::from_millis(0))
    }

    #[test]
    fn every_length_shows_everything_and_one_thing_at_a_time() {
        for seconds in [5, 6, 8, 20, 60, 3_600] {
            let plan = plan(seconds, 2);
            let titles: Vec<_> = plan.scenes.iter().map(|scene| scene.title).collect();
            assert_eq!(titles, ["burst", "cut answers", "broker paused", "cut answers"]);
            for pair in plan.scenes.windows(2) {
                assert!(pair[0].during.end <= pair[1].during.start, "{seconds}: {pair:?}");
            }
            let end = plan.scenes.last().unwrap().during.end;
            assert!(end <= Duration::from_secs(seconds), "{seconds}: {end:?}");
            assert_eq!(plan.at(plan.pause.start).unwrap().title, "broker paused");
        }
    }

    #[test]
    fn the_script_can_be_played() {
        for apps in [1, 2, 20] {
            let script = plan(20, apps).script;
            script.check().unwrap();
            assert_eq!(script.apps.len(), usize::from(apps));
            assert!(script.keep_records, "the verdict needs every event");
        }
    }
}
