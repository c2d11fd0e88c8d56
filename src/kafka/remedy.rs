//! What a person can do about a failure of Kafka, by the words that librdkafka and brokers use.
//!
//! Words, because librdkafka tells a refused password, a strange certificate and a wrong protocol
//! only in the text beside one and the same code.

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
        "alert",
        "the brokers want to see a certificate that they trust: set \"ssl.certificate.location\" \
         and \"ssl.key.location\" in [kafka.options]",
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
         kafka.topics.create to false",
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
    (
        "timed out",
        "check kafka.bootstrap_servers and the way there (firewall, network policy); pages wait in \
         the journal",
    ),
    (
        "brokers are down",
        "check kafka.bootstrap_servers, and \"security.protocol\" in [kafka.options]: brokers that \
         want TLS or SASL hang up without a word",
    ),
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
            ("1/1 brokers are down", "security.protocol"),
            ("Broker: Transactional Id authorization failed", "grant Write"),
            ("TopicAuthorizationFailed (Broker: Topic authorization failed)", "grant"),
        ] {
            assert!(remedy(said).unwrap_or_default().contains(key), "{said}");
        }
        assert_eq!(remedy("InvalidTimestamp"), None);
    }
}
