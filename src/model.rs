//! The shared vocabulary: feeds, pages, and gaps (events that may have been lost).
//!
//! Values only: no I/O, no wire formats, no policy. A word has one meaning everywhere; they are
//! listed in `ARCHITECTURE.md`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::time::Instant;

/// Maximum number of events in one answer of Agora.
pub const PAGE_LIMIT: u64 = 1_000;

/// Number of events that Agora keeps for a feed; a newer event replaces the oldest.
pub const BUFFER_LIMIT: u64 = 2_000;

/// Margin for the difference between Agora's clock and ours, and for the delay until an event
/// reaches a buffer: the bounds of a gap are wider by this on both sides.
pub const CLOCK_MARGIN: Duration = Duration::from_secs(10);

/// Time, 1 s, to settle a request after its end. Pages are held for the longest request plus this;
/// deduplication windows allow for the same.
pub const SETTLE_MARGIN: Duration = Duration::from_secs(1);

/// An Agora App ID, as configured. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AppId(Arc<str>);

/// The name of a region of Agora, as configured. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Region(Arc<str>);

/// One of Agora's two event endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Endpoint {
    /// `user_events`: logins and logouts.
    User,
    /// `channel_events`: joins and leaves.
    Channel,
}

/// One of Agora's buffers as we see it: App ID × region × endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Feed {
    /// The App ID.
    pub app: AppId,
    /// The region to poll.
    pub region: Region,
    /// The endpoint to poll.
    pub endpoint: Endpoint,
}

/// The number of a request. Unique within an [`Incarnation`], growing in sending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// A random id, drawn each time a journal is opened, so that a ticket is never used twice: not by a
/// journal restored from a backup, not by a copy on another machine, not after a power loss that
/// destroyed unsynced tickets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(u128);

/// The identity of a request's result: `incarnation/ticket`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId {
    /// The incarnation of the journal at the request.
    pub incarnation: Incarnation,
    /// The request.
    pub ticket: Ticket,
}

/// A wall-clock time: milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(i64);

/// How fast a feed fills, as far as known; kept across restarts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Events per second.
    pub events_per_second: f64,
    /// The largest recent burst, in events; decays over time.
    pub burst: f64,
}

/// Whether a body is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wholeness {
    /// The body reached the end that its framing announced.
    Whole,
    /// The body broke off. The rest will never arrive.
    Cut,
}

/// One answer as received, with the body unparsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The feed that handed it over.
    pub feed: Feed,
    /// When the feed was last known to be empty: the page's events arrived later. `None` if the
    /// feed has not been seen empty yet.
    pub since: Option<Timestamp>,
    /// When the request was about to be sent.
    pub asked_at: Timestamp,
    /// When the last byte was received.
    pub answered_at: Timestamp,
    /// HTTP status.
    pub status: u16,
    /// Whether the body is complete.
    pub wholeness: Wholeness,
    /// Agora's `X-Request-ID`, which Agora's support asks for.
    pub request_id: Option<String>,
    /// Agora's `X-Resource-ID`, which Agora's support asks for.
    pub resource_id: Option<String>,
    /// `Content-Encoding`, if the answer had one. The body is kept as received, compressed or not.
    pub content_encoding: Option<String>,
    /// The body, byte for byte.
    pub body: Bytes,
}

/// Why events may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GapCause {
    /// Agora's buffer may have overflowed before it was polled.
    Overflow,
    /// An answer broke off; its end is lost.
    BodyCut,
    /// A request was sent, and no part of an answer came back.
    AnswerLost,
    /// The process ended while the request was in flight.
    ProcessKilled,
    /// A page was committed, but its bytes in the journal are damaged.
    JournalDamaged,
    /// Pages were deleted from the pages topic before they were published.
    PagesLost,
}

/// Events that may be missing. Gaps are data: they travel as pages do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The feed that lost them.
    pub feed: Feed,
    /// The cause.
    pub cause: GapCause,
    /// Lower bound for the times of the missing events, where known.
    pub from: Option<Timestamp>,
    /// Upper bound for the times of the missing events.
    pub to: Timestamp,
    /// Minimum number of missing events.
    pub at_least: u64,
    /// Maximum number of missing events, where that is bounded.
    pub at_most: Option<u64>,
}

/// The result of a request, on its way from the journal to Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its identity.
    pub id: PageId,
    /// The page or gap.
    pub content: Content,
}

/// A page, or a gap in place of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A page.
    Page(Page),
    /// A gap.
    Gap(Gap),
}

/// The wall clock and the monotonic clock of one process.
///
/// All waiting and measuring uses tokio's [`Instant`]; the wall clock only provides timestamps. In
/// simulated time the wall clock is derived from the paused one, so that runs are reproducible by
/// their seed.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    simulated: Option<(Instant, Timestamp)>,
    /// Milliseconds by which the simulated wall clock has been set.
    set: Option<&'static AtomicI64>,
}

// === impl AppId ===

impl AppId {
    /// Creates an App ID.
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self(id.into())
    }

    /// The id as configured.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AppId({})", self.0)
    }
}

// === impl Region ===

impl Region {
    /// Creates a region name.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The name as configured.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({})", self.0)
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// Both endpoints, in display order.
    pub const ALL: [Self; 2] = [Self::User, Self::Channel];

    /// Its name in Agora's API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::User => "user_events",
            Self::Channel => "channel_events",
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Endpoint {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|endpoint| endpoint.name() == name).ok_or(())
    }
}

// === impl Feed ===

impl fmt::Display for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.app, self.region, self.endpoint)
    }
}

// === impl Ticket ===

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

// === impl Incarnation ===

impl Incarnation {
    /// The incarnation with the given number.
    pub const fn from_u128(id: u128) -> Self {
        Self(id)
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Incarnation({self})")
    }
}

impl FromStr for Incarnation {
    type Err = ();

    /// Parses the 32 hex digits that `Display` writes.
    fn from_str(text: &str) -> Result<Self, ()> {
        let digits_only = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !digits_only {
            return Err(());
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| ())
    }
}

// === impl PageId ===

impl fmt::Display for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.incarnation, self.ticket)
    }
}

impl FromStr for PageId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (incarnation, ticket) = text.split_once('/').ok_or(())?;
        Ok(Self {
            incarnation: incarnation.parse()?,
            ticket: Ticket(ticket.parse().map_err(|_| ())?),
        })
    }
}

// === impl Timestamp ===

impl Timestamp {
    /// A time in milliseconds since 1970.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since 1970.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// The time `duration` later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }

    /// The time `duration` earlier.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(millis(duration)))
    }

    /// The duration since `earlier`; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// RFC 3339 in UTC with milliseconds; `None` outside the years 1970 to 9999.
    pub fn rfc_3339(self) -> Option<impl fmt::Display> {
        const YEAR_10000: u64 = 253_402_300_800_000;
        let millis = u64::try_from(self.0).ok().filter(|millis| *millis < YEAR_10000)?;
        Some(humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(millis)))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with milliseconds; a time outside the years 1970 to 9999 is written as its
    /// number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rfc_3339() {
            Some(text) => text.fmt(f),
            None => write!(f, "{}", self.0),
        }
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

// === impl Wholeness ===

impl Wholeness {
    /// `whole` or `cut`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Cut => "cut",
        }
    }
}

impl FromStr for Wholeness {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        [Self::Whole, Self::Cut].into_iter().find(|it| it.name() == name).ok_or(())
    }
}

// === impl GapCause ===

impl GapCause {
    /// All causes.
    pub const ALL: [Self; 6] = [
        Self::Overflow,
        Self::BodyCut,
        Self::AnswerLost,
        Self::ProcessKilled,
        Self::JournalDamaged,
        Self::PagesLost,
    ];

    /// The name in records and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Overflow => "overflow",
            Self::BodyCut => "body_cut",
            Self::AnswerLost => "answer_lost",
            Self::ProcessKilled => "process_killed",
            Self::JournalDamaged => "journal_damaged",
            Self::PagesLost => "pages_lost",
        }
    }
}

impl fmt::Display for GapCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for GapCause {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|cause| cause.name() == name).ok_or(())
    }
}

// === impl Content ===

impl Content {
    /// When the answer was there; `None` for a gap.
    pub fn answered_at(&self) -> Option<Timestamp> {
        match self {
            Self::Page(page) => Some(page.answered_at),
            Self::Gap(_) => None,
        }
    }

    /// The feed that it belongs to.
    pub fn feed(&self) -> &Feed {
        match self {
            Self::Page(page) => &page.feed,
            Self::Gap(gap) => &gap.feed,
        }
    }
}

// === impl Clock ===

impl Clock {
    /// The system clock.
    pub const fn system() -> Self {
        Self { simulated: None, set: None }
    }

    /// A wall clock that reads `epoch` now and advances with tokio's (paused) clock.
    pub fn simulated(epoch: Timestamp) -> Self {
        Self { simulated: Some((Instant::now(), epoch)), set: None }
    }

    /// The same, with an offset in milliseconds that can be changed at any time.
    pub fn simulated_and_set(epoch: Timestamp, set: &'static AtomicI64) -> Self {
        Self { set: Some(set), ..Self::simulated(epoch) }
    }

    /// The current wall-clock time.
    pub fn now(&self) -> Timestamp {
        match self.simulated {
            Some((origin, epoch)) => {
                let set = self.set.map_or(0, |set| set.load(Ordering::Relaxed));
                Timestamp(epoch.after(origin.elapsed()).0.saturating_add(set))
            }
            None => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(Timestamp(0), |since| Timestamp(0).after(since)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_id_reads_what_it_writes() {
        let id = PageId { incarnation: Incarnation::from_u128(0xabc), ticket: Ticket(17) };
        assert_eq!(id.to_string(), "00000000000000000000000000000abc/17");
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in ["", "abc/17", "00000000000000000000000000000abc", "x/y"] {
            assert_eq!(wrong.parse::<PageId>(), Err(()), "{wrong}");
        }
    }

    #[test]
    fn a_moment_outside_the_calendar_is_shown_as_its_number() {
        assert_eq!(
            Timestamp::from_millis(1_578_027_418_981).to_string(),
            "2020-01-03T04:56:58.981Z"
        );
        assert_eq!(Timestamp::from_millis(-1).to_string(), "-1");
        assert_eq!(Timestamp::from_millis(i64::MAX).to_string(), i64::MAX.to_string());
    }
}
