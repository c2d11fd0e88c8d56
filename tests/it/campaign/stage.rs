//! Where the campaign plays: the processes, the ways between them, and what was done to them.

use std::collections::HashSet;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;
use std::{mem, thread};

use agora_rtm_bridge::simulator::{AppScript, FramingChoice, Network, Script, Spread};
use rustix::process::Signal;
use serde_json::Value;

use super::audit::Audit;
use super::clock::WrongClock;
use super::disk::SmallDisk;
use super::hosts::Hosts;
use super::kind::{Act, Kind};
use super::load::{APPS, Load};
use super::reader::Reader;
use super::secrets::Secrets;
use super::tally::{CaughtUp, Stopped};
use super::topics::{Administrator, Errand};
use super::{Plan, secrets};
use crate::support::agora::{Agora, Hosts as Asked};
use crate::support::broker::Broker;
use crate::support::consume::Consumer;
use crate::support::names::Names;
use crate::support::process::{Bridge, Environment};
use crate::support::proxy::{Proxy, Way};
use crate::support::tail;

/// `shutdown_grace` of the bridge.
pub(super) const GRACE: Duration = Duration::from_secs(7);

/// Partitions of the pages topic.
const PAGE_PARTITIONS: i32 = 4;

/// `agora.silence_timeout` of the bridge.
const SILENCE: &str = "2s";

/// The longest way to Agora, or back.
pub(super) const WAY: Duration = Duration::from_millis(60);

/// Whatever takes its end here is waited for so long. An owner that was fenced waits for 30 s.
const LIMIT: Duration = Duration::from_secs(90);

/// As supervisors do, though they wait longer.
const START_AGAIN: Duration = Duration::from_millis(200);

/// Between two looks at how far it has caught up.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What waits when a catching up is over: what a second brings.
const CAUGHT_UP_SECONDS: f64 = 1.0;

pub(super) struct Stage {
    // The disk goes first, the folder in which it is mounted after it.
    disk: Option<SmallDisk>,
    pub(super) bridge: Bridge,
    pub(super) life: Life,
    pub(super) agora: Agora,
    pub(super) consumer: Consumer,
    pub(super) audit: Audit,
    pub(super) load: Load,
    rate: f64,
    broker: Place,
    kafka: Option<Proxy>,
    to_agora: Option<Proxy>,
    hosts: Hosts,
    clock: Option<WrongClock>,
    secrets: Option<Secrets>,
    administrator: Administrator,
    /// Topics of events.
    topics: [String; 2],
    pages: String,
    /// Whoever reads the journal.
    reader: Option<Reader>,
    pub(super) done: Done,
}

/// The life of one process of the bridge.
pub(super) struct Life {
    pub(super) began: Duration,
    /// Its predecessor ended in order and left nothing behind.
    pub(super) inherits_nothing: bool,
    /// Elements in answers to it, as far as rounds are judged, and how many of them it never got.
    pub(super) answered: u64,
    pub(super) lost: u64,
    /// Elements of pages that it took over from its predecessor; known from its first rest on.
    pub(super) taken_over: Option<i64>,
    /// When it was asked to stop.
    stopping: Option<Duration>,
}

/// What was done in a round.
#[derive(Default)]
pub(super) struct Done {
    /// Times in which an answer could be lost.
    pub(super) excuses: Vec<Excuse>,
    pub(super) stops: Vec<Stopped>,
    pub(super) caught_up: Option<CaughtUp>,
    pub(super) peak_memory: u64,
    /// The broker was not well at some time: a stop may have left something behind.
    kafka_was_away: bool,
    full_since: Option<Duration>,
    agora_away_since: Option<Duration>,
    /// Several kinds of harm meet.
    is_mixed: bool,
    /// Since when each feed has to be served, and until when.
    service: Option<(Duration, Duration)>,
    catching_up: Option<CatchingUp>,
    log: String,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Excuse {
    pub(super) from: Duration,
    pub(super) to: Duration,
    /// The process died at its end.
    pub(super) is_death: bool,
    /// The process had received what was lost, and Kafka lost it.
    pub(super) by_kafka: bool,
}

/// A measurement that goes on.
struct CatchingUp {
    broker_is_back: Option<Duration>,
    first: Option<(Duration, i64)>,
    waited: i64,
    looked: Duration,
}

enum Place {
    Here(Broker),
    Coming(JoinHandle<Broker>),
    Moving,
}

// === impl Stage ===

impl Stage {
    /// Starts everything, and waits until the bridge is ready.
    pub(super) fn set(plan: &Plan) -> Self {
        use Kind::{
            AgoraCut, AgoraStall, CertificateRenewed, DiskFull, KafkaCut, KafkaStall,
            LingeringReader, PasswordRotated, StopAway,
        };
        let names = Names::unique("campaign");
        let script = script(plan);
        let hosts = match plan.has(&[Kind::RefusingHost]) {
            true => Hosts::with_another(&script),
            false => Hosts::default(),
        };
        let agora = Agora::start(script);
        let renewals = [PasswordRotated, CertificateRenewed];
        let secrets = plan.has(&renewals).then(Secrets::new);
        let needs_proxy = plan.has(&[KafkaCut, KafkaStall, StopAway, LingeringReader]);
        let kafka = (needs_proxy || secrets.is_some()).then(Proxy::start);
        let broker = match (&kafka, &secrets) {
            (Some(proxy), Some(secrets)) => {
                let furnish = |home: &Path| secrets.furnish(home);
                Broker::own_behind_with(proxy, secrets::PROTOCOL, furnish)
            }
            (Some(proxy), None) => Broker::own_behind(proxy),
            (None, _) => Broker::own(),
        };
        let bootstrap = broker.bootstrap();
        let to_kafka =
            kafka.as_ref().map_or_else(|| bootstrap.clone(), |it| it.address().to_string());
        let mut config = format!(
            "shutdown_grace = \"{}s\"\n{}partitions = 3\npage_partitions = {PAGE_PARTITIONS}\n\n\
             {}[agora]\nsilence_timeout = \"{SILENCE}\"\n{}{}",
            GRACE.as_secs(),
            names.kafka_tables(&to_kafka),
            secrets.as_ref().map(|it| it.options(&broker)).unwrap_or_default(),
            tables(plan),
            agora.apps(Asked::EachRegion)
        );
        config = hosts.written_into(config, &agora);
        let to_agora = plan.has(&[AgoraCut, AgoraStall]).then(Proxy::start);
        if let Some(proxy) = &to_agora {
            let address = agora.address(0);
            proxy.lead_to(address);
            config = config.replace(&address.to_string(), &proxy.address().to_string());
        }
        let mut disk = None;
        let life = Life::new(agora.now(), true);
        let prepare = |data_dir: &Path| {
            if plan.has(&[DiskFull]) {
                disk = Some(SmallDisk::mount(data_dir).expect("it was tried out"));
            }
        };
        let has_clock = plan.has(&[Kind::ClockAhead]);
        let clock = has_clock.then(|| WrongClock::new().expect("it was tried out"));
        let environment = clock.as_ref().map_or_else(Environment::new, WrongClock::environment);
        let mut bridge = match plan.has(&[Kind::StalledLog]) {
            true => Bridge::start_through_pipe(environment, &config, prepare),
            false => Bridge::start_in(environment, &config, prepare),
        };
        let consumer = Consumer::start(&bootstrap, &names.published());
        let topics = [&names.user_events, &names.channel_events].map(String::clone);
        let pages = names.pages.clone();
        bridge.wait_ready();
        Self {
            disk,
            bridge,
            life,
            load: Load::new(plan.rate, plan.seed),
            rate: plan.rate,
            audit: Audit::new(names),
            agora,
            consumer,
            broker: Place::Here(broker),
            kafka,
            to_agora,
            hosts,
            clock,
            secrets,
            administrator: Administrator::new(&bootstrap),
            topics,
            pages,
            reader: None,
            done: Done::default(),
        }
    }

    /// Does one deed.
    pub(super) fn perform(&mut self, act: Act) -> Result<(), String> {
        match act {
            Act::Kill => self.kill(),
            Act::Terminate => self.terminate(),
            Act::KillBroker => self.with_broker(Broker::kill_9),
            Act::StartBroker => self.start_broker(|_| {}),
            Act::FreezeBroker => self.with_broker(Broker::freeze),
            Act::ThawBroker => self.with_broker(Broker::thaw),
            Act::Kafka(way) => {
                self.done.kafka_was_away = true;
                self.kafka.as_ref().expect("the plan has it").set(way);
            }
            Act::Agora(way) => self.set_way_to_agora(way),
            Act::BeginFaults => self.hosts.set_faulty(true, &self.agora),
            Act::EndFaults => self.hosts.set_faulty(false, &self.agora),
            Act::BeginRefusal(refusal) => self.hosts.set_refusal(Some(refusal), &self.agora),
            Act::EndRefusal => self.hosts.set_refusal(None, &self.agora),
            Act::SlowDown(takes) => self.agora.world().set_page_time(Some(takes)),
            Act::SpeedUp => self.agora.world().set_page_time(None),
            Act::Rush(times, growth) => self.load.rush(&self.agora, times, growth),
            Act::EndRush => self.load.end_rush(),
            Act::BeginReading => self.reader = Some(Reader::of(&self.bridge.data_dir())),
            Act::EndReading => self.reader.take().into_iter().for_each(Reader::end),
            Act::StallLog => self.bridge.log_pipe().expect("the plan has it").stall(),
            Act::ReadLog => self.bridge.log_pipe().expect("the plan has it").flow(),
            Act::FillDisk => {
                self.disk.as_ref().expect("the plan has it").fill();
                self.done.full_since = Some(self.agora.now());
            }
            Act::FreeDisk => self.disk.as_ref().expect("the plan has it").free(),
            Act::AwaitService(within) => {
                let within = if self.done.is_mixed { LIMIT } else { within };
                self.done.service = Some((self.agora.now(), self.agora.now() + within));
            }
            Act::Burst(events) => self.load.burst(&self.agora, events),
            Act::LimitTopics(bytes) => {
                for topic in self.topics.clone() {
                    self.administrator.ask(Errand::Limit { topic, bytes });
                }
            }
            Act::DeleteRecords => {
                let (topic, partitions) = (self.pages.clone(), PAGE_PARTITIONS);
                self.administrator.ask(Errand::DeleteRecords { topic, partitions });
                let (from, to) = (Duration::ZERO, Duration::MAX);
                self.done.excuses.push(Excuse { from, to, is_death: false, by_kafka: true });
            }
            Act::SetClockAhead(ahead) => {
                self.clock.as_ref().expect("the plan has it").set_ahead(ahead);
            }
            Act::Renew(what) => {
                // While it is on its way back, nothing more is done to it.
                if matches!(self.broker, Place::Here(_)) {
                    self.done.kafka_was_away = true;
                    let deed = self.secrets.as_mut().expect("the plan has it").renew(what);
                    self.start_broker(deed);
                }
            }
            Act::HandOut => self.secrets.as_mut().expect("the plan has it").hand_out(),
            Act::CatchUp => self.begin_to_catch_up()?,
        }
        Ok(())
    }

    /// Lets time pass: events happen, who has ended is started again. False while something is
    /// going on that a round has to wait for.
    pub(super) fn tick(&mut self) -> Result<bool, String> {
        self.load.tick(&self.agora);
        if let Place::Coming(thread) = &self.broker
            && thread.is_finished()
        {
            let Place::Coming(thread) = mem::replace(&mut self.broker, Place::Moving) else {
                unreachable!("it was just there");
            };
            let broker = thread.join().map_err(|_| "the broker did not come back".to_owned())?;
            self.broker = Place::Here(broker);
            if let Some(catching_up) = &mut self.done.catching_up {
                catching_up.broker_is_back.get_or_insert(self.agora.now());
            }
        }
        if let (Place::Here(broker), Some(secrets)) = (&self.broker, &mut self.secrets) {
            secrets.give(broker);
        }
        self.look_after_the_bridge()?;
        self.go_on_catching_up()?;
        self.await_service()?;
        let is_moving = matches!(self.broker, Place::Coming(_))
            || !self.administrator.is_idle()
            || self.secrets.as_ref().is_some_and(|it| !it.are_handed_out());
        let is_busy = self.life.stopping.is_some() || self.done.catching_up.is_some();
        Ok(!is_moving && !is_busy && self.done.service.is_none())
    }

    /// `/status.json`, if the bridge answers.
    pub(super) fn status(&self) -> Value {
        self.bridge.status()
    }

    /// The end of the campaign: an orderly stop, and nothing is left.
    pub(super) fn strike(mut self) -> Result<(), String> {
        self.bridge.terminate();
        let status = self.bridge.wait(LIMIT);
        let is_well = status.code() == Some(0);
        is_well.then_some(()).ok_or_else(|| format!("the last stop ended with {status}"))
    }

    /// What the bridge logged in this round.
    pub(super) fn log(&self) -> String {
        let log = self.done.log.clone() + &self.bridge.log();
        tail(&log)
    }

    fn kill(&mut self) {
        self.note_memory();
        // The log of a killed process is the one thing that tells of it.
        self.done.log += &self.bridge.log();
        self.bridge.kill_9();
        let now = self.agora.now();
        let from = self.done.full_since.unwrap_or(now);
        self.done.excuses.push(Excuse { from, to: now, is_death: true, by_kafka: false });
        self.start_bridge(false);
    }

    fn terminate(&mut self) {
        // A second signal would mean something else.
        if self.life.stopping.is_none() {
            self.note_memory();
            self.bridge.terminate();
            self.life.stopping = Some(self.agora.now());
        }
    }

    fn look_after_the_bridge(&mut self) -> Result<(), String> {
        let Some(status) = self.bridge.ended() else {
            let began = self.life.stopping.unwrap_or_else(|| self.agora.now());
            let is_late = self.agora.now() > began + LIMIT;
            return if is_late { Err("the bridge does not stop".to_owned()) } else { Ok(()) };
        };
        let now = self.agora.now();
        let Some(began) = self.life.stopping.take() else {
            let had_no_room = self.done.full_since.is_some() && status.code() == Some(1);
            if !had_no_room {
                return Err(format!("the bridge ended by itself, with {status}"));
            }
            // On a full disk a journal can't be opened: a supervisor starts it again and again.
            if now > self.life.began + START_AGAIN {
                self.start_bridge(true);
            }
            return Ok(());
        };
        if status.signal() == Some(Signal::TERM.as_raw()) && self.bridge.log().is_empty() {
            // Asked within the milliseconds before it listens for signals: it had asked nobody yet.
            self.start_bridge(false);
            return Ok(());
        }
        let kafka_was_away = self.done.kafka_was_away;
        let may_leave_something = kafka_was_away || self.done.full_since.is_some();
        let left_nothing = status.code() == Some(0);
        let is_as_it_should = left_nothing || may_leave_something && status.code() == Some(1);
        if !is_as_it_should {
            return Err(format!("the bridge was asked to stop and ended with {status}"));
        }
        self.done.stops.push(Stopped { took: now - began, kafka_was_away, left_nothing });
        // A page that no disk took is only in memory.
        if let Some(from) = self.done.full_since.filter(|_| !left_nothing) {
            self.done.excuses.push(Excuse { from, to: now, is_death: true, by_kafka: false });
        }
        self.done.log += &self.bridge.log();
        self.start_bridge(left_nothing);
        Ok(())
    }

    fn start_bridge(&mut self, inherits_nothing: bool) {
        // What its predecessor took over and did not deliver is taken over again.
        let inherits_nothing = inherits_nothing && self.life.is_settled();
        self.life = Life::new(self.agora.now(), inherits_nothing);
        self.bridge.start_again();
    }

    fn note_memory(&mut self) {
        let peak = self.bridge.peak_memory().unwrap_or(0);
        self.done.peak_memory = self.done.peak_memory.max(peak);
    }

    /// What the round before did is over; its peak of memory counts for this one too, where the
    /// process is the same.
    pub(super) fn begin_round(&mut self, is_mixed: bool) {
        self.done = Done { is_mixed, ..Done::default() };
        self.load.begin(&self.agora);
    }

    pub(super) fn end_round(&mut self) -> Done {
        self.note_memory();
        mem::take(&mut self.done)
    }

    fn with_broker(&mut self, deed: impl FnOnce(&mut Broker)) {
        self.done.kafka_was_away = true;
        // While it is on its way back, nothing more is done to it.
        if let Place::Here(broker) = &mut self.broker {
            deed(broker);
        }
    }

    /// Starts it after `deed`; it ends first, if it runs. It takes seconds, in which other things
    /// happen.
    fn start_broker(&mut self, deed: impl FnOnce(&Broker) + Send + 'static) {
        match mem::replace(&mut self.broker, Place::Moving) {
            Place::Here(mut broker) => {
                let start = move || {
                    deed(&broker);
                    broker.kill_9();
                    broker.start_again();
                    broker
                };
                self.broker = Place::Coming(thread::spawn(start));
            }
            other => self.broker = other,
        }
    }

    fn set_way_to_agora(&mut self, way: Way) {
        self.to_agora.as_ref().expect("the plan has it").set(way);
        let now = self.agora.now();
        if let Some(from) = self.done.agora_away_since.take() {
            self.done.excuses.push(Excuse { from, to: now, is_death: false, by_kafka: false });
        }
        if way != Way::Open {
            self.done.agora_away_since = Some(now);
        }
    }

    fn await_service(&mut self) -> Result<(), String> {
        let Some((since, until)) = self.done.service else { return Ok(()) };
        let now = self.agora.now();
        let world = self.agora.world();
        let answers = world.ledger().answers().iter().rev().take_while(|it| it.at >= since);
        let served: HashSet<_> = answers.filter(|it| it.status == 200).map(|it| it.feed).collect();
        if served.len() == 2 * APPS {
            self.done.service = None;
        } else if now > until {
            return Err(format!(
                "for {:?} after it could be asked again a feed was not served; served were {served:?}",
                now - since
            ));
        }
        Ok(())
    }

    fn begin_to_catch_up(&mut self) -> Result<(), String> {
        let waited = sum(&self.status(), "waiting")?;
        self.done.catching_up =
            Some(CatchingUp { broker_is_back: None, first: None, waited, looked: Duration::ZERO });
        Ok(())
    }

    fn go_on_catching_up(&mut self) -> Result<(), String> {
        let now = self.agora.now();
        let Some(CatchingUp { broker_is_back: Some(back), first, waited, looked }) =
            self.done.catching_up.as_mut()
        else {
            return Ok(());
        };
        if now < *looked + LOOK_AGAIN {
            return Ok(());
        }
        *looked = now;
        let status = self.bridge.status();
        let (delivered, waiting) = (sum(&status, "delivered")?, sum(&status, "waiting")?);
        // The last look before anything is delivered.
        let (begun, delivered_before) = match *first {
            Some(first) if first.1 < delivered => first,
            _ => *first.insert((now, delivered)),
        };
        if waiting as f64 <= self.rate * CAUGHT_UP_SECONDS {
            let delivered = delivered - delivered_before;
            let (back, waited) = (*back, *waited);
            self.done.caught_up = Some(CaughtUp { waited, back, begun, end: now, delivered });
            self.done.catching_up = None;
        }
        Ok(())
    }
}

/// What there is to be fetched, by itself nothing.
fn script(plan: &Plan) -> Script {
    // A journal grows with what it holds.
    let padding = if plan.has(&[Kind::LingeringReader]) { 600 } else { 0 };
    Script {
        seed: plan.seed,
        apps: (0..APPS).map(|app| AppScript { padding, ..AppScript::numbered(app) }).collect(),
        // Long ways, so that a kill often finds an answer on its way. Chunked, since a body that
        // ends with its connection looks whole when it is cut.
        network: Network {
            rtt: Spread { from: WAY, to: WAY * 2 },
            framing: FramingChoice::Chunked,
            ..Network::default()
        },
        ..Script::default()
    }
}

/// Tables of the configuration that some kinds need.
fn tables(plan: &Plan) -> String {
    let mut tables = String::new();
    if plan.has(&[Kind::LingeringReader]) {
        // As small as it can be: what never grows less fills it within a round.
        tables += "[journal]\nmax_size = \"64MiB\"\n";
    }
    if plan.has(&[Kind::StalledLog]) {
        // A line for each page: what waits for its log waits at once.
        tables += "[log]\nlevel = \"info,agora_rtm_bridge=debug\"\n";
    }
    tables
}

/// A column of the accounts in `/status.json`, added up.
pub(super) fn sum(status: &Value, column: &str) -> Result<i64, String> {
    let accounts = status["accounts"].as_array();
    let figures = accounts.map(|accounts| accounts.iter().map(|it| it[column].as_i64()).sum());
    figures.flatten().ok_or_else(|| format!("no `{column}` in {status}"))
}

// === impl Life ===

impl Life {
    fn new(began: Duration, inherits_nothing: bool) -> Self {
        Self { began, inherits_nothing, answered: 0, lost: 0, taken_over: None, stopping: None }
    }

    fn is_settled(&self) -> bool {
        self.inherits_nothing || self.taken_over.is_some()
    }
}
