//! The `[kafka]` section, and the librdkafka settings that it refuses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::reader::{Read, Reader};
use super::{Delivery, Kafka, OptionValue, Topics, keys};

/// Accepted values of `kafka.delivery`.
pub(super) const DELIVERIES: [(&str, Delivery); 2] =
    [("exactly-once", Delivery::ExactlyOnce), ("at-least-once", Delivery::AtLeastOnce)];

/// The librdkafka settings that an operator can't set, and why.
pub(super) const REFUSED: [(&[&str], &str); 14] = [
    (&["bootstrap.servers", "metadata.broker.list"], "set kafka.bootstrap_servers instead"),
    (&["group.id"], "set kafka.group instead; it is also the prefix of the transactional ids"),
    (
        &["transactional.id"],
        "it is built from kafka.group, the partition and kafka.topics.pages, so that a new owner \
         fences the previous one",
    ),
    (&["enable.idempotence"], "without it, the producer's own retries create duplicates"),
    (
        &["acks", "request.required.acks"],
        "the bridge deletes a page only once all in-sync replicas have it",
    ),
    (
        &["retries", "message.send.max.retries"],
        "the producer has to retry until its timeout, or events are left behind",
    ),
    (
        &["max.in.flight", "max.in.flight.requests.per.connection"],
        "order and idempotence are guaranteed for at most five requests, and the bridge sets the \
         limit itself",
    ),
    (
        &["transaction.timeout.ms", "delivery.timeout.ms", "message.timeout.ms"],
        "transactions are short, and the bridge sets these to limit how long one can block readers",
    ),
    (
        &["isolation.level"],
        "the bridge reads committed or uncommitted data, depending on what it reads",
    ),
    (
        &["enable.auto.commit", "auto.commit.enable", "enable.auto.offset.store"],
        "the position is part of the transaction that delivers the events",
    ),
    (
        &["auto.offset.reset", "enable.partition.eof"],
        "where reading starts and ends decides whether pages are published twice or not at all",
    ),
    (
        &["allow.auto.create.topics"],
        "topics that Kafka creates automatically get the broker's default partitions and settings",
    ),
    (
        &["partitioner"],
        "records are partitioned as Kafka's Java client does it, so that joins with its topics \
         work",
    ),
    (
        &["delivery.report.only.error", "test.mock.num.brokers", "test.mock.broker.rtt"],
        "a real broker has to confirm every record before the bridge deletes its page",
    ),
];

/// The librdkafka settings that can disable certificate checks, the values that do so, and what to
/// do instead.
const CERTIFICATE_CHECKS: [(&str, &[&str], &str); 2] = [
    (
        "enable.ssl.certificate.verification",
        &["false", "f", "0"],
        "remove it, and set ssl.ca.location to the CA that signed them",
    ),
    (
        "ssl.endpoint.identification.algorithm",
        &["none"],
        "remove it, and give the brokers certificates for the names in kafka.bootstrap_servers and \
         advertised.listeners",
    ),
];

/// Reads the section.
pub(super) fn kafka(reader: &mut Reader) -> Read<Kafka> {
    let servers = reader.checked("kafka.bootstrap_servers", bootstrap_servers);
    let group = reader.checked("kafka.group", group);
    let delivery = reader.choice("kafka.delivery", &DELIVERIES);
    let topics = topics(reader);
    let options = options(reader);
    if let Ok(servers) = &servers
        && !servers.split(',').all(is_loopback)
    {
        refuse_unchecked_certificates(reader, options.as_ref().ok());
    }
    Ok(Kafka {
        bootstrap_servers: servers?,
        group: group?,
        delivery: delivery?,
        topics: topics?,
        options: options?,
    })
}

fn bootstrap_servers(text: &str) -> Result<String, String> {
    let servers: Vec<_> = text.split(',').map(str::trim).collect();
    match servers.iter().find(|server| !is_server(server)) {
        None => Ok(servers.join(",")),
        Some(_) => {
            Err(r#"must be host:port, or several separated by commas, as in "kafka-1:9092""#
                .to_owned())
        }
    }
}

fn is_server(server: &str) -> bool {
    // librdkafka also takes `SASL_SSL://host:port`.
    let address = server.split_once("://").map_or(server, |(_, address)| address);
    let (host, port) = address.rsplit_once(':').unwrap_or_default();
    let legal = |letter: char| letter.is_ascii_alphanumeric() || ".-_:[]".contains(letter);
    !host.is_empty() && host.chars().all(legal) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// Whether a server is on this machine.
fn is_loopback(server: &str) -> bool {
    let address = server.split_once("://").map_or(server, |(_, address)| address);
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|it| it.is_loopback())
}

/// Without certificate checks, anyone on the network path to a broker could read and change
/// passwords and events. That is acceptable only on loopback.
fn refuse_unchecked_certificates(
    reader: &mut Reader,
    options: Option<&BTreeMap<String, OptionValue>>,
) {
    for (name, switched_off, remedy) in CERTIFICATE_CHECKS {
        let path = format!("kafka.options.{name}");
        let is_off = match options.and_then(|options| options.get(name)) {
            None => continue,
            Some(OptionValue::Plain(text)) => {
                switched_off.iter().any(|word| text.trim().eq_ignore_ascii_case(word))
            }
            // The content of a file may change later.
            Some(OptionValue::Secret(_)) => true,
        };
        if is_off {
            let file = format!("{path}_file");
            let written = if reader.is_given(&path) { path } else { file };
            reader.fault(
                &written,
                format!(
                    "leaves the brokers' certificates unchecked, but kafka.bootstrap_servers has \
                     servers on other machines: {remedy}"
                ),
            );
        }
    }
}

fn group(text: &str) -> Result<String, String> {
    let legal = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    if text.is_empty() || text.len() > 200 || !text.chars().all(legal) {
        return Err("must be 1 to 200 letters, digits, dots, dashes and underscores: it is \
                    the prefix of names in Kafka that ACLs match"
            .to_owned());
    }
    Ok(text.to_owned())
}

fn topics(reader: &mut Reader) -> Read<Topics> {
    let mut names = BTreeMap::new();
    let mut name = |reader: &mut Reader, key: &str| {
        let path = format!("kafka.topics.{key}");
        let name = reader.checked(&path, topic)?;
        // Kafka refuses to create `a_b` if `a.b` exists, because their metric names collide.
        let Some(other) = names.insert(name.replace('_', "."), path.clone()) else {
            return Ok(name);
        };
        let differ = |other: &str| {
            format!(
                "must differ from {other} in more than dots and underscores: each topic holds a \
                 different kind of record"
            )
        };
        Err(reader.conflict((&path, differ(&other)), (&other, differ(&path))))
    };
    let user_events = name(reader, "user_events");
    let channel_events = name(reader, "channel_events");
    let dead_letter = name(reader, "dead_letter");
    let gaps = name(reader, "gaps");
    let pages = name(reader, "pages");
    let state = name(reader, "state");
    let create = reader.flag("kafka.topics.create");
    let partitions = reader.count("kafka.topics.partitions");
    let page_partitions = reader.count("kafka.topics.page_partitions");
    let replication_factor = match reader.count("kafka.topics.replication_factor") {
        Ok(0) => Err(reader.fault("kafka.topics.replication_factor", "must be -1 or at least 1")),
        other => other,
    };
    let page_retention = reader.duration("kafka.topics.page_retention");
    Ok(Topics {
        user_events: user_events?,
        channel_events: channel_events?,
        dead_letter: dead_letter?,
        gaps: gaps?,
        pages: pages?,
        state: state?,
        create: create?,
        partitions: partitions?,
        page_partitions: page_partitions?,
        replication_factor: replication_factor?,
        page_retention: page_retention?,
    })
}

fn topic(text: &str) -> Result<String, String> {
    let legal = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    let is_name = (1..=249).contains(&text.len()) && text.chars().all(legal);
    if !is_name || text == "." || text == ".." {
        return Err("is not a name that Kafka accepts: use 1 to 249 letters, digits, dots, \
                    dashes and underscores"
            .to_owned());
    }
    Ok(text.to_owned())
}

fn options(reader: &mut Reader) -> Read<BTreeMap<String, OptionValue>> {
    let names = reader.options();
    let options: Vec<_> = names.into_iter().map(|name| option(reader, name)).collect();
    options.into_iter().collect()
}

fn option(reader: &mut Reader, name: String) -> Read<(String, OptionValue)> {
    let path = format!("kafka.options.{name}");
    let file = format!("{path}_file");
    let written = if reader.is_given(&path) { &path } else { &file };
    if let Some(reason) = refusal(&name) {
        return Err(reader.fault(written, reason));
    }
    let legal = |letter: char| letter.is_ascii_lowercase() || "._0123456789".contains(letter);
    if name.is_empty() || !name.chars().all(legal) {
        let reason = "is not a librdkafka setting: their names are in lower case";
        return Err(reader.fault(written, reason));
    }
    let is_secret = keys::is_secret(&path) || reader.is_given(&file);
    let value = if is_secret {
        reader.secret(&path)?.map(OptionValue::Secret)
    } else {
        reader.optional(&path, |text| Ok(OptionValue::Plain(text.to_owned())))?
    };
    Ok((name, value.expect("an option is listed because it is given")))
}

fn refusal(name: &str) -> Option<String> {
    let (_, why) = REFUSED.iter().find(|(names, _)| names.contains(&name))?;
    Some(format!("can't be set: {why}"))
}
