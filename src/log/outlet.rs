//! Lines to a descriptor that may not take them: a thread that writes, and a bounded queue before it.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How much may wait: some twenty thousand lines. A burst at `trace` must not lose a line while the
/// reader is well, and a reader that is stopped must not cost more memory than this.
const MOST_BYTES: usize = 4 << 20;

/// How long a descriptor that does not block is left alone when it is full.
const FULL_PAUSE: Duration = Duration::from_millis(20);

/// Takes lines and never blocks. Clones share the queue; the thread lives as long as the process.
#[derive(Clone, Debug)]
pub(super) struct Outlet(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    dropped: &'static AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<String>,
    bytes: usize,
    /// A line was taken from the queue and is not written yet.
    writing: bool,
    /// Lines that were dropped since the last report.
    unreported: u64,
}

impl Outlet {
    /// Begins to write to `to`. Every dropped line counts in `dropped`; `report` gets their number
    /// when lines are taken again, and may push a line itself.
    pub(super) fn open(
        to: impl Write + Send + 'static,
        dropped: &'static AtomicU64,
        report: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let state = Mutex::new(State::default());
        let outlet = Self(Arc::new(Shared { state, changed: Condvar::new(), dropped }));
        let shared = Arc::clone(&outlet.0);
        let write = move || shared.write(to, &report);
        thread::Builder::new().name("log".to_owned()).spawn(write)?;
        Ok(outlet)
    }

    /// Hands over a line, its end included. One for which there is no room is dropped.
    pub(super) fn push(&self, line: String) {
        let mut state = self.0.lock();
        if state.bytes.saturating_add(line.len()) > MOST_BYTES {
            self.0.drop_line(&mut state);
            return;
        }
        state.bytes += line.len();
        state.waiting.push_back(line);
        drop(state);
        self.0.changed.notify_all();
    }

    /// Waits until all that was handed over is written or dropped, at most for so long.
    pub(super) fn flush(&self, within: Duration) {
        let busy = |state: &mut State| state.writing || !state.waiting.is_empty();
        // Whether it is or not, there is nobody to say so to.
        drop(self.0.changed.wait_timeout_while(self.0.lock(), within, busy));
    }
}

impl Shared {
    /// A queue is whole whatever panicked beside it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_line(&self, state: &mut State) {
        state.unreported += 1;
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn next(&self) -> String {
        let mut state = self.lock();
        state.writing = false;
        self.changed.notify_all();
        loop {
            if let Some(line) = state.waiting.pop_front() {
                state.bytes -= line.len();
                state.writing = true;
                return line;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn write(&self, mut to: impl Write, report: &impl Fn(u64)) {
        // A line broke off: the next one must not become its end.
        let mut torn = false;
        loop {
            let line = self.next();
            let line = if torn { format!("\n{line}") } else { line };
            let written = put(&mut to, line.as_bytes());
            let mut state = self.lock();
            match written {
                Ok(()) => torn = false,
                Err(begun) => {
                    torn |= begun;
                    self.drop_line(&mut state);
                    continue;
                }
            }
            // With room for it: while lines are dropped for want of room, the report would be too.
            if state.unreported > 0 && state.bytes <= MOST_BYTES / 2 {
                let lines = std::mem::take(&mut state.unreported);
                drop(state);
                report(lines);
            }
        }
    }
}

/// Writes a line; where it cannot, whether a part of it is written.
fn put(to: &mut impl Write, line: &[u8]) -> Result<(), bool> {
    let mut rest = line;
    while !rest.is_empty() {
        match to.write(rest) {
            Ok(0) => return Err(rest.len() < line.len()),
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Somebody has made it not block, as the other end of a terminal may: then we wait.
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

    /// Does with each write what the test says, and shows what was written.
    struct Scripted {
        answers: Receiver<io::Result<usize>>,
        written: Sender<String>,
    }

    impl Write for Scripted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Without an answer it hangs, as a full pipe does.
            let Ok(answer) = self.answers.recv() else { return Ok(bytes.len()) };
            let taken = answer?.min(bytes.len());
            let text = String::from_utf8(bytes[..taken].to_vec()).unwrap();
            self.written.send(text).unwrap();
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Rig {
        outlet: Outlet,
        answers: Sender<io::Result<usize>>,
        written: Receiver<String>,
        reports: Receiver<u64>,
        dropped: &'static AtomicU64,
    }

    fn rig() -> Rig {
        let dropped = Box::leak(Box::default());
        let (answers, asked) = channel();
        let (shown, written) = channel();
        let (say, reports) = channel();
        let to = Scripted { answers: asked, written: shown };
        let outlet = Outlet::open(to, dropped, move |lines| say.send(lines).unwrap()).unwrap();
        Rig { outlet, answers, written, reports, dropped }
    }

    const ALL: usize = usize::MAX;
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_line_that_cannot_be_written_is_dropped_counted_and_reported_with_the_next_that_can() {
        let rig = rig();
        for error in [ErrorKind::BrokenPipe, ErrorKind::StorageFull] {
            rig.outlet.push("lost\n".to_owned());
            rig.answers.send(Err(error.into())).unwrap();
        }
        rig.outlet.flush(LONG);
        assert_eq!(rig.dropped.load(Ordering::Relaxed), 2);
        rig.outlet.push("kept\n".to_owned());
        rig.answers.send(Ok(ALL)).unwrap();
        assert_eq!(rig.written.recv().unwrap(), "kept\n");
        assert_eq!(rig.reports.recv().unwrap(), 2);
    }

    #[test]
    fn nobody_waits_for_a_reader_that_has_stopped() {
        let rig = rig();
        let line = "x".repeat(MOST_BYTES / 4);
        // One is in the hands of the thread, four wait, and the others find no room.
        rig.outlet.push("first\n".to_owned());
        rig.outlet.flush(Duration::ZERO);
        for _ in 0..10 {
            rig.outlet.push(line.clone());
        }
        rig.outlet.flush(Duration::from_millis(1));
        let dropped = rig.dropped.load(Ordering::Relaxed);
        assert!((6..=7).contains(&dropped), "{dropped}");
        // It reads again: what has waited comes in order, and then how many are missing.
        drop(rig.answers);
        assert_eq!(rig.reports.recv().unwrap(), dropped);
        rig.outlet.flush(LONG);
        rig.outlet.push("after\n".to_owned());
        rig.outlet.flush(LONG);
        assert_eq!(rig.dropped.load(Ordering::Relaxed), dropped);
    }

    #[test]
    fn a_line_that_broke_off_is_not_the_beginning_of_the_next() {
        let rig = rig();
        rig.outlet.push("broken\n".to_owned());
        rig.outlet.push("whole\n".to_owned());
        rig.answers.send(Ok(3)).unwrap();
        rig.answers.send(Err(ErrorKind::StorageFull.into())).unwrap();
        rig.answers.send(Err(ErrorKind::WouldBlock.into())).unwrap();
        rig.answers.send(Err(ErrorKind::Interrupted.into())).unwrap();
        rig.answers.send(Ok(ALL)).unwrap();
        assert_eq!(rig.written.recv().unwrap(), "bro");
        assert_eq!(rig.written.recv().unwrap(), "\nwhole\n");
        assert_eq!(rig.reports.recv().unwrap(), 1);
    }
}
