//! The real transport: HTTP/1.1 by reqwest, TLS by rustls.
//!
//! Set up so that one call is one request: no redirects, no retries, no compression. hyper may send
//! a request again that it never began to write; nothing else is allowed to. The body is read chunk
//! by chunk, so that of a body that breaks off everything is kept that came.

use std::error::Error as _;
use std::time::Duration;

use bytes::BytesMut;
use reqwest::Client;
use reqwest::header::HeaderMap;
use reqwest::header::HeaderValue;
use tokio::time::Instant;
use tokio::time::timeout;

use crate::agora::LARGEST_BODY;
use crate::agora::Raw;
use crate::agora::Reply;
use crate::agora::Request;
use crate::agora::Transport;
use crate::agora::TransportError;
use crate::config::Agora;

/// Idle connections are closed before a load balancer does it while a request is on its way.
const IDLE: Duration = Duration::from_secs(15);

/// reqwest behind the [`Transport`] seam. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Http {
    client: Client,
    silence: Duration,
}

/// Why no client can be made.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// A file of certificates can't be read.
    #[error("read `{path}` (agora.ca_file)")]
    CaFile {
        /// Which.
        path: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// A file of certificates holds none, or a proxy is not one.
    #[error("use {what}")]
    Unusable {
        /// Which key.
        what: &'static str,
        /// Why.
        #[source]
        cause: reqwest::Error,
    },
    /// TLS can't be set up.
    #[error("set up the HTTP client")]
    Client(#[source] reqwest::Error),
}

// === impl Http ===

impl Http {
    /// A client with the operator's timeouts, certificates and proxy.
    pub fn new(settings: &Agora) -> Result<Self, HttpError> {
        // Another part of the process may have installed it; it is the only one we link.
        drop(rustls::crypto::ring::default_provider().install_default());
        let mut builder = Client::builder()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(settings.connect_timeout)
            .pool_idle_timeout(IDLE)
            .tcp_nodelay(true)
            .user_agent(concat!("agora-rtm-bridge/", env!("CARGO_PKG_VERSION")))
            .default_headers(HeaderMap::from_iter([
                (reqwest::header::ACCEPT, HeaderValue::from_static("application/json")),
                (reqwest::header::ACCEPT_ENCODING, HeaderValue::from_static("identity")),
            ]));
        if let Some(path) = &settings.ca_file {
            let pem = std::fs::read(path)
                .map_err(|cause| HttpError::CaFile { path: path.display().to_string(), cause })?;
            let certificates = reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|cause| HttpError::Unusable { what: "agora.ca_file", cause })?;
            for certificate in certificates {
                builder = builder.add_root_certificate(certificate);
            }
        }
        if let Some(proxy) = &settings.proxy {
            let proxy = reqwest::Proxy::all(proxy.reveal())
                .map_err(|cause| HttpError::Unusable { what: "agora.proxy", cause })?
                .no_proxy(reqwest::NoProxy::from_string("localhost,127.0.0.0/8,::1"));
            builder = builder.proxy(proxy);
        }
        let client = builder.build().map_err(HttpError::Client)?;
        Ok(Self { client, silence: settings.silence_timeout })
    }
}

impl Transport for Http {
    async fn ask(&self, request: Request) -> Reply {
        let mut builder = self.client.get(request.url);
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
        let head_at = Some(Instant::now());
        let mut body = BytesMut::with_capacity(room(&response));
        let cut = loop {
            match timeout(self.silence, response.chunk()).await {
                Ok(Ok(None)) => break None,
                Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
                Ok(Err(error)) => break Some(plain(error)),
                Err(_) => break Some(self.silent()),
            }
            if body.len() > LARGEST_BODY {
                break Some(TransportError(format!("more than {LARGEST_BODY} bytes")));
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
            head_at,
        })
    }
}

impl Http {
    fn silent(&self) -> TransportError {
        TransportError(format!("silent for {:?} (agora.silence_timeout)", self.silence))
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
