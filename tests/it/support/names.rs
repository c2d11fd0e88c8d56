//! Names that are unique to a test, because all tests share one broker.

use std::path::Path;

use tempfile::TempDir;

/// The topics and the group of one test.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// `kafka.group`: the prefix of transactional ids.
    pub(crate) group: String,
    /// Topic of user events.
    pub(crate) user_events: String,
    /// Topic of channel events.
    pub(crate) channel_events: String,
    /// Topic of elements that are not events.
    pub(crate) dead_letter: String,
    /// Topic of gaps.
    pub(crate) gaps: String,
    /// Topic of pages as received.
    pub(crate) pages: String,
    /// Topic of the memory.
    pub(crate) state: String,
}

// === impl Names ===

impl Names {
    /// Names that start with `test`, so that a broker's log shows to which test they belong.
    pub(crate) fn unique(test: &str) -> Self {
        let group = unique(test);
        let topic = |name: &str| format!("{group}.{name}");
        Self {
            user_events: topic("user-events"),
            channel_events: topic("channel-events"),
            dead_letter: topic("dead-letter"),
            gaps: topic("gaps"),
            pages: topic("pages"),
            state: topic("state"),
            group,
        }
    }

    /// The topics that the bridge publishes for consumers: all but its own pages and memory.
    pub(crate) fn published(&self) -> [&str; 4] {
        [&self.user_events, &self.channel_events, &self.dead_letter, &self.gaps]
    }

    /// The tables `[kafka]` and `[kafka.topics]` of a configuration. The latter comes last, so that
    /// a test can append its own keys.
    pub(crate) fn kafka_tables(&self, bootstrap: &str) -> String {
        let Self { group, user_events, channel_events, dead_letter, gaps, pages, state } = self;
        format!(
            r#"
[kafka]
bootstrap_servers = "{bootstrap}"
group = "{group}"

[kafka.topics]
user_events = "{user_events}"
channel_events = "{channel_events}"
dead_letter = "{dead_letter}"
gaps = "{gaps}"
pages = "{pages}"
state = "{state}"
"#
        )
    }
}

/// `prefix` with a random suffix.
pub(crate) fn unique(prefix: &str) -> String {
    format!("{prefix}-{:08x}", rand::random::<u32>())
}

/// A new temporary folder, deleted on drop.
pub(crate) fn folder() -> TempDir {
    TempDir::with_prefix("agora-rtm-bridge-").expect("the temporary folder can be written to")
}

/// A path as text, for configurations and arguments.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}
