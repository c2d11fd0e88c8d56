//! Tells a person what takes a while: to stderr, beside the table.

use std::fmt::Display;
use std::thread;
use std::time::Duration;

/// Tells what takes a while now.
pub(crate) fn progress(what: impl Display) {
    eprintln!("── {what}");
}

/// Waits, and tells the rest of it now and then.
pub(crate) fn wait(what: &str, mut rest: Duration) {
    const EVERY: Duration = Duration::from_secs(10);
    while !rest.is_zero() {
        eprintln!("   {what}: {} s left", rest.as_secs_f64().round());
        let nap = rest.min(EVERY);
        thread::sleep(nap);
        rest -= nap;
    }
}
