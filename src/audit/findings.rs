//! What an audit finds: counts, faults, and what it can't look at.

use std::collections::BTreeMap;

/// What can't be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Uncovered {
    /// Forwarded before the audit began, and not delivered.
    Waiting,
    /// Elements of which what was published is deleted.
    NotProvable,
    /// Partitions of the pages topic of which something was deleted that may belong to the window.
    BeforeTheTopic,
    /// Pages that a newer version of the bridge forwarded.
    NewerPages,
    /// Records of the pages topic that can't be read.
    UnreadablePages,
    /// Partitions of the pages topic that were deleted and created again.
    CreatedAgain,
    /// Partitions of which the publisher has no memory.
    NoMemory,
    /// Gaps whose record may be deleted.
    Gaps,
}

/// Numbers of elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Counts {
    /// In the pages of the window.
    pub(super) received: u64,
    /// In their topic, out of a page of the window.
    pub(super) delivered: u64,
    /// In their topic, out of a page of before the window: here they were repeats.
    pub(super) delivered_earlier: u64,
    /// In several pages of the window, or in one several times, beyond the first.
    pub(super) repeats: u64,
    pub(super) dead_letters: u64,
    pub(super) set_aside: u64,
    /// Older than what their topic still holds, or of a page of before the window.
    pub(super) not_provable: u64,
    pub(super) missing: u64,
}

/// Findings in addition to the accounts.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Pages of the window that were forwarded more than once.
    pub(super) pages_again: u64,
    /// Pages of the window that the pages topic refused for a while.
    pub(super) pages_late: u64,
    pub(super) unreadable_pages: u64,
    /// Events of pages outside of the window: only their uniqueness was looked at.
    pub(super) events_outside: u64,
    /// Published once more by `pages replay`.
    pub(super) replayed: u64,
}

/// Gaps of a kind, as their records tell them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct GapTotals {
    pub(super) records: u64,
    pub(super) at_least: u64,
    /// `None` where one of them has no bound.
    pub(super) at_most: Option<u64>,
}

/// What is wrong: how much of each kind, and the first of it.
#[derive(Debug, Default)]
pub(super) struct AuditFaults(pub(super) BTreeMap<AuditFault, (u64, Vec<String>)>);

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AuditFault {
    /// In a page, and nowhere else.
    Missing,
    /// More than once.
    Twice,
    /// Not in the page that it names.
    Unknown,
    /// Behind something that has to follow it.
    OutOfOrder,
    /// With another key or value than its page makes of it.
    Altered,
    /// Without what every record has.
    Misshapen,
}

/// Maximum number of reported faults of each kind.
const SHOWN: usize = 8;

// === impl Counts ===

impl Counts {
    pub(super) fn add(&mut self, other: Self) {
        self.received += other.received;
        self.delivered += other.delivered;
        self.delivered_earlier += other.delivered_earlier;
        self.repeats += other.repeats;
        self.dead_letters += other.dead_letters;
        self.set_aside += other.set_aside;
        self.not_provable += other.not_provable;
        self.missing += other.missing;
    }
}

// === impl Uncovered ===

impl Uncovered {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "pages_waiting",
            Self::NotProvable => "not_provable",
            Self::BeforeTheTopic => "window_begins_before_the_topic",
            Self::NewerPages => "pages_of_a_newer_version",
            Self::UnreadablePages => "unreadable_pages",
            Self::CreatedAgain => "pages_topic_created_again",
            Self::NoMemory => "no_memory",
            Self::Gaps => "gaps_not_provable",
        }
    }

    pub(super) const fn sentence(self) -> &'static str {
        match self {
            Self::Waiting => "pages that wait: is the bridge running? see its /ready",
            Self::NotProvable => "elements of which what was published may be deleted",
            Self::BeforeTheTopic => {
                "partitions of the pages topic begin later than the window: choose a shorter --since"
            }
            Self::NewerPages => "pages that a newer version forwarded: run that version's audit",
            Self::UnreadablePages => {
                "records of the pages topic that can't be read: find them in the dead-letter topic"
            }
            Self::CreatedAgain => {
                "partitions of the pages topic that were deleted and created again: their old pages \
                 are gone; choose a --since after that"
            }
            Self::NoMemory => {
                "partitions whose memory is not in the state topic, so nothing tells how far their pages \
                 are delivered: was that topic deleted? A running bridge rebuilds it"
            }
            Self::Gaps => "gaps whose records may be deleted from the gaps topic",
        }
    }
}

// === impl Told ===

impl GapTotals {
    pub(super) fn add(&mut self, other: Self) {
        self.records += other.records;
        self.at_least += other.at_least;
        self.at_most = self.at_most.zip(other.at_most).map(|(one, two)| one + two);
    }
}

// === impl Faults ===

impl AuditFaults {
    pub(super) fn add(&mut self, fault: AuditFault, what: impl FnOnce() -> String) {
        let (count, first) = self.0.entry(fault).or_default();
        *count += 1;
        if first.len() < SHOWN {
            first.push(what());
        }
    }
}

// === impl Fault ===

impl AuditFault {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Twice => "twice",
            Self::Unknown => "unknown",
            Self::OutOfOrder => "out of order",
            Self::Altered => "altered",
            Self::Misshapen => "misshapen",
        }
    }
}
