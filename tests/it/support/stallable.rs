//! A pipe into a file whose reader can be stalled, like a log collector that hangs.

use std::fs::File;
use std::io::{PipeWriter, Read as _, Write as _, pipe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// The writing end. The reader's thread ends when all writers are closed; dropping it resumes the
/// reader.
pub(crate) struct Stallable {
    writer: PipeWriter,
    tap: Arc<Tap>,
}

#[derive(Default)]
struct Tap {
    is_closed: Mutex<bool>,
    turned: Condvar,
}

/// Size of a Linux pipe plus the piece that the reader may hold, in bytes. See pipe(7).
const MORE_THAN_IT_HOLDS: usize = 64 * 1024 + PIECE;

const PIECE: usize = 4 * 1024;

/// Fills the pipe; never occurs in a log.
const FILLER: u8 = 0;

// === impl Stallable ===

impl Stallable {
    /// A pipe that is copied into this file.
    pub(crate) fn into_file(file: File) -> Self {
        let (mut reader, writer) = pipe().expect("the kernel has pipes");
        let tap = Arc::<Tap>::default();
        let flows = Arc::clone(&tap);
        thread::spawn(move || {
            let mut file = file;
            let mut piece = [0; PIECE];
            loop {
                flows.wait_until_open();
                let Ok(length @ 1..) = reader.read(&mut piece) else { return };
                let piece = piece.iter().take(length).copied();
                let text: Vec<u8> = piece.filter(|byte| *byte != FILLER).collect();
                file.write_all(&text).expect("a log can be written");
            }
        });
        Self { writer, tap }
    }

    /// A writing end, for a child.
    pub(crate) fn writer(&self) -> PipeWriter {
        self.writer.try_clone().expect("there are descriptors left")
    }

    /// Stops the reader and fills the pipe, so that writers block.
    pub(crate) fn stall(&self) {
        *self.tap.lock() = true;
        let mut writer = self.writer();
        // This write blocks, too, until the pipe is read again.
        thread::spawn(move || writer.write_all(&[FILLER; MORE_THAN_IT_HOLDS]).ok());
    }

    /// Resumes the reader.
    pub(crate) fn flow(&self) {
        *self.tap.lock() = false;
        self.tap.turned.notify_all();
    }
}

impl Drop for Stallable {
    fn drop(&mut self) {
        self.flow();
    }
}

// === impl Tap ===

impl Tap {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until_open(&self) {
        let waited = self.turned.wait_while(self.lock(), |is_closed| *is_closed);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;
    use std::time::Duration;

    use super::*;
    use crate::support::{names, within};

    #[test]
    fn a_stalled_pipe_holds_its_writer_up_and_loses_nothing() {
        const LINES: usize = 100_000;
        let home = names::folder();
        let path = home.path().join("log");
        let stallable = Stallable::into_file(File::create(&path).unwrap());
        stallable.stall();
        // Far more than the pipe holds.
        let mut child = Command::new("sh")
            .args(["-c", &format!("yes line | head -n {LINES}")])
            .stdout(stallable.writer())
            .spawn()
            .expect("every Unix has a shell");
        assert_eq!(child.try_wait().unwrap(), None);
        stallable.flow();
        assert!(child.wait().unwrap().success());
        let all = within(Duration::from_secs(30), || {
            let text = fs::read_to_string(&path).unwrap();
            (text.len() >= LINES * "line\n".len()).then_some(text)
        });
        assert_eq!(all.unwrap(), "line\n".repeat(LINES));
    }
}
