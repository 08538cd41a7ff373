//! What a process used, from `/proc`.

use std::fs;
use std::time::Duration;

/// Processor time of a process since it started. The kernel scales it to the exact run time,
/// but reports it in ticks of 10 ms: spans should be seconds long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cpu {
    pub(crate) user: Duration,
    pub(crate) kernel: Duration,
}

impl Cpu {
    /// What was used between an `earlier` reading and this one.
    pub(crate) fn since(self, earlier: Cpu) -> Cpu {
        Cpu {
            user: self.user.saturating_sub(earlier.user),
            kernel: self.kernel.saturating_sub(earlier.kernel),
        }
    }
}

/// Processor time of `pid`; none when there is no such process.
pub(crate) fn cpu(pid: u32) -> Option<Cpu> {
    parse_stat(
        &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?,
        rustix::param::clock_ticks_per_second(),
    )
}

fn parse_stat(stat: &str, ticks_per_second: u64) -> Option<Cpu> {
    // The command's name, in parentheses, may hold spaces and parentheses of its own.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let mut ticks = |skip| -> Option<Duration> {
        let ticks: u64 = fields.nth(skip)?.parse().ok()?;
        Some(Duration::from_nanos(
            ticks * (1_000_000_000 / ticks_per_second),
        ))
    };
    let user = ticks(11)?;
    let kernel = ticks(0)?;
    Some(Cpu { user, kernel })
}

/// Resident memory of `pid` in bytes: now, and the most it ever was.
pub(crate) fn memory(pid: u32) -> Option<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some((parse_kib(&status, "VmRSS:")?, parse_kib(&status, "VmHWM:")?))
}

fn parse_kib(status: &str, name: &str) -> Option<u64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// Processes that wanted a processor, on average over the last minute.
pub(crate) fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg")
        .ok()?
        .split_ascii_whitespace()
        .next()?
        .parse()
        .ok()
}

/// Model of the processor, number of processors, kernel release.
pub(crate) fn machine() -> String {
    let model = fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| "unknown processor".into());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{cores} cores ({model}), Linux {}", release.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_a_name_with_parentheses() {
        let stat = "7 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0";
        let cpu = parse_stat(stat, 100).unwrap();
        assert_eq!(cpu.user, Duration::from_millis(1_500));
        assert_eq!(cpu.kernel, Duration::from_millis(500));
    }

    #[test]
    fn this_process_uses_time_and_memory() {
        let me = std::process::id();
        let before = cpu(me).unwrap();
        let start = std::time::Instant::now();
        while start.elapsed() < Duration::from_millis(100) {
            std::hint::black_box(0);
        }
        let used = cpu(me).unwrap().since(before);
        assert!(
            used.user + used.kernel >= Duration::from_millis(20),
            "{used:?}"
        );
        let (now, peak) = memory(me).unwrap();
        assert!(now > 100_000 && peak >= now / 2);
        assert!(cpu(u32::MAX).is_none());
        assert!(load_average().unwrap() >= 0.0);
    }
}
