//! Progress messages of long steps: on stderr, so that stdout has only the table.

use std::fmt::Display;
use std::thread;
use std::time::Duration;

/// Announces a long step.
pub(crate) fn progress(what: impl Display) {
    eprintln!("── {what}");
}

/// Waits, and prints the remaining time now and then.
pub(crate) fn wait(what: &str, mut rest: Duration) {
    const EVERY: Duration = Duration::from_secs(10);
    while !rest.is_zero() {
        eprintln!("   {what}: {} s left", rest.as_secs_f64().round());
        let nap = rest.min(EVERY);
        thread::sleep(nap);
        rest -= nap;
    }
}
