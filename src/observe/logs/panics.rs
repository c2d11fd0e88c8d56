//! Panics: defects of the bridge or of a library.
//!
//! Nothing monitors single tasks and threads. If one of them panicked, the daemon would answer
//! probes and the watchdog but do only a part of its work. So [`abort_at_panic`] ends the process:
//! the next start continues with what is durable, and publishes a gap for each answer that was in
//! flight.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::Write as _;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{io, panic, process, thread};

use rustix::process::{Resource, Rlimit};
use tracing::{Level, error};

use super::{Format, LAST_LINES, STYLE, Style, WRITER, flush, rendered, say};

/// From now on, ends the process at the first panic of any thread or task, with one line in the
/// log.
///
/// The line has the format of the log and ignores its filter. The process waits at most one second
/// for its reader, so it ends even if stderr is blocked. It writes no core file, which would
/// contain events and secrets.
pub fn abort_at_panic() {
    static IS_ENDING: AtomicBool = AtomicBool::new(false);

    // Lowering a limit is always allowed.
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).ok();

    panic::set_hook(Box::new(|panic| {
        if IS_ENDING.swap(true, Ordering::SeqCst) {
            // Another thread is already reporting its panic.
            loop {
                thread::park();
            }
        }
        // Ends the process even if writing the line blocks, for example on a lock held by the
        // panicking code.
        let end_in_time = || {
            thread::sleep(LAST_LINES);
            process::abort()
        };
        drop(thread::Builder::new().name("abort".to_owned()).spawn(end_in_time));
        let line = line(panic);
        if thread::current().name() == Some(WRITER) {
            // This thread is the only one that would write it.
            io::stderr().write_all(line.as_bytes()).unwrap_or_default();
        } else {
            say(Level::ERROR, &line);
            flush();
        }
        process::abort()
    }));
}

/// Logs a panic. The standard hook would wait for the reader of stderr.
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
        error!(thread, location, "panicked: {message}; this is a bug, please report it");
    }
}

fn line(panic: &PanicHookInfo<'_>) -> String {
    let style = STYLE.get().copied();
    let style = style.unwrap_or(Style { format: Format::Text, colour: false });
    // Resolving the names of a backtrace takes seconds in a large binary, longer than the time
    // limit.
    let work = || log_with(panic, &Backtrace::disabled());
    let line = rendered(style, "error", work).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).into_owned();
    // Empty if the logging code itself panicked.
    match line.is_empty() {
        true => format!("agora-rtm-bridge: {}\n", panic.to_string().replace('\n', " ")),
        false => line,
    }
}
