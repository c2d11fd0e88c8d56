//! The simulated Agora, served over HTTP by the test process itself, so that a test can inspect its
//! ledger and change its faults.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::MutexGuard;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agora_rtm_bridge::model::{Endpoint, Timestamp};
use agora_rtm_bridge::simulator::{Fault, Recorded, Script, Server, World, serve};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::names::Names;
use super::within;

/// An Agora on loopback that stops when the value is dropped.
pub(crate) struct Agora {
    server: Server,
    /// Its threads run the server.
    _runtime: Runtime,
}

/// Which hosts the bridge polls.
#[derive(Clone, Copy)]
pub(crate) enum Hosts {
    /// The bridge drains every region.
    EachRegion,
    /// The bridge drains one region through these hosts, given as regions of the script in failover
    /// order.
    InOrder(&'static [usize]),
}

// === impl Agora ===

impl Agora {
    /// Serves a world whose clock shows the real time, like the bridge's.
    pub(crate) fn start(script: Script) -> Self {
        script.check().expect("the script makes sense");
        let world = World::new(Script { epoch: wall_clock(), ..script });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("agora")
            .enable_all()
            .build()
            .expect("a runtime can be built");
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listen = vec![any; world.script().regions.len()];
        let server = runtime
            .block_on(serve(world, listen, &TaskTracker::new(), CancellationToken::new()))
            .expect("loopback has free ports");
        Self { server, _runtime: runtime }
    }

    /// The address of a region.
    pub(crate) fn address(&self, region: usize) -> SocketAddr {
        *self.server.addresses.get(region).expect("the script has that region")
    }

    /// The world, to inspect or change it.
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.server.world()
    }

    /// Simulated time.
    pub(crate) fn now(&self) -> Duration {
        self.server.now()
    }

    /// Every event so far, with its outcome.
    pub(crate) fn events(&self) -> Vec<Recorded> {
        self.world().ledger().events().collect()
    }

    /// Replaces the faults.
    pub(crate) fn set_faults(&self, faults: Vec<Fault>) {
        self.world().set_faults(faults);
    }

    /// Waits until simulated time `moment`.
    pub(crate) fn wait_for_moment(&self, moment: Duration) {
        let left = moment.saturating_sub(self.now()) + Duration::from_secs(10);
        let reached = within(left, || (self.now() >= moment).then_some(()));
        reached.unwrap_or_else(|late| panic!("simulated time was {moment:?} {late}"));
    }

    /// Waits until `enough` returns true for the world.
    pub(crate) fn wait_until(
        &self,
        what: &str,
        limit: Duration,
        mut enough: impl FnMut(&World) -> bool,
    ) {
        let outcome = within(limit, || enough(&self.world()).then_some(()));
        if let Err(late) = outcome {
            panic!("{what}: {late}; {:?}", self.world().ledger().total());
        }
    }

    /// Stops the load and waits until everything is fetched from these regions.
    pub(crate) fn come_to_rest(&self, regions: &[usize], limit: Duration) {
        let copied = {
            let mut world = self.world();
            world.stop_load();
            world.now() + world.script().copy_delay.to
        };
        self.wait_until("every buffer is empty", limit, |world| {
            world.now() > copied && regions.iter().all(|region| backlog(world, *region) == 0)
        });
    }

    /// A configuration that drains this Agora into the topics of `names`.
    pub(crate) fn config(&self, names: &Names, bootstrap: &str, hosts: Hosts) -> String {
        let kafka = names.kafka_tables(bootstrap);
        // Longer than the slowest machine takes to deliver the rest.
        format!(
            "shutdown_grace = \"90s\"\n{kafka}partitions = 3\npage_partitions = 4\n{}",
            self.apps(hosts)
        )
    }

    /// The `[[apps]]` tables of its App IDs, to be appended to a configuration.
    pub(crate) fn apps(&self, hosts: Hosts) -> String {
        let world = self.world();
        let url = |region: usize| self.server.url(region).expect("the script has that region");
        let hosts = match hosts {
            Hosts::InOrder(regions) => {
                format!(
                    "hosts = {:?}",
                    regions.iter().map(|region| url(*region)).collect::<Vec<_>>()
                )
            }
            Hosts::EachRegion => {
                let regions = world.script().regions.iter().enumerate();
                let regions: Vec<_> = regions
                    .map(|(index, region)| {
                        format!("{{ name = {:?}, hosts = [{:?}] }}", region.name, url(index))
                    })
                    .collect();
                format!("regions = [{}]", regions.join(", "))
            }
        };
        let app = |app: &agora_rtm_bridge::simulator::AppScript| {
            let auth = match app.tokens.first() {
                Some(token) => {
                    let user = token.user_id.iter().map(|user| format!("user_id = {user:?}\n"));
                    format!("token = {:?}\n{}", token.token, user.collect::<String>())
                }
                None => format!(
                    "customer_id = {:?}\ncustomer_secret = {:?}\n",
                    app.customer_id, app.customer_secret
                ),
            };
            format!("\n[[apps]]\napp_id = \"{}\"\n{hosts}\n[apps.auth]\n{auth}", app.app_id)
        };
        world.script().apps.iter().map(app).collect()
    }
}

/// Number of events that wait in a region.
pub(crate) fn backlog(world: &World, region: usize) -> usize {
    let apps = 0..world.script().apps.len();
    apps.flat_map(|app| Endpoint::ALL.map(|endpoint| world.backlog(region, app, endpoint))).sum()
}

fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    Timestamp::from_millis(0).after(since)
}
