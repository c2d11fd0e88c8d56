//! The basis of the end-to-end tests. It knows nothing about the bridge's internals: it starts
//! processes, reads what they published, and compares that with what a simulated Agora handed out.

pub(crate) mod agora;
pub(crate) mod broker;
pub(crate) mod child;
pub(crate) mod consume;
pub(crate) mod judge;
pub(crate) mod names;
pub(crate) mod pages;
pub(crate) mod process;
pub(crate) mod proxy;
pub(crate) mod secured;
pub(crate) mod stallable;

use std::thread;
use std::time::Duration;

use tokio::time::Instant;

/// Calls `probe` until it returns something, and returns that.
///
/// Returns `Err` after `limit`; the caller reports it, since it knows which log shows the cause.
pub(crate) fn within<T>(
    limit: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> Result<T, OutOfTime> {
    const PAUSE: Duration = Duration::from_millis(20);
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = probe() {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(OutOfTime(limit));
        }
        thread::sleep(PAUSE);
    }
}

/// `probe` found nothing within this time.
#[derive(Debug, thiserror::Error)]
#[error("not within {0:?}")]
pub(crate) struct OutOfTime(Duration);

/// The last lines of a log, enough to see why a process ended.
pub(crate) fn tail(log: &str) -> String {
    const LINES: usize = 60;
    let before = log.lines().count().saturating_sub(LINES);
    log.lines().skip(before).collect::<Vec<_>>().join("\n")
}
