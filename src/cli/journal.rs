//! `journal`: shows what waits in the journal of a data directory, and verifies it.
//!
//! It only reads, so it can run while the bridge runs, without affecting it, or after the bridge
//! has stopped.

mod shown;

use std::io;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use indicatif::HumanBytes;

use super::pages::selection::Selection;
use super::pages::{Output, aside, selection};
use super::progress::Progress;
use super::{Failure, settings};
use crate::error::Chain;
use crate::journal;
use crate::journal::{EntryState, EntryView, JournalReader, ReadError};
use crate::model::{Clock, Content, PageId};

/// List, show or verify the pages on this machine's disk
#[derive(Debug, Args)]
#[command(after_long_help = TEACH)]
pub(super) struct JournalCli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    List(List),
    Show(Show),
    Verify(Verify),
}

/// Print one line per page, gap and request in flight; a summary goes to stderr
#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    selection: Selection,
    /// Print how fast each feed fills, instead
    #[arg(long)]
    paces: bool,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: JournalArgs,
}

/// Print an answer as received; its metadata goes to stderr
#[derive(Debug, Args)]
struct Show {
    /// The page's name: from the `agora_page` header of an event, or from `journal list`
    #[arg(value_name = "PAGE", value_parser = selection::page_id)]
    page: PageId,
    /// Print JSON: all metadata of the page, and its body
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: JournalArgs,
}

/// Verify structure, checksums and requests; exit code 0 or 1
///
/// Damaged pages that the bridge has already set aside are reported but are not a failure.
#[derive(Debug, Args)]
struct Verify {
    /// Print the verdict as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: JournalArgs,
}

/// Selects the journal.
#[derive(Debug, Args)]
struct JournalArgs {
    /// The data directory
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    data_dir: Option<PathBuf>,
    /// The bridge's configuration file, which names the data directory; environment variables also
    /// apply
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

const TEACH: &str = "\
EXAMPLES

  List what waits for Kafka, or only what came in the last ten minutes:
    agora-rtm-bridge journal list --data-dir /var/lib/agora-rtm-bridge
    agora-rtm-bridge journal list --config bridge.toml --since 10m
  Show the answer that contained an event, if it is not forwarded yet:
    agora-rtm-bridge journal show 5f0c…/1842 --config bridge.toml
  Verify the journal after a crash of the machine:
    agora-rtm-bridge journal verify --data-dir /var/lib/agora-rtm-bridge

  While Kafka is up, a page stays here only for milliseconds; after that, use
  `pages show`. States: waiting (for Kafka), held (for earlier pages of its feed),
  damaged, aside (damaged, kept, not processed), out (a request in flight).

EXIT CODES

  0 success, or sound; 1 failure, or damaged; 2 usage error; 78 invalid configuration.";

pub(super) async fn run(args: JournalCli) -> Result<(), Failure> {
    aside(move || match args.action {
        Action::List(list) => list.run(),
        Action::Show(show) => show.run(),
        Action::Verify(verify) => verify.run(),
    })
    .await
}

// === impl Place ===

impl JournalArgs {
    fn data_dir(&self) -> Result<PathBuf, Failure> {
        match &self.data_dir {
            Some(data_dir) => Ok(data_dir.clone()),
            None => Ok(settings::load(self.config.as_deref())?.data_dir),
        }
    }

    fn open(&self) -> Result<JournalReader, Failure> {
        JournalReader::open(&self.data_dir()?).map_err(unreadable)
    }
}

// === impl List ===

impl List {
    fn run(self) -> Result<(), Failure> {
        let data_dir = self.place.data_dir()?;
        let reader = JournalReader::open(&data_dir).map_err(unreadable)?;
        let mut output = Output::new();
        if self.paces {
            for (feed, pace, at) in reader.paces().map_err(unreadable)? {
                output.line(&shown::pace(&feed, pace, at, self.json));
            }
            return output.end();
        }
        if !self.json && output.is_watched() {
            output.line(shown::HEAD);
        }
        let selection = self.selection.fixed(Clock::system());
        let mut counts = [0_u64; 4];
        reader
            .each(|seen| {
                let known = seen.entry.as_ref();
                let is_meant = match known {
                    Some(entry) => selection.includes(entry.id, entry.content.feed(), came(&seen)),
                    None => selection.is_everything() || selection.names(&seen.name),
                };
                if !is_meant {
                    return ControlFlow::Continue(());
                }
                if let Some(count) = counts.get_mut(seen.state as usize) {
                    *count += 1;
                }
                output.line(&shown::entry(&seen, self.json));
                output.goes_on()
            })
            .map_err(unreadable)?;
        let mut out = 0;
        for request in reader.out().map_err(unreadable)? {
            if selection.includes(request.id, &request.feed, request.asked_at) {
                out += 1;
                output.line(&shown::out(&request, self.json));
            }
        }
        output.end()?;
        let [waiting, held, damaged, aside] = counts;
        let (version, bytes) = reader.version_and_bytes();
        let holder = journal::holder(&data_dir);
        let holder = holder.map_or_else(|| "no process".to_owned(), |holder| holder.to_string());
        let mut text = format!(
            "{}: version {version}, {}, in use by {holder}\n\
             {waiting} waiting, {held} held, {damaged} damaged, {aside} set aside, {out} requests \
             in flight\n",
            data_dir.display(),
            HumanBytes(bytes),
        );
        for file in reader.kept() {
            text.push_str(&format!("replaced and kept: {}\n", file.display()));
        }
        // Failing to print the summary is not an error.
        io::stderr().write_all(text.as_bytes()).ok();
        Ok(())
    }
}

/// When the page was received; for a gap, the end of its time range.
fn came(seen: &EntryView) -> crate::model::Timestamp {
    match seen.entry.as_ref().map(|entry| &entry.content) {
        Some(Content::Page(page)) => page.answered_at,
        Some(Content::Gap(gap)) => gap.to,
        None => crate::model::Timestamp::default(),
    }
}

// === impl Show ===

impl Show {
    fn run(self) -> Result<(), Failure> {
        let reader = self.place.open()?;
        let name = self.page.to_string();
        let Some((seen, body)) = reader.find(self.page).map_err(unreadable)? else {
            let message = format!(
                "there is no page {name} in the journal; if it was forwarded, `agora-rtm-bridge \
                 pages show {name}` finds it"
            );
            return Err(Failure { message, code: 1 });
        };
        let mut output = Output::new();
        if self.json {
            output.line(&shown::envelope(&seen, &body));
        } else {
            write!(io::stderr(), "{}", shown::facts(&seen)).ok();
            output.bytes(&body);
        }
        output.end()
    }
}

// === impl Verify ===

impl Verify {
    fn run(self) -> Result<(), Failure> {
        let data_dir = self.place.data_dir()?;
        let verified = JournalReader::open(&data_dir).and_then(|reader| {
            let mut progress = Progress::begin("entries of the journal", reader.count()?);
            reader.verify(|| progress.step())
        });
        let verdict = match verified {
            Ok(verdict) => verdict,
            Err(error @ ReadError::Database { .. }) => {
                let structure = vec![Chain(&error).to_string()];
                journal::Verification { structure, ..journal::Verification::default() }
            }
            Err(error) => return Err(Failure::of(&error)),
        };
        let kept = journal::kept(&data_dir);
        let mut output = Output::new();
        output.line(&shown::verdict(&verdict, &kept, self.json));
        output.end()?;
        if verdict.is_sound() {
            return Ok(());
        }
        let message = format!(
            "the journal in `{}` is damaged; at its next start, the bridge salvages what is \
             readable and keeps the damaged file",
            data_dir.display()
        );
        Err(Failure { message, code: 1 })
    }
}

fn unreadable(error: ReadError) -> Failure {
    let mut failure = Failure::of(&error);
    if matches!(error, ReadError::Database { .. }) {
        failure.message.push_str("; run `agora-rtm-bridge journal verify` for details");
    }
    failure
}

/// The summary indexes its counts by these states.
const _: () = assert!(EntryState::Waiting as usize == 0 && EntryState::SetAside as usize == 3);
