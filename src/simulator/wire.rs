//! The input and output of a [`World`](super::World): HTTP requests and answers without a network.

use std::time::Duration;

use super::script::Fault;

/// A request as it arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// `GET` in a valid request.
    pub method: String,
    /// The path; anything after a `?` is ignored.
    pub path: String,
    /// Header names in any case.
    pub headers: Vec<(String, String)>,
}

/// An answer, and how much of it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its number, which is its index in [`Ledger::answers`](super::Ledger::answers).
    pub number: u64,
    /// HTTP status.
    pub status: u16,
    /// Headers, except those for the framing.
    pub headers: Vec<(String, String)>,
    /// The whole body, even where only a part of it is sent.
    pub body: Vec<u8>,
    /// How the end of the body is marked.
    pub framing: Framing,
    /// How the answer ends.
    pub ending: Ending,
}

/// How the end of a body is marked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// By `Content-Length`.
    #[default]
    Length,
    /// By `Transfer-Encoding: chunked`.
    Chunked,
    /// By closing the connection. A body that is cut by an orderly close then looks complete.
    UntilClose,
}

/// How an answer ends. Where a number of bytes is given, the head and that many bytes of the body
/// are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// All of it is sent.
    #[default]
    Whole,
    /// All of it is sent, at this pace.
    Slow {
        /// Bytes of the body a second.
        bytes_per_second: u32,
    },
    /// This much is sent, then the connection is closed in order.
    Cut {
        /// Bytes of the body.
        after: usize,
    },
    /// This much is sent, then the connection is reset.
    Reset {
        /// Bytes of the body.
        after: usize,
    },
    /// This much is sent, then nothing more; the connection stays open.
    Silent {
        /// Bytes of the body.
        after: usize,
    },
    /// Nothing is sent, the connection is reset.
    NoAnswer,
    /// Nothing is sent; the connection stays open.
    Never,
}

/// The result of an attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Accepted; requests may follow.
    Accepted,
    /// Refused or reset at once.
    Refused,
    /// Accepted, but never read from.
    BlackHole,
}

// === impl Request ===

impl Request {
    /// A `GET` of this path.
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: "GET".into(), path: path.into(), headers: Vec::new() }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(super) fn value_of(&self, name: &str) -> Option<&str> {
        let header = self.headers.iter().find(|(it, _)| it.eq_ignore_ascii_case(name))?;
        Some(header.1.as_str())
    }
}

// === impl Answer ===

impl Answer {
    /// The bytes of the body that are sent; `None` if not even the head is.
    pub fn sent_body(&self) -> Option<&[u8]> {
        self.body.get(..self.ending.sent_of(self.body.len())?)
    }
}

// === impl Ending ===

impl Ending {
    /// How an answer ends when this fault hits it, if the body breaks off at `after`.
    pub(super) fn struck_by(fault: &Fault, after: usize) -> Self {
        use super::script::FaultKind as Kind;
        match fault.kind {
            Kind::NoAnswer => Self::NoAnswer,
            Kind::Cut => Self::Cut { after },
            Kind::Reset => Self::Reset { after },
            Kind::Silent => Self::Silent { after },
            Kind::Slow => Self::Slow { bytes_per_second: fault.bytes_per_second.max(1) },
            Kind::Ignored => Self::Never,
            _ => Self::Whole,
        }
    }

    /// How many bytes of a body of this length are sent; `None` if not even the head is.
    pub fn sent_of(self, length: usize) -> Option<usize> {
        match self {
            Self::Whole | Self::Slow { .. } => Some(length),
            Self::Cut { after } | Self::Reset { after } | Self::Silent { after } => {
                Some(after.min(length))
            }
            Self::NoAnswer | Self::Never => None,
        }
    }

    /// Time from the first to the last byte of the body.
    pub fn takes(self, length: usize) -> Duration {
        match self {
            Self::Slow { bytes_per_second } => {
                let millis = length as u64 * 1_000 / u64::from(bytes_per_second.max(1));
                Duration::from_millis(millis)
            }
            _ => Duration::ZERO,
        }
    }
}
