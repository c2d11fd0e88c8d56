//! The effective configuration as TOML, for people to read.

use std::fmt::Display;
use std::time::Duration;

use super::apps::{ONLY_REGION, TOKEN_FORMS};
use super::fault::quoted;
use super::general::LOG_FORMATS;
use super::kafka::DELIVERIES;
use super::{
    App, Auth, EndpointPath, Host, OptionValue, Origins, RegionHosts, Secret, Settings, units,
};

/// A TOML document under construction.
#[derive(Debug, Default)]
struct Page<'a> {
    text: String,
    /// The path of the group that is being shown, with its dot.
    group: String,
    /// Where each value was set, if that is to be shown.
    origins: Option<&'a Origins>,
}

impl Settings {
    /// The effective configuration (file, environment and defaults) as TOML that yields the same
    /// settings. Secrets are `"***"`; for a secret in a file, the path is shown.
    pub fn shown(&self) -> String {
        self.show(Page::default())
    }

    /// The same, with a comment on each value that says where it was set.
    pub fn shown_with(&self, origins: &Origins) -> String {
        self.show(Page { origins: Some(origins), ..Page::default() })
    }

    fn show(&self, mut page: Page<'_>) -> String {
        page.text("data_dir", self.data_dir.display());
        page.text("instance", &self.instance);
        page.duration("shutdown_grace", self.shutdown_grace);
        page.group("[log]");
        page.text("format", word(&LOG_FORMATS, self.log.format));
        page.text("level", &self.log.level);
        page.group("[http]");
        page.text("listen", self.http.listen);
        page.group("[journal]");
        page.text("max_size", units::show_size(self.journal.max_size));
        self.show_agora(&mut page);
        self.show_kafka(&mut page);
        for (index, app) in self.apps.iter().enumerate() {
            app.show(&mut page, index);
        }
        page.text
    }

    fn show_agora(&self, page: &mut Page<'_>) {
        let agora = &self.agora;
        page.group("[agora]");
        page.duration("connect_timeout", agora.connect_timeout);
        page.duration("silence_timeout", agora.silence_timeout);
        if let Some(file) = &agora.ca_file {
            page.text("ca_file", file.display());
        }
        page.bare("system_certificates", agora.system_certificates);
        if let Some((certificate, key)) = &agora.client_certificate {
            page.text("client_certificate_file", certificate.display());
            page.text("client_key_file", key.display());
        }
        if let Some(proxy) = &agora.proxy {
            page.text("proxy", proxy);
        }
        if let Some(password) = &agora.proxy_password {
            page.secret("proxy_password", password);
        }
        page.group("[poll]");
        page.duration("shortest_interval", self.poll.shortest_interval);
        page.duration("longest_interval", self.poll.longest_interval);
    }

    fn show_kafka(&self, page: &mut Page<'_>) {
        let (kafka, topics) = (&self.kafka, &self.kafka.topics);
        page.group("[kafka]");
        page.text("bootstrap_servers", &kafka.bootstrap_servers);
        page.text("group", &kafka.group);
        page.text("delivery", word(&DELIVERIES, kafka.delivery));
        page.group("[kafka.topics]");
        page.text("user_events", &topics.user_events);
        page.text("channel_events", &topics.channel_events);
        page.text("dead_letter", &topics.dead_letter);
        page.text("gaps", &topics.gaps);
        page.text("pages", &topics.pages);
        page.text("state", &topics.state);
        page.bare("create", topics.create);
        page.bare("partitions", topics.partitions);
        page.bare("page_partitions", topics.page_partitions);
        page.bare("replication_factor", topics.replication_factor);
        page.duration("page_retention", topics.page_retention);
        if !kafka.options.is_empty() {
            page.group("[kafka.options]");
        }
        for (name, value) in &kafka.options {
            match value {
                OptionValue::Plain(value) => page.text(name, value),
                OptionValue::Secret(secret) => page.secret(name, secret),
            }
        }
    }
}

impl App {
    fn show(&self, page: &mut Page<'_>, index: usize) {
        let mut hosts = self.regions.iter().flat_map(|region| &region.hosts);
        let endpoints: Vec<_> = self.endpoints.iter().map(|it| it.endpoint).collect();
        page.group("[[apps]]");
        page.group = format!("apps[{index}].");
        page.text("app_id", &self.app_id);
        if let Some(only) = self.only_hosts() {
            page.texts("hosts", only);
        }
        page.texts("endpoints", &endpoints);
        for EndpointPath { endpoint, path } in &self.endpoints {
            page.text(&format!("path_{endpoint}"), path);
        }
        page.bare("requests_per_second", self.requests_per_second);
        page.bare("allow_plain_http", hosts.any(Host::is_exposed));
        page.group("[apps.auth]");
        page.group = format!("apps[{index}].auth.");
        self.auth.show(page);
        if self.only_hosts().is_none() {
            for (number, region) in self.regions.iter().enumerate() {
                page.group("[[apps.regions]]");
                page.group = format!("apps[{index}].regions[{number}].");
                page.text("name", &region.name);
                page.texts("hosts", &region.hosts);
            }
        }
    }

    /// The hosts, if they were not given by region.
    fn only_hosts(&self) -> Option<&[Host]> {
        match self.regions.as_slice() {
            [RegionHosts { name, hosts }] if name.as_str() == ONLY_REGION => Some(hosts),
            _ => None,
        }
    }
}

impl Auth {
    fn show(&self, page: &mut Page<'_>) {
        match self {
            Self::Basic { customer_id, customer_secret } => {
                page.text("customer_id", customer_id);
                page.secret("customer_secret", customer_secret);
            }
            Self::Minted { certificate, user_id, form, life } => {
                page.secret("app_certificate", certificate);
                page.text("user_id", user_id);
                page.text("token_version", word(&TOKEN_FORMS, *form));
                page.duration("token_life", *life);
            }
            Self::Token { token, user_id } => {
                page.secret("token", token);
                if let Some(user_id) = user_id {
                    page.text("user_id", user_id);
                }
            }
        }
    }
}

// === impl Page ===

impl Page<'_> {
    /// Begins a group. If it is in a list, the caller sets its path.
    fn group(&mut self, head: &str) {
        self.text.push_str(&format!("\n{head}\n"));
        self.group = format!("{}.", head.trim_matches(['[', ']']));
    }

    fn bare(&mut self, name: &str, value: impl Display) {
        let path = format!("{}{name}", self.group);
        // Names of librdkafka settings contain dots, which TOML would take for levels.
        let name = if name.contains('.') { quoted(name) } else { name.to_owned() };
        let origin = self.origins.map(|origins| format!("  # {}", origins.of(&path)));
        self.text.push_str(&format!("{name} = {value}{}\n", origin.unwrap_or_default()));
    }

    fn text(&mut self, name: &str, value: impl Display) {
        self.bare(name, quoted(&value.to_string()));
    }

    fn texts(&mut self, name: &str, values: &[impl Display]) {
        let values: Vec<_> = values.iter().map(|value| quoted(&value.to_string())).collect();
        self.bare(name, format!("[{}]", values.join(", ")));
    }

    fn duration(&mut self, name: &str, value: Duration) {
        self.text(name, units::show_duration(value));
    }

    fn secret(&mut self, name: &str, secret: &Secret) {
        match secret.file() {
            Some(path) => self.text(&format!("{name}_file"), path.display()),
            None => self.text(name, "***"),
        }
    }
}

fn word<T: PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    let found = words.iter().find(|(_, meaning)| *meaning == value);
    found.map(|(word, _)| *word).expect("every value has its word")
}
