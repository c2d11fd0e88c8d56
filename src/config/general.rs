//! The sections about this process and its connection to Agora.
//!
//! Each section reads all its keys before it checks how they fit together, so that a fault in the
//! first key doesn't hide a fault in the last.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use super::reader::{Read, Reader};
use super::{Agora, App, Http, Journal, Log, LogFormat, Poll, Proxy, Settings, apps, kafka, units};

/// Accepted values of `log.format`.
pub(super) const LOG_FORMATS: [(&str, LogFormat); 2] =
    [("text", LogFormat::Text), ("json", LogFormat::Json)];

/// Reads all settings.
pub(super) fn settings(reader: &mut Reader) -> Read<Settings> {
    let data_dir = reader.checked("data_dir", path);
    let instance = reader.checked("instance", instance);
    let shutdown_grace = reader.duration("shutdown_grace");
    let log = log(reader);
    let listen = reader.checked("http.listen", listen);
    let max_size = reader.size("journal.max_size");
    let agora = agora(reader);
    let kafka = kafka::kafka(reader);
    let apps = apps::apps(reader);
    let poll = poll(reader, apps.as_deref().unwrap_or_default());

    if let (Ok(grace), Ok(agora)) = (shutdown_grace, &agora)
        && grace <= agora.longest_request()
    {
        let why = "a request that was sent is never cancelled, and its answer must be stored";
        let (least, grace) =
            (units::show_duration(agora.longest_request()), units::show_duration(grace));
        reader.conflict(
            (
                "shutdown_grace",
                format!(
                    "must be longer than agora.silence_timeout plus {BODY_TIME:?} ({least}): {why}"
                ),
            ),
            (
                "agora.silence_timeout",
                format!("must be shorter than shutdown_grace ({grace}) minus {BODY_TIME:?}: {why}"),
            ),
        );
    }
    Ok(Settings {
        data_dir: data_dir?,
        instance: instance?,
        shutdown_grace: shutdown_grace?,
        log: log?,
        http: Http { listen: listen? },
        journal: Journal { max_size: max_size? },
        agora: agora?,
        poll: poll?,
        kafka: kafka?,
        apps: apps?,
    })
}

fn log(reader: &mut Reader) -> Read<Log> {
    let format = reader.choice("log.format", &LOG_FORMATS);
    let level = reader.checked("log.level", level);
    Ok(Log { format: format?, level: level? })
}

fn agora(reader: &mut Reader) -> Read<Agora> {
    let connect_timeout = reader.duration("agora.connect_timeout");
    let silence_timeout = reader.duration("agora.silence_timeout");
    let ca_file = reader.file("agora.ca_file");
    let system_certificates = reader.flag("agora.system_certificates");
    let client_certificate_file = reader.file("agora.client_certificate_file");
    let client_key_file = reader.file("agora.client_key_file");
    let proxy = reader.optional("agora.proxy", Proxy::new);
    let proxy_password = reader.secret("agora.proxy_password");
    let (ca_file, system_certificates) = (ca_file?, system_certificates?);
    if ca_file.is_none() && !system_certificates {
        let why = "needs agora.ca_file: otherwise no certificate would be trusted";
        return Err(reader.fault("agora.system_certificates", why));
    }
    let client_certificate = match (client_certificate_file?, client_key_file?) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => {
            let why = "needs agora.client_key_file as well";
            return Err(reader.fault("agora.client_certificate_file", why));
        }
        (None, Some(_)) => {
            let why = "needs agora.client_certificate_file as well";
            return Err(reader.fault("agora.client_key_file", why));
        }
    };
    let (proxy, proxy_password) = (proxy?, proxy_password?);
    if proxy.is_none() && proxy_password.is_some() {
        let why = "needs agora.proxy as well, with the user name in its URL";
        return Err(reader.fault("agora.proxy_password", why));
    }
    Ok(Agora {
        connect_timeout: connect_timeout?,
        silence_timeout: silence_timeout?,
        ca_file,
        system_certificates,
        client_certificate,
        proxy,
        proxy_password,
    })
}

// === impl Agora ===

/// Time that a request may take beyond `silence_timeout`. With the defaults, a page of 200 KiB that
/// trickles in at 16 KiB a second still arrives in full, and the shutdown grace is longer than any
/// request.
const BODY_TIME: Duration = Duration::from_secs(4);

impl Agora {
    /// Maximum duration of a request.
    pub fn longest_request(&self) -> Duration {
        self.silence_timeout + BODY_TIME
    }
}

/// Default maximum interval between polls of an idle feed. The next three constants adjust it.
const LONGEST_INTERVAL: Duration = Duration::from_millis(500);

/// The default is at least this much per feed: all idle feeds together then need 200 requests a
/// second.
const FOR_EACH_FEED: Duration = Duration::from_millis(5);

/// The default is long enough that the idle feeds of an app take at most this share of its
/// requests.
const AT_REST: f64 = 0.5;

/// Maximum of the default for any number of feeds: a buffer holds only 2,000 events.
const MOST_OF_LONGEST: Duration = Duration::from_secs(2);

/// The default of `poll.longest_interval` for these apps.
fn longest_interval(apps: &[App]) -> Duration {
    let feeds = |app: &App| u32::try_from(app.regions.len() * app.endpoints.len()).unwrap_or(1_000);
    let all = apps.iter().map(feeds).fold(0, u32::saturating_add).min(1_000);
    let of_app = |app: &App| {
        let allowed = AT_REST * f64::from(app.requests_per_second.get());
        Duration::from_secs_f64(f64::from(feeds(app)) / allowed)
    };
    let longest = apps.iter().map(of_app).chain([LONGEST_INTERVAL, FOR_EACH_FEED * all]).max();
    longest.unwrap_or(LONGEST_INTERVAL).min(MOST_OF_LONGEST)
}

fn poll(reader: &mut Reader, apps: &[App]) -> Read<Poll> {
    let shortest = reader.duration("poll.shortest_interval");
    if !reader.is_given("poll.longest_interval") {
        let shortest_interval = shortest?;
        let longest_interval = longest_interval(apps).max(shortest_interval);
        return Ok(Poll { shortest_interval, longest_interval });
    }
    let longest = reader.duration("poll.longest_interval");
    let (shortest_interval, longest_interval) = (shortest?, longest?);
    if shortest_interval > longest_interval {
        let shortest = units::show_duration(shortest_interval);
        let longest = units::show_duration(longest_interval);
        return Err(reader.conflict(
            (
                "poll.shortest_interval",
                format!("must not be longer than poll.longest_interval ({longest})"),
            ),
            (
                "poll.longest_interval",
                format!("must not be shorter than poll.shortest_interval ({shortest})"),
            ),
        ));
    }
    Ok(Poll { shortest_interval, longest_interval })
}

fn level(text: &str) -> Result<String, String> {
    // `EnvFilter` takes an unknown word for the name of a module, so a typo such as "inof" would
    // silence everything else.
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |part: &str| part.contains(['=', '[']) || levels.contains(&part.trim());
    match EnvFilter::builder().parse(text) {
        Ok(_) if text.split(',').all(is_level) => Ok(text.to_owned()),
        _ => Err("must be error, warn, info, debug or trace, optionally per module as in \
                  \"info,agora_rtm_bridge::schedule=debug\""
            .to_owned()),
    }
}

fn path(text: &str) -> Result<PathBuf, String> {
    match text {
        "" => Err("is empty".to_owned()),
        text => Ok(PathBuf::from(text)),
    }
}

fn instance(text: &str) -> Result<String, String> {
    let legal = text.len() <= 255 && text.bytes().all(|byte| byte.is_ascii_graphic());
    match text {
        "" => Err("is empty".to_owned()),
        text if legal => Ok(text.to_owned()),
        _ => Err("must be at most 255 visible ASCII characters: it names this process in Kafka \
                  and in metrics"
            .to_owned()),
    }
}

fn listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        r#"must be an address and a port, as in "127.0.0.1:9464" or "[::]:9464""#.to_owned()
    })
}
