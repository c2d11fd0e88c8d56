//! What is offered to the bridge.

use std::time::Duration;

use agora_rtm_bridge::simulator::AppScript;
use agora_rtm_bridge::simulator::Load;
use agora_rtm_bridge::simulator::RampPoint;
use agora_rtm_bridge::simulator::Spread;
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
    /// 100 App IDs with 200 events a second each.
    Many,
    /// 1,000 App IDs in which nothing happens.
    IdleMany,
}

/// What it has to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    pub(crate) part: Part,
    pub(crate) apps: usize,
    /// Events a second of each App ID.
    pub(crate) rate: u32,
    /// The share of user events.
    pub(crate) split: f64,
    pub(crate) rtt: Spread,
    /// How long it is measured.
    pub(crate) seconds: Duration,
}

/// When the load sets in: the bridge has to be ready by then.
const LOAD_FROM: Duration = Duration::from_secs(8);

/// When it has grown to its rate. In one jump it would be a burst.
pub(crate) const STEADY_FROM: Duration = Duration::from_secs(18);

// === impl Offer ===

impl Offer {
    /// What a part offers.
    pub(crate) fn of(part: Part, seconds: Duration, split: f64) -> Self {
        let (apps, rate, rtt) = match part {
            Part::CeilingFixed => (1, 9_700, Spread::always(Duration::from_millis(60))),
            Part::CeilingDrawn => (1, 9_500, Spread::millis(60, 120)),
            Part::CeilingFar => (1, 9_700, Spread::always(Duration::from_millis(300))),
            Part::Many => (100, 200, Spread::millis(20, 40)),
            Part::IdleMany => (1_000, 0, Spread::millis(20, 40)),
        };
        Self { part, apps, rate, split, rtt, seconds }
    }

    /// The same in a few words.
    pub(crate) fn title(&self) -> String {
        let part = self.part.to_possible_value().expect("no part is hidden");
        let each = match self.apps {
            1 => format!("{}/s", grouped(self.rate)),
            apps => format!("{} × {}/s", grouped(apps), grouped(self.rate)),
        };
        format!("{} {each}", part.get_name())
    }

    /// The App IDs with what happens in them.
    pub(crate) fn scripts(&self) -> Vec<AppScript> {
        let rate = f64::from(self.rate);
        let script = |index| {
            let mut app = AppScript::numbered(index);
            app.user_events = grown_to(rate * self.split);
            app.channel_events = grown_to(rate * (1.0 - self.split));
            app
        };
        (0..self.apps).map(script).collect()
    }
}

fn grown_to(rate: f64) -> Load {
    let ramp = vec![RampPoint { at: LOAD_FROM, rate: 0.0 }, RampPoint { at: STEADY_FROM, rate }];
    Load { ramp, ..Load::default() }
}
