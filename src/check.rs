//! Everything that can be known before a start, without taking an event away.
//!
//! [`run`] looks at this machine, at Agora's hosts and its Console, and at Kafka, side by side, and
//! gives a [`Finding`] for each thing it looked at: well, worth a thought, or in the way, then with
//! what to do. Each question has an end of its own, so that a silent host holds up nothing else.
//!
//! What the configuration can tell by itself is not here: `config` refuses it.

mod agora;
mod cost;
mod finding;
mod kafka;
mod machine;
mod secrets;

use std::sync::{Arc, Mutex, PoisonError};

pub use self::finding::{Finding, Verdict};

use crate::agora::http::Http;
use crate::config::Settings;
use crate::error::Chain;
use crate::kafka::Cluster;

/// What is still being waited for, for a person who wonders. Cheap to clone; clones share.
#[derive(Clone, Debug, Default)]
pub struct Waiting(Arc<Mutex<Vec<String>>>);

/// Looks at everything. `console` allows to ask Agora's Console for the account's projects.
pub async fn run(settings: &Settings, console: bool, waiting: &Waiting) -> Vec<Finding> {
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

impl Waiting {
    /// What is waited for at this moment.
    pub fn names(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits, and lets others know for what.
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
