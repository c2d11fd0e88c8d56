//! What a person can do about a failure of Kafka, by the words that librdkafka and brokers use.
//!
//! Words, because a refused password, an unknown certificate and a wrong protocol have the same error
//! code in librdkafka and differ only in the text.

/// For TLS alerts, which each TLS version words differently.
const SHOW_A_CERTIFICATE: &str = "the brokers want to see a certificate that they trust: set \
                                  \"ssl.certificate.location\" and \"ssl.key.location\" in \
                                  [kafka.options]; a renewed one is read at the next attempt";

/// For connections that brokers close.
const CHECK_THE_PROTOCOL: &str = "check kafka.bootstrap_servers, and \"security.protocol\" in \
                                  [kafka.options]: brokers that want TLS or SASL hang up without a \
                                  word";

/// For records, or a coordinator, of brokers that otherwise answer.
const CHECK_EVERY_BROKER: &str = "check that every broker runs, can be reached from here at its \
                                  advertised address, and has enough replicas in sync \
                                  (min.insync.replicas)";

/// Words of a reason, and what to do. The first that occurs counts.
const REMEDIES: &[(&str, &str)] = &[
    (
        "certificate verify failed",
        "set \"ssl.ca.location\" in [kafka.options] to the CA that signed the brokers' certificates",
    ),
    (
        "verify that ssl.ca.location",
        "set \"ssl.ca.location\" in [kafka.options] to the CA that signed the brokers' certificates",
    ),
    (
        "connecting to a PLAINTEXT broker listener",
        "that port does not speak TLS: use the TLS port in kafka.bootstrap_servers, or another \
         \"security.protocol\" in [kafka.options]",
    ),
    (
        "security.protocol",
        "set \"security.protocol\" in [kafka.options] to what that port of the brokers speaks",
    ),
    (
        "transaction.state.log.replication.factor",
        "set transaction.state.log.replication.factor and transaction.state.log.min.isr of the \
         brokers to no more than there are brokers, or kafka.delivery to \"at-least-once\"",
    ),
    (
        "transaction.state.log.min.isr",
        "start the brokers that are down, or set transaction.state.log.min.isr of the brokers to 1",
    ),
    (
        "offsets.topic.replication.factor",
        "set offsets.topic.replication.factor of the brokers to no more than there are brokers",
    ),
    ("has no leader", "start the brokers that are down"),
    (
        "replicas are in sync, at worst",
        "if these are too few, start the brokers that are down, or set min.insync.replicas of the \
         topic to no more than are in sync; pages wait in the journal",
    ),
    (
        "NotEnoughReplicas",
        "start the brokers that are down, or set min.insync.replicas of the topic to no more than \
         are in sync; pages wait in the journal",
    ),
    ("tls alert", SHOW_A_CERTIFICATE),
    ("tlsv1 alert", SHOW_A_CERTIFICATE),
    ("tlsv13 alert", SHOW_A_CERTIFICATE),
    ("sslv3 alert", SHOW_A_CERTIFICATE),
    (
        "not valid in current SASL state",
        "that port does not speak SASL: set \"security.protocol\" in [kafka.options] to what it speaks, \
         or use the port for SASL in kafka.bootstrap_servers",
    ),
    (
        "No provider for SASL mechanism",
        "set \"sasl.mechanism\" in [kafka.options] to PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512",
    ),
    (
        "Unsupported SASL mechanism",
        "set \"sasl.mechanism\" in [kafka.options] to PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512",
    ),
    (
        "SASL mechanism",
        "the brokers refuse the mechanism or the password: check \"sasl.mechanism\", \
         \"sasl.username\" and \"sasl.password\" in [kafka.options]",
    ),
    (
        "uthentication fail",
        "check \"sasl.mechanism\", \"sasl.username\" and \"sasl.password\" in [kafka.options]; a \
         password in a file is read again at the next attempt",
    ),
    (
        "SSL handshake failed",
        "check the port in kafka.bootstrap_servers and the ssl settings in [kafka.options]",
    ),
    (
        "Failed to resolve",
        "check the spelling of kafka.bootstrap_servers, and whether this machine resolves the name",
    ),
    (
        "TransactionalIdAuthorizationFailed",
        "grant Write and Describe on the transactional ids that begin with kafka.group, or set \
         kafka.delivery to \"at-least-once\"",
    ),
    (
        "Transactional Id authorization failed",
        "grant Write and Describe on the transactional ids that begin with kafka.group, or set \
         kafka.delivery to \"at-least-once\"",
    ),
    ("GroupAuthorizationFailed", "grant Read on the group that is kafka.group"),
    ("Group authorization failed", "grant Read on the group that is kafka.group"),
    ("WaitCoord", "grant Read on the group that is kafka.group"),
    (
        "TopicAuthorizationFailed",
        "grant Describe, DescribeConfigs and Write on the topic; on kafka.topics.pages and \
         kafka.topics.state Read too; and Create where kafka.topics.create is true",
    ),
    (
        "ClusterAuthorizationFailed",
        "grant Create on the topics (or on the cluster), or create them by hand and set \
         kafka.topics.create to false; brokers before 2.8 want IdempotentWrite on the cluster, too",
    ),
    (
        "InvalidReplicationFactor",
        "set kafka.topics.replication_factor to no more than there are brokers",
    ),
    ("PolicyViolation", "create the topics by hand, as the cluster's policy wants them"),
    (
        "Connection refused",
        "check kafka.bootstrap_servers, and whether a broker runs there; pages wait in the journal",
    ),
    ("Message timed out", CHECK_EVERY_BROKER),
    ("Timed out waiting for operation", CHECK_EVERY_BROKER),
    (
        "timed out",
        "check kafka.bootstrap_servers and the way there (firewall, network policy); pages wait in \
         the journal",
    ),
    ("brokers are down", CHECK_THE_PROTOCOL),
    ("Broken pipe", CHECK_THE_PROTOCOL),
    ("Connection reset", CHECK_THE_PROTOCOL),
    ("BrokerTransportFailure", "check kafka.bootstrap_servers, and whether a broker runs there"),
    ("No such configuration property", "correct the name in [kafka.options], or delete it"),
];

/// What to do about it, where that is known.
pub(super) fn remedy(reason: &str) -> Option<&'static str> {
    REMEDIES.iter().find(|(words, _)| reason.contains(words)).map(|(_, remedy)| *remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_librdkafka_says_leads_to_the_key_to_change() {
        for (said, key) in [
            ("SASL authentication error: Authentication failed: Invalid username", "sasl.password"),
            (
                "SASL authentication error: Authentication failed during authentication due to \
                 invalid credentials with SASL mechanism SCRAM-SHA-512",
                "sasl.mechanism",
            ),
            ("SSL handshake failed: error:0A000086:certificate verify failed", "ssl.ca.location"),
            (
                "SSL handshake failed: Disconnected: connecting to a PLAINTEXT broker listener?",
                "security.protocol",
            ),
            ("Failed to resolve 'kafka.invalid:9092': Name or service not known", "spelling"),
            ("Connect to ipv4#127.0.0.1:1 failed: Connection refused", "bootstrap_servers"),
            (
                "Receive failed: error:0A000412:SSL routines::ssl/tls alert bad certificate",
                "ssl.key",
            ),
            ("Unsupported SASL mechanism: FOO", "PLAIN"),
            ("SSL routines::tlsv13 alert certificate required", "ssl.key"),
            ("Global error: MessageTimedOut (Local: Message timed out)", "min.insync.replicas"),
            ("Timed out waiting for operation to finish, retry call to resume", "advertised"),
            (
                "although Kafka answers (1 of 3 replicas are in sync, at worst)",
                "min.insync.replicas",
            ),
            (
                "`__transaction_state` can't be made by 1 broker(s): \
                 transaction.state.log.replication.factor is larger",
                "no more than there are brokers",
            ),
            (
                "SASL PLAIN mechanism handshake failed: Broker: Request not valid in current SASL \
                 state: broker's supported mechanisms: ",
                "security.protocol",
            ),
            ("1/1 brokers are down", "security.protocol"),
            ("Send failed: Broken pipe", "security.protocol"),
            ("Broker: Transactional Id authorization failed", "grant Write"),
            ("TopicAuthorizationFailed (Broker: Topic authorization failed)", "grant"),
        ] {
            assert!(remedy(said).unwrap_or_default().contains(key), "{said}");
        }
        for said in ["InvalidTimestamp", "no record reached `alerts`: Broker: Not leader"] {
            assert_eq!(remedy(said), None);
        }
    }
}
