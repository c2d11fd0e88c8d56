//! How errors are shown: with every cause, in one line of bounded length.

#[cfg(debug_assertions)]
mod provoked;

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

/// An error with its whole chain of causes, outermost first, joined by `: `.
///
/// An error's own `Display` never prints its source, and a structured log of `%error` shows only
/// the outermost text.
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

/// A place at which a test can ask for a panic. A release has none.
#[cfg(debug_assertions)]
pub fn may_panic(place: &str) {
    provoked::pass(place);
}

/// A place at which a test can ask for a panic. A release has none.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn may_panic(_place: &str) {}

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text of at most `most` bytes, and an ellipsis where that is not all of it. For texts that
/// quote what others wrote.
pub fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    Cow::Owned(format!("{}…", text.get(..end).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_where_a_character_ends() {
        for (text, cut) in [("", ""), ("abcd", "abcd"), ("abcde", "abcd…"), ("abcää", "abc…")]
        {
            assert_eq!(shortened(text, 4), cut);
        }
    }
}
