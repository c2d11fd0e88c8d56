//! A child process that tests can kill or suspend, and that never outlives them.

use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::within;

/// A running child. Killed when dropped, and killed when the test process dies.
///
/// For the latter there is a *guard*, a shell that reads a pipe whose other end only the test
/// process holds. The pipe is closed when the test process ends, in whichever way, even if no
/// destructor runs (a `static` is never dropped). Linux's parent-death signal seems simpler, but it
/// is sent when the *thread* that spawned the child ends, and every test is a thread.
pub(crate) struct Guarded {
    child: Child,
    guard: Child,
}

/// Reads until the pipe is closed, then kills the child (`$0`) and deletes its folder (`$1`).
/// Ctrl-C reaches the guard too, as a member of the terminal's process group, and must not end it.
const GUARD: &str = r#"
    trap "" HUP INT TERM
    read -r _
    kill -KILL "$0" 2>/dev/null
    rm -rf "$1" || { sleep 1; rm -rf "$1"; }
"#;

// === impl Guarded ===

impl Guarded {
    /// Starts `command`. `home` is the child's own folder; the guard deletes it if the test process
    /// can't.
    pub(crate) fn spawn(command: &mut Command, home: &Path) -> Self {
        let child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let guard = Command::new("sh")
            .args(["-c", GUARD, &child.id().to_string()])
            .arg(home)
            .stdin(Stdio::piped())
            // Not our output: a program that reads it until its end would wait for the guard.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("every Unix has a shell");
        Self { child, guard }
    }

    /// Sends a signal, unless the child has ended: its process id may be reused by then.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            kill_process(Pid::from_child(&self.child), signal).expect("it is our child");
        }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, if it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().expect("it is our child");
        if status.is_some() {
            self.dismiss_guard();
        }
        status
    }

    /// Waits until the child has ended.
    ///
    /// # Panics
    ///
    /// If it does not end within `limit`.
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        within(limit, || self.ended())
            .unwrap_or_else(|late| panic!("process {} ended {late}", self.child.id()))
    }

    /// Kills the child without warning, as the kernel or a machine failure would. Works on a
    /// suspended child, too.
    pub(crate) fn kill_9(&mut self) {
        self.child.kill().expect("it is our child");
        // In this order: once the child is reaped, its process id may be reused, and the guard
        // would kill another process.
        self.dismiss_guard();
        self.child.wait().expect("it is our child");
    }

    fn dismiss_guard(&mut self) {
        let dismissed: io::Result<_> = self.guard.kill().and_then(|()| self.guard.wait());
        dismissed.expect("it is our child");
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.kill_9();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::names;

    #[test]
    fn a_child_and_its_folder_go_when_the_pipe_to_the_test_process_ends() {
        let home = names::folder();
        let mut sleeper = Command::new("sleep").arg("600").spawn().expect("every Unix can sleep");
        let folder = home.path().join("data");
        std::fs::create_dir(&folder).unwrap();

        // What `Guarded` does, with a pipe that is closed at once.
        let guard = Command::new("sh")
            .args(["-c", GUARD, &sleeper.id().to_string()])
            .arg(&folder)
            .stdin(Stdio::null())
            .status()
            .unwrap();

        assert!(guard.success());
        assert!(!folder.exists());
        assert!(!sleeper.wait().unwrap().success());
    }

    #[test]
    fn a_dropped_child_is_gone() {
        let home = names::folder();
        let mut child = Guarded::spawn(Command::new("sleep").arg("600"), home.path());
        let pid = Pid::from_child(&child.child);
        child.signal(Signal::STOP);
        drop(child);
        assert_eq!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH));
    }
}
