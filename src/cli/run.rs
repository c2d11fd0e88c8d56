//! `run`: the daemon.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use sd_notify::NotifyState;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::{Failure, WRONG_CONFIGURATION, asked_to_stop, settings};
use crate::config::LogFormat;
use crate::daemon::{Daemon, Waiting};
use crate::kafka::Cluster;
use crate::observe::logs;

/// Number of keep-alives per systemd watchdog timeout.
const MEALS: u32 = 3;

/// Maximum time for systemd to accept a message. It accepts them at once unless it hangs.
const SYSTEMD_LISTENS: Duration = Duration::from_secs(1);

/// Run the daemon
///
/// SIGTERM or SIGINT stops it gracefully: it sends no new requests, waits for the answers in
/// flight, and delivers everything within `shutdown_grace`. Pages that are not delivered by then
/// wait on disk or in Kafka for the next start. The wait for Kafka ends early if Kafka has
/// confirmed nothing for five seconds, or at a second signal.
#[derive(Debug, Args)]
#[command(after_long_help = TEACH)]
pub(super) struct Run {
    /// The configuration file; not needed if environment variables set every required key
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

const TEACH: &str = "\
EXAMPLES

  A minimal configuration, agora-rtm-bridge.toml:
    data_dir = \"data\"
    kafka.bootstrap_servers = \"127.0.0.1:9092\"

    [[apps]]
    app_id = \"876922cbca0098dff4323566daa89675\"
    auth.customer_id = \"…\"
    auth.customer_secret_file = \"agora-secret\"

  If you have no Agora account, replace [[apps]] and everything below it with
  the output of `agora-rtm-bridge simulate`.

  agora-rtm-bridge check --config agora-rtm-bridge.toml
  agora-rtm-bridge run --config agora-rtm-bridge.toml

  Without a file; variables also override single keys of a file:
    export AGORA_RTM_BRIDGE__KAFKA__BOOTSTRAP_SERVERS=kafka:9092
    export AGORA_RTM_BRIDGE__APPS__0__APP_ID=876922cbca0098dff4323566daa89675
    export AGORA_RTM_BRIDGE__APPS__0__AUTH__CUSTOMER_ID=…
    export AGORA_RTM_BRIDGE__APPS__0__AUTH__CUSTOMER_SECRET_FILE=/run/secrets/agora
    agora-rtm-bridge run

  Is it healthy, and if not, why?
    curl 127.0.0.1:9464/ready

EXIT CODES

  0 stopped on request; 1 failure, or stopped with pages undelivered (the next
  start delivers them); 2 usage error; 78 invalid configuration.";

pub(super) async fn run(args: Run) -> Result<(), Failure> {
    let settings = settings::load(args.config.as_deref())?;
    let format = match settings.log.format {
        LogFormat::Text => logs::Format::Text,
        LogFormat::Json => logs::Format::Json,
    };
    logs::init(format, &settings.log.level).map_err(|error| Failure::of(&error))?;
    logs::abort_at_panic();
    let first_signal = asked_to_stop()?;
    let grace = settings.shutdown_grace;
    let kafka = Cluster::new(settings.kafka.clone(), &settings.instance);
    // librdkafka would reject its options at every attempt: fail now, not after hours of draining.
    kafka.check_settings().map_err(|error| Failure {
        message: format!("invalid configuration: {error}"),
        code: WRONG_CONFIGURATION,
    })?;
    let (daemon, _) = Daemon::launch(settings, kafka).await.map_err(|error| Failure::of(&error))?;
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
            warn!("second signal: no longer waiting for Kafka");
            give_up.cancel();
            stop.await
        }
    };
    info!(accounts = %accounts.total(), %waiting, "stopped");
    undelivered(waiting)
}

/// Notifies systemd; does nothing where systemd didn't start the process. The call blocks while
/// systemd doesn't read its socket, and neither the loops nor a stop may wait for that.
async fn tell_systemd(state: NotifyState<'static>) {
    timeout(SYSTEMD_LISTENS, notify(state)).await.ok();
}

async fn notify(state: NotifyState<'static>) {
    spawn_blocking(move || drop(sd_notify::notify(&[state]))).await.ok();
}

/// Sends keep-alives to systemd's watchdog, if it is enabled, until the daemon has stopped. It is a
/// task like those that poll and publish, so if the runtime stalls, the keep-alives stop too.
fn feed_watchdog(daemon: &Daemon) {
    let Some(patience) = sd_notify::watchdog_enabled() else { return };
    let (tasks, stop) = daemon.background();
    let stop = stop.clone();
    tasks.spawn(async move {
        let feed = async {
            loop {
                sleep(patience / MEALS).await;
                // No timeout here: abandoned blocking calls would pile up.
                notify(NotifyState::Watchdog).await;
            }
        };
        stop.run_until_cancelled_owned(feed).await;
    });
}

fn undelivered(waiting: Waiting) -> Result<(), Failure> {
    if waiting.is_nothing() {
        return Ok(());
    }
    Err(Failure {
        message: format!("stopped with {waiting} undelivered; the next start delivers them"),
        code: 1,
    })
}
