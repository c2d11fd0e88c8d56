//! The kinds of harm, and what has to come of each. A new one needs a line here, what it does in
//! [`Kind::acts`], and, where that may lose an answer, an excuse in [`super::stage`].

use std::ops::Range;
use std::time::Duration;

use clap::ValueEnum;
use rand::RngExt as _;
use rand::rngs::StdRng;

use super::Plan;
use super::stage::GRACE;
use crate::support::proxy::Way;

/// A kind of harm. What a kind may lose besides is said with it; all others lose nothing. Nothing
/// is ever published twice or out of order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// kill -9 of the bridge, and a start at once. May lose answers in flight; a gap tells of each
    Kill,
    /// The same once more while it recovers
    KillTwice,
    /// SIGTERM of the bridge under load, and a start when it has ended: with exit code 0
    Stop,
    /// SIGTERM while the broker is away: it ends when its grace is over, what waits is safe
    StopAway,
    /// kill -9 of the broker, and a start some seconds later
    BrokerKill,
    /// SIGSTOP of the broker, SIGCONT up to 3 s later
    BrokerFreeze,
    /// Every connection to the broker is reset, new ones are refused for up to 2 s
    KafkaCut,
    /// No byte passes between bridge and broker for up to 3 s
    KafkaStall,
    /// Every connection to Agora is reset, new ones are refused for up to 1 s. May lose answers in
    /// flight
    AgoraCut,
    /// No byte passes between bridge and Agora for up to 4 s; an answer is waited for only 2 s. May
    /// lose answers in flight
    AgoraStall,
    /// Agora's answers break, come late or never, or are errors. May lose what it did not send
    AgoraFaults,
    /// The disk of the journal is full for up to 2 s. Needs root, for a small tmpfs
    DiskFull,
    /// The broker is killed and stays away (--away); then it is measured how fast the bridge
    /// catches up. Not among those that are drawn by themselves
    Outage,
}

/// One deed, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Kill,
    Terminate,
    KillBroker,
    StartBroker,
    FreezeBroker,
    ThawBroker,
    Kafka(Way),
    Agora(Way),
    BeginFaults,
    EndFaults,
    FillDisk,
    FreeDisk,
    /// So many events at once on one feed.
    Burst(u32),
    /// Begins to measure how what waits grows less; the round goes on until little waits.
    CatchUp,
}

// === impl Kind ===

impl Kind {
    /// All that are drawn where nobody names any.
    pub(crate) fn usual() -> Vec<Self> {
        Self::value_variants().iter().copied().filter(|kind| *kind != Self::Outage).collect()
    }

    /// Its name, as it is given on the command line.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value().expect("no kind is hidden");
        value.get_name().to_owned()
    }

    /// What is done, and when since the beginning of the round.
    pub(super) fn acts(self, random: &mut StdRng, plan: &Plan) -> Vec<(Duration, Act)> {
        let begin = millis(random, 200..1_500);
        let mut for_so_long =
            |from, range, act, back| vec![(from, act), (from + millis(random, range), back)];
        match self {
            Self::Kill => vec![(begin, Act::Kill)],
            Self::KillTwice => for_so_long(begin, 10..900, Act::Kill, Act::Kill),
            Self::Stop => vec![(begin, Act::Terminate)],
            Self::StopAway => {
                let way = if random.random_bool(0.5) { Way::Cut } else { Way::Stalled };
                let end = begin + millis(random, 0..500);
                let back = end + GRACE + Duration::from_secs(3);
                vec![(begin, Act::Kafka(way)), (end, Act::Terminate), (back, Act::Kafka(Way::Open))]
            }
            Self::BrokerKill => for_so_long(begin, 0..2_000, Act::KillBroker, Act::StartBroker),
            Self::BrokerFreeze => {
                for_so_long(begin, 100..3_000, Act::FreezeBroker, Act::ThawBroker)
            }
            Self::KafkaCut => {
                for_so_long(begin, 0..2_000, Act::Kafka(Way::Cut), Act::Kafka(Way::Open))
            }
            Self::KafkaStall => {
                for_so_long(begin, 100..3_000, Act::Kafka(Way::Stalled), Act::Kafka(Way::Open))
            }
            Self::AgoraCut => {
                for_so_long(begin, 0..1_000, Act::Agora(Way::Cut), Act::Agora(Way::Open))
            }
            Self::AgoraStall => {
                for_so_long(begin, 100..4_000, Act::Agora(Way::Stalled), Act::Agora(Way::Open))
            }
            Self::AgoraFaults => for_so_long(begin, 500..2_500, Act::BeginFaults, Act::EndFaults),
            Self::DiskFull => for_so_long(begin, 100..2_000, Act::FillDisk, Act::FreeDisk),
            Self::Outage => {
                let begin = Duration::from_secs(10);
                let end = begin + plan.away;
                vec![(begin, Act::KillBroker), (end, Act::StartBroker), (end, Act::CatchUp)]
            }
        }
    }
}

fn millis(random: &mut StdRng, range: Range<u64>) -> Duration {
    Duration::from_millis(random.random_range(range))
}
