//! Counters, gauges and histograms as sharded, lock-free cells.
//!
//! A [`Block`] holds many cells, once per shard; a thread always adds to the
//! same shard, so with a shard a worker no cache line is written by two cores.
//! Reading sums over the shards.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// Cells in one cache line (64 bytes).
const LINE: usize = 8;

/// The shard of the next thread that adds to a cell.
static NEXT_SHARD: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SHARD: Cell<usize> = const { Cell::new(usize::MAX) };
}

fn shard() -> usize {
    SHARD.with(|own| {
        let mut shard = own.get();
        if shard == usize::MAX {
            shard = NEXT_SHARD.fetch_add(1, Relaxed);
            own.set(shard);
        }
        shard
    })
}

/// A fixed number of cells, in every shard.
#[derive(Debug)]
pub(crate) struct Block {
    cells: Box<[AtomicU64]>,
    /// From a cell to the same cell in the next shard.
    stride: usize,
    /// Shards - 1; the number of shards is a power of two.
    mask: usize,
}

impl Block {
    /// `len` cells in `shards` shards (rounded up to a power of two).
    pub(crate) fn new(len: usize, shards: usize) -> Self {
        let shards = shards.max(1).next_power_of_two();
        // A line of padding keeps the end of one shard and the start of the
        // next out of the same line wherever the allocation begins.
        let stride = len.next_multiple_of(LINE) + LINE;
        let cells = (0..stride * shards).map(|_| AtomicU64::new(0)).collect();
        Self {
            cells,
            stride,
            mask: shards - 1,
        }
    }

    fn add(&self, index: usize, n: u64) {
        let at = (shard() & self.mask) * self.stride + index;
        if let Some(cell) = self.cells.get(at) {
            cell.fetch_add(n, Relaxed);
        }
    }

    fn sum(&self, index: usize) -> u64 {
        (0..=self.mask)
            .filter_map(|shard| self.cells.get(shard * self.stride + index))
            .fold(0u64, |sum, cell| sum.wrapping_add(cell.load(Relaxed)))
    }
}

/// A run of adjacent cells of a block.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) block: Arc<Block>,
    pub(crate) first: u32,
}

impl Run {
    pub(crate) fn add(&self, offset: usize, n: u64) {
        self.block.add(self.first as usize + offset, n);
    }

    pub(crate) fn sum(&self, offset: usize) -> u64 {
        self.block.sum(self.first as usize + offset)
    }

    /// The run that begins `offset` cells later.
    pub(crate) fn at(&self, offset: usize) -> Run {
        Run {
            block: self.block.clone(),
            first: self.first + offset as u32,
        }
    }
}

/// A number that only grows. Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct Counter(pub(crate) Run);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.0.add(0, 1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.add(0, n);
    }

    /// The total so far.
    pub fn get(&self) -> u64 {
        self.0.sum(0)
    }
}

/// A number that goes up and down. Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct Gauge(pub(crate) Run);

impl Gauge {
    /// Adds one.
    pub fn inc(&self) {
        self.0.add(0, 1);
    }

    /// Takes one away.
    pub fn dec(&self) {
        self.add(-1);
    }

    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        // Two's complement: the shards wrap, their sum does not.
        self.0.add(0, n.cast_unsigned());
    }

    /// Makes it `n`. For a gauge that one thread changes.
    pub fn set(&self, n: i64) {
        self.add(n.wrapping_sub(self.get()));
    }

    /// The value now.
    pub fn get(&self) -> i64 {
        self.0.sum(0).cast_signed()
    }
}

/// How a histogram divides its observations, and the grain of its sum.
#[derive(Debug)]
pub(crate) struct Shape {
    /// Upper bounds, rising, without `+Inf`.
    pub(crate) bounds: Vec<f64>,
    /// Steps of the sum in one unit (1e9: a sum of seconds is kept in ns).
    pub(crate) sum_steps: f64,
}

/// A distribution. Cheap to clone; clones observe together.
#[derive(Clone, Debug)]
pub struct Histogram {
    pub(crate) shape: Arc<Shape>,
    /// One cell a bound, one for `+Inf`, one for the sum.
    pub(crate) run: Run,
}

/// A histogram's state when it was read.
pub(crate) struct Snapshot {
    /// Observations at or below each bound, then all of them.
    pub(crate) cumulative: Vec<u64>,
    pub(crate) sum: f64,
}

impl Histogram {
    /// Observes seconds, for series whose name ends in `_seconds`.
    pub fn observe_s(&self, seconds: f64) {
        self.observe_value(seconds);
    }

    /// Observes a duration, for series whose name ends in `_seconds`.
    pub fn observe(&self, duration: Duration) {
        self.observe_value(duration.as_secs_f64());
    }

    /// Observes a value in the unit that the series is named for. A negative
    /// value (a clock stepped back) counts as zero.
    pub fn observe_value(&self, value: f64) {
        self.observe_times(value, 1);
    }

    /// Observes the same value `times` times.
    pub fn observe_times(&self, value: f64, times: u64) {
        let value = value.max(0.0);
        let bucket = self.shape.bounds.partition_point(|bound| *bound < value);
        self.run.add(bucket, times);
        let sum = (value * self.shape.sum_steps).round() as u64;
        self.run
            .add(self.shape.bounds.len() + 1, sum.wrapping_mul(times));
    }

    /// How many observations there were.
    pub fn count(&self) -> u64 {
        (0..=self.shape.bounds.len())
            .map(|bucket| self.run.sum(bucket))
            .sum()
    }

    /// The sum of what was observed, in the unit that the series is named for.
    pub fn sum(&self) -> f64 {
        self.run.sum(self.shape.bounds.len() + 1) as f64 / self.shape.sum_steps
    }

    pub(crate) fn read(&self) -> Snapshot {
        let mut total = 0;
        let cumulative = (0..=self.shape.bounds.len())
            .map(|bucket| {
                total += self.run.sum(bucket);
                total
            })
            .collect();
        let sum = self.sum();
        Snapshot { cumulative, sum }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(len: usize, shards: usize) -> Run {
        Run {
            block: Arc::new(Block::new(len, shards)),
            first: 0,
        }
    }

    #[test]
    fn threads_count_together() {
        let counter = Counter(run(1, 4));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..1000).for_each(|_| counter.inc()));
            }
        });
        assert_eq!(counter.get(), 8000);
    }

    #[test]
    fn a_gauge_may_fall_on_another_thread_than_it_rose_on() {
        let gauge = Gauge(run(1, 8));
        gauge.add(3);
        std::thread::scope(|scope| {
            scope.spawn(|| gauge.add(-5));
        });
        assert_eq!(gauge.get(), -2);
    }

    #[test]
    fn a_bound_belongs_to_its_own_bucket() {
        let shape = Arc::new(Shape {
            bounds: vec![1.0, 2.0],
            sum_steps: 1e9,
        });
        let histogram = Histogram {
            shape,
            run: run(4, 2),
        };
        for value in [-1.0, 0.5, 1.0, 1.5, 2.0, 9.0] {
            histogram.observe_s(value);
        }
        let read = histogram.read();
        assert_eq!(read.cumulative, [3, 5, 6]);
        assert!((read.sum - 14.0).abs() < 1e-6);
    }
}
