//! What the operator wants: one TOML file and the environment, as values that can't be wrong.
//!
//! [`load`] reads both, the environment over the file, and finds *all* that is wrong with them at
//! once: each fault with its key, its value, the reason for the rule, and the line or the variable
//! that it comes from. What is left when nothing is wrong is a [`Settings`], and nobody has to
//! look twice: hosts are URLs, topics are legal and distinct, intervals are in order, a secret
//! file can be read.
//!
//! The way of a value: `file` and `environment` make a layer each, refusing unknown names; the
//! `config` crate lays one over the other; `reader` takes values out by the `table` of keys,
//! which also knows defaults, bounds and the sentence for the reference page; `general`,
//! `kafka` and `apps` hold the rules between values. A secret is shown nowhere: not by
//! `Debug`, not in a fault, not by [`Settings::shown`].
//!
//! It isn't a place for policy that needs to look at the world: whether a topic exists or a
//! credential is accepted is for `check` to find out.

mod apps;
mod environment;
mod fault;
mod file;
mod general;
mod host;
mod kafka;
mod keys;
mod layer;
mod reader;
#[cfg(test)]
mod reference;
mod secret;
mod shown;
mod table;
#[cfg(test)]
mod tests;
mod units;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::model::{AppId, Endpoint, Region};

pub(crate) use fault::quoted;
pub use fault::{Fault, Faults, Origin, Origins};
pub use host::{Host, Proxy, is_loopback};
pub use secret::{Secret, SecretError};

use layer::Layer;
use reader::Reader;

/// Everything that can be configured, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the journal lives.
    pub data_dir: PathBuf,
    /// The name of this process, in printable ASCII without spaces.
    pub instance: String,
    /// How long a stop may take. Longer than [`Agora::silence_timeout`].
    pub shutdown_grace: Duration,
    /// What is logged, and how.
    pub log: Log,
    /// The status server.
    pub http: Http,
    /// The journal.
    pub journal: Journal,
    /// How Agora is reached.
    pub agora: Agora,
    /// How often Agora is asked.
    pub poll: Poll,
    /// Where events go.
    pub kafka: Kafka,
    /// Whose events. At least one; App IDs are distinct.
    pub apps: Vec<App>,
}

/// Logging.
#[derive(Clone, Debug)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// A filter that `tracing_subscriber`'s `EnvFilter` accepts.
    pub level: String,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// The status server.
#[derive(Clone, Debug)]
pub struct Http {
    /// Where it listens.
    pub listen: SocketAddr,
}

/// The journal.
#[derive(Clone, Debug)]
pub struct Journal {
    /// How much disk it may take, in bytes.
    pub max_size: u64,
}

/// How Agora is reached.
#[derive(Clone, Debug)]
pub struct Agora {
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// How long a request may stay without a byte.
    pub silence_timeout: Duration,
    /// Certificates (PEM) to trust. Could be read when the settings were.
    pub ca_file: Option<PathBuf>,
    /// Whether those of the system are trusted, too. Always, where no file names others.
    pub system_certificates: bool,
    /// The files (PEM) of the certificate that is shown to the server, and of its key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// The proxy to go through; hosts on this machine are asked directly.
    pub proxy: Option<Proxy>,
    /// Its password, where the URL doesn't carry it.
    pub proxy_password: Option<Secret>,
}

/// How often Agora is asked.
#[derive(Clone, Debug)]
pub struct Poll {
    /// How soon a feed that has handed over events is asked again.
    pub shortest_interval: Duration,
    /// How long an empty feed is left alone at most. Not below the shortest.
    pub longest_interval: Duration,
}

/// Where events go.
#[derive(Clone, Debug)]
pub struct Kafka {
    /// `host:port`, separated by commas.
    pub bootstrap_servers: String,
    /// Prefix of transactional ids, and the consumer group.
    pub group: String,
    /// What is promised.
    pub delivery: Delivery,
    /// The topics.
    pub topics: Topics,
    /// Settings of librdkafka by their names there. None that the promises rest on.
    pub options: BTreeMap<String, OptionValue>,
}

/// What is promised to readers of the event topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Transactions.
    ExactlyOnce,
    /// An idempotent producer; repeats after a crash are possible.
    AtLeastOnce,
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = kafka::DELIVERIES.iter().find(|(_, delivery)| delivery == self);
        let (word, _) = found.expect("every delivery has its word");
        f.write_str(word)
    }
}

/// The topics. Their names are legal and distinct.
#[derive(Clone, Debug)]
pub struct Topics {
    /// Logins and logouts.
    pub user_events: String,
    /// Joins and leaves.
    pub channel_events: String,
    /// What could not be read as an event.
    pub dead_letter: String,
    /// Where events may be missing.
    pub gaps: String,
    /// Answers as received.
    pub pages: String,
    /// The bridge's memory.
    pub state: String,
    /// Whether missing topics are created.
    pub create: bool,
    /// Partitions of an event topic that is created.
    pub partitions: NonZeroU32,
    /// Partitions of the pages and the state topic.
    pub page_partitions: NonZeroU32,
    /// Copies of a topic that is created; -1 for the broker's default, else positive.
    pub replication_factor: i16,
    /// How long a pages topic that is created keeps pages.
    pub page_retention: Duration,
}

/// The value of a setting of librdkafka.
#[derive(Clone, Debug)]
pub enum OptionValue {
    /// It may be shown.
    Plain(String),
    /// It may not: by its name, or because it comes from a file.
    Secret(Secret),
}

/// An App ID and how it is drained.
#[derive(Clone, Debug)]
pub struct App {
    /// The App ID: ASCII letters, digits, `-` and `_`.
    pub app_id: AppId,
    /// The regions to drain. At least one; no host is in two of them.
    pub regions: Vec<RegionHosts>,
    /// The endpoints to drain. At least one, none twice.
    pub endpoints: Vec<EndpointPath>,
    /// The ceiling of requests in any second, 1 to 10.
    pub requests_per_second: NonZeroU32,
    /// How requests prove who asks.
    pub auth: Auth,
}

/// A region and its hosts.
#[derive(Clone, Debug)]
pub struct RegionHosts {
    /// Its name; `default` where only hosts were given.
    pub name: Region,
    /// In the order of failover. At least one.
    pub hosts: Vec<Host>,
}

/// An endpoint and the end of its URL.
#[derive(Clone, Debug)]
pub struct EndpointPath {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The path, without slashes at its ends.
    pub path: String,
}

/// How requests prove who asks.
#[derive(Clone, Debug)]
pub enum Auth {
    /// RESTful credentials.
    Basic {
        /// Without a colon.
        customer_id: String,
        /// The secret to it.
        customer_secret: Secret,
    },
    /// A token made here, whenever one is needed.
    Minted {
        /// What it is signed with.
        certificate: Secret,
        /// Who logs in with it.
        user_id: String,
        /// Its form.
        form: TokenForm,
        /// How long one lives.
        life: Duration,
    },
    /// A token made elsewhere; its first three characters tell its form.
    Token {
        /// The token.
        token: Secret,
        /// The user it was made for. There is one where the token begins with `006`.
        user_id: Option<String>,
    },
}

/// The form of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenForm {
    /// `006`.
    AccessToken,
    /// `007`.
    AccessToken2,
}

/// Reads the file, where there is one, and the variables of the environment.
///
/// Variables that don't begin with `AGORA_RTM_BRIDGE__` are passed over, except systemd's
/// `CREDENTIALS_DIRECTORY`, in which secrets with a relative path are looked for.
///
/// # Errors
///
/// Everything that is wrong, at once. A file that can't be read, or isn't TOML, hides what else
/// may be wrong in it.
pub fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Settings, Faults> {
    load_with_origins(file, environment).map(|(settings, _)| settings)
}

/// The same, with where each value was written.
///
/// # Errors
///
/// As [`load`].
pub fn load_with_origins(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<(Settings, Origins), Faults> {
    let mut variables: Vec<_> = environment.into_iter().collect();
    variables.sort();
    let from_environment = environment::read(&variables);
    let from_file = match file.map_or_else(|| Ok(Layer::default()), file::read) {
        Ok(layer) => layer,
        Err(unreadable) => {
            let all = [unreadable.faults, from_environment.faults].concat();
            return Err(Faults::found(all).expect("a file that can't be read is a fault"));
        }
    };
    let credentials = variables.iter().find(|(name, _)| name == "CREDENTIALS_DIRECTORY");
    let mut reader = Reader {
        merged: layer::merged(&from_file, &from_environment),
        groups: from_file.groups,
        credentials: credentials.map(|(_, directory)| PathBuf::from(directory)),
        faults: [from_file.faults, from_environment.faults].concat(),
    };
    let settings = general::settings(&mut reader);
    match Faults::found(reader.faults) {
        None => {
            let settings = settings.expect("what can't be read leaves a fault");
            Ok((settings, Origins::of_all(&reader.merged)))
        }
        Some(faults) => Err(faults),
    }
}
