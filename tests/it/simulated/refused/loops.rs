//! The two loops behind the poller, on one partition, with a journal and a Kafka in memory.

use std::collections::HashMap;
use std::time::Duration;

use agora_rtm_bridge::forwarder::{Forwarder, ForwarderMetrics};
use agora_rtm_bridge::journal::Journal;
use agora_rtm_bridge::kafka::{Progress, Topic};
use agora_rtm_bridge::model::{
    AppId, Clock, Content, Endpoint, Feed, Incarnation, Page, Region, Timestamp,
};
use agora_rtm_bridge::observe::accounts::Accounts;
use agora_rtm_bridge::observe::health::Health;
use agora_rtm_bridge::publisher::{Publisher, PublisherMetrics};
use rusqlite::Connection;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::kafka_model::{Client, Cluster, Trouble};
use super::super::run::{listen_for_panics, take_panics};
use super::super::time::Now;
use super::{EPOCH, SECOND};
use crate::support::pages;

/// The two loops behind the poller, on one partition.
pub(super) struct Loops {
    /// Counts the processes that publish; their journal's incarnation stays the first one.
    pub(super) process: u128,
    pub(super) kafka: Cluster,
    pub(super) client: Client,
    pub(super) journal: Journal,
    pub(super) clock: Clock,
    pub(super) health: Health,
    pub(super) progress: Progress,
    pub(super) accounts: Accounts,
    pub(super) forwarder: ForwarderMetrics,
    pub(super) publishing: PublisherMetrics,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

// === impl Loops ===

impl Loops {
    pub(super) async fn start(trouble: Trouble) -> Self {
        Self::start_ahead(trouble, Duration::ZERO).await
    }

    /// The cluster's clock is right, ours is ahead.
    pub(super) async fn start_ahead(trouble: Trouble, ahead: Duration) -> Self {
        let database = Connection::open_in_memory().expect("SQLite has databases in memory");
        Self::start_on(database, 1 << 30, trouble, ahead).await
    }

    /// With a journal in this database and of this size.
    pub(super) async fn start_on(
        database: Connection,
        size: u64,
        trouble: Trouble,
        ahead: Duration,
    ) -> Self {
        listen_for_panics();
        take_panics();
        let now = Now::born_at(Duration::ZERO).await;
        let clock = Clock::simulated(EPOCH.after(ahead));
        let kafka = Cluster::new(1, trouble, 1);
        kafka.set_clock(EPOCH);
        let incarnation = Incarnation::from_u128(1);
        let (journal, _) = Journal::simulated(database, size, incarnation, clock.now())
            .expect("the journal can be opened");
        let loops = Self {
            process: 1,
            client: kafka.connect(now),
            kafka,
            journal,
            clock,
            health: Health::new(clock),
            progress: Progress::new(1),
            accounts: Accounts::default(),
            forwarder: ForwarderMetrics::default(),
            publishing: PublisherMetrics::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        loops.health.polling_begun();
        loops.publish(&loops.health, &loops.stop);
        loops
    }

    pub(super) fn forward(&self) {
        let forwarder = Forwarder {
            kafka: self.client.clone(),
            journal: self.journal.clone(),
            partition: 0,
            progress: self.progress.clone(),
            health: self.health.clone(),
            metrics: self.forwarder.clone(),
        };
        self.tasks.spawn(forwarder.run(self.stop.clone(), self.stop.clone()));
    }

    pub(super) fn publish(&self, health: &Health, stop: &CancellationToken) {
        let publisher = Publisher {
            kafka: self.client.clone(),
            partition: 0,
            has_apps: true,
            group: "bridge".to_owned(),
            incarnation: Incarnation::from_u128(self.process),
            regions: HashMap::from([(AppId::new("a"), 1)]),
            hold: Duration::from_secs(39),
            feeds: vec![Feed {
                app: AppId::new("a"),
                region: Region::new("default"),
                endpoint: Endpoint::User,
            }],
            clock: self.clock,
            progress: self.progress.clone(),
            accounts: self.accounts.clone(),
            health: health.clone(),
            metrics: self.publishing.clone(),
        };
        self.tasks.spawn(publisher.run(stop.clone(), stop.clone()));
    }

    /// Commits pages of two events, one page for each number.
    pub(super) async fn commit(&self, numbers: std::ops::Range<u64>) {
        self.commit_of(numbers, [EPOCH.before(SECOND); 2]).await;
    }

    /// The same, of events that happened then.
    pub(super) async fn commit_of(&self, numbers: std::ops::Range<u64>, times: [Timestamp; 2]) {
        let [login, logout] = times.map(Timestamp::as_millis);
        for number in numbers {
            let page = self.page_of(number, [login, logout]);
            let now = self.clock.now();
            let room = self.journal.reserve(&page.feed, 0, None, now).await.expect("it has room");
            room.settle(Content::Page(page)).await.expect("the database takes it");
        }
    }

    /// A page of two events.
    pub(super) fn page(&self, number: u64) -> Page {
        self.page_of(number, [EPOCH.before(SECOND).as_millis(); 2])
    }

    pub(super) fn page_of(&self, number: u64, [login, logout]: [i64; 2]) -> Page {
        let event = |kind, ms| format!(r#"{{"user_id":"u{number}.","type":"{kind}","ms":{ms}}}"#);
        let (login, logout) = (event("Login", login), event("Logout", logout));
        let body = format!(r#"{{"events":[{login},{logout}]}}"#);
        pages::of_users(&AppId::new("a"), self.clock.now(), body)
    }

    /// Users whose events are in their topic, two of each.
    pub(super) fn published(&self) -> Vec<String> {
        let records = self.kafka.records(Topic::UserEvents);
        let users = records.iter().map(|it| String::from_utf8_lossy(&it.key).into_owned());
        users.collect()
    }

    pub(super) fn reasons(&self) -> Vec<String> {
        self.health.readiness().reasons.into_iter().map(|it| it.reason).collect()
    }

    /// The same place for loops of another process; those of this one have ended.
    pub(super) fn anew(self) -> Self {
        let process = self.process + 1;
        Self { process, stop: CancellationToken::new(), tasks: TaskTracker::new(), ..self }
    }

    /// Ends the loops without waiting for anything.
    pub(super) async fn end(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        assert_eq!(take_panics(), Vec::<String>::new());
    }
}

/// Two of each, in order, without some.
pub(super) fn twice_each(numbers: std::ops::Range<u64>, without: &[u64]) -> Vec<String> {
    let numbers = numbers.filter(|number| !without.contains(number));
    numbers.flat_map(|number| [format!("u{number}."), format!("u{number}.")]).collect()
}
