//! The loads on the bridge.

use std::num::NonZeroU32;
use std::time::Duration;

use agora_rtm_bridge::plan::{Tally, Trial, bridge};
use agora_rtm_bridge::schedule::Limits;
use agora_rtm_bridge::simulator::{AppScript, Load, Network, RampPoint, Script, Spread};
use clap::ValueEnum;

use crate::steady::table::grouped;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// One App ID, 9,700 events a second, a round trip of 60 ms.
    CeilingFixed,
    /// One App ID, 9,500 events a second, a round trip of 60 to 120 ms.
    CeilingDrawn,
    /// One App ID, 9,700 events a second, a round trip of 300 ms.
    CeilingFar,
    /// One App ID, 6,000 events a second, four fifths of them channel events, a round trip of 100
    /// ms, plus 700 ms for the body of a full page.
    SlowBodies,
    /// 100 App IDs with 200 events a second each.
    Many,
    /// 1,000 App IDs without events.
    IdleMany,
    /// 10,000 App IDs without events; 2,000 of them are refused, half of these because of their
    /// credentials.
    FailingMany,
}

/// A part's parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    pub(crate) part: Part,
    pub(crate) apps: usize,
    /// Events per second of each App ID.
    pub(crate) rate: u32,
    /// Fraction of user events.
    pub(crate) split: f64,
    pub(crate) rtt: Spread,
    /// Time from the head of a full page to the end of its body.
    pub(crate) page_time: Option<Duration>,
    /// Duration of the measurement.
    pub(crate) seconds: Duration,
}

/// When the load starts; the bridge must be ready by then.
const LOAD_FROM: Duration = Duration::from_secs(8);

/// When the load has grown to its rate. A sudden jump would be a burst.
pub(crate) const STEADY_FROM: Duration = Duration::from_secs(18);

/// Number of trials for the plan.
const PLANNED_SEEDS: u64 = 5;

/// The plan's time to make a page durable, as in the `plan` command.
const WORK: Duration = Duration::from_millis(5);

// === impl Offer ===

impl Offer {
    /// The parameters of a part.
    pub(crate) fn of(part: Part, seconds: Duration, split: f64) -> Self {
        let (apps, rate, rtt) = match part {
            Part::CeilingFixed => (1, 9_700, Spread::always(Duration::from_millis(60))),
            Part::CeilingDrawn => (1, 9_500, Spread::millis(60, 120)),
            Part::CeilingFar => (1, 9_700, Spread::always(Duration::from_millis(300))),
            Part::SlowBodies => (1, 6_000, Spread::always(Duration::from_millis(100))),
            Part::Many => (100, 200, Spread::millis(20, 40)),
            Part::IdleMany => (1_000, 0, Spread::millis(20, 40)),
            Part::FailingMany => (10_000, 0, Spread::millis(20, 40)),
        };
        let is_slow = part == Part::SlowBodies;
        let split = if is_slow { 0.2 } else { split };
        let page_time = is_slow.then_some(Duration::from_millis(700));
        Self { part, apps, rate, split, rtt, page_time, seconds }
    }

    /// The network to Agora.
    pub(crate) fn network(&self) -> Network {
        Network { rtt: self.rtt, page_time: self.page_time, ..Network::default() }
    }

    /// The fraction of events that would overflow, according to `plan`; `None` for several apps,
    /// which it doesn't simulate.
    pub(crate) fn planned_overflow(&self) -> Option<f64> {
        if self.apps > 1 {
            return None;
        }
        let limits = Limits {
            requests_per_second: NonZeroU32::new(10)?,
            shortest_interval: Duration::from_millis(250),
            longest_interval: Duration::from_secs(2),
        };
        let mut sum = Tally::default();
        for seed in 1..=PLANNED_SEEDS {
            let (apps, network) = (self.scripts(), self.network());
            let trial = Trial {
                script: Script { seed, apps, network, ..Script::default() },
                starts_at: Duration::ZERO,
                measured_from: Duration::ZERO,
                ends_at: STEADY_FROM + self.seconds,
                work: WORK,
            };
            sum.add(&trial.play(|now| bridge(limits, now, seed)));
        }
        Some(sum.measured_loss())
    }

    /// A short title.
    pub(crate) fn title(&self) -> String {
        let part = self.part.to_possible_value().expect("no part is hidden");
        let each = match self.apps {
            1 => format!("{}/s", grouped(self.rate)),
            apps => format!("{} × {}/s", grouped(apps), grouped(self.rate)),
        };
        format!("{} {each}", part.get_name())
    }

    /// Whether an app is refused for the whole run.
    pub(crate) fn fails(&self, app: usize) -> bool {
        self.part == Part::FailingMany && app.is_multiple_of(5)
    }

    /// Whether it is refused because of its credentials.
    pub(crate) fn is_unauthorised(&self, app: usize) -> bool {
        self.fails(app) && app.is_multiple_of(2)
    }

    /// The App IDs with their loads.
    pub(crate) fn scripts(&self) -> Vec<AppScript> {
        let rate = f64::from(self.rate);
        let script = |index| {
            let mut app = AppScript::numbered(index);
            app.user_events = grown_to(rate * self.split);
            app.channel_events = grown_to(rate * (1.0 - self.split));
            app.disabled = self.fails(index) && !self.is_unauthorised(index);
            app
        };
        (0..self.apps).map(script).collect()
    }
}

fn grown_to(rate: f64) -> Load {
    let ramp = vec![RampPoint { at: LOAD_FROM, rate: 0.0 }, RampPoint { at: STEADY_FROM, rate }];
    Load { ramp, ..Load::default() }
}
