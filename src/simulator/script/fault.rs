//! Something that goes wrong, where and when.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::model::Endpoint;

/// Something that goes wrong, where and when.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What goes wrong.
    pub kind: FaultKind,
    /// The share of requests (for `refused` and `black_hole`: of connections) that it strikes.
    pub share: f64,
    /// When it begins.
    pub from: Duration,
    /// When it is over; never when absent.
    pub until: Option<Duration>,
    /// The region that it strikes; all when absent.
    pub region: Option<String>,
    /// The App ID that it strikes; all when absent. Connections know no App ID.
    pub app_id: Option<String>,
    /// The endpoint that it strikes; both when absent. Connections know no endpoint.
    pub endpoint: Option<Endpoint>,
    /// The status of a `denied` (404 when absent) or a `server_error` (502 when absent).
    pub status: Option<u16>,
    /// The `Retry-After` of a `throttled`, a `denied` or a `server_error`; none when absent.
    pub retry_after: Option<Duration>,
    /// The `Retry-After` is a date instead of a number of seconds.
    pub retry_after_as_date: bool,
    /// The pace of a `slow` body.
    pub bytes_per_second: u32,
}

/// What can go wrong, in the order of an answer's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FaultKind {
    /// The connection is refused.
    Refused,
    /// The connection is accepted and nothing is ever read from it.
    BlackHole,
    /// The request is read and never answered; nothing was taken from the buffer.
    Ignored,
    /// 408; nothing was taken.
    TimedOut,
    /// 429 although the limit was kept; nothing was taken.
    Throttled,
    /// 400, 401, 403 or 404 although the request is good; nothing was taken.
    Denied,
    /// 5xx with a proxy's HTML page; nothing was taken.
    ServerError,
    /// 200 with `"result":"failed"`, or with the body of a failure; nothing was taken.
    Failed,
    /// 200 with an HTML page; nothing was taken.
    NotJson,
    /// Events were taken, then the connection is reset before a byte of the answer.
    NoAnswer,
    /// Events were taken, the body ends early and the connection is closed in order.
    Cut,
    /// Events were taken, the connection is reset within the body.
    Reset,
    /// Events were taken, the body stops and the connection stays open.
    Silent,
    /// Events were taken, the body comes slowly but whole.
    Slow,
}

/// The pace of a `slow` body unless a fault says otherwise, in bytes a second: a full page takes about
/// five seconds.
const SLOW_PACE: u32 = 20_000;

/// A text is not the name of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a fault; there are {}", FaultKind::names())]
pub struct NotAFault;

// === impl Fault ===

impl Fault {
    /// A fault that strikes every request, everywhere, always.
    pub fn new(kind: FaultKind) -> Self {
        Self {
            kind,
            share: 1.0,
            from: Duration::ZERO,
            until: None,
            region: None,
            app_id: None,
            endpoint: None,
            status: None,
            retry_after: None,
            retry_after_as_date: false,
            bytes_per_second: SLOW_PACE,
        }
    }

    /// The same for a share of requests (0 to 1).
    #[must_use]
    pub fn share(self, share: f64) -> Self {
        Self { share, ..self }
    }

    /// The same from one moment until before another.
    #[must_use]
    pub fn between(self, from: Duration, until: Duration) -> Self {
        Self { from, until: Some(until), ..self }
    }

    /// The same in one region.
    #[must_use]
    pub fn region(self, name: impl Into<String>) -> Self {
        Self { region: Some(name.into()), ..self }
    }

    /// The same that answers with this status.
    #[must_use]
    pub fn status(self, status: u16) -> Self {
        Self { status: Some(status), ..self }
    }

    /// Whether it can strike at that moment.
    pub fn is_on(&self, now: Duration) -> bool {
        self.from <= now && self.until.is_none_or(|until| now < until)
    }
}

// === impl FaultKind ===

impl FaultKind {
    /// Every fault there is.
    pub const ALL: [Self; 14] = [
        Self::Refused,
        Self::BlackHole,
        Self::Ignored,
        Self::TimedOut,
        Self::Throttled,
        Self::Denied,
        Self::ServerError,
        Self::Failed,
        Self::NotJson,
        Self::NoAnswer,
        Self::Cut,
        Self::Reset,
        Self::Silent,
        Self::Slow,
    ];

    /// The name that arguments use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::BlackHole => "black_hole",
            Self::Ignored => "ignored",
            Self::TimedOut => "timed_out",
            Self::Throttled => "throttled",
            Self::Denied => "denied",
            Self::ServerError => "server_error",
            Self::Failed => "failed",
            Self::NotJson => "not_json",
            Self::NoAnswer => "no_answer",
            Self::Cut => "cut",
            Self::Reset => "reset",
            Self::Silent => "silent",
            Self::Slow => "slow",
        }
    }

    /// All names, for messages.
    pub fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// Whether it strikes a connection rather than a request.
    pub const fn strikes_connections(self) -> bool {
        matches!(self, Self::Refused | Self::BlackHole)
    }

    /// Whether its answer may carry `Retry-After`.
    pub const fn may_name_a_delay(self) -> bool {
        matches!(self, Self::Throttled | Self::Denied | Self::ServerError)
    }

    /// Whether the events are taken from the buffer all the same.
    pub const fn takes_events(self) -> bool {
        matches!(self, Self::NoAnswer | Self::Cut | Self::Reset | Self::Silent | Self::Slow)
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FaultKind {
    type Err = NotAFault;

    fn from_str(name: &str) -> Result<Self, NotAFault> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or(NotAFault)
    }
}
