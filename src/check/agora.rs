//! Agora: its hosts, the clock, and the Console's view of credentials and App IDs.
//!
//! Nothing here requests an event endpoint. For each host it requests the root, which verifies the
//! name, the network path and the certificates with the bridge's own client. The Console lists an
//! account's projects with their certificates; only App ID and status are read from its answer, and
//! nothing is kept or shown.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use tokio::time::{Instant, timeout};

use super::{Finding, InProgress};
use crate::agora::http::Http;
use crate::agora::{
    Credentials, Moment, Proof, Raw, Reply, Request, Transport as _, TransportError,
};
use crate::config::{App, Auth, Settings};
use crate::model::Timestamp;

/// Maximum time for a query; a resolver may be silent, and nothing else limits it.
const LIMIT: Duration = Duration::from_secs(30);

/// Maximum clock difference that is tolerated: `Date` headers have whole seconds, and the answer
/// takes time to arrive.
const CLOCK_OFF: Duration = Duration::from_secs(5);

const CONSOLE: &str = "/dev/v1/projects";

const CREDENTIALS: &str = "compare them with Developer Toolkit → RESTful API in Agora's Console: \
                           customer_id, and customer_secret without surrounding spaces";

/// The part of the Console's list that is read.
#[derive(Deserialize)]
struct Projects {
    projects: Vec<Project>,
}

#[derive(Deserialize)]
struct Project {
    vendor_key: String,
    #[serde(default)]
    status: i64,
}

/// Checks hosts and accounts concurrently; findings about hosts come first.
pub(super) async fn look(
    http: &Http,
    settings: &Settings,
    console: bool,
    waiting: &InProgress,
) -> Vec<Finding> {
    let mut hosts = Vec::new();
    for app in &settings.apps {
        for host in app.regions.iter().flat_map(|region| &region.hosts) {
            if !hosts.contains(&host.as_str()) {
                hosts.push(host.as_str());
            }
        }
    }
    let (hosts, accounts) = tokio::join!(
        all(hosts.into_iter().map(|host| waiting.during(host, look_at(http, host)))),
        async { if console { accounts(http, &settings.apps, waiting).await } else { Vec::new() } },
    );
    hosts.into_iter().flatten().chain(accounts).collect()
}

/// Runs the futures concurrently; results are in their order.
async fn all<T>(work: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut work: Vec<_> = work.map(Box::pin).collect();
    let mut done: Vec<Option<T>> = work.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (work, done) in work.iter_mut().zip(&mut done).filter(|(_, done)| done.is_none()) {
            match work.as_mut().poll(context) {
                std::task::Poll::Ready(result) => *done = Some(result),
                std::task::Poll::Pending => pending = true,
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    done.into_iter().flatten().collect()
}

async fn look_at(http: &Http, host: &str) -> Vec<Finding> {
    let asked = Instant::now();
    let request = Request { url: format!("{host}/"), proof: Vec::new() };
    match ask(http, request).await {
        Ok(raw) => {
            let took = asked.elapsed().as_millis();
            let found = Finding::ok(host, format!("answers, in {took} ms"));
            let clock = raw.date.as_deref().and_then(|date| clock(host, date, SystemTime::now()));
            std::iter::once(found).chain(clock).collect()
        }
        Err(error) => {
            let (seen, known) = error.parts();
            vec![Finding::failed(host, seen, Some(known.unwrap_or_else(|| remedy(seen))))]
        }
    }
}

async fn ask(http: &Http, request: Request) -> Result<Raw, TransportError> {
    match timeout(LIMIT, http.ask(request)).await {
        Ok(Reply::Answered(raw)) => Ok(raw),
        Ok(Reply::NotSent(error) | Reply::Lost(error)) => Err(error),
        Err(_) => Err(TransportError(format!("timed out: no answer within {LIMIT:?}"))),
    }
}

/// The remedy for a host that doesn't answer, derived from the error text where the error itself
/// names no remedy.
fn remedy(reason: &str) -> &'static str {
    let says = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    if says(&["dns error", "lookup address"]) {
        "check the spelling of the host, and whether this machine can resolve it (set a proxy \
         with agora.proxy)"
    } else if says(&["tunnel", "proxy"]) {
        "check agora.proxy, its password, and whether it allows this host"
    } else {
        "check the host and the network path: firewall, network policy, agora.proxy"
    }
}

/// A warning if this machine's clock is off.
fn clock(host: &str, date: &str, now: SystemTime) -> Option<Finding> {
    let there = httpdate::parse_http_date(date).ok()?;
    let (off, way) = match now.duration_since(there) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    let says = format!("this machine's clock is {} s {way} {host}'s", off.as_secs());
    let remedy = "synchronise it (chrony, systemd-timesyncd): tokens and the time bounds of gaps \
                  depend on it";
    (off > CLOCK_OFF).then(|| Finding::warning("clock", says, remedy))
}

// === the Console ===

/// Queries the Console once for each pair of credentials; one finding per app.
async fn accounts(http: &Http, apps: &[App], waiting: &InProgress) -> Vec<Finding> {
    let mut answers = BTreeMap::new();
    let mut findings = Vec::new();
    for app in apps {
        let subject = format!("account of {}", app.app_id);
        let Auth::Basic { customer_id, customer_secret } = &app.auth else {
            let says = "uses a token, which only a request for events can verify";
            findings.push(Finding::ok(subject, says));
            continue;
        };
        let mut credentials = Credentials::new(app.app_id.clone(), app.auth.clone(), 0);
        let now = Moment { wall: Timestamp::default(), monotonic: Instant::now() };
        // If there is no proof, a finding about the secret exists already.
        let Ok(Proof { headers: proof, .. }) = credentials.proof(now) else { continue };
        let hosts: Vec<String> =
            app.regions.iter().flat_map(|it| &it.hosts).map(ToString::to_string).collect();
        let key = (customer_id.clone(), customer_secret.reveal().ok(), hosts);
        if !answers.contains_key(&key) {
            let asked = waiting.during(&*subject, projects(http, &key.2, &proof)).await;
            answers.insert(key.clone(), asked);
        }
        findings.extend(answers.get(&key).map(|answer| judged(subject, app, answer)));
    }
    findings
}

/// The Console's answer: the account's projects, or the status of an answer that is no such list.
enum ConsoleAnswer {
    Projects(Vec<Project>),
    Status(u16),
    Nobody,
}

/// Returns the answer of the first host that has a Console.
async fn projects(
    http: &Http,
    hosts: &[String],
    proof: &[(&'static str, String)],
) -> ConsoleAnswer {
    let mut last = ConsoleAnswer::Nobody;
    for host in hosts {
        let request = Request { url: format!("{host}{CONSOLE}"), proof: proof.to_vec() };
        let Ok(raw) = ask(http, request).await else { continue };
        last = match (raw.status, serde_json::from_slice::<Projects>(&raw.body)) {
            (200, Ok(list)) => return ConsoleAnswer::Projects(list.projects),
            (status @ (401 | 403), _) => return ConsoleAnswer::Status(status),
            (status, _) => ConsoleAnswer::Status(status),
        };
    }
    last
}

fn judged(subject: String, app: &App, answer: &ConsoleAnswer) -> Finding {
    let unknown = "credentials not verified; --no-console skips this check";
    match answer {
        ConsoleAnswer::Projects(projects) => {
            let of_app = projects.iter().find(|it| it.vendor_key == app.app_id.as_str());
            match of_app.map(|project| project.status) {
                Some(1) => Finding::ok(
                    subject,
                    "the credentials are valid, and the account owns the App ID",
                ),
                Some(_) => {
                    let remedy = "enable the project in Agora's Console";
                    Finding::failed(subject, "the project is disabled", Some(remedy))
                }
                None => {
                    let count = projects.len();
                    let says = format!("the App ID is not among the account's {count} projects");
                    let remedy = "correct app_id, or use the credentials of the account that owns \
                                  it";
                    Finding::failed(subject, says, Some(remedy))
                }
            }
        }
        ConsoleAnswer::Status(status @ (401 | 403)) => {
            let says = format!("Agora rejects the credentials (status {status})");
            Finding::failed(subject, says, Some(CREDENTIALS))
        }
        ConsoleAnswer::Status(status) => {
            let says = format!("no host has a Console API that lists projects (status {status})");
            Finding::warning(subject, says, unknown)
        }
        ConsoleAnswer::Nobody => {
            Finding::warning(subject, "no host answers Console requests", unknown)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_told_with_its_direction() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        let at = |seconds: i64| {
            let there = httpdate::parse_http_date(date).unwrap();
            let off = Duration::from_secs(seconds.unsigned_abs());
            let now = if seconds < 0 { there - off } else { there + off };
            clock("https://api.agora.io", date, now).map(|it| it.says)
        };
        assert_eq!(at(4), None);
        assert_eq!(at(-4), None);
        assert!(at(90).unwrap().contains("90 s ahead of"));
        assert!(at(-90).unwrap().contains("90 s behind"));
        assert_eq!(clock("h", "yesterday", SystemTime::now()), None);
    }

    #[test]
    fn a_host_that_does_not_answer_leads_to_the_key_to_change() {
        for (reason, words) in [
            ("error sending request: client error (Connect): dns error: failed", "spelling"),
            ("client error (Connect): unsuccessful tunnel", "agora.proxy, its password"),
            ("tcp connect error: Connection refused (os error 111)", "firewall"),
        ] {
            assert!(remedy(reason).contains(words), "{reason}");
        }
    }

    #[tokio::test]
    async fn what_runs_side_by_side_keeps_its_order() {
        let wait = |millis: u64| async move {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            millis
        };
        assert_eq!(all([2, 1, 0].into_iter().map(wait)).await, [2, 1, 0]);
    }

    #[test]
    fn the_consoles_answer_is_read_without_its_certificates() {
        let body = br#"{"projects":[{"vendor_key":"a","sign_key":"canary","status":1}]}"#;
        let list: Projects = serde_json::from_slice(body).unwrap();
        assert_eq!((list.projects[0].vendor_key.as_str(), list.projects[0].status), ("a", 1));
    }
}
