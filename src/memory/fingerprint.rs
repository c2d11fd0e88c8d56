//! The identity of an event.

use std::fmt;

use ring::digest::{Context, SHA256};

use crate::agora::Event;
use crate::model::{AppId, Endpoint};

/// The identity of an event: 128 bits of SHA-256.
///
/// The encoding never changes between versions; its test vectors are in this file. Each of app
/// id, endpoint name, channel (empty for user events), user id and type as a little-endian u32
/// length and its UTF-8 bytes; then the time in milliseconds as a little-endian i64. The first 16
/// bytes of the digest are the fingerprint, shown as 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(u128);

// === impl Fingerprint ===

impl Fingerprint {
    /// The fingerprint of an event.
    pub fn of(app: &AppId, endpoint: Endpoint, event: &Event<'_>) -> Self {
        let mut digest = Context::new(&SHA256);
        let channel = event.channel_id.as_deref().unwrap_or_default();
        for part in [app.as_str(), endpoint.name(), channel, &event.user_id, &event.kind] {
            let length = u32::try_from(part.len()).expect("a part of a page is shorter than 4 GiB");
            digest.update(&length.to_le_bytes());
            digest.update(part.as_bytes());
        }
        digest.update(&event.time.as_millis().to_le_bytes());
        let digest = digest.finish();
        let half = digest.as_ref().first_chunk().expect("SHA-256 has 32 bytes");
        Self(u128::from_be_bytes(*half))
    }

    /// Its 16 bytes.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The fingerprint with these bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::model::Timestamp;

    fn event(user: &str, kind: &str, channel: Option<&str>, ms: i64) -> Event<'static> {
        Event {
            user_id: Cow::Owned(user.to_owned()),
            kind: Cow::Owned(kind.to_owned()),
            channel_id: channel.map(|channel| Cow::Owned(channel.to_owned())),
            time: Timestamp::from_millis(ms),
            others: Vec::new(),
        }
    }

    /// Other programs compute the same: computed with Python's `struct` and `hashlib`.
    #[test]
    fn the_published_vectors_hold() {
        let app = AppId::new("876922cbca0098dff4323566daa89675");
        let login = event("rtmtest_RTM_4852_4857w7%", "Login", None, 1_578_027_420_761);
        let join = event(
            "rtmtest_RTM_4852_4857w7%",
            "Join",
            Some("example_channel_id"),
            1_578_027_418_981,
        );
        let of_login = Fingerprint::of(&app, Endpoint::User, &login);
        let of_join = Fingerprint::of(&app, Endpoint::Channel, &join);
        assert_eq!(of_login.to_string(), "f1072b069b8d79b9cc268173ffe97bc6");
        assert_eq!(of_join.to_string(), "b62e13db5bf2b146f7282393d3e8c721");
        assert_eq!(Fingerprint::from_bytes(of_login.to_bytes()), of_login);
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let app = AppId::new("a");
        let one = event("ab", "c", Some(""), 1);
        let two = event("a", "bc", Some(""), 1);
        assert_ne!(
            Fingerprint::of(&app, Endpoint::Channel, &one),
            Fingerprint::of(&app, Endpoint::Channel, &two)
        );
    }
}
