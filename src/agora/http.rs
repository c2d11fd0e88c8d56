//! The real transport: HTTP/1.1 with reqwest, TLS with rustls.
//!
//! One call is one request: no redirects, no retries, no compression. hyper may resend a request
//! that it never began to write; nothing else may be sent twice. The body is read chunk by chunk,
//! so that everything received before a cut is kept.

mod certificates;
mod clients;
mod idle;
mod tls;

use std::error::Error as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use hyper::http::Extensions;
use hyper_util::client::legacy::connect::HttpInfo;
use reqwest::header::{CONTENT_ENCODING, HeaderValue};
use tokio::time::{Instant, timeout};

pub use self::clients::{HttpError, Stale};

use self::certificates::is_refusal;
use self::clients::{Clients, LIFE, Lease};
use crate::agora::{LARGEST_BODY, Raw, Reply, Request, Transport, TransportError};
use crate::config::Agora;
use crate::error::Chain;

/// Minimum interval between two requests for the time, to a host whose certificate is not valid by
/// our clock.
const ASK_THE_TIME: Duration = Duration::from_secs(60);

/// reqwest behind the [`Transport`] seam. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Http {
    clients: Clients,
    silence: Duration,
    longest: Duration,
}

// === impl Http ===

impl Http {
    /// Creates a transport with the operator's timeouts, certificates and proxy.
    ///
    /// # Errors
    ///
    /// A file can't be read or used, or TLS can't be set up.
    pub fn new(settings: &Agora) -> Result<Self, HttpError> {
        Self::with_life(settings, LIFE)
    }

    fn with_life(settings: &Agora, life: Duration) -> Result<Self, HttpError> {
        Ok(Self {
            clients: Clients::new(settings.clone(), life)?,
            silence: settings.silence_timeout,
            longest: settings.longest_request(),
        })
    }

    /// Why certificates, keys or the proxy's password can't be reloaded, while that is the case.
    /// The old ones stay in use.
    pub fn stale(&self) -> impl Fn() -> Option<Stale> + Send + Sync + 'static {
        let clients = self.clients.clone();
        move || clients.stale()
    }
}

impl Transport for Http {
    async fn ask_with(&self, request: Request, on_head: impl FnOnce(Instant) + Send) -> Reply {
        let began = Instant::now();
        let lease = match self.clients.lease(&request.url) {
            Ok(lease) => lease,
            Err(error) => return Reply::NotSent(TransportError(Chain(&error).to_string())),
        };
        let mut builder = lease.client.get(request.url);
        for (name, value) in request.proof {
            let Ok(mut value) = HeaderValue::from_str(&value) else {
                let reason =
                    format!("the credential for `{name}` has characters not allowed in a header");
                return Reply::NotSent(TransportError(reason));
            };
            value.set_sensitive(true);
            builder = builder.header(name, value);
        }
        let mut response = match timeout(self.silence, builder.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return self.failed(&lease, error).await,
            Err(_) => return Reply::Lost(self.silent()),
        };
        let head_at = Instant::now();
        on_head(head_at);
        let mut body = BytesMut::with_capacity(room(&response));
        let cut = loop {
            // A body that drips has a deadline, too: the shutdown and others wait for it.
            let left = self.longest.saturating_sub(began.elapsed());
            match timeout(self.silence.min(left), response.chunk()).await {
                Ok(Ok(None)) => break None,
                Ok(Ok(Some(chunk))) => {
                    let fits = chunk.get(..LARGEST_BODY - body.len());
                    body.extend_from_slice(fits.unwrap_or(&chunk));
                    if fits.is_some_and(|fits| fits.len() < chunk.len()) {
                        break Some(TransportError(format!("more than {LARGEST_BODY} bytes")));
                    }
                }
                Ok(Err(error)) => break Some(plain(error)),
                Err(_) if left <= self.silence => break Some(self.endless()),
                Err(_) => break Some(self.silent()),
            }
        };
        let text = |name: &str| response.headers().get(name)?.to_str().ok().map(str::to_owned);
        if cut.is_none() {
            lease.idle(address(response.extensions()), text("keep-alive").as_deref());
        }
        Reply::Answered(Raw {
            status: response.status().as_u16(),
            retry_after: text("retry-after"),
            date: text("date"),
            request_id: text("x-request-id"),
            resource_id: text("x-resource-id"),
            content_encoding: encodings(&response),
            body: body.freeze(),
            cut,
            head_at: Some(head_at),
        })
    }

    fn longest(&self) -> Duration {
        self.longest
    }
}

impl Http {
    /// The reply for a request without the head of an answer.
    async fn failed(&self, lease: &Lease, error: reqwest::Error) -> Reply {
        if error.is_connect() || error.is_builder() {
            return Reply::NotSent(self.unreachable(lease, error).await);
        }
        // In TLS 1.3 a server that requires a client certificate says so after our part of the
        // handshake, when the request is already on its way. It hasn't looked at the request.
        if was_never_written(&error) || certificates::cause(&error).is_some_and(is_refusal) {
            return Reply::NotSent(self.unreachable(lease, error).await);
        }
        let Some(idle) = connection(&error).and_then(|address| lease.died(address)) else {
            return Reply::Lost(plain(error));
        };
        let TransportError(text) = plain(error);
        Reply::Lost(TransportError(format!("{text}: its connection had been idle for {idle:?}")))
    }

    /// Why there is no connection, with a remedy if TLS is the reason.
    async fn unreachable(&self, lease: &Lease, error: reqwest::Error) -> TransportError {
        let Some(cause) = certificates::cause(&error) else { return plain(error) };
        let ahead = match certificates::is_about_time(cause) {
            true => self.clock_of(lease.host()).await,
            false => None,
        };
        let Some(said) = certificates::explain(cause, ahead) else { return plain(error) };
        let text = match self.clients.stale() {
            Some(stale) => format!("{said} (old files are in use: failed to {})", stale.reason),
            None => said,
        };
        TransportError(text)
    }

    /// How far the clock of a host is ahead of ours, in seconds. Requests its root path, without
    /// credentials, with a client that ignores the dates of its certificate and nothing else.
    async fn clock_of(&self, host: &str) -> Option<i64> {
        let now = Instant::now();
        let known = self.clients.clock(host);
        let (ahead, asked) = known.unzip();
        if asked.is_some_and(|asked| now.saturating_duration_since(asked) < ASK_THE_TIME) {
            return ahead.flatten();
        }
        self.clients.set_clock(host, ahead.flatten(), now);
        let asking = self.clients.timeless(host).ok()?.get(format!("{host}/")).send();
        let answer = timeout(self.silence, asking).await.ok()?.ok();
        let date = answer.as_ref().and_then(|it| it.headers().get("date")?.to_str().ok());
        let date = date.and_then(|date| httpdate::parse_http_date(date.trim()).ok());
        let ahead = date.map(|date| seconds_between(SystemTime::now(), date));
        self.clients.set_clock(host, ahead, now);
        ahead
    }

    fn silent(&self) -> TransportError {
        TransportError(format!("no data for {:?} (agora.silence_timeout)", self.silence))
    }

    fn endless(&self) -> TransportError {
        let longest = self.longest;
        TransportError(format!("not complete after {longest:?} (agora.silence_timeout + 4 s)"))
    }
}

/// The encodings of the body, in the order in which they were applied.
fn encodings(response: &reqwest::Response) -> Option<String> {
    let values = response.headers().get_all(CONTENT_ENCODING).iter();
    let names: Vec<_> = values.map(|it| String::from_utf8_lossy(it.as_bytes())).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// The announced size of the body, within reason.
fn room(response: &reqwest::Response) -> usize {
    const USUAL: u64 = 256 * 1024;
    let announced = response.content_length().unwrap_or(0).min(USUAL);
    usize::try_from(announced).unwrap_or(0)
}

/// Seconds from one moment to another; negative if the other is earlier.
fn seconds_between(from: SystemTime, to: SystemTime) -> i64 {
    let whole = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match to.duration_since(from) {
        Ok(later) => whole(later),
        Err(earlier) => -whole(earlier.duration()),
    }
}

/// Whether a request ended before a byte of it was written, because its connection was closed
/// already. hyper then returns it, or resends it itself if the connection was a reused one.
fn was_never_written(error: &reqwest::Error) -> bool {
    let mut next = error.source();
    while let Some(error) = next {
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
            return true;
        }
        next = error.source();
    }
    false
}

/// The connection that an error is about, by its local address.
fn connection(error: &reqwest::Error) -> Option<SocketAddr> {
    let mut next = error.source();
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<hyper_util::client::legacy::Error>() {
            let mut extensions = Extensions::new();
            error.connect_info()?.get_extras(&mut extensions);
            return address(&extensions);
        }
        next = error.source();
    }
    None
}

fn address(extensions: &Extensions) -> Option<SocketAddr> {
    extensions.get::<HttpInfo>().map(HttpInfo::local_addr)
}

/// The causes of an error, without the URL, which adds nothing to the feed.
fn plain(error: reqwest::Error) -> TransportError {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    TransportError(text)
}

#[cfg(test)]
mod tests;
