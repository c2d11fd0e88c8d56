//! The text of a body, whether it arrived plain or compressed.
//!
//! We don't ask for compression, but a proxy that terminates TLS may still compress, with or
//! without a `Content-Encoding`. The bytes decide, not the header: gzip and zlib are recognised by
//! their first bytes, and a JSON object is one regardless of the header. Brotli and zstd are not
//! supported; a body that only the header identifies goes to the dead letters as received.
//!
//! The journal and the pages topic keep the bytes as received; each reader inflates them.

use std::borrow::Cow;
use std::fmt;

use super::inflate;
use super::inflate::{End, Inflated};
use super::splitter::{Ending, Glance, Split, glance, split};
use crate::agora::LARGEST_BODY;
use crate::model::{Page, Wholeness};

/// Maximum size of the text that is read from a compressed body, in bytes: the same as for a plain
/// one. A page of 1,000 events has about 200 KiB, so this is room for forty; a stream that exceeds
/// it is a zip bomb. It must not be lowered: poller and publisher have to count the same elements,
/// in any combination of versions.
const LARGEST_TEXT: usize = LARGEST_BODY;

/// Maximum number of times that a body is inflated: another proxy may compress it a second time.
const LAYERS: usize = 2;

/// The text in a body.
#[derive(Debug)]
pub struct Contents<'a> {
    received: &'a [u8],
    text: Cow<'a, [u8]>,
    wholeness: Wholeness,
    flaw: Option<Flaw<'a>>,
}

/// Why the text may not be everything that the body holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw<'a> {
    /// The compressed stream ends early.
    Early,
    /// The compressed stream is damaged, or followed by something else.
    Damaged,
    /// It inflates to more than the limit.
    TooLarge,
    /// Its encoding is not supported; with the `Content-Encoding`.
    Foreign(&'a str),
}

// === impl Contents ===

impl<'a> Contents<'a> {
    /// The text of a page.
    pub fn of(page: &'a Page) -> Self {
        Self::read(&page.body, page.content_encoding.as_deref(), page.wholeness)
    }

    /// The text of a body with this `Content-Encoding`.
    pub fn read(body: &'a [u8], encoding: Option<&'a str>, wholeness: Wholeness) -> Self {
        Self::read_at_most(body, encoding, wholeness, LARGEST_TEXT)
    }

    /// The same, with another limit for the inflated size.
    pub(super) fn read_at_most(
        body: &'a [u8],
        encoding: Option<&'a str>,
        wholeness: Wholeness,
        most: usize,
    ) -> Self {
        let mut contents =
            Self { received: body, text: Cow::Borrowed(body), wholeness, flaw: None };
        for _ in 0..LAYERS {
            let Some(inflated) = inflate::inflate(&contents.text, most) else { break };
            contents.replace(inflated);
        }
        let Some(encoding) = encoding.filter(|_| contents.is_no_object()) else { return contents };
        let mut names = encoding.split(',').map(str::trim).filter(|name| !name.is_empty());
        let is = |name: &str, other: &str| name.eq_ignore_ascii_case(other);
        if is(encoding.trim(), "deflate") && contents.is_as_received() {
            match inflate::inflate_raw(body, most) {
                Some(inflated) => contents.replace(inflated),
                None => contents.flaw = Some(Flaw::Damaged),
            }
        } else if names
            .any(|name| !["gzip", "x-gzip", "deflate", "identity"].iter().any(|it| is(name, it)))
        {
            contents.text = Cow::Borrowed(body);
            contents.flaw = Some(Flaw::Foreign(encoding));
        }
        contents
    }

    /// The text; of a compressed body, as much as could be inflated.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Why the body may hold more than the text.
    pub fn flaw(&self) -> Option<Flaw<'a>> {
        self.flaw
    }

    /// Whether the body was not compressed.
    pub fn is_as_received(&self) -> bool {
        matches!(self.text, Cow::Borrowed(_))
    }

    /// Splits the text.
    pub fn split(&self) -> Split<'_> {
        let flaw = match self.flaw {
            // Read like a plain body that was cut off.
            None | Some(Flaw::Early) => None,
            Some(flaw) => Some((flaw, self.received)),
        };
        Split { flaw, ..split(&self.text) }
    }

    /// What the poller needs to know about a page.
    pub fn glance(&self) -> Glance {
        let is_all = self.flaw.is_none();
        glance(&self.split(), self.wholeness, is_all)
    }

    fn replace(&mut self, inflated: Inflated) {
        self.text = Cow::Owned(inflated.text);
        let flaw = match inflated.end {
            End::Whole => None,
            End::Early => Some(Flaw::Early),
            End::Damaged => Some(Flaw::Damaged),
            End::TooLarge => Some(Flaw::TooLarge),
        };
        self.flaw = flaw.or(self.flaw);
    }

    /// Whether there is text, but not even the beginning of an object.
    fn is_no_object(&self) -> bool {
        let is_blank = self.text.trim_ascii().is_empty();
        let split = split(&self.text);
        !is_blank && split.elements.is_empty() && matches!(split.ending, Ending::NotAnObject(_))
    }
}

// === impl Flaw ===

impl fmt::Display for Flaw<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Early => f.write_str("the compressed body ends early"),
            Self::Damaged => f.write_str("the compressed body is damaged"),
            Self::TooLarge => write!(f, "the body inflates to more than {LARGEST_TEXT} bytes"),
            Self::Foreign(encoding) => {
                write!(f, "the body has an unsupported encoding (Content-Encoding: {encoding})")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use miniz_oxide::deflate::{compress_to_vec, compress_to_vec_zlib};

    use super::*;
    use crate::agora::Shape;

    const PAGE: &str = r#"{"result":"success","events":[1,2]}"#;

    /// Checks encoding and body against: number of elements, reason of the dead letter, shape.
    #[track_caller]
    fn check(
        encoding: Option<&str>,
        body: &[u8],
        wholeness: Wholeness,
        expected: (usize, Option<&str>, Shape),
    ) {
        let contents = Contents::read(body, encoding, wholeness);
        let split = contents.split();
        let leftover = split.leftover(wholeness);
        let reason = leftover.as_ref().map(|(reason, raw)| {
            assert_eq!(*raw, body, "all of it is the dead letter");
            reason.as_ref()
        });
        let glance = contents.glance();
        assert_eq!(glance.received, (split.elements.len() + usize::from(reason.is_some())) as u64);
        assert_eq!((split.elements.len(), reason, glance.shape), expected);
    }

    #[test]
    fn the_bytes_decide_and_not_the_header() {
        let zlib = compress_to_vec_zlib(PAGE.as_bytes(), 6);
        let raw = compress_to_vec(PAGE.as_bytes(), 6);
        let sound = (2, None, Shape::Sound);
        for encoding in [None, Some("gzip"), Some("deflate"), Some("br"), Some("x")] {
            check(encoding, &zlib, Wholeness::Whole, sound);
            check(encoding, PAGE.as_bytes(), Wholeness::Whole, sound);
        }
        check(Some("Deflate"), &raw, Wholeness::Whole, sound);
        let twice = compress_to_vec_zlib(&zlib, 6);
        check(None, &twice, Wholeness::Whole, sound);
        let thrice = compress_to_vec_zlib(&twice, 6);
        let contents = Contents::read(&thrice, None, Wholeness::Whole);
        assert_eq!(contents.glance().shape, Shape::Alien);
    }

    #[test]
    fn what_can_not_be_read_goes_to_a_person_with_the_reason() {
        let foreign = "the body has an unsupported encoding (Content-Encoding: gzip, br)";
        let (alien, torn) = (Shape::Alien, Shape::Torn);
        check(Some("gzip, br"), b"\x1b\x03", Wholeness::Whole, (0, Some(foreign), alien));
        check(Some("gzip, br"), b"\x1b\x03", Wholeness::Cut, (0, Some(foreign), torn));
        check(Some("br"), b" ", Wholeness::Whole, (0, None, alien));
        let damaged = Some("the compressed body is damaged");
        let mut zlib = compress_to_vec_zlib(PAGE.as_bytes(), 6);
        let last = zlib.len() - 1;
        zlib[last] ^= 1;
        check(None, &zlib, Wholeness::Whole, (2, damaged, torn));
        check(Some("deflate"), b"\xff\xff", Wholeness::Whole, (0, damaged, alien));
        let text = format!(r#"{{"events":[1,{}2]}}"#, " ".repeat(LARGEST_TEXT));
        let large = compress_to_vec_zlib(text.as_bytes(), 6);
        let reason = format!("the body inflates to more than {LARGEST_TEXT} bytes");
        check(None, &large, Wholeness::Whole, (1, Some(&reason), torn));
    }

    #[test]
    fn what_breaks_off_is_read_as_a_plain_body_that_does() {
        let zlib = compress_to_vec_zlib(PAGE.as_bytes(), 0);
        for wholeness in [Wholeness::Whole, Wholeness::Cut] {
            let without = |end: usize| &zlib[..zlib.len() - end];
            check(None, without(1), wholeness, (2, None, Shape::Torn));
            check(None, without(4 + 1), wholeness, (2, None, Shape::Torn));
            check(None, without(4 + 3), wholeness, (1, None, Shape::Torn));
        }
    }
}
