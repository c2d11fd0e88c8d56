//! `pages`: Agora's answers as received, in the pages topic.
//!
//! To investigate an event, take its `agora_page` header: one command then shows the answer and
//! Agora's request id. It can run alongside the bridge and doesn't affect it.

mod replay;
pub(super) mod selection;
mod shown;

use std::io;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use tokio::task::spawn_blocking;

use self::selection::{FoundEntry, Selection, When};
use super::{Failure, settings};
use crate::kafka::{Cluster, Reader};
use crate::memory;
use crate::model::{AppId, Content, PageId};

/// List, show or replay Agora's answers from the pages topic
#[derive(Debug, Args)]
#[command(after_long_help = TEACH)]
pub(super) struct Pages {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    List(List),
    Show(Show),
    Replay(replay::Replay),
}

/// Print one line per page or gap
#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    selection: Selection,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    bridge: Bridge,
}

/// Print an answer as received; its metadata goes to stderr
#[derive(Debug, Args)]
struct Show {
    /// The `agora_page` header of an event, a dead letter or a gap
    #[arg(value_name = "PAGE", value_parser = selection::page_id)]
    page: PageId,
    /// The App ID of that record: pages of different apps may have the same name
    #[arg(long, value_name = "APP_ID")]
    app: Option<String>,
    #[command(flatten)]
    when: When,
    /// Print the decoded elements, one per line, instead of the bytes
    #[arg(long)]
    events: bool,
    /// Print JSON: all metadata of the page with its body, or one object per element
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    bridge: Bridge,
}

/// Selects the bridge whose topics are read.
#[derive(Debug, Args)]
struct Bridge {
    /// The bridge's configuration file; environment variables also apply
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

const TEACH: &str = "\
EXAMPLES

  List the answers received in the last ten minutes:
    agora-rtm-bridge pages list --config bridge.toml --since 10m
  Show the answer that contained an event, byte for byte; then its decoded events:
    agora-rtm-bridge pages show 5f0c…/1842 --app 876922…
    agora-rtm-bridge pages show 5f0c…/1842 --app 876922… --events
  Publish the events of a period again, after confirmation:
    agora-rtm-bridge pages replay --app 876922… --from 2026-03-01T08:00:00Z \\
        --to 2026-03-01T08:05:00Z

  An event's header agora_page names its page. Without --app every partition is
  searched, from the beginning unless you set --since or --from.

  `replay` bypasses the removal of repeats. Replayed events have the same key, value
  and ce_id, plus a header `replayed` with the time. It can run alongside the bridge
  and doesn't change its deduplication state.

EXIT CODES

  0 success; 1 failure, or no such page; 2 usage error; 78 invalid configuration.";

pub(super) async fn run(args: Pages) -> Result<(), Failure> {
    match args.action {
        Action::List(list) => {
            let cluster = list.bridge.cluster()?;
            aside(move || list.run(&cluster)).await
        }
        Action::Show(show) => {
            let cluster = show.bridge.cluster()?;
            aside(move || show.run(&cluster)).await
        }
        Action::Replay(replay) => replay.run().await,
    }
}

// === impl Bridge ===

impl Bridge {
    fn cluster(&self) -> Result<Cluster, Failure> {
        Ok(self.cluster_and_hold()?.0)
    }

    /// Kafka, and the minimum time that a deduplication window remembers an event.
    fn cluster_and_hold(&self) -> Result<(Cluster, Duration), Failure> {
        let settings = settings::load(self.config.as_deref())?;
        let hold = memory::hold(settings.agora.longest_request());
        Ok((Cluster::new(settings.kafka, &settings.instance), hold))
    }
}

// === impl List ===

impl List {
    fn run(self, cluster: &Cluster) -> Result<(), Failure> {
        let reader = cluster.reader().map_err(|error| Failure::of(&error))?;
        let mut output = Output::new();
        if !self.json && output.is_watched() {
            output.line(shown::HEAD);
        }
        self.selection.read(&reader, |found| {
            output.line(&if self.json { shown::json(found) } else { shown::line(found) });
            output.goes_on()
        })?;
        output.end()
    }
}

// === impl Show ===

impl Show {
    fn run(self, cluster: &Cluster) -> Result<(), Failure> {
        let reader = cluster.reader().map_err(|error| Failure::of(&error))?;
        let found = self.find(&reader)?;
        let mut output = Output::new();
        match (&found.entry.content, self.events) {
            (Content::Page(page), true) => {
                let elements = shown::elements(&reader, found.entry.id, page, self.json);
                elements.iter().for_each(|element| output.line(element));
            }
            _ if self.json => output.line(&shown::envelope(&found)),
            (Content::Page(page), false) => {
                // Failing to print this must not suppress the body, which is the result.
                write!(io::stderr(), "{}", shown::facts(&found)).ok();
                output.bytes(&page.body);
            }
            (Content::Gap(_), _) => {
                write!(io::stderr(), "{}", shown::facts(&found)).ok();
            }
        }
        output.end()
    }

    /// Finds the page with this name. A page that was forwarded twice counts as one.
    fn find(&self, reader: &Reader) -> Result<FoundEntry, Failure> {
        let apps = self.app.iter().cloned().collect();
        let selection = Selection::of_page(self.page, apps, self.when.clone());
        let mut found: Vec<FoundEntry> = Vec::new();
        selection.read(reader, |candidate| {
            let app = &candidate.entry.content.feed().app;
            if found.iter().all(|known| known.entry.content.feed().app != *app) {
                found.push(candidate.clone());
            }
            match self.app {
                Some(_) => ControlFlow::Break(()),
                None => ControlFlow::Continue(()),
            }
        })?;
        let apps: Vec<&AppId> = found.iter().map(|page| &page.entry.content.feed().app).collect();
        let message = match apps.as_slice() {
            [_] => return Ok(found.remove(0)),
            [] => format!(
                "there is no page {} in `{}`{}: the topic may have expired it, or it is not \
                 forwarded yet and still in the journal",
                self.page,
                reader.name(crate::kafka::Topic::Pages),
                self.app.as_deref().map(|app| format!(" of the app {app}")).unwrap_or_default(),
            ),
            several => {
                let names: Vec<&str> = several.iter().map(|app| app.as_str()).collect();
                let names = names.join(", ");
                format!("pages of {names} have the name {}: select one with --app", self.page)
            }
        };
        Err(Failure { message, code: 1 })
    }
}

/// Standard output, until the reader closes it.
pub(super) struct Output {
    stdout: io::BufWriter<io::Stdout>,
    failed: Option<io::Error>,
}

// === impl Output ===

impl Output {
    pub(super) fn new() -> Self {
        Self { stdout: io::BufWriter::new(io::stdout()), failed: None }
    }

    pub(super) fn is_watched(&self) -> bool {
        io::IsTerminal::is_terminal(self.stdout.get_ref())
    }

    pub(super) fn line(&mut self, text: &str) {
        self.bytes(text.as_bytes());
        self.bytes(b"\n");
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.failed = self.stdout.write_all(bytes).err();
        }
    }

    /// Break once the reader has closed the pipe.
    pub(super) fn goes_on(&self) -> ControlFlow<()> {
        if self.failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// A closed pipe is not an error: the reader has all it wanted.
    pub(super) fn end(mut self) -> Result<(), Failure> {
        let failed = self.failed.or_else(|| self.stdout.flush().err());
        match failed {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::of(&error)),
            _ => Ok(()),
        }
    }
}

/// Runs blocking work on a thread where it may block.
pub(super) async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work).await.expect("blocking work does not panic")
}
