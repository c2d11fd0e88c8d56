//! Requests to Agora, and what its answers mean.
//!
//! [`Transport`] sends one request and returns the reply of any kind ([`http::Http`] is the
//! real one, the simulator has its own). [`answer::judge`] decides what the caller must do with it.
//! Before a page is durable, `judge` may look into it only to prove that an answer holds no event.
//! Later, from the journal's copy, [`Contents`] inflates a compressed body, [`split`] finds the
//! elements of a page, and [`event::read`] reads each of them separately.
//!
//! The facts about the API come from Agora's public documents; `docs/agora.md` lists them along
//! with what is inferred.

pub mod answer;
mod contents;
mod credentials;
pub mod event;
pub mod http;
mod inflate;
mod splitter;
pub mod token;

use std::future::Future;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;

pub use self::answer::{Answer, judge};
pub use self::contents::{Contents, Flaw};
pub use self::credentials::{
    Credentials, Edition, Moment, NoCredentials, Proof, Refused, TokenEnd,
};
pub use self::event::Event;
pub use self::splitter::{Ending, Glance, Shape, Split, split};

/// Maximum size of a body that is kept, in bytes. A page of 1,000 events has about 200 KiB.
pub const LARGEST_BODY: usize = 8 * 1024 * 1024;

/// One request. It has no body and no parameters.
#[derive(Clone)]
pub struct Request {
    /// The complete URL.
    pub url: String,
    /// Authentication headers: secrets.
    pub proof: Vec<(&'static str, String)>,
}

/// The outcome of a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// An answer, or at least its head.
    Answered(Raw),
    /// The request never reached the server. Nothing was drained.
    NotSent(TransportError),
    /// The request was sent, but no answer came back. A page may be lost for good.
    Lost(TransportError),
}

/// An answer as received.
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
    /// The body, as far as it was received; not inflated.
    pub body: Bytes,
    /// Why the body was cut off, if it was.
    pub cut: Option<TransportError>,
    /// When the head arrived: the request had reached the server by then.
    pub head_at: Option<Instant>,
}

/// Why a request or an answer failed: a complete text, without secrets. A known remedy follows
/// after an arrow (` → `).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TransportError(pub String);

/// Sends requests to Agora.
pub trait Transport: Send + Sync + 'static {
    /// Sends one request, exactly once: no layer below sends it again. Ends with an answer, a
    /// connection error, or a timeout. Calls `on_head` when the head of an answer arrives, before
    /// its body: by then the request has reached the server and taken what it found.
    fn ask_with(
        &self,
        request: Request,
        on_head: impl FnOnce(Instant) + Send,
    ) -> impl Future<Output = Reply> + Send;

    /// The same, for a caller that waits for the whole answer.
    fn ask(&self, request: Request) -> impl Future<Output = Reply> + Send {
        self.ask_with(request, |_| {})
    }

    /// Maximum duration of a request, regardless of the server.
    fn longest(&self) -> Duration;
}

// === impl Reply ===

impl Reply {
    /// When the head of an answer arrived; `None` if there was none.
    pub fn head_at(&self) -> Option<Instant> {
        match self {
            Self::Answered(raw) => raw.head_at,
            Self::NotSent(_) | Self::Lost(_) => None,
        }
    }

    /// The server's clock, if an answer arrived and states it.
    pub fn date(&self) -> Option<SystemTime> {
        match self {
            Self::Answered(raw) => raw.date(),
            Self::NotSent(_) | Self::Lost(_) => None,
        }
    }
}

// === impl TransportError ===

impl TransportError {
    /// The problem, and the remedy if there is one.
    pub fn parts(&self) -> (&str, Option<&str>) {
        let parts = self.0.split_once(" → ");
        parts.map_or((&self.0, None), |(seen, remedy)| (seen, Some(remedy)))
    }
}

// === impl Raw ===

impl Raw {
    /// The server's clock, in whole seconds.
    pub fn date(&self) -> Option<SystemTime> {
        httpdate::parse_http_date(self.date.as_deref()?.trim()).ok()
    }

    /// `Content-Encoding`, if it names an encoding other than `identity`.
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
