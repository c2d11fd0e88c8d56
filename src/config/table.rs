//! The table of all keys, in the order of the reference page.
//!
//! A new key needs a row here, a field of [`Settings`](super::Settings), a line where its section
//! is read and a line where it is shown; tests check that none of the four is missing.

use super::keys::{Absent, Bounds, Key, Kind};

/// All keys.
pub(super) const KEYS: &[Key] = &[
    Key {
        name: "data_dir",
        kind: Kind::Path,
        absent: Absent::Default("/var/lib/agora-rtm-bridge"),
        why: "Directory of the journal. The journal holds events that Agora has deleted and Kafka \
              has not confirmed yet, so put it on a disk that survives a restart.",
    },
    Key {
        name: "instance",
        kind: Kind::Text,
        absent: Absent::HostName,
        why: "Name of this process in logs, metrics and Kafka's client.id. The default is the host \
              name, so that an operator knows which machine to look at.",
    },
    Key {
        name: "shutdown_grace",
        kind: Kind::Duration(Bounds {
            least: "1s",
            most: "1h",
            because: "a shutdown has to wait for outstanding requests, and has to end",
        }),
        absent: Absent::Default("20s"),
        why: "Maximum time for a shutdown to wait for outstanding answers, the journal and Kafka. \
              It stops waiting for Kafka after five seconds without a confirmation. Must be longer \
              than the longest request (agora.silence_timeout plus 4s), because requests are never \
              cancelled.",
    },
    // --- log ---
    Key {
        name: "log.format",
        kind: Kind::Choice(&["text", "json"]),
        absent: Absent::Default("text"),
        why: "text is for people; json, one object per line, is for log collectors.",
    },
    Key {
        name: "log.level",
        kind: Kind::Text,
        absent: Absent::Default("info"),
        why: "error, warn, info, debug or trace, optionally per module as in \
              \"info,agora_rtm_bridge::schedule=debug\". info covers the life of the process and \
              logs nothing per page.",
    },
    // --- http ---
    Key {
        name: "http.listen",
        kind: Kind::Address,
        absent: Absent::Default("127.0.0.1:9464"),
        why: "Listen address for /metrics, /live, /ready, /status.json and the status page. The \
              default is loopback because they require no password. In a container, use \
              \"0.0.0.0:9464\".",
    },
    // --- journal ---
    Key {
        name: "journal.max_size",
        kind: Kind::Size(Bounds {
            least: "64MiB",
            most: "1024TiB",
            because: "32 MiB are reserved for a full disk, and each outstanding request reserves \
                      space for its page",
        }),
        absent: Absent::Default("4GiB"),
        why: "Maximum disk space for the journal. While Kafka is unavailable the journal grows, \
              and polling pauses at this size. The default holds about an hour of one App ID at \
              Agora's rate limit.",
    },
    // --- agora ---
    Key {
        name: "agora.connect_timeout",
        kind: Kind::Duration(Bounds {
            least: "100ms",
            most: "60s",
            because: "below that a slow handshake never completes; above it Agora's buffer \
                      overflows before another host is tried",
        }),
        absent: Absent::Default("5s"),
        why: "Maximum time to connect to Agora, including TLS. No request has been sent at that \
              point, so a timeout loses nothing.",
    },
    Key {
        name: "agora.silence_timeout",
        kind: Kind::Duration(Bounds {
            least: "1s",
            most: "10m",
            because: "the events of an abandoned answer are lost",
        }),
        absent: Absent::Default("15s"),
        why: "Maximum time without receiving a byte before the answer to a request counts as lost. \
              The default is long because events in a lost answer can't be requested again.",
    },
    Key {
        name: "agora.ca_file",
        kind: Kind::Path,
        absent: Absent::Optional("/etc/ssl/certs/my-proxy.pem"),
        why: "CA certificates (PEM) to trust for Agora's hosts in addition to the system's, for \
              example the CA of a TLS-inspecting proxy. Reread every five minutes.",
    },
    Key {
        name: "agora.system_certificates",
        kind: Kind::Flag,
        absent: Absent::Default("true"),
        why: "false trusts only the certificates in agora.ca_file.",
    },
    Key {
        name: "agora.client_certificate_file",
        kind: Kind::Path,
        absent: Absent::Optional("/etc/ssl/bridge.pem"),
        why: "Client certificate (PEM, including the intermediate chain) for a server or proxy \
              that requests one. Requires agora.client_key_file.",
    },
    Key {
        name: "agora.client_key_file",
        kind: Kind::Path,
        absent: Absent::Optional("/etc/ssl/private/bridge.pem"),
        why: "Private key (PEM) of agora.client_certificate_file.",
    },
    Key {
        name: "agora.proxy",
        kind: Kind::Text,
        absent: Absent::Optional("http://proxy.example:3128"),
        why: "HTTP proxy for requests to Agora. If unset, HTTPS_PROXY and NO_PROXY apply. Hosts on \
              this machine always bypass the proxy.",
    },
    Key {
        name: "agora.proxy_password",
        kind: Kind::Secret,
        absent: Absent::Optional("your-proxy-password"),
        why: "Password for the proxy. Put the user name in agora.proxy: \
              http://user@proxy.example:3128.",
    },
    // --- poll ---
    Key {
        name: "poll.shortest_interval",
        kind: Kind::Duration(Bounds {
            least: "10ms",
            most: "60s",
            because: "requests_per_second is the real limit, and Agora's buffer must not overflow",
        }),
        absent: Absent::Default("250ms"),
        why: "Minimum time before a feed that has just returned events is polled again. A feed \
              that is about to hold a full page is polled sooner.",
    },
    Key {
        name: "poll.longest_interval",
        kind: Kind::Duration(Bounds {
            least: "10ms",
            most: "60s",
            because: "Agora keeps 2,000 events, and a burst can start right after an answer",
        }),
        absent: Absent::Computed("500ms", "; default: see above"),
        why: "Maximum time between polls of an empty feed. The interval doubles up to this limit, \
              which bounds the age of the first event after a quiet period unless busier feeds of \
              the App ID need the requests. The default is 500 ms; from 100 feeds on, 5 ms per \
              feed, so that all idle feeds together need 200 requests a second; and long enough \
              that the idle feeds of an App ID use at most half of its requests_per_second; but \
              never more than 2 s.",
    },
    // --- kafka ---
    Key {
        name: "kafka.bootstrap_servers",
        kind: Kind::Text,
        absent: Absent::Required("127.0.0.1:9092"),
        why: "Bootstrap servers of the Kafka cluster: host:port, separated by commas. There is no \
              default, because events that are drained into the wrong cluster are gone.",
    },
    Key {
        name: "kafka.group",
        kind: Kind::Text,
        absent: Absent::Default("agora-rtm-bridge"),
        why: "Prefix of transactional ids and name of the consumer group, so that one ACL covers \
              both. Two bridges with the same group and pages topic fence each other, which makes \
              an accidental second bridge harmless.",
    },
    Key {
        name: "kafka.delivery",
        kind: Kind::Choice(&["exactly-once", "at-least-once"]),
        absent: Absent::Default("exactly-once"),
        why: "Use at-least-once only for brokers without transactions.",
    },
    Key {
        name: "kafka.topics.user_events",
        kind: Kind::Text,
        absent: Absent::Default("agora.rtm.user-events"),
        why: "Topic for logins and logouts, keyed by user id.",
    },
    Key {
        name: "kafka.topics.channel_events",
        kind: Kind::Text,
        absent: Absent::Default("agora.rtm.channel-events"),
        why: "Topic for joins and leaves, keyed by channel id.",
    },
    Key {
        name: "kafka.topics.dead_letter",
        kind: Kind::Text,
        absent: Absent::Default("agora.rtm.dead-letter"),
        why: "Topic for data from Agora that could not be decoded as an event: the raw bytes and \
              the reason.",
    },
    Key {
        name: "kafka.topics.gaps",
        kind: Kind::Text,
        absent: Absent::Default("agora.rtm.gaps"),
        why: "Topic for gaps, where events may be missing: feed, from, to, how many, why.",
    },
    Key {
        name: "kafka.topics.pages",
        kind: Kind::Text,
        absent: Absent::Default("agora.rtm.pages"),
        why: "Topic for Agora's answers as received, on their way to the event topics. Contains \
              personal data.",
    },
    Key {
        name: "kafka.topics.state",
        kind: Kind::Text,
        absent: Absent::Default("agora.rtm.bridge-state"),
        why: "Compacted topic for the bridge's record of what it has delivered. Deleting it can \
              cause duplicates.",
    },
    Key {
        name: "kafka.topics.create",
        kind: Kind::Flag,
        absent: Absent::Default("true"),
        why: "Whether to create missing topics, and to add missing settings and partitions to the \
              bridge's own topics. If false, `check` lists what to change.",
    },
    Key {
        name: "kafka.topics.partitions",
        kind: Kind::Count(Bounds {
            least: "1",
            most: "10000",
            because: "a topic has at least one partition, and very many slow the brokers down",
        }),
        absent: Absent::Default("6"),
        why: "Number of partitions for each of the two event topics when they are created, and the \
              minimum when one is deleted and comes back empty.",
    },
    Key {
        name: "kafka.topics.page_partitions",
        kind: Kind::Count(Bounds {
            least: "1",
            most: "1024",
            because: "each uses a Kafka client while it has work",
        }),
        absent: Absent::Default("8"),
        why: "Number of partitions for the pages and state topics, which is the number of \
              instances that can share the work. Fixed for the life of the topics, because an App \
              ID must stay in its partition.",
    },
    Key {
        name: "kafka.topics.replication_factor",
        kind: Kind::Count(Bounds {
            least: "-1",
            most: "32767",
            because: "-1 uses the broker's default, anything else is the number of replicas",
        }),
        absent: Absent::Default("-1"),
        why: "Replication factor for topics that the bridge creates; -1 uses the broker's default.",
    },
    Key {
        name: "kafka.topics.page_retention",
        kind: Kind::Duration(Bounds {
            least: "1h",
            most: "3650d",
            because: "a page that expires before it is published is lost",
        }),
        absent: Absent::Default("24h"),
        why: "Retention of the pages topic when it is created. This is how long publishing can be \
              down without losing pages, and how far back a replay can correct a decoding error.",
    },
    Key {
        name: "kafka.options.*",
        kind: Kind::Setting,
        absent: Absent::Optional("plaintext"),
        why: "Any librdkafka setting, passed through unchanged, except those that the delivery \
              guarantees depend on.",
    },
    // --- apps ---
    Key {
        name: "apps[].app_id",
        kind: Kind::Text,
        absent: Absent::Required("876922cbca0098dff4323566daa89675"),
        why: "App ID from Agora's console. Polling removes its events for every other consumer.",
    },
    Key {
        name: "apps[].hosts",
        kind: Kind::Texts,
        absent: Absent::Default("https://api.agora.io, https://api.sd-rtn.com"),
        why: "Agora's hosts in failover order. Together they form one region, named default. The \
              default is the pair that Agora documents.",
    },
    Key {
        name: "apps[].endpoints",
        kind: Kind::Texts,
        absent: Absent::Default("user_events, channel_events"),
        why: "Endpoints to drain. Events of an endpoint that is not listed stay at Agora until \
              newer ones overwrite them.",
    },
    Key {
        name: "apps[].path_user_events",
        kind: Kind::Text,
        absent: Absent::Default("rtm/vendor/user_events"),
        why: "URL path of the user-events endpoint, after /dev/v2/project/{app_id}/.",
    },
    Key {
        name: "apps[].path_channel_events",
        kind: Kind::Text,
        absent: Absent::Default("rtm/vendor/channel_events"),
        why: "URL path of the channel-events endpoint. Older Agora documentation shows \
              rtm/hook/channel_events.",
    },
    Key {
        name: "apps[].requests_per_second",
        kind: Kind::Count(Bounds {
            least: "1",
            most: "10",
            because: "Agora answers 429 above ten requests a second for one App ID, across both \
                      endpoints and all regions",
        }),
        absent: Absent::Default("10"),
        why: "Maximum number of requests in any second for this App ID. Lower it if another \
              program shares the App ID's rate limit.",
    },
    Key {
        name: "apps[].allow_plain_http",
        kind: Kind::Flag,
        absent: Absent::Default("false"),
        why: "Whether to allow http:// for hosts other than this machine, which sends the \
              credentials and all names in clear text.",
    },
    Key {
        name: "apps[].auth.customer_id",
        kind: Kind::Text,
        absent: Absent::Optional("your-customer-id"),
        why: "RESTful API customer ID from Agora's console, used with customer_secret. This is the \
              method that Agora recommends.",
    },
    Key {
        name: "apps[].auth.customer_secret",
        kind: Kind::Secret,
        absent: Absent::Optional("your-customer-secret"),
        why: "The secret for customer_id.",
    },
    Key {
        name: "apps[].auth.token",
        kind: Kind::Secret,
        absent: Absent::Optional("007…"),
        why: "Instead of customer_id: a 006 or 007 token that another program issues. Tokens \
              expire within a day, so use token_file and let that program rewrite the file.",
    },
    Key {
        name: "apps[].auth.app_certificate",
        kind: Kind::Secret,
        absent: Absent::Optional("your-app-certificate"),
        why: "Instead of customer_id or token: the App Certificate from Agora's console, used with \
              user_id. The bridge generates and renews its own tokens with it.",
    },
    Key {
        name: "apps[].auth.user_id",
        kind: Kind::Text,
        absent: Absent::Optional("the user of the token"),
        why: "The user that a 006 token was issued for, or the user to generate tokens for with \
              app_certificate.",
    },
    Key {
        name: "apps[].auth.token_version",
        kind: Kind::Choice(&["007", "006"]),
        absent: Absent::Default("007"),
        why: "Version of the tokens that the bridge generates with app_certificate; 006 is Agora's \
              older format.",
    },
    Key {
        name: "apps[].auth.token_life",
        kind: Kind::Duration(Bounds {
            least: "1m",
            most: "24h",
            because: "clocks differ by seconds, and every Agora token expires after a day at most",
        }),
        absent: Absent::Default("1h"),
        why: "Lifetime of the tokens that the bridge generates with app_certificate. They are \
              renewed well before they expire. With a short lifetime, a leaked token is soon \
              useless.",
    },
    Key {
        name: "apps[].regions[].name",
        kind: Kind::Text,
        absent: Absent::Required("eu"),
        why: "Instead of hosts: several regions, each drained separately because Agora does not \
              synchronise removal across regions. The name appears in metrics and records.",
    },
    Key {
        name: "apps[].regions[].hosts",
        kind: Kind::Texts,
        absent: Absent::Required("https://api-eu-central-1.agora.io"),
        why: "The region's hosts in failover order.",
    },
];
