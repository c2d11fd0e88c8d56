//! The deployment files, held to the program: their configurations are read by its own reader, and
//! their ports and times fit.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use agora_rtm_bridge::config;
use agora_rtm_bridge::config::Settings;

use crate::support::names;

fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What stands behind the only line that begins like this.
fn behind<'a>(text: &'a str, begin: &str) -> &'a str {
    let found: Vec<&str> =
        text.lines().filter_map(|line| line.trim_start().strip_prefix(begin)).collect();
    let [value] = found[..] else { panic!("`{begin}` is there {} times", found.len()) };
    value.trim()
}

fn seconds(text: &str) -> Duration {
    let digits = text.trim_end_matches('s');
    Duration::from_secs(digits.parse().unwrap_or_else(|_| panic!("{text} is no time in seconds")))
}

/// Lines below `head` that are further to the right than it, moved to the left.
fn block(text: &str, head: &str) -> String {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut lines = text.lines().skip_while(|line| line.trim() != head);
    let own = indent(lines.next().unwrap_or_else(|| panic!("there is no `{head}`")));
    let below: Vec<&str> =
        lines.take_while(|line| line.trim().is_empty() || indent(line) > own).collect();
    let first = below.iter().map(|line| indent(line)).find(|it| *it > 0).unwrap_or(0);
    below.iter().map(|line| line.get(first..).unwrap_or_default().to_owned() + "\n").collect()
}

/// A stop may take the grace, and before it the answers that are out.
fn assert_time_to_stop(settings: &Settings, allowed: Duration) {
    assert!(allowed > settings.shutdown_grace + settings.agora.longest_request(), "{allowed:?}");
}

#[test]
fn the_stateful_set_fits_the_configuration_in_it() {
    let manifest = file("deploy/kubernetes/agora-rtm-bridge.yaml");
    let home = names::folder();
    let secret = home.path().join("agora-secret");
    fs::write(&secret, "s").unwrap();
    let config = block(&manifest, "agora-rtm-bridge.toml: |")
        .replace("/run/secrets/agora-rtm-bridge/agora-secret", names::text(&secret));
    let path = home.path().join("bridge.toml");
    fs::write(&path, config).unwrap();
    let settings = config::load(Some(&path), []).unwrap_or_else(|faults| panic!("{faults}"));

    let grace = behind(&manifest, "terminationGracePeriodSeconds:");
    assert_time_to_stop(&settings, seconds(grace));
    let port = settings.http.listen.port().to_string();
    assert!(settings.http.listen.ip().is_unspecified(), "the kubelet asks from outside");
    assert_eq!(behind(&manifest, "containerPort:"), port);
    // The first ones are those of the Service.
    assert_eq!(behind(&block(&manifest, "ports:"), "port:"), port);
    let policy = block(&manifest, "ingress:");
    assert!(policy.contains(&format!("port: {port}\n")), "{policy}");
    for (from, reached) in [("egress:", "443"), ("egress:", "9092"), ("egress:", "53")] {
        assert!(block(&manifest, from).contains(&format!("port: {reached}\n")), "{reached}");
    }
    assert!(settings.kafka.bootstrap_servers.ends_with(":9092"));
    // The head of a request has a second; the answer to a probe is there long before the rest.
    let liveness = block(&manifest, "livenessProbe:");
    let times = ["timeoutSeconds:", "periodSeconds:", "failureThreshold:"];
    let [timeout, period, failures] = times.map(|name| seconds(behind(&liveness, name)).as_secs());
    assert!(timeout > 1 && period > timeout && period * failures >= 60, "{liveness}");
    assert!(behind(&block(&manifest, "readinessProbe:"), "path:") == "/ready");
    let volume = Path::new("/var/lib/agora-rtm-bridge");
    assert!(settings.data_dir.starts_with(volume));
    assert!(manifest.contains(&format!("mountPath: {}\n", volume.display())));
}

#[test]
fn the_variables_of_the_compose_file_are_a_configuration() {
    let compose = file("compose.yaml");
    let bridge = block(&compose, "bridge:");
    let environment = block(&bridge, "environment:");
    let variables = environment.lines().filter_map(|line| {
        let (name, value) = line.split_once(": ").filter(|_| !line.starts_with('#'))?;
        Some((name.to_owned(), value.trim_matches('"').to_owned()))
    });
    let settings = config::load(None, variables).unwrap_or_else(|faults| panic!("{faults}"));
    assert_time_to_stop(&settings, seconds(behind(&bridge, "stop_grace_period:")));
    let simulated = &settings.apps[0].regions[0].hosts[0];
    assert!(block(&compose, "agora:").contains(":8190"), "{simulated:?}");
}

#[test]
fn the_unit_leaves_the_bridge_the_time_to_stop() {
    let unit = file("deploy/systemd/agora-rtm-bridge.service");
    let app = [
        ("KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:9092"),
        ("APPS__0__APP_ID", "a"),
        ("APPS__0__AUTH__CUSTOMER_ID", "c"),
        ("APPS__0__AUTH__CUSTOMER_SECRET", "s"),
    ];
    let variables: BTreeMap<String, String> = app
        .iter()
        .map(|(name, value)| (format!("AGORA_RTM_BRIDGE__{name}"), (*value).to_owned()))
        .collect();
    let defaults = config::load(None, variables).unwrap_or_else(|faults| panic!("{faults}"));
    assert_time_to_stop(&defaults, seconds(behind(&unit, "TimeoutStopSec=")));
    assert_eq!(defaults.data_dir, Path::new("/var/lib").join(behind(&unit, "StateDirectory=")));
    assert_eq!(behind(&unit, "RestartPreventExitStatus="), "78");
}

#[test]
fn the_image_listens_where_it_says() {
    let image = file("Dockerfile");
    let listen = behind(&image, "ENV AGORA_RTM_BRIDGE__HTTP__LISTEN=");
    let port = listen.rsplit_once(':').map(|(_, port)| port);
    assert_eq!(port, Some(behind(&image, "EXPOSE ")));
}
