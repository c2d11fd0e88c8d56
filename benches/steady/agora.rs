//! The simulated Agora of one measurement.

use std::thread;
use std::time::Duration;

use agora_rtm_bridge::model::{Clock, Endpoint};
use agora_rtm_bridge::simulator::{
    AppScript, Ledger, Load, Network, RampPoint, Script, Server, Spread, World, serve,
};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::say;

/// App IDs in one region, served in this process.
pub(crate) struct Agora {
    /// With the credentials from [`Self::app_tables`].
    pub(crate) apps: Vec<AppScript>,
    pub(crate) url: String,
    server: Server,
    runtime: Runtime,
    tracker: TaskTracker,
    stop: CancellationToken,
}

/// The name of the server's thread.
pub(crate) const THREAD: &str = "agora";

/// When the load starts; the process under test must be ready by then.
const LOAD_FROM: Duration = Duration::from_secs(4);

/// When the load has grown to its rate. A sudden jump would be a burst, and could overflow Agora's
/// buffers of 2,000 events before any poller can know: realistic, but not a steady load.
pub(crate) const STEADY_FROM: Duration = Duration::from_secs(9);

/// The round trip to Agora under load.
pub(crate) fn usual_way() -> Spread {
    Spread::millis(20, 40)
}

// === impl Agora ===

impl Agora {
    /// One App ID: `rate` events a second from [`STEADY_FROM`] on, half of them on each endpoint.
    pub(crate) fn start(rate: u32, rtt: Spread) -> Self {
        let mut app = AppScript::numbered(0);
        app.user_events = steady(f64::from(rate) / 2.0);
        app.channel_events = steady(f64::from(rate) / 2.0);
        Self::serve(vec![app], Network { rtt, ..Network::default() })
    }

    /// Serves these App IDs; event times are by the machine's clock.
    pub(crate) fn serve(apps: Vec<AppScript>, network: Network) -> Self {
        let mut script = Script { apps: apps.clone(), network, ..Script::default() };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(THREAD)
            .enable_all()
            .build()
            .expect("a runtime can be started");
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        script.epoch = Clock::system().now();
        let any_port = "127.0.0.1:0".parse().expect("it is an address");
        let server = runtime
            .block_on(serve(World::new(script), vec![any_port], &tracker, stop.clone()))
            .expect("a port is free");
        let url = server.url(0).expect("there is one region");
        Self { apps, url, server, runtime, tracker, stop }
    }

    /// The first App ID.
    pub(crate) fn app(&self) -> &AppScript {
        self.apps.first().expect("it was given at least one")
    }

    /// The `[[apps]]` tables of a configuration.
    pub(crate) fn app_tables(&self) -> String {
        let table = |app: &AppScript| {
            let AppScript { app_id, customer_id, customer_secret, .. } = app;
            format!(
                r#"
[[apps]]
app_id = "{app_id}"
hosts = ["{}"]
auth = {{ customer_id = "{customer_id}", customer_secret = "{customer_secret}" }}
"#,
                self.url
            )
        };
        self.apps.iter().map(table).collect()
    }

    /// Time since its start.
    pub(crate) fn now(&self) -> Duration {
        self.server.now()
    }

    /// The wall clock at a moment of its time, in milliseconds since 1970.
    pub(crate) fn wall_clock(&self, at: Duration) -> i64 {
        self.server.world().script().epoch.after(at).as_millis()
    }

    /// Waits for a moment of its time.
    ///
    /// # Panics
    ///
    /// If that moment has passed: the measurement would miss its subject.
    pub(crate) fn wait_for(&self, what: &str, at: Duration) {
        let rest = at.checked_sub(self.now());
        say::wait(
            what,
            rest.unwrap_or_else(|| panic!("too late for {what}: the start took too long")),
        );
    }

    /// Totals of its ledger.
    pub(crate) fn ledger<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(self.server.world().ledger())
    }

    /// Stops the load and waits until all events have been fetched.
    pub(crate) fn come_to_rest(&self) {
        self.server.world().stop_load();
        while self.ledger(|ledger| ledger.total().buffered) > 0 {
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The endpoint's path below an App ID.
    pub(crate) fn path(&self, endpoint: Endpoint) -> String {
        let AppScript { app_id, .. } = self.app();
        format!("{}/dev/v2/project/{app_id}/rtm/vendor/{}", self.url, endpoint.name())
    }
}

impl Drop for Agora {
    fn drop(&mut self) {
        self.stop.cancel();
        self.tracker.close();
        self.runtime.block_on(self.tracker.wait());
    }
}

fn steady(rate: f64) -> Load {
    let ramp = vec![RampPoint { at: LOAD_FROM, rate: 0.0 }, RampPoint { at: STEADY_FROM, rate }];
    Load { ramp, ..Load::default() }
}
