//! One line on a terminal that says how far a run is; on anything else a line a run.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_millis(200);
const WIDTH: usize = 24;

/// Where a benchmark is.
pub(crate) struct Progress {
    terminal: bool,
    title: String,
    load: Option<(Instant, Duration)>,
    shown: Option<Instant>,
}

impl Progress {
    pub(crate) fn new() -> Progress {
        Progress {
            terminal: std::io::stderr().is_terminal(),
            title: String::new(),
            load: None,
            shown: None,
        }
    }

    /// A new run.
    pub(crate) fn title(&mut self, title: String) {
        self.load = None;
        if !self.terminal {
            eprintln!("{title}");
        }
        self.title = title;
    }

    /// A step of a run, without a length.
    pub(crate) fn say(&mut self, what: &str) {
        self.load = None;
        if self.terminal {
            self.line(&format!("{}: {what}", self.title));
        }
    }

    /// The load begins.
    pub(crate) fn begin(&mut self, length: Duration) {
        self.load = Some((Instant::now(), length));
    }

    /// Which run it is.
    pub(crate) fn run(&self) -> &str {
        &self.title
    }

    /// Whether it is time to show something new.
    pub(crate) fn due(&self) -> bool {
        self.terminal && self.shown.is_none_or(|at| at.elapsed() >= EVERY)
    }

    /// Shows how many were asked for, have nodes, and are not done.
    pub(crate) fn show(&mut self, asked: usize, bound: usize, unfinished: usize) {
        let bar = self.bar();
        self.line(&format!(
            "{}: {bar}, {asked} asked for, {bound} bound, {unfinished} not done",
            self.title
        ));
        self.shown = Some(Instant::now());
    }

    /// Shows how much of the time is over.
    pub(crate) fn show_time(&mut self) {
        let bar = self.bar();
        self.line(&format!("{}: {bar}", self.title));
        self.shown = Some(Instant::now());
    }

    fn bar(&self) -> String {
        match self.load {
            None => "warming up".to_owned(),
            Some((began, length)) => bar(began.elapsed(), length),
        }
    }

    /// A line that stays.
    pub(crate) fn done(&mut self, line: &str) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
        eprintln!("{line}");
    }

    fn line(&self, text: &str) {
        eprint!("\r\x1b[K{text}");
        let _ = std::io::stderr().flush();
    }
}

fn bar(done: Duration, whole: Duration) -> String {
    let share = (done.as_secs_f64() / whole.as_secs_f64().max(1e-9)).min(1.0);
    let full = (share * WIDTH as f64) as usize;
    format!(
        "[{}{}] {:.0} of {:.0} s",
        "#".repeat(full),
        "-".repeat(WIDTH - full),
        done.as_secs_f64(),
        whole.as_secs_f64()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_never_overflows() {
        let second = Duration::from_secs(1);
        assert!(bar(second * 3, second).contains(&"#".repeat(WIDTH)));
        assert!(bar(Duration::ZERO, Duration::ZERO).contains(&"-".repeat(WIDTH)));
    }
}
