//! This machine: the data directory, and the port of the status pages.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use rustix::fs::{Access, access, statfs, statvfs};
use tokio::net::TcpListener;

use super::Finding;
use crate::config::Settings;
use crate::journal;

/// Minimum free disk space, in bytes. Below it the bridge doesn't poll: the journal's reserve and
/// the first pages need this much.
const LEAST_ROOM: u64 = 64 << 20;

const RUNNING: &str = "expected if a bridge is already running here; a second bridge needs another";

/// File systems by their magic number in `statfs`.
const FILE_SYSTEMS: &[(i64, &str, FileSystemKind)] = &[
    (0x6969, "NFS", FileSystemKind::Remote),
    (0xff53_4d42, "CIFS", FileSystemKind::Remote),
    (0xfe53_4d42, "SMB", FileSystemKind::Remote),
    (0x517b, "SMB", FileSystemKind::Remote),
    (0x0102_1997, "9P", FileSystemKind::Remote),
    (0x00c3_6400, "Ceph", FileSystemKind::Remote),
    (0x5346_414f, "AFS", FileSystemKind::Remote),
    (0x6573_5546, "FUSE", FileSystemKind::Remote),
    (0x0102_1994, "tmpfs", FileSystemKind::Passing),
    (0x8584_58f6, "ramfs", FileSystemKind::Passing),
    (0x794c_7630, "overlayfs", FileSystemKind::Passing),
    (0xef53, "ext4", FileSystemKind::Local),
    (0x5846_5342, "XFS", FileSystemKind::Local),
    (0x9123_683e, "Btrfs", FileSystemKind::Local),
    (0x2fc1_2fc1, "ZFS", FileSystemKind::Local),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileSystemKind {
    Local,
    /// Another machine is responsible for its locks and syncs.
    Remote,
    /// Its contents don't survive a reboot, or the end of a container.
    Passing,
}

/// Checks the data directory and the port.
pub(super) async fn look(settings: &Settings) -> Vec<Finding> {
    let directory = &settings.data_dir;
    let mut findings = vec![data_dir(directory, settings.journal.max_size)];
    findings.extend(exposed(directory));
    findings.push(port(settings).await);
    findings
}

fn exposed(path: &Path) -> Option<Finding> {
    let says = journal::exposure(path)?;
    let (says, remedy) = says.rsplit_once(": ").unwrap_or((&says, ""));
    Some(Finding::warning(format!("data_dir {}", path.display()), says, remedy))
}

fn data_dir(path: &Path, max_size: u64) -> Finding {
    let subject = format!("data_dir {}", path.display());
    match journal::is_in_use(path) {
        Ok(true) => {
            let says = "in use by another process";
            return Finding::failed(subject, says, Some(&format!("{RUNNING} data_dir")));
        }
        Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            let says = format!("can't open its lock file: {error}");
            let remedy =
                "make the user that the bridge runs as the owner of the directory and its files";
            return Finding::failed(subject, says, Some(remedy));
        }
        Ok(false) | Err(_) => {}
    }
    let there = path.ancestors().map(or_here).find(|it| it.exists()).unwrap_or(Path::new("/"));
    if !there.is_dir() {
        let says = format!("{} is not a directory", there.display());
        return Finding::failed(
            subject,
            says,
            Some("set data_dir to a directory, or to a path where one can be created"),
        );
    }
    if let Err(error) = access(there, Access::WRITE_OK | Access::EXEC_OK) {
        let says = format!("{} is not writable: {error}", there.display());
        let remedy =
            "make it writable for the user that the bridge runs as, or set another directory";
        return Finding::failed(subject, says, Some(remedy));
    }
    match (statfs(there), statvfs(there)) {
        (Ok(kind), Ok(room)) => {
            let free = room.f_bavail.saturating_mul(room.f_frsize);
            // The type differs between architectures.
            #[expect(clippy::unnecessary_cast, reason = "it is not an i64 on every architecture")]
            let magic = kind.f_type as i64 & 0xffff_ffff;
            judged(subject, magic, free, taken(path), max_size)
        }
        (Err(error), _) | (_, Err(error)) => {
            let remedy = "make sure that it is on a local disk with room for journal.max_size";
            Finding::warning(
                subject,
                format!("can't determine its file system and free space: {error}"),
                remedy,
            )
        }
    }
}

/// Replaces the last ancestor of a relative path, which is empty, by the working directory.
fn or_here(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// Disk space that the journal already uses, in bytes.
fn taken(data_dir: &Path) -> u64 {
    let files = fs::read_dir(data_dir).into_iter().flatten().flatten();
    let own = files.filter(|file| file.file_name().to_string_lossy().starts_with("journal"));
    own.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
}

fn judged(subject: String, magic: i64, free: u64, taken: u64, max_size: u64) -> Finding {
    let known = FILE_SYSTEMS.iter().find(|(number, ..)| *number == magic);
    let (name, kind) =
        known.map_or(("local", FileSystemKind::Local), |(_, name, kind)| (*name, *kind));
    let [free_text, most] = [free, max_size].map(size);
    if free < LEAST_ROOM {
        let says = format!("the disk is full: {free_text} free, and polling pauses below 64 MiB");
        let remedy = "make room, or set a directory on another disk";
        return Finding::failed(subject, says, Some(remedy));
    }
    match kind {
        FileSystemKind::Remote => {
            let says = format!("on {name}: pages written there may not be durable");
            return Finding::warning(subject, says, "set a directory on a local disk");
        }
        FileSystemKind::Passing => {
            let says =
                format!("on {name}: waiting pages are lost with the container, or at a reboot");
            return Finding::warning(subject, says, "set a directory on a disk or a volume");
        }
        FileSystemKind::Local => {}
    }
    if free.saturating_add(taken) < max_size {
        let says = format!("{free_text} free, but the journal may grow to {most}");
        let remedy = "make room, or lower journal.max_size: on a full disk polling pauses";
        return Finding::warning(subject, says, remedy);
    }
    Finding::ok(subject, format!("{name} file system, {free_text} free for at most {most}"))
}

/// In the largest unit, with one decimal.
fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let place = (bytes.max(1).ilog2() / 10).min(4);
    let whole = bytes >> (10 * place);
    let tenth = ((bytes >> (10 * place.saturating_sub(1))) & 1_023) * 10 / 1_024;
    let unit = units.get(usize::try_from(place).unwrap_or(0)).copied().unwrap_or("B");
    if place == 0 || tenth == 0 {
        return format!("{whole} {unit}");
    }
    format!("{whole}.{tenth} {unit}")
}

async fn port(settings: &Settings) -> Finding {
    let listen = settings.http.listen;
    let subject = format!("http.listen {listen}");
    match TcpListener::bind(listen).await {
        Ok(_) if !listen.ip().is_loopback() => {
            let says = "free; anyone who can reach this machine can read the status pages";
            Finding::ok(subject, says)
        }
        Ok(_) => Finding::ok(subject, "free"),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            Finding::failed(subject, error, Some(&format!("{RUNNING} port")))
        }
        Err(error) => {
            let remedy = "use an address of this machine and a port above 1023";
            Finding::failed(subject, error, Some(remedy))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Severity;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_data_directory_is_judged_by_its_room_and_its_file_system() {
        for (magic, free, taken, verdict, words) in [
            (0xef53, 9 * GIB, 0, Severity::Ok, "9 GiB free for at most 4 GiB"),
            (0xef53, GIB, 3 * GIB, Severity::Ok, "1 GiB free"),
            (0xef53, GIB, 0, Severity::Warning, "lower journal.max_size"),
            (0xef53, 1 << 20, 0, Severity::Failed, "disk is full: 1 MiB free"),
            (0xef53, 1 << 20, GIB, Severity::Failed, "make room"),
            (0x6969, 9 * GIB, 0, Severity::Warning, "on NFS"),
            (0x6969, 0, 0, Severity::Failed, "disk is full: 0 B free"),
            (0x0102_1994, 9 * GIB, 0, Severity::Warning, "lost with the container"),
            (0x1234, 9 * GIB, 0, Severity::Ok, "local file system"),
        ] {
            let found = judged("data_dir".to_owned(), magic, free, taken, 4 * GIB);
            assert_eq!(found.verdict, verdict, "{found}");
            assert!(found.to_string().contains(words), "{found}");
        }
    }

    #[test]
    fn a_size_is_written_in_its_largest_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_536, "1.5 KiB"),
            (64 << 20, "64 MiB"),
            (4 << 30, "4 GiB"),
            (5_000 << 40, "5000 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
