//! When the apps' tokens expire, for `/status.json` and the metrics.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use serde::Serialize;

use crate::agora::TokenEnd;
use crate::model::AppId;

/// The tokens of all apps that have one. Cheap to clone; clones share.
#[derive(Clone, Debug, Default)]
pub struct Tokens(Arc<Mutex<BTreeMap<AppId, Shown>>>);

#[derive(Clone, Copy, Debug)]
struct Shown {
    end: TokenEnd,
    /// How many tokens the app had before this one.
    renewals: u64,
}

/// The token of an app, in `/status.json`.
#[derive(Debug, Serialize)]
struct Row {
    app_id: String,
    /// `null` where the token doesn't reveal it.
    ends_at: Option<String>,
    made_here: bool,
    renewals: u64,
}

// === impl Tokens ===

impl Tokens {
    /// The app's token was replaced, or removed if `end` is `None`.
    pub(super) fn show(&self, app: &AppId, end: Option<TokenEnd>) {
        let mut tokens = self.lock();
        let renewals = tokens.get(app).map_or(0, |shown| shown.renewals + 1);
        match end {
            Some(end) => drop(tokens.insert(app.clone(), Shown { end, renewals })),
            None => drop(tokens.remove(app)),
        }
    }

    /// The rows for `/status.json`.
    pub fn snapshot(&self) -> impl Serialize {
        let rows = |(app, shown): (&AppId, &Shown)| Row {
            app_id: app.to_string(),
            ends_at: shown.end.at.map(|at| at.to_string()),
            made_here: shown.end.made_here,
            renewals: shown.renewals,
        };
        self.lock().iter().map(rows).collect::<Vec<_>>()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<AppId, Shown>> {
        // The map is consistent after every step, even one that panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Tokens {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let tokens = self.lock();
        let help = "When the app's token expires, as a Unix timestamp.";
        let mut family = encoder.encode_descriptor(
            "token_end_timestamp_seconds",
            help,
            None,
            MetricType::Gauge,
        )?;
        for (app, shown) in tokens.iter() {
            let Some(at) = shown.end.at else { continue };
            let labels = [("app_id", app.as_str())];
            ConstGauge::new(at.as_millis() / 1_000).encode(family.encode_family(&labels)?)?;
        }
        let help = "Replacements of the app's token.";
        let mut family =
            encoder.encode_descriptor("token_renewals", help, None, MetricType::Counter)?;
        for (app, shown) in tokens.iter() {
            let labels = [("app_id", app.as_str())];
            ConstCounter::new(shown.renewals).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
