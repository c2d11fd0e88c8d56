//! The accounts: what became of every event, per App ID and endpoint.
//!
//! An event that was received is delivered, a repeat, a dead letter, set aside, lost, or it waits.
//! Each event is entered in exactly one of these columns, so that the equation
//!
//! > received = delivered + repeats + repeats in page + dead letters + set aside + lost
//! > + waiting
//!
//! holds at every look. `waiting` is not counted but computed from one snapshot, and every face of
//! the accounts (metrics, `/status.json`, the log) shows such a snapshot. It can be negative only
//! if an event was entered twice; that is a defect of the bridge, and it is shown, not hidden.
//!
//! The columns count since the start of the process. What was received before, by this process or
//! by another, and is delivered now has to be entered as received again by whoever reads it again.

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

/// One figure of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Elements of pages that Agora handed over.
    Received,
    /// Events whose transaction has committed.
    Delivered,
    /// Events that were delivered before, so that this one was dropped.
    Repeats,
    /// Events that stood twice in one page, so that this one was dropped.
    RepeatsInPage,
    /// Elements that are not events; their bytes are in the dead-letter topic.
    DeadLetters,
    /// Events of pages that Kafka refuses for good; the pages are kept.
    SetAside,
    /// Elements of pages that Kafka lost before they were published; gaps tell of them.
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
    /// Whose account.
    pub app: AppId,
    /// Of which endpoint.
    pub endpoint: Endpoint,
    /// What it shows.
    pub figures: Figures,
}

// === impl Accounts ===

impl Accounts {
    /// The account of an App ID and endpoint, opened where there is none yet.
    pub fn open(&self, app: &AppId, endpoint: Endpoint) -> Account {
        self.lock().entry((app.clone(), endpoint)).or_default().clone()
    }

    /// Every account as it stands, in the order of App IDs and endpoints.
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

    /// All accounts added up. Its `Display` is the one line for the log.
    pub fn total(&self) -> Figures {
        self.snapshot().iter().fold(Figures::default(), |sum, balance| sum.plus(balance.figures))
    }

    /// Shows the accounts in `registry`: a counter for each column, and a gauge of what waits.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(AppId, Endpoint), Account>> {
        // The map is whole after every step, also after one that panicked.
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
            "Received events that are nothing else yet.",
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
    /// Enters `events` more events in a column.
    ///
    /// An event has to be entered as received before it is entered as anything else.
    pub fn add(&self, column: Column, events: u64) {
        self.figures.get(column).fetch_add(events, Ordering::AcqRel);
    }

    /// Received, and nothing else yet.
    pub fn waiting(&self) -> i64 {
        self.snapshot().waiting()
    }

    /// The account as it stands.
    pub fn snapshot(&self) -> Figures {
        let read = |column| self.figures.get(column).load(Ordering::Acquire);
        Figures {
            delivered: read(Column::Delivered),
            repeats: read(Column::Repeats),
            repeats_in_page: read(Column::RepeatsInPage),
            dead_letters: read(Column::DeadLetters),
            set_aside: read(Column::SetAside),
            lost: read(Column::Lost),
            // Read last: whatever the others show was received before, so that events which
            // pass while we look are seen as waiting and never as more than were received.
            received: read(Column::Received),
        }
    }
}

// === impl Column ===

impl Column {
    /// Every column, in the order of the equation.
    pub const ALL: [Self; 7] = [
        Self::Received,
        Self::Delivered,
        Self::Repeats,
        Self::RepeatsInPage,
        Self::DeadLetters,
        Self::SetAside,
        Self::Lost,
    ];

    /// Its name in `/status.json`; its metric is called `events_` and this.
    pub fn name(self) -> &'static str {
        self.metric().0.trim_start_matches("events_")
    }

    const fn metric(self) -> (&'static str, &'static str) {
        match self {
            Self::Received => ("events_received", "Elements of pages that Agora handed over."),
            Self::Delivered => ("events_delivered", "Events whose transaction has committed."),
            Self::Repeats => ("events_repeats", "Events dropped: delivered before."),
            Self::RepeatsInPage => ("events_repeats_in_page", "Events dropped: twice in a page."),
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
    /// Received, and nothing else yet. Negative only if an event was entered twice.
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
    /// The equation, in one line.
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
    /// A flat object: `app_id`, `endpoint`, every column by its name, `waiting`.
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

    /// Two accounts: one with something in every column, one with only what waits.
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

    /// The value of a metric of the account `a`/`endpoint` in a metric text.
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
