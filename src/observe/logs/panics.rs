//! Panics: a defect of ours, or of a library.
//!
//! Nothing watches tasks and threads. A daemon in which one of them has panicked would answer probes
//! and feed the watchdog, and do only a part of its work. So [`abort_at_panic`] ends the process: the
//! next start goes on with what is durable, and publishes a gap for each answer that was in flight.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::Write as _;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{io, panic, process, thread};

use rustix::process::{Resource, Rlimit};
use tracing::{Level, error};

use super::{Format, LAST_LINES, STYLE, Style, WRITER, flush, rendered, say};

/// Ends the process at the first panic of any thread or task, from now on, with one line in the log.
///
/// The line is in the format of the log, whatever its filter. Its reader has a second: the process
/// ends after that even if stderr is blocked. No core file is written: it would hold events and
/// secrets.
pub fn abort_at_panic() {
    static IS_ENDING: AtomicBool = AtomicBool::new(false);

    // Lowering a limit is always allowed.
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).ok();

    panic::set_hook(Box::new(|panic| {
        if IS_ENDING.swap(true, Ordering::SeqCst) {
            // Another thread has said why.
            loop {
                thread::park();
            }
        }
        // Whatever the panic has left behind, a lock that is held for instance.
        let end_in_time = || {
            thread::sleep(LAST_LINES);
            process::abort()
        };
        drop(thread::Builder::new().name("abort".to_owned()).spawn(end_in_time));
        let line = line(panic);
        if thread::current().name() == Some(WRITER) {
            // Nobody else would write it.
            io::stderr().write_all(line.as_bytes()).unwrap_or_default();
        } else {
            say(Level::ERROR, &line);
            flush();
        }
        process::abort()
    }));
}

/// Logs a panic: the standard hook would wait for the reader of stderr.
pub(super) fn log(panic: &PanicHookInfo<'_>) {
    log_with(panic, &Backtrace::capture());
}

fn log_with(panic: &PanicHookInfo<'_>, backtrace: &Backtrace) {
    let current = thread::current();
    let thread = current.name().unwrap_or("unnamed");
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let message = text.unwrap_or("no message");
    if backtrace.status() == BacktraceStatus::Captured {
        error!(thread, location, %backtrace, "panicked: {message}");
    } else {
        error!(thread, location, "panicked: {message}; this is a defect, please report it");
    }
}

fn line(panic: &PanicHookInfo<'_>) -> String {
    let style = STYLE.get().copied();
    let style = style.unwrap_or(Style { format: Format::Text, colour: false });
    // The names in a backtrace would take longer than there is time: seconds in a large binary.
    let work = || log_with(panic, &Backtrace::disabled());
    let line = rendered(style, "error", work).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).into_owned();
    // Where it was the log that panicked, it takes nothing in.
    match line.is_empty() {
        true => format!("agora-rtm-bridge: {}\n", panic.to_string().replace('\n', " ")),
        false => line,
    }
}
