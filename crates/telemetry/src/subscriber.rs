//! The subscriber: each event becomes a line in every queue.

use std::error::Error;
use std::fmt::{Debug, Write};
use std::sync::Arc;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::format::{self, Line};
use crate::output::Queue;
use crate::repeats::Repeats;
use crate::{FATAL, Format, LAST_WORDS, Level, PANIC, Strings};

/// Crates whose own events are for their developers: of these only warnings
/// and errors are written, and repetitions of those are counted instead.
const FOREIGN: &[&str] = &[
    "h2",
    "hyper",
    "hyper_util",
    "mio",
    "rustls",
    "tokio",
    "tokio_rustls",
    "tokio_util",
    "tonic",
    "tower",
];

/// Writes events as lines. Spans are ignored: no line shows them.
#[derive(Debug)]
pub(crate) struct LineSubscriber {
    level: Level,
    format: Format,
    queues: Arc<[Arc<Queue>]>,
    repeats: Repeats,
}

impl LineSubscriber {
    pub(crate) fn new(level: Level, format: Format, queues: Arc<[Arc<Queue>]>) -> Self {
        Self {
            level,
            format,
            queues,
            repeats: Repeats::default(),
        }
    }
}

/// How severe an event is; `None` for traces.
fn severity(metadata: &Metadata<'_>) -> Option<Level> {
    match (metadata.target(), *metadata.level()) {
        (FATAL, _) => Some(Level::Fatal),
        (PANIC, _) => Some(Level::Panic),
        (_, tracing::Level::ERROR) => Some(Level::Error),
        (_, tracing::Level::WARN) => Some(Level::Warn),
        (_, tracing::Level::INFO) => Some(Level::Info),
        (_, tracing::Level::DEBUG) => Some(Level::Debug),
        _ => None,
    }
}

fn is_foreign(target: &str) -> bool {
    let krate = target.split("::").next().unwrap_or(target);
    FOREIGN.contains(&krate)
}

impl Subscriber for LineSubscriber {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let Some(severity) = severity(metadata) else {
            return false;
        };
        metadata.is_event()
            && severity >= self.level
            && (severity >= Level::Warn || !is_foreign(metadata.target()))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match self.level {
            Level::Debug => LevelFilter::DEBUG,
            Level::Info => LevelFilter::INFO,
            Level::Warn => LevelFilter::WARN,
            Level::Error | Level::Panic | Level::Fatal => LevelFilter::ERROR,
        })
    }

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let Some(severity) = severity(metadata) else {
            return;
        };
        let mut visitor = Visitor(Line::new(self.format));
        event.record(&mut visitor);
        if is_foreign(metadata.target()) {
            let place = metadata.callsite();
            let Some(suppressed) = self.repeats.allow(place, &visitor.0.words()) else {
                return;
            };
            if suppressed > 0 {
                visitor.0.number("suppressed", suppressed);
            }
        }
        let (file, at) = (
            metadata.file().unwrap_or("unknown"),
            metadata.line().unwrap_or(0),
        );
        let text = format::finish(visitor.0, severity, file, at);
        let last = severity == Level::Fatal;
        for queue in self.queues.iter() {
            queue.push(&text, last);
        }
        if last {
            crate::flush(&self.queues, LAST_WORDS);
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Visitor(Line);

impl Visitor {
    fn text(&mut self, field: &Field, text: &str) {
        if field.name() == "message" {
            self.0.message(text);
        } else {
            self.0.string(field.name(), text);
        }
    }
}

impl Visit for Visitor {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.number(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.number(field.name(), value);
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.0.number(field.name(), value);
    }

    fn record_u128(&mut self, field: &Field, value: u128) {
        self.0.number(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.number(field.name(), value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.float(field.name(), value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        match value.downcast_ref::<Strings>() {
            Some(strings) => self.0.strings(field.name(), strings),
            None => self.text(field, &value.to_string()),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut text = String::new();
        let _ = write!(text, "{value:?}");
        self.text(field, &text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Sink;
    use crate::{GoDuration, Output};
    use std::time::{Duration, Instant};

    /// What is logged at this level, as parsed JSON.
    fn logged(level: Level, log: impl FnOnce()) -> Vec<serde_json::Value> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let sink = Sink::open(&Output::File(path.clone())).unwrap();
        let queue = Queue::start(sink, 1 << 20, Format::Json).unwrap();
        let subscriber = LineSubscriber::new(level, Format::Json, vec![queue.clone()].into());
        tracing::subscriber::with_default(subscriber, log);
        assert!(queue.flush(Instant::now() + Duration::from_secs(5)));
        let text = std::fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn fields_keep_their_names_and_types() {
        let lines = logged(Level::Info, || {
            let urls = Strings::new(["http://127.0.0.1:2379"]);
            let error = std::io::Error::other("no");
            tracing::info!(
                "data-dir" = %"d",
                keys = 5u64,
                delta = -1,
                ok = true,
                took = %GoDuration(Duration::from_micros(1500)),
                "listen-client-urls" = urls.field(),
                error = &error as &dyn Error,
                "ready to serve {}",
                "client requests"
            );
        });
        let [line] = lines.as_slice() else {
            panic!("{lines:?}")
        };
        assert_eq!(line["level"], "info");
        assert_eq!(line["msg"], "ready to serve client requests");
        assert!(
            line["caller"]
                .as_str()
                .unwrap()
                .starts_with("telemetry/subscriber.rs:")
        );
        assert_eq!(line["data-dir"], "d");
        assert_eq!(line["keys"], 5);
        assert_eq!(line["delta"], -1);
        assert_eq!(line["ok"], true);
        assert_eq!(line["took"], "1.5ms");
        assert_eq!(line["listen-client-urls"][0], "http://127.0.0.1:2379");
        assert_eq!(line["error"], "no");
    }

    #[test]
    fn what_another_crate_repeats_is_one_line() {
        let lines = logged(Level::Info, || {
            for n in 0..1_000 {
                // One place, whose words the client chooses; another whose words stay the same.
                tracing::warn!(target: "h2::proto::ping_pong", "a PING ack {n} never sent");
                tracing::warn!(target: "h2::proto::streams", reason = "r", "too many resets");
                tracing::warn!("our own");
            }
        });
        let of = |text: &str| {
            let with = |line: &&serde_json::Value| line["msg"].as_str().unwrap().contains(text);
            lines.iter().filter(with).count()
        };
        assert_eq!(of("too many resets"), 1);
        assert!((1..=8).contains(&of("PING ack")), "{}", of("PING ack"));
        assert_eq!(
            of("our own"),
            1_000,
            "those are throttled where they are written"
        );
    }

    #[test]
    fn a_fatal_line_is_written_when_the_event_returns() {
        use std::io::Read;
        use std::os::unix::net::UnixStream;
        let (ours, mut reader) = UnixStream::pair().unwrap();
        let file = std::fs::File::from(std::os::fd::OwnedFd::from(ours));
        let queue = Queue::start(Sink(file), 10_000, Format::Json).unwrap();
        // Nobody reads yet: what comes before it fills the socket, and then the queue.
        let line = format!("{}\n", "x".repeat(999));
        while queue.flush(Instant::now() + Duration::from_millis(50)) {
            (0..9).for_each(|_| queue.push(&line, false));
        }
        while queue.dropped() == 0 {
            queue.push(&line, false);
        }
        let (begun, delay) = (Instant::now(), Duration::from_millis(300));
        let reading = std::thread::spawn(move || {
            std::thread::sleep(delay);
            let mut text = String::new();
            let mut part = [0; 4096];
            while !text.contains("\"msg\":\"the end\"") {
                let len = reader.read(&mut part).unwrap();
                text.push_str(std::str::from_utf8(&part[..len]).unwrap());
            }
        });
        let subscriber =
            LineSubscriber::new(Level::Fatal, Format::Json, vec![queue.clone()].into());
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(target: FATAL, "the end");
        });
        assert!(begun.elapsed() >= delay / 2, "the socket was full");
        assert!(queue.flush(Instant::now()), "nothing waits any more");
        reading.join().unwrap();
    }

    #[test]
    fn levels_let_through_what_is_as_severe() {
        let all = || {
            tracing::trace!("t");
            tracing::debug!("d");
            tracing::debug!(target: "h2::codec", "noise");
            tracing::warn!(target: "h2::codec", "w2");
            tracing::info!("i");
            tracing::warn!("w");
            tracing::error!("e");
            tracing::error!(target: PANIC, "p");
            tracing::error!(target: FATAL, "f");
        };
        let levels = |level| {
            let lines = logged(level, all);
            lines
                .iter()
                .map(|line| line["level"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        let expected = ["debug", "warn", "info", "warn", "error", "panic", "fatal"];
        assert_eq!(levels(Level::Debug), expected);
        assert_eq!(levels(Level::Info), expected[1..]);
        assert_eq!(
            levels(Level::Warn),
            ["warn", "warn", "error", "panic", "fatal"]
        );
        assert_eq!(levels(Level::Error), expected[4..]);
        assert_eq!(levels(Level::Panic), expected[5..]);
        assert_eq!(levels(Level::Fatal), expected[6..]);
    }
}
