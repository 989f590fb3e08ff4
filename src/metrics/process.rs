//! The standard process metrics of Prometheus.

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProcessFigures {
    /// User and system time.
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    pub virtual_bytes: u64,
    pub open_fds: u64,
    /// `None` if unlimited.
    pub max_fds: Option<u64>,
    pub threads: u64,
    /// Since 1970.
    pub start_seconds: f64,
}

impl ProcessFigures {
    /// `None` on systems other than Linux, or if /proc cannot be read.
    #[must_use]
    pub fn read() -> Option<Self> {
        #[cfg(target_os = "linux")]
        return linux::read().ok();
        #[cfg(not(target_os = "linux"))]
        None
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use procfs::process::{LimitValue, Process};

    use super::ProcessFigures;

    #[expect(clippy::cast_precision_loss, reason = "ticks are exact up to 2^53")]
    pub(super) fn read() -> procfs::ProcResult<ProcessFigures> {
        let process = Process::myself()?;
        let stat = process.stat()?;
        let ticks = procfs::ticks_per_second() as f64;
        let max_fds = match process.limits()?.max_open_files.soft_limit {
            LimitValue::Value(most) => Some(most),
            LimitValue::Unlimited => None,
        };
        Ok(ProcessFigures {
            cpu_seconds: (stat.utime + stat.stime) as f64 / ticks,
            resident_bytes: stat.rss * procfs::page_size(),
            virtual_bytes: stat.vsize,
            open_fds: process.fd_count()? as u64,
            max_fds,
            threads: u64::try_from(stat.num_threads).unwrap_or_default(),
            start_seconds: procfs::boot_time_secs()? as f64 + stat.starttime as f64 / ticks,
        })
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_this_process_can_be_read() {
        let _open = std::fs::File::open("/proc/self/stat").unwrap();
        let figures = ProcessFigures::read().unwrap();
        assert!(figures.resident_bytes > 1 << 20 && figures.threads >= 1, "{figures:?}");
        assert!(figures.open_fds > 3 && figures.start_seconds > 1.6e9, "{figures:?}");
    }
}
