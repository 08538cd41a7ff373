//! The families of series, and their text.
//!
//! A family is declared once, with its help and its samples; the encoder and
//! the reference page both walk the same list.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::cells::{Block, Counter, Gauge, Histogram, Run, Shape};
use crate::process::ProcessStats;
use crate::scrape::ScrapeInput;

/// Cells in a block; a longer run gets a block of its own.
const BLOCK_CELLS: usize = 512;

/// Where a series' name comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// etcd 3.7 has a series of this name, type and labels, and it means the same.
    Etcd,
    /// etcd's name, but orlop's nearest equivalent, or a constant; the help says which.
    Equivalent,
    /// orlop's own.
    Orlop,
}

/// A family's type, as in its `# TYPE` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Buckets, a sum and a count.
    Histogram,
}

impl Kind {
    /// The word in the text format.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// The result of the last run of one health check; unset until it ran.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastResult(Arc<AtomicU64>);

impl LastResult {
    pub(crate) fn set(&self, success: bool) {
        self.0.store(if success { 2 } else { 1 }, Relaxed);
    }

    fn get(&self) -> Option<f64> {
        match self.0.load(Relaxed) {
            0 => None,
            1 => Some(0.0),
            _ => Some(1.0),
        }
    }
}

/// Where a sample's value is read at a scrape.
#[derive(Debug)]
pub(crate) enum Source {
    Cell(Run),
    /// A cell read as a signed number.
    Signed(Run),
    /// As `Cell`, but absent until it is not zero, as in etcd, whose labelled
    /// series appear when first used.
    UsedCell(Run),
    Histogram(Histogram),
    /// As `Histogram`, but absent until something was observed.
    UsedHistogram(Histogram),
    Last(LastResult),
    Input(fn(&ScrapeInput) -> f64),
    Process(fn(&ProcessStats) -> Option<f64>),
    Constant(f64),
}

#[derive(Debug)]
struct Sample {
    /// `name="value",...`, empty without labels.
    labels: String,
    source: Source,
}

/// All series of one name.
#[derive(Debug)]
pub struct Family {
    /// The name.
    pub name: &'static str,
    /// The type.
    pub kind: Kind,
    /// Label names, without a histogram's `le`.
    pub labels: &'static [&'static str],
    /// What it means, in one sentence or two.
    pub help: &'static str,
    /// Whose name it is.
    pub origin: Origin,
    samples: Vec<Sample>,
}

/// Collects families while `Metrics` is built.
#[derive(Debug)]
pub(crate) struct Registry {
    shards: usize,
    block: Arc<Block>,
    used: usize,
    families: BTreeMap<&'static str, Family>,
}

/// A family being declared.
pub(crate) struct Declare<'a> {
    registry: &'a mut Registry,
    family: Family,
}

impl Registry {
    pub(crate) fn new(shards: usize) -> Self {
        let block = Arc::new(Block::new(BLOCK_CELLS, shards));
        Self {
            shards,
            block,
            used: 0,
            families: BTreeMap::new(),
        }
    }

    /// `len` adjacent cells.
    pub(crate) fn run(&mut self, len: usize) -> Run {
        if self.used + len > BLOCK_CELLS {
            if len > BLOCK_CELLS {
                return Run {
                    block: Arc::new(Block::new(len, self.shards)),
                    first: 0,
                };
            }
            self.block = Arc::new(Block::new(BLOCK_CELLS, self.shards));
            self.used = 0;
        }
        let first = self.used as u32;
        self.used += len;
        Run {
            block: self.block.clone(),
            first,
        }
    }

    pub(crate) fn histogram_of(&mut self, shape: &Arc<Shape>) -> Histogram {
        let run = self.run(shape.bounds.len() + 2);
        Histogram {
            shape: shape.clone(),
            run,
        }
    }

    /// Declares a family; nothing is kept until `Declare::done`.
    pub(crate) fn family(
        &mut self,
        name: &'static str,
        kind: Kind,
        labels: &'static [&'static str],
        origin: Origin,
        help: &'static str,
    ) -> Declare<'_> {
        let family = Family {
            name,
            kind,
            labels,
            help,
            origin,
            samples: Vec::new(),
        };
        Declare {
            registry: self,
            family,
        }
    }

    pub(crate) fn counter(
        &mut self,
        name: &'static str,
        origin: Origin,
        help: &'static str,
    ) -> Counter {
        let run = self.run(1);
        self.family(name, Kind::Counter, &[], origin, help)
            .one(Source::Cell(run.clone()));
        Counter(run)
    }

    pub(crate) fn gauge(
        &mut self,
        name: &'static str,
        origin: Origin,
        help: &'static str,
    ) -> Gauge {
        let run = self.run(1);
        self.family(name, Kind::Gauge, &[], origin, help)
            .one(Source::Signed(run.clone()));
        Gauge(run)
    }

    pub(crate) fn histogram(
        &mut self,
        name: &'static str,
        origin: Origin,
        shape: &Arc<Shape>,
        help: &'static str,
    ) -> Histogram {
        let histogram = self.histogram_of(shape);
        self.family(name, Kind::Histogram, &[], origin, help)
            .one(Source::Histogram(histogram.clone()));
        histogram
    }

    /// A gauge without labels that is read from the input of a scrape.
    pub(crate) fn input(
        &mut self,
        name: &'static str,
        origin: Origin,
        read: fn(&ScrapeInput) -> f64,
        help: &'static str,
    ) {
        self.family(name, Kind::Gauge, &[], origin, help)
            .one(Source::Input(read));
    }

    /// A series read from `/proc` at a scrape; absent where `/proc` does not say.
    pub(crate) fn process(
        &mut self,
        name: &'static str,
        kind: Kind,
        read: fn(&ProcessStats) -> Option<f64>,
        help: &'static str,
    ) {
        self.family(name, kind, &[], Origin::Etcd, help)
            .one(Source::Process(read));
    }

    /// Families by name.
    pub(crate) fn finish(self) -> Vec<Family> {
        self.families.into_values().collect()
    }
}

impl Declare<'_> {
    /// Adds the sample with these label values, in the order of the family's labels.
    pub(crate) fn sample(&mut self, values: &[&str], source: Source) {
        let mut labels = String::new();
        for (name, value) in self.family.labels.iter().zip(values) {
            if !labels.is_empty() {
                labels.push(',');
            }
            labels.push_str(name);
            labels.push_str("=\"");
            for c in value.chars() {
                match c {
                    '\\' => labels.push_str("\\\\"),
                    '"' => labels.push_str("\\\""),
                    '\n' => labels.push_str("\\n"),
                    c => labels.push(c),
                }
            }
            labels.push('"');
        }
        self.family.samples.push(Sample { labels, source });
    }

    /// The family has one sample, without labels.
    pub(crate) fn one(mut self, source: Source) {
        self.sample(&[], source);
        self.done();
    }

    /// Keeps the family.
    pub(crate) fn done(self) {
        self.registry.families.insert(self.family.name, self.family);
    }

    /// `len` adjacent cells for this family's samples.
    pub(crate) fn run(&mut self, len: usize) -> Run {
        self.registry.run(len)
    }

    pub(crate) fn histogram_of(&mut self, shape: &Arc<Shape>) -> Histogram {
        self.registry.histogram_of(shape)
    }
}

/// Writes all families in the text format, version 0.0.4.
pub(crate) fn encode(families: &[Family], input: &ScrapeInput, process: &ProcessStats) -> String {
    let mut out = String::with_capacity(256 * 1024);
    for family in families {
        let body = out.len();
        let _ = writeln!(out, "# HELP {} {}", family.name, family.help);
        let _ = writeln!(out, "# TYPE {} {}", family.name, family.kind.name());
        let header_end = out.len();
        for sample in &family.samples {
            sample.encode(family.name, input, process, &mut out);
        }
        // A family without samples has no header either.
        if out.len() == header_end {
            out.truncate(body);
        }
    }
    out
}

impl Sample {
    fn encode(&self, name: &str, input: &ScrapeInput, process: &ProcessStats, out: &mut String) {
        let value = match &self.source {
            Source::Cell(run) => run.sum(0) as f64,
            Source::Signed(run) => run.sum(0).cast_signed() as f64,
            Source::UsedCell(run) => match run.sum(0) {
                0 => return,
                value => value as f64,
            },
            Source::Histogram(histogram) => return self.encode_histogram(name, histogram, out),
            Source::UsedHistogram(histogram) => {
                if histogram.count() > 0 {
                    self.encode_histogram(name, histogram, out);
                }
                return;
            }
            Source::Last(last) => match last.get() {
                Some(value) => value,
                None => return,
            },
            Source::Input(read) => read(input),
            Source::Process(read) => match read(process) {
                Some(value) => value,
                None => return,
            },
            Source::Constant(value) => *value,
        };
        out.push_str(name);
        if !self.labels.is_empty() {
            out.push('{');
            out.push_str(&self.labels);
            out.push('}');
        }
        out.push(' ');
        push_value(out, value);
        out.push('\n');
    }

    fn encode_histogram(&self, name: &str, histogram: &Histogram, out: &mut String) {
        let read = histogram.read();
        let comma = if self.labels.is_empty() { "" } else { "," };
        let count = read.cumulative.last().copied().unwrap_or(0);
        for (bucket, seen) in read.cumulative.iter().enumerate() {
            let _ = write!(out, "{name}_bucket{{{}{comma}le=\"", self.labels);
            match histogram.shape.bounds.get(bucket) {
                Some(bound) => out.push_str(&bound_label(*bound)),
                None => out.push_str("+Inf"),
            }
            let _ = writeln!(out, "\"}} {seen}");
        }
        let (open, close) = if self.labels.is_empty() {
            ("", "")
        } else {
            ("{", "}")
        };
        let _ = write!(out, "{name}_sum{open}{}{close} ", self.labels);
        push_value(out, read.sum);
        let _ = writeln!(out, "\n{name}_count{open}{}{close} {count}", self.labels);
    }
}

fn push_value(out: &mut String, value: f64) {
    let _ = if value.is_nan() {
        write!(out, "NaN")
    } else if value.is_infinite() {
        write!(out, "{}Inf", if value > 0.0 { '+' } else { '-' })
    } else {
        write!(out, "{value}")
    };
}

/// A bound as Go prints it (`%g` of the shortest digits: an exponent from 1e6
/// up, and below 1e-4), so that an `le` label is the same string as etcd's.
fn bound_label(bound: f64) -> String {
    if bound != 0.0 && !(1e-4..1e6).contains(&bound.abs()) {
        let text = format!("{bound:e}");
        if let Some((digits, exponent)) = text.split_once('e') {
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            return format!("{digits}e{sign}{exponent:0>2}");
        }
    }
    format!("{bound}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_printed_as_go_prints_them() {
        let cases = [
            (0.0001, "0.0001"),
            (0.00005, "5e-05"),
            (2.5, "2.5"),
            (524_288.0, "524288"),
            (1_048_576.0, "1.048576e+06"),
            (8_388_608.0, "8.388608e+06"),
        ];
        for (bound, label) in cases {
            assert_eq!(bound_label(bound), label);
        }
    }

    #[test]
    fn values_are_numbers_that_prometheus_reads() {
        let cases = [
            (0.0, "0"),
            (-1.0, "-1"),
            (2_147_483_648.0, "2147483648"),
            (0.25, "0.25"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "+Inf"),
        ];
        for (value, text) in cases {
            let mut out = String::new();
            push_value(&mut out, value);
            assert_eq!(out, text);
        }
    }

    #[test]
    fn label_values_are_escaped() {
        let mut registry = Registry::new(1);
        let mut family = registry.family("a", Kind::Gauge, &["b"], Origin::Orlop, "c");
        family.sample(&["x\"y\\z\n"], Source::Constant(1.0));
        family.done();
        let text = encode(
            &registry.finish(),
            &ScrapeInput::default(),
            &ProcessStats::default(),
        );
        assert_eq!(
            text,
            "# HELP a c\n# TYPE a gauge\na{b=\"x\\\"y\\\\z\\n\"} 1\n"
        );
    }

    #[test]
    fn a_family_without_samples_is_not_there() {
        let mut registry = Registry::new(1);
        let run = registry.run(1);
        let mut family = registry.family("a", Kind::Counter, &[], Origin::Orlop, "c");
        family.sample(&[], Source::UsedCell(run.clone()));
        family.done();
        let families = registry.finish();
        let (input, process) = (ScrapeInput::default(), ProcessStats::default());
        assert_eq!(encode(&families, &input, &process), "");
        run.add(0, 7);
        assert!(encode(&families, &input, &process).ends_with("\na 7\n"));
    }
}
