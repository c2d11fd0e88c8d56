//! Checks a secret before Agora has seen it.
//!
//! Whitespace around it doesn't count. A secret that can't be valid is refused with the reason; one
//! that could be valid but is more likely a mistake is used and suspected. No message shows any
//! part of it.
//!
//! Pure: text in, text out.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};

use super::super::token;
use crate::config::Auth;
use crate::model::AppId;

/// Number of hexadecimal digits in an App Certificate of Agora's.
const CERTIFICATE_DIGITS: usize = 32;

/// A secret, ready for use.
#[derive(PartialEq, Eq)]
pub(super) struct Inspected {
    pub(super) secret: String,
    /// Why it is likely to be refused: a phrase that follows its place.
    pub(super) suspicion: Option<String>,
}

/// Inspects a configured secret. The error says why it can't be used, and follows `use PLACE: `.
pub(super) fn inspect(app: &AppId, auth: &Auth, text: &str) -> Result<Inspected, String> {
    // A byte order mark may also appear in a value.
    let secret = text.trim_matches(|letter: char| letter.is_whitespace() || letter == '\u{feff}');
    if secret.is_empty() {
        return Err("it is empty".to_owned());
    }
    let lines: Vec<&str> = secret.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.len() > 1 {
        return Err(several(auth, &lines));
    }
    if secret.chars().any(char::is_control) {
        return Err("it contains control characters (a tab, or a line break)".to_owned());
    }
    let suspicion = match auth {
        Auth::Basic { customer_id, .. } => of_customer_secret(customer_id, secret),
        Auth::Token { .. } => of_token(app, secret)?,
        Auth::Minted { .. } => of_certificate(app, secret)?,
    };
    Ok(Inspected { secret: secret.to_owned(), suspicion })
}

fn several(auth: &Auth, lines: &[&str]) -> String {
    let count = lines.len();
    match auth {
        Auth::Basic { customer_id, .. } => {
            let holds_id = lines.iter().any(|line| line.contains(customer_id.as_str()));
            let id = if holds_id { ", and customer_id is in one of them" } else { "" };
            format!("it has {count} lines{id}: give only the customer secret, in one line")
        }
        Auth::Token { .. } => format!("it has {count} lines: a token is one line"),
        Auth::Minted { .. } => {
            format!("it has {count} lines: an App Certificate is one line of 32 hexadecimal digits")
        }
    }
}

fn of_customer_secret(customer_id: &str, secret: &str) -> Option<String> {
    let behind_scheme = scheme(secret, "basic");
    let bare = behind_scheme.unwrap_or(secret);
    let decoded = STANDARD.decode(bare).or_else(|_| STANDARD_NO_PAD.decode(bare));
    let pair = format!("{customer_id}:");
    if behind_scheme.is_some() || decoded.is_ok_and(|text| text.starts_with(pair.as_bytes())) {
        return Some(
            "contains customer_id and the secret in base64, as in a header: give only the customer \
             secret"
                .to_owned(),
        );
    }
    if secret == customer_id {
        return Some("repeats customer_id: give the customer secret".to_owned());
    }
    if secret.starts_with(customer_id) || secret.contains(':') {
        return Some(
            "contains a colon or customer_id: give only the customer secret, without customer_id"
                .to_owned(),
        );
    }
    of_any(secret)
}

fn of_token(app: &AppId, secret: &str) -> Result<Option<String>, String> {
    if secret.starts_with(['{', '[']) {
        return Err("it is JSON: give only the token".to_owned());
    }
    let lower = secret.to_ascii_lowercase();
    if lower.contains("agora token") || scheme(secret, "bearer").is_some() {
        return Err("it includes the beginning of a header (`agora token=`): give only the token"
            .to_owned());
    }
    if is_quoted(secret) {
        return Err("it has quotes around it: a token has none".to_owned());
    }
    if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("a token is one word of visible ASCII characters".to_owned());
    }
    match token::read(secret) {
        Some(token) if token.app_id != app.as_str() => {
            Ok(Some("contains a token for another App ID: give one for this App ID".to_owned()))
        }
        Some(_) => Ok(None),
        None if secret.starts_with("007") || secret.starts_with("006") => {
            Ok(Some("contains a token that can't be read: part of it may be missing".to_owned()))
        }
        None => Ok(None),
    }
}

fn of_certificate(app: &AppId, secret: &str) -> Result<Option<String>, String> {
    if is_quoted(secret) {
        return Err("it has quotes around it: an App Certificate has none".to_owned());
    }
    if !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("an App Certificate is one word of 32 hexadecimal digits".to_owned());
    }
    if secret == app.as_str() {
        return Ok(Some("contains the App ID: give the project's primary certificate".to_owned()));
    }
    let is_usual =
        secret.len() == CERTIFICATE_DIGITS && secret.bytes().all(|byte| byte.is_ascii_hexdigit());
    Ok((!is_usual).then(|| {
        "does not look like an App Certificate, which has 32 hexadecimal digits: compare it with \
         the project's page in Agora's console"
            .to_owned()
    }))
}

fn of_any(secret: &str) -> Option<String> {
    if is_quoted(secret) {
        return Some("has quotes around it: Agora's secrets have none".to_owned());
    }
    if secret.starts_with('{') {
        return Some("looks like JSON: give only the customer secret".to_owned());
    }
    if secret.contains(char::is_whitespace) {
        return Some("contains spaces: Agora's secrets have none".to_owned());
    }
    if !secret.is_ascii() {
        return Some(
            "contains non-ASCII characters, perhaps invisible ones: type it again".to_owned(),
        );
    }
    None
}

fn is_quoted(secret: &str) -> bool {
    let quotes = ['"', '\'', '`', '“', '”', '‘', '’'];
    secret.starts_with(quotes) || secret.ends_with(quotes)
}

/// The text that follows an authentication scheme.
fn scheme<'a>(secret: &'a str, name: &str) -> Option<&'a str> {
    let (first, rest) = secret.split_once(' ')?;
    first.trim_end_matches(':').eq_ignore_ascii_case(name).then(|| rest.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    const APP: &str = "876922cbca0098dff4323566daa89675";
    const ID: &str = "0a1b2c3d4e5f60718293a4b5c6d7e8f9";
    const SECRET: &str = "f9e8d7c6b5a4039281706f5e4d3c2b1a";

    fn basic() -> Auth {
        let customer_secret = Secret::from_value("");
        Auth::Basic { customer_id: ID.to_owned(), customer_secret }
    }

    fn token() -> Auth {
        Auth::Token { token: Secret::from_value(""), user_id: None }
    }

    fn minted() -> Auth {
        Auth::Minted {
            certificate: Secret::from_value(""),
            user_id: "u".to_owned(),
            form: crate::config::TokenForm::AccessToken2,
            life: std::time::Duration::from_secs(3_600),
        }
    }

    /// What is reported about it, and whether it is used.
    fn said(auth: &Auth, text: &str) -> (bool, String) {
        match inspect(&AppId::new(APP), auth, text) {
            Ok(Inspected { suspicion, .. }) => (true, suspicion.unwrap_or_default()),
            Err(reason) => (false, reason),
        }
    }

    #[test]
    fn a_secret_is_used_without_what_editors_and_consoles_put_around_it() {
        for around in ["", "\n", "\r\n", " \t", "\n\n", "\u{feff}", "\u{a0}"] {
            let text = format!("{around}{SECRET}{around}");
            let inspected = inspect(&AppId::new(APP), &basic(), &text);
            let expected = Inspected { secret: SECRET.to_owned(), suspicion: None };
            assert!(inspected == Ok(expected), "{around:?}");
            assert_eq!(said(&minted(), &text), (true, String::new()), "{around:?}");
        }
    }

    #[test]
    fn what_can_be_no_customer_secret_is_refused_with_the_reason() {
        for (text, words) in [
            ("\r\n ".to_owned(), "it is empty"),
            (format!("{ID}\n{SECRET}\n"), "2 lines, and customer_id is in one of them"),
            (format!("Key: {ID}\r\nSecret: {SECRET}\r\n"), "2 lines, and customer_id"),
            (
                format!("{}\n{}", &SECRET[..16], &SECRET[16..]),
                "2 lines: give only the customer secret",
            ),
            (format!("{ID}\t{SECRET}"), "control characters"),
            (format!("{}\r{}", &SECRET[..16], &SECRET[16..]), "control characters"),
        ] {
            let (is_used, said) = said(&basic(), &text);
            assert!(!is_used && said.contains(words), "{text:?}: {said}");
            assert!(!said.contains(&SECRET[..8]), "{said}");
        }
    }

    #[test]
    fn what_is_likely_to_be_a_slip_is_used_and_suspected() {
        let pair = format!("{ID}:{SECRET}");
        for (text, words) in [
            (STANDARD.encode(&pair), "in base64"),
            (STANDARD_NO_PAD.encode(&pair), "in base64"),
            (format!("Basic {}", STANDARD.encode(&pair)), "in base64"),
            (pair, "without customer_id"),
            (ID.to_owned(), "repeats customer_id"),
            (format!("\"{SECRET}\""), "quotes around"),
            (format!("'{SECRET}"), "quotes around"),
            (format!("“{SECRET}”"), "quotes around"),
            (format!("{{\"secret\" {SECRET}"), "JSON"),
            (format!("{ID},{SECRET}"), "without customer_id"),
            (format!("secret {SECRET}"), "contains spaces"),
            (format!("{}\u{200b}{}", &SECRET[..4], &SECRET[4..]), "invisible"),
        ] {
            let (is_used, said) = said(&basic(), &text);
            assert!(is_used && said.contains(words), "{text:?}: {said}");
            assert!(!said.contains(&SECRET[..8]), "{said}");
        }
        for right in [SECRET, "hunter2", "open+sesame/0="] {
            assert_eq!(said(&basic(), right), (true, String::new()), "{right}");
        }
    }

    #[test]
    fn what_is_no_token_or_no_app_certificate_says_so() {
        for (text, is_used, words) in [
            ("agora token=007eJx", false, "beginning of a header"),
            ("Authorization: agora token=007eJx", false, "beginning of a header"),
            ("Bearer 007eJx", false, "beginning of a header"),
            ("{\"token\":\"007eJx\"}", false, "it is JSON"),
            ("\"007eJx\"", false, "quotes around"),
            ("007e Jx", false, "one word"),
            ("007e\nJx", false, "it has 2 lines"),
            ("007eJx", true, "part of it may be missing"),
            ("else", true, ""),
        ] {
            let (used, said) = said(&token(), text);
            assert!(used == is_used && said.contains(words), "{text:?}: {said}");
        }
        for (text, is_used, words) in [
            ("5CFd2fd1755d40ecb72977518be15d3b", true, ""),
            ("5CFd2fd1755d40ecb72977518be15d3", true, "32 hexadecimal digits"),
            ("5CFd2fd1755d40ecb72977518be15d3g", true, "32 hexadecimal digits"),
            (APP, true, "contains the App ID"),
            ("'5CFd2fd1755d40ecb72977518be15d3b'", false, "quotes around"),
            ("5CFd2fd1755d40ec b72977518be15d3b", false, "one word"),
        ] {
            let (used, said) = said(&minted(), text);
            assert!(used == is_used && said.contains(words), "{text:?}: {said}");
        }
    }
}
