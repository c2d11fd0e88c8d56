//! `run`: the daemon.

use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use tokio::net::TcpListener;
use tracing::error;
use tracing::info;
use tracing::warn;

use super::Failure;
use super::VERSION;
use super::asked_to_stop;
use crate::agora::http::Http;
use crate::config;
use crate::config::LogFormat;
use crate::config::Settings;
use crate::daemon::Daemon;
use crate::daemon::Parts;
use crate::daemon::Waiting;
use crate::journal::Journal;
use crate::kafka::Cluster;
use crate::model::Clock;
use crate::model::Incarnation;
use crate::observe::http;
use crate::observe::logs;
use crate::observe::metrics::Metrics;
use crate::observe::process;

/// Run the daemon
///
/// SIGTERM or SIGINT stops it in order: no new requests, answers that are out are waited for,
/// everything is delivered within `shutdown_grace`. A second signal gives up only the wait for
/// Kafka; what is not delivered then waits on disk or in Kafka for the next start.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// The configuration; optional where the environment says it all
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) async fn run(args: Run) -> Result<(), Failure> {
    let settings = load(args.config.as_deref())?;
    let format = match settings.log.format {
        LogFormat::Text => logs::Format::Text,
        LogFormat::Json => logs::Format::Json,
    };
    logs::init(format, &settings.log.level).map_err(|error| Failure::of(&error))?;
    let first_signal = asked_to_stop()?;
    let grace = settings.shutdown_grace;
    let kafka = Cluster::new(settings.kafka.clone(), &settings.instance);
    let (daemon, _) = start(settings, kafka).await?;
    // Outside of systemd there is nobody to tell.
    drop(sd_notify::notify(&[sd_notify::NotifyState::Ready]));
    first_signal.await;
    let second_signal = asked_to_stop()?;
    drop(sd_notify::notify(&[sd_notify::NotifyState::Stopping]));
    info!(waiting = %daemon.report().waiting(), ?grace, "stopping");
    let give_up = daemon.give_up();
    let accounts = daemon.report().accounts().clone();
    let stop = daemon.stop(grace);
    tokio::pin!(stop);
    let waiting = tokio::select! {
        waiting = &mut stop => waiting,
        () = second_signal => {
            warn!("second signal: giving up the wait for Kafka");
            give_up.cancel();
            stop.await
        }
    };
    info!(accounts = %accounts.total(), %waiting, "stopped");
    undelivered(waiting)
}

/// Starts the daemon and its status pages; where these are.
pub(super) async fn start(
    settings: Settings,
    kafka: Cluster,
) -> Result<(Daemon, SocketAddr), Failure> {
    let failed = |what: &str, error: &dyn std::fmt::Display| Failure {
        message: format!("{what}: {error}"),
        code: 1,
    };
    let listen = settings.http.listen;
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|error| failed(&format!("listen on {listen} (http.listen)"), &error))?;
    let listen = listener.local_addr().map_err(|error| Failure::of(&error))?;
    let clock = Clock::system();
    let (journal, recovered) = Journal::open(
        &settings.data_dir,
        settings.journal.max_size,
        Incarnation::from_u128(rand::random()),
        clock.now(),
    )
    .map_err(|error| Failure::of(&error))?;
    announce(&settings, &journal, recovered.killed_in_flight, listen);
    let transport = Http::new(&settings.agora).map_err(|error| Failure::of(&error))?;
    let mut metrics = Metrics::new();
    process::register(&mut metrics, &rdkafka::util::get_rdkafka_version().1);
    let seed = rand::random::<u32>().into();
    let parts = Parts { settings, transport, kafka, journal, recovered, clock, seed };
    let daemon = Daemon::start(parts, &mut metrics);
    let report = daemon.report().clone();
    let pages = http::Pages {
        metrics: Arc::new(metrics),
        health: report.health().clone(),
        status: Arc::new(move || report.status()),
    };
    let (tasks, stop) = daemon.background();
    let (tasks, stop) = (tasks.clone(), stop.clone());
    tasks.clone().spawn(async move { http::serve(listener, pages, stop, &tasks).await });
    Ok((daemon, listen))
}

/// Reads the configuration.
pub(super) fn load(file: Option<&Path>) -> Result<Settings, Failure> {
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    config::load(file, environment).map_err(|faults| Failure::configuration(&faults))
}

/// The line that says what will be done.
fn announce(settings: &Settings, journal: &Journal, killed_in_flight: u64, listen: SocketAddr) {
    let hosts: usize =
        settings.apps.iter().flat_map(|app| &app.regions).map(|region| region.hosts.len()).sum();
    let topics = &settings.kafka.topics;
    info!(
        version = VERSION.as_str(),
        instance = settings.instance,
        incarnation = %journal.incarnation(),
        apps = settings.apps.len(),
        hosts,
        kafka = settings.kafka.bootstrap_servers,
        user_events = topics.user_events,
        channel_events = topics.channel_events,
        delivery = ?settings.kafka.delivery,
        waiting_in_journal = journal.backlog().borrow().entries,
        %listen,
        "starting"
    );
    if killed_in_flight > 0 {
        error!(
            requests = killed_in_flight,
            "the last process ended while requests were out; their answers may be lost, and a gap \
             is published for each"
        );
    }
}

fn undelivered(waiting: Waiting) -> Result<(), Failure> {
    if waiting.is_nothing() {
        return Ok(());
    }
    Err(Failure {
        message: format!("stopped with {waiting} undelivered; the next start goes on with them"),
        code: 1,
    })
}
