//! The kinds of harm, and what has to come of each. A new one needs a line here, what it does in
//! [`Kind::acts`], and, where that may lose an answer, an excuse in [`super::stage`].

use std::ops::Range;
use std::time::Duration;

use agora_rtm_bridge::model::Endpoint;
use clap::ValueEnum;
use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use super::Plan;
use super::secrets::Renewal;
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
    /// Agora's host answers 400, 401, 403, 404 or 503 for less than a second, at one endpoint or both,
    /// while the other host refuses for ever. Within 4 s after that every feed is served again, and
    /// nothing runs over
    RefusingHost,
    /// Bodies of Agora's answers take far longer than the round trip, under five times the load. Of
    /// two hundred events one at most runs over
    SlowBodies,
    /// Somebody reads the journal and does not come to an end for some 15 s, under five times the
    /// load: the journal may be full until then. Within 10 s after that every feed is served
    LingeringReader,
    /// Nobody reads the bridge's log for some seconds. Polling goes on, and nothing runs over
    StalledLog,
    /// `max.message.bytes` of the topics of events is lowered below what a batch takes, and raised
    /// again up to 3 s later
    TopicLimits,
    /// All records of the pages topic are deleted, five times within a second or two. May lose pages
    /// that nobody had published yet; gaps tell of them. Played alone
    RecordsDeleted,
    /// The bridge's clock is an hour ahead for some seconds. Played alone: gaps could not say when.
    /// Needs a C compiler
    ClockAhead,
    /// The broker comes back with another password for the bridge, which has it up to 5 s later
    PasswordRotated,
    /// The broker comes back and trusts another certificate of the bridge, which has it up to 5 s
    /// later
    CertificateRenewed,
    /// The broker is killed and stays away (--away); then it is measured how fast the bridge
    /// catches up. Not among those that are drawn by themselves
    Outage,
}

/// One deed, at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
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
    BeginRefusal(Refusal),
    EndRefusal,
    /// The body of a full page takes so long.
    SlowDown(Duration),
    SpeedUp,
    /// So many times the load, to which it grows within this time.
    Rush(f64, Duration),
    EndRush,
    BeginReading,
    EndReading,
    StallLog,
    ReadLog,
    /// Each feed has to be served within this; longer, where something else is done too.
    AwaitService(Duration),
    /// The largest batch that the topics of events take from now on; `None` is the default.
    LimitTopics(Option<u32>),
    /// Of the pages topic.
    DeleteRecords,
    SetClockAhead(Duration),
    /// The broker starts again and accepts only something new of the bridge.
    Renew(Renewal),
    /// The bridge gets it.
    HandOut,
    /// So many events at once on one feed.
    Burst(u32),
    /// Begins to measure how what waits grows less; the round goes on until little waits.
    CatchUp,
}

/// How a host refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// 503, or one that bridges take for final.
    pub(super) status: u16,
    /// Whom it concerns; both where there is none.
    pub(super) endpoint: Option<Endpoint>,
    /// With what the other host refuses from now on.
    pub(super) other_host: u16,
}

/// Statuses that a bridge may take for final.
const DENIALS: [u16; 4] = [400, 401, 403, 404];

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

    /// Whether it is never played together with others.
    pub(super) fn is_played_alone(self) -> bool {
        matches!(self, Self::ClockAhead | Self::RecordsDeleted)
    }

    /// What share of the events may run over in Agora's buffers where nothing else is done; `None`
    /// where it is not judged.
    pub(super) fn may_run_over(self) -> Option<f64> {
        match self {
            Self::RefusingHost | Self::StalledLog | Self::ClockAhead => Some(0.0),
            Self::SlowBodies => Some(0.005),
            _ => None,
        }
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
            Self::RefusingHost => {
                let some = "there are several";
                let status = *[400, 401, 403, 404, 503].choose(random).expect(some);
                let other_host = *DENIALS.choose(random).expect(some);
                let endpoints = [None, Some(Endpoint::User), Some(Endpoint::Channel)];
                let endpoint = *endpoints.choose(random).expect(some);
                let refusal = Act::BeginRefusal(Refusal { status, endpoint, other_host });
                let end = begin + millis(random, 300..900);
                let served = Act::AwaitService(Duration::from_secs(4));
                vec![(begin, refusal), (end, Act::EndRefusal), (end, served)]
            }
            Self::SlowBodies => {
                let takes = millis(random, 1_000..1_600);
                let end = begin + millis(random, 11_000..13_000);
                vec![
                    (begin, Act::SlowDown(takes)),
                    (begin, Act::Rush(5.0, Duration::from_secs(8))),
                    (end, Act::EndRush),
                    (end, Act::SpeedUp),
                ]
            }
            Self::LingeringReader => {
                // Something has to wait, or there is nothing to list.
                let reads = begin + Duration::from_millis(1_500);
                let end = reads + millis(random, 14_000..16_000);
                let gone = end + millis(random, 0..2_000);
                vec![
                    (begin, Act::Kafka(Way::Stalled)),
                    (reads, Act::BeginReading),
                    (reads, Act::Kafka(Way::Open)),
                    (reads, Act::Rush(5.0, Duration::from_secs(3))),
                    (end, Act::EndRush),
                    (gone, Act::EndReading),
                    (gone, Act::AwaitService(Duration::from_secs(10))),
                ]
            }
            Self::StalledLog => for_so_long(begin, 5_000..6_500, Act::StallLog, Act::ReadLog),
            Self::TopicLimits => {
                let limited = Act::LimitTopics(Some(random.random_range(1_500..4_000)));
                let end = begin + millis(random, 500..3_000);
                vec![(begin, limited), (end, Act::LimitTopics(None))]
            }
            Self::RecordsDeleted => {
                let later = |n| begin + millis(random, 100..400) * n;
                (0..5).map(later).map(|at| (at, Act::DeleteRecords)).collect()
            }
            Self::ClockAhead => {
                let ahead = Act::SetClockAhead(Duration::from_secs(3_600));
                for_so_long(begin, 1_000..6_000, ahead, Act::SetClockAhead(Duration::ZERO))
            }
            Self::PasswordRotated => {
                for_so_long(begin, 0..5_000, Act::Renew(Renewal::Password), Act::HandOut)
            }
            Self::CertificateRenewed => {
                for_so_long(begin, 0..5_000, Act::Renew(Renewal::Certificate), Act::HandOut)
            }
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
