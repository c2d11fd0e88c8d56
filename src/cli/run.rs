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
    // What librdkafka does not take it never will: better told now than after hours of draining.
    kafka.check_settings().map_err(|error| Failure {
        message: format!("the configuration is wrong: {error}"),
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
            warn!("second signal: giving up the wait for Kafka");
            give_up.cancel();
            stop.await
        }
    };
    info!(accounts = %accounts.total(), %waiting, "stopped");
    undelivered(waiting)
}

/// Tells systemd something; outside of it there is nobody to tell. The call blocks while systemd
/// doesn't read its socket, and neither the loops nor a stop may wait for that.
async fn tell_systemd(state: NotifyState<'static>) {
    timeout(SYSTEMD_LISTENS, notify(state)).await.ok();
}

async fn notify(state: NotifyState<'static>) {
    spawn_blocking(move || drop(sd_notify::notify(&[state]))).await.ok();
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

fn undelivered(waiting: Waiting) -> Result<(), Failure> {
    if waiting.is_nothing() {
        return Ok(());
    }
    Err(Failure {
        message: format!("stopped with {waiting} undelivered; the next start goes on with them"),
        code: 1,
    })
}
