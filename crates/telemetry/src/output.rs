//! Outputs, and the bounded queue in front of each.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::format::{self, Line};
use crate::{Error, Format, Level, Output};

/// How long to wait when an output that does not block takes nothing.
const RETRY: Duration = Duration::from_millis(10);

/// An opened output.
#[derive(Debug)]
pub(crate) struct Sink(pub(crate) File);

impl Sink {
    pub(crate) fn open(output: &Output) -> Result<Self, Error> {
        // A duplicate, not Rust's own handle: a write that blocks must not
        // hold the lock that others print through.
        let (path, file) = match output {
            Output::Stderr => ("stderr".to_owned(), duplicate(io::stderr())),
            Output::Stdout => ("stdout".to_owned(), duplicate(io::stdout())),
            Output::File(path) => (
                path.display().to_string(),
                OpenOptions::new().append(true).create(true).open(path),
            ),
        };
        match file {
            Ok(file) => Ok(Self(file)),
            Err(source) => Err(Error::Open { path, source }),
        }
    }

    /// Writes all of it, however long it takes. On an error, returns what was
    /// not written.
    fn write<'a>(&mut self, mut text: &'a [u8]) -> Result<(), &'a [u8]> {
        while !text.is_empty() {
            match self.0.write(text) {
                Ok(0) => return Err(text),
                Ok(written) => text = text.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(RETRY),
                Err(_) => return Err(text),
            }
        }
        Ok(())
    }
}

fn duplicate(stream: impl AsFd) -> io::Result<File> {
    Ok(File::from(stream.as_fd().try_clone_to_owned()?))
}

/// Lines that wait for one output.
#[derive(Debug)]
pub(crate) struct Queue {
    limit_bytes: usize,
    state: Mutex<State>,
    /// There is something to write.
    filled: Condvar,
    /// Everything is written.
    emptied: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    waiting: String,
    /// Lines dropped that no line has spoken of yet.
    unreported: u64,
    writing: bool,
}

impl Queue {
    /// Opens the queue and starts the thread that empties it, which lives as
    /// long as the process.
    pub(crate) fn start(
        sink: Sink,
        limit_bytes: usize,
        format: Format,
    ) -> Result<Arc<Self>, Error> {
        let queue = Arc::new(Self {
            limit_bytes,
            state: Mutex::default(),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            dropped: AtomicU64::new(0),
        });
        let of_thread = queue.clone();
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || of_thread.write_all_to(sink, format))
            .map_err(Error::Thread)?;
        Ok(queue)
    }

    /// Queues a line, which ends in a newline, or drops it. The last line of a process is
    /// queued whatever waits already.
    pub(crate) fn push(&self, line: &str, last: bool) {
        let mut state = self.lock();
        if !last && state.waiting.len() + line.len() > self.limit_bytes {
            state.unreported += 1;
            self.dropped.fetch_add(1, Relaxed);
            return;
        }
        state.waiting.push_str(line);
        drop(state);
        self.filled.notify_one();
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Waits until everything is written, at most to the deadline. Returns
    /// whether it is.
    pub(crate) fn flush(&self, deadline: Instant) -> bool {
        let mut state = self.lock();
        while state.writing || !state.waiting.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = match self.emptied.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        true
    }

    fn write_all_to(&self, mut sink: Sink, format: Format) {
        let mut text = String::new();
        loop {
            let mut state = self.lock();
            state.writing = false;
            while state.waiting.is_empty() {
                self.emptied.notify_all();
                state = self
                    .filled
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            state.writing = true;
            text.clear();
            // The two buffers take turns.
            std::mem::swap(&mut text, &mut state.waiting);
            let missing = std::mem::take(&mut state.unreported);
            drop(state);
            if missing > 0 {
                text.push_str(&dropped_line(format, missing));
            }
            if let Err(lost) = sink.write(text.as_bytes()) {
                let lines = lost.iter().filter(|byte| **byte == b'\n').count() as u64;
                self.dropped.fetch_add(lines, Relaxed);
                self.lock().unreported += lines;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole at every point where a thread could die.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The line that says that lines are missing.
fn dropped_line(format: Format, lines: u64) -> String {
    let mut line = Line::new(format);
    line.message("log lines were dropped because the log output did not take them in time");
    line.number("dropped-lines", lines);
    format::finish(line, Level::Warn, file!(), line!())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    fn sink(stream: UnixStream) -> Sink {
        Sink(File::from(std::os::fd::OwnedFd::from(stream)))
    }

    #[test]
    fn an_output_that_takes_nothing_stalls_nobody_and_the_gap_is_told() {
        let (ours, mut reader) = UnixStream::pair().unwrap();
        let queue = Queue::start(sink(ours), 10_000, Format::Json).unwrap();
        let line = format!("{}\n", "x".repeat(999));
        // Nobody reads: fill the socket, then more than the queue holds.
        let mut pushed = 0;
        let soon = || Instant::now() + Duration::from_millis(50);
        while queue.flush(soon()) {
            assert!(pushed < 10_000, "the socket never fills");
            (0..9).for_each(|_| queue.push(&line, false));
            pushed += 9;
        }
        let begun = Instant::now();
        (0..1000).for_each(|_| queue.push(&line, false));
        pushed += 1000;
        assert!(begun.elapsed() < Duration::from_secs(5));
        let dropped = queue.dropped();
        assert!(dropped >= 990, "{dropped} dropped");
        assert!(!queue.flush(soon()));

        // The reader wakes up: what was queued arrives, and then the gap.
        let reading = thread::spawn(move || {
            let mut text = String::new();
            let mut part = [0; 4096];
            while !text.contains("log lines were dropped") {
                let len = reader.read(&mut part).unwrap();
                assert!(len > 0);
                text.push_str(std::str::from_utf8(&part[..len]).unwrap());
            }
            text
        });
        let text = reading.join().unwrap();
        let whole = text.lines().filter(|line| line.starts_with('x')).count() as u64;
        assert_eq!(whole + dropped, pushed);
        assert!(
            text.contains(&format!("\"dropped-lines\":{dropped}")),
            "{text}"
        );
    }

    #[test]
    fn an_output_that_is_gone_is_counted() {
        let (ours, reader) = UnixStream::pair().unwrap();
        drop(reader);
        let queue = Queue::start(sink(ours), 10_000, Format::Json).unwrap();
        queue.push("one\n", false);
        assert!(queue.flush(Instant::now() + Duration::from_secs(5)));
        assert_eq!(queue.dropped(), 1);
    }

    #[test]
    fn an_output_that_does_not_block_gets_every_line() {
        let (ours, mut reader) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let queue = Queue::start(sink(ours), 4 << 20, Format::Json).unwrap();
        let line = format!("{}\n", "x".repeat(999));
        for _ in 0..2000 {
            queue.push(&line, false);
        }
        let reading = thread::spawn(move || {
            let mut text = vec![0; 2_000_000];
            reader.read_exact(&mut text).unwrap();
        });
        reading.join().unwrap();
        assert!(queue.flush(Instant::now() + Duration::from_secs(5)));
        assert_eq!(queue.dropped(), 0);
    }
}
