//! Starts the daemon of this process: the HTTP port, the client for Agora, the journal, the loops,
//! and the status pages.

use std::io;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use tokio::net::TcpListener;
use tracing::{info, warn};

use super::{Daemon, Parts, open_files};
use crate::agora::http::{Http, HttpError, Stale};
use crate::config::Settings;
use crate::journal;
use crate::journal::{Journal, OpenError};
use crate::kafka::Cluster;
use crate::model::{Clock, Incarnation};
use crate::observe::health::Trouble;
use crate::observe::metrics::Metrics;
use crate::observe::{http, logs, process};

/// Version, commit and librdkafka version of this program, as shown by `--version` and in the first
/// log line.
pub static VERSION: LazyLock<String> = LazyLock::new(|| {
    let librdkafka = rdkafka::util::get_rdkafka_version().1;
    format!("{} (commit {}, librdkafka {librdkafka})", env!("CARGO_PKG_VERSION"), process::COMMIT)
});

/// Why the daemon can't start.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The port of the status pages can't be opened.
    #[error("listen on {listen} (http.listen): {cause}{}", remedy(cause))]
    Listen {
        /// `http.listen`.
        listen: SocketAddr,
        /// The cause.
        cause: io::Error,
    },
    /// Another bridge uses both the data directory and the port.
    #[error("{journal}; {port}")]
    Runs {
        /// The error about the data directory.
        journal: OpenError,
        /// The error about the port.
        port: Box<LaunchError>,
    },
    /// Certificates or keys for Agora can't be read.
    #[error(transparent)]
    Transport(#[from] HttpError),
    /// The journal can't be opened.
    #[error(transparent)]
    Journal(#[from] OpenError),
}

impl Daemon {
    /// Starts the daemon and its status pages. Returns the address of the pages.
    ///
    /// # Errors
    ///
    /// See [`LaunchError`]. No request has been sent to Agora by then.
    pub async fn launch(
        settings: Settings,
        kafka: Cluster,
    ) -> Result<(Self, SocketAddr), LaunchError> {
        // Everything else that can fail comes before the journal is opened: only the last step of a
        // start may change anything.
        let (listener, listen) = listen(&settings).await?;
        let transport = Http::new(&settings.agora)?;
        let mut metrics = Metrics::new();
        process::register(&mut metrics, &rdkafka::util::get_rdkafka_version().1);
        logs::register(&mut metrics);
        let clock = Clock::system();
        let (journal, recovered) = Journal::open(
            &settings.data_dir,
            settings.journal.max_size,
            Incarnation::from_u128(rand::random()),
            clock.now(),
        )?;
        announce(&settings, &journal, listen);
        if let Some(exposed) = journal::exposure(&settings.data_dir) {
            warn!("{exposed}");
        }
        open_files::raise_limit(&settings);
        let seed = rand::random::<u32>().into();
        let stale = transport.stale();
        let parts = Parts { settings, transport, kafka, journal, recovered, clock, seed };
        let daemon = Self::start(parts, &mut metrics);
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
}

/// Opens the port of the status pages. If a second bridge is started by mistake, it conflicts with
/// the first over both data directory and port; the error names both.
async fn listen(settings: &Settings) -> Result<(TcpListener, SocketAddr), LaunchError> {
    let bound = TcpListener::bind(settings.http.listen).await;
    let bound = bound.and_then(|listener| {
        let address = listener.local_addr()?;
        Ok((listener, address))
    });
    bound.map_err(|cause| {
        let is_taken = cause.kind() == ErrorKind::AddrInUse;
        let port = LaunchError::Listen { listen: settings.http.listen, cause };
        let data_dir = settings.data_dir.clone();
        if is_taken && journal::is_in_use(&data_dir).unwrap_or(false) {
            let holder = journal::holder(&data_dir);
            let journal = OpenError::InUse { data_dir, holder };
            return LaunchError::Runs { journal, port: Box::new(port) };
        }
        port
    })
}

fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        ErrorKind::AddrInUse => {
            "; another process uses the port: stop it, or configure another port"
        }
        _ => "",
    }
}

/// Logs the start and its parameters.
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

/// New certificates can't be read, so the old ones stay in use.
fn old_certificates(Stale { reason, since }: Stale) -> Trouble {
    let reason = format!("failed to {reason}; the old certificates and keys for Agora stay in use");
    Trouble { reason, since }
}
