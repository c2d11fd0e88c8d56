//! What Agora says and what it means.
//!
//! The way of an answer: [`Transport`] sends one request and gives back whatever came
//! ([`http::Http`] is the real one, simulated time has its own). [`answer::judge`] decides what the
//! caller has to do with it; the only thing it may look at before a page is durable is whether an
//! answer is provably none. Later, from the journal's copy, [`Contents`] inflates what came compressed,
//! [`split`] finds the elements of a page, and [`event::read`] reads each alone.
//!
//! Facts about the API are from Agora's public documents; `docs/agora.md` lists them with what is
//! inferred.

pub mod answer;
mod contents;
mod credentials;
pub mod event;
pub mod http;
mod inflate;
mod splitter;
pub mod token;

use std::future::Future;
use std::time::Duration;
use std::time::SystemTime;

use bytes::Bytes;
use tokio::time::Instant;

pub use self::answer::Answer;
pub use self::answer::judge;
pub use self::contents::Contents;
pub use self::contents::Flaw;
pub use self::credentials::Credentials;
pub use self::credentials::Edition;
pub use self::credentials::Moment;
pub use self::credentials::NoCredentials;
pub use self::credentials::Proof;
pub use self::credentials::Refused;
pub use self::credentials::TokenEnd;
pub use self::event::Event;
pub use self::splitter::Ending;
pub use self::splitter::Glance;
pub use self::splitter::Shape;
pub use self::splitter::Split;
pub use self::splitter::split;

/// The largest body that is kept, in bytes. A page of 1,000 events has about 200 KiB.
pub const LARGEST_BODY: usize = 8 * 1024 * 1024;

/// One request. It has no body and no parameters.
#[derive(Clone)]
pub struct Request {
    /// The whole URL.
    pub url: String,
    /// Headers that prove who asks: secrets.
    pub proof: Vec<(&'static str, String)>,
}

/// What came of a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// An answer, at least its head.
    Answered(Raw),
    /// The request never reached the server. Nothing was drained.
    NotSent(TransportError),
    /// The request went out, and no answer came back. A page may be gone for good.
    Lost(TransportError),
}

/// An answer as it came.
#[derive(Clone, Debug, Default)]
pub struct Raw {
    /// HTTP status.
    pub status: u16,
    /// `Retry-After`.
    pub retry_after: Option<String>,
    /// `Date`: the server's clock.
    pub date: Option<String>,
    /// `X-Request-ID`.
    pub request_id: Option<String>,
    /// `X-Resource-ID`.
    pub resource_id: Option<String>,
    /// `Content-Encoding`.
    pub content_encoding: Option<String>,
    /// The body, as far as it came; what was compressed still is.
    pub body: Bytes,
    /// Why the body broke off, if it did.
    pub cut: Option<TransportError>,
    /// When the head was there: by then the request had arrived.
    pub head_at: Option<Instant>,
}

/// Why a request or an answer broke off: text, already put together, without secrets. What to do
/// about it stands behind an arrow (` → `), where that is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TransportError(pub String);

/// Sends requests to Agora.
pub trait Transport: Send + Sync + 'static {
    /// Sends one request, once: it is never sent again on the way. Ends by an answer, an error of
    /// the connection, or silence. Calls `on_head` when the head of an answer is there, before its
    /// body: by then the request has arrived, and taken what it found.
    fn ask_with(
        &self,
        request: Request,
        on_head: impl FnOnce(Instant) + Send,
    ) -> impl Future<Output = Reply> + Send;

    /// The same for a caller that waits for the whole answer.
    fn ask(&self, request: Request) -> impl Future<Output = Reply> + Send {
        self.ask_with(request, |_| {})
    }

    /// Every request has its end after so long, whatever the server does.
    fn longest(&self) -> Duration;
}

// === impl Reply ===

impl Reply {
    /// When the head of an answer was there; `None` where none came.
    pub fn head_at(&self) -> Option<Instant> {
        match self {
            Self::Answered(raw) => raw.head_at,
            Self::NotSent(_) | Self::Lost(_) => None,
        }
    }

    /// What the server's clock showed, where an answer came and says so.
    pub fn date(&self) -> Option<SystemTime> {
        match self {
            Self::Answered(raw) => raw.date(),
            Self::NotSent(_) | Self::Lost(_) => None,
        }
    }
}

// === impl TransportError ===

impl TransportError {
    /// What was seen, and what to do about it.
    pub fn parts(&self) -> (&str, Option<&str>) {
        let parts = self.0.split_once(" → ");
        parts.map_or((&self.0, None), |(seen, remedy)| (seen, Some(remedy)))
    }
}

// === impl Raw ===

impl Raw {
    /// What the server's clock showed, in whole seconds.
    pub fn date(&self) -> Option<SystemTime> {
        httpdate::parse_http_date(self.date.as_deref()?.trim()).ok()
    }

    /// `Content-Encoding`, where it says more than that the body came as it is.
    pub fn encoding(&self) -> Option<&str> {
        let encoding = self.content_encoding.as_deref()?.trim();
        let is_plain = encoding.is_empty() || encoding.eq_ignore_ascii_case("identity");
        (!is_plain).then_some(encoding)
    }
}

// === impl Request ===

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("url", &self.url).finish_non_exhaustive()
    }
}
