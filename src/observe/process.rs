//! Metrics of this process from the operating system, and the build information.
//!
//! All values are read from `/proc` on each scrape; these reads never access a disk. Where there is
//! no `/proc`, the metrics of the process are absent, and nothing else changes. proc_pid_stat(5)
//! describes the fields of `/proc/self/stat`.

use std::{fmt, fs};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Unit;
use rustix::param;

use crate::observe::metrics::Metrics;

/// Queries the operating system on each scrape.
#[derive(Debug)]
struct Process;

/// The relevant fields of `/proc/self/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// CPU time in user mode and in the kernel, in ticks.
    cpu: u64,
    threads: u64,
    /// When the process started, in ticks since boot.
    started: u64,
    /// Resident memory, in pages.
    resident: u64,
}

/// The commit that this program was built from, if the build knew it.
pub const COMMIT: &str = env!("AGORA_RTM_BRIDGE_BUILT_FROM");

/// Registers the metrics of this process and the build information.
///
/// `librdkafka` is the version that the library reports.
pub fn register(metrics: &mut Metrics, librdkafka: &str) {
    let labels =
        [("version", env!("CARGO_PKG_VERSION")), ("commit", COMMIT), ("librdkafka", librdkafka)]
            .map(|(name, value)| (name, value.to_owned()));
    let build = Info::new(labels);
    metrics.registry().register("build", "Build information", build);
    metrics.process_registry().register_collector(Box::new(Process));
}

// === impl Process ===

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(files) = open_files() {
            gauge(&mut encoder, "process_open_fds", "Open file descriptors.", None, files)?;
        }
        let stat = fs::read_to_string("/proc/self/stat").ok();
        let Some(stat) = stat.as_deref().and_then(Stat::parse) else { return Ok(()) };

        let help = "CPU time in user mode and in the kernel.";
        let unit = Some(&Unit::Seconds);
        let cpu = encoder.encode_descriptor("process_cpu", help, unit, MetricType::Counter)?;
        ConstCounter::new(seconds(stat.cpu)).encode(cpu)?;

        gauge(&mut encoder, "process_threads", "Threads.", None, stat.threads)?;

        let help = "Resident memory.";
        let bytes = stat.resident.saturating_mul(param::page_size() as u64);
        gauge(&mut encoder, "process_resident_memory", help, Some(Unit::Bytes), bytes)?;

        let boot = fs::read_to_string("/proc/stat").ok();
        let Some(boot) = boot.as_deref().and_then(boot_time) else { return Ok(()) };
        let help = "When the process started, in seconds since 1970.";
        let start = boot as f64 + seconds(stat.started);
        gauge(&mut encoder, "process_start_time", help, Some(Unit::Seconds), start)
    }
}

fn gauge<N>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    value: N,
) -> fmt::Result
where
    N: EncodeGaugeValue,
    ConstGauge<N>: EncodeMetric,
{
    let gauge = encoder.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
    ConstGauge::new(value).encode(gauge)
}

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / param::clock_ticks_per_second() as f64
}

/// Number of open file descriptors, without the one used for listing them.
fn open_files() -> Option<u64> {
    let listed = fs::read_dir("/proc/self/fd").ok()?.count();
    Some((listed as u64).saturating_sub(1))
}

/// When the machine booted, in seconds since 1970.
fn boot_time(proc_stat: &str) -> Option<u64> {
    proc_stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

// === impl Stat ===

impl Stat {
    fn parse(line: &str) -> Option<Self> {
        // The second field is the program's name in parentheses, and may itself contain spaces and
        // parentheses. So fields are counted from the last parenthesis, after which the third field
        // begins.
        let (_, rest) = line.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu: field(14)?.saturating_add(field(15)?),
            threads: field(20)?,
            started: field(22)?,
            resident: field(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_parentheses_does_not_shift_the_fields() {
        let rest = "S 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25";
        for name in ["bridge", "a) b (c", "x) S 1 2"] {
            assert_eq!(
                Stat::parse(&format!("1 ({name}) {rest}")),
                Some(Stat { cpu: 14 + 15, threads: 20, started: 22, resident: 24 }),
                "{name}"
            );
        }
        assert_eq!(Stat::parse("1 (bridge) S 3 4"), None);
    }

    #[test]
    fn the_build_and_this_process_are_in_the_metrics() {
        let mut metrics = Metrics::new();
        register(&mut metrics, "2.12.1");
        let text = metrics.text();
        let build = format!(
            "agora_rtm_bridge_build_info{{version=\"{}\",commit=\"{COMMIT}\",librdkafka=\"2.12.1\"}} 1\n",
            env!("CARGO_PKG_VERSION")
        );
        assert!(text.contains(&build), "{text}");
        for name in [
            "process_cpu_seconds_total",
            "process_resident_memory_bytes",
            "process_open_fds",
            "process_start_time_seconds",
            "process_threads",
        ] {
            let start = format!("{name} ");
            let value = text.lines().find_map(|line| line.strip_prefix(&start));
            let value: f64 =
                value.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap();
            assert!(value > 0.0 || name == "process_cpu_seconds_total", "{name} {value}");
        }
    }
}
