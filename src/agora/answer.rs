//! What an answer means for the caller.
//!
//! Agora keeps no copy of the events it has returned, so any answer that could hold an event is an
//! [`Answer::Page`] and has to be durable before anything else happens. Before that, we only look
//! into answers that provably hold none: a whole body of at most [`SMALL`] bytes, compressed or
//! not, that is a JSON object without a place where an event could be; and the body of an error
//! status in which the word `events` doesn't even occur. If the status is a success, the object
//! itself must say that it is empty; otherwise it is a failure.

use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::de::IgnoredAny;

use crate::agora::{Contents, Ending, Flaw, LARGEST_BODY, Raw, Reply, TransportError};
use crate::model::Wholeness;

/// Maximum size of a body, as received and as text, that is inspected before it is durable, in
/// bytes.
pub const SMALL: usize = 512;

/// Maximum `Retry-After` that is obeyed. Agora counts requests over a second, and 2,000 events are
/// overwritten within minutes: a longer delay is a mistake, and one request a minute costs nothing.
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// A `Retry-After` from here on is a time in seconds since 1970, as some APIs send it …
const EPOCH_SECONDS: u64 = 1_000_000_000;

/// … and from here on in milliseconds.
const EPOCH_MILLISECONDS: u64 = 100_000_000_000;

/// Maximum length of the server's error text in a log, in bytes.
const EXCERPT: usize = 200;

/// The outcome of a request, named for what the caller must do next.
#[derive(Debug)]
pub enum Answer {
    /// A page, or as much of one as arrived. No other copy exists.
    Page {
        /// HTTP status.
        status: u16,
        /// Why it was cut off; `None` if it is complete.
        cut: Option<TransportError>,
        /// The body, as received.
        body: Bytes,
        /// `Content-Encoding`, if it names an encoding.
        content_encoding: Option<String>,
        /// Ids that Agora's support asks for.
        ids: Ids,
        /// What the server said, if the status reports a problem along with the page.
        problem: Option<Said>,
    },
    /// The feed had nothing.
    Empty,
    /// Nothing was returned, because the server failed, refused, or counted too many requests.
    Nothing(Said),
    /// The request never reached the server. Nothing was drained.
    NotSent(TransportError),
    /// A page may have been returned and is lost.
    Lost(TransportError),
}

/// What a server said instead of success.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("status {status}{}, {}", excerpt(.text), .ids)]
pub struct Said {
    /// HTTP status.
    pub status: u16,
    /// The beginning of the body.
    pub text: String,
    /// Ids that Agora's support asks for.
    pub ids: Ids,
    /// `Retry-After`, at most a minute.
    pub retry_after: Option<Duration>,
}

/// The ids of an answer that Agora's support asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// `X-Request-ID`.
    pub request: Option<String>,
    /// `X-Resource-ID`.
    pub resource: Option<String>,
}

// === impl Said ===

impl Said {
    /// What the status means at Agora, and the remedy.
    pub fn meaning(&self) -> &'static str {
        match self.status {
            200..=299 => "Agora did not report success; the request will be retried",
            300..=399 => "redirects are not followed: check the app's hosts and the proxy",
            400 => "Agora does not know the App ID or the path: check apps.app_id",
            401 => "check the app's credentials (apps.auth)",
            403 => "enable Signaling (RTM) for the App ID in Agora's console",
            404 => "check the hosts and the path of the endpoint",
            407 => "the proxy requires a user name and a password: check agora.proxy",
            408 => "Agora timed out; the request will be retried",
            429 => "Agora counted too many requests; slowing down for a while",
            500..=599 => {
                "Agora failed; the request will be retried, on the next host if this continues. \
                 Give the ids to Agora's support"
            }
            _ => "a status that Agora does not document: check the app's hosts and the proxy",
        }
    }
}

// === impl Ids ===

impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request id {}", self.request.as_deref().unwrap_or("unknown"))?;
        match &self.resource {
            Some(resource) => write!(f, ", resource id {resource}"),
            None => Ok(()),
        }
    }
}

/// Decides what a reply means. `now` is for a `Retry-After` that is a date.
pub fn judge(reply: Reply, now: SystemTime) -> Answer {
    let raw = match reply {
        Reply::NotSent(error) => return Answer::NotSent(error),
        Reply::Lost(error) => return Answer::Lost(error),
        Reply::Answered(raw) => raw,
    };
    let contents = contents(&raw);
    let holds = holds(&raw, &contents);
    // Relative to the server's clock if it is known: ours may be hours off.
    let now = raw.date().unwrap_or(now);
    let failed = !is_success(&raw) || holds == Holds::Failure;
    let problem = failed.then(|| said(&raw, contents.text(), now));
    if holds != Holds::Perhaps {
        return problem.map_or(Answer::Empty, Answer::Nothing);
    }
    Answer::Page {
        status: raw.status,
        content_encoding: raw.encoding().map(str::to_owned),
        cut: raw.cut,
        body: raw.body,
        ids: Ids { request: raw.request_id, resource: raw.resource_id },
        problem,
    }
}

/// Whether an answer holds an event.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    /// It may hold one.
    Perhaps,
    /// It provably holds none, and says so.
    Nothing,
    /// It provably holds none, and doesn't report success.
    Failure,
}

/// Inflates no more than will be inspected: of a success, only a small text.
fn contents(raw: &Raw) -> Contents<'_> {
    let wholeness = if raw.cut.is_some() { Wholeness::Cut } else { Wholeness::Whole };
    let most = if is_success(raw) { SMALL } else { LARGEST_BODY };
    Contents::read_at_most(&raw.body, raw.encoding(), wholeness, most)
}

fn is_success(raw: &Raw) -> bool {
    (200..=299).contains(&raw.status)
}

fn holds(raw: &Raw, contents: &Contents<'_>) -> Holds {
    let text = contents.text();
    let is_known = matches!(contents.flaw(), None | Some(Flaw::Early));
    let is_whole = raw.cut.is_none() && contents.flaw().is_none();
    if !is_success(raw) && is_known && !contains_events(text) {
        let start = text.trim_ascii_start();
        // A body that was cut off before the word may have been the beginning of a page.
        let may_begin_a_page =
            start.starts_with(b"{") || start.is_empty() && !contents.is_as_received();
        return if is_whole || !may_begin_a_page { Holds::Nothing } else { Holds::Perhaps };
    }
    if !is_whole || raw.body.len() > SMALL || text.len() > SMALL {
        return Holds::Perhaps;
    }
    if raw.status == 204 && text.is_empty() {
        return Holds::Nothing;
    }
    // Ask the splitter, as the publisher will: for a duplicate name, other parsers see only one
    // value.
    let split = contents.split();
    if !split.elements.is_empty() || serde_json::from_slice::<IgnoredAny>(text).is_err() {
        return Holds::Perhaps;
    }
    match split.ending {
        Ending::Closed => Holds::Nothing,
        Ending::Failed | Ending::Unproven(_) => Holds::Failure,
        _ => Holds::Perhaps,
    }
}

/// `events` may be written with escapes; then there is a backslash.
fn contains_events(body: &[u8]) -> bool {
    body.windows(6).any(|six| six == b"events") || body.contains(&b'\\')
}

/// `Retry-After`: seconds or an HTTP date (RFC 9110, section 10.2.3), or a time as a number.
fn delay(text: &str, now: SystemTime) -> Option<Duration> {
    let until = |moment: SystemTime| moment.duration_since(now).unwrap_or_default();
    let since_1970 = |time: Duration| SystemTime::UNIX_EPOCH.checked_add(time).map(until);
    let named = match text.trim().parse() {
        Ok(seconds @ ..EPOCH_SECONDS) => Duration::from_secs(seconds),
        Ok(seconds @ ..EPOCH_MILLISECONDS) => since_1970(Duration::from_secs(seconds))?,
        Ok(millis) => since_1970(Duration::from_millis(millis))?,
        Err(_) => until(httpdate::parse_http_date(text.trim()).ok()?),
    };
    Some(named.min(LONGEST_DELAY))
}

fn said(raw: &Raw, text: &[u8], now: SystemTime) -> Said {
    let start = text.get(..EXCERPT).unwrap_or(text);
    let text: Vec<&str> = std::str::from_utf8(start)
        .unwrap_or_default()
        .split(char::is_whitespace)
        .filter(|word| !word.is_empty())
        .collect();
    let ids = Ids { request: raw.request_id.clone(), resource: raw.resource_id.clone() };
    let retry_after = raw.retry_after.as_deref().and_then(|text| delay(text, now));
    Said { status: raw.status, text: text.join(" "), ids, retry_after }
}

fn excerpt(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

#[cfg(test)]
mod tests {
    use miniz_oxide::deflate::{compress_to_vec, compress_to_vec_zlib};

    use super::*;

    /// What Agora's servers say about their own failures, with any status.
    const AGORAS_ERROR: &str =
        r#"{"data":null,"error":true,"errorCode":500,"message":"server error"}"#;

    fn judged(status: u16, body: &str, cut: bool) -> Answer {
        let raw = Raw {
            status,
            body: Bytes::copy_from_slice(body.as_bytes()),
            cut: cut.then(|| TransportError("reset".to_owned())),
            ..Raw::default()
        };
        judge(Reply::Answered(raw), SystemTime::UNIX_EPOCH)
    }

    fn kind(answer: &Answer) -> &'static str {
        match answer {
            Answer::Page { cut: Some(_), .. } => "cut",
            Answer::Page { problem: Some(_), .. } => "page in trouble",
            Answer::Page { .. } => "page",
            Answer::Empty => "empty",
            Answer::Nothing(_) => "nothing",
            Answer::NotSent(_) => "not sent",
            Answer::Lost(_) => "lost",
        }
    }

    #[test]
    fn only_what_provably_holds_no_event_is_not_kept() {
        let event = r#"{"result":"success","events":[{"a":1}]}"#;
        let long = format!(r#"{{"result":"success","events":[],"x":"{}"}}"#, "x".repeat(SMALL));
        for (status, body, cut, expected) in [
            (200, r#"{"result":"success","request_id":"1","events":[]}"#, false, "empty"),
            (200, r#"{"result":"success","events":null}"#, false, "empty"),
            (200, r#"{"result":"success"}"#, false, "empty"),
            (200, "", false, "page"),
            (204, "", false, "empty"),
            (200, r#"{"result":"failed","events":[]}"#, false, "nothing"),
            (200, r#"{"result":"failed","events":[1]}"#, false, "page"),
            (200, event, false, "page"),
            (200, &long, false, "page"),
            (200, r#"{"result":"success","events":[]}"#, true, "cut"),
            (200, "", true, "cut"),
            (200, r#"{"events":{}}"#, false, "page"),
            (200, r#"{"events":[1],"events":[]}"#, false, "page"),
            (200, r#"{"events":null,"\u0065vents":[1]}"#, false, "page"),
            (200, "<html>", false, "page"),
            (200, r#"{"result":"success","data":{"events":[{"a":1}]}}"#, false, "page"),
            (200, r#"{"result":"success","data":{"events":[]}}"#, false, "page"),
            (200, r#"{"result":"success","events":[],"more":[[]]}"#, false, "page"),
            (200, r#"{"Events":[{"a":1}]}"#, false, "page"),
            (200, r#"{"user_events":[{"a":1}]}"#, false, "page"),
            (200, r#"{"events":[],"Events":[{"a":1}]}"#, false, "page"),
            (200, r#"{"result":"failed","events":[],"x":{"a":1}}"#, false, "page"),
            (200, r#"{"result":"success","events":[],"a":[ ],"b":{}}"#, false, "empty"),
            (200, r#"{"result":"success","error":false,"n":1.5,"x":"[1]"}"#, false, "empty"),
            (200, r#"{"error":null,"events":null}"#, false, "empty"),
            (200, r#"{"r\u0065sult":"\u0073uccess"}"#, false, "empty"),
            (200, AGORAS_ERROR, false, "nothing"),
            (200, r#"{"result":"success","error":true,"events":[]}"#, false, "nothing"),
            (200, r#"{"error":"no","events":[]}"#, false, "nothing"),
            (200, r#"{"result":"success","result":"failed"}"#, false, "nothing"),
            (200, r#"{"result":"failed","result":"success"}"#, false, "nothing"),
            (200, r#"{"result":true,"events":[]}"#, false, "nothing"),
            (200, r#"{"request_id":"1"}"#, false, "nothing"),
            (200, "{}", false, "nothing"),
            (206, "{}", false, "nothing"),
            (503, r#"{"data":{"events":[{"a":1}]}}"#, false, "page in trouble"),
            (503, r#"{"path":"/user_events"}"#, false, "nothing"),
            (503, "<html>busy</html>", false, "nothing"),
            (503, "<html>bu", true, "nothing"),
            (503, r#"{"result":"success","eve"#, true, "cut"),
            (503, event, false, "page in trouble"),
            (500, r#"{"\u0065vents":[1]}"#, false, "page in trouble"),
            (408, "", false, "nothing"),
            (301, "", false, "nothing"),
            (401, r#"{"message":"Invalid authentication credentials"}"#, false, "nothing"),
            (400, r#"{"message":"invalid appid"}"#, false, "nothing"),
            (429, "", false, "nothing"),
        ] {
            assert_eq!(kind(&judged(status, body, cut)), expected, "{status} {body}");
        }
    }

    #[test]
    fn a_compressed_body_is_judged_by_what_is_in_it() {
        let event = r#"{"result":"success","events":[{"a":1}]}"#;
        let zeros = format!(r#"{{"result":"success","n":"{}"}}"#, "0".repeat(SMALL));
        for (status, text, expected) in [
            (200, r#"{"result":"success","events":[]}"#, "empty"),
            (200, r#"{"result":"failed"}"#, "nothing"),
            (200, AGORAS_ERROR, "nothing"),
            (200, event, "page"),
            (200, r#"{"result":"success","data":[1]}"#, "page"),
            (200, "", "page"),
            (200, "<html>", "page"),
            // Small as received, but large as text.
            (200, &zeros, "page"),
            (204, "", "empty"),
            (503, "<html>busy</html>", "nothing"),
            (503, event, "page in trouble"),
            (401, r#"{"message":"Invalid authentication credentials"}"#, "nothing"),
        ] {
            let packed = gzip(text);
            for (body, encoding) in [
                (packed.clone(), None),
                (packed, Some("gzip")),
                (compress_to_vec_zlib(text.as_bytes(), 6), Some("deflate")),
                (compress_to_vec(text.as_bytes(), 6), Some("deflate")),
                (text.as_bytes().to_vec(), Some("gzip")),
                (text.as_bytes().to_vec(), Some("identity")),
            ] {
                let raw = Raw {
                    status,
                    body: Bytes::from(body),
                    content_encoding: encoding.map(str::to_owned),
                    ..Raw::default()
                };
                let answer = judge(Reply::Answered(raw.clone()), SystemTime::UNIX_EPOCH);
                assert_eq!(kind(&answer), expected, "{status} {encoding:?} {text}");
                let said = match answer {
                    Answer::Page { body, content_encoding, .. } => {
                        let kept = encoding.filter(|it| *it != "identity");
                        assert_eq!((body, content_encoding.as_deref()), (raw.body, kept));
                        continue;
                    }
                    Answer::Nothing(said) => said,
                    _ => continue,
                };
                assert_eq!(said.text, text);
            }
        }
    }

    #[test]
    fn a_compressed_body_that_can_not_be_read_is_kept() {
        let failure = gzip("<html>busy</html>");
        let cut = &failure[..failure.len() - 10];
        let bad = [&failure[..failure.len() - 1], b"x"].concat();
        let page = gzip(r#"{"result":"success","events":[]}"#);
        for (status, body, encoding, expected) in [
            (200, &page[..page.len() - 1], None, "page"),
            (200, &b"\x1b\x03\0\xf8"[..], Some("br"), "page"),
            (503, b"\x1b\x03\0\xf8", Some("br"), "page in trouble"),
            (503, &bad, None, "page in trouble"),
            (503, &failure[..5], None, "page in trouble"),
            (503, cut, None, "nothing"),
            (503, &page[..page.len() - 12], None, "page in trouble"),
            (200, br#"{"result":"success","events":[]}"#, Some("br"), "empty"),
        ] {
            let raw = Raw {
                status,
                body: Bytes::copy_from_slice(body),
                content_encoding: encoding.map(str::to_owned),
                ..Raw::default()
            };
            let answer = judge(Reply::Answered(raw), SystemTime::UNIX_EPOCH);
            assert_eq!(kind(&answer), expected, "{status} {}", body.escape_ascii());
        }
    }

    fn gzip(text: &str) -> Vec<u8> {
        let trailer = [crc32fast::hash(text.as_bytes()), u32::try_from(text.len()).unwrap()]
            .map(u32::to_le_bytes);
        let head: &[u8] = b"\x1f\x8b\x08\0\0\0\0\0\0\xff";
        [head, &compress_to_vec(text.as_bytes(), 6), trailer.as_flattened()].concat()
    }

    #[test]
    fn a_delay_is_read_as_seconds_and_as_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        for (text, seconds) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("61", Some(60)),
            ("999999999", Some(60)),
            ("18446744073709551615", Some(60)),
            ("Sun, 06 Nov 1994 23:49:37 GMT", Some(60)),
            ("soon", None),
        ] {
            assert_eq!(delay(text, now), seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn a_delay_that_is_a_moment_is_waited_for_as_one() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000);
        for (text, seconds) in
            [("1790000005", 5), ("1789999999", 0), ("1790000005000", 5), ("1790003600", 60)]
        {
            assert_eq!(delay(text, now), Some(Duration::from_secs(seconds)), "{text}");
        }
    }

    #[test]
    fn any_refusal_or_failure_may_name_a_delay() {
        for status in [400, 401, 403, 404, 429, 500, 503] {
            let raw = Raw { status, retry_after: Some("7".to_owned()), ..Raw::default() };
            let answer = judge(Reply::Answered(raw), SystemTime::UNIX_EPOCH);
            let Answer::Nothing(said) = answer else { panic!("{status}: {answer:?}") };
            assert_eq!(said.retry_after, Some(Duration::from_secs(7)), "{status}");
        }
    }

    #[test]
    fn a_failure_says_what_the_server_said_and_its_request_id() {
        let raw = Raw {
            status: 503,
            body: Bytes::from_static(b"<html>\n  busy</html>"),
            request_id: Some("r1".to_owned()),
            ..Raw::default()
        };
        assert_eq!(
            said(&raw, &raw.body, SystemTime::UNIX_EPOCH).to_string(),
            "status 503 (<html> busy</html>), request id r1"
        );
        let both = Raw { resource_id: Some("o1".to_owned()), ..raw };
        let text = "status 503 (<html> busy</html>), request id r1, resource id o1";
        assert_eq!(said(&both, &both.body, SystemTime::UNIX_EPOCH).to_string(), text);
        assert_eq!(
            said(&Raw::default(), b"", SystemTime::UNIX_EPOCH).to_string(),
            "status 0, request id unknown"
        );
    }

    #[test]
    fn a_date_to_wait_for_is_read_by_the_clock_that_wrote_it() {
        let raw = Raw {
            status: 429,
            date: Some("Sun, 06 Nov 1994 08:49:30 GMT".to_owned()),
            retry_after: Some("Sun, 06 Nov 1994 08:49:37 GMT".to_owned()),
            ..Raw::default()
        };
        let years_later = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        let answer = judge(Reply::Answered(raw), years_later);
        let Answer::Nothing(said) = answer else { panic!("{answer:?}") };
        assert_eq!(said.retry_after, Some(Duration::from_secs(7)));
    }
}
