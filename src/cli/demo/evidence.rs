//! The records that a consumer read, each of them checked.
//!
//! It reads as a user's program would: values and headers, none of the bridge's internals. Only the
//! fingerprint is computed with the bridge's code, because the documented promise is that `ce_id`
//! is the fingerprint of the event in the value.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;

use crate::agora::Event;
use crate::kafka::Topic;
use crate::memory::Fingerprint;
use crate::model::{AppId, Endpoint, Timestamp};
use crate::simulator::Recorded;

/// Everything that was read.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// How often each event was read.
    pub(super) events: HashMap<Fingerprint, u32>,
    /// How often each dead letter was read. Their only identity is their bytes.
    pub(super) dead_letters: HashMap<Vec<u8>, u64>,
    /// The gaps.
    pub(super) gaps: Vec<Gap>,
    /// Records that are inconsistent or break the contract, each with the reason.
    pub(super) misshapen: Vec<String>,
}

/// The relevant parts of a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read<'a> {
    /// The role of its topic.
    pub(super) topic: Topic,
    /// Its key.
    pub(super) key: &'a [u8],
    /// Its value.
    pub(super) value: &'a [u8],
    /// The header `ce_id`.
    pub(super) ce_id: Option<&'a [u8]>,
}

/// A gap record: events that may be missing.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Gap {
    app_id: String,
    endpoint: String,
    /// The cause.
    pub(super) cause: String,
    from: Option<i64>,
    to: i64,
}

/// The value of an event's record.
#[derive(Debug, Deserialize)]
struct EventValue<'a> {
    #[serde(borrow)]
    app_id: Cow<'a, str>,
    #[serde(borrow)]
    endpoint: Cow<'a, str>,
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    user_id: Cow<'a, str>,
    #[serde(borrow, default)]
    channel_id: Option<Cow<'a, str>>,
    ms: i64,
}

// === impl Evidence ===

impl Evidence {
    /// Adds a record. Returns true for a valid event that was not seen before.
    pub(super) fn take(&mut self, read: Read<'_>) -> bool {
        let taken = match read.topic {
            Topic::UserEvents => self.take_event(Endpoint::User, read),
            Topic::ChannelEvents => self.take_event(Endpoint::Channel, read),
            Topic::DeadLetter => {
                *self.dead_letters.entry(read.value.to_vec()).or_default() += 1;
                Ok(false)
            }
            Topic::Gaps => serde_json::from_slice(read.value)
                .map(|gap| self.gaps.push(gap))
                .map(|()| false)
                .map_err(|error| error.to_string()),
            Topic::Pages | Topic::State => Ok(false),
        };
        taken.unwrap_or_else(|reason| {
            let value = read.value.escape_ascii();
            self.misshapen.push(format!("{:?}: {reason}: {value}", read.topic));
            false
        })
    }

    fn take_event(&mut self, endpoint: Endpoint, read: Read<'_>) -> Result<bool, String> {
        let value: EventValue<'_> =
            serde_json::from_slice(read.value).map_err(|error| error.to_string())?;
        if value.endpoint != endpoint.name() {
            return Err(format!("an event of {} in the wrong topic", value.endpoint));
        }
        if read.key != value.channel_id.as_ref().unwrap_or(&value.user_id).as_bytes() {
            return Err(format!("its key is {}", read.key.escape_ascii()));
        }
        let event = Event {
            user_id: value.user_id,
            kind: value.kind,
            channel_id: value.channel_id,
            time: Timestamp::from_millis(value.ms),
            others: Vec::new(),
        };
        let id = Fingerprint::of(&AppId::new(&*value.app_id), endpoint, &event);
        if read.ce_id != Some(id.to_string().as_bytes()) {
            return Err(format!("its ce_id is not its fingerprint {id}"));
        }
        let times = self.events.entry(id).or_default();
        *times += 1;
        Ok(*times == 1)
    }
}

// === impl Gap ===

impl Gap {
    /// Whether the event may be one of those that this gap covers. The region is ignored, because
    /// an event comes back in every region.
    pub(super) fn covers(&self, event: &Recorded) -> bool {
        self.app_id == event.app.as_str()
            && self.endpoint == event.endpoint.name()
            && self.from.is_none_or(|from| from <= event.ms)
            && event.ms <= self.to
    }
}

/// The identity of an event that Agora made.
pub(super) fn identity(made: &Recorded) -> Fingerprint {
    let event = Event {
        user_id: Cow::Borrowed(&made.user),
        kind: Cow::Borrowed(made.kind),
        channel_id: made.channel.as_deref().map(Cow::Borrowed),
        time: Timestamp::from_millis(made.ms),
        others: Vec::new(),
    };
    Fingerprint::of(&made.app, made.endpoint, &event)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: &str =
        r#"{"app_id":"a","endpoint":"user_events","type":"Login","user_id":"\"u\"","ms":5}"#;

    fn id() -> String {
        let event = Event {
            user_id: Cow::Borrowed("\"u\""),
            kind: Cow::Borrowed("Login"),
            channel_id: None,
            time: Timestamp::from_millis(5),
            others: Vec::new(),
        };
        Fingerprint::of(&AppId::new("a"), Endpoint::User, &event).to_string()
    }

    #[test]
    fn only_a_record_that_is_what_it_says_counts() {
        let id = id();
        let good = Read {
            topic: Topic::UserEvents,
            key: b"\"u\"",
            value: VALUE.as_bytes(),
            ce_id: Some(id.as_bytes()),
        };
        for (read, counts) in [
            (good, true),
            (Read { ce_id: None, ..good }, false),
            (Read { ce_id: Some(b"00"), ..good }, false),
            (Read { key: b"u", ..good }, false),
            (Read { value: b"{}", ..good }, false),
            (Read { topic: Topic::ChannelEvents, ..good }, false),
            (Read { topic: Topic::Gaps, ..good }, false),
        ] {
            let mut evidence = Evidence::default();
            assert_eq!(evidence.take(read), counts, "{read:?}");
            assert_eq!(evidence.misshapen.is_empty(), counts, "{evidence:?}");
        }
    }

    #[test]
    fn the_second_time_is_counted_and_is_nothing_new() {
        let id = id();
        let (topic, ce_id) = (Topic::UserEvents, Some(id.as_bytes()));
        let read = Read { topic, key: b"\"u\"", value: VALUE.as_bytes(), ce_id };
        let mut evidence = Evidence::default();
        assert!(evidence.take(read));
        assert!(!evidence.take(read));
        assert_eq!(evidence.events.into_values().collect::<Vec<_>>(), [2]);
    }
}
