//! Inflates gzip (RFC 1952) and zlib (RFC 1950) streams, as far as possible.
//!
//! A stream that ends early, is damaged or too large still yields everything before that point,
//! like a plain body.

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_COMPUTE_ADLER32, TINFL_FLAG_PARSE_ZLIB_HEADER,
    TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

/// The first bytes of gzip with the only compression method there is.
const GZIP: &[u8] = b"\x1f\x8b\x08";

/// Initial buffer for the inflated text, in bytes; it doubles up to the limit.
const FIRST_ROOM: usize = 4 * 1024;

/// The inflated text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Inflated {
    pub(super) text: Vec<u8>,
    pub(super) end: End,
}

/// How a compressed stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Complete, with a correct checksum.
    Whole,
    /// The stream ends too early.
    Early,
    /// The stream contains invalid bytes.
    Damaged,
    /// The text would exceed the limit.
    TooLarge,
}

/// Inflates a gzip or zlib stream to at most `most` bytes. `None` if it is neither.
pub(super) fn inflate(packed: &[u8], most: usize) -> Option<Inflated> {
    let mut inflated = Inflated { text: Vec::new(), end: End::Whole };
    if packed.starts_with(GZIP) {
        inflated.end = inflated.gzip(packed, most);
        return Some(inflated);
    }
    if !is_zlib(packed) {
        return None;
    }
    let flags = TINFL_FLAG_PARSE_ZLIB_HEADER | TINFL_FLAG_COMPUTE_ADLER32;
    let (end, used) = inflated.stream(packed, flags, most);
    inflated.end = match end {
        End::Whole if used < packed.len() => End::Damaged,
        end => end,
    };
    // Two bytes prove little: a text can begin like this.
    let is_text = match inflated.end {
        End::Whole | End::TooLarge => false,
        End::Early => is_printable(packed),
        End::Damaged => inflated.text.is_empty() || is_printable(packed),
    };
    (!is_text).then_some(inflated)
}

/// Inflates a stream without header and checksum, which some servers send as `deflate`. `None` if
/// it is not one.
pub(super) fn inflate_raw(packed: &[u8], most: usize) -> Option<Inflated> {
    let mut inflated = Inflated { text: Vec::new(), end: End::Whole };
    let (end, used) = inflated.stream(packed, 0, most);
    inflated.end = end;
    let is_stream = end != End::Damaged && (end != End::Whole || used == packed.len());
    is_stream.then_some(inflated)
}

fn is_printable(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
}

fn is_zlib(packed: &[u8]) -> bool {
    let Some(&[method, flags]) = packed.first_chunk() else { return false };
    let needs_dictionary = flags & 0x20 != 0;
    let sum = u16::from_be_bytes([method, flags]);
    method & 0x0f == 8 && method >> 4 <= 7 && sum.is_multiple_of(31) && !needs_dictionary
}

// === impl Inflated ===

impl Inflated {
    /// Reads one member after another; nothing else may follow.
    fn gzip(&mut self, packed: &[u8], most: usize) -> End {
        let mut rest = packed;
        loop {
            let after = match head(rest) {
                Ok(after) => after,
                Err(end) => return end,
            };
            let start = self.text.len();
            let (end, used) = self.stream(after, 0, most);
            if end != End::Whole {
                return end;
            }
            let Some((trailer, after)) = after.get(used..).and_then(<[u8]>::split_first_chunk::<8>)
            else {
                return End::Early;
            };
            let text = self.text.get(start..).unwrap_or_default();
            // The length is stated modulo 2^32, which none of our texts reaches.
            let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
            let [checksum, stated] = [crc32fast::hash(text), length].map(u32::to_le_bytes);
            if *trailer.as_slice() != [checksum, stated].concat() {
                return End::Damaged;
            }
            if after.is_empty() {
                return End::Whole;
            }
            rest = after;
        }
    }

    /// Appends the inflated stream. Returns how many bytes of the stream were read.
    fn stream(&mut self, packed: &[u8], flags: u32, most: usize) -> (End, usize) {
        let flags = flags | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let mut state = Box::<DecompressorOxide>::default();
        let start = self.text.len();
        let (mut used, mut written) = (0, 0);
        self.text.resize((start + FIRST_ROOM).min(most), 0);
        loop {
            let packed = packed.get(used..).unwrap_or_default();
            let room = self.text.get_mut(start..).unwrap_or_default();
            let (status, read, out) = decompress(&mut state, packed, room, written, flags);
            used += read;
            written += out;
            let end = match status {
                TINFLStatus::Done => End::Whole,
                TINFLStatus::HasMoreOutput if self.text.len() >= most => End::TooLarge,
                TINFLStatus::HasMoreOutput => {
                    self.text.resize((self.text.len() * 2).min(most), 0);
                    continue;
                }
                TINFLStatus::FailedCannotMakeProgress | TINFLStatus::NeedsMoreInput => End::Early,
                _ => End::Damaged,
            };
            self.text.truncate(start + written);
            return (end, used);
        }
    }
}

/// The bytes after the header of a gzip member (RFC 1952, section 2.3).
fn head(packed: &[u8]) -> Result<&[u8], End> {
    const CHECKSUM: u8 = 2;
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    const RESERVED: u8 = 0xe0;
    if !packed.starts_with(GZIP.get(..packed.len()).unwrap_or(GZIP)) {
        return Err(End::Damaged);
    }
    let ([_, _, _, flags, ..], mut rest) = packed.split_first_chunk::<10>().ok_or(End::Early)?;
    if flags & RESERVED != 0 {
        return Err(End::Damaged);
    }
    if flags & EXTRA != 0 {
        let (length, after) = rest.split_first_chunk().ok_or(End::Early)?;
        rest = after.get(u16::from_le_bytes(*length).into()..).ok_or(End::Early)?;
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            let end = rest.iter().position(|byte| *byte == 0).ok_or(End::Early)?;
            rest = rest.get(end + 1..).unwrap_or_default();
        }
    }
    if flags & CHECKSUM != 0 {
        rest = rest.get(2..).ok_or(End::Early)?;
    }
    Ok(rest)
}

#[cfg(test)]
mod tests {
    use miniz_oxide::deflate::{compress_to_vec, compress_to_vec_zlib};
    use proptest::prelude::*;

    use super::*;

    const MOST: usize = 100_000;

    fn gzip(text: &[u8], head: &[u8]) -> Vec<u8> {
        let trailer =
            [crc32fast::hash(text), u32::try_from(text.len()).unwrap()].map(u32::to_le_bytes);
        [head, &compress_to_vec(text, 6), trailer.as_flattened()].concat()
    }

    const HEAD: &[u8] = b"\x1f\x8b\x08\0\0\0\0\0\0\x03";

    #[track_caller]
    fn check(packed: &[u8], text: &[u8], end: End) {
        let inflated = inflate(packed, MOST).expect("it is compressed");
        assert_eq!((inflated.text.escape_ascii().to_string(), inflated.end), {
            (text.escape_ascii().to_string(), end)
        });
    }

    #[test]
    fn every_head_of_gzip_is_passed_over() {
        for head in [
            HEAD,
            b"\x1f\x8b\x08\x08\0\0\0\0\0\x03name\0",
            b"\x1f\x8b\x08\x10\0\0\0\0\0\x03a comment\0",
            b"\x1f\x8b\x08\x04\0\0\0\0\0\x03\x03\0abc",
            b"\x1f\x8b\x08\x1f\0\0\0\0\0\x03\x01\0anamed\0comment\0##",
        ] {
            let packed = gzip(b"a text", head);
            check(&packed, b"a text", End::Whole);
            for cut in GZIP.len()..head.len() {
                check(&packed[..cut], b"", End::Early);
            }
        }
        check(b"\x1f\x8b\x08\x20\0\0\0\0\0\x03", b"", End::Damaged);
    }

    #[test]
    fn members_follow_one_another_and_nothing_else_does() {
        let two = [gzip(b"one, ", HEAD), gzip(b"two", HEAD)].concat();
        check(&two, b"one, two", End::Whole);
        check(&[&two[..], b"\0"].concat(), b"one, two", End::Damaged);
        check(&[&two[..], b"\x1f\x8b"].concat(), b"one, two", End::Early);
        let zlib = compress_to_vec_zlib(b"one", 6);
        check(&[&zlib[..], b"{"].concat(), b"one", End::Damaged);
    }

    #[test]
    fn a_checksum_that_does_not_hold_is_damage_behind_a_text_that_is_all_there() {
        for (mut packed, from_end) in [
            (gzip(b"text", HEAD), 1),
            (gzip(b"text", HEAD), 8),
            (compress_to_vec_zlib(b"text", 6), 1),
        ] {
            let place = packed.len() - from_end;
            packed[place] ^= 1;
            check(&packed, b"text", End::Damaged);
        }
    }

    #[test]
    fn what_precedes_damage_comes_out() {
        let text: Vec<u8> =
            (0..2_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_769).to_le_bytes()).collect();
        let stored = compress_to_vec(&text[..4_000], 0);
        // The last bit of the block is not set, and the next block has an invalid type.
        let mut open = stored.clone();
        open[0] &= !1;
        let packed = [HEAD, &open, b"\x07"].concat();
        check(&packed, &text[..4_000], End::Damaged);
    }

    #[test]
    fn a_bomb_ends_at_the_bound() {
        let zeros = vec![0; MOST + 1];
        for packed in [gzip(&zeros, HEAD), compress_to_vec_zlib(&zeros, 9)] {
            check(&packed, &zeros[..MOST], End::TooLarge);
        }
        check(&gzip(&zeros[..MOST], HEAD), &zeros[..MOST], End::Whole);
        let bombs = [gzip(&zeros[..MOST], HEAD), gzip(b"0", HEAD)].concat();
        check(&bombs, &zeros[..MOST], End::TooLarge);
    }

    #[test]
    fn what_is_not_compressed_is_left_alone() {
        for text in [&b""[..], b"{", b"{\"events\":[]}", b"\x1f\x8b", b"\x1f\x8b\x07", b"<html>"] {
            assert_eq!(inflate(text, MOST), None, "{}", text.escape_ascii());
        }
        // It begins like zlib.
        assert!(is_zlib(b"x^2"));
        assert_eq!(inflate(b"x^2 + y^2", MOST), None);
        assert_eq!(inflate(b"x^", MOST), None);
    }

    #[test]
    fn a_raw_stream_is_told_from_a_text() {
        let raw = compress_to_vec(b"{\"events\":[]}", 6);
        let inflated = inflate_raw(&raw, MOST).unwrap();
        assert_eq!((&inflated.text[..], inflated.end), (&b"{\"events\":[]}"[..], End::Whole));
        assert_eq!(inflate_raw(b"<html>", MOST), None);
    }

    proptest! {
        #[test]
        fn a_part_of_a_stream_yields_a_part_of_the_text(
            text in prop::collection::vec(prop::sample::select(&b"ab{}"[..]), 0..20_000),
            cut in any::<prop::sample::Index>(),
            level in 0_u8..10,
        ) {
            let trailer = [crc32fast::hash(&text), u32::try_from(text.len()).unwrap()].map(u32::to_le_bytes);
            let gzip = [HEAD, &compress_to_vec(&text, level), trailer.as_flattened()].concat();
            for packed in [gzip, compress_to_vec_zlib(&text, level)] {
                let whole = inflate(&packed, MOST).unwrap();
                prop_assert_eq!(&whole.text, &text);
                prop_assert_eq!(whole.end, End::Whole);
                let part = &packed[..3 + cut.index(packed.len() - 3)];
                let Some(part) = inflate(part, MOST) else {
                    prop_assert!(is_printable(part));
                    continue;
                };
                prop_assert!(text.starts_with(&part.text));
                prop_assert_eq!(part.end, End::Early);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, most in 0_usize..100) {
            for head in [&b""[..], HEAD, b"\x78\x9c"] {
                let packed = [head, &bytes].concat();
                let inflated = inflate(&packed, most);
                prop_assert!(inflated.is_none_or(|it| it.text.len() <= most));
            }
        }
    }
}
