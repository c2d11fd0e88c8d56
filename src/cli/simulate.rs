//! `simulate`: a simulated Agora on this machine, to develop against.
//!
//! The configuration to paste goes to stdout, as TOML with comments; progress goes to stderr.

use std::fmt::Write as _;
use std::io;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Level;

use crate::config::quoted;
use crate::model::Clock;
use crate::observe::logs;
use crate::simulator::{
    AppScript, Burst, Fault, FaultKind, FramingChoice, LEDGER_PATH, Ledger, Network, RegionScript,
    Script, ScriptError, Server, Spread, TEACH, World, serve,
};

const FIRST_PORT: u16 = 8190;

const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Simulate Agora on this machine: its two event endpoints as documented, with load and faults
#[derive(Debug, Args)]
#[command(after_long_help = TEACH)]
pub(super) struct Simulate {
    /// Address on which a region listens; repeat it for more regions [default: 127.0.0.1:8190]
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<SocketAddr>,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    faults: FaultArgs,
    #[command(flatten)]
    form: FormArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Load")]
struct LoadArgs {
    /// Number of App IDs
    #[arg(long, value_name = "N", default_value = "1")]
    apps: NonZeroU16,
    /// Events per second for each App ID
    #[arg(long, value_name = "EVENTS", default_value_t = 100.0)]
    rate: f64,
    /// Fraction of the events that are user events (0 to 1); the others are channel events
    #[arg(long, value_name = "SHARE", default_value_t = 0.3)]
    split: f64,
    /// A burst of this many channel events for each App ID at this time; may be repeated
    #[arg(long, value_name = "EVENTS@TIME")]
    burst: Vec<BurstArg>,
    /// Let both endpoints of an App ID share one buffer of 2,000 events
    #[arg(long)]
    shared_buffer: bool,
    /// Seed for all random choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Faults")]
struct FaultArgs {
    /// Range of round trip times; the two directions are drawn separately
    #[arg(long, value_name = "RANGE", default_value = "20ms..40ms")]
    rtt: Spread,
    /// Time from the head of a full page (1,000 events) to the end of its body; smaller pages take
    /// proportionally less [default: none]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    page_time: Option<Duration>,
    /// Fraction of the answers that are cut off: the same as --fault cut=SHARE
    #[arg(long, value_name = "SHARE")]
    cut: Option<f64>,
    /// A fault and the fraction of requests that it affects (0 to 1); may be repeated
    #[arg(long, value_name = "NAME=SHARE")]
    fault: Vec<FaultArg>,
    /// Close connections that have been idle for this long
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    idle_timeout: Option<Duration>,
    /// Fraction of the elements that are not events (0 to 1)
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    malformed: f64,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Form")]
struct FormArgs {
    /// Use the field names of older documents: channel_id and ts
    #[arg(long)]
    old_names: bool,
    /// Generate user and channel names with every character that Agora allows, and more
    #[arg(long)]
    wild_names: bool,
    /// Add fields that no document lists
    #[arg(long)]
    unknown_fields: bool,
    /// Framing of response bodies
    #[arg(long, value_enum, default_value = "length")]
    framing: FramingArg,
}

/// `5000@30s`
#[derive(Clone, Copy, Debug)]
struct BurstArg(Burst);

/// `cut=0.01`
#[derive(Clone, Debug)]
struct FaultArg(Fault);

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FramingArg {
    Length,
    Chunked,
    UntilClose,
    Mixed,
}

/// Why the simulation failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SimulateError {
    /// The arguments are out of range.
    #[error("simulate with these arguments")]
    Script(#[source] ScriptError),
    /// An address is not available.
    #[error("listen on {addresses}")]
    Listen {
        /// The addresses.
        addresses: String,
        /// The cause.
        #[source]
        cause: io::Error,
    },
    /// The configuration can't be printed.
    #[error("write to stdout")]
    Print(#[source] io::Error),
}

/// Simulates Agora until `stop`.
///
/// # Errors
///
/// The arguments are out of range, or an address is not available.
pub(super) async fn run(
    args: Simulate,
    tracker: TaskTracker,
    stop: CancellationToken,
) -> Result<(), SimulateError> {
    let (script, addresses) = args.prepare()?;
    let told = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let server = serve(World::new(script.clone()), addresses, &tracker, stop.clone())
        .await
        .map_err(|cause| SimulateError::Listen { addresses: told, cause })?;
    print(&greeting(&script, &server))?;
    while stop.run_until_cancelled(sleep(PROGRESS_EVERY)).await.is_some() {
        let line = in_short(server.world().ledger());
        // Failing to print must not stop the simulation.
        logs::say(Level::INFO, &format!("{line}\n"));
    }
    let farewell = farewell(server.world().ledger());
    print(&farewell)
}

fn print(text: &str) -> Result<(), SimulateError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(SimulateError::Print)
}

/// Describes the simulation, with a configuration to paste.
fn greeting(script: &Script, server: &Server) -> String {
    let mut text = format!("# A simulated Agora, seed {}. Press Ctrl-C to stop.\n", script.seed);
    let bases: Vec<String> = server.addresses.iter().map(|it| format!("http://{it}")).collect();
    for (region, base) in script.regions.iter().zip(&bases) {
        put(&mut text, format_args!("# region {}: {base}", region.name));
    }
    let base = bases.first().map_or("", String::as_str);
    put(&mut text, format_args!("# ledger: {base}{LEDGER_PATH}"));
    if let Some(AppScript { app_id, customer_id, customer_secret, .. }) = script.apps.first() {
        let path = format!("/dev/v2/project/{app_id}/rtm/vendor/user_events");
        put(&mut text, format_args!("# drain up to 1,000 events:"));
        put(&mut text, format_args!("#   curl -u {customer_id}:{customer_secret} {base}{path}"));
    }
    let is_plain_allowed = server.addresses.iter().all(|it| it.ip().is_loopback());
    for app in &script.apps {
        put(&mut text, format_args!("\n[[apps]]\napp_id = {}", quoted(app.app_id.as_str())));
        match (script.regions.as_slice(), bases.as_slice()) {
            ([_], [base]) => put(&mut text, format_args!("hosts = [{}]", quoted(base))),
            (regions, bases) => {
                let pairs = regions.iter().zip(bases).map(|(region, base)| {
                    format!("{{ name = {}, hosts = [{}] }}", quoted(&region.name), quoted(base))
                });
                let list = pairs.collect::<Vec<_>>().join(", ");
                put(&mut text, format_args!("regions = [{list}]"));
            }
        }
        if !is_plain_allowed {
            put(&mut text, format_args!("allow_plain_http = true"));
        }
        let (id, secret) = (quoted(&app.customer_id), quoted(&app.customer_secret));
        put(&mut text, format_args!("\n[apps.auth]\ncustomer_id = {id}"));
        put(&mut text, format_args!("customer_secret = {secret}"));
    }
    text
}

/// The ledger's totals as comments, so that the whole output is TOML.
fn farewell(ledger: &Ledger) -> String {
    let mut text = String::from("\n# What became of the events:\n");
    for app in ledger.summary().apps {
        put(&mut text, format_args!("# {}", app.app_id));
        for (name, it) in [("user_events", app.user_events), ("channel_events", app.channel_events)]
        {
            put(
                &mut text,
                format_args!(
                    "#   {name}: {} made = {} delivered + {} overwritten + {} torn + {} buffered; \
                     {} repeats",
                    it.made, it.delivered, it.overwritten, it.torn, it.buffered, it.repeats
                ),
            );
        }
        let it = app.requests;
        put(
            &mut text,
            format_args!(
                "#   {} requests, at most {} in a second, {} over the limit",
                it.asked, it.most_in_a_second, it.over_limit
            ),
        );
    }
    put(&mut text, format_args!("# {}", in_short(ledger)));
    text
}

fn in_short(ledger: &Ledger) -> String {
    let (it, requests) = (ledger.total(), ledger.all_requests());
    format!(
        "made {} delivered {} overwritten {} torn {} buffered {}; requests {} 429s {}",
        it.made,
        it.delivered,
        it.overwritten,
        it.torn,
        it.buffered,
        requests.asked,
        requests.over_limit
    )
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing into memory never fails");
}

// === impl Simulate ===

impl Simulate {
    /// The script, and an address for each of its regions.
    fn prepare(self) -> Result<(Script, Vec<SocketAddr>), SimulateError> {
        let mut script = self.script();
        script.check().map_err(SimulateError::Script)?;
        // Only counts are shown, and it may run for days, so individual events aren't recorded.
        script.keep_records = false;
        script.epoch = Clock::system().now();
        if self.listen.is_empty() {
            return Ok((script, vec![SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST_PORT))]));
        }
        Ok((script, self.listen))
    }

    /// Builds the script from the arguments.
    fn script(&self) -> Script {
        let Self { load, faults, form, .. } = self;
        let regions = match self.listen.len() {
            0 | 1 => vec![RegionScript::new("default")],
            count => (1..=count).map(|n| RegionScript::new(format!("region-{n}"))).collect(),
        };
        let cut = faults.cut.map(|share| Fault::new(FaultKind::Cut).share(share));
        let network = Network {
            rtt: faults.rtt,
            idle_timeout: faults.idle_timeout,
            framing: form.framing.into(),
            page_time: faults.page_time,
        };
        Script {
            seed: load.seed,
            apps: (0..usize::from(load.apps.get())).map(|index| self.app(index)).collect(),
            regions,
            network,
            shared_buffer: load.shared_buffer,
            faults: faults.fault.iter().map(|it| it.0.clone()).chain(cut).collect(),
            ..Script::default()
        }
    }

    fn app(&self, index: usize) -> AppScript {
        let Self { load, faults, form, .. } = self;
        let numbered = AppScript::numbered(index);
        let mut app = numbered.rates(load.rate * load.split, load.rate * (1.0 - load.split));
        app.channel_events.bursts = load.burst.iter().map(|it| it.0).collect();
        app.malformed = faults.malformed;
        app.wild_names = form.wild_names;
        app.unknown_fields = form.unknown_fields;
        app.dialect.old_names = form.old_names;
        app
    }
}

// === impl BurstArg ===

impl FromStr for BurstArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "must be a burst such as 5000@30s";
        let (events, at) = text.split_once('@').ok_or(FORM)?;
        let events = events.parse().map_err(|_| FORM)?;
        let at = humantime::parse_duration(at).map_err(|_| FORM)?;
        Ok(Self(Burst { at, events, over: Duration::ZERO }))
    }
}

// === impl FaultArg ===

impl FromStr for FaultArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || "must be a fault with its share, such as cut=0.01".to_owned();
        let (name, share) = text.split_once('=').ok_or_else(form)?;
        let kind: FaultKind = name.parse().map_err(|error| format!("`{name}` is {error}"))?;
        Ok(Self(Fault::new(kind).share(share.parse().map_err(|_| form())?)))
    }
}

// === impl FramingArg ===

impl From<FramingArg> for FramingChoice {
    fn from(arg: FramingArg) -> Self {
        match arg {
            FramingArg::Length => Self::Length,
            FramingArg::Chunked => Self::Chunked,
            FramingArg::UntilClose => Self::UntilClose,
            FramingArg::Mixed => Self::Mixed,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::simulator::DEFAULT_EPOCH;

    #[derive(Debug, Parser)]
    struct Arguments {
        #[command(flatten)]
        simulate: Simulate,
    }

    fn parsed(line: &str) -> Result<Simulate, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace()).map(|it| it.simulate)
    }

    fn prepared(line: &str) -> (Script, Vec<SocketAddr>) {
        parsed(line).unwrap().prepare().unwrap()
    }

    #[test]
    fn the_arguments_are_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn arguments_make_a_script() {
        let (script, addresses) = prepared(
            "simulate --apps 3 --rate 1000 --split 0.25 --burst 5000@30s --rtt 1ms..2ms --seed 9 \
             --page-time 700ms --fault throttled=0.1 --cut 0.5 --listen 127.0.0.1:0 --listen 127.0.0.1:0",
        );
        assert_eq!((script.apps.len(), script.regions.len(), addresses.len()), (3, 2, 2));
        assert_eq!(script.apps[2].user_events.rate, 250.0);
        assert_eq!(script.apps[2].channel_events.rate, 750.0);
        assert_eq!(script.apps[0].channel_events.bursts[0].at, Duration::from_secs(30));
        assert_eq!(script.network.rtt, Spread::millis(1, 2));
        assert_eq!(script.network.page_time, Some(Duration::from_millis(700)));
        let kinds: Vec<FaultKind> = script.faults.iter().map(|it| it.kind).collect();
        assert_eq!(kinds, [FaultKind::Throttled, FaultKind::Cut]);
        assert!(script.epoch > DEFAULT_EPOCH, "events happen now");
        assert!(!script.keep_records, "it may run for days");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "simulate --burst many",
            "simulate --fault cute=0.1",
            "simulate --fault cut",
            "simulate --rtt fast",
            "simulate --apps 0",
            "simulate --script a.toml",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
        for line in ["simulate --cut 1.5", "simulate --rate=-1", "simulate --split 2"] {
            let error = parsed(line).unwrap().prepare().unwrap_err();
            assert!(matches!(error, SimulateError::Script(_)), "{line}");
        }
    }

    #[test]
    fn the_help_teaches() {
        let help = Arguments::command().render_long_help().to_string();
        for word in ["READING IS DESTRUCTIVE", "--wild-names", "2,000", "Retry-After"] {
            assert!(help.contains(word), "{word}");
        }
    }

    #[tokio::test]
    async fn what_is_printed_is_toml_to_paste() {
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let (script, addresses) =
            prepared("simulate --apps 2 --listen 127.0.0.1:0 --listen 127.0.0.1:0");
        let world = World::new(script.clone());
        let server = serve(world, addresses, &tracker, stop.clone()).await.unwrap();
        let text = greeting(&script, &server) + &farewell(server.world().ledger());
        stop.cancel();
        let document = toml_edit::Document::parse(text).unwrap();
        let apps = document["apps"].as_array_of_tables().unwrap();
        assert_eq!(apps.len(), 2);
        let app = apps.get(1).unwrap();
        assert_eq!(app["app_id"].as_str(), Some(script.apps[1].app_id.as_str()));
        assert_eq!(app["auth"]["customer_id"].as_str(), Some(&*script.apps[1].customer_id));
        let host = app["regions"][1]["hosts"][0].as_str();
        assert_eq!(host, server.url(1).as_deref());
    }

    #[test]
    fn the_example_configuration_drains_the_simulator_as_it_stands() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/agora-rtm-bridge.toml");
        let settings = crate::config::load(Some(file.as_ref()), []).unwrap();
        let simulated = AppScript::numbered(0);
        let app = &settings.apps[0];
        assert_eq!(app.app_id, simulated.app_id);
        assert_eq!(app.regions[0].hosts[0].as_str(), format!("http://127.0.0.1:{FIRST_PORT}"));
        let crate::config::Auth::Basic { customer_id, customer_secret } = &app.auth else {
            panic!("Basic auth");
        };
        assert_eq!(*customer_id, simulated.customer_id);
        assert_eq!(customer_secret.reveal().unwrap(), simulated.customer_secret);
    }
}
