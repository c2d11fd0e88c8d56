//! Every kind of mistake, and the fault that it produces.

use super::{lines, load_both};

/// A valid configuration, with a line for everything that the cases below break.
pub(super) const RIGHT: &str = r#"
data_dir = "/tmp"
instance = "bridge-0"
shutdown_grace = "20s"
log = { format = "text", level = "info" }
http.listen = "127.0.0.1:9464"
journal.max_size = "4GiB"

[agora]
connect_timeout = "5s"
silence_timeout = "15s"

[poll]
shortest_interval = "250ms"
longest_interval = "2s"

[kafka]
bootstrap_servers = "127.0.0.1:9092"
group = "bridge"
delivery = "exactly-once"

[kafka.topics]
user_events = "users"
gaps = "gaps"
create = true
partitions = 6
replication_factor = -1
page_retention = "24h"

[kafka.options]
"linger.ms" = 5
"sasl.password" = "hunter2"

[[apps]]
app_id = "0123"
hosts = ["https://api.agora.io", "https://api.sd-rtn.com"]
endpoints = ["user_events", "channel_events"]
path_user_events = "rtm/vendor/user_events"
requests_per_second = 10
allow_plain_http = false
[apps.auth]
customer_id = "me"
customer_secret = "hunter2"

[[apps]]
app_id = "4567"
[[apps.regions]]
name = "eu"
hosts = ["https://eu.example"]
[[apps.regions]]
name = "ap"
hosts = ["https://ap.example"]
[apps.auth]
token = "007hunter2"

[[apps]]
app_id = "0123456789abcdef0123456789abcdef"
[apps.auth]
app_certificate = "cafehunter2"
user_id = "bridge"
token_version = "007"
token_life = "1h"
"#;

/// The valid text, its replacement, and the expected fault without its line.
#[rustfmt::skip]
const MISTAKES: &[(&str, &str, &str)] = &[
    // Names and shapes.
    ("[poll]", "\"a\\nb\" = 1\n[poll]", "agora.a?b: is unknown"),
    ("[poll]", "[pol]", "pol: is unknown; did you mean poll?"),
    ("group = \"", "groop = \"", "kafka.groop: is unknown; did you mean kafka.group?"),
    ("[agora]", "\"kafka.group\" = 1\n[agora]", "kafka.group: is a single name: in"),
    ("[agora]", "\"apps[9999999]\".x = 1\n[agora]", "apps[9999999]: is a single name:"),
    ("http.listen = \"127.0.0.1:9464\"", "http = 9464", "http: must be a group of keys: [http]"),
    ("group = \"bridge\"", "group = 7", "kafka.group = 7: must be a quoted string"),
    ("group = \"bridge\"", "group = []", "kafka.group: must be a quoted string"),
    ("create = true", "create = 2020-01-01", "kafka.topics.create: must be true or false"),
    ("create = true", "create = \"yes\"", "kafka.topics.create = \"yes\": must be true or"),
    ("\"linger.ms\" = 5", "\"linger.ms\" = [5]", "kafka.options.linger.ms: must be a string,"),
    // This process.
    ("data_dir = \"/tmp\"", "data_dir = \"\"", "data_dir = \"\": is empty"),
    ("\"bridge-0\"", "\"bridge 0\"", "instance = \"bridge 0\": must be at most 255 visible"),
    ("\"20s\"", "20", "shutdown_grace = 20: must be a quoted duration with its unit"),
    ("\"20s\"", "\"20\"", "shutdown_grace = \"20\": has no unit: write \"20ms\" or \"20s\""),
    ("\"20s\"", "\"15s\"", "shutdown_grace = \"15s\": must be longer than agora.silence_timeout"),
    ("\"text\"", "\"xml\"", "log.format = \"xml\": must be text or json"),
    ("\"info\"", "\"inof\"", "log.level = \"inof\": must be error, warn, info, debug or trace"),
    ("\"info\"", "\"info,x=loud\"", "log.level = \"info,x=loud\": must be error, warn"),
    ("127.0.0.1:9464", "localhost", "http.listen = \"localhost\": must be an address and a port"),
    ("4GiB", "1MiB", "journal.max_size = \"1MiB\": must be from 64MiB to 1024TiB: 32 MiB are"),
    ("4GiB", "4", "journal.max_size = \"4\": has no unit"),
    // Agora.
    ("\"5s\"", "\"0s\"", "agora.connect_timeout = \"0s\": must be from 100ms to 60s"),
    ("[poll]", "ca_file = \"/nowhere\"\n[poll]", "agora.ca_file = \"/nowhere\": failed to open /"),
    ("[poll]", "system_certificates = false\n[poll]", "agora.system_certificates = false: needs"),
    ("[poll]", "client_key_file = \"/dev/null\"\n[poll]", "agora.client_key_file = \"/dev/nu"),
    ("[poll]", "proxy_password = \"x\"\n[poll]", "agora.proxy_password: needs agora.proxy as well"),
    ("\"20s\"", "\"19s\"", "shutdown_grace = \"19s\": must be longer than agora.silence_timeout"),
    ("[poll]", "proxy = \"squid\"\n[poll]", "agora.proxy = \"squid\": is not a URL"),
    ("250ms", "3s", "poll.shortest_interval = \"3s\": must not be longer than poll.longest_int"),
    ("250ms", "0s", "poll.shortest_interval = \"0s\": must be from 10ms to 60s"),
    ("\"2s\"", "\"61s\"", "poll.longest_interval = \"61s\": must be from 10ms to 60s: Agora keeps"),
    // Kafka.
    ("127.0.0.1:9092", "a:1,b", "kafka.bootstrap_servers = \"a:1,b\": must be host:port"),
    ("\"bridge\"", "\"a b\"", "kafka.group = \"a b\": must be 1 to 200 letters"),
    ("exactly-once", "once", "kafka.delivery = \"once\": must be exactly-once or at-least-once"),
    ("\"users\"", "\"us/ers\"", "kafka.topics.user_events = \"us/ers\": is not a name that Kafka"),
    ("\"gaps\"", "\"users\"", "kafka.topics.gaps = \"users\": must differ from kafka.topics.user"),
    ("\"gaps\"", "\"agora.rtm_pages\"", "kafka.topics.gaps = \"agora.rtm_pages\": must differ"),
    ("= 6", "= 0", "kafka.topics.partitions = 0: must be from 1 to 10000"),
    ("= 6", "= 6.5", "kafka.topics.partitions = 6.5: must be a whole number"),
    ("= -1", "= 0", "kafka.topics.replication_factor = 0: must be -1 or at least 1"),
    ("24h", "59m", "kafka.topics.page_retention = \"59m\": must be from 1h to 3650d: a page"),
    ("\"linger.ms\"", "\"acks\"", "kafka.options.acks = 5: can't be set: the bridge deletes a"),
    ("\"linger.ms\"", "\"Linger.ms\"", "kafka.options.Linger.ms = 5: is not a librdkafka setting"),
    ("\"linger.ms\"", "transactional.id", "kafka.options.transactional.id = 5: can't be set: it"),
    // Apps.
    ("\"0123\"", "\"\"", "apps[0].app_id = \"\": is empty"),
    ("\"0123\"", "\"01/23\"", "apps[0].app_id = \"01/23\": is not an App ID"),
    ("\"4567\"", "\"0123\"", "apps[1].app_id = \"0123\": is already used by apps[0].app_id"),
    ("\nhosts = [\"https://api.agora.io\"", "\nhosts = [5", "apps[0].hosts[0]: must be a quoted"),
    ("https://api.agora.io", "http://api.agora.io", "apps[0].hosts[0] = \"http://api.agora.io\": "),
    ("https://api.agora.io", "https://api.sd-rtn.com", "apps[0].hosts[1] = \"https://api.sd-rtn"),
    ("\"https://api.agora.io\", \"https://api.sd-rtn.com\"", "", "apps[0].hosts = []: must contai"),
    ("\"user_events\", ", "\"users\", ", "apps[0].endpoints[0] = \"users\": must be user_events"),
    ("\"user_events\", ", "\"channel_events\", ", "apps[0].endpoints[1] = \"channel_events\": lis"),
    ("rtm/vendor", "/rtm/vendor", "apps[0].path_user_events = \"/rtm/vendor/user_events\": must b"),
    ("= 10", "= 11", "apps[0].requests_per_second = 11: must be from 1 to 10: Agora answers 429"),
    ("\"me\"", "\"m:e\"", "apps[0].auth.customer_id = \"m:e\": must not contain a colon"),
    ("[[apps.regions]]\nname = \"eu\"", "hosts = \"a\"\n[[apps.regions]]\nname = \"eu\"", "apps[1"),
    ("\"ap\"", "\"eu\"", "apps[1].regions[1].name = \"eu\": is already used by apps[1].regions[0]"),
    ("\"https://ap.", "\"https://eu.", "apps[1].regions[1].hosts[0] = \"https://eu.example\": is"),
    ("name = \"ap\"", "name = \"a p\"", "apps[1].regions[1].name = \"a p\": must be 1 to 64"),
    ("\"007hunter2\"", "7", "apps[1].auth.token: must be a quoted string"),
    ("\"007hunter2\"", "\"\"", "apps[1].auth.token: is empty"),
    ("token = \"007", "token_file = \"/nowhere/007", "apps[1].auth.token_file = \"/nowhere/007hun"),
    ("n = \"007\"", "n = \"008\"", "apps[2].auth.token_version = \"008\": must be 007 or 006"),
    ("\"1h\"", "\"25h\"", "apps[2].auth.token_life = \"25h\": must be from 1m to 24h: clocks"),
    ("app_certificate = \"cafe", "app_certificate_file = \"/nowhere/", "apps[2].auth.app_certif"),
];

#[test]
fn each_mistake_is_named_with_its_line_and_the_reason() {
    for (right, wrong, expected) in MISTAKES {
        let text = RIGHT.replacen(right, wrong, 1);
        assert_ne!(text, RIGHT, "{right} is not in the file");
        let before = RIGHT.split(right).next().unwrap();
        let line = 1 + before.matches('\n').count() + usize::from(wrong.starts_with('\n'));
        let found = lines(load_both(&text, &[]));
        assert_eq!(found.len(), 1, "{wrong}: {found:#?}");
        assert!(found[0].starts_with(&format!("{line}: {expected}")), "{wrong}: {}", found[0]);
    }
}

const MINTS_007: &str = r#"abcdef"
[apps.auth]
app_certificate = "cafehunter2"
user_id = "bridge"
token_version = "007"#;

const MINTS_006: &str = r#""
[apps.auth]
app_certificate = "cafehunter2"
user_id = "bridge"
token_version = "006"#;

/// The valid text, its replacement, and the expected fault with the line of the group.
#[rustfmt::skip]
const MISSING: &[(&str, &str, &str)] = &[
    ("bootstrap_servers =", "# =", "17: kafka.bootstrap_servers: is required, here or as AGORA_RT"),
    ("app_id = \"4567\"", "", "45: apps[1].app_id: is required, here or as AGORA_RTM_BRIDGE__APPS"),
    ("name = \"eu\"", "", "47: apps[1].regions[0].name: is required, here or as AGORA_RTM_BRIDGE_"),
    ("customer_id = \"me\"", "", "41: apps[0].auth.customer_id: is required with customer_secret"),
    ("customer_secret =", "# =", "41: apps[0].auth.customer_secret: is required with customer_id;"),
    ("token = \"007", "# = \"007", "53: apps[1].auth: is required: customer_id with customer_secr"),
    ("\"007", "\"006", "53: apps[1].auth.user_id: is required with a token that begins with 006"),
    ("customer_id = \"me\"", "token = \"t\"", "41: apps[0].auth: must be exactly one"),
    ("customer_id = \"me\"", "app_certificate = \"c\"", "41: apps[0].auth: must be exactly one"),
    ("app_certificate =", "token = \"007\"\napp_certificate =", "58: apps[2].auth: must be exactl"),
    ("user_id = \"bridge\"", "", "58: apps[2].auth.user_id: is required with app_certificate: a"),
    (MINTS_007, MINTS_006, "61: apps[2].auth.token_version = \"006\": needs an app_id of 32 char"),
];

#[test]
fn what_is_missing_is_named_with_the_line_of_its_group() {
    for (right, wrong, expected) in MISSING {
        let found = lines(load_both(&RIGHT.replacen(right, wrong, 1), &[]));
        assert_eq!(found.len(), 1, "{right}: {found:#?}");
        assert!(found[0].starts_with(expected), "{right}: {}", found[0]);
    }
    let found = lines(load_both("[[apps]]\n", &[]));
    assert!(found[0].starts_with("1: apps[0].app_id: is required"), "{found:#?}");
    let found = lines(load_both("", &[]));
    assert!(found[1].starts_with("apps: is required: add [[apps]]"), "{found:#?}");
}

#[test]
fn of_two_values_that_do_not_go_together_the_written_one_is_named() {
    for (text, expected) in [
        (
            "agora.silence_timeout = \"20s\"",
            "1: agora.silence_timeout = \"20s\": must be shorter than",
        ),
        (
            "poll.longest_interval = \"99ms\"",
            "1: poll.longest_interval = \"99ms\": must not be shorter",
        ),
        (
            "kafka.topics.gaps = \"agora.rtm.pages\"",
            "1: kafka.topics.gaps = \"agora.rtm.pages\": must",
        ),
    ] {
        let found = lines(load_both(text, &[]));
        assert!(found.iter().any(|line| line.starts_with(expected)), "{found:#?}");
    }
}

#[test]
fn a_mistake_in_an_array_hides_none_beside_it() {
    let found = lines(load_both(&RIGHT.replacen("\"https://api.agora.io\"", "5, \"x\"", 1), &[]));
    let starts: Vec<_> = found.iter().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(starts, ["apps[0].hosts[0]:", "apps[0].hosts[1]"], "{found:#?}");
}

#[test]
fn ten_mistakes_are_named_at_once_in_the_order_of_their_lines() {
    let found = lines(load_both(
        r#"shutdown_grace = "10s"
pol = { shortest_interval = "1s" }
[log]
format = "xml"
[kafka]
bootstrap_servers = "localhost"
[kafka.options]
"enable.idempotence" = false
[[apps]]
hosts = ["http://api.agora.io"]
requests_per_second = 0
[apps.auth]
customer_id = "me"
customer_secret = "hunter2"
token_file = "/nowhere/token"
"#,
        &[("AGORA_RTM_BRIDGE__KAFKA__GRUOP", "x"), ("AGORA_RTM_BRIDGE__HTTP__LISTEN", "here")],
    ));
    let starts: Vec<_> = found
        .iter()
        .map(|line| line.split([' ', '=']).take(2).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        starts,
        [
            "1: shutdown_grace",
            "2: pol:",
            "4: log.format",
            "6: kafka.bootstrap_servers",
            "8: kafka.options.enable.idempotence",
            "9: apps[0].app_id:",
            "10: apps[0].hosts[0]",
            "11: apps[0].requests_per_second",
            "15: apps[0].auth.token_file",
            "AGORA_RTM_BRIDGE__HTTP__LISTEN: http.listen",
            "AGORA_RTM_BRIDGE__KAFKA__GRUOP: kafka.gruop:",
        ]
    );
}

/// Beyond loopback, no option can disable the check of a broker's certificate.
#[test]
fn certificates_of_brokers_are_checked_beyond_loopback() {
    let fault_of = |servers: &str, option: &str| {
        let text = RIGHT.replacen("127.0.0.1:9092", servers, 1);
        let text = text.replacen("\"linger.ms\" = 5", option, 1);
        match load_both(&text, &[]) {
            Ok(_) => Vec::new(),
            faults => lines(faults),
        }
    };
    let verification = "enable.ssl.certificate.verification";
    let algorithm = "ssl.endpoint.identification.algorithm";
    for (name, off) in [
        (verification, "false"),
        (verification, "\"False\""),
        (verification, "0"),
        (algorithm, "\"none\""),
    ] {
        let option = format!("\"{name}\" = {off}");
        for servers in ["kafka:9092", "127.0.0.1:1,10.0.0.1:1", "SASL_SSL://localhost.example:1"] {
            let found = fault_of(servers, &option);
            let [fault] = &found[..] else { panic!("{servers} {option}: {found:#?}") };
            let begin =
                format!("31: kafka.options.{name} = {off}: leaves the brokers' certificates");
            assert!(fault.starts_with(&begin) && fault.contains("remove it, and"), "{fault}");
        }
        for servers in ["127.0.0.1:9092", "localhost:1,SSL://[::1]:2"] {
            assert_eq!(fault_of(servers, &option), Vec::<String>::new(), "{servers} {option}");
        }
    }
    for (name, on) in [(verification, "true"), (algorithm, "\"https\"")] {
        let found = fault_of("kafka:9092", &format!("\"{name}\" = {on}"));
        assert_eq!(found, Vec::<String>::new(), "{name}");
    }
    let found = fault_of("kafka:9092", &format!("{verification}_file = \"/dev/null\""));
    assert_ne!(found, Vec::<String>::new());
}
