//! One event as one line: `time level message name=value …`.
//!
//! A value that contains a space, a quote or a control character is quoted and escaped as in Rust.
//! So an event stays on one line, whatever text Agora or a broker put into an error, and the line
//! can be parsed. Lines of other crates name their target.

use std::fmt;
use std::fmt::Debug;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::model::Clock;

/// Formats the line.
pub(super) struct LineFormat;

/// Formats the message and fields of an event, or the fields of a span.
pub(super) struct Fields;

struct FieldWriter<'w> {
    writer: Writer<'w>,
    empty: bool,
    result: fmt::Result,
}

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

// === impl Line ===

impl<S, N> FormatEvent<S, N> for LineFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        let (dim, paint, plain) =
            if writer.has_ansi_escapes() { (DIM, colour(level), PLAIN) } else { ("", "", "") };
        write!(writer, "{dim}{}{plain} {paint}{level:<5}{plain} ", Clock::system().now())?;
        context.format_fields(writer.by_ref(), event)?;
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            match span.extensions().get::<FormattedFields<N>>() {
                Some(fields) if !fields.is_empty() => write!(writer, " {fields}")?,
                _ => {}
            }
        }
        let target = event.metadata().target();
        if !target.starts_with(env!("CARGO_CRATE_NAME")) {
            write!(writer, " {dim}target={plain}{target}")?;
        }
        writeln!(writer)
    }
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        Level::DEBUG => "\x1b[34m",
        Level::TRACE => "\x1b[35m",
    }
}

// === impl Fields ===

impl<'w> FormatFields<'w> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = FieldWriter { writer, empty: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

// === impl FieldWriter ===

impl FieldWriter<'_> {
    fn write(&mut self, name: &str, value: &str) -> fmt::Result {
        if !self.empty {
            self.writer.write_char(' ')?;
        }
        self.empty = false;
        if name == "message" {
            return escape(&mut self.writer, value);
        }
        if self.writer.has_ansi_escapes() {
            write!(self.writer, "{DIM}{name}={PLAIN}")?;
        } else {
            write!(self.writer, "{name}=")?;
        }
        let is_ambiguous = |c: char| c.is_whitespace() || c.is_control() || c == '"';
        if value.is_empty() || value.contains(is_ambiguous) {
            write!(self.writer, "{value:?}")
        } else {
            self.writer.write_str(value)
        }
    }
}

impl Visit for FieldWriter<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.result = self.result.and_then(|()| self.write(field.name(), value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// Writes a message. It is not quoted, but it may contain foreign text, so control characters are
/// escaped.
fn escape(writer: &mut Writer<'_>, text: &str) -> fmt::Result {
    text.chars().try_for_each(|c| {
        if c.is_control() { write!(writer, "{}", c.escape_default()) } else { writer.write_char(c) }
    })
}
