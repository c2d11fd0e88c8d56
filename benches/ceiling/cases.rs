//! The loads that are offered: steady ones near the limit, bursts, and a start on full buffers.

use std::time::Duration;

use agora_rtm_bridge::plan::Trial;
use agora_rtm_bridge::simulator::AppScript;
use agora_rtm_bridge::simulator::Burst;
use agora_rtm_bridge::simulator::Load;
use agora_rtm_bridge::simulator::Network;
use agora_rtm_bridge::simulator::RampPoint;
use agora_rtm_bridge::simulator::Script;
use agora_rtm_bridge::simulator::Spread;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// The load grows to its rate in this time: a jump from rest to thousands a second is a burst.
const RAMP: Duration = Duration::from_secs(8);

const RATES: [u32; 6] = [1_000, 5_000, 9_000, 9_500, 9_700, 9_900];
const RTTS: [u64; 4] = [5, 60, 120, 300];
/// Users' share of the events, in percent.
const SPLITS: [u32; 4] = [50, 80, 95, 100];

/// A row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// What happens.
    pub(crate) kind: Kind,
    /// The round trip.
    pub(crate) rtt: Spread,
}

/// What happens.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// So many events a second, so many percent of them users'.
    Steady { rate: u32, split: u32 },
    /// 1,990 events at once on both endpoints of an app with 5 a second.
    Burst,
    /// 1,990 events, and 910 more 500 ms later, on a feed that burst before; or on both.
    Twice { both: bool },
    /// Buffers that are full when the program starts, with 1,000 events a second on each.
    FullBuffers,
}

/// Every case there is, or those that make a readable table.
pub(crate) fn cases(all: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for rtt in RTTS {
        for spread in [Spread::always(MS * u32::try_from(rtt).unwrap_or(0)), half_more_or_less(rtt)]
        {
            for rate in RATES {
                for split in SPLITS {
                    let case = Case { kind: Kind::Steady { rate, split }, rtt: spread };
                    if all || case.is_telling() {
                        cases.push(case);
                    }
                }
            }
        }
    }
    let rtt = Spread::millis(60, 120);
    cases.push(Case { kind: Kind::Steady { rate: 9_500, split: 76 }, rtt });
    for kind in
        [Kind::Burst, Kind::Twice { both: false }, Kind::Twice { both: true }, Kind::FullBuffers]
    {
        for rtt in [Spread::millis(60, 60), Spread::millis(60, 120), Spread::millis(300, 300)] {
            cases.push(Case { kind, rtt });
        }
    }
    cases
}

fn half_more_or_less(rtt: u64) -> Spread {
    Spread {
        from: MS * u32::try_from(rtt).unwrap_or(0) / 2,
        to: MS * u32::try_from(rtt * 3).unwrap_or(0) / 2,
    }
}

// === impl Case ===

impl Case {
    /// Whether it tells something that its neighbours don't.
    fn is_telling(&self) -> bool {
        let Kind::Steady { rate, split } = self.kind else { return true };
        let is_fixed = self.rtt.from == self.rtt.to;
        let rtt = (self.rtt.from + self.rtt.to).as_millis() / 2;
        match (rate, split) {
            (1_000 | 5_000, 80) => is_fixed && rtt == 60,
            (9_500, 80) => true,
            (9_500, 100) => rtt == 60 || rtt == 300,
            (9_700 | 9_900, 80) => is_fixed && rtt >= 60 && rtt != 120,
            (9_900, 50) => is_fixed && rtt == 60,
            _ => false,
        }
    }

    /// The load in words.
    pub(crate) fn load(&self) -> String {
        match self.kind {
            Kind::Steady { rate, split } => {
                let rate = crate::table::grouped(rate);
                format!("{rate}/s, {split}/{}", 100 - split)
            }
            Kind::Burst => "1,990 at once on both".to_owned(),
            Kind::Twice { both: false } => "1,990 + 910 after 500 ms".to_owned(),
            Kind::Twice { both: true } => "1,990 + 910, on both".to_owned(),
            Kind::FullBuffers => "start on full buffers".to_owned(),
        }
    }

    /// The round trip in words.
    pub(crate) fn round_trip(&self) -> String {
        let Spread { from, to } = self.rtt;
        if from == to {
            return format!("{} ms", from.as_secs_f64() * 1_000.0);
        }
        format!("{}–{} ms", from.as_secs_f64() * 1_000.0, to.as_secs_f64() * 1_000.0)
    }

    /// It with everything drawn by this seed. Steady loads are measured for so long; `even` ones come
    /// at even distances, and not as chance has it.
    pub(crate) fn trial(&self, seed: u64, seconds: u32, even: bool) -> Trial {
        let network = Network { rtt: self.rtt, ..Network::default() };
        let app = |user_events, channel_events| {
            let apps = vec![AppScript { user_events, channel_events, ..AppScript::default() }];
            Script { seed, apps, network: network.clone(), ..Script::default() }
        };
        let trial = Trial {
            script: Script::default(),
            starts_at: Duration::ZERO,
            measured_from: RAMP * 2,
            ends_at: RAMP * 2 + SECOND * seconds,
            work: 2 * MS,
        };
        match self.kind {
            Kind::Steady { rate, split } => {
                let load = |percent| Load { even, ..ramped(f64::from(rate * percent) / 100.0) };
                Trial { script: app(load(split), load(100 - split)), ..trial }
            }
            Kind::Burst => {
                let load = quiet(vec![burst(SECOND * 20 + phase(seed), 1_990)]);
                Trial { script: app(load.clone(), load), ends_at: SECOND * 30, ..trial }
            }
            Kind::Twice { both } => {
                let again = SECOND * 60 + phase(seed);
                let earlier = burst(SECOND * 20 + phase(seed + 1), 1_990);
                let bursts = vec![earlier, burst(again, 1_990), burst(again + 500 * MS, 910)];
                let other = if both { bursts.clone() } else { Vec::new() };
                let script = app(quiet(bursts), quiet(other));
                Trial { script, ends_at: SECOND * 70, ..trial }
            }
            Kind::FullBuffers => {
                let load = Load { rate: 1_000.0, ..Load::default() };
                let starts_at = SECOND * 5 + phase(seed);
                Trial { script: app(load.clone(), load), starts_at, ..trial }
            }
        }
    }

    /// Whether only events count that happened after the first request.
    pub(crate) fn starts_late(&self) -> bool {
        matches!(self.kind, Kind::FullBuffers)
    }
}

fn ramped(rate: f64) -> Load {
    Load { ramp: vec![RampPoint { at: RAMP, rate }], ..Load::default() }
}

/// Half of 5 events a second, and bursts.
fn quiet(bursts: Vec<Burst>) -> Load {
    Load { rate: 2.5, bursts, ..Load::default() }
}

fn burst(at: Duration, events: u32) -> Burst {
    Burst { at, events, over: Duration::ZERO }
}

/// Another moment for each seed, spread evenly over more than the longest interval.
fn phase(seed: u64) -> Duration {
    // The golden ratio's fraction fills a span evenly, however many seeds there are.
    SECOND.mul_f64((seed as f64 * 0.618_033_988_749_895).fract() * 4.0)
}
