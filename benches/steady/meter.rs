//! The resources a process uses, as the kernel counts them: proc_pid_stat(5), proc_pid_status(5).

use std::collections::BTreeMap;
use std::fs;
use std::ops::Sub;
use std::path::Path;
use std::time::Duration;

use rustix::param;

use crate::support::within;

/// A process to be measured.
pub(crate) struct Meter {
    pid: u32,
}

/// Usage up to a moment, or between two.
pub(crate) struct Usage {
    /// CPU time (user and system) of the whole process.
    pub(crate) cpu: Duration,
    /// The same by thread name; threads with the same name together.
    pub(crate) threads: BTreeMap<String, Duration>,
    /// Time that all cores of the machine were busy, with any process.
    pub(crate) machine: Duration,
}

/// Maximum time until a new process shows its environment.
const START_LIMIT: Duration = Duration::from_secs(5);

// === impl Meter ===

impl Meter {
    /// Finds the process that was started with `home` in one of its environment variables.
    pub(crate) fn of(home: &Path) -> Self {
        let home = home.as_os_str().as_encoded_bytes();
        let is_it = |pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.windows(home.len()).any(|part| part == home)
        };
        let find = || {
            let processes = fs::read_dir("/proc").expect("the benchmark needs Linux's /proc");
            let mut pids =
                processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
            pids.find(is_it)
        };
        // The kernel shows the environment a moment after the process starts.
        Self { pid: within(START_LIMIT, find).expect("the process was started just now") }
    }

    /// This process.
    pub(crate) fn own() -> Self {
        Self { pid: std::process::id() }
    }

    /// Its usage since its start.
    pub(crate) fn usage(&self) -> Usage {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid)).expect("the process runs");
        let mut threads = BTreeMap::new();
        for task in tasks.filter_map(Result::ok) {
            // A thread may end during the scan.
            let Ok(stat) = fs::read_to_string(task.path().join("stat")) else { continue };
            let Some((name, cpu)) = name_and_cpu(&stat) else { continue };
            *threads.entry(name).or_default() += cpu;
        }
        let stat = self.read("stat");
        let (_, cpu) = name_and_cpu(&stat).expect("the kernel keeps to its format");
        Usage { cpu, threads, machine: machine() }
    }

    /// The peak resident memory, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = self.read("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
        kibibytes.map(|it: u64| it * 1_024).expect("the kernel keeps to its format")
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.pid)).expect("the process runs")
    }
}

impl Sub for Usage {
    type Output = Self;

    fn sub(mut self, earlier: Self) -> Self {
        for (name, cpu) in earlier.threads {
            self.threads.entry(name).and_modify(|it| *it = it.saturating_sub(cpu));
        }
        Self {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            threads: self.threads,
            machine: self.machine.saturating_sub(earlier.machine),
        }
    }
}

/// The second field, and the sum of the 14th and the 15th. The name may contain spaces.
fn name_and_cpu(stat: &str) -> Option<(String, Duration)> {
    let (start, rest) = stat.rsplit_once(')')?;
    let (_, name) = start.split_once('(')?;
    let mut fields = rest.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some((name.to_owned(), duration(ticks)))
}

/// The time that all cores together were not idle.
fn machine() -> Duration {
    let stat = fs::read_to_string("/proc/stat").expect("the benchmark needs Linux's /proc");
    let line = stat.lines().next().unwrap_or_default();
    let fields = line.split_whitespace().skip(1).map(|it| it.parse::<u64>().unwrap_or(0));
    // Of user, nice, system, idle, iowait, irq, softirq, steal; the remaining fields are included
    // in user.
    let busy = fields.take(8).enumerate().filter(|(at, _)| ![3, 4].contains(at));
    duration(busy.map(|(_, ticks)| ticks).sum())
}

fn duration(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / param::clock_ticks_per_second() as f64)
}
