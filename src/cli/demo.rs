//! `demo`: Agora, a broker, the bridge and a verifying consumer, all in this process.
//!
//! Agora is the simulator, the broker is librdkafka's mock, the bridge is the daemon as `run`
//! starts it. All traffic stays on loopback, and nothing needs to be configured. The verdict
//! compares the events that Agora made with those that the consumer read, one by one.
//!
//! The introduction and the verdict are the result and go to stdout; progress goes to stderr.

mod broker;
mod consumer;
mod evidence;
mod plan;
mod screen;
mod verdict;

use std::fmt::Write as _;
use std::fs::DirBuilder;
use std::future::Future;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;
use std::{fs, io};

use clap::Args;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::broker::{Broker, BrokerCommand};
use self::consumer::{Consumer, Subject};
use self::plan::{Plan, REGIONS, Wishes};
use self::screen::{Figures, Screen};
use self::verdict::DemoVerdict;
use super::{Failure, asked_to_stop};
use crate::config;
use crate::config::Settings;
use crate::daemon::{Daemon, Report};
use crate::kafka::{Cluster, Topic};
use crate::model::{Clock, Endpoint};
use crate::observe::accounts::Column;
use crate::observe::logs;
use crate::simulator::{AppScript, Server, World, serve};

/// Interval between updates of the screen.
const TICK: Duration = Duration::from_millis(100);

/// Time for copies of the last events to reach the other region (400 ms at most), with some margin.
const COPIES_ARRIVE: Duration = Duration::from_millis(600);

/// Maximum time for the bridge to deliver everything once no more events happen.
const REST: Duration = Duration::from_secs(30);

/// Maximum time for the idle bridge to stop.
const GRACE: Duration = Duration::from_secs(20);

/// See it work: everything in one process, with a verdict on every event at the end
///
/// Runs a simulated Agora, an embedded mock broker, the bridge, and a consumer that verifies what
/// it reads. Nothing leaves this machine. You will see a burst, answers that are cut off, a region
/// that repeats the other's events, and a broker outage.
///
/// Exit code 0 means that every event is accounted for.
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// How long to generate events, in seconds
    #[arg(long, value_name = "N", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u64).range(5..=3_600))]
    seconds: u64,
    /// Events per second for each App ID
    #[arg(long, value_name = "EVENTS", default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rate: u32,
    /// Number of App IDs
    #[arg(long, value_name = "N", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=20))]
    apps: u16,
    /// Seed for all random choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Keep everything running until Ctrl-C, and print the addresses to consume from
    #[arg(long)]
    keep: bool,
    /// Show the bridge's own log with this filter, for example info
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

/// All running parts of the demo.
struct DemoParts {
    broker: Broker,
    server: Server,
    simulation: (TaskTracker, CancellationToken),
    daemon: Daemon,
    consumer: Consumer,
    plan: Plan,
    screen: Screen,
    /// Number of answers counted so far, and of the events that Agora handed over in them.
    handed_over: (usize, u64),
}

/// A directory that is deleted on drop.
struct Scratch(PathBuf);

type Signal = Pin<Box<dyn Future<Output = ()>>>;

/// Runs the demo up to its verdict.
pub(super) async fn run(args: Demo) -> Result<(), Failure> {
    if let Some(filter) = &args.log {
        logs::init(logs::Format::Text, filter).map_err(|error| Failure::of(&error))?;
    }
    logs::abort_at_panic();
    let mut signal: Signal = Box::pin(asked_to_stop()?);
    let scratch = Scratch::new().map_err(|error| Failure::of(&error))?;
    let wishes = Wishes {
        length: Duration::from_secs(args.seconds),
        rate: args.rate,
        apps: args.apps,
        seed: args.seed,
    };
    let mut stage = DemoParts::set_up(&args, &wishes, &scratch.0).await?;
    stage.play(wishes.length, args.keep, &mut signal).await?;
    signal = Box::pin(asked_to_stop()?);
    stage.come_to_rest(&mut signal).await;
    let verdict = stage.judge(&mut signal).await?;
    print(&format!("{verdict}\n"))?;
    let sentence = verdict.sentence();
    if verdict.is_good() {
        return print(&format!("{sentence}\n"));
    }
    Err(Failure { message: sentence, code: 1 })
}

// === impl Stage ===

impl DemoParts {
    async fn set_up(args: &Demo, wishes: &Wishes, data_dir: &Path) -> Result<Self, Failure> {
        let broker = Broker::start().await.map_err(|error| Failure::of(&error))?;
        print(&introduction(wishes, broker.address()))?;
        let plan = Plan::new(wishes, Clock::system().now());
        let simulation = (TaskTracker::new(), CancellationToken::new());
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let world = World::new(plan.script.clone());
        let listen = vec![anywhere; REGIONS.len()];
        let server = serve(world, listen, &simulation.0, simulation.1.clone())
            .await
            .map_err(|error| Failure::of(&error))?;
        let settings = settings(&plan.script.apps, &server, broker.address(), data_dir)?;
        let subjects = create_topics(&broker, &settings).await?;
        let consumer = Consumer::start(broker.address(), subjects.clone())
            .map_err(|error| Failure::of(&error))?;
        let kafka = Cluster::prepared(settings.kafka.clone(), &settings.instance);
        let (daemon, pages) =
            Daemon::launch(settings, kafka).await.map_err(|error| Failure::of(&error))?;
        if args.keep {
            print(&addresses(broker.address(), &subjects, pages))?;
        }
        let feeds: Vec<String> = feeds(wishes.apps.into())
            .map(|(app, region, endpoint)| {
                let region = REGIONS.get(region).unwrap_or(&"");
                format!("app {} · {region} · {endpoint}", app + 1)
            })
            .collect();
        let length = (!args.keep).then_some(wishes.length);
        let screen = Screen::new(&feeds, length, args.log.is_some());
        let handed_over = (0, 0);
        Ok(Self { broker, server, simulation, daemon, consumer, plan, screen, handed_over })
    }

    /// Generates events for `length`, or until the signal.
    async fn play(
        &mut self,
        length: Duration,
        keep: bool,
        signal: &mut Signal,
    ) -> Result<(), Failure> {
        let mut ticks = ticks();
        let mut told = 0;
        let mut is_away = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = &mut *signal => break,
            }
            let at = self.server.now();
            let begun = self.plan.scenes.iter().skip(told).filter(|it| it.during.start <= at);
            for scene in begun {
                self.screen.tell(at, &format!("{}: {}", scene.title, scene.told));
                told += 1;
            }
            let shall_be_away = self.plan.pause.contains(&at);
            if shall_be_away != is_away {
                let command =
                    if shall_be_away { BrokerCommand::Pause } else { BrokerCommand::Resume };
                self.broker.ask(command).await.map_err(|error| Failure::of(&error))?;
                is_away = shall_be_away;
            }
            let now = self.plan.at(at).map_or("steady load", |scene| scene.title);
            self.show(now);
            if at >= length && !keep {
                break;
            }
        }
        if is_away {
            self.broker.ask(BrokerCommand::Resume).await.map_err(|error| Failure::of(&error))?;
        }
        Ok(())
    }

    /// Stops generating events and waits until all are delivered. A signal or the timeout ends the
    /// wait; the verdict then shows what is unfinished.
    async fn come_to_rest(&mut self, signal: &mut Signal) {
        {
            let mut world = self.server.world();
            world.stop_load();
            world.set_faults(Vec::new());
        }
        let text = "no more events: draining, delivering and verifying the rest";
        self.screen.tell(self.server.now(), text);
        let (mut ticks, begun) = (ticks(), Instant::now());
        while begun.elapsed() < REST {
            tokio::select! {
                _ = ticks.tick() => {}
                () = &mut *signal => return,
            }
            let figures = self.show("no more events");
            let is_open = figures.buffers.iter().any(|fill| *fill > 0)
                || self.server.world().ledger().total().buffered > 0
                || self.daemon.report().accounts().total().waiting() != 0
                || !self.daemon.report().waiting().is_nothing();
            if !is_open && begun.elapsed() > COPIES_ARRIVE {
                return;
            }
        }
    }

    /// Stops everything in order and computes the verdict.
    async fn judge(self, signal: &mut Signal) -> Result<DemoVerdict, Failure> {
        let report = self.daemon.report().clone();
        let give_up = self.daemon.give_up();
        let stop = self.daemon.stop(GRACE);
        tokio::pin!(stop);
        tokio::select! {
            _ = &mut stop => {}
            () = &mut *signal => {
                give_up.cancel();
                stop.await;
            }
        }
        let evidence = self.consumer.finish().await.map_err(|error| Failure::of(&error))?;
        self.screen.close();
        let (tracker, token) = self.simulation;
        token.cancel();
        tracker.close();
        tracker.wait().await;
        self.broker.end().await;
        let world = self.server.world();
        let regions = REGIONS.len() as u64;
        let verdict = DemoVerdict::of(world.ledger().events(), regions, evidence);
        Ok(DemoVerdict { repeats: repeats(&report), ..verdict })
    }

    fn show(&mut self, now: &str) -> Figures {
        let report = self.daemon.report();
        let accounts = report.accounts().total();
        let mut figures = Figures {
            at: self.server.now(),
            now: now.to_owned(),
            committed: report.poller().pages_committed.get(),
            forwarded: report.forwarder().forwarded.get(),
            in_journal: report.waiting().in_journal,
            delivered: *accounts.get(Column::Delivered),
            repeats: repeats(report),
            verified: self.consumer.verified(),
            ..Figures::default()
        };
        {
            let world = self.server.world();
            let answers = world.ledger().answers();
            let (counted, taken) = &mut self.handed_over;
            *taken += answers.iter().skip(*counted).map(|answer| answer.taken).sum::<u64>();
            *counted = answers.len();
            figures.drained = *taken;
            figures.made = world.ledger().total().made;
            figures.buffers = feeds(world.script().apps.len())
                .map(|(app, region, endpoint)| world.backlog(region, app, endpoint) as u64)
                .collect();
        }
        self.screen.show(&figures);
        figures
    }
}

fn ticks() -> tokio::time::Interval {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

fn repeats(report: &Report) -> u64 {
    let accounts = report.accounts().total();
    accounts.get(Column::Repeats) + accounts.get(Column::RepeatsInPage)
}

/// All feeds by app, region and endpoint, in display order.
fn feeds(apps: usize) -> impl Iterator<Item = (usize, usize, Endpoint)> {
    (0..apps).flat_map(|app| {
        let regions = 0..REGIONS.len();
        regions.flat_map(move |region| Endpoint::ALL.map(|endpoint| (app, region, endpoint)))
    })
}

/// Configures the bridge as an operator would, entirely from the environment.
fn settings(
    apps: &[AppScript],
    server: &Server,
    broker: &str,
    data_dir: &Path,
) -> Result<Settings, Failure> {
    let mut pairs = Vec::new();
    let mut set = |key: String, value: &str| {
        pairs.push((format!("AGORA_RTM_BRIDGE__{key}"), value.to_owned()));
    };
    set("DATA_DIR".to_owned(), &data_dir.to_string_lossy());
    set("INSTANCE".to_owned(), "demo");
    set("HTTP__LISTEN".to_owned(), "127.0.0.1:0");
    set("KAFKA__BOOTSTRAP_SERVERS".to_owned(), broker);
    // The mock answers an empty fetch only after the full wait, even if records arrive meanwhile.
    set("KAFKA__OPTIONS__FETCH_WAIT_MAX_MS".to_owned(), "20");
    set("KAFKA__OPTIONS__RECONNECT_BACKOFF_MAX_MS".to_owned(), "500");
    for (index, app) in apps.iter().enumerate() {
        set(format!("APPS__{index}__APP_ID"), app.app_id.as_str());
        set(format!("APPS__{index}__AUTH__CUSTOMER_ID"), &app.customer_id);
        set(format!("APPS__{index}__AUTH__CUSTOMER_SECRET"), &app.customer_secret);
        for (region, name) in REGIONS.iter().enumerate() {
            set(format!("APPS__{index}__REGIONS__{region}__NAME"), name);
            let url = server.url(region).unwrap_or_default();
            set(format!("APPS__{index}__REGIONS__{region}__HOSTS"), &url);
        }
    }
    config::load(None, pairs).map_err(|faults| Failure::configuration(&faults))
}

/// Creates all topics; returns those that a consumer reads.
async fn create_topics(broker: &Broker, settings: &Settings) -> Result<Vec<Subject>, Failure> {
    let topics = &settings.kafka.topics;
    let (events, pages) = (topics.partitions.get(), topics.page_partitions.get());
    let mut subjects = Vec::new();
    for (topic, name, partitions) in [
        (Topic::UserEvents, &topics.user_events, events),
        (Topic::ChannelEvents, &topics.channel_events, events),
        (Topic::DeadLetter, &topics.dead_letter, 1),
        (Topic::Gaps, &topics.gaps, 1),
        (Topic::Pages, &topics.pages, pages),
        (Topic::State, &topics.state, pages),
    ] {
        let partitions = i32::try_from(partitions).unwrap_or(i32::MAX);
        let created = broker.ask(BrokerCommand::Create(name.clone(), partitions)).await;
        created.map_err(|error| Failure::of(&error))?;
        if !matches!(topic, Topic::Pages | Topic::State) {
            subjects.push(Subject { topic, name: name.clone(), partitions });
        }
    }
    Ok(subjects)
}

fn introduction(wishes: &Wishes, broker: &str) -> String {
    let Wishes { length, rate, apps, seed } = wishes;
    let [first, second] = REGIONS;
    let seconds = length.as_secs();
    format!(
        "\
A demo of agora-rtm-bridge, seed {seed}: one process, all traffic on loopback.

  Agora      simulated as documented: App IDs: {apps}, events per second for each: {rate};
             regions {first} and {second}, so that each event is handed over twice
  bridge     drains both, and removes the repeats
  broker     librdkafka's mock cluster, embedded, in memory, at {broker}
  delivery   exactly-once: events, memory and position in one transaction
  consumer   read_committed; compares each event with what Agora made

The demo runs for {seconds} s, with steady load, a burst, answers that are cut off, a region that
repeats events, and a broker outage. The mock broker neither hides records of aborted
transactions nor fences a second bridge; `tests/run` verifies exactly-once delivery on a real
broker.

"
    )
}

/// The addresses for exploring the running demo.
fn addresses(broker: &str, topics: &[Subject], pages: SocketAddr) -> String {
    let mut text =
        String::from("Everything keeps running until Ctrl-C, which prints the verdict.\n\n");
    let mut put = |name: &str, value: &str| {
        writeln!(text, "  {name:<9}  {value}").expect("writing into memory never fails");
    };
    put("broker", broker);
    for Subject { name, .. } in topics {
        put("consume", &format!("kcat -b {broker} -C -t {name} -f '%k %s\\n'"));
    }
    put("metrics", &format!("http://{pages}/metrics"));
    put("status", &format!("http://{pages}/status.json"));
    text.push('\n');
    text
}

fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let printed = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    printed.map_err(|error| Failure::of(&error))
}

// === impl Scratch ===

impl Scratch {
    fn new() -> io::Result<Self> {
        let name = format!("agora-rtm-bridge-demo-{:016x}", rand::random::<u64>());
        let path = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // If it fails, a few megabytes remain in the system's temporary directory.
        fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}
