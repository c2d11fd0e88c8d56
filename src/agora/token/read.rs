//! Reads a token from text.
//!
//! Accepts any text, including hostile ones: lengths are checked before anything is read, and the
//! unpacked size of a `007` token is limited.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit;

use super::{
    Holder, LOGIN_006, LOGIN_007, LONGEST_LIFE, PREFIX_006, PREFIX_007, RTM_SERVICE, Token, moment,
};
use crate::config::TokenForm;
use crate::model::Timestamp;

/// Maximum unpacked size of a token, in bytes. A real one has a few hundred.
const LARGEST_BODY: usize = 16 * 1024;

/// The App ID in a `006` token has this fixed length, as it isn't preceded by one.
const APP_ID_006: usize = 32;

/// Reads the fields of a layout.
struct TokenReader<'a>(&'a [u8]);

/// Privileges, and when each expires.
type Privileges = BTreeMap<u16, u32>;

/// Reads a token. `None` if it has neither form, or is incomplete.
pub fn read(text: &str) -> Option<Token> {
    if let Some(rest) = text.strip_prefix(PREFIX_007) {
        read_007(rest)
    } else {
        read_006(text.strip_prefix(PREFIX_006)?)
    }
}

fn read_007(text: &str) -> Option<Token> {
    let packed = STANDARD.decode(text).ok()?;
    let bytes = decompress_to_vec_zlib_with_limit(&packed, LARGEST_BODY).ok()?;
    let mut reader = TokenReader(&bytes);
    let signature = reader.string()?.to_vec();
    let signed = reader.0.to_vec();
    let app_id = reader.name()?;
    let (issued_at, expire, salt) = (reader.u32()?, reader.u32()?, reader.u32()?);
    let rtm = reader.rtm_service();
    let (name, login) =
        rtm.map_or((None, None), |(user, granted)| (Some(user), granted.get(&LOGIN_007).copied()));
    // Zero means "no limit of its own".
    let lasts = [Some(expire), login].into_iter().flatten().filter(|lasts| *lasts > 0);
    let lasts = lasts.map(|seconds| std::time::Duration::from_secs(seconds.into()));
    let lasts = lasts.chain([LONGEST_LIFE]).min().unwrap_or(LONGEST_LIFE);
    Some(Token {
        form: TokenForm::AccessToken2,
        app_id,
        issued_at: moment(issued_at),
        ends_at: Some(moment(issued_at).after(lasts)),
        holder: Holder::Name(name),
        may_log_in: login.is_some(),
        signature,
        signed,
        salt,
    })
}

fn read_006(text: &str) -> Option<Token> {
    let (app_id, rest) = text.split_at_checked(APP_ID_006)?;
    let bytes = STANDARD.decode(rest).ok()?;
    let mut reader = TokenReader(&bytes);
    let signature = reader.string()?.to_vec();
    let (holder, _) = (reader.u32()?, reader.u32()?);
    let signed = reader.string()?.to_vec();
    let mut reader = TokenReader(&signed);
    let (salt, day_after) = (reader.u32()?, reader.u32()?);
    let login = reader.privileges()?.get(&LOGIN_006).copied();
    // A privilege without an expiry ends with the token.
    let ends_at = login.map(|until| if until > 0 { until } else { day_after });
    Some(Token {
        form: TokenForm::AccessToken,
        app_id: app_id.to_owned(),
        issued_at: moment(day_after).before(LONGEST_LIFE).max(Timestamp::default()),
        ends_at: ends_at.map(moment),
        holder: Holder::Checksum(holder),
        may_log_in: login.is_some(),
        signature,
        signed,
        salt,
    })
}

// === impl Reader ===

impl<'a> TokenReader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    /// Bytes preceded by their length.
    fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }

    fn name(&mut self) -> Option<String> {
        String::from_utf8(self.string()?.to_vec()).ok()
    }

    fn privileges(&mut self) -> Option<Privileges> {
        let count = self.u16()?;
        (0..count).map(|_| Some((self.u16()?, self.u32()?))).collect()
    }

    /// The user and the privileges of the RTM service. Anything after an unknown service is out of
    /// reach: its length is not stated.
    fn rtm_service(&mut self) -> Option<(Vec<u8>, Privileges)> {
        for _ in 0..self.u16()? {
            let (service, granted) = (self.u16()?, self.privileges()?);
            match service {
                RTM_SERVICE => return Some((self.string()?.to_vec(), granted)),
                // RTC: channel and user.
                1 => drop((self.string()?, self.string()?)),
                // FPA: nothing.
                4 => {}
                // Chat: the user.
                5 => drop(self.string()?),
                _ => return None,
            }
        }
        None
    }
}
