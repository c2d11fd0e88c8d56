//! Display of errors: all causes in one line.

#[cfg(debug_assertions)]
mod provoked;

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
