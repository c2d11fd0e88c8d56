//! Reads records directly from the files of a database that SQLite refuses to read.
//!
//! It ignores the structure above the leaves: it tries to parse each page of the file, and each
//! page image in its write-ahead log, as a leaf of a table. Each entry of the journal has a
//! checksum, so a record that is found is accepted only if it is exactly as written. A deleted page
//! may be found again; it is then forwarded again, and the publisher recognises it.
//!
//! The format: <https://www.sqlite.org/fileformat2.html>.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Size of a page in bytes if the database's header is unreadable; our databases have no other.
const PAGE_SIZE: u32 = 4_096;

/// The first bytes of a database.
const MAGIC: &[u8] = b"SQLite format 3\0";

/// Size of a database's header on its first page, in bytes.
const HEADER: usize = 100;

/// The first bytes of a log, except for the bit of the byte order.
const LOG_MAGIC: u32 = 0x377f_0682;

/// Sizes of a log's header and of the header of each page image in it, in bytes.
const LOG_HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// Maximum size of a record in bytes: ours are shorter, so a larger size means damage.
const LONGEST_RECORD: u64 = 1 << 30;

/// First byte of a leaf of a table.
const TABLE_LEAF: u8 = 0x0d;

/// The files of a database: page images, the newest last.
#[derive(Debug)]
pub(super) struct Image {
    database: File,
    log: Option<File>,
    page_size: u32,
    /// Number of pages in the database.
    pages: u32,
    /// Page images in the log: the page number, and the transaction.
    frames: Vec<(u32, u32)>,
    /// The frames of each page, oldest first.
    frames_of: BTreeMap<u32, Vec<u32>>,
}

/// A row as stored in a leaf.
#[derive(Debug)]
pub(super) struct Record {
    /// Its row id.
    pub(super) row: i64,
    /// Its columns.
    pub(super) values: Vec<ColumnValue>,
}

/// The value of a column.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ColumnValue {
    Null,
    Integer(i64),
    Real(f64),
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

/// Which image of a page to look up.
#[derive(Clone, Copy)]
enum AsOf {
    Database,
    /// The database with the log up to this transaction.
    Transaction(u32),
}

// === impl Image ===

impl Image {
    /// Opens the files of a database.
    pub(super) fn open(database: &Path, log: &Path) -> io::Result<Self> {
        let database = File::open(database)?;
        let log = match File::open(log) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            opened => Some(opened?),
        };
        let mut header = [0; HEADER];
        let known = database.read_exact_at(&mut header, 0).is_ok() && header.starts_with(MAGIC);
        let page_size = match (known, be16(&header, 16)) {
            (true, Some(1)) => 65_536,
            (true, Some(size)) if size.is_power_of_two() && size >= 512 => size.into(),
            _ => PAGE_SIZE,
        };
        let length = database.metadata()?.len();
        let pages = u32::try_from(length.div_ceil(page_size.into())).unwrap_or(u32::MAX);
        let mut image = Self {
            database,
            log,
            page_size,
            pages,
            frames: Vec::new(),
            frames_of: BTreeMap::new(),
        };
        image.look_into_log()?;
        Ok(image)
    }

    /// Calls `take` with the records of all leaves, those of the log first, newest first. A record
    /// that was written several times is passed each time.
    pub(super) fn each_record(&self, mut take: impl FnMut(Record)) {
        for (frame, (_, transaction)) in self.frames.iter().enumerate().rev() {
            if let Some(page) = self.frame(frame) {
                self.records_of(&page, 0, AsOf::Transaction(*transaction), &mut take);
            }
        }
        for number in 1..=self.pages {
            let Some(page) = self.page(number) else { continue };
            let header = if number == 1 { HEADER } else { 0 };
            self.records_of(&page, header, AsOf::Database, &mut take);
        }
    }

    /// Indexes the pages in the log and the ends of its transactions.
    fn look_into_log(&mut self) -> io::Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        let size = FRAME_HEADER as u64 + u64::from(self.page_size);
        let frames = log.metadata()?.len().saturating_sub(LOG_HEADER as u64) / size;
        let mut transaction = 0;
        for frame in 0..u32::try_from(frames).unwrap_or(u32::MAX) {
            let mut header = [0; 8];
            log.read_exact_at(&mut header, LOG_HEADER as u64 + u64::from(frame) * size)?;
            let page = be32(&header, 0).unwrap_or(0);
            self.frames.push((page, transaction));
            self.frames_of.entry(page).or_default().push(frame);
            // The last page of a transaction has the size of the database in its header.
            if be32(&header, 4) != Some(0) {
                transaction += 1;
            }
        }
        Ok(())
    }

    fn page(&self, number: u32) -> Option<Vec<u8>> {
        let at = u64::from(number.checked_sub(1)?) * u64::from(self.page_size);
        self.read(&self.database, at)
    }

    fn frame(&self, frame: usize) -> Option<Vec<u8>> {
        let size = FRAME_HEADER as u64 + u64::from(self.page_size);
        self.read(self.log.as_ref()?, (LOG_HEADER + FRAME_HEADER) as u64 + frame as u64 * size)
    }

    /// Reads a page; fills it with zeros if the file ends within it.
    fn read(&self, file: &File, at: u64) -> Option<Vec<u8>> {
        let mut page = vec![0; self.page_size as usize];
        let mut filled = 0;
        while filled < page.len() {
            match file.read_at(page.get_mut(filled..)?, at + filled as u64).ok()? {
                0 => break,
                read => filled += read,
            }
        }
        (filled > 0).then_some(page)
    }

    fn page_as_of(&self, number: u32, as_of: AsOf) -> Option<Vec<u8>> {
        if let AsOf::Transaction(last) = as_of {
            let frames = self.frames_of.get(&number).map_or(&[][..], Vec::as_slice);
            let its = |frame: &&u32| {
                self.frames
                    .get(**frame as usize)
                    .is_some_and(|(_, transaction)| *transaction <= last)
            };
            if let Some(frame) = frames.iter().rev().find(its) {
                return self.frame(*frame as usize);
            }
        }
        self.page(number)
    }

    fn records_of(&self, page: &[u8], header: usize, as_of: AsOf, take: &mut impl FnMut(Record)) {
        if page.get(header) != Some(&TABLE_LEAF) {
            return;
        }
        let cells = be16(page, header + 3).unwrap_or(0);
        for cell in 0..usize::from(cells) {
            let Some(at) = be16(page, header + 8 + 2 * cell) else { break };
            if let Some(record) = self.record(page, at.into(), as_of) {
                take(record);
            }
        }
    }

    /// Reads the record at an offset of a leaf, including its overflow pages.
    fn record(&self, page: &[u8], at: usize, as_of: AsOf) -> Option<Record> {
        let mut rest = page.get(at..)?;
        let length = varint(&mut rest)?;
        if length > LONGEST_RECORD {
            return None;
        }
        let row = varint(&mut rest)?.cast_signed();
        let length = usize::try_from(length).ok()?;
        let local = local_bytes(length, page.len());
        let mut payload = rest.get(..local)?.to_vec();
        let mut next = if local < length { be32(rest, local)? } else { 0 };
        while payload.len() < length {
            let page = self.page_as_of(next, as_of)?;
            next = be32(&page, 0)?;
            let more = (length - payload.len()).min(page.len() - 4);
            payload.extend(page.get(4..4 + more)?);
        }
        Some(Record { row, values: columns(&payload)? })
    }
}

/// Whether SQLite would read a log to its end. It silently skips everything after a damaged page
/// image, so committed transactions would be missing. A log that merely ends within a transaction
/// is intact.
pub(super) fn is_sound_to_its_end(log: &Path) -> io::Result<bool> {
    let file = match File::open(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        opened => opened?,
    };
    let mut header = [0; LOG_HEADER];
    if file.metadata()?.len() < LOG_HEADER as u64 {
        return Ok(true);
    }
    file.read_exact_at(&mut header, 0)?;
    let word = |at| be32(&header, at).unwrap_or(0);
    let (magic, page_size, salt) = (word(0), word(8), header.get(16..24).unwrap_or(&[]));
    let sum =
        Sum { big_endian: magic & 1 == 1, words: (0, 0) }.over(header.get(..24).unwrap_or(&[]));
    if magic & !1 != LOG_MAGIC || !page_size.is_power_of_two() || sum.words != (word(24), word(28))
    {
        return Ok(false);
    }
    let (mut valid, mut sum) = (true, sum);
    let mut frame = vec![0; FRAME_HEADER + page_size as usize];
    let mut at = LOG_HEADER as u64;
    while file.read_exact_at(&mut frame, at).is_ok() {
        at += frame.len() as u64;
        // Page images left from before the log's restart have another salt.
        if frame.get(8..16) != Some(salt) {
            valid = false;
            continue;
        }
        let known = (be32(&frame, 16).unwrap_or(0), be32(&frame, 20).unwrap_or(0));
        sum = sum.over(frame.get(..8).unwrap_or(&[])).over(frame.get(24..).unwrap_or(&[]));
        if !valid || sum.words != known {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The checksum of a log.
#[derive(Clone, Copy)]
struct Sum {
    big_endian: bool,
    words: (u32, u32),
}

impl Sum {
    fn over(mut self, bytes: &[u8]) -> Self {
        for pair in bytes.chunks_exact(8) {
            let (first, second) = (be32(pair, 0).unwrap_or(0), be32(pair, 4).unwrap_or(0));
            let as_written = |word: u32| if self.big_endian { word } else { word.swap_bytes() };
            let (one, other) = self.words;
            let one = one.wrapping_add(as_written(first)).wrapping_add(other);
            self.words = (one, other.wrapping_add(as_written(second)).wrapping_add(one));
        }
        self
    }
}

/// Version and mark from the first page of a database, without its log.
pub(super) fn version_and_mark(database: &Path) -> io::Result<Option<(i64, i64)>> {
    let mut header = [0; HEADER];
    if File::open(database)?.read_exact_at(&mut header, 0).is_err() || !header.starts_with(MAGIC) {
        return Ok(None);
    }
    let word = |at| i64::from(be32(&header, at).unwrap_or(0).cast_signed());
    Ok(Some((word(60), word(68))))
}

/// Number of bytes of a record that are stored in the leaf itself.
fn local_bytes(length: usize, usable: usize) -> usize {
    let most = usable - 35;
    if length <= most {
        return length;
    }
    let least = (usable - 12) * 32 / 255 - 23;
    let wanted = least + (length - least) % (usable - 4);
    if wanted <= most { wanted } else { least }
}

/// Parses a record.
fn columns(payload: &[u8]) -> Option<Vec<ColumnValue>> {
    let mut types = payload;
    let header = usize::try_from(varint(&mut types)?).ok()?;
    let taken = payload.len() - types.len();
    types = payload.get(taken..header)?;
    let mut data = payload.get(header..)?;
    let mut values = Vec::new();
    while !types.is_empty() {
        let kind = varint(&mut types)?;
        let length = match kind {
            0 | 8 | 9 => 0,
            1..=4 => kind,
            5 => 6,
            6 | 7 => 8,
            10 | 11 => return None,
            _ => (kind - 12) / 2,
        };
        let (bytes, rest) = data.split_at_checked(usize::try_from(length).ok()?)?;
        data = rest;
        values.push(match kind {
            0 => ColumnValue::Null,
            8 => ColumnValue::Integer(0),
            9 => ColumnValue::Integer(1),
            7 => ColumnValue::Real(f64::from_bits(integer(bytes).cast_unsigned())),
            1..=6 => ColumnValue::Integer(integer(bytes)),
            _ if kind % 2 == 0 => ColumnValue::Blob(bytes.to_vec()),
            _ => ColumnValue::Text(bytes.to_vec()),
        });
    }
    Some(values)
}

/// Parses a two's complement number, most significant byte first.
fn integer(bytes: &[u8]) -> i64 {
    let negative = bytes.first().is_some_and(|first| first & 0x80 != 0);
    bytes.iter().fold(if negative { -1 } else { 0 }, |sum, byte| (sum << 8) | i64::from(*byte))
}

/// Parses a varint: seven bits per byte, eight in the ninth.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for place in 0..9 {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        if place == 8 {
            return Some(value << 8 | u64::from(*first));
        }
        value = value << 7 | u64::from(first & 0x7f);
        if first & 0x80 == 0 {
            break;
        }
    }
    Some(value)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use rusqlite::config::DbConfig;
    use rusqlite::{Connection, params};

    use super::*;

    /// Every row that SQLite has is found, be it in the file, the log or overflow pages.
    #[test]
    fn what_sqlite_wrote_is_found_without_it() {
        let directory = tempfile::tempdir().unwrap();
        let [path, log] = ["a.sqlite", "a.sqlite-wal"].map(|name| directory.path().join(name));
        let connection = Connection::open(&path).unwrap();
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        connection.execute_batch("CREATE TABLE t (id INTEGER PRIMARY KEY, n, r, x, b)").unwrap();
        let body = |row: i64| {
            vec![
                u8::try_from(row.rem_euclid(251)).unwrap();
                40 * usize::try_from(row.unsigned_abs()).unwrap()
            ]
        };
        let numbers = [0, 1, -1, 127, -129, 70_000, -9_000_000, 1 << 40, i64::MIN];
        let rows: Vec<i64> = (-20..300).filter(|row| *row != 0).collect();
        for (row, number) in rows.iter().zip(numbers.iter().cycle()) {
            let values = params![row, number, *row as f64 / 4.0, format!("text {row}"), body(*row)];
            connection.execute("INSERT INTO t VALUES (?, ?, ?, ?, ?)", values).unwrap();
            if *row == 150 {
                connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
            }
        }
        drop(connection);
        let mut found = BTreeMap::new();
        Image::open(&path, &log).unwrap().each_record(|record| {
            // The schema is a table, too.
            if record.values.len() == 5 && record.values[0] == ColumnValue::Null {
                found.entry(record.row).or_insert(record.values);
            }
        });
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), rows);
        for (row, number) in rows.iter().zip(numbers.iter().cycle()) {
            let real = ColumnValue::Real(*row as f64 / 4.0);
            let text = ColumnValue::Text(format!("text {row}").into_bytes());
            let values = [
                ColumnValue::Null,
                ColumnValue::Integer(*number),
                real,
                text,
                ColumnValue::Blob(body(*row)),
            ];
            assert_eq!(found[row], values, "{row}");
        }
    }
}
