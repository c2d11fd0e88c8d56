//! Progress of the demo, on stderr: a live display in a terminal, plain lines elsewhere.
//!
//! Colours are left to the terminal library, which obeys `NO_COLOR`.

use std::io;
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressStyle};
use tracing::Level;

use crate::model::BUFFER_LIMIT;
use crate::observe::logs;

/// Maximum number of bars; a terminal can't show more at once.
const MOST_BARS: usize = 16;

/// Fill level (in events) from which a bar is highlighted.
const HALF: u64 = BUFFER_LIMIT / 2;

/// Interval between plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(2);

/// The figures to show.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    /// Time since event generation started.
    pub(super) at: Duration,
    /// The current phase.
    pub(super) now: String,
    /// Events that happened.
    pub(super) made: u64,
    /// Events that Agora handed over, copies included.
    pub(super) drained: u64,
    /// Pages in the journal.
    pub(super) committed: u64,
    /// Pages and gaps in the pages topic.
    pub(super) forwarded: u64,
    /// Pages and gaps waiting in the journal.
    pub(super) in_journal: u64,
    /// Events whose transaction has committed.
    pub(super) delivered: u64,
    /// Events that the consumer read and verified.
    pub(super) verified: u64,
    /// Events that were recognised as repeats and dropped.
    pub(super) repeats: u64,
    /// Number of events in each feed's buffer.
    pub(super) buffers: Vec<u64>,
}

/// The kind of display.
#[derive(Debug)]
pub(super) enum Screen {
    /// A terminal.
    Live(Live),
    /// Everything else.
    Plain {
        /// When the last line was written.
        last: Option<Duration>,
    },
}

/// The lines of the live display, from top to bottom.
#[derive(Debug)]
pub(super) struct Live {
    all: MultiProgress,
    clock: ProgressBar,
    events: ProgressBar,
    pages: ProgressBar,
    heading: ProgressBar,
    buffers: Vec<Buffer>,
    /// Total duration; `None` where the user ends the demo.
    length: Option<Duration>,
}

#[derive(Debug)]
struct Buffer {
    bar: ProgressBar,
    peak: u64,
}

// === impl Screen ===

impl Screen {
    /// A screen for these feeds. Set `plain` if anything else writes to stderr.
    pub(super) fn new(feeds: &[String], length: Option<Duration>, plain: bool) -> Self {
        let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        if plain || is_dumb || !io::stderr().is_terminal() {
            Self::Plain { last: None }
        } else {
            Self::Live(Live::new(feeds, length))
        }
    }

    /// Updates the display.
    pub(super) fn show(&mut self, figures: &Figures) {
        match self {
            Self::Live(live) => live.show(figures),
            Self::Plain { last } => {
                let is_due = last.is_none_or(|last| figures.at >= last + PLAIN_EVERY);
                if is_due {
                    *last = Some(figures.at);
                    say(&line(figures));
                }
            }
        }
    }

    /// Prints a line that stays.
    pub(super) fn tell(&self, at: Duration, text: &str) {
        let text = format!("{:>5.1} s  {text}", at.as_secs_f64());
        match self {
            // Failing to print must not stop the demo.
            Self::Live(live) => live.all.println(text).unwrap_or_default(),
            Self::Plain { .. } => say(&text),
        }
    }

    /// Removes the live display and prints an empty line.
    pub(super) fn close(&self) {
        if let Self::Live(live) = self {
            live.all.clear().unwrap_or_default();
        }
        say("");
        // The output that follows goes to stdout.
        logs::flush();
    }
}

// === impl Live ===

impl Live {
    fn new(feeds: &[String], length: Option<Duration>) -> Self {
        let all = MultiProgress::new();
        let text = |template| {
            let bar = all.add(ProgressBar::new(0));
            bar.set_style(style(template));
            bar
        };
        let clock = text("{wide_msg:.bold}");
        let events = text("{wide_msg}");
        let pages = text("{wide_msg}");
        let heading = text("{wide_msg:.dim}");
        let left_out = match feeds.len().checked_sub(MOST_BARS) {
            Some(more @ 1..) => format!("; {more} more feeds are not shown"),
            _ => String::new(),
        };
        heading.set_message(format!(
            "Agora's buffers, of {} events each{left_out}",
            HumanCount(BUFFER_LIMIT)
        ));
        let shown = feeds.iter().take(MOST_BARS);
        let buffers = shown.map(|feed| {
            let bar = all.add(ProgressBar::new(BUFFER_LIMIT));
            bar.set_style(calm());
            bar.set_prefix(feed.clone());
            Buffer { bar, peak: 0 }
        });
        let buffers = buffers.collect();
        Self { all, clock, events, pages, heading, buffers, length }
    }

    fn show(&mut self, figures: &Figures) {
        let Figures { made, drained, delivered, verified, repeats, .. } = *figures;
        let Figures { committed, forwarded, in_journal, .. } = *figures;
        let of = self.length.map(|it| format!(" of {} s", it.as_secs())).unwrap_or_default();
        let at = figures.at.as_secs_f64();
        self.clock.set_message(format!("{at:>5.1} s{of}   {}", figures.now));
        self.events.set_message(format!(
            "  events   made {}   drained {}   delivered {}   verified {}   repeats removed {}",
            HumanCount(made),
            HumanCount(drained),
            HumanCount(delivered),
            HumanCount(verified),
            HumanCount(repeats)
        ));
        self.pages.set_message(format!(
            "  pages    committed {}   forwarded {}   waiting in the journal {}",
            HumanCount(committed),
            HumanCount(forwarded),
            HumanCount(in_journal)
        ));
        for (buffer, fill) in self.buffers.iter_mut().zip(&figures.buffers) {
            buffer.show(*fill);
        }
        self.heading.tick();
    }
}

// === impl Buffer ===

impl Buffer {
    fn show(&mut self, fill: u64) {
        let was_full = self.bar.position() >= HALF;
        if (fill >= HALF) != was_full {
            self.bar.set_style(if fill >= HALF { pressed() } else { calm() });
        }
        self.peak = self.peak.max(fill);
        self.bar.set_message(format!("most {}", HumanCount(self.peak)));
        self.bar.set_position(fill);
    }
}

fn calm() -> ProgressStyle {
    style("  {prefix:<28} {bar:40.green/dim} {human_pos:>5}   {wide_msg:.dim}")
}

fn pressed() -> ProgressStyle {
    style("  {prefix:<28} {bar:40.yellow/dim} {human_pos:>5}   {wide_msg:.dim}")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("our own templates are right")
        .progress_chars("━╸─")
}

/// The figures in one line.
fn line(figures: &Figures) -> String {
    let fullest = figures.buffers.iter().max().copied().unwrap_or_default();
    let now = match figures.now.as_str() {
        "" => String::new(),
        now => format!("; {now}"),
    };
    format!(
        "{:>5.1} s  events: made {}, drained {}, delivered {}, verified {}, repeats removed {}; \
         pages: committed {}, forwarded {}; fullest buffer {fullest} of {BUFFER_LIMIT}{now}",
        figures.at.as_secs_f64(),
        figures.made,
        figures.drained,
        figures.delivered,
        figures.verified,
        figures.repeats,
        figures.committed,
        figures.forwarded,
    )
}

fn say(text: &str) {
    // Failing to print must not stop the demo.
    logs::say(Level::INFO, &format!("{text}\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_line_has_every_figure() {
        let figures = Figures {
            at: Duration::from_millis(4_200),
            now: "burst".to_owned(),
            made: 1,
            drained: 2,
            committed: 3,
            forwarded: 4,
            in_journal: 5,
            delivered: 6,
            verified: 7,
            repeats: 8,
            buffers: vec![9, 1_500],
        };
        assert_eq!(
            line(&figures),
            "  4.2 s  events: made 1, drained 2, delivered 6, verified 7, repeats removed 8; \
             pages: committed 3, forwarded 4; fullest buffer 1500 of 2000; burst"
        );
    }
}
