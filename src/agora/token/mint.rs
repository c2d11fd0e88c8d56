//! Makes tokens, as Agora's public builders do.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use miniz_oxide::deflate::compress_to_vec_zlib;
use ring::hmac;

use super::{
    LOGIN_006, LOGIN_007, LONGEST_LIFE, PREFIX_006, PREFIX_007, RTM_SERVICE, key, key_007,
    message_006, seconds,
};
use crate::config::TokenForm;
use crate::model::Timestamp;

/// zlib's own default.
const COMPRESSION: u8 = 6;

/// The token to make.
#[derive(Clone, Copy)]
pub struct Order<'a> {
    /// Its form.
    pub form: TokenForm,
    /// The App ID that it gives access to; 32 characters for a `006` token.
    pub app_id: &'a str,
    /// The certificate that signs it: a secret.
    pub certificate: &'a str,
    /// The user who logs in with it.
    pub user_id: &'a str,
    /// When it is made, by Agora's clock.
    pub issued_at: Timestamp,
    /// Its lifetime.
    pub life: Duration,
    /// Any number; different numbers make different tokens.
    pub salt: u32,
}

impl fmt::Debug for Order<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Order").field("form", &self.form).finish_non_exhaustive()
    }
}

/// Makes a token that lets a user log in to RTM.
pub fn mint(order: Order<'_>) -> String {
    match order.form {
        TokenForm::AccessToken2 => mint_007(order),
        TokenForm::AccessToken => {
            let until = seconds(order.issued_at.after(order.life));
            let day_after = seconds(order.issued_at.after(LONGEST_LIFE));
            let content = content_006(order.salt, day_after, LOGIN_006, until);
            pack_006(order.app_id, order.certificate, order.user_id, "", &content)
        }
    }
}

fn mint_007(order: Order<'_>) -> String {
    let Order { app_id, certificate, user_id, salt, .. } = order;
    let issued_at = seconds(order.issued_at);
    let expire = u32::try_from(order.life.as_secs()).unwrap_or(u32::MAX);
    let mut body = string(app_id.as_bytes());
    for number in [issued_at, expire, salt] {
        body.extend(number.to_le_bytes());
    }
    for number in [1, RTM_SERVICE, 1, LOGIN_007] {
        body.extend(number.to_le_bytes());
    }
    body.extend(expire.to_le_bytes());
    body.extend(string(user_id.as_bytes()));
    let signature = hmac::sign(&key_007(certificate, issued_at, salt), &body);
    let whole = [string(signature.as_ref()), body].concat();
    format!("{PREFIX_007}{}", STANDARD.encode(compress_to_vec_zlib(&whole, COMPRESSION)))
}

/// The privileges of a `006` token.
pub(super) fn content_006(salt: u32, day_after: u32, privilege: u16, until: u32) -> Vec<u8> {
    let mut content = [salt.to_le_bytes(), day_after.to_le_bytes()].concat();
    content.extend(1_u16.to_le_bytes());
    content.extend(privilege.to_le_bytes());
    content.extend(until.to_le_bytes());
    content
}

/// Signs and packs the privileges of a `006` token.
pub(super) fn pack_006(
    app_id: &str,
    certificate: &str,
    channel: &str,
    user_id: &str,
    content: &[u8],
) -> String {
    let message = message_006(app_id, channel, user_id, content);
    let signature = hmac::sign(&key(certificate.as_bytes()), &message);
    let checksums = [channel, user_id].map(|name| crc32fast::hash(name.as_bytes()).to_le_bytes());
    let packed = [string(signature.as_ref()), checksums.concat(), string(content)].concat();
    format!("{PREFIX_006}{app_id}{}", STANDARD.encode(packed))
}

/// Bytes preceded by their length; a name has a few dozen.
fn string(bytes: &[u8]) -> Vec<u8> {
    let kept = bytes.get(..usize::from(u16::MAX)).unwrap_or(bytes);
    let length = u16::try_from(kept.len()).unwrap_or(u16::MAX);
    [&length.to_le_bytes(), kept].concat()
}
