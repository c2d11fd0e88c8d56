//! `run`: the daemon.

use std::ffi::OsString;
use std::io;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::getrlimit;
use rustix::process::setrlimit;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio::time::timeout;
use tracing::info;
use tracing::warn;

use super::Failure;
use super::VERSION;
use super::WRONG_CONFIGURATION;
use super::asked_to_stop;
use crate::agora::http::Http;
use crate::agora::http::Stale;
use crate::config;
use crate::config::LogFormat;
use crate::config::Settings;
use crate::daemon::Daemon;
use crate::daemon::Parts;
use crate::daemon::Waiting;
use crate::journal;
use crate::journal::Journal;
use crate::journal::OpenError;
use crate::kafka::Attic;
use crate::kafka::Cluster;
use crate::model::Clock;
use crate::model::Incarnation;
use crate::observe::health::Trouble;
use crate::observe::http;
use crate::observe::logs;
use crate::observe::metrics::Metrics;
use crate::observe::process;

/// Descriptors that a feed may need: a connection, and one beside it where the first is silent.
const FILES_A_FEED: usize = 2;

/// Descriptors for everything else: journal, Kafka, status pages.
const OTHER_FILES: usize = 256;

/// How often systemd's watchdog is fed within its patience.
const MEALS: u32 = 3;

/// How long to wait for systemd to take a message. It takes them at once, unless it hangs.
const SYSTEMD_LISTENS: Duration = Duration::from_secs(1);

/// Run the daemon
///
/// SIGTERM or SIGINT stops it in order: no new requests, answers that are out are waited for,
/// everything is delivered within `shutdown_grace`, or what is not delivered waits on disk or in
/// Kafka for the next start. Kafka is not waited for when it has confirmed nothing for five seconds,
/// nor after a second signal.
#[derive(Debug, Args)]
#[command(after_long_help = TEACH)]
pub(super) struct Run {
    /// The configuration; optional where the environment says it all
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

const TEACH: &str = "\
EXAMPLES

  The smallest configuration, agora-rtm-bridge.toml:
    data_dir = \"data\"
    kafka.bootstrap_servers = \"127.0.0.1:9092\"

    [[apps]]
    app_id = \"876922cbca0098dff4323566daa89675\"
    auth.customer_id = \"…\"
    auth.customer_secret_file = \"agora-secret\"

  Without an account: what `agora-rtm-bridge simulate` prints takes the place
  of [[apps]] and all below it.

  agora-rtm-bridge check --config agora-rtm-bridge.toml
  agora-rtm-bridge run --config agora-rtm-bridge.toml

  Without a file, and with one key over what a file says:
    export AGORA_RTM_BRIDGE__KAFKA__BOOTSTRAP_SERVERS=kafka:9092
    export AGORA_RTM_BRIDGE__APPS__0__APP_ID=876922cbca0098dff4323566daa89675
    export AGORA_RTM_BRIDGE__APPS__0__AUTH__CUSTOMER_ID=…
    export AGORA_RTM_BRIDGE__APPS__0__AUTH__CUSTOMER_SECRET_FILE=/run/secrets/agora
    agora-rtm-bridge run

  Is all well, and if not, why?
    curl 127.0.0.1:9464/ready

EXIT CODES

  0 stopped as asked; 1 failed, or stopped with something undelivered (the next
  start goes on with it); 2 wrong usage; 78 wrong configuration.";

pub(super) async fn run(args: Run) -> Result<(), Failure> {
    let settings = load(args.config.as_deref())?;
    let format = match settings.log.format {
        LogFormat::Text => logs::Format::Text,
        LogFormat::Json => logs::Format::Json,
    };
    logs::init(format, &settings.log.level).map_err(|error| Failure::of(&error))?;
    logs::abort_at_panic();
    let first_signal = asked_to_stop()?;
    let grace = settings.shutdown_grace;
    let kafka = Cluster::new(settings.kafka.clone(), &settings.instance);
    // What librdkafka does not take it never will: better told now than after hours of draining.
    kafka.check_settings().map_err(|error| Failure {
        message: format!("the configuration is wrong: {error}"),
        code: WRONG_CONFIGURATION,
    })?;
    let (daemon, _) = start(settings, kafka).await?;
    tell_systemd(NotifyState::Ready).await;
    feed_watchdog(&daemon);
    first_signal.await;
    let second_signal = asked_to_stop()?;
    tell_systemd(NotifyState::Stopping).await;
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
    // Whatever may fail comes before the journal: only the last step of a start changes anything.
    let listener = TcpListener::bind(settings.http.listen)
        .await
        .map_err(|error| not_listening(&settings, &error))?;
    let listen = listener.local_addr().map_err(|error| Failure::of(&error))?;
    let transport = Http::new(&settings.agora).map_err(|error| Failure::of(&error))?;
    let mut metrics = Metrics::new();
    process::register(&mut metrics, &rdkafka::util::get_rdkafka_version().1);
    logs::register(&mut metrics);
    let clock = Clock::system();
    let (journal, recovered) = Journal::open(
        &settings.data_dir,
        settings.journal.max_size,
        Incarnation::from_u128(rand::random()),
        clock.now(),
    )
    .map_err(|error| Failure::of(&error))?;
    announce(&settings, &journal, listen);
    if let Some(exposed) = journal::exposure(&settings.data_dir) {
        warn!("{exposed}");
    }
    make_room_for_connections(&settings);
    let seed = rand::random::<u32>().into();
    let stale = transport.stale();
    let attic = Attic::in_folder(&settings.data_dir);
    let parts = Parts { settings, transport, kafka, attic, journal, recovered, clock, seed };
    let daemon = Daemon::start(parts, &mut metrics);
    let report = daemon.report().clone();
    logs::watch(report.health());
    report.health().watch("certificates", move || stale().map(old_certificates));
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

/// Who has the port. A second bridge by mistake has data directory and port in common with the first,
/// and is told of both.
fn not_listening(settings: &Settings, error: &io::Error) -> Failure {
    let listen = format!("listen on {} (http.listen): {error}", settings.http.listen);
    let data_dir = settings.data_dir.clone();
    let message = match error.kind() {
        ErrorKind::AddrInUse if journal::is_in_use(&data_dir).unwrap_or(false) => {
            let holder = journal::holder(&data_dir);
            format!("{}; {listen}", OpenError::InUse { data_dir, holder })
        }
        ErrorKind::AddrInUse => {
            format!("{listen}; another process has the port: end it or use another")
        }
        _ => listen,
    };
    Failure { message, code: 1 }
}

/// Reads the configuration.
pub(super) fn load(file: Option<&Path>) -> Result<Settings, Failure> {
    config::load(file, environment()).map_err(|faults| Failure::configuration(&faults))
}

/// The variables that are text.
pub(super) fn environment() -> impl Iterator<Item = (String, String)> {
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text)
}

/// The line that says what will be done.
fn announce(settings: &Settings, journal: &Journal, listen: SocketAddr) {
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
        delivery = %settings.kafka.delivery,
        waiting_in_journal = journal.backlog().borrow().entries,
        %listen,
        "starting"
    );
}

/// Tells systemd something; outside of it there is nobody to tell. The call blocks while systemd
/// doesn't read its socket, and neither the loops nor a stop may wait for that.
async fn tell_systemd(state: NotifyState<'static>) {
    timeout(SYSTEMD_LISTENS, notify(state)).await.ok();
}

async fn notify(state: NotifyState<'static>) {
    spawn_blocking(move || drop(sd_notify::notify(&[state]))).await.ok();
}

/// Certificates for Agora are old, because new ones can't be read.
fn old_certificates(Stale { reason, since }: Stale) -> Trouble {
    let reason = format!("failed to {reason}; the old certificates and keys for Agora stay in use");
    Trouble { reason, since }
}

/// Keeps systemd's watchdog quiet, where there is one, until the daemon has stopped. A task like
/// those that poll and publish: when the runtime runs none of them any more, it ends with them.
fn feed_watchdog(daemon: &Daemon) {
    let Some(patience) = sd_notify::watchdog_enabled() else { return };
    let (tasks, stop) = daemon.background();
    let stop = stop.clone();
    tasks.spawn(async move {
        let feed = async {
            loop {
                sleep(patience / MEALS).await;
                // Without a limit: calls that block would pile up.
                notify(NotifyState::Watchdog).await;
            }
        };
        stop.run_until_cancelled_owned(feed).await;
    });
}

/// Raises the limit of open files to what so many feeds may need; many systems start a process with
/// 1,024 and let it ask for more.
fn make_room_for_connections(settings: &Settings) {
    let feeds: usize =
        settings.apps.iter().map(|app| app.regions.len() * app.endpoints.len()).sum();
    let needed = u64::try_from(feeds * FILES_A_FEED + OTHER_FILES).unwrap_or(u64::MAX);
    let before = getrlimit(Resource::Nofile);
    let Some(wanted) = raised(&before, needed) else { return };
    let limit = Rlimit { current: Some(wanted), ..before };
    let allowed = match setrlimit(Resource::Nofile, limit) {
        Ok(()) => wanted,
        Err(_) => before.current.unwrap_or(wanted),
    };
    if allowed < needed {
        warn!(
            allowed,
            needed,
            "fewer files may be open than so many feeds can need at once, and requests may fail for \
             that; raise the limit (ulimit -n, LimitNOFILE)"
        );
    }
}

/// The limit to ask for; `None` where the present one is enough.
fn raised(limit: &Rlimit, needed: u64) -> Option<u64> {
    let is_enough = limit.current.is_none_or(|current| current >= needed);
    (!is_enough).then(|| limit.maximum.map_or(needed, |maximum| maximum.min(needed)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_open_files_is_raised_to_what_is_needed_and_never_lowered() {
        let check = |current, maximum, expected| {
            assert_eq!(raised(&Rlimit { current, maximum }, 2_000), expected);
        };
        check(Some(1_024), Some(4_096), Some(2_000));
        check(Some(1_024), None, Some(2_000));
        check(Some(1_024), Some(1_500), Some(1_500));
        check(Some(20_000), Some(20_000), None);
        check(None, None, None);
    }
}
