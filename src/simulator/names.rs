//! Names of users and channels.
//!
//! A name is a function of a number, so that ten million events need no strings. Agora allows 64
//! ASCII characters with few exceptions, and demonstrably enforces neither rule: wild names go to
//! those limits and beyond.

use super::event::write_digits;

/// Prefix of a plain name, and its number of digits.
pub(super) type Plain = (&'static str, usize);

/// Plain names of users.
pub(super) const USER: Plain = ("user-", 6);

/// Plain names of channels.
pub(super) const CHANNEL: Plain = ("channel-", 4);

/// Texts that could trip up a reader of JSON, of URLs or of plain text.
///
/// None contains `~`, which separates the number in all later names: so no two are equal.
const WILD: [&str; 28] = [
    "",
    " ",
    "%",
    "rtmtest_RTM_4852_4857w7%",
    "100% {sure}",
    "\"",
    "\\",
    "\\\"",
    "\\u0041",
    "{}",
    "[]",
    "}]",
    "}],\"ms\":1578027420761,\"x\":[{",
    "{\"user_id\":\"nested\",\"type\":\"Login\",\"ms\":1578027420761}",
    "null",
    "true",
    "-0",
    "'; --",
    "a/b?c=d&e#f",
    "%00%2F%",
    ",",
    ":",
    "\t\r\n",
    "\u{0}\u{1f}\u{7f}",
    "na\u{ef}ve",
    "\u{65e5}\u{672c}\u{8a9e}",
    "\u{1f600}\u{2028}\u{feff}",
    "64 characters: !#$%&()+-:;<=.>?@[]^_{|},` 0123456789 abcdefghijk",
];

/// The name of a user.
pub(super) fn user(number: u32, wild: bool) -> String {
    if wild { wild_name(number) } else { plain_name(USER, number) }
}

/// The name of a channel.
pub(super) fn channel(number: u32, wild: bool) -> String {
    if wild { wild_name(number) } else { plain_name(CHANNEL, number) }
}

/// Writes a plain name as a JSON string; none of its characters needs escaping.
pub(super) fn write_plain((stem, digits): Plain, number: u32, out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(stem.as_bytes());
    write_digits(number.into(), digits, out);
    out.push(b'"');
}

fn plain_name((stem, digits): Plain, number: u32) -> String {
    format!("{stem}{number:0digits$}")
}

fn wild_name(number: u32) -> String {
    let index = number as usize;
    match WILD.get(index) {
        Some(name) => (*name).to_owned(),
        None => format!("{}~{number}", WILD.get(index % WILD.len()).unwrap_or(&"")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_have_the_same_name() {
        for name in [user, channel] {
            for wild in [false, true] {
                let names: HashSet<String> = (0..20_000).map(|n| name(n, wild)).collect();
                assert_eq!(names.len(), 20_000);
            }
        }
    }
}
