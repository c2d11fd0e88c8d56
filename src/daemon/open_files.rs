//! The open-file limit of this process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

use crate::config::Settings;

/// File descriptors that a feed may need: a connection, and a second one while the first is silent.
const FILES_A_FEED: usize = 2;

/// File descriptors for everything else: journal, Kafka, status pages.
const OTHER_FILES: usize = 256;

/// Raises the open-file limit to what the configured feeds may need. Many systems start a process with
/// 1,024 and allow it to raise that.
pub(super) fn raise_limit(settings: &Settings) {
    let feeds: usize =
        settings.apps.iter().map(|app| app.regions.len() * app.endpoints.len()).sum();
    let needed = u64::try_from(feeds * FILES_A_FEED + OTHER_FILES).unwrap_or(u64::MAX);
    let before = getrlimit(Resource::Nofile);
    let Some(wanted) = raised(&before, needed) else { return };
    let limit = Rlimit { current: Some(wanted), ..before };
    let allowed = match setrlimit(Resource::Nofile, limit) {
        Ok(()) => wanted,
        Err(_) => before.current.unwrap_or(wanted),
    };
    if allowed < needed {
        warn!(
            allowed,
            needed,
            "the open-file limit is lower than the feeds may need at once, so requests may fail; \
             raise it (ulimit -n, LimitNOFILE=)"
        );
    }
}

/// The limit to ask for; `None` where the present one is enough.
fn raised(limit: &Rlimit, needed: u64) -> Option<u64> {
    let is_enough = limit.current.is_none_or(|current| current >= needed);
    (!is_enough).then(|| limit.maximum.map_or(needed, |maximum| maximum.min(needed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_open_files_is_raised_to_what_is_needed_and_never_lowered() {
        let check = |current, maximum, expected| {
            assert_eq!(raised(&Rlimit { current, maximum }, 2_000), expected);
        };
        check(Some(1_024), Some(4_096), Some(2_000));
        check(Some(1_024), None, Some(2_000));
        check(Some(1_024), Some(1_500), Some(1_500));
        check(Some(20_000), Some(20_000), None);
        check(None, None, None);
    }
}
