//! Agora's tokens: how to read one, and how to make one.
//!
//! There are two forms. `007` (AccessToken2) lists services with privileges and is compressed;
//! `006` (AccessToken) lists privileges only. Both are signed with the App Certificate, and both
//! state when they expire: [`read`] needs no certificate. Layouts are little-endian, as Agora's
//! public builders write them; the tests compare with Agora's public sample values.
//!
//! Pure: no clock, no randomness, no I/O. [`read`] accepts any text and never panics.

mod mint;
mod read;

use std::fmt;
use std::time::Duration;

use ring::hmac;

use crate::model::Timestamp;

pub use self::mint::{Order, mint};
pub use self::read::read;
pub use crate::config::TokenForm;

/// Maximum lifetime of a token. Agora accepts none for longer, regardless of what the token states.
pub const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3_600);

/// The prefix of a `007` token.
pub(super) const PREFIX_007: &str = "007";

/// The prefix of a `006` token.
const PREFIX_006: &str = "006";

/// The RTM (Signaling) service of a `007` token.
const RTM_SERVICE: u16 = 2;

/// The privilege to log in, within [`RTM_SERVICE`].
const LOGIN_007: u16 = 1;

/// The privilege to log in to RTM, of a `006` token.
const LOGIN_006: u16 = 1_000;

/// The contents of a token. They are unproven until [`Token::is_signed_with`] confirms them.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Its form.
    pub form: TokenForm,
    /// The App ID that it gives access to.
    pub app_id: String,
    /// When it was made. Inferred for a `006` token: Agora's builders write the time a day later.
    pub issued_at: Timestamp,
    /// When it expires, if stated.
    pub ends_at: Option<Timestamp>,
    holder: Holder,
    /// Whether it has the privilege to log in to RTM.
    may_log_in: bool,
    signature: Vec<u8>,
    signed: Vec<u8>,
    salt: u32,
}

/// The user that a token was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Holder {
    /// A checksum of the name.
    Checksum(u32),
    /// The name; `None` if there is no RTM service.
    Name(Option<Vec<u8>>),
}

// === impl Token ===

impl Token {
    /// Whether it lets this user log in to RTM.
    pub fn lets_in(&self, user_id: &str) -> bool {
        let is_holder = match &self.holder {
            Holder::Checksum(checksum) => *checksum == crc32fast::hash(user_id.as_bytes()),
            Holder::Name(name) => name.as_deref() == Some(user_id.as_bytes()),
        };
        is_holder && self.may_log_in
    }

    /// The user it was made for, if stated.
    pub fn user_id(&self) -> Option<&str> {
        match &self.holder {
            Holder::Name(Some(name)) => std::str::from_utf8(name).ok(),
            Holder::Name(None) | Holder::Checksum(_) => None,
        }
    }

    /// Whether it was signed with this certificate, for this user.
    pub fn is_signed_with(&self, certificate: &str, user_id: &str) -> bool {
        let (key, message) = match self.form {
            TokenForm::AccessToken2 => {
                let issued_at = seconds(self.issued_at);
                (key_007(certificate, issued_at, self.salt), self.signed.clone())
            }
            TokenForm::AccessToken => {
                (key(certificate.as_bytes()), message_006(&self.app_id, user_id, "", &self.signed))
            }
        };
        hmac::verify(&key, &message, &self.signature).is_ok()
    }
}

impl fmt::Debug for Token {
    /// Omits everything that would grant access.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("form", &self.form)
            .field("app_id", &self.app_id)
            .field("issued_at", &self.issued_at)
            .field("ends_at", &self.ends_at)
            .finish_non_exhaustive()
    }
}

fn key(bytes: &[u8]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, bytes)
}

/// The key that signs a `007` token.
fn key_007(certificate: &str, issued_at: u32, salt: u32) -> hmac::Key {
    let first = hmac::sign(&key(&issued_at.to_le_bytes()), certificate.as_bytes());
    key(hmac::sign(&key(&salt.to_le_bytes()), first.as_ref()).as_ref())
}

/// The signed part of a `006` token. RTM has no channel: the user takes its place.
fn message_006(app_id: &str, channel: &str, user_id: &str, content: &[u8]) -> Vec<u8> {
    [app_id.as_bytes(), channel.as_bytes(), user_id.as_bytes(), content].concat()
}

/// Whole seconds, as counted in tokens: the range ends in 2106.
fn seconds(moment: Timestamp) -> u32 {
    u32::try_from(moment.as_millis().max(0) / 1_000).unwrap_or(u32::MAX)
}

fn moment(seconds: u32) -> Timestamp {
    Timestamp::from_millis(i64::from(seconds) * 1_000)
}

#[cfg(test)]
mod tests;
