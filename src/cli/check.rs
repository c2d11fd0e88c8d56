//! `check`: verifies everything that can be verified without draining events.

mod ask;

use std::io;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::{Failure, WRONG_CONFIGURATION};
use crate::check;
use crate::check::{Finding, InProgress, Severity};
use crate::config;
use crate::config::{Faults, Settings};

/// Interval at which a terminal shows what the command is waiting for.
const SHOW_EVERY: Duration = Duration::from_secs(2);

/// Check everything before a start, without draining any events
///
/// Checks the configuration and its secrets, the data directory, Agora's hosts, credentials and App
/// IDs, Kafka with its topics and ACLs, and estimates how many requests each app will cost. Prints
/// one line per finding (ok, warning or failure) with a remedy. Creates and changes nothing, except
/// that it opens an otherwise unused transactional id (`kafka.group` plus `.check`). It doesn't
/// affect a running bridge.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Exit codes: 0 no failures; 1 at least one failure; 78 invalid configuration.

The ACLs that the bridge needs in Kafka, with the default names:
  topics agora.rtm.*                     Describe, DescribeConfigs, Write
  the same, with kafka.topics.create     Create; Alter and AlterConfigs to repair topics
  agora.rtm.pages, agora.rtm.bridge-state   also Read; to rebuild a lost memory, on all topics
  transactional ids agora-rtm-bridge.*   Describe, Write
  group agora-rtm-bridge                 Read")]
pub(super) struct Check {
    /// The configuration file; not needed if environment variables set every required key
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only print the effective configuration: each value with its source, secrets as ***
    #[arg(long, conflicts_with_all = ["json", "ask"])]
    print_config: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Don't query Agora's Console for the account's projects
    #[arg(long)]
    no_console: bool,
    /// If nothing failed, poll each feed once. The answers wait in the data directory, and the next
    /// `run` publishes them
    #[arg(long)]
    ask: bool,
}

/// The output of `--json`.
#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    findings: &'a [Finding],
}

pub(super) async fn run(args: Check) -> Result<(), Failure> {
    let loaded = config::load_with_origins(args.config.as_deref(), super::settings::environment());
    let (settings, origins) = match loaded {
        Ok(loaded) => loaded,
        Err(faults) if args.json => return refuse(&faults),
        Err(faults) => return Err(Failure::configuration(&faults)),
    };
    if args.print_config {
        return print(&settings.shown_with(&origins));
    }
    let waiting = InProgress::default();
    let mut findings = vec![Finding::ok("configuration", what_it_says(&settings))];
    let looking = check::run(&settings, !args.no_console, &waiting);
    findings.extend(with_progress(looking, &waiting).await);
    let failed = |findings: &[Finding]| findings.iter().any(|it| it.verdict == Severity::Failed);
    if args.ask && !failed(&findings) {
        findings.extend(ask::once(settings).await);
    } else if args.ask {
        let says = "no feed was polled, because of the failures";
        findings.push(Finding::ok("asked", says));
    }
    let ok = !failed(&findings);
    if args.json {
        print_report(&Report { ok, findings: &findings })?;
    } else {
        print(&lines(&findings))?;
    }
    if ok {
        return Ok(());
    }
    let count = findings.iter().filter(|it| it.verdict == Severity::Failed).count();
    let plural = if count == 1 { "" } else { "s" };
    Err(Failure { message: format!("check: {count} failure{plural}"), code: 1 })
}

/// The faults of an invalid configuration as findings, for `--json`.
fn refuse(faults: &Faults) -> Result<(), Failure> {
    let findings: Vec<_> =
        faults.iter().map(|fault| Finding::failed("configuration", fault, None)).collect();
    print_report(&Report { ok: false, findings: &findings })?;
    let message = "invalid configuration".to_owned();
    Err(Failure { message, code: WRONG_CONFIGURATION })
}

fn what_it_says(settings: &Settings) -> String {
    let apps = settings.apps.len();
    let plural = if apps == 1 { "" } else { "s" };
    format!("valid, including secrets; {apps} app{plural}, delivered {}", settings.kafka.delivery)
}

/// While the work runs, prints to a terminal what it is waiting for.
async fn with_progress<T>(work: impl Future<Output = T>, waiting: &InProgress) -> T {
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::time::sleep(SHOW_EVERY) => {
                let names = waiting.names();
                if io::stderr().is_terminal() && !names.is_empty() {
                    eprintln!("waiting for {}", names.join(", "));
                }
            }
        }
    }
}

fn lines(findings: &[Finding]) -> String {
    let colour = io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let line = |finding: &Finding| {
        let (word, code) = match finding.verdict {
            Severity::Ok => ("ok     ", "32"),
            Severity::Warning => ("warning", "33"),
            Severity::Failed => ("FAILED ", "31"),
        };
        let word = if colour { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() };
        format!("{word} {finding}\n")
    };
    findings.iter().map(line).collect()
}

fn print_report(report: &Report<'_>) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(report).map_err(|error| Failure::of(&error))?;
    print(&format!("{text}\n"))
}

fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| Failure::of(&error))
}
