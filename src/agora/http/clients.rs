//! The HTTP clients of each host, and their renewal.
//!
//! A client owns its connections. A connection that is used four times a second never becomes idle,
//! and would keep an address for months after its name has moved. So each client is replaced after
//! its lifetime; in-flight requests end on their existing connections.
//!
//! The apps of a host are spread over [`SHARDS`] clients, whose lifetimes end one after the other:
//! of a thousand apps, sixty reconnect at a time. When a client is replaced, certificates, keys and
//! the proxy's password are reloaded; all clients share the result.
//!
//! Hosts on this machine are never reached through a proxy, not even one from the environment.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, ClientBuilder, Proxy};
use rustls::ClientConfig;
use tokio::time::Instant;
use tracing::{info, warn};

use super::idle;
use super::idle::{IdleLimit, Used};
use super::tls::{Files, Tls};
use crate::config::{Agora, SecretError, is_loopback};
use crate::error::Chain;
use crate::model::{Clock, Timestamp};

/// Maximum lifetime of connections. Operators move a name to another address within minutes, while
/// the old one still answers for some time; a handshake per connection every five minutes costs
/// nothing.
pub(super) const LIFE: Duration = Duration::from_secs(300);

/// Number of clients per host. Each has its own connections, so more clients would mean more idle
/// connections.
const SHARDS: u8 = 16;

/// Maximum number of headers in an answer. An answer with more would be rejected as a whole, and
/// its events lost. hyper's default is a hundred.
const MOST_HEADERS: usize = 1_024;

/// Cheap to clone; clones share their state.
#[derive(Clone, Debug)]
pub(super) struct Clients(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Agora,
    life: Duration,
    began: Instant,
    state: Mutex<PoolState>,
}

#[derive(Debug)]
struct PoolState {
    material: Material,
    hosts: HashMap<String, HostClients>,
}

/// The configuration that all clients are built from, including secrets.
struct Material {
    files: Files,
    tls: Tls,
    proxy: Option<Proxy>,
    /// When the files were last checked, and when the rest was built from them.
    looked_at: Instant,
    made_at: Instant,
    stale: Option<Stale>,
    /// When that was last logged.
    told: Option<Instant>,
}

/// Certificates, keys or the proxy's password couldn't be reloaded; the old ones stay in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stale {
    /// What went wrong.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
}

/// One host, by its scheme, name and port.
#[derive(Debug, Default)]
struct HostClients {
    idle: IdleLimit,
    used: Used,
    clients: HashMap<u8, Made>,
    /// How far its clock is ahead of ours in seconds, if it stated it, and when it was asked.
    clock: Option<(Option<i64>, Instant)>,
}

#[derive(Debug)]
struct Made {
    generation: Option<u128>,
    idle: Duration,
    client: Client,
}

/// A client for one request; learns from how the request ends.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) client: Client,
    clients: Clients,
    host: String,
    asked: Instant,
}

/// Why no client can be built.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// A file of certificates or keys can't be read.
    #[error("read `{path}` ({key})")]
    File {
        /// Path of the file.
        path: String,
        /// Its configuration key.
        key: &'static str,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// A file contains no certificates.
    #[error("`{path}` ({key}) contains no certificate")]
    Empty {
        /// Path of the file.
        path: String,
        /// Its configuration key.
        key: &'static str,
    },
    /// A file contains invalid certificates or keys, or the proxy is invalid.
    #[error("use {key}")]
    Unusable {
        /// The configuration key.
        key: &'static str,
        /// Why.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The proxy's password can't be read.
    #[error("read the proxy's password (agora.proxy_password)")]
    ProxyPassword(#[from] SecretError),
    /// TLS can't be set up.
    #[error("set up TLS")]
    Tls(#[source] rustls::Error),
    /// The HTTP client can't be built.
    #[error("set up the HTTP client")]
    Client(#[source] reqwest::Error),
}

// === impl Clients ===

impl Clients {
    pub(super) fn new(settings: Agora, life: Duration) -> Result<Self, HttpError> {
        let began = Instant::now();
        let material = Material::new(&settings, began)?;
        let state = Mutex::new(PoolState { material, hosts: HashMap::new() });
        Ok(Self(Arc::new(Inner { settings, life, began, state })))
    }

    /// The client for a request to a URL that leaves now.
    pub(super) fn lease(&self, url: &str) -> Result<Lease, HttpError> {
        let Inner { settings, life, began, .. } = &*self.0;
        let now = Instant::now();
        let (host, shard) = (host_of(url), shard_of(url));
        let generation = generation(now.saturating_duration_since(*began), *life, shard);
        let mut state = self.lock();
        let PoolState { material, hosts } = &mut *state;
        if !hosts.contains_key(host) {
            hosts.insert(host.to_owned(), HostClients::default());
        }
        let HostClients { idle, clients, .. } = hosts.get_mut(host).expect("it was just inserted");
        let limit = idle.limit(now);
        let lease = |client: &Client| Lease {
            client: client.clone(),
            clients: self.clone(),
            host: host.to_owned(),
            asked: now,
        };
        if let Some(made) = clients.get(&shard)
            && made.idle == limit
            && made.generation == generation
            && generation.is_some()
        {
            return Ok(lease(&made.client));
        }
        material.renew(settings, *life, now);
        let builder =
            builder(settings, limit).tls_backend_preconfigured(material.tls.config.clone());
        let client = material.proxied(builder, host).build().map_err(HttpError::Client)?;
        let lease = lease(&client);
        clients.insert(shard, Made { generation, idle: limit, client });
        Ok(lease)
    }

    /// A client that ignores the validity dates of a host's certificate.
    pub(super) fn timeless(&self, host: &str) -> Result<Client, HttpError> {
        let material = &self.lock().material;
        let config: ClientConfig = material.tls.timeless.clone();
        let builder = builder(&self.0.settings, Duration::ZERO).tls_backend_preconfigured(config);
        material.proxied(builder, host).build().map_err(HttpError::Client)
    }

    /// How far a host's clock is ahead of ours in seconds, if known, and when it was asked; `None`
    /// if it never was.
    pub(super) fn clock(&self, host: &str) -> Option<(Option<i64>, Instant)> {
        self.lock().hosts.get(host)?.clock
    }

    /// Records the result of asking for it.
    pub(super) fn set_clock(&self, host: &str, ahead: Option<i64>, now: Instant) {
        self.lock().hosts.entry(host.to_owned()).or_default().clock = Some((ahead, now));
    }

    /// Why certificates, keys or the proxy's password can't be reloaded, while that is the case.
    pub(super) fn stale(&self) -> Option<Stale> {
        self.lock().material.stale.clone()
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Lease ===

impl Lease {
    /// Scheme, name and port.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Records that a connection brought an answer and is idle from now on.
    pub(super) fn idle(&self, connection: Option<SocketAddr>, keep_alive: Option<&str>) {
        let now = Instant::now();
        let mut state = self.clients.lock();
        let Some(host) = state.hosts.get_mut(&self.host) else { return };
        if let Some(timeout) = keep_alive.and_then(idle::announced) {
            host.idle.announce(timeout, now);
        }
        if let Some(connection) = connection {
            host.used.note(connection, now);
        }
    }

    /// Records that a connection died before it brought an answer. Returns how long it had been
    /// idle; `None` if it was a new one.
    pub(super) fn died(&self, connection: SocketAddr) -> Option<Duration> {
        let mut state = self.clients.lock();
        let host = state.hosts.get_mut(&self.host)?;
        let idle = host.used.forget(connection, self.asked)?;
        host.idle.died(idle, Instant::now());
        Some(idle)
    }
}

// === impl Material ===

impl Material {
    fn new(settings: &Agora, now: Instant) -> Result<Self, HttpError> {
        let files = Files::read(settings)?;
        let tls = Tls::new(settings, &files)?;
        let proxy = proxy(settings)?;
        Ok(Self { files, tls, proxy, looked_at: now, made_at: now, stale: None, told: None })
    }

    /// Reloads what may have changed. If that fails, the old state is kept.
    fn renew(&mut self, settings: &Agora, life: Duration, now: Instant) {
        // Clients that are built at about the same time share one check of the files.
        let looked = now.saturating_duration_since(self.looked_at);
        if looked < life / u32::from(SHARDS) {
            return;
        }
        self.looked_at = now;
        match self.look(settings, life, now) {
            Ok(()) => {
                if self.stale.take().is_some() {
                    self.told = None;
                    info!("certificates and keys for Agora reloaded");
                }
            }
            Err(error) => {
                if self.told.is_none_or(|at| now.saturating_duration_since(at) >= life) {
                    warn!(error = %Chain(&error), "can't reload certificates and keys for Agora");
                    self.told = Some(now);
                }
                let since = self.stale.take().map_or_else(|| Clock::system().now(), |it| it.since);
                self.stale = Some(Stale { reason: Chain(&error).to_string(), since });
            }
        }
    }

    fn look(&mut self, settings: &Agora, life: Duration, now: Instant) -> Result<(), HttpError> {
        let files = Files::read(settings)?;
        // This also drops the sessions that new connections resume.
        let is_old = now.saturating_duration_since(self.made_at) >= life;
        if is_old || files != self.files {
            self.tls = Tls::new(settings, &files)?;
            self.files = files;
            self.made_at = now;
        }
        self.proxy = proxy(settings)?;
        Ok(())
    }

    fn proxied(&self, builder: ClientBuilder, host: &str) -> ClientBuilder {
        let is_here = url::Url::parse(host).is_ok_and(|url| is_loopback(&url));
        match &self.proxy {
            _ if is_here => builder.no_proxy(),
            Some(proxy) => builder.proxy(proxy.clone()),
            None => builder,
        }
    }
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material").field("stale", &self.stale).finish_non_exhaustive()
    }
}

fn proxy(settings: &Agora) -> Result<Option<Proxy>, HttpError> {
    let Some(url) = &settings.proxy else { return Ok(None) };
    let mut proxy = Proxy::all(url.reveal())
        .map_err(|cause| HttpError::Unusable { key: "agora.proxy", cause: cause.into() })?;
    if let Some(password) = &settings.proxy_password {
        proxy = proxy.basic_auth(&url.user(), &password.reveal()?);
    }
    Ok(Some(proxy))
}

/// One call is one request, and answers are parsed leniently: their events exist nowhere else.
fn builder(settings: &Agora, idle: Duration) -> ClientBuilder {
    let builder = Client::builder()
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .connect_timeout(settings.connect_timeout)
        .pool_idle_timeout(idle)
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
    if idle < idle::SHORTEST { builder.pool_max_idle_per_host(0) } else { builder }
}

/// Scheme, name and port of a URL.
fn host_of(url: &str) -> &str {
    let behind_scheme = url.find("://").map_or(0, |at| at + 3);
    let end = url.get(behind_scheme..).and_then(|rest| rest.find('/'));
    end.and_then(|end| url.get(..behind_scheme + end)).unwrap_or(url)
}

/// The shard of a URL; the same for the endpoints of an app, which share connections.
fn shard_of(url: &str) -> u8 {
    let mut hasher = DefaultHasher::new();
    url.rsplit_once('/').map_or(url, |(app, _)| app).hash(&mut hasher);
    let shard = hasher.finish() % u64::from(SHARDS);
    u8::try_from(shard).expect("a remainder is less than its divisor")
}

/// The number of a shard's current client, which increases with each replacement. Different shards
/// replace theirs at different times. `None` if each request gets a client of its own.
fn generation(elapsed: Duration, life: Duration, shard: u8) -> Option<u128> {
    let head_start = life * u32::from(shard) / u32::from(SHARDS);
    (elapsed + head_start).as_nanos().checked_div(life.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_replaced_after_their_life_and_never_all_at_once() {
        let replaced = |shard: u8| -> Vec<u64> {
            let at = |second| generation(Duration::from_secs(second), LIFE, shard);
            (1..=1_500).filter(|second| at(*second) != at(second - 1)).collect()
        };
        let all: Vec<_> = (0..SHARDS).map(replaced).collect();
        for (shard, moments) in all.iter().enumerate() {
            assert_eq!(moments.len(), 5, "{shard}: {moments:?}");
            assert!(moments.windows(2).all(|two| two[1] - two[0] == 300), "{shard}: {moments:?}");
            assert!(moments[0] <= 300, "{shard}: {moments:?}");
        }
        let mut firsts: Vec<u64> = all.iter().map(|moments| moments[0]).collect();
        firsts.sort_unstable();
        assert!(firsts.windows(2).all(|two| two[1] - two[0] >= 18), "{firsts:?}");
    }

    #[test]
    fn a_thousand_apps_are_spread_evenly_and_the_endpoints_of_one_stay_together() {
        let url = |app: u32, endpoint: &str| {
            format!("https://api.agora.io/dev/v2/project/{app:032x}/rtm/vendor/{endpoint}")
        };
        let mut apps = [0; SHARDS as usize];
        for app in 0..1_000 {
            let shard = shard_of(&url(app, "user_events"));
            assert_eq!(shard, shard_of(&url(app, "channel_events")));
            apps[usize::from(shard)] += 1;
        }
        assert!(apps.iter().all(|count| (40..90).contains(count)), "{apps:?}");
    }

    #[test]
    fn a_host_is_scheme_name_and_port() {
        for (url, host) in [
            ("https://api.agora.io/dev/v2", "https://api.agora.io"),
            ("http://[::1]:80/", "http://[::1]:80"),
            ("http://a", "http://a"),
        ] {
            assert_eq!(host_of(url), host);
        }
    }
}
