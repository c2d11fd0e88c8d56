//! A value that is never shown, and that may change while the process runs.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

use thiserror::Error;

/// Maximum size of a secret file, in bytes: more than any password, token or key needs, and little
/// enough that a path to the wrong file can't exhaust the memory.
const LARGEST: u64 = 64 * 1024;

/// A secret, given as a value or in a file.
///
/// It has no `Display`, and its `Debug` shows only where it comes from. Cheap to clone.
#[derive(Clone)]
pub struct Secret(Source);

#[derive(Clone)]
enum Source {
    Value(Arc<str>),
    File(Arc<Path>),
}

/// Why a secret could not be read. Transient if another program is rewriting the file.
#[derive(Debug, Error)]
pub enum SecretError {
    /// The file can't be opened or read.
    #[error("read the secret file `{}`", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        cause: io::Error,
    },
    /// The path is a directory, a device or the like.
    #[error("read the secret file `{}`, which is not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The file is empty.
    #[error("read the secret file `{}`, which is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file is larger than 64 KiB.
    #[error("read the secret file `{}`, which is larger than 64 KiB", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file can't be decoded as text: UTF-8, or UTF-16 with a byte order mark.
    #[error("read the secret file `{}`, which is not UTF-8 text", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
}

// === impl SecretError ===

impl SecretError {
    /// Whether the file was readable and only its content is wrong.
    pub fn is_about_content(&self) -> bool {
        match self {
            Self::Unreadable { .. } | Self::NotAFile { .. } => false,
            Self::Empty { .. } | Self::TooLarge { .. } | Self::NotText { .. } => true,
        }
    }
}

// === impl Secret ===

impl Secret {
    /// A secret with a fixed value.
    pub fn from_value(value: impl Into<Arc<str>>) -> Self {
        Self(Source::Value(value.into()))
    }

    /// A secret that is read from the file each time it is used.
    pub fn from_file(path: impl Into<PathBuf>) -> Self {
        Self(Source::File(path.into().into()))
    }

    /// The file that holds it, if there is one.
    pub fn file(&self) -> Option<&Path> {
        match &self.0 {
            Source::Value(_) => None,
            Source::File(path) => Some(path),
        }
    }

    /// The key that sets it: `name` for a value, `name_file` for a file.
    pub fn key(&self, name: &str) -> String {
        match &self.0 {
            Source::Value(_) => name.to_owned(),
            Source::File(_) => format!("{name}_file"),
        }
    }

    /// The current secret, without what editors add to a file: a byte order mark and a trailing
    /// newline. UTF-16 is decoded if the file has a byte order mark.
    ///
    /// A file is read each time. Checking its modification time first would save a few microseconds
    /// per request, but could miss a second change within one tick of the file system's clock and
    /// leave an outdated token in use for a day.
    ///
    /// # Errors
    ///
    /// [`SecretError`] if the file can't be read or holds no secret. A value never fails.
    pub fn reveal(&self) -> Result<String, SecretError> {
        match &self.0 {
            Source::Value(value) => Ok(value.to_string()),
            Source::File(path) => read(path),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Value(_) => f.write_str("Secret(***)"),
            Source::File(path) => write!(f, "Secret(file {})", path.display()),
        }
    }
}

fn read(path: &Path) -> Result<String, SecretError> {
    let path_buf = || path.to_owned();
    let unreadable = |cause| SecretError::Unreadable { path: path_buf(), cause };
    // Check this before opening it: opening a named pipe blocks until it has a writer.
    if !path.metadata().map_err(unreadable)?.is_file() {
        return Err(SecretError::NotAFile { path: path_buf() });
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    let length = file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if u64::try_from(length).is_ok_and(|length| length > LARGEST) {
        return Err(SecretError::TooLarge { path: path_buf() });
    }
    let text = decoded(bytes).ok_or_else(|| SecretError::NotText { path: path_buf() })?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let secret = line.strip_suffix('\r').unwrap_or(line);
    if secret.is_empty() {
        return Err(SecretError::Empty { path: path_buf() });
    }
    Ok(secret.to_owned())
}

/// Decodes a file by its byte order mark, or as UTF-8 if it has none.
fn decoded(bytes: Vec<u8>) -> Option<String> {
    let units = |pair: fn([u8; 2]) -> u16| {
        let (pairs, rest) = bytes.get(2..)?.as_chunks();
        let units: Vec<u16> = pairs.iter().map(|bytes| pair(*bytes)).collect();
        rest.is_empty().then(|| String::from_utf16(&units).ok()).flatten()
    };
    match bytes.as_slice() {
        [0xff, 0xfe, ..] => units(u16::from_le_bytes),
        [0xfe, 0xff, ..] => units(u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, text @ ..] => String::from_utf8(text.to_vec()).ok(),
        _ => String::from_utf8(bytes).ok(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_is_rewritten_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let secret = Secret::from_file(&path);
        // Written within one tick of the clock, so the modification time may not change.
        for token in ["first\n", "other\r\n", "third", "two\nlines\n"] {
            fs::write(&path, token).unwrap();
            let bare = token.trim_end_matches(['\r', '\n']);
            assert_eq!(secret.reveal().unwrap(), bare);
        }
    }

    #[test]
    fn what_an_editor_adds_is_not_part_of_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let utf_16 = |bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
            "\u{feff}hunter2\r\n".encode_utf16().flat_map(bytes).collect()
        };
        for content in [
            b"\xef\xbb\xbfhunter2\r\n".to_vec(),
            utf_16(u16::to_le_bytes),
            utf_16(u16::to_be_bytes),
            b"hunter2".to_vec(),
        ] {
            fs::write(&path, &content).unwrap();
            assert_eq!(Secret::from_file(&path).reveal().unwrap(), "hunter2", "{content:?}");
        }
        for content in [&b"\xff\xfeh"[..], b"\xff\xfe\x00\xd8", b"\xef\xbb\xbf\xff"] {
            fs::write(&path, content).unwrap();
            let error = Secret::from_file(&path).reveal().unwrap_err();
            assert!(matches!(error, SecretError::NotText { .. }), "{content:?}: {error}");
        }
    }

    #[test]
    fn what_holds_no_secret_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let holding = |name: &str, content: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, content).unwrap();
            Secret::from_file(path).reveal().unwrap_err()
        };
        assert!(matches!(holding("empty", b"\n"), SecretError::Empty { .. }));
        assert!(matches!(holding("binary", b"\xff"), SecretError::NotText { .. }));
        assert!(matches!(holding("large", &[b'x'; 70_000]), SecretError::TooLarge { .. }));
        let there = Secret::from_file(dir.path()).reveal().unwrap_err();
        assert!(matches!(there, SecretError::NotAFile { .. }));
        let absent = Secret::from_file(dir.path().join("absent")).reveal().unwrap_err();
        assert!(matches!(absent, SecretError::Unreadable { .. }));
    }
}
