//! Logs: to stderr, one line an event, as text for a person or as JSON for a collector.
//!
//! librdkafka's own lines arrive under the target `librdkafka` and those of its Rust wrapper under
//! `rdkafka`. At `info` they tell about single sockets what the bridge tells about itself, so that
//! they start at `warn`; a directive that names them (`info,librdkafka=debug`) is obeyed.

mod line;

use std::env;
use std::io;
use std::io::IsTerminal;

use tracing::Dispatch;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry;

use crate::model::Clock;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `time level message name=value …`
    Text,
    /// One JSON object: `timestamp`, `level`, `message`, the fields, `target`.
    Json,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The filter is not one that tracing understands.
    #[error("read the log filter `{filter}`")]
    Filter {
        /// The filter as given.
        filter: String,
        /// What is wrong with it.
        #[source]
        cause: ParseError,
    },

    /// Something in this process logs already.
    #[error("set up the log a second time")]
    Taken,
}

/// UTC, RFC 3339, milliseconds.
struct WallClock;

/// Sends every event of this process that passes `filter` to stderr, from now on.
///
/// Text is coloured where stderr is a terminal and `NO_COLOR` is unset or empty.
///
/// # Errors
///
/// The filter can't be read, or the process has a log already.
pub fn init(format: Format, filter: &str) -> Result<(), InitError> {
    let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colour = io::stderr().is_terminal() && !no_color;
    let dispatch = dispatch(format, filter, colour, io::stderr)?;
    tracing::dispatcher::set_global_default(dispatch).map_err(|_| InitError::Taken)
}

fn dispatch<W>(format: Format, filter: &str, colour: bool, writer: W) -> Result<Dispatch, InitError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let read = EnvFilter::builder()
        .parse(with_kafka_quieted(filter))
        .map_err(|cause| InitError::Filter { filter: filter.to_owned(), cause })?;
    // Told to report a failed write, the layer uses `eprintln!`, which panics when stderr is gone.
    let layer = fmt::layer().with_writer(writer).with_ansi(colour).log_internal_errors(false);
    let layer = match format {
        Format::Text => layer.event_format(line::Line).fmt_fields(line::Fields).boxed(),
        Format::Json => {
            layer.json().with_timer(WallClock).flatten_event(true).with_span_list(false).boxed()
        }
    };
    Ok(Dispatch::new(registry().with(read).with(layer)))
}

/// Puts `warn` for Kafka's libraries in front of the filter, where a later directive overrides it.
///
/// A filter that lets no warnings pass in general stays as it is: who asks for `error` or `off`
/// asks for less, not for librdkafka's warnings.
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

/// What `work` logs on this thread, without colour.
#[cfg(test)]
pub(crate) fn captured(format: Format, filter: &str, work: impl FnOnce()) -> String {
    capture(format, filter, false, work)
}

#[cfg(test)]
fn capture(format: Format, filter: &str, colour: bool, work: impl FnOnce()) -> String {
    use std::sync::Arc;
    use std::sync::LazyLock;
    use std::sync::Mutex;

    use tracing::subscriber::NoSubscriber;

    // While there is one subscriber only, tracing asks the thread that reaches a log line first
    // whether anybody listens, and remembers the answer: the thread of another test would silence
    // the line for this one. With two it asks all subscribers.
    static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::default()));

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    LazyLock::force(&SECOND);
    let sink = Sink::default();
    let writer = sink.clone();
    let dispatch = dispatch(format, filter, colour, move || writer.clone()).unwrap();
    tracing::dispatcher::with_default(&dispatch, work);
    let bytes = sink.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

#[cfg(test)]
mod tests {
    use tracing::debug;
    use tracing::info;
    use tracing::info_span;
    use tracing::warn;

    use super::*;

    /// A line without its time, which is checked for its form.
    fn untimed(line: &str) -> &str {
        let (time, rest) = line.split_once(' ').unwrap();
        assert_eq!(time.len(), "2020-01-03T04:56:58.981Z".len(), "{line}");
        assert!(time.ends_with('Z'), "{line}");
        rest
    }

    #[test]
    fn text_is_time_level_message_fields() {
        let log = captured(Format::Text, "info", || {
            warn!(endpoint = "user_events", error = %"connect: refused", tries = 3, "poll refused");
        });
        assert_eq!(
            untimed(&log),
            "WARN  poll refused endpoint=user_events error=\"connect: refused\" tries=3\n"
        );
    }

    #[test]
    fn fields_of_spans_follow_the_fields_of_the_event() {
        let log = captured(Format::Text, "info", || {
            let span = info_span!("poll", app = "a");
            span.in_scope(|| {
                let inner = info_span!("host", host = %"h");
                inner.in_scope(|| info!(tries = 1, "asked"));
            });
        });
        assert_eq!(untimed(&log), "INFO  asked tries=1 app=a host=h\n");
    }

    #[test]
    fn nothing_that_is_logged_can_begin_a_second_line() {
        for format in [Format::Text, Format::Json] {
            let log = captured(format, "info", || {
                info!(body = %"<html>\r\n</html>", name = "a\u{1b}[31m", "seen\n{}", "x\ny");
            });
            assert_eq!(log.lines().count(), 1, "{log}");
            assert!(!log.trim_end().contains(|c: char| c.is_ascii_control()), "{log:?}");
        }
    }

    #[test]
    fn colour_is_only_where_it_is_asked_for() {
        let log = |colour| capture(Format::Text, "info", colour, || info!(a = 1, "seen"));
        assert!(log(true).contains('\u{1b}'));
        assert!(!log(false).contains('\u{1b}'));
    }

    #[test]
    fn json_is_one_flat_object() {
        let log = captured(Format::Json, "info", || {
            let span = info_span!("poll", app = "a");
            span.in_scope(|| warn!(tries = 3, error = %"no\nroute", "poll refused"));
        });
        let object: serde_json::Value = serde_json::from_str(&log).unwrap();
        assert_eq!(object["level"], "WARN");
        assert_eq!(object["message"], "poll refused");
        assert_eq!(object["tries"], 3);
        assert_eq!(object["error"], "no\nroute");
        assert_eq!(object["span"]["app"], "a");
        assert!(object["timestamp"].as_str().unwrap().ends_with('Z'), "{log}");
    }

    #[test]
    fn librdkafka_is_heard_from_warn_on_unless_the_filter_says_otherwise() {
        let lines = |filter| {
            captured(Format::Text, filter, || {
                warn!(target: "librdkafka", "1");
                info!(target: "rdkafka::client", "2");
                debug!(target: "librdkafka", "3");
                info!("4");
            })
            .lines()
            .count()
        };
        for (filter, expected) in [
            ("info", 2),
            ("debug,", 2),
            ("info,librdkafka=debug", 3),
            ("error,librdkafka=info", 1),
            ("error", 0),
            ("off", 0),
        ] {
            assert_eq!(lines(filter), expected, "{filter}");
        }
    }

    #[test]
    fn a_line_of_another_crate_names_its_target() {
        let log = captured(Format::Text, "info", || warn!(target: "librdkafka", "FAIL"));
        assert_eq!(untimed(&log), "WARN  FAIL target=librdkafka\n");
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_an_error_that_names_it() {
        let error = dispatch(Format::Text, "info,a=loud", false, io::sink).unwrap_err();
        assert_eq!(error.to_string(), "read the log filter `info,a=loud`");
    }
}
