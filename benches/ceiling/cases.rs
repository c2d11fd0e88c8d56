//! The loads: steady ones near the limit, bursts, and a start with full buffers.

use std::time::Duration;

use agora_rtm_bridge::plan::Trial;
use agora_rtm_bridge::simulator::{AppScript, Burst, Load, Network, RampPoint, Script, Spread};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Time in which the load grows to its rate: a jump from rest to thousands a second would be a
/// burst.
const RAMP: Duration = Duration::from_secs(8);

const RATES: [u32; 6] = [1_000, 5_000, 9_000, 9_500, 9_700, 9_900];
const RTTS: [u64; 4] = [5, 60, 120, 300];
/// Percentage of user events.
const SPLITS: [u32; 4] = [50, 80, 95, 100];

/// A row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// The load.
    pub(crate) kind: Kind,
    /// The round trip.
    pub(crate) rtt: Spread,
}

/// A load.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// `rate` events a second, `split` percent of them user events.
    Steady { rate: u32, split: u32 },
    /// 1,990 events at once on both endpoints of an app with 5 a second.
    Burst,
    /// 1,990 events, and 910 more 500 ms later, on a feed that burst before; or on both.
    Twice { both: bool },
    /// A steady load where both endpoints share one buffer of 2,000 events.
    Shared { rate: u32, split: u32 },
    /// From 3,500 to 9,500 events a second within a second, `split` percent of them user events.
    Jump { split: u32 },
    /// From rest to `rate` events a second in an instant, half of them user events.
    FromRest { rate: u32 },
    /// Buffers that are already full when the program starts, with 1,000 events a second on each.
    FullBuffers,
}

/// All cases, or a selection for a readable table.
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
    for (rate, split) in [(8_000, 50), (9_000, 50), (9_000, 80)] {
        cases.push(Case { kind: Kind::Shared { rate, split }, rtt: Spread::always(60 * MS) });
    }
    for split in [76, 90, 95] {
        cases.push(Case { kind: Kind::Jump { split }, rtt: Spread::millis(60, 120) });
    }
    cases.push(Case { kind: Kind::FromRest { rate: 3_000 }, rtt: Spread::millis(20, 40) });
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
    /// Whether it shows something that similar rows don't.
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

    /// The load as text.
    pub(crate) fn load(&self) -> String {
        match self.kind {
            Kind::Steady { rate, split } => {
                let rate = crate::table::grouped(rate);
                format!("{rate}/s, {split}/{}", 100 - split)
            }
            Kind::Burst => "1,990 at once on both".to_owned(),
            Kind::Twice { both: false } => "1,990 + 910 after 500 ms".to_owned(),
            Kind::Twice { both: true } => "1,990 + 910, on both".to_owned(),
            Kind::Shared { rate, split } => {
                let [users, channels] = [split, 100 - split].map(|it| rate * it / 100);
                let [users, channels] = [users, channels].map(crate::table::grouped);
                format!("{users} + {channels}/s, one buffer")
            }
            Kind::Jump { split } => {
                format!("3,500 to 9,500/s, {split}/{}", 100 - split)
            }
            Kind::FromRest { rate } => {
                format!("rest to {}/s, 50/50", crate::table::grouped(rate))
            }
            Kind::FullBuffers => "start on full buffers".to_owned(),
        }
    }

    /// The round trip as text.
    pub(crate) fn round_trip(&self) -> String {
        let Spread { from, to } = self.rtt;
        if from == to {
            return format!("{} ms", from.as_secs_f64() * 1_000.0);
        }
        format!("{}–{} ms", from.as_secs_f64() * 1_000.0, to.as_secs_f64() * 1_000.0)
    }

    /// The trial with this seed. Steady loads are measured for this long; `even` spaces their
    /// events evenly instead of randomly.
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
            Kind::Shared { rate, split } => {
                let load = |percent| Load { even, ..ramped(f64::from(rate * percent) / 100.0) };
                let script = app(load(split), load(100 - split));
                Trial { script: Script { shared_buffer: true, ..script }, ..trial }
            }
            Kind::Jump { split } => {
                let load = |percent: u32| jump(f64::from(percent) / 100.0, seed);
                let script = app(load(split), load(100 - split));
                Trial { script, ends_at: SECOND * 30, ..trial }
            }
            Kind::FromRest { rate } => {
                let at = SECOND * 16 + phase(seed);
                let points = [(at, 0.0), (at, f64::from(rate) / 2.0)];
                let load = Load { ramp: points.map(point).to_vec(), ..Load::default() };
                let script = app(load.clone(), load);
                Trial { script, ends_at: at + SECOND * seconds, ..trial }
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

    /// Whether both endpoints share a buffer.
    pub(crate) fn has_one_buffer(&self) -> bool {
        matches!(self.kind, Kind::Shared { .. })
    }

    /// Whether only events after the first request count.
    pub(crate) fn starts_late(&self) -> bool {
        matches!(self.kind, Kind::FullBuffers)
    }
}

/// This share of the jump, whose time depends on the seed.
fn jump(share: f64, seed: u64) -> Load {
    let at = SECOND * 14 + phase(seed);
    let points = [(RAMP, 3_500.0), (at, 3_500.0), (at + SECOND, 9_500.0)];
    Load { ramp: points.map(|(at, rate)| point((at, rate * share))).to_vec(), ..Load::default() }
}

fn point((at, rate): (Duration, f64)) -> RampPoint {
    RampPoint { at, rate }
}

fn ramped(rate: f64) -> Load {
    Load { ramp: vec![RampPoint { at: RAMP, rate }], ..Load::default() }
}

/// 2.5 events a second on an endpoint (half of 5), plus bursts.
fn quiet(bursts: Vec<Burst>) -> Load {
    Load { rate: 2.5, bursts, ..Load::default() }
}

fn burst(at: Duration, events: u32) -> Burst {
    Burst { at, events, over: Duration::ZERO }
}

/// A different offset for each seed, spread evenly over more than the longest interval.
fn phase(seed: u64) -> Duration {
    // The fractional part of multiples of the golden ratio fills a range evenly for any number of
    // seeds.
    SECOND.mul_f64((seed as f64 * 0.618_033_988_749_895).fract() * 4.0)
}
