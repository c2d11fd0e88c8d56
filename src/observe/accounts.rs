//! The accounts: the outcome of every event, per App ID and endpoint.
//!
//! A received event is delivered, a repeat, a dead letter, set aside, lost, or still waiting. Each
//! event is counted in exactly one of these columns, so that the equation
//!
//! > received = delivered + repeats + repeats in page + dead letters + set aside + lost
//! > + waiting
//!
//! holds at any time. `waiting` is not counted but computed from one snapshot, and each view of the
//! accounts (metrics, `/status.json`, the log) shows such a snapshot. It can be negative only if an
//! event was counted twice; that would be a defect of the bridge, so it is shown and not hidden.
//!
//! The columns count from the start of the process. An event that was received earlier, by a former
//! process for example, and is delivered now, must be counted as received by the code that reads it
//! again.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::model::{AppId, Endpoint};

/// All accounts. Cheap to clone; clones share.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    accounts: Arc<Mutex<BTreeMap<(AppId, Endpoint), Account>>>,
}

/// The account of one App ID and endpoint. Cheap to clone; clones share.
#[derive(Clone, Debug, Default)]
pub struct Account {
    figures: Arc<Figures<AtomicU64>>,
}

/// A column of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Elements of pages that Agora handed over.
    Received,
    /// Events whose transaction has committed.
    Delivered,
    /// Events dropped because they were delivered before.
    Repeats,
    /// Events dropped because they occurred twice in one page.
    RepeatsInPage,
    /// Elements that are not events; their bytes are in the dead-letter topic.
    DeadLetters,
    /// Events of pages that Kafka refuses for good; the pages are kept.
    SetAside,
    /// Elements of pages that Kafka lost before they were published; gaps report them.
    Lost,
}

/// A value for each [`Column`]: atomics in an account, numbers in a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures<T = u64> {
    received: T,
    delivered: T,
    repeats: T,
    repeats_in_page: T,
    dead_letters: T,
    set_aside: T,
    lost: T,
}

/// A snapshot of one account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balance {
    /// The App ID.
    pub app: AppId,
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The figures.
    pub figures: Figures,
}

// === impl Accounts ===

impl Accounts {
    /// Returns the account of an App ID and endpoint; creates it if there is none.
    pub fn open(&self, app: &AppId, endpoint: Endpoint) -> Account {
        self.lock().entry((app.clone(), endpoint)).or_default().clone()
    }

    /// A snapshot of every account, ordered by App ID and endpoint.
    pub fn snapshot(&self) -> Vec<Balance> {
        self.lock()
            .iter()
            .map(|((app, endpoint), account)| Balance {
                app: app.clone(),
                endpoint: *endpoint,
                figures: account.snapshot(),
            })
            .collect()
    }

    /// The sum of all accounts. Its `Display` is the line for the log.
    pub fn total(&self) -> Figures {
        self.snapshot().iter().fold(Figures::default(), |sum, balance| sum.plus(balance.figures))
    }

    /// Registers a counter for each column, and a gauge for the events that wait.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(AppId, Endpoint), Account>> {
        // The map is consistent at any time, even after a panic.
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Accounts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let balances = self.snapshot();
        for column in Column::ALL {
            let (name, help) = column.metric();
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for balance in &balances {
                ConstCounter::new(*balance.figures.get(column))
                    .encode(family.encode_family(&balance.labels())?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "events_waiting",
            "Received events that have no outcome yet.",
            None,
            MetricType::Gauge,
        )?;
        for balance in &balances {
            ConstGauge::new(balance.figures.waiting())
                .encode(family.encode_family(&balance.labels())?)?;
        }
        Ok(())
    }
}

// === impl Account ===

impl Account {
    /// Adds `events` to a column.
    ///
    /// An event must be added to [`Column::Received`] before any other column.
    pub fn add(&self, column: Column, events: u64) {
        self.figures.get(column).fetch_add(events, Ordering::AcqRel);
    }

    /// Events that are received but have no outcome yet.
    pub fn waiting(&self) -> i64 {
        self.snapshot().waiting()
    }

    /// A snapshot of the account.
    pub fn snapshot(&self) -> Figures {
        let read = |column| self.figures.get(column).load(Ordering::Acquire);
        Figures {
            delivered: read(Column::Delivered),
            repeats: read(Column::Repeats),
            repeats_in_page: read(Column::RepeatsInPage),
            dead_letters: read(Column::DeadLetters),
            set_aside: read(Column::SetAside),
            lost: read(Column::Lost),
            // Read last: every event in the other columns was received before, so events counted
            // during this call appear as waiting, and outcomes never exceed receptions.
            received: read(Column::Received),
        }
    }
}

// === impl Column ===

impl Column {
    /// All columns, in the order of the equation.
    pub const ALL: [Self; 7] = [
        Self::Received,
        Self::Delivered,
        Self::Repeats,
        Self::RepeatsInPage,
        Self::DeadLetters,
        Self::SetAside,
        Self::Lost,
    ];

    /// Its name in `/status.json`; the name of its metric is `events_` plus this.
    pub fn name(self) -> &'static str {
        self.metric().0.trim_start_matches("events_")
    }

    const fn metric(self) -> (&'static str, &'static str) {
        match self {
            Self::Received => ("events_received", "Elements of pages that Agora handed over."),
            Self::Delivered => ("events_delivered", "Events whose transaction has committed."),
            Self::Repeats => {
                ("events_repeats", "Events dropped because they were delivered before.")
            }
            Self::RepeatsInPage => {
                ("events_repeats_in_page", "Events dropped because a page had them twice.")
            }
            Self::DeadLetters => ("events_dead_letters", "Elements that are not events."),
            Self::SetAside => ("events_set_aside", "Events that Kafka refuses for good; kept."),
            Self::Lost => ("events_lost", "Elements of pages that Kafka lost unpublished."),
        }
    }
}

// === impl Figures ===

impl<T> Figures<T> {
    /// The value of a column.
    pub const fn get(&self, column: Column) -> &T {
        match column {
            Column::Received => &self.received,
            Column::Delivered => &self.delivered,
            Column::Repeats => &self.repeats,
            Column::RepeatsInPage => &self.repeats_in_page,
            Column::DeadLetters => &self.dead_letters,
            Column::SetAside => &self.set_aside,
            Column::Lost => &self.lost,
        }
    }
}

impl Figures {
    /// Events that are received but have no outcome yet. Negative only if an event was counted
    /// twice.
    pub fn waiting(&self) -> i64 {
        let Self { received, delivered, repeats, repeats_in_page, dead_letters, .. } = *self;
        let ended = delivered + repeats + repeats_in_page + dead_letters;
        let ended = ended + self.set_aside + self.lost;
        received.wrapping_sub(ended).cast_signed()
    }

    fn plus(self, other: Self) -> Self {
        Self {
            received: self.received + other.received,
            delivered: self.delivered + other.delivered,
            repeats: self.repeats + other.repeats,
            repeats_in_page: self.repeats_in_page + other.repeats_in_page,
            dead_letters: self.dead_letters + other.dead_letters,
            set_aside: self.set_aside + other.set_aside,
            lost: self.lost + other.lost,
        }
    }
}

impl fmt::Display for Figures {
    /// The equation, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { received, delivered, repeats, repeats_in_page, dead_letters, .. } = self;
        let (set_aside, lost) = (self.set_aside, self.lost);
        write!(
            f,
            "received {received} = delivered {delivered} + repeats {repeats} \
             + repeats in page {repeats_in_page} + dead letters {dead_letters} \
             + set aside {set_aside} + lost {lost} + waiting {}",
            self.waiting()
        )
    }
}

// === impl Balance ===

impl Balance {
    fn labels(&self) -> [(&'static str, &str); 2] {
        [("app_id", self.app.as_str()), ("endpoint", self.endpoint.name())]
    }
}

impl Serialize for Balance {
    /// A flat object: `app_id`, `endpoint`, each column by name, `waiting`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        for (name, value) in self.labels() {
            object.serialize_entry(name, value)?;
        }
        for column in Column::ALL {
            object.serialize_entry(column.name(), self.figures.get(column))?;
        }
        object.serialize_entry("waiting", &self.figures.waiting())?;
        object.end()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::observe::metrics::Metrics;

    /// Two accounts: one with a value in every column, one with only waiting events.
    fn accounts() -> Accounts {
        let accounts = Accounts::default();
        let user = accounts.open(&AppId::new("a"), Endpoint::User);
        let entries = [100, 78, 7, 5, 3, 1, 2];
        for (column, events) in Column::ALL.into_iter().zip(entries) {
            user.add(column, events);
        }
        accounts.open(&AppId::new("a"), Endpoint::Channel).add(Column::Received, 2);
        accounts
    }

    /// The value of a metric for the account `a`/`endpoint` in the metrics text.
    fn value(text: &str, metric: &str, endpoint: &str) -> i64 {
        let start = format!("agora_rtm_bridge_{metric}{{app_id=\"a\",endpoint=\"{endpoint}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap_or_else(|| panic!("no {start}in\n{text}")).parse().unwrap()
    }

    #[test]
    fn the_balance_can_be_read_from_the_metrics() {
        let mut metrics = Metrics::new();
        accounts().register(metrics.registry());
        let text = metrics.text();
        for (endpoint, received, waiting) in [("user_events", 100, 4), ("channel_events", 2, 2)] {
            let ended: i64 =
                ["delivered", "repeats", "repeats_in_page", "dead_letters", "set_aside", "lost"]
                    .map(|column| value(&text, &format!("events_{column}_total"), endpoint))
                    .iter()
                    .sum();
            assert_eq!(value(&text, "events_received_total", endpoint), received, "{endpoint}");
            assert_eq!(value(&text, "events_waiting", endpoint), waiting, "{endpoint}");
            assert_eq!(received, ended + waiting, "{endpoint}");
        }
    }

    #[test]
    fn an_account_opened_twice_is_one_account() {
        let accounts = accounts();
        let again = accounts.open(&AppId::new("a"), Endpoint::Channel);
        again.add(Column::Received, 1);
        assert_eq!(again.waiting(), 3);
        assert_eq!(accounts.snapshot().len(), 2);
    }

    #[test]
    fn the_line_for_the_log_is_the_equation_over_all_accounts() {
        assert_eq!(
            accounts().total().to_string(),
            "received 102 = delivered 78 + repeats 7 + repeats in page 5 + dead letters 3 \
             + set aside 1 + lost 2 + waiting 6"
        );
    }

    #[test]
    fn an_event_entered_twice_is_shown_as_less_than_nothing_waiting() {
        let account = Account::default();
        account.add(Column::Received, 1);
        account.add(Column::Delivered, 1);
        account.add(Column::Repeats, 1);
        assert_eq!(account.waiting(), -1);
    }

    #[test]
    fn a_balance_is_a_flat_object() {
        let balances = accounts().snapshot();
        assert_eq!(
            serde_json::to_value(&balances[0]).unwrap(),
            json!({
                "app_id": "a", "endpoint": "user_events", "received": 100, "delivered": 78,
                "repeats": 7, "repeats_in_page": 5, "dead_letters": 3, "set_aside": 1, "lost": 2,
                "waiting": 4,
            })
        );
    }
}
