//! A real Kafka broker: Apache Kafka, one node, in a folder that is deleted with it.
//!
//! [`shared`] is for every test that needs just any broker; unique names keep the tests apart (see
//! [`super::names`]). [`Broker::own`] is for tests that stop their broker.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;
use std::{env, fs};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use ring::digest::{SHA256, digest};
use rustix::process::Signal;
use tempfile::TempDir;

use super::child::Guarded;
use super::proxy::Proxy;
use super::{names, tail, within};

/// A broker for one test. Its data is deleted with it.
pub(crate) struct Broker {
    process: Guarded,
    ports: Ports,
    home: TempDir,
}

/// A broker keeps its ports across a restart, because its clients know no others.
#[derive(Clone, Copy)]
struct Ports {
    clients: u16,
    controller: u16,
    behind: Option<Behind>,
}

/// A second listener, for clients that connect through a proxy: the broker advertises the proxy's
/// port.
#[derive(Clone, Copy)]
struct Behind {
    port: u16,
    proxy: u16,
}

/// Additions to the usual settings of a broker.
#[derive(Default)]
pub(crate) struct Extra {
    /// Listeners: a name, the protocol, and the port.
    pub(crate) doors: Vec<(&'static str, &'static str, u16)>,
    /// The protocol of the listener behind the proxy; plain text unless set.
    pub(crate) behind: Option<&'static str>,
    /// Lines for its settings.
    pub(crate) settings: String,
    /// Arguments of the storage tool, which for example creates users.
    pub(crate) storage: Vec<String>,
}

/// Variable with the address of a running Kafka, as `host:port,…`.
const GIVEN: &str = "KAFKA_BOOTSTRAP_SERVERS";

/// The file with the broker's settings, in its folder.
const SETTINGS: &str = "server.properties";

/// Variable with the folder of Kafka's jars; `tests/run` sets it.
const LIBS: &str = "AGORA_TEST_KAFKA_LIBS";

/// Maximum time for a broker to start. It usually takes two seconds, longer on a machine that
/// compiles at the same time.
const START_LIMIT: Duration = Duration::from_secs(60);

/// The bootstrap servers of the broker that all tests share: the given one, or one that is started
/// for the first test that needs it.
pub(crate) fn shared() -> &'static str {
    // A failed start is remembered too, so that not every test waits for it again.
    static SHARED: LazyLock<Result<(String, Option<Broker>), String>> =
        LazyLock::new(|| match given() {
            Some(bootstrap) => Ok((bootstrap, None)),
            None => Broker::start(None, strict).map(|broker| (broker.bootstrap(), Some(broker))),
        });
    match &*SHARED {
        Ok((bootstrap, _broker)) => bootstrap,
        Err(report) => panic!("{report}"),
    }
}

/// The settings of strict clusters, where topics aren't created automatically. A test's own broker
/// keeps Kafka's default.
fn strict(_: &Path) -> Extra {
    Extra { settings: "auto.create.topics.enable=false\n".to_owned(), ..Extra::default() }
}

/// Creates a topic, for tests that publish something themselves.
pub(crate) fn create_topic(bootstrap: &str, name: &str, partitions: i32) {
    create_topic_with(bootstrap, name, partitions, &[]);
}

/// The same, with topic settings.
pub(crate) fn create_topic_with(
    bootstrap: &str,
    name: &str,
    partitions: i32,
    settings: &[(&str, &str)],
) {
    let admin: AdminClient<_> = client(bootstrap).create().expect("the settings are right");
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    let topic = settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
    let created = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime needs nothing")
        .block_on(admin.create_topics(&[topic], &AdminOptions::new()));
    match created.as_deref() {
        Ok([Ok(_)]) => {}
        refused => panic!("create topic {name}: {refused:?}"),
    }
}

// === impl Broker ===

impl Broker {
    /// Starts a broker that only this test uses.
    ///
    /// # Panics
    ///
    /// If it does not start, with the end of its log; or if a Kafka was given, because then no
    /// broker is started and the test should have been skipped.
    pub(crate) fn own() -> Self {
        Self::own_with(None)
    }

    /// The same, with a second listener that is reached through `proxy`.
    ///
    /// # Panics
    ///
    /// As [`Self::own`].
    pub(crate) fn own_behind(proxy: &Proxy) -> Self {
        let broker = Self::own_with(Some(proxy.address().port()));
        let behind = broker.ports.behind.expect("it was asked for");
        proxy.lead_to(SocketAddr::from((Ipv4Addr::LOCALHOST, behind.port)));
        broker
    }

    /// The same, where the second listener uses this protocol, with the additions that it needs.
    ///
    /// # Panics
    ///
    /// As [`Self::own`].
    pub(crate) fn own_behind_with(
        proxy: &Proxy,
        protocol: &'static str,
        extra: impl Fn(&Path) -> Extra,
    ) -> Self {
        let extra = |home: &Path| Extra { behind: Some(protocol), ..extra(home) };
        let broker = Self::start(Some(proxy.address().port()), extra);
        let broker = broker.unwrap_or_else(|report| panic!("{report}"));
        let behind = broker.ports.behind.expect("it was asked for");
        proxy.lead_to(SocketAddr::from((Ipv4Addr::LOCALHOST, behind.port)));
        broker
    }

    fn own_with(proxy: Option<u16>) -> Self {
        assert!(given().is_none(), "{GIVEN} is set: run this by tests/run, which leaves it out");
        Self::start(proxy, |_| Extra::default()).unwrap_or_else(|report| panic!("{report}"))
    }

    /// Starts a broker with additional settings; `extra` puts the files that it needs into the
    /// broker's folder.
    ///
    /// # Panics
    ///
    /// As [`Self::own`].
    pub(crate) fn own_with_extra(extra: impl Fn(&Path) -> Extra) -> Self {
        assert!(given().is_none(), "{GIVEN} is set: run this by tests/run, which leaves it out");
        Self::start(None, extra).unwrap_or_else(|report| panic!("{report}"))
    }

    /// Its folder.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// The address for its clients.
    pub(crate) fn bootstrap(&self) -> String {
        self.ports.bootstrap()
    }

    /// Kills it. Data that it has written is still in the kernel's cache.
    pub(crate) fn kill_9(&mut self) {
        self.process.kill_9();
    }

    /// Suspends it at whatever it is doing; its connections stay open.
    pub(crate) fn freeze(&mut self) {
        self.process.signal(Signal::STOP);
    }

    /// Resumes it.
    pub(crate) fn thaw(&mut self) {
        self.process.signal(Signal::CONT);
    }

    /// Starts it again after [`Self::kill_9`], with the same ports and data.
    pub(crate) fn start_again(&mut self) {
        self.process = launch(self.home.path(), self.ports).unwrap_or_else(|why| panic!("{why}"));
    }

    /// Changes its settings from its next start on.
    pub(crate) fn change_settings(&self, change: impl FnOnce(String) -> String) {
        let file = self.home.path().join(SETTINGS);
        let settings = fs::read_to_string(&file).expect("it was written at the start");
        fs::write(file, change(settings)).expect("its folder can be written to");
    }

    fn start(proxy: Option<u16>, extra: impl Fn(&Path) -> Extra) -> Result<Self, String> {
        // Another process may take a port before the broker binds it.
        const TRIES: usize = 3;
        let mut reports = Vec::new();
        while reports.len() < TRIES {
            let (home, ports) = (names::folder(), Ports::free(proxy));
            let extra = extra(home.path());
            fs::write(home.path().join(SETTINGS), properties(ports, home.path(), &extra))
                .expect("a fresh folder can be written to");
            format_storage(home.path(), &extra.storage)?;
            match launch(home.path(), ports) {
                Ok(process) => return Ok(Self { process, ports, home }),
                Err(report) if report.contains("Address already in use") => reports.push(report),
                Err(report) => return Err(report),
            }
        }
        Err(reports.concat())
    }
}

// === impl Ports ===

impl Ports {
    fn free(proxy: Option<u16>) -> Self {
        let behind = proxy.map(|proxy| Behind { port: free_port(), proxy });
        Self { clients: free_port(), controller: free_port(), behind }
    }

    fn bootstrap(self) -> String {
        format!("127.0.0.1:{}", self.clients)
    }
}

/// A free port below the range that the kernel uses for outgoing connections. A client that
/// connects to a stopped broker could otherwise get the broker's own port as its source port, and
/// connect to itself.
pub(crate) fn free_port() -> u16 {
    loop {
        let port = rand::random_range(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

// === the process ===

fn launch(home: &Path, ports: Ports) -> Result<Guarded, String> {
    let log = home.join("broker.log");
    let out = File::create(&log).expect("a fresh folder can be written to");
    let errors = out.try_clone().expect("a file can be shared");
    let mut process =
        Guarded::spawn(java("kafka.Kafka", home).arg(SETTINGS).stdout(out).stderr(errors), home);

    let outcome = within(START_LIMIT, || match process.ended() {
        Some(status) => Some(Err(format!("the broker ended with {status}"))),
        None => answers(ports).then_some(Ok(())),
    });
    let why = match outcome {
        Ok(Ok(())) => return Ok(process),
        Ok(Err(why)) => why,
        Err(late) => format!("the broker answered {late}"),
    };
    let log = fs::read_to_string(&log).unwrap_or_default();
    Err(format!("{why}; the end of its log:\n{}\n", tail(&log)))
}

fn format_storage(home: &Path, more: &[String]) -> Result<(), String> {
    // Any 16 bytes in url-safe base64 are a cluster id; these are 22 such digits.
    let cluster = format!("agora{:017}", rand::random_range(0..u64::pow(10, 17)));
    let output = java("kafka.tools.StorageTool", home)
        .args(["format", "--standalone", "-t", &cluster, "-c", SETTINGS])
        .args(more)
        .output()
        .map_err(|error| format!("start java: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("Kafka's storage tool failed: {output:?}")),
    }
}

/// A command that runs a main class of Kafka in `home`.
fn java(class: &str, home: &Path) -> Command {
    let mut command = Command::new("java");
    command
        // A small broker next to a compiler on two cores: a quick start matters more than speed.
        .args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
        .arg("-Dorg.apache.logging.log4j.level=WARN")
        .arg("-cp")
        .arg(libs().join("*"))
        .arg(class)
        .stdin(Stdio::null())
        .current_dir(home);
    command
}

fn properties(ports: Ports, home: &Path, extra: &Extra) -> String {
    let Ports { clients, controller, behind } = ports;
    let listener = |port| format!(",BEHIND://127.0.0.1:{port}");
    let each = |text: fn(&(&str, &str, u16)) -> String| -> String {
        extra.doors.iter().map(text).collect()
    };
    let doors = each(|(name, _, port)| format!(",{name}://127.0.0.1:{port}"));
    let protocols = each(|(name, protocol, _)| format!(",{name}:{protocol}"));
    let listens = behind.map(|it| listener(it.port)).unwrap_or_default() + &doors;
    let advertises = behind.map(|it| listener(it.proxy)).unwrap_or_default() + &doors;
    let behind_speaks = extra.behind.unwrap_or("PLAINTEXT");
    let more = &extra.settings;
    let data = home.join("data");
    let data = names::text(&data);
    format!(
        "\
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{clients},CONTROLLER://127.0.0.1:{controller}{listens}
advertised.listeners=PLAINTEXT://127.0.0.1:{clients}{advertises}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,BEHIND:{behind_speaks}{protocols}
log.dirs={data}
# One node, and topics of its own that are made quickly.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
# A broker that was killed and comes back is kept waiting until its former self has timed out.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
{more}"
    )
}

/// Whether a client finds the broker ready; an open port would prove less.
fn answers(ports: Ports) -> bool {
    if TcpStream::connect(("127.0.0.1", ports.clients)).is_err() {
        return false;
    }
    let consumer: BaseConsumer =
        client(&ports.bootstrap()).create().expect("the settings are right");
    consumer
        .fetch_metadata(None, Duration::from_secs(2))
        .is_ok_and(|metadata| !metadata.brokers().is_empty())
}

fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    config
}

fn given() -> Option<String> {
    env::var(GIVEN).ok().filter(|bootstrap| !bootstrap.is_empty())
}

/// The folder in which `tests/run` puts Kafka's jars, by the same rule, so that a plain `cargo
/// test` finds them too.
fn libs() -> PathBuf {
    let libs = env::var_os(LIBS).map_or_else(libs_in_cache, PathBuf::from);
    assert!(libs.is_dir(), "no Kafka in {}: run tests/run once, it fetches one", libs.display());
    libs
}

fn libs_in_cache() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env::var_os("HOME").expect("HOME is set")).join(".cache"));
    let checksum = digest(&SHA256, include_bytes!("../../kafka/pom.xml"));
    let version: String =
        checksum.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    cache.join("agora-rtm-bridge").join(format!("kafka-{version}"))
}
