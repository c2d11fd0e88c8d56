//! The files of a data directory: their lock, names and permissions.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, fs, io, process, thread};

use rustix::fs::OFlags;
use tracing::warn;

use super::OpenError;
use crate::model::Timestamp;

/// The database.
pub(super) const DATABASE: &str = "journal.sqlite";

/// A new database that is not complete yet.
pub(super) const MAKING: &str = "journal.sqlite.making";

/// A complete new database: from the moment it has this name, it is the journal.
pub(super) const NEW: &str = "journal.sqlite.new";

/// Prefix of replaced databases.
pub(super) const ASIDE: &str = "damaged-";

/// Mode of our files: pages are personal data, which only the owner may read.
const FILE_MODE: u32 = 0o600;

/// Mode of the directory, for the same reason.
const DIRECTORY_MODE: u32 = 0o700;

/// Our files must not be links, so that nobody who can create names in the directory can redirect
/// our writes.
const NO_LINK: i32 = OFlags::NOFOLLOW.bits().cast_signed();

const LOCK: &str = "lock";

/// Maximum time for which a process that only queries the lock holds it.
const ONE_WHO_ASKS: Duration = Duration::from_millis(50);

/// Suffixes of the files that SQLite adds to a database.
const BESIDE: [&str; 2] = ["-wal", "-shm"];

/// The lock on a data directory, released on drop.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    this: Holder,
    /// Identifies the machine's current boot.
    boot: String,
    /// The previous holder, if known.
    pub(super) before: Option<Holder>,
}

/// The process that holds a data directory, or held it last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// The host name of its machine.
    pub host: String,
    /// When it opened the journal.
    pub since: Timestamp,
    /// Whether it shut down cleanly: everything that it knew is in the journal.
    pub stopped: bool,
    /// Whether records of requests may be missing, which the journal has not recorded yet.
    pub(super) in_doubt: bool,
    /// Identifies the boot of the machine in which it ran.
    boot: String,
}

/// Creates the directory if it is missing, and locks it.
pub(super) fn lock(data_dir: &Path, now: Timestamp) -> Result<Lock, OpenError> {
    let failed =
        |operation, path: &Path, cause| OpenError::File { operation, path: path.to_owned(), cause };
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(data_dir)
        .map_err(|cause| failed("create the data directory", data_dir, cause))?;
    let path = data_dir.join(LOCK);
    let file = open_private(&path).map_err(|cause| failed("open", &path, cause))?;
    // A process that only queries the lock holds it for an instant.
    let locked = file.try_lock().or_else(|_| {
        thread::sleep(ONE_WHO_ASKS);
        file.try_lock()
    });
    let before = last_holder(data_dir);
    match locked {
        Ok(()) => {
            let this = Holder::this(now);
            let boot = this.boot.clone();
            // Until the journal is open, this process can't lose anything, and the state that its
            // predecessor left is unchanged: a start that fails must pass it on to the next one.
            let this = match before.clone() {
                Some(Holder { stopped, in_doubt, boot, .. }) => {
                    Holder { stopped, in_doubt, boot, ..this }
                }
                None => Holder { stopped: true, ..this },
            };
            let lock = Lock { file, this, boot, before };
            lock.sign().map_err(|cause| failed("write", &path, cause))?;
            Ok(lock)
        }
        Err(TryLockError::WouldBlock) => {
            Err(OpenError::InUse { data_dir: data_dir.to_owned(), holder: before })
        }
        Err(TryLockError::Error(cause)) => Err(failed("lock", &path, cause)),
    }
}

/// Whether a process holds the data directory. The query takes the lock for a moment.
///
/// # Errors
///
/// The lock file can't be opened; the error is `NotFound` if the directory was never used.
pub fn is_in_use(data_dir: &Path) -> io::Result<bool> {
    let file = open_existing(&data_dir.join(LOCK))?;
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(cause)) => Err(cause),
    }
}

/// Why other users can read or modify the contents of a data directory: its mode or its owner.
/// `None` if only this user can, or if it doesn't exist.
pub fn exposure(data_dir: &Path) -> Option<String> {
    let folder = fs::metadata(data_dir).ok()?;
    let (owner, us) = (folder.uid(), rustix::process::geteuid().as_raw());
    let mode = folder.mode() & 0o777;
    let directory = data_dir.display();
    if owner != us {
        return Some(format!(
            "data directory `{directory}` belongs to user {owner}, but this process runs as user \
             {us}: run it as that user, or chown -R {us} {directory}"
        ));
    }
    (mode & !DIRECTORY_MODE != 0).then(|| {
        format!(
            "data directory `{directory}` has mode {mode:04o}, so other users can access \
             it; its pages are personal data: chmod 700 {directory}"
        )
    })
}

/// The process that holds a data directory now, if there is one.
pub fn holder(data_dir: &Path) -> Option<Holder> {
    is_in_use(data_dir).is_ok_and(|it| it).then(|| last_holder(data_dir)).flatten()
}

fn last_holder(data_dir: &Path) -> Option<Holder> {
    io::read_to_string(open_existing(&data_dir.join(LOCK)).ok()?).ok()?.parse().ok()
}

/// Creates the database with our mode, if it is missing. SQLite gives its other files the mode of
/// the database.
pub(super) fn make_private(database: &Path) -> io::Result<()> {
    open_private(database).map(drop)
}

/// Opens a file for writing; creates it if it is missing.
pub(super) fn open_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(FILE_MODE).custom_flags(NO_LINK);
    options.open(path)
}

fn open_existing(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(NO_LINK).open(path)
}

/// The write-ahead log of a database.
pub(super) fn log_of(database: &Path) -> PathBuf {
    beside(database, "-wal")
}

/// Completes the replacement of the database, if a complete new one exists. Once begun, the
/// replacement can be completed at any time: [`NEW`] contains everything known, and gets the name
/// of the database only when no file of the old one has its name any more.
///
/// With `keep`, the old database is kept under a name that contains the time; otherwise it is
/// deleted. Returns the name of the kept database.
pub(super) fn replace(data_dir: &Path, keep: bool, now: Timestamp) -> io::Result<Option<PathBuf>> {
    remove(&data_dir.join(MAKING))?;
    let [old, new] = [DATABASE, NEW].map(|name| data_dir.join(name));
    if !new.exists() {
        return Ok(None);
    }
    let aside = name_aside(data_dir, now);
    let mut kept = None;
    // The log before the database: SQLite ignores a log without its database.
    for (suffix, worth_keeping) in [("-shm", false), ("-wal", true), ("", true)] {
        let file = beside(&old, suffix);
        if !file.exists() {
            continue;
        }
        let holds_something = fs::metadata(&file)?.len() > 0;
        if keep && worth_keeping && holds_something {
            fs::rename(&file, beside(&aside, suffix))?;
            kept = Some(aside.clone());
        } else {
            fs::remove_file(&file)?;
        }
    }
    fs::rename(&new, &old)?;
    sync(data_dir)?;
    Ok(kept)
}

/// Declares [`MAKING`] complete. From now on it is the journal, whatever happens.
pub(super) fn declare_whole(data_dir: &Path) -> io::Result<()> {
    fs::rename(data_dir.join(MAKING), data_dir.join(NEW))?;
    sync(data_dir)
}

/// Deletes a database and its other files.
pub(super) fn remove(database: &Path) -> io::Result<()> {
    for suffix in [""].into_iter().chain(BESIDE) {
        match fs::remove_file(beside(database, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The replaced databases that are kept, oldest first.
pub fn kept(data_dir: &Path) -> Vec<PathBuf> {
    let is_kept = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(ASIDE) && name.ends_with(".sqlite")
    };
    let entries = fs::read_dir(data_dir).into_iter().flatten().filter_map(Result::ok);
    let mut kept: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_kept).collect();
    kept.sort();
    kept
}

/// Deletes replaced databases, oldest first, until `most` are left.
pub(super) fn remove_old(data_dir: &Path, most: usize) {
    let kept = kept(data_dir);
    for old in kept.iter().take(kept.len().saturating_sub(most)) {
        if remove(old).is_ok() {
            warn!(
                file = %old.display(),
                "deleted an old replaced database; the last {most} are kept"
            );
        }
    }
}

/// Deletes the oldest replaced database to free disk space. Returns false if there is none.
pub(super) fn remove_oldest(data_dir: &Path) -> bool {
    let Some(oldest) = kept(data_dir).into_iter().next() else { return false };
    let removed = remove(&oldest).is_ok();
    if removed {
        warn!(
            file = %oldest.display(),
            "the disk is full: deleted a replaced database, so that polling can continue"
        );
    }
    removed
}

/// An unused name that contains the time.
fn name_aside(data_dir: &Path, now: Timestamp) -> PathBuf {
    let moment = now.to_string().replace(':', "-");
    let name = |number: u32| match number {
        1 => format!("{ASIDE}{moment}.sqlite"),
        _ => format!("{ASIDE}{moment}-{number}.sqlite"),
    };
    let mut names = (1..).map(|number| data_dir.join(name(number)));
    names.find(|path| !path.exists()).expect("there are enough numbers")
}

fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// A file whose name is not synced can vanish in a power loss.
fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

// === impl Lock ===

impl Lock {
    /// Whether the previous process may have lost unsynced records: its shutdown was unclean, and
    /// the machine has rebooted since, or is another one.
    pub(super) fn power_was_lost(&self) -> bool {
        self.before.as_ref().is_some_and(|it| !it.stopped && it.boot != self.boot)
    }

    /// Records that requests may be missing, until the journal has recorded it.
    pub(super) fn set_in_doubt(&mut self) {
        if !self.this.in_doubt {
            self.this.in_doubt = true;
            self.sign().ok();
        }
    }

    /// Called once the journal is open and has recorded any doubt. From now on, this process is
    /// responsible for missing records.
    pub(super) fn begin(&mut self) {
        let boot = self.boot.clone();
        self.this = Holder { stopped: false, in_doubt: false, boot, ..self.this.clone() };
        self.sign().ok();
    }

    /// Records whether everything is settled and stored. A failure is harmless: at worst, the next
    /// start publishes unnecessary gaps.
    pub(super) fn set_stopped(&mut self, stopped: bool) {
        if self.this.stopped != stopped {
            self.this.stopped = stopped;
            self.sign().ok();
        }
    }

    fn sign(&self) -> io::Result<()> {
        let text = self.this.line();
        // Overwrite in place: after a truncation, a full disk might have no room for it.
        self.file.write_all_at(text.as_bytes(), 0)?;
        self.file.set_len(text.len() as u64)?;
        self.file.sync_data()
    }
}

// === impl Holder ===

impl Holder {
    fn this(now: Timestamp) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot = boot.trim().to_owned();
        Self { pid: process::id(), host, since: now, stopped: false, in_doubt: false, boot }
    }

    /// The line in the lock file; people read it too.
    fn line(&self) -> String {
        let Self { pid, host, since, stopped, in_doubt, boot } = self;
        let state = if *stopped { "stopped" } else { "running" };
        let doubt = if *in_doubt { " doubt" } else { "" };
        format!("{state} pid={pid} host={host} since={} boot={boot}{doubt}\n", since.as_millis())
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} on `{}` since {}", self.pid, self.host, self.since)
    }
}

impl std::str::FromStr for Holder {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // Anything after the line is left over from a longer one.
        let mut words = text.lines().next().unwrap_or_default().split_whitespace();
        let stopped = match words.next() {
            Some("stopped") => true,
            Some("running") => false,
            _ => return Err(()),
        };
        let mut value = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=');
        let mut read = || {
            Some(Self {
                pid: value("pid")?.parse().ok()?,
                host: value("host")?.to_owned(),
                since: Timestamp::from_millis(value("since")?.parse().ok()?),
                boot: value("boot")?.to_owned(),
                stopped,
                in_doubt: false,
            })
        };
        let holder = read().ok_or(())?;
        Ok(Self { in_doubt: words.next() == Some("doubt"), ..holder })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_holder_reads_what_it_writes() {
        let holder = Holder { stopped: true, ..Holder::this(Timestamp::from_millis(7)) };
        for in_doubt in [false, true] {
            let holder = Holder { in_doubt, ..holder.clone() };
            assert_eq!(holder.line().parse(), Ok(holder.clone()));
            assert_eq!(format!("{}of=a longer doubt\n", holder.line()).parse(), Ok(holder));
        }
        assert_eq!("running pid=1".parse::<Holder>(), Err(()));
        assert_eq!("".parse::<Holder>(), Err(()));
    }

    #[test]
    fn a_directory_that_others_may_look_into_is_named_with_its_remedy() {
        let home = tempfile::tempdir().unwrap();
        let data_dir = home.path().join("data");
        assert_eq!(exposure(&data_dir), None);
        drop(lock(&data_dir, Timestamp::from_millis(7)).unwrap());
        assert_eq!(exposure(&data_dir), None);
        let link = home.path().join("link");
        symlink(&data_dir, &link).unwrap();
        assert_eq!(exposure(&link), None);
        for mode in [0o750, 0o701, 0o777] {
            fs::set_permissions(&data_dir, fs::Permissions::from_mode(mode)).unwrap();
            let says = exposure(&data_dir).unwrap();
            let words = format!("has mode {mode:04o}");
            assert!(says.contains(&words) && says.contains("chmod 700"), "{says}");
        }
        let ours = rustix::process::geteuid().as_raw();
        if ours != 0 {
            let says = exposure(Path::new("/")).unwrap();
            assert!(says.contains("belongs to user 0") && says.contains("chown"), "{says}");
        }
    }

    /// We never create or write files through a link; the directory may be one.
    #[test]
    fn a_link_in_the_place_of_a_file_is_refused_and_a_link_to_the_directory_is_followed() {
        let home = tempfile::tempdir().unwrap();
        let (data_dir, elsewhere) = (home.path().join("data"), home.path().join("elsewhere"));
        fs::create_dir(&data_dir).unwrap();
        fs::write(&elsewhere, "mine").unwrap();
        for name in [LOCK, DATABASE, "ballast"] {
            let link = data_dir.join(name);
            symlink(&elsewhere, &link).unwrap();
            assert_eq!(open_private(&link).unwrap_err().raw_os_error(), Some(40), "{name}");
            assert!(open_existing(&link).is_err(), "{name}");
            fs::remove_file(link).unwrap();
        }
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "mine");
        let link = home.path().join("link");
        symlink(&data_dir, &link).unwrap();
        open_private(&link.join(LOCK)).unwrap();
        assert!(data_dir.join(LOCK).is_file());
    }

    #[test]
    fn the_change_to_a_new_database_can_be_completed_from_wherever_it_stopped() {
        // For each moment, the files that exist, and their contents.
        let moments: [&[(&str, &str)]; 4] = [
            &[(NEW, "new"), (DATABASE, "old"), ("journal.sqlite-wal", "log")],
            &[(NEW, "new"), (DATABASE, "old"), (MAKING, "left"), ("journal.sqlite-shm", "x")],
            &[(NEW, "new")],
            &[(DATABASE, "new"), (MAKING, "left"), ("journal.sqlite.making-wal", "left")],
        ];
        for files in moments {
            let directory = tempfile::tempdir().unwrap();
            for (name, holds) in files {
                fs::write(directory.path().join(name), holds).unwrap();
            }
            replace(directory.path(), true, Timestamp::from_millis(0)).unwrap();
            let mut found: Vec<(String, String)> = fs::read_dir(directory.path())
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .map(|path| {
                    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                    (name, fs::read_to_string(path).unwrap())
                })
                .collect();
            found.sort();
            let (aside, journal): (Vec<_>, Vec<_>) =
                found.into_iter().partition(|(name, _)| name.starts_with(ASIDE));
            assert_eq!(journal, [(DATABASE.to_owned(), "new".to_owned())], "{files:?}");
            let was_there = |it: &str| files.iter().any(|(_, holds)| *holds == it);
            let kept = |it: &str| aside.iter().any(|(_, holds)| holds == it);
            assert_eq!([kept("old"), kept("log")], ["old", "log"].map(was_there), "{files:?}");
        }
    }
}
