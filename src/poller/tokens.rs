//! When the tokens of apps end, for people and for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::EncodeMetric;
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
    /// How many there were before this one.
    renewals: u64,
}

/// The token of an app, in `/status.json`.
#[derive(Debug, Serialize)]
struct Row {
    app_id: String,
    /// `null` where it can't be read out of the token.
    ends_at: Option<String>,
    made_here: bool,
    renewals: u64,
}

// === impl Tokens ===

impl Tokens {
    /// An app has another token from now on, or none.
    pub(super) fn show(&self, app: &AppId, end: Option<TokenEnd>) {
        let mut tokens = self.lock();
        let renewals = tokens.get(app).map_or(0, |shown| shown.renewals + 1);
        match end {
            Some(end) => drop(tokens.insert(app.clone(), Shown { end, renewals })),
            None => drop(tokens.remove(app)),
        }
    }

    /// For `/status.json`.
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
        // The map is whole after every step, also after one that panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Tokens {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let tokens = self.lock();
        let help = "When the token of the app ends, counted from 1970.";
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
        let help = "Tokens of the app that were replaced by another one.";
        let mut family =
            encoder.encode_descriptor("token_renewals", help, None, MetricType::Counter)?;
        for (app, shown) in tokens.iter() {
            let labels = [("app_id", app.as_str())];
            ConstCounter::new(shown.renewals).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
