//! Panics that a test asks for, in order to see what becomes of a process with a defect.
//!
//! `AGORA_RTM_BRIDGE_PANIC=forwarder:50` is the fiftieth pass of the place `forwarder`. A build
//! without debug assertions, as each release is, has neither the places nor the variable.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

struct Wanted {
    place: String,
    passes_left: AtomicU64,
}

static WANTED: LazyLock<Option<Wanted>> = LazyLock::new(|| {
    let text = std::env::var("AGORA_RTM_BRIDGE_PANIC").ok()?;
    let (place, passes) = text.split_once(':')?;
    Some(Wanted { place: place.to_owned(), passes_left: AtomicU64::new(passes.parse().ok()?) })
});

pub(super) fn pass(place: &str) {
    let Some(wanted) = WANTED.as_ref().filter(|it| it.place == place) else { return };
    assert_ne!(wanted.passes_left.fetch_sub(1, Ordering::Relaxed), 1, "a test wants this panic");
}
