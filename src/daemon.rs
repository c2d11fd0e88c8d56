//! Composes the rooms, starts them, and stops them in order.
//!
//! Three loops, connected only through durable storage: pollers → journal → forwarders → pages
//! topic → publishers. No loop waits for a later one, so the order in which they start doesn't
//! matter. The order in which they stop does: first the pollers, once all requests in flight have
//! ended; then the forwarders, once the journal is empty; then the publishers, once all forwarded
//! pages are delivered. Pages that Kafka can't take within the grace period wait in the journal or
//! in the pages topic for the next start. If Kafka confirms nothing at all, the stop gives up
//! earlier, because no process polls Agora meanwhile.
//!
//! The three interfaces to the outside (transport, journal, Kafka) are parameters, so that the
//! simulated-time tests run this same composition.

mod launch;
mod open_files;
mod report;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

pub use self::launch::{LaunchError, VERSION};
pub use self::report::{Report, Waiting};

use crate::agora::{Credentials, Transport};
use crate::config;
use crate::config::Settings;
use crate::forwarder::Forwarder;
use crate::journal::{Held, Journal, Recovered};
use crate::kafka::{Kafka, Progress, partition_of};
use crate::memory;
use crate::model::{AppId, CLOCK_MARGIN, Clock, Feed, Gap, GapCause, Page, Timestamp};
use crate::observe::accounts::Accounts;
use crate::observe::health::Health;
use crate::observe::metrics::Metrics;
use crate::poller::{Poller, Target, Tools, release_held};
use crate::publisher::Publisher;
use crate::schedule::{Former, Limits};

/// If a start knows of no request for an app in the last second, it polls each feed once and then
/// waits for this long. The journal may be new, lost, or restored from a backup, so a predecessor
/// may have sent requests. Replacing it takes a moment; this is the rest of its second. At worst
/// Agora answers with a 429 or two, whereas waiting would let buffers that are full at the start
/// overflow.
const UNKNOWN_PREDECESSOR: Duration = Duration::from_millis(700);

/// A journal that contains a request younger than this is the one that the predecessor wrote.
const YOUNG: Duration = Duration::from_secs(1);

/// Delay between the starts of two apps, so that with very many apps the first requests, and the
/// connections they need, don't all come at the same instant.
const BETWEEN_APPS: Duration = Duration::from_millis(1);

/// Maximum delay between the starts of the first and the last app: every feed is polled within two
/// seconds of a start.
const ALL_APPS: Duration = Duration::from_millis(800);

/// Minimum time to wait for Kafka, even if the answers took the whole grace period. It is ample for
/// a healthy Kafka.
const LEAST_GRACE: Duration = Duration::from_secs(2);

/// A stop gives up once Kafka has confirmed nothing for this long. Everything is durable by then,
/// and Agora's buffers overflow until the next start.
const STALLED: Duration = Duration::from_secs(5);

/// Interval at which a stop checks for progress.
const LOOK: Duration = Duration::from_millis(100);

/// Interval at which the accounts are logged.
const ACCOUNTS_EVERY: Duration = Duration::from_secs(3_600);

/// The parts that make up a daemon.
#[derive(Debug)]
pub struct Parts<T, K> {
    /// The operator's configuration.
    pub settings: Settings,
    /// Sends requests to Agora.
    pub transport: T,
    /// The Kafka client.
    pub kafka: K,
    /// The open journal.
    pub journal: Journal,
    /// The state that was found in it.
    pub recovered: Recovered,
    /// The wall clock.
    pub clock: Clock,
    /// Seed for jitter.
    pub seed: u64,
}

/// A running daemon. [`Self::stop`] ends it; if it is dropped instead, its tasks keep running.
#[derive(Debug)]
pub struct Daemon {
    report: Report,
    journal: Journal,
    polling: Stage,
    forwarding: Stage,
    publishing: Stage,
    rest: Stage,
    give_up: CancellationToken,
}

/// Tasks that are stopped together.
#[derive(Debug, Default)]
struct Stage {
    stop: CancellationToken,
    tasks: TaskTracker,
}

// === impl Daemon ===

impl Daemon {
    /// Starts every loop. `metrics` gets the metrics of all rooms.
    pub fn start<T: Transport, K: Kafka>(parts: Parts<T, K>, metrics: &mut Metrics) -> Self {
        let health = Health::new(parts.clock);
        let accounts = Accounts::default();
        let partitions = parts.settings.kafka.topics.page_partitions.get();
        let progress = Progress::new(partitions);
        let report = Report::new(&parts, &health, &accounts, &progress);
        let daemon = Self {
            report,
            journal: parts.journal.clone(),
            polling: Stage::default(),
            forwarding: Stage::default(),
            publishing: Stage::default(),
            rest: Stage::default(),
            give_up: CancellationToken::new(),
        };
        daemon.report.register(metrics.registry());
        daemon.start_publishers(&parts, &progress);
        daemon.start_forwarders(&parts, &progress);
        daemon.start_pollers(parts);
        let (report, stop) = (daemon.report.clone(), daemon.rest.stop.clone());
        daemon.rest.tasks.spawn(async move {
            while stop.run_until_cancelled(tokio::time::sleep(ACCOUNTS_EVERY)).await.is_some() {
                info!(accounts = %report.accounts().total(), "accounts of this process");
            }
        });
        health.polling_begun();
        daemon
    }

    /// The daemon's observable state.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The tracker for tasks that serve the daemon until it ends, and the token that stops them.
    pub fn background(&self) -> (&TaskTracker, &CancellationToken) {
        (&self.rest.tasks, &self.rest.stop)
    }

    /// Cancel this token to give up waiting for Kafka: the stop then completes with what is
    /// durable.
    pub fn give_up(&self) -> CancellationToken {
        self.give_up.clone()
    }

    /// Sends no more requests, waits for those in flight, then commits, forwards and delivers. The
    /// wait for Kafka is limited to `grace`, and to five seconds without any confirmation. The wait
    /// for answers is not limited, because a page can't be requested twice. If Kafka is healthy,
    /// their pages are delivered even if the answers took all of `grace`. Returns what waits for
    /// the next start.
    pub async fn stop(self, grace: Duration) -> Waiting {
        let deadline = Instant::now() + grace;
        self.polling.end().await;
        let deadline = deadline.max(Instant::now() + LEAST_GRACE);
        let in_order = async {
            self.forwarding.end().await;
            self.publishing.end().await;
        };
        let give_up = self.give_up.clone();
        tokio::pin!(in_order);
        tokio::select! {
            biased;
            () = &mut in_order => {}
            () = give_up.cancelled() => in_order.await,
            () = self.report.stalled(STALLED, LOOK) => {
                warn!(
                    waiting = %self.report.waiting(),
                    "Kafka has confirmed nothing for {STALLED:?}: no longer waiting for it; pages \
                     wait in the journal for the next start"
                );
                give_up.cancel();
                in_order.await;
            }
            () = tokio::time::sleep_until(deadline) => {
                give_up.cancel();
                in_order.await;
            }
        }
        self.rest.end().await;
        self.journal.flush().await;
        self.report.waiting()
    }

    fn start_publishers<T, K: Kafka>(&self, parts: &Parts<T, K>, progress: &Progress) {
        let apps = &parts.settings.apps;
        let partitions = parts.settings.kafka.topics.page_partitions.get();
        let regions: HashMap<AppId, usize> =
            apps.iter().map(|app| (app.app_id.clone(), app.regions.len())).collect();
        for partition in owned_partitions(partitions) {
            let publisher = Publisher {
                kafka: parts.kafka.clone(),

                partition,
                has_apps: apps.iter().any(|app| partition_of_app(app, partitions) == partition),
                group: parts.settings.kafka.group.clone(),
                incarnation: parts.journal.incarnation(),
                regions: regions.clone(),
                hold: memory::hold(parts.settings.agora.longest_request()),
                feeds: apps
                    .iter()
                    .filter(|app| partition_of_app(app, partitions) == partition)
                    .flat_map(feeds_of)
                    .collect(),
                clock: parts.clock,
                progress: progress.clone(),
                accounts: self.report.accounts().clone(),
                health: self.report.health().clone(),
                metrics: self.report.publisher().clone(),
            };
            let stop = self.publishing.stop.clone();
            self.publishing.tasks.spawn(publisher.run(stop, self.give_up.clone()));
        }
    }

    fn start_forwarders<T, K: Kafka>(&self, parts: &Parts<T, K>, progress: &Progress) {
        for partition in owned_partitions(parts.settings.kafka.topics.page_partitions.get()) {
            let forwarder = Forwarder {
                kafka: parts.kafka.clone(),
                journal: parts.journal.clone(),
                partition,
                progress: progress.clone(),
                health: self.report.health().clone(),
                metrics: self.report.forwarder().clone(),
            };
            let stop = self.forwarding.stop.clone();
            self.forwarding.tasks.spawn(forwarder.run(stop, self.give_up.clone()));
        }
    }

    fn start_pollers<T: Transport, K>(&self, parts: Parts<T, K>) {
        let tools = Tools {
            transport: Arc::new(parts.transport),
            journal: parts.journal,
            clock: parts.clock,
            accounts: self.report.accounts().clone(),
            health: self.report.health().clone(),
            metrics: self.report.poller().clone(),
            tracker: self.polling.tasks.clone(),
        };
        let poll = &parts.settings.poll;
        let partitions = parts.settings.kafka.topics.page_partitions.get();
        let mut recovered = parts.recovered;
        let mut apps: Vec<&config::App> = parts.settings.apps.iter().collect();
        let rates = known_rates(&recovered);
        let rate = |app: &config::App| rates.get(&app.app_id).copied().unwrap_or(0.0);
        apps.sort_by(|one, other| rate(other).total_cmp(&rate(one)));
        let places = apps.len();
        if let Some(until) = recovered.in_doubt {
            self.publish_doubts(&tools.journal, &apps, &recovered, partitions, until);
        }
        for ((place, app), seed) in apps.into_iter().enumerate().zip(parts.seed..) {
            let mut former = former_requests(app, &recovered, parts.clock);
            former.not_before += turn(place, places);
            former.unknown_until += turn(place, places);
            let of_app = |(_, page): &mut (Held, Page)| page.feed.app == app.app_id;
            let poller = Poller {
                app: app.app_id.clone(),
                feeds: targets(app, &recovered, parts.clock),
                partition: partition_of_app(app, partitions),
                credentials: Credentials::new(app.app_id.clone(), app.auth.clone(), seed),
                limits: Limits {
                    requests_per_second: app.requests_per_second,
                    shortest_interval: poll.shortest_interval,
                    longest_interval: poll.longest_interval,
                },
                former,
                held: recovered.held.extract_if(.., of_app).collect(),
                seed,
                tools: tools.clone(),
            };
            self.polling.tasks.spawn(poller.run(self.polling.stop.clone()));
        }
        let of_nobody = recovered.held;
        self.polling.tasks.spawn(async move {
            release_held(&tools.journal, of_nobody).await;
        });
    }
}

impl Daemon {
    /// Publishes a gap for each feed, because an earlier process may have polled it before `until`
    /// without recording the request. Includes feeds that are no longer polled but that the journal
    /// knows.
    fn publish_doubts(
        &self,
        journal: &Journal,
        apps: &[&config::App],
        recovered: &Recovered,
        partitions: u32,
        until: Timestamp,
    ) {
        let polled = apps.iter().flat_map(|app| feeds_of(app));
        let known = recovered.empty_at.keys().chain(recovered.paces.keys()).cloned();
        let feeds: BTreeSet<Feed> = polled.chain(known).collect();
        let gap = |feed: Feed| {
            // A process that polled before it could publish may have seen the feed empty after
            // `until`.
            let from = recovered.empty_at.get(&feed).filter(|at| **at <= until);
            let gap = Gap {
                cause: GapCause::ProcessKilled,
                from: from.copied(),
                to: until.after(CLOCK_MARGIN),
                at_least: 0,
                at_most: None,
                feed,
            };
            (partition_of(gap.feed.app.as_str().as_bytes(), partitions), gap)
        };
        let gaps = feeds.into_iter().map(gap).collect();
        let journal = journal.clone();
        self.polling.tasks.spawn(async move {
            // On an error, the gaps are in memory and are forwarded from there.
            journal.settle_doubt(gaps).await.ok();
        });
    }
}

// === impl Stage ===

impl Stage {
    /// Tells the tasks to stop and waits for them.
    async fn end(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The partitions that this process publishes. As the only process, it owns all of them.
fn owned_partitions(partitions: u32) -> impl Iterator<Item = i32> {
    0..i32::try_from(partitions).unwrap_or(i32::MAX)
}

/// The partition of an app in the pages topic.
fn partition_of_app(app: &config::App, partitions: u32) -> i32 {
    partition_of(app.app_id.as_str().as_bytes(), partitions)
}

fn feeds_of(app: &config::App) -> impl Iterator<Item = Feed> {
    app.regions.iter().flat_map(move |region| {
        app.endpoints.iter().map(move |config::EndpointPath { endpoint, .. }| Feed {
            app: app.app_id.clone(),
            region: region.name.clone(),
            endpoint: *endpoint,
        })
    })
}

fn targets(app: &config::App, recovered: &Recovered, clock: Clock) -> Vec<Target> {
    let mut targets = Vec::new();
    for (place, region) in app.regions.iter().enumerate() {
        for config::EndpointPath { endpoint, path } in &app.endpoints {
            let feed =
                Feed { app: app.app_id.clone(), region: region.name.clone(), endpoint: *endpoint };
            targets.push(Target {
                region: place,
                urls: region.hosts.iter().map(|host| host.url(&app.app_id, path)).collect(),
                empty_at: recovered.empty_at.get(&feed).copied(),
                pace: recovered
                    .paces
                    .get(&feed)
                    .map(|(pace, as_of)| (*pace, clock.now().since(*as_of))),
                feed,
            });
        }
    }
    targets
}

/// Delay of the app at this place in the starting order.
fn turn(place: usize, apps: usize) -> Duration {
    let [place, apps] = [place, apps].map(|it| u32::try_from(it).unwrap_or(u32::MAX));
    BETWEEN_APPS.min(ALL_APPS / apps.max(1)) * place
}

/// Events per second over all feeds of each app, as recorded by a former process.
fn known_rates(recovered: &Recovered) -> HashMap<AppId, f64> {
    let mut rates = HashMap::new();
    for (feed, (pace, _)) in &recovered.paces {
        *rates.entry(feed.app.clone()).or_default() += pace.events_per_second;
    }
    rates
}

/// The known requests of a former process.
fn former_requests(app: &config::App, recovered: &Recovered, clock: Clock) -> Former {
    let now = Instant::now();
    // If the wall clock was set back, the request counts as sent just now.
    let sent_at = |asked_at: &Timestamp| now.checked_sub(clock.now().since(*asked_at));
    let sent = recovered.last_requests.get(&app.app_id).map_or(&[][..], Vec::as_slice);
    let sent: Vec<Instant> = sent.iter().filter_map(sent_at).collect();
    let known = sent.iter().any(|sent| now.duration_since(*sent) < YOUNG);
    let unknown_until = if known { now } else { now + UNKNOWN_PREDECESSOR };
    Former { sent, not_before: now, unknown_until }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn very_many_apps_begin_one_after_another_and_all_within_a_second() {
        for apps in [1, 2, 1_000, 1_001, 50_000] {
            let turns: Vec<Duration> = (0..apps).map(|place| turn(place, apps)).collect();
            assert_eq!(turns.first(), Some(&Duration::ZERO));
            assert!(turns.is_sorted_by(|a, b| a < b), "{apps}");
            assert!(turns.last() <= Some(&ALL_APPS), "{apps}");
        }
    }
}
