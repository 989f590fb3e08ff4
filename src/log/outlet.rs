//! Writes lines to a descriptor that may block: a bounded queue and a thread.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Limit of the queue: about 20,000 lines. A burst at `trace` must lose nothing while the reader
/// works, and a stopped reader must not cost more memory.
const MAX_QUEUED_BYTES: usize = 4 << 20;

/// Pause before another write to a full non-blocking descriptor.
const FULL_PAUSE: Duration = Duration::from_millis(20);

/// Clones share the queue. The thread runs until the process ends.
#[derive(Clone, Debug)]
pub(super) struct Outlet(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<OutletQueue>,
    changed: Condvar,
    dropped: &'static AtomicU64,
}

#[derive(Debug, Default)]
struct OutletQueue {
    lines: VecDeque<String>,
    bytes: usize,
    writing: bool,
    unreported: u64,
}

impl Outlet {
    /// Starts the thread that writes to `to`. Counts dropped lines in `dropped`. When writing works
    /// again, `report` is called with their number; it may push a line.
    pub(super) fn open(
        to: impl Write + Send + 'static,
        dropped: &'static AtomicU64,
        report: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let queue = Mutex::new(OutletQueue::default());
        let outlet = Self(Arc::new(Shared { queue, changed: Condvar::new(), dropped }));
        let shared = Arc::clone(&outlet.0);
        let write = move || shared.write(to, &report);
        thread::Builder::new().name("log".to_owned()).spawn(write)?;
        Ok(outlet)
    }

    /// Queues a line that ends with a newline, or drops it if the queue is full.
    pub(super) fn push(&self, line: String) {
        let mut queue = self.0.queue.lock();
        if queue.bytes.saturating_add(line.len()) > MAX_QUEUED_BYTES {
            self.0.drop_line(&mut queue);
            return;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line);
        drop(queue);
        self.0.changed.notify_all();
    }

    pub(super) fn flush(&self, timeout: Duration) {
        let busy = |queue: &mut OutletQueue| queue.writing || !queue.lines.is_empty();
        self.0.changed.wait_while_for(&mut self.0.queue.lock(), busy, timeout);
    }
}

impl Shared {
    fn drop_line(&self, queue: &mut OutletQueue) {
        queue.unreported += 1;
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn next(&self) -> String {
        let mut queue = self.queue.lock();
        queue.writing = false;
        self.changed.notify_all();
        loop {
            if let Some(line) = queue.lines.pop_front() {
                queue.bytes -= line.len();
                queue.writing = true;
                return line;
            }
            self.changed.wait(&mut queue);
        }
    }

    fn write(&self, mut to: impl Write, report: &impl Fn(u64)) {
        // The last line was written in part: the next one must start on a new line.
        let mut torn = false;
        loop {
            let line = self.next();
            let line = if torn { format!("\n{line}") } else { line };
            let written = put(&mut to, line.as_bytes());
            let mut queue = self.queue.lock();
            match written {
                Ok(()) => torn = false,
                Err(begun) => {
                    torn |= begun;
                    self.drop_line(&mut queue);
                    continue;
                }
            }
            // Only with room in the queue: otherwise the report itself could be dropped.
            if queue.unreported > 0 && queue.bytes <= MAX_QUEUED_BYTES / 2 {
                let lines = std::mem::take(&mut queue.unreported);
                drop(queue);
                report(lines);
            }
        }
    }
}

/// Writes a line. The error says whether a part of it was written.
fn put(to: &mut impl Write, line: &[u8]) -> Result<(), bool> {
    let mut rest = line;
    while !rest.is_empty() {
        match to.write(rest) {
            Ok(0) => return Err(rest.len() < line.len()),
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Another process can make a shared terminal non-blocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(FULL_PAUSE),
            Err(_) => return Err(rest.len() < line.len()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A writer whose results come from the test.
    struct Scripted {
        results: Receiver<io::Result<usize>>,
        written: Sender<String>,
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Without a result it blocks, like a full pipe.
            let Ok(result) = self.results.recv() else { return Ok(bytes.len()) };
            let length = result?.min(bytes.len());
            let text = String::from_utf8(bytes[..length].to_vec()).unwrap();
            self.written.send(text).unwrap();
            Ok(length)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Rig {
        outlet: Outlet,
        results: Sender<io::Result<usize>>,
        written: Receiver<String>,
        reports: Receiver<u64>,
        dropped: &'static AtomicU64,
    }

    fn rig() -> Rig {
        let dropped = Box::leak(Box::default());
        let (results, receive_results) = channel();
        let (send_written, written) = channel();
        let (report, reports) = channel();
        let to = Scripted { results: receive_results, written: send_written };
        let outlet = Outlet::open(to, dropped, move |lines| report.send(lines).unwrap()).unwrap();
        Rig { outlet, results, written, reports, dropped }
    }

    const ALL: usize = usize::MAX;
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_line_that_cannot_be_written_is_dropped_counted_and_reported_later() {
        let rig = rig();
        for error in [ErrorKind::BrokenPipe, ErrorKind::StorageFull] {
            rig.outlet.push("lost\n".to_owned());
            rig.results.send(Err(error.into())).unwrap();
        }
        rig.outlet.flush(LONG);
        assert_eq!(rig.dropped.load(Ordering::Relaxed), 2);
        rig.outlet.push("kept\n".to_owned());
        rig.results.send(Ok(ALL)).unwrap();
        assert_eq!(rig.written.recv().unwrap(), "kept\n");
        assert_eq!(rig.reports.recv().unwrap(), 2);
    }

    #[test]
    fn a_stopped_reader_blocks_no_caller() {
        let rig = rig();
        let line = "x".repeat(MAX_QUEUED_BYTES / 4);
        // The thread holds one line, the queue four, and the others are dropped.
        rig.outlet.push("first\n".to_owned());
        rig.outlet.flush(Duration::ZERO);
        for _ in 0..10 {
            rig.outlet.push(line.clone());
        }
        rig.outlet.flush(Duration::from_millis(1));
        let dropped = rig.dropped.load(Ordering::Relaxed);
        assert!((6..=7).contains(&dropped), "{dropped}");
        // The reader works again: the queued lines are written, then the report.
        drop(rig.results);
        assert_eq!(rig.reports.recv().unwrap(), dropped);
        rig.outlet.flush(LONG);
        rig.outlet.push("after\n".to_owned());
        rig.outlet.flush(LONG);
        assert_eq!(rig.dropped.load(Ordering::Relaxed), dropped);
    }

    #[test]
    fn a_line_that_was_written_in_part_is_ended_before_the_next() {
        let rig = rig();
        rig.outlet.push("broken\n".to_owned());
        rig.outlet.push("whole\n".to_owned());
        rig.results.send(Ok(3)).unwrap();
        rig.results.send(Err(ErrorKind::StorageFull.into())).unwrap();
        rig.results.send(Err(ErrorKind::WouldBlock.into())).unwrap();
        rig.results.send(Err(ErrorKind::Interrupted.into())).unwrap();
        rig.results.send(Ok(ALL)).unwrap();
        assert_eq!(rig.written.recv().unwrap(), "bro");
        assert_eq!(rig.written.recv().unwrap(), "\nwhole\n");
        assert_eq!(rig.reports.recv().unwrap(), 1);
    }
}
