//! Verifies before a start everything that can be verified without draining events.
//!
//! [`run`] checks this machine, Agora's hosts and its Console, and Kafka concurrently, and returns
//! a [`Finding`] for each thing it checked: ok, a warning, or a failure with a remedy. Each query
//! has its own timeout, so a host that doesn't answer delays nothing else.
//!
//! Faults within the configuration are not checked here: `config` refuses them.

mod agora;
mod cost;
mod finding;
mod kafka;
mod machine;
mod secrets;

use std::sync::{Arc, Mutex, PoisonError};

pub use self::finding::{Finding, Severity};

use crate::agora::http::Http;
use crate::config::Settings;
use crate::error::Chain;
use crate::kafka::Cluster;

/// The queries still in progress, to be shown while the user waits. Cheap to clone; clones share.
#[derive(Clone, Debug, Default)]
pub struct InProgress(Arc<Mutex<Vec<String>>>);

/// Checks everything. If `console` is set, Agora's Console is asked for the account's projects.
pub async fn run(settings: &Settings, console: bool, waiting: &InProgress) -> Vec<Finding> {
    let mut findings = machine::look(settings).await;
    findings.extend(settings.apps.iter().map(|app| cost::of(app, settings.poll.longest_interval)));
    findings.extend(settings.apps.iter().filter_map(secrets::of));
    let cluster = Cluster::new(settings.kafka.clone(), &settings.instance);
    let (agora, kafka) = tokio::join!(
        async {
            match Http::new(&settings.agora) {
                Ok(http) => agora::look(&http, settings, console, waiting).await,
                Err(error) => vec![Finding::failed("agora", Chain(&error), None)],
            }
        },
        kafka::look(&cluster, settings, waiting),
    );
    findings.extend(agora);
    findings.extend(kafka);
    findings
}

// === impl Waiting ===

impl InProgress {
    /// The queries in progress now.
    pub fn names(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs a query, and lists it as in progress until it is done.
    async fn during<T>(&self, what: impl Into<String>, work: impl Future<Output = T>) -> T {
        let what = what.into();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(what.clone());
        let done = work.await;
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = names.iter().position(|name| *name == what) {
            names.remove(place);
        }
        done
    }
}
