//! The two HTTP clients, and their renewal.
//!
//! One for hosts on this machine, which never goes through a proxy, whoever names one; one for all
//! others. Both are made anew every [`LIFE`]. A client has its connections: one that is asked four
//! times a second never falls idle, and would stay for months with an address that its name has
//! long left. Renewal also reads certificates, keys and the password of the proxy again. Requests
//! that are out end on the connections that they have.

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use reqwest::Certificate;
use reqwest::Client;
use reqwest::ClientBuilder;
use reqwest::Identity;
use reqwest::Proxy;
use reqwest::header::HeaderMap;
use reqwest::header::HeaderValue;
use tokio::time::Instant;
use tracing::warn;

use crate::config::Agora;
use crate::config::SecretError;
use crate::config::is_loopback;
use crate::error::Chain;

/// Connections live no longer. Operators move a name to another address within minutes, and the old
/// one goes on answering for a while; a handshake for each connection every five minutes costs
/// nothing.
pub(super) const LIFE: Duration = Duration::from_secs(300);

/// Idle connections are closed before a load balancer does it while a request is on its way.
const IDLE: Duration = Duration::from_secs(15);

/// An answer with more headers would be refused whole, and its events with it. hyper's own limit is
/// a hundred.
const MOST_HEADERS: usize = 1_024;

/// Cheap to clone; clones share.
#[derive(Clone, Debug)]
pub(super) struct Clients {
    settings: Arc<Agora>,
    life: Duration,
    made: Arc<Mutex<Made>>,
}

#[derive(Debug)]
struct Made {
    at: Instant,
    direct: Client,
    outside: Client,
}

/// Why no client can be made.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// A file of certificates or keys can't be read.
    #[error("read `{path}` ({key})")]
    File {
        /// Which.
        path: String,
        /// Whose.
        key: &'static str,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// A file holds no certificates.
    #[error("`{path}` ({key}) holds no certificate")]
    Empty {
        /// Which.
        path: String,
        /// Whose.
        key: &'static str,
    },
    /// A file holds certificates or keys that are none, or a proxy is not one.
    #[error("use {key}")]
    Unusable {
        /// Which key of the configuration.
        key: &'static str,
        /// Why.
        #[source]
        cause: reqwest::Error,
    },
    /// The password of the proxy can't be had.
    #[error("read the password of the proxy (agora.proxy_password)")]
    ProxyPassword(#[from] SecretError),
    /// TLS can't be set up.
    #[error("set up the HTTP client")]
    Client(#[source] reqwest::Error),
}

// === impl Clients ===

impl Clients {
    pub(super) fn new(settings: Agora, life: Duration) -> Result<Self, HttpError> {
        let made = Made::new(&settings)?;
        Ok(Self { settings: Arc::new(settings), life, made: Arc::new(Mutex::new(made)) })
    }

    /// The client for a URL.
    pub(super) fn client(&self, url: &str) -> Client {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.at.elapsed() >= self.life {
            match Made::new(&self.settings) {
                Ok(anew) => *made = anew,
                Err(error) => {
                    warn!(error = %Chain(&error), "connections to Agora can't be renewed");
                    made.at = Instant::now();
                }
            }
        }
        let is_here = url::Url::parse(url).is_ok_and(|url| is_loopback(&url));
        if is_here { made.direct.clone() } else { made.outside.clone() }
    }
}

impl Made {
    fn new(settings: &Agora) -> Result<Self, HttpError> {
        // Another part of the process may have installed it; it is the only one we link.
        drop(rustls::crypto::ring::default_provider().install_default());
        let direct = builder(settings)?.no_proxy();
        let mut outside = builder(settings)?;
        if let Some(url) = &settings.proxy {
            let mut proxy = Proxy::all(url.reveal())
                .map_err(|cause| HttpError::Unusable { key: "agora.proxy", cause })?;
            if let Some(password) = &settings.proxy_password {
                proxy = proxy.basic_auth(&url.user(), &password.reveal()?);
            }
            outside = outside.proxy(proxy);
        }
        Ok(Self {
            at: Instant::now(),
            direct: direct.build().map_err(HttpError::Client)?,
            outside: outside.build().map_err(HttpError::Client)?,
        })
    }
}

/// One call is one request, and an answer is taken as it comes: what it holds exists nowhere else.
fn builder(settings: &Agora) -> Result<ClientBuilder, HttpError> {
    let mut builder = Client::builder()
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .connect_timeout(settings.connect_timeout)
        .pool_idle_timeout(IDLE)
        .tcp_nodelay(true)
        .http1_max_headers(MOST_HEADERS)
        .http1_ignore_invalid_headers_in_responses(true)
        .http1_allow_spaces_after_header_name_in_responses(true)
        .http1_allow_obsolete_multiline_headers_in_responses(true)
        .user_agent(concat!("agora-rtm-bridge/", env!("CARGO_PKG_VERSION")))
        .default_headers(HeaderMap::from_iter([
            (reqwest::header::ACCEPT, HeaderValue::from_static("application/json")),
            (reqwest::header::ACCEPT_ENCODING, HeaderValue::from_static("identity")),
        ]));
    if let Some(path) = &settings.ca_file {
        let key = "agora.ca_file";
        let certificates = Certificate::from_pem_bundle(&read(path, key)?)
            .map_err(|cause| HttpError::Unusable { key, cause })?;
        if certificates.is_empty() {
            return Err(HttpError::Empty { path: path.display().to_string(), key });
        }
        builder = if settings.system_certificates {
            builder.tls_certs_merge(certificates)
        } else {
            builder.tls_certs_only(certificates)
        };
    }
    if let Some((certificate, key_file)) = &settings.client_certificate {
        let mut pem = read(certificate, "agora.client_certificate_file")?;
        pem.push(b'\n');
        pem.extend(read(key_file, "agora.client_key_file")?);
        let key = "agora.client_certificate_file and agora.client_key_file";
        let identity =
            Identity::from_pem(&pem).map_err(|cause| HttpError::Unusable { key, cause })?;
        builder = builder.identity(identity);
    }
    Ok(builder)
}

fn read(path: &Path, key: &'static str) -> Result<Vec<u8>, HttpError> {
    let path_text = || path.display().to_string();
    std::fs::read(path).map_err(|cause| HttpError::File { path: path_text(), key, cause })
}
