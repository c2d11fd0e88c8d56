//! Logs to stderr, one line per event, as text for people or as JSON for a collector.
//!
//! librdkafka's own lines have the target `librdkafka`, those of its Rust wrapper `rdkafka`. At
//! `info`, they report for single sockets what the bridge reports itself, so their default level is
//! `warn`; a directive that names them (`info,librdkafka=debug`) overrides it.
//!
//! Only one thread in this process waits for the reader of stderr, and its queue is bounded
//! (`logs/queue.rs`). Output to stderr that is not part of the log takes the same path, through
//! [`say`].

mod line;
mod panics;
mod queue;

use std::io::{IsTerminal, Write as _};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use std::{env, io, mem, panic, thread};

use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, Level, error, warn};
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry};

pub use self::panics::abort_at_panic;

use self::queue::{Dropped, Queue, QueueLimits};
use crate::model::Clock;
use crate::observe::health::{Health, Trouble};
use crate::observe::metrics::Metrics;

/// The format of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `time level message name=value …`
    Text,
    /// One JSON object: `timestamp`, `level`, `message`, the fields, `target`.
    Json,
}

/// Why logging can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// tracing can't parse the filter.
    #[error("read the log filter `{filter}`")]
    Filter {
        /// The filter as given.
        filter: String,
        /// The error of the parser.
        #[source]
        cause: ParseError,
    },

    /// This process logs already.
    #[error("set up the log a second time")]
    Taken,

    /// The thread that writes the log can't be started.
    #[error("start the thread that writes the log")]
    Thread(#[source] io::Error),
}

/// UTC, RFC 3339, milliseconds.
struct WallClock;

/// The appearance of lines in this process.
#[derive(Clone, Copy, Debug)]
struct Style {
    format: Format,
    colour: bool,
}

/// Collects log output in memory.
#[derive(Clone, Debug, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

/// An incident writes 64 KiB a minute at `info`, so this is enough for a quarter of an hour; the
/// extra room for errors holds some 15,000 lines.
const LIMITS: QueueLimits = QueueLimits {
    room: 1 << 20,
    room_for_errors: 4 << 20,
    retry: Duration::from_secs(1),
    retry_full: Duration::from_millis(20),
};

/// Maximum time that an ending process waits for the reader of its last lines: a supervisor expects
/// it to end.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Name of the thread that writes to stderr.
const WRITER: &str = "log";

/// Lines waiting for stderr.
static STDERR: LazyLock<Queue> = LazyLock::new(|| Queue::new(LIMITS));

/// Set by [`init`].
static STYLE: OnceLock<Style> = OnceLock::new();

/// From now on, logs every event of this process that passes `filter` to stderr, and panics too.
///
/// Text is coloured if stderr is a terminal and `NO_COLOR` is unset or empty.
///
/// # Errors
///
/// The filter can't be parsed, the process logs already, or no thread can be started.
pub fn init(format: Format, filter: &str) -> Result<(), InitError> {
    let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colour = io::stderr().is_terminal() && !no_color;
    let style = Style { format, colour };
    let dispatch = dispatch(style, filter, stderr().map_err(InitError::Thread)?.clone())?;
    tracing::dispatcher::set_global_default(dispatch).map_err(|_| InitError::Taken)?;
    STYLE.set(style).map_err(|_| InitError::Taken)?;
    panic::set_hook(Box::new(panics::log));
    Ok(())
}

/// Writes `text` (whole lines) to stderr unchanged, in order with the lines of the log. At ERROR,
/// it may use the room reserved for errors.
pub fn say(level: Level, text: &str) {
    match stderr() {
        Ok(queue) => queue.push(level, text.as_bytes()),
        // If writing fails, there is no other place to report it.
        Err(_) => io::stderr().write_all(text.as_bytes()).unwrap_or_default(),
    }
}

/// Waits until all lines are written to stderr, for at most one second: its reader may be stalled
/// or gone.
///
/// Blocks the thread. For the end of a process, and for a command that continues on stdout.
pub fn flush() {
    STDERR.flush(LAST_LINES);
}

/// Registers the number of dropped lines as a metric.
pub fn register(metrics: &mut Metrics) {
    let help = "Lines of the log that were dropped because stderr was blocked";
    metrics.registry().register("log_lines_dropped", help, STDERR.dropped().clone());
}

/// Adds the condition `logs`, which fails while lines are dropped.
///
/// It is evaluated on demand, because a report would be logged, to a log that is full.
pub fn watch(health: &Health) {
    health.watch("logs", || STDERR.missing().map(|missing| trouble(&missing)));
}

/// The queue for stderr; starts its writing thread if necessary.
fn stderr() -> io::Result<&'static Queue> {
    static IS_STARTED: Mutex<bool> = Mutex::new(false);

    let mut is_started = IS_STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*is_started {
        let write = || STDERR.write_to(io::stderr(), |dropped| report(STYLE.get(), dropped));
        thread::Builder::new().name(WRITER.to_owned()).spawn(write)?;
        *is_started = true;
    }
    Ok(&STDERR)
}

/// The reason in `/ready` while lines are dropped.
fn trouble(missing: &Dropped) -> Trouble {
    let Dropped { lines, errors, since } = *missing;
    let reason = format!(
        "stderr is blocked: {lines} log lines dropped, {errors} of them errors; check what reads \
         the log"
    );
    Trouble { reason, since }
}

/// The line that replaces dropped lines.
fn report(style: Option<&Style>, dropped: Dropped) -> Vec<u8> {
    let Dropped { lines, errors, since } = dropped;
    let style = style.copied().unwrap_or(Style { format: Format::Text, colour: false });
    let lasted = humantime::format_duration(Clock::system().now().since(since));
    let work = || match errors {
        0 => {
            warn!(lines, %lasted, "log lines dropped: stderr was blocked; check what reads the log")
        }
        _ => error!(
            lines,
            errors,
            %lasted,
            "log lines dropped, including errors: stderr was blocked; check what reads the log, \
             and the gaps topic for events that may be lost"
        ),
    };
    rendered(style, "warn", work).unwrap_or_default()
}

fn dispatch<W>(style: Style, filter: &str, writer: W) -> Result<Dispatch, InitError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let read = EnvFilter::builder()
        .parse(with_kafka_quieted(filter))
        .map_err(|cause| InitError::Filter { filter: filter.to_owned(), cause })?;
    let Style { format, colour } = style;
    // If log_internal_errors is true, a failed write is reported with `eprintln!`, which panics
    // when stderr is gone.
    let layer = fmt::layer().with_writer(writer).with_ansi(colour).log_internal_errors(false);
    let layer = match format {
        Format::Text => layer.event_format(line::LineFormat).fmt_fields(line::Fields).boxed(),
        Format::Json => {
            layer.json().with_timer(WallClock).flatten_event(true).with_span_list(false).boxed()
        }
    };
    Ok(Dispatch::new(registry().with(read).with(layer)))
}

/// Puts `warn` for Kafka's libraries in front of the filter, where later directives override it.
///
/// A filter whose general level is `error` or `off` stays unchanged: its user doesn't want
/// librdkafka's warnings either.
fn with_kafka_quieted(filter: &str) -> String {
    let directives = filter.split(',').filter(|directive| !directive.is_empty());
    let general =
        directives.filter_map(|directive| directive.parse::<LevelFilter>().ok()).next_back();
    if general > Some(LevelFilter::WARN) {
        format!("librdkafka=warn,rdkafka=warn,{filter}")
    } else {
        filter.to_owned()
    }
}

// === impl WallClock ===

impl FormatTime for WallClock {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        write!(writer, "{}", Clock::system().now())
    }
}

// === impl Sink ===

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns what `work` logs on this thread.
fn rendered(style: Style, filter: &str, work: impl FnOnce()) -> Result<Vec<u8>, InitError> {
    let sink = Sink::default();
    let writer = sink.clone();
    let dispatch = dispatch(style, filter, move || writer.clone())?;
    tracing::dispatcher::with_default(&dispatch, work);
    let mut bytes = sink.0.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(mem::take(&mut *bytes))
}

/// Returns what `work` logs on this thread, without colour.
#[cfg(test)]
pub(crate) fn captured(format: Format, filter: &str, work: impl FnOnce()) -> String {
    capture(Style { format, colour: false }, filter, work)
}

#[cfg(test)]
fn capture(style: Style, filter: &str, work: impl FnOnce()) -> String {
    use tracing::subscriber::NoSubscriber;

    // While there is only one subscriber, tracing asks the thread that reaches a log statement
    // first whether it is enabled, and caches the answer. So the thread of another test could
    // silence the statement for this one. With two subscribers, it asks all of them.
    static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::default()));

    LazyLock::force(&SECOND);
    String::from_utf8(rendered(style, filter, work).unwrap()).unwrap()
}

#[cfg(test)]
mod tests;
