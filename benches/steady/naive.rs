//! The naive poller: the script that people write first.
//!
//! It is a careful one: it follows up full pages at once, checks the answers, and waits until Kafka
//! has confirmed a page before it requests the next. It can't do what the bridge is for: until then
//! a page exists only in its memory, so a restart or an outage of Kafka loses all pages in flight,
//! and two regions publish everything twice. None of that happens in a steady benchmark.

use std::time::Duration;

use agora_rtm_bridge::model::{Endpoint, PAGE_LIMIT};
use clap::Args;
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use reqwest::Client;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

use super::agora::Agora;
use crate::support::names::Names;

/// Its settings.
#[derive(Debug, Args)]
pub(crate) struct Naive {
    #[arg(long)]
    app_id: String,
    #[arg(long)]
    user: String,
    #[arg(long)]
    password: String,
    #[arg(long)]
    user_events: String,
    #[arg(long)]
    channel_events: String,
    #[arg(long)]
    bootstrap: String,
    #[arg(long)]
    user_topic: String,
    #[arg(long)]
    channel_topic: String,
}

const INTERVAL: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
struct Answer {
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    user_id: String,
    #[serde(rename = "type")]
    kind: String,
    group_id: Option<String>,
    ms: i64,
}

#[derive(Serialize)]
struct Value<'a> {
    app_id: &'a str,
    endpoint: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    user_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel_id: Option<&'a str>,
    ms: i64,
}

struct Poller<'a> {
    order: &'a Naive,
    client: Client,
    producer: FutureProducer,
}

/// Polls until it is killed.
pub(crate) fn run(order: &Naive) {
    drop(rustls::crypto::ring::default_provider().install_default());
    let poller = Poller {
        order,
        client: Client::new(),
        producer: ClientConfig::new()
            .set("bootstrap.servers", &order.bootstrap)
            .create()
            .expect("the settings are right"),
    };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be started")
        .block_on(poller.poll());
}

// === impl Naive ===

impl Naive {
    /// The environment of a process that polls `agora` into the topics of `names`.
    pub(crate) fn arguments(agora: &Agora, bootstrap: &str, names: &Names) -> Vec<String> {
        let pairs = [
            ("--app-id", agora.app().app_id.to_string()),
            ("--user", agora.app().customer_id.clone()),
            ("--password", agora.app().customer_secret.clone()),
            ("--user-events", agora.path(Endpoint::User)),
            ("--channel-events", agora.path(Endpoint::Channel)),
            ("--bootstrap", bootstrap.to_owned()),
            ("--user-topic", names.user_events.clone()),
            ("--channel-topic", names.channel_events.clone()),
        ];
        let pairs = pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        std::iter::once("naive".to_owned()).chain(pairs).collect()
    }
}

// === impl Poller ===

impl Poller<'_> {
    async fn poll(&self) {
        let Naive { user_events, channel_events, user_topic, channel_topic, .. } = self.order;
        let mut next = Instant::now();
        loop {
            for (endpoint, url, topic) in [
                (Endpoint::User, user_events, user_topic),
                (Endpoint::Channel, channel_events, channel_topic),
            ] {
                while self.ask(url, endpoint, topic).await >= PAGE_LIMIT {}
            }
            next += INTERVAL;
            sleep_until(next).await;
        }
    }

    /// Fetches one page; returns its number of events.
    #[expect(clippy::disallowed_methods, reason = "a simple script would do this")]
    async fn ask(&self, url: &str, endpoint: Endpoint, topic: &str) -> u64 {
        let request = self.client.get(url).basic_auth(&self.order.user, Some(&self.order.password));
        let answered = async { request.send().await?.error_for_status()?.bytes().await };
        let body = match answered.await {
            Ok(body) => body,
            Err(error) => {
                eprintln!("{endpoint}: {error}");
                return 0;
            }
        };
        match serde_json::from_slice::<Answer>(&body) {
            Ok(answer) => {
                self.publish(endpoint, topic, &answer.events).await;
                answer.events.len() as u64
            }
            Err(error) => {
                eprintln!("{endpoint}: {error}");
                0
            }
        }
    }

    async fn publish(&self, endpoint: Endpoint, topic: &str, events: &[Event]) {
        let mut on_the_way = Vec::with_capacity(events.len());
        for Event { user_id, kind, group_id, ms } in events {
            let channel_id = group_id.as_deref();
            let app_id = &self.order.app_id;
            let value =
                Value { app_id, endpoint: endpoint.name(), kind, user_id, channel_id, ms: *ms };
            let value = serde_json::to_vec(&value).expect("it is plain text");
            let record = FutureRecord::to(topic).key(channel_id.unwrap_or(user_id)).payload(&value);
            match self.producer.send_result(record) {
                Ok(sent) => on_the_way.push(sent),
                Err((error, _)) => eprintln!("{endpoint}: {error}"),
            }
        }
        for sent in on_the_way {
            match sent.await {
                Ok(Ok(_)) => {}
                Ok(Err((error, _))) => eprintln!("{endpoint}: {error}"),
                Err(_) => eprintln!("{endpoint}: the producer is gone"),
            }
        }
    }
}
