//! What happens in a run: drawn from a seed, or written down by a test.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use agora_rtm_bridge::config;
use agora_rtm_bridge::model::Endpoint;
use agora_rtm_bridge::simulator::{
    AppScript, Burst, Dialect, Empty, Fault, FaultKind, FramingChoice, Load, Network, RegionScript,
    Script, Spread,
};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::kafka_model::Trouble;

/// Everything that is decided before a run begins.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// What Agora does.
    pub(crate) script: Script,
    /// What Kafka does.
    pub(crate) trouble: Trouble,
    /// The share of requests that die on a connection that the server has just closed.
    pub(crate) stale: f64,
    /// The first answer with events is cut behind so many bytes.
    pub(crate) cut_first_page_at: Option<usize>,
    /// How the bridge is told of Agora's regions.
    pub(crate) hosts: Hosts,
    pub(crate) page_partitions: u32,
    pub(crate) requests_per_second: u32,
    /// A second bridge with the same configuration runs beside the last life.
    pub(crate) twin: bool,
    /// How many round trips a connection takes to come about; 0 is one that is always there.
    pub(crate) connecting: u32,
    /// The clock of the bridge's machine is so much ahead of Agora's, or behind.
    pub(crate) clock_ahead_ms: i64,
    /// How apps prove who asks, where it is not by the RESTful credentials of the script.
    pub(crate) auth: BTreeMap<usize, config::Auth>,
    /// What is done to the bridge's machine in each life, and when.
    pub(crate) deeds: Vec<(Duration, Deed)>,
    /// More happens than anybody can fetch: what a buffer loses has to be told, and is no fault.
    pub(crate) overloaded: bool,
    /// `journal.max_size`, in bytes.
    pub(crate) journal_size: u64,
    /// How long an orderly stop waits for Kafka.
    pub(crate) grace: Duration,
    /// Until when events happen and things go wrong.
    pub(crate) busy: Duration,
    /// The lives of the bridge before its last one, which goes on until nothing waits any more.
    pub(crate) lives: Vec<Life>,
}

/// Something that is done to the bridge's machine.
#[derive(Clone, Debug)]
pub(crate) enum Deed {
    /// A file gets this content, as a program writes that knows how: by a rename.
    Write(PathBuf, String),
    /// A file is gone.
    Remove(PathBuf),
    /// The wall clock is set by so many milliseconds.
    SetClock(i64),
    /// The machine sleeps.
    Sleep(Duration),
    /// Somebody asks `/ready` and `/status.json`.
    Look,
}

/// How the bridge is told of Agora's regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hosts {
    /// Each is drained.
    ARegionEach,
    /// As hosts of one region, in the order of failover.
    OneRegion,
    /// As hosts of one region too, but each app has two that no other app asks.
    TwoForEachApp,
    /// By twos: the first two are the hosts of one region, the next two those of another.
    TwoForEachRegion,
}

/// A life of the bridge that does not last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    pub(crate) lasts: Duration,
    pub(crate) end: End,
    /// Until the next one.
    pub(crate) pause: Duration,
}

/// How a life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By an orderly stop.
    Stopped,
    /// The same, and the next life begins with an empty data directory: on another machine.
    StoppedAndMoved,
    /// In the middle of whatever it does.
    Killed,
    /// The same, and the next life begins with an empty data directory.
    KilledAndDiskLost,
    /// The same, and the next life begins with the data directory as it was before this one: a
    /// backup.
    KilledAndRestored,
}

// === impl Plan ===

impl Plan {
    /// Nothing goes wrong, and the only life of the bridge goes on until nothing waits any more.
    pub(crate) fn calm(script: Script, busy: Duration) -> Self {
        let script = Script { quiet_from: Some(busy), ..script };
        Self {
            seed: script.seed,
            script,
            trouble: Trouble::default(),
            stale: 0.0,
            cut_first_page_at: None,
            hosts: Hosts::ARegionEach,
            page_partitions: 2,
            requests_per_second: 10,
            twin: false,
            connecting: 0,
            clock_ahead_ms: 0,
            auth: BTreeMap::new(),
            deeds: Vec::new(),
            overloaded: false,
            journal_size: 256 * 1024 * 1024,
            grace: Duration::from_secs(120),
            busy,
            lives: Vec::new(),
        }
    }

    /// Lives that begin with a journal that can't know what was asked in the second before.
    pub(crate) fn starts_on_unknown_journals(&self) -> u64 {
        let ends = self.lives.iter().map(|life| life.end);
        let unknown = ends.filter(|end| !matches!(end, End::Stopped | End::Killed));
        unknown.count() as u64
    }

    /// How many feeds each App ID has.
    pub(crate) fn feeds_of_an_app(&self) -> u64 {
        let regions = match self.hosts {
            Hosts::ARegionEach => self.script.regions.len(),
            Hosts::TwoForEachRegion => self.script.regions.len() / 2,
            Hosts::OneRegion | Hosts::TwoForEachApp => 1,
        };
        2 * regions as u64
    }

    /// Anything may go wrong.
    pub(crate) fn drawn(seed: u64) -> Self {
        let mut draw = Draw(StdRng::seed_from_u64(seed));
        let busy = draw.millis(4_000, 14_000);
        let regions = draw.one_of(&[1, 1, 1, 2, 2, 3]);
        let apps = draw.one_of(&[1, 1, 1, 2, 3]);
        let script = Script {
            seed,
            apps: (0..apps).map(|index| draw.app(index, busy)).collect(),
            regions: self::regions(regions),
            copy_delay: draw.one_of(&[Spread::millis(100, 400), Spread::millis(0, 2_500)]),
            network: draw.network(),
            faults: draw.faults(busy, regions),
            ..Script::default()
        };
        let hosts = draw.one_of(&[Hosts::ARegionEach, Hosts::ARegionEach, Hosts::OneRegion]);
        let mut plan = Self {
            hosts,
            trouble: draw.trouble(busy),
            stale: draw.one_of(&[0.0, 0.0, 0.01, 0.1]),
            page_partitions: draw.one_of(&[1, 2, 3]),
            requests_per_second: draw.one_of(&[10, 10, 10, 4]),
            clock_ahead_ms: draw.one_of(&[0, 0, 0, 700, 4_000]),
            lives: draw.lives(busy),
            ..Self::calm(script, busy)
        };
        // Where each region is drained, nobody would be left to drain it.
        if hosts == Hosts::OneRegion && regions > 1 && draw.chance(0.5) {
            draw.detours(&mut plan.script.regions, busy);
        }
        plan
    }
}

// === impl Hosts ===

impl Hosts {
    /// The regions of Agora that an app is asked in, of so many.
    pub(crate) fn regions_of(self, app: usize, regions: usize) -> Range<usize> {
        match self {
            Self::ARegionEach | Self::OneRegion | Self::TwoForEachRegion => 0..regions,
            Self::TwoForEachApp => 2 * app..2 * app + 2,
        }
    }

    /// The bridge's name of a region of Agora that it asks.
    pub(crate) fn name_of(self, of_agora: usize) -> String {
        match self {
            Self::ARegionEach => region(of_agora),
            Self::OneRegion | Self::TwoForEachApp => "default".to_owned(),
            Self::TwoForEachRegion => region(of_agora / 2),
        }
    }
}

/// The name of a region, for Agora and for the bridge alike.
pub(crate) fn region(index: usize) -> String {
    format!("region-{index}")
}

/// So many regions of Agora.
pub(crate) fn regions(count: usize) -> Vec<RegionScript> {
    (0..count).map(|index| RegionScript::new(region(index))).collect()
}

/// One App ID with so many events a second.
pub(crate) fn one_app(user_events: f64, channel_events: f64) -> Script {
    Script {
        apps: vec![AppScript::numbered(0).rates(user_events, channel_events)],
        ..Script::default()
    }
}

/// The dice.
struct Draw(StdRng);

// === impl Draw ===

impl Draw {
    fn one_of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.0.random_range(0..choices.len())].clone()
    }

    fn chance(&mut self, share: f64) -> bool {
        self.0.random_bool(share)
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.0.random_range(from..=to))
    }

    /// A part of the time in which things go wrong.
    fn window(&mut self, busy: Duration, longest: u64) -> (Duration, Duration) {
        let from = busy.mul_f64(self.0.random_range(0.0..0.9));
        (from, from + self.millis(100, longest))
    }

    /// At most some 1,500 events an endpoint, so that no buffer can run over whatever happens.
    fn app(&mut self, index: usize, busy: Duration) -> AppScript {
        let mut load = || Load {
            rate: self.one_of(&[0.0, 0.3, 3.0, 12.0, 30.0]),
            even: self.chance(0.3),
            bursts: if self.chance(0.2) { vec![self.burst(busy)] } else { Vec::new() },
            ..Load::default()
        };
        let (user_events, channel_events) = (load(), load());
        AppScript {
            user_events,
            channel_events,
            users: self.one_of(&[3, 40, 1_000]),
            channels: self.one_of(&[1, 4, 100]),
            members: self.one_of(&[5, 40]),
            dialect: Dialect {
                old_names: self.chance(0.3),
                seconds: self.chance(0.2),
                time_as_text: self.chance(0.2),
                empty: self.one_of(&[Empty::List, Empty::Null, Empty::Absent]),
            },
            wild_names: self.chance(0.3),
            unknown_fields: self.chance(0.3),
            wild_layout: self.chance(0.3),
            malformed: self.one_of(&[0.0, 0.0, 0.02, 0.3]),
            ..AppScript::numbered(index)
        }
    }

    fn burst(&mut self, busy: Duration) -> Burst {
        Burst {
            at: busy.mul_f64(self.0.random_range(0.0..0.9)),
            events: self.one_of(&[30, 30, 200, 200, 999, 1_000, 1_050]),
            over: self.one_of(&[Duration::ZERO, Duration::from_millis(700)]),
        }
    }

    /// The server counts arrivals: jitter stays within what the bridge allows for before it has
    /// learned anything.
    fn network(&mut self) -> Network {
        let shortest = self.one_of(&[2, 20, 90, 250]);
        Network {
            rtt: Spread::millis(shortest, shortest + self.one_of(&[0, 20, 60])),
            framing: self.one_of(&[
                FramingChoice::Length,
                FramingChoice::Chunked,
                FramingChoice::UntilClose,
                FramingChoice::Mixed,
            ]),
            ..Network::default()
        }
    }

    fn faults(&mut self, busy: Duration, regions: usize) -> Vec<Fault> {
        if self.chance(0.15) {
            return Vec::new();
        }
        let mut faults = Vec::new();
        for kind in FaultKind::ALL {
            if !self.chance(0.25) {
                continue;
            }
            let fault = Fault {
                endpoint: self.one_of(&[None, Some(Endpoint::User), Some(Endpoint::Channel)]),
                retry_after: self.one_of(&[None, Some(Duration::from_secs(2))]),
                retry_after_as_date: self.chance(0.5),
                bytes_per_second: self.one_of(&[5_000, 50_000]),
                status: self.status(kind),
                ..Fault::new(kind)
            };
            // What costs the bridge fifteen seconds each time would leave time for little else.
            let rare =
                matches!(kind, FaultKind::Silent | FaultKind::Ignored | FaultKind::BlackHole);
            let fault = if self.chance(0.5) {
                let share = if rare { 0.02 } else { self.one_of(&[0.03, 0.15]) };
                fault.share(share).between(Duration::ZERO, busy)
            } else {
                let (from, until) = self.window(busy, if rare { 400 } else { 4_000 });
                fault.share(self.one_of(&[0.5, 1.0])).between(from, until.min(busy))
            };
            let everywhere = regions == 1 || self.chance(0.5);
            let fault = if everywhere {
                fault
            } else {
                fault.region(region(self.0.random_range(0..regions)))
            };
            faults.push(fault);
        }
        faults
    }

    fn status(&mut self, kind: FaultKind) -> Option<u16> {
        (kind == FaultKind::Denied).then(|| self.one_of(&[400, 401, 403, 404]))
    }

    /// The preferred host leads to the next region and back.
    fn detours(&mut self, regions: &mut [RegionScript], busy: Duration) {
        let (from, until) = self.window(busy, 6_000);
        let preferred = regions[0].clone();
        regions[0] = preferred.detour(from, region(1)).detour(until, region(0));
    }

    fn trouble(&mut self, busy: Duration) -> Trouble {
        let away = match self.one_of(&[0, 0, 0, 1, 2]) {
            0 => Vec::new(),
            windows => (0..windows).map(|_| self.window(busy, 12_000)).collect(),
        };
        if self.chance(0.25) {
            return Trouble { away, ..Trouble::default() };
        }
        Trouble {
            prepare: self.one_of(&[0.0, 0.3]),
            claim: self.one_of(&[0.0, 0.1, 0.5]),
            append: self.one_of(&[0.0, 0.05, 0.3]),
            deliver: self.one_of(&[0.0, 0.05, 0.3]),
            pages: self.one_of(&[0.0, 0.02]),
            slow: self.one_of(&[0.0, 0.02, 0.2]),
            away,
            until: busy,
            ..Trouble::default()
        }
    }

    fn lives(&mut self, busy: Duration) -> Vec<Life> {
        let lives = self.one_of(&[0, 1, 1, 2, 3, 5]);
        let share = u64::try_from(busy.as_millis()).expect("seconds") / (lives + 1);
        let mut life = |_| {
            let end = self.one_of(&[
                End::Killed,
                End::Killed,
                End::Killed,
                End::Stopped,
                End::Stopped,
                End::KilledAndDiskLost,
                End::KilledAndDiskLost,
                End::KilledAndRestored,
            ]);
            // A machine is not replaced in an instant, nor a process started.
            let shortest = match end {
                End::Stopped | End::StoppedAndMoved | End::Killed => 200,
                End::KilledAndDiskLost => 350,
                // What was asked since is not in the backup.
                End::KilledAndRestored => 1_100,
            };
            let longest = self.one_of(&[shortest, shortest + 300, 3_000]);
            Life { lasts: self.millis(1, 2 * share), end, pause: self.millis(shortest, longest) }
        };
        (0..lives).map(&mut life).collect()
    }
}
