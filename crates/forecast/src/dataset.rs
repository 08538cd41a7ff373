//! Data sets as files: written row by row, read whole.

use crate::error::{Error, io};
use crate::rate::rate;
use crate::schema::{Column, HEAD, LEADING, Row, Sample, State, Truth};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Rows of a data set that is read at most: 3 members, every second, for 10 days.
pub const MAX_ROWS: usize = 3_000_000;

/// Names of all columns, in order.
#[must_use]
pub fn header() -> String {
    let leading = LEADING.iter().map(|(name, _)| (*name).to_owned());
    let values = Column::ALL.iter().map(|column| column.name().to_owned());
    let rates = Column::counters().map(|column| format!("{}_rate", column.name()));
    leading
        .chain(values)
        .chain(rates)
        .collect::<Vec<_>>()
        .join(",")
}

/// Writes a data set. Each row is in the file when it is flushed.
#[derive(Debug)]
pub struct Writer<W: Write> {
    to: W,
    before: HashMap<(String, u64), Sample>,
}

impl Writer<BufWriter<File>> {
    /// A new file; one that is there already stays as it is.
    ///
    /// # Errors
    /// If it is there, or cannot be written.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let file = File::create_new(path).map_err(io("create", path))?;
        Writer::new(BufWriter::new(file)).map_err(io("write", path))
    }
}

impl<W: Write> Writer<W> {
    /// Begins with the head.
    ///
    /// # Errors
    /// The system's.
    pub fn new(mut to: W) -> std::io::Result<Self> {
        writeln!(to, "{HEAD}\n{}", header())?;
        Ok(Writer {
            to,
            before: HashMap::new(),
        })
    }

    /// Adds a row. Rates are to the row of the same member and run before.
    ///
    /// # Errors
    /// The system's.
    pub fn add(&mut self, row: &Row) -> std::io::Result<()> {
        let sample = &row.sample;
        let key = (row.run.clone(), sample.member);
        let mut line = String::with_capacity(512);
        let peers: Vec<_> = sample
            .peer_round_trips
            .iter()
            .map(|(peer, us)| format!("{peer:x}={us:.0}"))
            .collect();
        // Writing into a string does not fail.
        let _ = write!(
            line,
            "{},{},{},{},{},{},{},{:x},{},{},{}",
            plain(&row.run),
            row.period,
            row.since_ms,
            row.truth.label.map_or("", State::name),
            text(row.truth.delay_us),
            text(row.truth.sync_us),
            sample.at_ms,
            sample.member,
            plain(&sample.name),
            u8::from(sample.leads),
            peers.join(";")
        );
        for value in &sample.values {
            let _ = write!(line, ",{}", text(*value));
        }
        let before = self.before.get(&key);
        for column in Column::counters() {
            let rate = before.and_then(|before| rate(before, sample, column));
            let _ = write!(line, ",{}", text(rate));
        }
        writeln!(self.to, "{line}")?;
        self.before.insert(key, sample.clone());
        Ok(())
    }

    /// Hands over what was written.
    ///
    /// # Errors
    /// The system's.
    pub fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

/// A name as a field: what would end it is replaced.
fn plain(name: &str) -> String {
    name.replace([',', '\n', '\r', '"'], "_")
}

fn text(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if value.fract() == 0.0 && value.abs() < 1e15 => format!("{value:.0}"),
        Some(value) => format!("{value:.6}"),
    }
}

/// Reads a data set whole, in its order.
///
/// # Errors
/// If it cannot be read, is of another schema, or has too many rows.
pub fn read(path: &Path) -> Result<Vec<Row>, Error> {
    let file = File::open(path).map_err(io("open", path))?;
    read_from(BufReader::new(file), path)
}

/// The same from anywhere; `path` is for messages.
///
/// # Errors
/// As [`read`].
pub fn read_from(from: impl BufRead, path: &Path) -> Result<Vec<Row>, Error> {
    let wrong = |line: usize, why: String| Error::DataSet {
        path: PathBuf::from(path),
        line,
        why,
    };
    let mut rows = Vec::new();
    let names = header();
    for (at, line) in from.lines().enumerate() {
        let line = line.map_err(io("read", path))?;
        match at {
            0 if line == HEAD => {}
            0 => return Err(wrong(1, format!("it must begin with {HEAD:?}"))),
            1 if line == names => {}
            1 => {
                let why = "its columns are not this version's: record it anew".to_owned();
                return Err(wrong(2, why));
            }
            _ if rows.len() == MAX_ROWS => {
                return Err(wrong(at + 1, format!("more than {MAX_ROWS} rows")));
            }
            _ => rows.push(row(&line).map_err(|why| wrong(at + 1, why))?),
        }
    }
    match rows.is_empty() {
        true => Err(Error::TooLittle(format!("{} has no rows", path.display()))),
        false => Ok(rows),
    }
}

fn row(line: &str) -> Result<Row, String> {
    let fields: Vec<&str> = line.split(',').collect();
    let wanted = LEADING.len() + Column::ALL.len() + Column::counters().count();
    if fields.len() != wanted {
        return Err(format!("{} fields, and {wanted} are wanted", fields.len()));
    }
    let whole = |at: usize| -> Result<u64, String> {
        let bad = |_| format!("{}: {:?} is no whole number", LEADING[at].0, fields[at]);
        fields[at].parse().map_err(bad)
    };
    let number = |at: usize| -> Result<Option<f64>, String> {
        match fields[at] {
            "" => Ok(None),
            text => match text.parse::<f64>() {
                Ok(value) if value.is_finite() => Ok(Some(value)),
                _ => Err(format!("field {}: {text:?} is no number", at + 1)),
            },
        }
    };
    let label = match fields[3] {
        "" => None,
        name => Some(State::named(name).ok_or_else(|| format!("{name:?} is no state"))?),
    };
    let hex = |text: &str| {
        u64::from_str_radix(text, 16).map_err(|_| format!("{text:?} is no hexadecimal id"))
    };
    let mut peer_round_trips = Vec::new();
    for pair in fields[10].split(';').filter(|pair| !pair.is_empty()) {
        let parsed = pair.split_once('=').and_then(|(peer, us)| {
            let us = us.parse::<f64>().ok().filter(|us| us.is_finite())?;
            Some((u64::from_str_radix(peer, 16).ok()?, us))
        });
        peer_round_trips.push(parsed.ok_or_else(|| format!("{pair:?} is no peer's round trip"))?);
    }
    let mut sample = Sample::new(whole(6)?, hex(fields[7])?, fields[8].to_owned());
    sample.leads = fields[9] == "1";
    sample.peer_round_trips = peer_round_trips;
    for (nth, value) in sample.values.iter_mut().enumerate() {
        *value = number(LEADING.len() + nth)?;
    }
    Ok(Row {
        run: fields[0].to_owned(),
        period: u32::try_from(whole(1)?).map_err(|_| "period is too large".to_owned())?,
        since_ms: whole(2)?,
        truth: Truth {
            label,
            delay_us: number(4)?,
            sync_us: number(5)?,
        },
        sample,
    })
}

/// What a data set is known by: FNV-1a of its rows' values. Not for keeping enemies out.
#[must_use]
pub fn fingerprint(rows: &[Row]) -> u64 {
    let mut hash = Fnv::default();
    for row in rows {
        hash.add(row.run.as_bytes());
        hash.add(&row.sample.at_ms.to_le_bytes());
        hash.add(&row.sample.member.to_le_bytes());
        hash.add(&[row.truth.label.map_or(255, |label| label as u8)]);
        for value in &row.sample.values {
            hash.add(&value.unwrap_or(f64::MIN).to_bits().to_le_bytes());
        }
    }
    hash.0
}

/// FNV-1a, 64 bits.
#[derive(Debug)]
pub(crate) struct Fnv(pub(crate) u64);

impl Default for Fnv {
    fn default() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample_row(ms: u64, written: f64) -> Row {
        let mut sample = Sample::new(ms, 0xabc, "m,1".to_owned());
        sample.leads = true;
        sample.peer_round_trips = vec![(0x1f, 1_234.0)];
        sample.set(Column::WalWriteBytes, Some(written));
        Row {
            run: "r1".to_owned(),
            period: 3,
            since_ms: ms,
            truth: Truth {
                label: Some(State::Both),
                delay_us: Some(45_000.0),
                sync_us: None,
            },
            sample,
        }
    }

    fn written(rows: &[Row]) -> String {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes).unwrap();
        rows.iter().for_each(|row| writer.add(row).unwrap());
        String::from_utf8(bytes).unwrap()
    }

    fn parsed(text: &str) -> Result<Vec<Row>, Error> {
        read_from(text.as_bytes(), Path::new("x.csv"))
    }

    #[test]
    fn what_is_written_is_read_again_with_the_thesiss_rate() {
        let rows = [sample_row(1_000, 100.0), sample_row(6_000, 1_100.5)];
        let text = written(&rows);
        let mut read = parsed(&text).unwrap();
        read.iter_mut()
            .for_each(|row| row.sample.name = "m,1".to_owned());
        assert_eq!(read, rows);
        let rate = header()
            .split(',')
            .position(|name| name == "wal_write_bytes_rate");
        let rate = |nth: usize| {
            text.lines()
                .nth(nth)
                .unwrap()
                .split(',')
                .nth(rate.unwrap())
                .unwrap()
                .to_owned()
        };
        assert_eq!((rate(2), rate(3)), (String::new(), "200.100000".to_owned()));
        assert_ne!(fingerprint(&rows), fingerprint(&rows[..1]));
    }

    #[test]
    fn what_is_none_is_refused_with_its_line() {
        let good = written(&[sample_row(1, 1.0)]);
        for (from, to, told) in [
            (HEAD, "# something else", "line 1"),
            ("run,period", "run,periods", "line 2"),
            ("r1,3", "r1,x", "line 3: period"),
            ("both", "bothering", "no state"),
            ("abc", "xyz", "hexadecimal"),
            (",1f=1234", ",1f", "round trip"),
            (",1f=1234", ",1f=1234,1", "fields"),
            ("45000", "NaN", "no number"),
        ] {
            let text = good.replacen(from, to, 1);
            let error = parsed(&text).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(told), "{told}: {error}");
        }
        let empty: String = good
            .lines()
            .take(2)
            .map(|line| format!("{line}\n"))
            .collect();
        assert!(parsed(&empty).is_err());
    }
}
