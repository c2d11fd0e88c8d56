//! Explains why the certificate of a host is not accepted, with a remedy.
//!
//! Each message states the problem and then, after an arrow, the remedy.

use std::error::Error;
use std::io;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError, InvalidMessage};

use super::tls::OwnCertificate;
use crate::model::Timestamp;

const CLOCK: &str = "correct the clock of this machine (NTP)";

const RENEW: &str = "the operator of the host has to renew its certificate, or the operator of the \
                     proxy if one intercepts TLS";

const NOT_TRUSTED: &str = "if a proxy intercepts TLS, name the CA that signed its certificate in \
                           agora.ca_file; otherwise this is not Agora";

/// The TLS error at the bottom of another error.
pub(super) fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            // Its `source` would skip the error that it wraps.
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

/// Whether the error depends on the time, so that a wrong clock may be to blame.
pub(super) fn is_about_time(error: &rustls::Error) -> bool {
    matches!(
        error,
        rustls::Error::InvalidCertificate(
            CertificateError::ExpiredContext { .. } | CertificateError::NotValidYetContext { .. }
        )
    )
}

/// Whether a server ended the handshake because of our client certificate, or the lack of one. It
/// has not looked at a request that was already written.
pub(super) fn is_refusal(error: &rustls::Error) -> bool {
    matches!(
        error,
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
        )
    )
}

/// The problem and the remedy. `ahead` is how far the host's clock is ahead of ours in seconds, if
/// known. `None` if there is nothing to add to the TLS error.
pub(super) fn explain(error: &rustls::Error, ahead: Option<i64>) -> Option<String> {
    match error {
        rustls::Error::InvalidCertificate(error) => Some(certificate(error, ahead)),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => Some(
            "the port does not speak TLS → check the host and its port; set a proxy as agora.proxy"
                .to_owned(),
        ),
        rustls::Error::AlertReceived(alert) if is_refusal(error) => Some(format!(
            "the host rejects our certificate, or the lack of one ({alert:?}) → set \
             agora.client_certificate_file to a certificate that it trusts"
        )),
        rustls::Error::AlertReceived(alert) => Some(format!(
            "the host ended the handshake ({alert:?}) → check the host and its port, and any proxy \
             that intercepts TLS"
        )),
        _ => None,
    }
}

fn certificate(error: &CertificateError, ahead: Option<i64>) -> String {
    match error {
        CertificateError::ExpiredContext { time, not_after } => {
            let (ours, end) = (moment(time.as_secs()), moment(not_after.as_secs()));
            let seen = format!("the host's certificate expired at {end}");
            by_the_clock(&seen, ours, ahead, |theirs| theirs <= end)
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            let (ours, begin) = (moment(time.as_secs()), moment(not_before.as_secs()));
            let seen = format!("the host's certificate is not valid before {begin}");
            by_the_clock(&seen, ours, ahead, |theirs| theirs >= begin)
        }
        CertificateError::UnknownIssuer => {
            format!("the host's certificate is not signed by a trusted authority → {NOT_TRUSTED}")
        }
        CertificateError::BadSignature => format!(
            "the host's certificate names a trusted authority, but another key signed it → the \
             authority may have a new certificate: update agora.ca_file. Otherwise: {NOT_TRUSTED}"
        ),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names = presented.join(", ");
            let names = if names.is_empty() { "no name at all" } else { &names };
            format!(
                "the host's certificate is for {names} and not for {} → check the spelling of the \
                 host; if it is right, its certificate needs that name as a subjectAltName",
                expected.to_str()
            )
        }
        CertificateError::BadEncoding => {
            "the host's certificate can't be decoded → replace the host's certificate".to_owned()
        }
        CertificateError::Revoked => {
            format!("the host's certificate has been revoked → {RENEW}")
        }
        CertificateError::Other(other) => by_its_words(&*other.0),
        other => format!("the host's certificate is not accepted: {other} → {RENEW}"),
    }
}

/// Errors that rustls passes on without a variant of its own: webpki's `Display` names them.
fn by_its_words(error: &(dyn Error + Send + Sync + 'static)) -> String {
    if error.is::<OwnCertificate>() {
        return "agora.ca_file contains the host's own certificate, signed by another authority → \
                put the certificate of that authority (its issuer) into the file"
            .to_owned();
    }
    let name = error.to_string();
    match name.as_str() {
        "CaUsedAsEndEntity" => {
            "the host presents the certificate of an authority (CA:TRUE) as its own, as \
             self-signed ones often are → give the host a certificate signed by the authority, \
             or a self-signed one with basicConstraints CA:FALSE"
                .to_owned()
        }
        "UnsupportedCertVersion" => "the host's certificate is an X.509 certificate of version 1, \
                                     which has no names → it needs one of version 3 with its name \
                                     as a subjectAltName"
            .to_owned(),
        _ => format!("the host's certificate is not accepted: {name} → {RENEW}"),
    }
}

/// Explains a certificate that is not valid by our clock. It may be valid by the host's clock.
fn by_the_clock(
    seen: &str,
    ours: Timestamp,
    ahead: Option<i64>,
    is_valid: impl Fn(Timestamp) -> bool,
) -> String {
    let Some(ahead) = ahead else {
        return format!(
            "{seen}, and this machine's clock shows {ours} → if the clock is wrong, correct it \
             (NTP); if it is right, {RENEW}"
        );
    };
    let theirs =
        Timestamp::from_millis(ours.as_millis().saturating_add(ahead.saturating_mul(1_000)));
    if is_valid(theirs) {
        let off = rounded(ahead.unsigned_abs());
        let way = if ahead < 0 { "ahead of" } else { "behind" };
        return format!(
            "{seen}, and this machine's clock shows {ours}: it is {off} {way} the host's → {CLOCK}"
        );
    }
    format!("{seen}, and it is {theirs} by the host's own clock → {RENEW}")
}

/// Rounds to days if there is more than one.
fn rounded(seconds: u64) -> String {
    const DAY: u64 = 24 * 3_600;
    match (seconds + DAY / 2) / DAY {
        0..=1 => humantime::format_duration(Duration::from_secs(seconds)).to_string(),
        days => format!("{days} days"),
    }
}

fn moment(seconds: u64) -> Timestamp {
    let millis = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000);
    Timestamp::from_millis(millis)
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::UnixTime;

    use super::*;

    const DAY: i64 = 24 * 3_600;

    fn at(date: &str) -> UnixTime {
        let date = humantime::parse_rfc3339(date).unwrap();
        UnixTime::since_unix_epoch(date.duration_since(std::time::UNIX_EPOCH).unwrap())
    }

    fn said(error: CertificateError, ahead: Option<i64>) -> String {
        explain(&rustls::Error::InvalidCertificate(error), ahead).unwrap()
    }

    #[test]
    fn a_clock_that_is_sixty_days_ahead_is_named_and_an_expired_certificate_is_not_blamed_on_it() {
        let expired = || CertificateError::ExpiredContext {
            time: at("2026-05-01T00:00:00Z"),
            not_after: at("2026-04-01T00:00:00Z"),
        };
        let wrong_clock = said(expired(), Some(-60 * DAY - 3));
        assert!(wrong_clock.contains("expired at 2026-04-01T00:00:00"), "{wrong_clock}");
        assert!(wrong_clock.contains("it is 60 days ahead of the host's"), "{wrong_clock}");
        assert!(wrong_clock.ends_with(CLOCK), "{wrong_clock}");
        let ended = said(expired(), Some(2));
        assert!(ended.contains("by the host's own clock") && ended.contains(RENEW), "{ended}");
        assert!(!ended.contains(CLOCK), "{ended}");
        let unknown = said(expired(), None);
        assert!(unknown.contains("clock shows 2026-05-01") && unknown.contains(RENEW), "{unknown}");
    }

    #[test]
    fn a_clock_that_is_behind_is_named() {
        let early = CertificateError::NotValidYetContext {
            time: at("1970-01-01T00:00:30Z"),
            not_before: at("2026-04-01T00:00:00Z"),
        };
        let said = said(early, Some(20_545 * DAY));
        assert!(said.contains("not valid before 2026-04-01T00:00:00"), "{said}");
        assert!(said.contains("behind the host's") && said.ends_with(CLOCK), "{said}");
    }

    #[test]
    fn an_error_of_tls_is_found_below_those_that_wrap_it() {
        let inner = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, inner.clone()));
        assert_eq!(cause(&wrapped), Some(&inner));
        assert_eq!(cause(&io::Error::other("else")), None);
        assert!(explain(&inner, None).unwrap().contains("agora.ca_file"));
    }
}
