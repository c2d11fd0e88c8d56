//! One run: an Agora, a Kafka, and the lives of a bridge between them.
//!
//! Each life is the whole daemon on a runtime of its own with a paused clock. A kill drops that
//! runtime: whatever a task was waiting for never comes. What lives longer is what would in
//! reality: Agora, Kafka, and the data directory, which is a database in memory here.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;
use std::{fs, panic};

use agora_rtm_bridge::config;
use agora_rtm_bridge::config::Settings;
use agora_rtm_bridge::daemon::{Daemon, Parts, Waiting};
use agora_rtm_bridge::journal::Journal;
use agora_rtm_bridge::model::{Clock, Endpoint, Incarnation, Region, Timestamp};
use agora_rtm_bridge::observe::accounts::Balance;
use agora_rtm_bridge::observe::metrics::Metrics;
use agora_rtm_bridge::simulator::{AppScript, World};
use rusqlite::Connection;
use tokio::runtime::Builder;
use tokio_util::task::TaskTracker;

use super::kafka_model::Cluster;
use super::plan::{Deed, End, Hosts, Plan};
use super::time::Now;
use super::transport::{Agora, CONNECT_TIMEOUT, SILENCE_TIMEOUT, host_in};

/// How long the last life may take to deliver what waits: back-offs of all loops, one after the
/// other.
const TIME_TO_DELIVER: Duration = Duration::from_secs(240);

/// What a run leaves behind.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) agora: Agora,
    pub(crate) kafka: Cluster,
    /// For each life.
    pub(crate) lives: Vec<Past>,
    /// What the orderly stop of the last life said.
    pub(crate) waiting: Option<Waiting>,
    /// Nothing waited any more before the last life was stopped.
    pub(crate) came_to_rest: bool,
    /// The accounts of the last life.
    pub(crate) accounts: Vec<Balance>,
    /// The metrics of the last life, at its end.
    pub(crate) metrics: String,
    /// What `/status.json` said when somebody looked.
    pub(crate) looks: Vec<serde_json::Value>,
    /// Panics of tasks, which nobody else sees.
    pub(crate) panics: Vec<String>,
}

/// A life that is over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Past {
    /// When it began.
    pub(crate) began_at: Duration,
    /// Its data directory was lost in the end, or that of a later life on the same one.
    pub(crate) disk_lost: bool,
    /// It was not stopped in order.
    pub(crate) killed: bool,
    /// Requests that the rate-limit guard blocked.
    pub(crate) gate_refusals: u64,
    /// What its orderly stop left for the next one.
    pub(crate) left: Option<Waiting>,
}

struct Run<'a> {
    plan: &'a Plan,
    settings: Settings,
    agora: Agora,
    kafka: Cluster,
    /// When the next life begins.
    now: Duration,
    lives: Vec<Past>,
    disk: Disk,
    accounts: Vec<Balance>,
    waiting: Option<Waiting>,
    came_to_rest: bool,
    metrics: String,
    looks: Arc<Mutex<Vec<serde_json::Value>>>,
}

/// A bridge that runs.
struct Bridge {
    daemon: Daemon,
    metrics: Metrics,
    /// By how many milliseconds the wall clock of its machine was set.
    set: &'static AtomicI64,
}

/// A database in memory that lives as long as this.
struct Disk {
    name: String,
    keeper: Connection,
}

/// Plays a plan.
pub(crate) fn run(plan: &Plan) -> Outcome {
    listen_for_panics();
    PANICS.take();
    let mut run = Run::new(plan);
    for life in &plan.lives {
        run.live(Some((life.lasts, life.end)));
        run.now += life.pause;
    }
    run.live(None);
    Outcome {
        agora: run.agora,
        kafka: run.kafka,
        lives: run.lives,
        waiting: run.waiting,
        came_to_rest: run.came_to_rest,
        accounts: run.accounts,
        metrics: run.metrics,
        looks: run.looks.lock().expect("nobody panics with it").clone(),
        panics: PANICS.take(),
    }
}

// === impl Run ===

impl<'a> Run<'a> {
    fn new(plan: &'a Plan) -> Self {
        let world = World::new(plan.script.clone());
        let agora = Agora::new(world, plan.stale, plan.seed);
        if let Some(bytes) = plan.cut_first_page_at {
            agora.cut_first_page_at(bytes);
        }
        let kafka = Cluster::new(plan.page_partitions, plan.trouble.clone(), plan.seed);
        kafka.set_clock(plan.script.epoch);
        Self {
            plan,
            settings: settings(plan),
            agora,
            kafka,
            now: Duration::ZERO,
            lives: Vec::new(),
            disk: Disk::new(),
            accounts: Vec::new(),
            waiting: None,
            came_to_rest: false,
            metrics: String::new(),
            looks: Arc::default(),
        }
    }

    /// One life. `None` is the last one.
    fn live(&mut self, ends: Option<(Duration, End)>) {
        let restored = ends.is_some_and(|(_, end)| end == End::KilledAndRestored);
        let backup = restored.then(|| self.disk.copy());
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime can be made");
        let ended_at = runtime.block_on(self.live_inside(ends));
        let killed = self.lives.last().is_some_and(|life| life.killed);
        self.kafka.ends(ended_at);
        if killed {
            self.agora.kill();
        }
        drop(runtime);
        if killed {
            self.agora.killed();
        }
        self.kafka.ended(ended_at);
        // Whole milliseconds: the clocks of all lives agree on them.
        self.now = Duration::from_millis(millis(ended_at) + 1);
        if let Some(backup) = backup {
            self.disk = backup;
            self.lives.iter_mut().last().expect("it was just pushed").disk_lost = true;
        }
        if ends.is_some_and(|(_, end)| end == End::KilledAndDiskLost) {
            self.disk = Disk::new();
            self.lives.iter_mut().for_each(|life| life.disk_lost = true);
        }
        if ends.is_some_and(|(_, end)| end == End::StoppedAndMoved) {
            self.disk = Disk::new();
        }
    }

    async fn live_inside(&mut self, ends: Option<(Duration, End)>) -> Duration {
        let now = Now::born_at(self.now).await;
        let bridge = self.start(now, &self.disk, 0);
        let twin_disk = Disk::new();
        let has_twin = self.plan.twin && ends.is_none();
        let twin = has_twin.then(|| self.start(now, &twin_disk, 1));
        TaskTracker::new().spawn(do_to(self.plan.deeds.clone(), now, &bridge, &self.looks));
        match ends {
            Some((lasts, _)) => now.reaches(self.now + lasts).await,
            None => self.come_to_rest(now, std::iter::once(&bridge).chain(&twin)).await,
        }
        let is_order = |end| matches!(end, End::Stopped | End::StoppedAndMoved);
        let killed = ends.is_some_and(|(_, end)| !is_order(end));
        let metrics = bridge.metrics.text();
        let gate_refusals = sum(&metrics, "gate_refusals_total");
        let began_at = self.now;
        self.lives.push(Past { began_at, disk_lost: false, killed, gate_refusals, left: None });
        if killed {
            return now.get();
        }
        let report = bridge.daemon.report().clone();
        // A stop may give Kafka up.
        self.kafka.ends(now.get());
        let waiting = bridge.daemon.stop(self.plan.grace).await;
        self.lives.iter_mut().last().expect("it was just pushed").left = Some(waiting);
        if let Some(twin) = twin {
            twin.daemon.stop(self.plan.grace).await;
        }
        if ends.is_none() {
            self.accounts = report.accounts().snapshot();
            self.waiting = Some(waiting);
            self.metrics = bridge.metrics.text();
        }
        now.get()
    }

    fn start(&self, now: Now, disk: &Disk, number: u128) -> Bridge {
        let ahead = i64::try_from(millis(self.now)).expect("minutes") + self.plan.clock_ahead_ms;
        let epoch = Timestamp::from_millis(self.plan.script.epoch.as_millis() + ahead);
        let set = Box::leak(Box::new(AtomicI64::new(0)));
        let clock = Clock::simulated_and_set(epoch, set);
        let life = self.lives.len();
        let incarnation = (u128::from(self.plan.seed) << 64) + (number << 32) + life as u128;
        let (journal, recovered) = Journal::simulated(
            disk.open(),
            self.settings.journal.max_size,
            Incarnation::from_u128(incarnation),
            clock.now(),
        )
        .expect("the journal can be opened");
        let mut metrics = Metrics::new();
        let parts = Parts {
            settings: self.settings.clone(),
            transport: self.agora.connect(now, life, self.plan.connecting),
            kafka: self.kafka.connect(now),
            journal,
            recovered,
            clock,
            seed: self.plan.seed,
        };
        let daemon = Daemon::start(parts, &mut metrics);
        Bridge { daemon, metrics, set }
    }

    /// Until Agora has nothing left, and all that was taken is delivered.
    async fn come_to_rest<'b>(
        &mut self,
        now: Now,
        bridges: impl Iterator<Item = &'b Bridge> + Clone,
    ) {
        now.reaches(self.plan.busy).await;
        self.agora.heal();
        self.kafka.heal();
        let begun = now.get();
        while now.get() < begun + TIME_TO_DELIVER {
            tokio::time::sleep(Duration::from_millis(250)).await;
            let mut bridges = bridges.clone();
            let forwarded = bridges.all(|it| it.daemon.report().waiting().in_journal == 0);
            let delivered = forwarded && self.kafka.is_delivered(now.get());
            // What has happened by now is there only once the world has been told the time.
            let drained = self.agora.with(|world| {
                world.advance(now.get());
                self.is_drained(world)
            });
            if delivered && drained {
                self.came_to_rest = true;
                return;
            }
        }
    }

    /// Whether everything that a host in use can hand over has been handed over.
    fn is_drained(&self, world: &World) -> bool {
        if self.plan.hosts == Hosts::ARegionEach {
            return world.ledger().total().buffered == 0;
        }
        // Which host is in use, nobody tells: one whose buffers are all empty.
        let copied = world.now() >= self.plan.busy + self.plan.script.copy_delay.to;
        let mut feeds =
            (0..self.plan.script.apps.len()).flat_map(|app| Endpoint::ALL.map(|it| (app, it)));
        let is_empty = |(app, endpoint)| {
            let hosts = self.plan.hosts;
            let regions: Vec<_> = hosts.regions_of(app, self.plan.script.regions.len()).collect();
            let names: BTreeSet<_> = regions.iter().map(|it| hosts.name_of(*it)).collect();
            let is_empty = |region| world.backlog(region, app, endpoint) == 0;
            let mut names = names.iter();
            names.all(|name| regions.iter().any(|it| hosts.name_of(*it) == *name && is_empty(*it)))
        };
        copied && feeds.all(is_empty)
    }
}

// === impl Disk ===

impl Disk {
    fn new() -> Self {
        static DISKS: AtomicU64 = AtomicU64::new(0);
        let number = DISKS.fetch_add(1, Ordering::Relaxed);
        let name = format!("file:/simulated-{number}?vfs=memdb");
        let keeper = Connection::open(&name).expect("SQLite has databases in memory");
        Self { name, keeper }
    }

    /// A backup.
    fn copy(&self) -> Self {
        let copy = Self::new();
        self.keeper.execute("VACUUM INTO ?", [&copy.name]).expect("the copy is still empty");
        copy
    }

    fn open(&self) -> Connection {
        Connection::open(&self.name).expect("SQLite has databases in memory")
    }
}

/// Does to a bridge's machine what is planned.
fn do_to(
    mut deeds: Vec<(Duration, Deed)>,
    now: Now,
    bridge: &Bridge,
    looks: &Arc<Mutex<Vec<serde_json::Value>>>,
) -> impl Future<Output = ()> + use<> {
    deeds.sort_by_key(|(at, _)| *at);
    let (report, set, looks) = (bridge.daemon.report().clone(), bridge.set, Arc::clone(looks));
    async move {
        for (at, deed) in deeds {
            now.reaches(at).await;
            match deed {
                Deed::Write(path, content) => {
                    let next = path.with_extension("next");
                    fs::write(&next, content).expect("a fresh folder can be written to");
                    fs::rename(next, path).expect("a file can be renamed");
                }
                Deed::Remove(path) => fs::remove_file(path).expect("the file is there"),
                Deed::SetClock(by) => drop(set.fetch_add(by, Ordering::Relaxed)),
                Deed::Sleep(lasts) => {
                    now.sleep(lasts);
                    let millis = i64::try_from(lasts.as_millis()).expect("hours at the most");
                    set.fetch_add(millis, Ordering::Relaxed);
                }
                Deed::Look => {
                    looks.lock().expect("nobody panics with it").push(report.status());
                }
            }
        }
    }
}

fn settings(plan: &Plan) -> Settings {
    let count = |count| NonZeroU32::new(count).expect("at least one");
    let apps = plan.script.apps.iter().enumerate().map(|(index, app)| config::App {
        app_id: app.app_id.clone(),
        regions: regions(plan, index),
        endpoints: Endpoint::ALL
            .map(|endpoint| config::EndpointPath {
                endpoint,
                path: format!("rtm/vendor/{endpoint}"),
            })
            .to_vec(),
        requests_per_second: count(plan.requests_per_second),
        auth: plan.auth.get(&index).cloned().unwrap_or_else(|| auth(app)),
    });
    Settings {
        data_dir: "unused".into(),
        instance: "simulated".to_owned(),
        shutdown_grace: plan.grace,
        log: config::Log { format: config::LogFormat::Text, level: "info".to_owned() },
        http: config::Http { listen: ([127, 0, 0, 1], 0).into() },
        journal: config::Journal { max_size: plan.journal_size },
        agora: config::Agora {
            connect_timeout: CONNECT_TIMEOUT,
            silence_timeout: SILENCE_TIMEOUT,
            ca_file: None,
            system_certificates: true,
            client_certificate: None,
            proxy: None,
            proxy_password: None,
        },
        poll: config::Poll {
            shortest_interval: Duration::from_millis(250),
            longest_interval: Duration::from_secs(2),
        },
        kafka: config::Kafka {
            bootstrap_servers: "unused".to_owned(),
            group: "bridge".to_owned(),
            delivery: config::Delivery::ExactlyOnce,
            topics: config::Topics {
                user_events: "user".to_owned(),
                channel_events: "channel".to_owned(),
                dead_letter: "dead".to_owned(),
                gaps: "gaps".to_owned(),
                pages: "pages".to_owned(),
                state: "state".to_owned(),
                create: true,
                partitions: count(6),
                page_partitions: count(plan.page_partitions),
                replication_factor: 1,
                page_retention: Duration::from_secs(86_400),
            },
            options: BTreeMap::new(),
        },
        apps: apps.collect(),
    }
}

fn regions(plan: &Plan, app: usize) -> Vec<config::RegionHosts> {
    let mut regions: Vec<config::RegionHosts> = Vec::new();
    for index in plan.hosts.regions_of(app, plan.script.regions.len()) {
        let host = config::Host::new(&host_in(index), false).expect("a host's URL");
        let name = Region::new(plan.hosts.name_of(index));
        match regions.iter_mut().find(|it| it.name == name) {
            Some(region) => region.hosts.push(host),
            None => regions.push(config::RegionHosts { name, hosts: vec![host] }),
        }
    }
    regions
}

fn auth(app: &AppScript) -> config::Auth {
    config::Auth::Basic {
        customer_id: app.customer_id.clone(),
        customer_secret: config::Secret::from_value(app.customer_secret.as_str()),
    }
}

/// The value of a counter of the bridge, over all its labels.
pub(crate) fn sum(metrics: &str, name: &str) -> u64 {
    let values = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix("agora_rtm_bridge_")?.strip_prefix(name)?;
        let (labels, value) = rest.rsplit_once(' ')?;
        let is_it = labels.is_empty() || labels.starts_with('{');
        is_it.then(|| value.parse::<u64>().expect("counters are whole numbers"))
    });
    values.reduce(|sum, value| sum + value).unwrap_or_else(|| panic!("no {name} in the metrics"))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("a run takes minutes")
}

/// What panicked on this thread since this was last asked.
pub(crate) fn take_panics() -> Vec<String> {
    PANICS.take()
}

thread_local! {
    /// What panicked on this thread. A task's panic ends nothing but the task.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

pub(crate) fn listen_for_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
            usual(info);
        }));
    });
}
