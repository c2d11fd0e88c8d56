//! Somebody who reads the journal beside the bridge and does not come to an end: a `journal list`
//! whose output nobody takes, and a tool of SQLite's with a transaction open.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

use crate::support::child::Guarded;
use crate::support::stallable::Stallable;
use crate::support::{names, process};

/// Gone when dropped.
pub(super) struct Reader {
    list: Guarded,
    output: Stallable,
    /// `None` where the journal could not be read at that moment.
    tool: Option<Connection>,
    _home: TempDir,
}

/// A list ends soon after its output is read again.
const LIMIT: Duration = Duration::from_secs(30);

// === impl Reader ===

impl Reader {
    /// Begins to read.
    pub(super) fn of(data_dir: &Path) -> Self {
        let nowhere = File::options().write(true).open("/dev/null").expect("every Unix has it");
        let output = Stallable::into_file(nowhere);
        output.stall();
        let home = names::folder();
        let mut command = process::command();
        command.args(["journal", "list", "--data-dir"]).arg(data_dir);
        command.stdout(output.writer()).stderr(Stdio::null());
        let list = Guarded::spawn(&mut command, home.path());
        Self { list, output, tool: transaction(data_dir), _home: home }
    }

    /// Comes to an end after all.
    pub(super) fn end(mut self) {
        self.tool.take();
        self.output.flow();
        self.list.wait(LIMIT);
    }
}

/// A transaction that sees the journal as it is now, for as long as it lives.
fn transaction(data_dir: &Path) -> Option<Connection> {
    let path = data_dir.join("journal.sqlite");
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
    connection.execute_batch("BEGIN").ok()?;
    let look = "SELECT count(*) FROM sqlite_schema";
    connection.query_row(look, [], |row| row.get::<_, i64>(0)).ok()?;
    Some(connection)
}
