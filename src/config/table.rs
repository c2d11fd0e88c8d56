//! The table of keys: every key there is, in the order in which the reference page shows them.
//!
//! A new key is a row here, a field of [`Settings`](super::Settings), a line where its section is
//! read and a line where it is shown; tests hold the four together.

use super::keys::{Absent, Bounds, Key, Kind};

/// Every key.
pub(super) const KEYS: &[Key] = &[
    Key {
        name: "data_dir",
        kind: Kind::Path,
        absent: Absent::Default("/var/lib/agora-rtm-bridge"),
        why: "Where the journal lives. It holds what Agora has forgotten and Kafka has not \
              confirmed yet, so it belongs on a disk that survives a restart.",
    },
    Key {
        name: "instance",
        kind: Kind::Text,
        absent: Absent::HostName,
        why: "Names this process in logs, metrics and Kafka's client.id; the machine's name tells \
              an operator where to look.",
    },
    Key {
        name: "shutdown_grace",
        kind: Kind::Duration(Bounds {
            least: "1s",
            most: "1h",
            because: "a stop has to let requests that are out come home, and has to end",
        }),
        absent: Absent::Default("20s"),
        why: "How long a stop waits for answers, the journal and Kafka, and for Kafka no longer \
              than five seconds in which it confirms nothing; longer than the longest request \
              (agora.silence_timeout and 4s), which is never given up.",
    },
    // --- log ---
    Key {
        name: "log.format",
        kind: Kind::Choice(&["text", "json"]),
        absent: Absent::Default("text"),
        why: "Text is for people; JSON, one object a line, is for collectors.",
    },
    Key {
        name: "log.level",
        kind: Kind::Text,
        absent: Absent::Default("info"),
        why: "error, warn, info, debug or trace, also by module as in \
              \"info,agora_rtm_bridge::schedule=debug\"; info tells of the life of the process and \
              of nothing that happens per page.",
    },
    // --- http ---
    Key {
        name: "http.listen",
        kind: Kind::Address,
        absent: Absent::Default("127.0.0.1:9464"),
        why: "Where /metrics, /live, /ready, /status.json and the status page are served; loopback \
              because they ask for no password. In a container: \"0.0.0.0:9464\".",
    },
    // --- journal ---
    Key {
        name: "journal.max_size",
        kind: Kind::Size(Bounds {
            least: "64MiB",
            most: "1024TiB",
            because: "32 MiB are kept as a reserve for a full disk, and each request that is out \
                      keeps room for its page",
        }),
        absent: Absent::Default("4GiB"),
        why: "How much disk the journal may take while Kafka is away, after which polling pauses; \
              the default is about an hour of one App ID at its ceiling.",
    },
    // --- agora ---
    Key {
        name: "agora.connect_timeout",
        kind: Kind::Duration(Bounds {
            least: "100ms",
            most: "60s",
            because: "shorter, and a slow handshake never ends; longer, and Agora's buffer runs \
                      over before another host is tried",
        }),
        absent: Absent::Default("5s"),
        why: "How long a connection to Agora may take to come about, TLS included, before it \
              counts as failed; nothing has been asked yet, so nothing is lost.",
    },
    Key {
        name: "agora.silence_timeout",
        kind: Kind::Duration(Bounds {
            least: "1s",
            most: "10m",
            because: "an answer that is given up takes its events along",
        }),
        absent: Absent::Default("15s"),
        why: "How long a request that was sent may stay without a byte before its answer counts \
              as lost; long, because what is given up can't be asked for again.",
    },
    Key {
        name: "agora.ca_file",
        kind: Kind::Path,
        absent: Absent::Optional("/etc/ssl/certs/my-proxy.pem"),
        why: "Certificates (PEM) to trust for Agora's hosts beside those of the system, as a proxy \
              that opens TLS needs them. Read again every five minutes.",
    },
    Key {
        name: "agora.system_certificates",
        kind: Kind::Flag,
        absent: Absent::Default("true"),
        why: "False trusts the certificates of agora.ca_file alone.",
    },
    Key {
        name: "agora.client_certificate_file",
        kind: Kind::Path,
        absent: Absent::Optional("/etc/ssl/bridge.pem"),
        why: "The certificate (PEM, with what leads to its root) that is shown to a server or proxy \
              that asks for it; with agora.client_key_file.",
    },
    Key {
        name: "agora.client_key_file",
        kind: Kind::Path,
        absent: Absent::Optional("/etc/ssl/private/bridge.pem"),
        why: "The key (PEM) of agora.client_certificate_file.",
    },
    Key {
        name: "agora.proxy",
        kind: Kind::Text,
        absent: Absent::Optional("http://proxy.example:3128"),
        why: "The HTTP proxy for requests to Agora. Without it the usual HTTPS_PROXY and NO_PROXY \
              are obeyed. Hosts on this machine are asked directly in any case.",
    },
    Key {
        name: "agora.proxy_password",
        kind: Kind::Secret,
        absent: Absent::Optional("your-proxy-password"),
        why: "The password of the proxy. Its user stands in agora.proxy: \
              http://user@proxy.example:3128.",
    },
    // --- poll ---
    Key {
        name: "poll.shortest_interval",
        kind: Kind::Duration(Bounds {
            least: "10ms",
            most: "60s",
            because: "requests_per_second is the real ceiling, and Agora's buffer must not run \
                      over",
        }),
        absent: Absent::Default("250ms"),
        why: "How soon a feed that has just handed over events is asked again; one that is about to \
              hold a full page is asked sooner in any case.",
    },
    Key {
        name: "poll.longest_interval",
        kind: Kind::Duration(Bounds {
            least: "10ms",
            most: "60s",
            because: "Agora keeps 2,000 events, and a burst can begin the moment after an answer",
        }),
        absent: Absent::Computed("500ms", "; default: see above"),
        why: "How long a feed that stays empty is left alone: the wait doubles up to this, and it \
              bounds how old a first event can get, unless busier feeds of the App ID need the \
              requests. By default 500 ms; from 100 feeds on 5 ms for each feed, so that all feeds \
              at rest need 200 requests a second; and as much as lets the feeds of an App ID at rest \
              need half of its requests_per_second; but never more than 2 s.",
    },
    // --- kafka ---
    Key {
        name: "kafka.bootstrap_servers",
        kind: Kind::Text,
        absent: Absent::Required("127.0.0.1:9092"),
        why: "Where the Kafka cluster is found: host:port, several with commas. It has no default, \
              because events that are drained for the wrong cluster are gone.",
    },
    Key {
        name: "kafka.group",
        kind: Kind::Text,
        absent: Absent::Default("agora-rtm-bridge"),
        why: "Prefix of transactional ids and name of the consumer group, so one ACL covers both. \
              Two bridges with the same group and pages topic fence each other: that is what makes a \
              mistake safe.",
    },
    Key {
        name: "kafka.delivery",
        kind: Kind::Choice(&["exactly-once", "at-least-once"]),
        absent: Absent::Default("exactly-once"),
        why: "at-least-once is for brokers without transactions.",
    },
    Key {
        name: "kafka.topics.user_events",
        kind: Kind::Text,
        absent: Absent::Default("agora.rtm.user-events"),
        why: "Logins and logouts, keyed by user id.",
    },
    Key {
        name: "kafka.topics.channel_events",
        kind: Kind::Text,
        absent: Absent::Default("agora.rtm.channel-events"),
        why: "Joins and leaves, keyed by channel id.",
    },
    Key {
        name: "kafka.topics.dead_letter",
        kind: Kind::Text,
        absent: Absent::Default("agora.rtm.dead-letter"),
        why: "What Agora sent and could not be read as an event, byte for byte, with the reason.",
    },
    Key {
        name: "kafka.topics.gaps",
        kind: Kind::Text,
        absent: Absent::Default("agora.rtm.gaps"),
        why: "Where events may be missing: feed, from, to, how many, why.",
    },
    Key {
        name: "kafka.topics.pages",
        kind: Kind::Text,
        absent: Absent::Default("agora.rtm.pages"),
        why: "Answers of Agora as received, on their way to the event topics; personal data.",
    },
    Key {
        name: "kafka.topics.state",
        kind: Kind::Text,
        absent: Absent::Default("agora.rtm.bridge-state"),
        why: "The bridge's memory of what was delivered; compacted. Deleting it invites repeats.",
    },
    Key {
        name: "kafka.topics.create",
        kind: Kind::Flag,
        absent: Absent::Default("true"),
        why: "Whether missing topics are created, and the bridge's own topics get the settings and \
              partitions that they lack. Where false, `check` names what to do.",
    },
    Key {
        name: "kafka.topics.partitions",
        kind: Kind::Count(Bounds {
            least: "1",
            most: "10000",
            because: "a topic has at least one partition, and more make brokers slow",
        }),
        absent: Absent::Default("6"),
        why: "Partitions of the two event topics when they are created, and the fewest when one \
              comes back empty after it was deleted.",
    },
    Key {
        name: "kafka.topics.page_partitions",
        kind: Kind::Count(Bounds {
            least: "1",
            most: "1024",
            because: "each is a Kafka client of its own while it has work",
        }),
        absent: Absent::Default("8"),
        why: "Partitions of the pages and the state topic: as many instances can share the work. \
              Fixed for the life of the topics, because an App ID must not move.",
    },
    Key {
        name: "kafka.topics.replication_factor",
        kind: Kind::Count(Bounds {
            least: "-1",
            most: "32767",
            because: "-1 leaves it to the broker, everything else is a number of copies",
        }),
        absent: Absent::Default("-1"),
        why: "Copies of each topic that is created; -1 takes the broker's default.",
    },
    Key {
        name: "kafka.topics.page_retention",
        kind: Kind::Duration(Bounds {
            least: "1h",
            most: "3650d",
            because: "a page that expires before it is published is lost",
        }),
        absent: Absent::Default("24h"),
        why: "How long the pages topic, when it is created, keeps pages: the time in which a \
              publisher may be down, and in which an error of decoding can be healed by a replay.",
    },
    Key {
        name: "kafka.options.*",
        kind: Kind::Setting,
        absent: Absent::Optional("plaintext"),
        why: "Any setting of librdkafka, passed through, except those that the promises rest on.",
    },
    // --- apps ---
    Key {
        name: "apps[].app_id",
        kind: Kind::Text,
        absent: Absent::Required("876922cbca0098dff4323566daa89675"),
        why: "The App ID from Agora's console. Reading takes its events away from every other \
              reader.",
    },
    Key {
        name: "apps[].hosts",
        kind: Kind::Texts,
        absent: Absent::Default("https://api.agora.io, https://api.sd-rtn.com"),
        why: "Agora's hosts in the order of failover; all of them are one region, named default. \
              The default is the pair that Agora documents.",
    },
    Key {
        name: "apps[].endpoints",
        kind: Kind::Texts,
        absent: Absent::Default("user_events, channel_events"),
        why: "Which of the two endpoints are drained; what is not listed stays with Agora and is \
              overwritten there.",
    },
    Key {
        name: "apps[].path_user_events",
        kind: Kind::Text,
        absent: Absent::Default("rtm/vendor/user_events"),
        why: "The end of the URL of the endpoint, after /dev/v2/project/{app_id}/.",
    },
    Key {
        name: "apps[].path_channel_events",
        kind: Kind::Text,
        absent: Absent::Default("rtm/vendor/channel_events"),
        why: "The same for channel events; old documents of Agora print rtm/hook/channel_events.",
    },
    Key {
        name: "apps[].requests_per_second",
        kind: Kind::Count(Bounds {
            least: "1",
            most: "10",
            because: "Agora answers 429 above ten requests a second of one App ID, over both \
                      endpoints and all regions",
        }),
        absent: Absent::Default("10"),
        why: "How many requests may leave in any second for this App ID; lower it where another \
              program uses the same App ID's limit.",
    },
    Key {
        name: "apps[].allow_plain_http",
        kind: Kind::Flag,
        absent: Absent::Default("false"),
        why: "Whether hosts may be http:// beyond this machine; it sends the credentials and every \
              name in clear.",
    },
    Key {
        name: "apps[].auth.customer_id",
        kind: Kind::Text,
        absent: Absent::Optional("your-customer-id"),
        why: "RESTful credentials of Agora's console, with customer_secret: the form that Agora \
              recommends.",
    },
    Key {
        name: "apps[].auth.customer_secret",
        kind: Kind::Secret,
        absent: Absent::Optional("your-customer-secret"),
        why: "Belongs to customer_id.",
    },
    Key {
        name: "apps[].auth.token",
        kind: Kind::Secret,
        absent: Absent::Optional("007…"),
        why: "Instead of customer_id: a 006 or 007 token made elsewhere. It lives a day at most: \
              give token_file and let the maker rewrite it.",
    },
    Key {
        name: "apps[].auth.app_certificate",
        kind: Kind::Secret,
        absent: Absent::Optional("your-app-certificate"),
        why: "Instead of both: the App Certificate from Agora's console, with user_id. Tokens are \
              made here with it, and renewed.",
    },
    Key {
        name: "apps[].auth.user_id",
        kind: Kind::Text,
        absent: Absent::Optional("the user of the token"),
        why: "The user that a 006 token was made for, or for whom tokens are made with \
              app_certificate.",
    },
    Key {
        name: "apps[].auth.token_version",
        kind: Kind::Choice(&["007", "006"]),
        absent: Absent::Default("007"),
        why: "The form of tokens that are made with app_certificate; 006 is Agora's older one.",
    },
    Key {
        name: "apps[].auth.token_life",
        kind: Kind::Duration(Bounds {
            least: "1m",
            most: "24h",
            because: "clocks differ by seconds, and Agora ends every token after a day",
        }),
        absent: Absent::Default("1h"),
        why: "How long a token lives that is made with app_certificate. It is renewed long before; \
              a short life makes one that leaks worthless soon.",
    },
    Key {
        name: "apps[].regions[].name",
        kind: Kind::Text,
        absent: Absent::Required("eu"),
        why: "Instead of hosts: several regions, each drained on its own, as Agora does not remove \
              events across regions. The name appears in metrics and records.",
    },
    Key {
        name: "apps[].regions[].hosts",
        kind: Kind::Texts,
        absent: Absent::Required("https://api-eu-central-1.agora.io"),
        why: "The region's hosts in the order of failover.",
    },
];
