//! The real transport: HTTP/1.1 by reqwest, TLS by rustls.
//!
//! Set up so that one call is one request: no redirects, no retries, no compression. hyper may send
//! a request again that it never began to write; nothing else is allowed to. The body is read chunk
//! by chunk, so that of a body that breaks off everything is kept that came.

mod clients;

use std::error::Error as _;
use std::time::Duration;

use bytes::BytesMut;
use reqwest::header::HeaderValue;
use tokio::time::Instant;
use tokio::time::timeout;

pub use self::clients::HttpError;

use self::clients::Clients;
use self::clients::LIFE;
use crate::agora::LARGEST_BODY;
use crate::agora::Raw;
use crate::agora::Reply;
use crate::agora::Request;
use crate::agora::Transport;
use crate::agora::TransportError;
use crate::config::Agora;

/// reqwest behind the [`Transport`] seam. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Http {
    clients: Clients,
    silence: Duration,
    longest: Duration,
}

// === impl Http ===

impl Http {
    /// A transport with the operator's timeouts, certificates and proxy.
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
}

impl Transport for Http {
    async fn ask_with(&self, request: Request, on_head: impl FnOnce(Instant) + Send) -> Reply {
        let began = Instant::now();
        let mut builder = self.clients.client(&request.url).get(request.url);
        for (name, value) in request.proof {
            let Ok(mut value) = HeaderValue::from_str(&value) else {
                let reason =
                    format!("the credential for `{name}` has characters no header can hold");
                return Reply::NotSent(TransportError(reason));
            };
            value.set_sensitive(true);
            builder = builder.header(name, value);
        }
        let mut response = match timeout(self.silence, builder.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if error.is_connect() || error.is_builder() => {
                return Reply::NotSent(plain(error));
            }
            Ok(Err(error)) => return Reply::Lost(plain(error)),
            Err(_) => return Reply::Lost(self.silent()),
        };
        let head_at = Instant::now();
        on_head(head_at);
        let mut body = BytesMut::with_capacity(room(&response));
        let cut = loop {
            // A body that drips has an end, too: others wait for it, be it the stop.
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
        Reply::Answered(Raw {
            status: response.status().as_u16(),
            retry_after: text("retry-after"),
            date: text("date"),
            request_id: text("x-request-id"),
            resource_id: text("x-resource-id"),
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
    fn silent(&self) -> TransportError {
        TransportError(format!("silent for {:?} (agora.silence_timeout)", self.silence))
    }

    fn endless(&self) -> TransportError {
        let longest = self.longest;
        TransportError(format!("not complete after {longest:?} (agora.silence_timeout and more)"))
    }
}

/// What the head announces, within reason.
fn room(response: &reqwest::Response) -> usize {
    const USUAL: u64 = 256 * 1024;
    let announced = response.content_length().unwrap_or(0).min(USUAL);
    usize::try_from(announced).unwrap_or(0)
}

/// The causes of an error, without the URL: it says nothing that the feed does not.
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
