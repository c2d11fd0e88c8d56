//! Durations and sizes as people write them: `250ms`, `1h 30m`, `4GiB`.
//!
//! Exact: whole numbers only, no rounding, no overflow. A number without a unit is refused, because
//! it is ambiguous.

use std::time::Duration;

/// Units of size, largest first.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

/// Parses a duration, or says what is wrong with it.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    humantime::parse_duration(text).map_err(|_| {
        let number = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty();
        if number {
            format!(r#"has no unit: write "{text}ms" or "{text}s""#)
        } else {
            r#"is not a duration such as "250ms", "15s" or "1h 30m""#.to_owned()
        }
    })
}

/// Formats a duration so that [`duration`] parses it to the same value.
pub(super) fn show_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// Parses a number of bytes, or says what is wrong with it.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    let known = UNITS.iter().find(|(name, _)| *name == unit);
    match (number.parse::<u64>(), known) {
        (Ok(number), Some((_, bytes))) => {
            number.checked_mul(*bytes).ok_or_else(|| "is too large for 64 bits".to_owned())
        }
        (Ok(number), None) if unit.is_empty() => {
            Err(format!(r#"has no unit: write "{number}MiB" or "{number}B""#))
        }
        _ => Err(
            "is not a size such as \"512MiB\" or \"4GiB\", in whole numbers of B, kB, MB, GB, TB, \
                  KiB, MiB, GiB or TiB"
                .to_owned(),
        ),
    }
}

/// Formats a number of bytes so that [`size`] parses it to the same value.
pub(super) fn show_size(bytes: u64) -> String {
    let whole = |(_, unit): &&(&str, u64)| bytes >= *unit && bytes.is_multiple_of(*unit);
    let (name, unit) = UNITS.iter().find(whole).unwrap_or(&("B", 1));
    format!("{}{name}", bytes / unit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_size_is_exact_or_refused() {
        for (text, bytes) in [
            ("0B", 0),
            ("4GiB", 4_294_967_296),
            (" 512 MiB ", 536_870_912),
            ("1kB", 1_000),
            ("1KiB", 1_024),
            ("18446744073709551615B", u64::MAX),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for (text, reason) in [
            ("4", r#"has no unit: write "4MiB" or "4B""#),
            ("4gib", "is not a size"),
            ("1.5GiB", "is not a size"),
            ("-1B", "is not a size"),
            ("", "is not a size"),
            ("GiB", "is not a size"),
            ("17179869184GiB", "is too large for 64 bits"),
        ] {
            let refused = size(text).unwrap_err();
            assert!(refused.starts_with(reason), "{text}: {refused}");
        }
    }

    #[test]
    fn a_duration_without_a_unit_is_refused_with_the_way_out() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5_400)));
        assert_eq!(duration("20").unwrap_err(), r#"has no unit: write "20ms" or "20s""#);
        for text in ["", "soon", "-1s", "99999999999999999999999s"] {
            assert!(duration(text).unwrap_err().starts_with("is not a duration"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_as_the_same(bytes: u64, millis in 0_u64..1 << 50) {
            prop_assert_eq!(size(&show_size(bytes)), Ok(bytes));
            let time = Duration::from_millis(millis);
            prop_assert_eq!(duration(&show_duration(time)), Ok(time));
        }
    }
}
