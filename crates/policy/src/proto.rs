//! Just enough protobuf to compare stored Kubernetes objects: a reader of fields and of runs
//! of fields that borrows all it returns.
//!
//! It expects what Kubernetes writes (fields in rising order, each singular field once) and
//! reports anything else, since a value that it misreads could cost a durable write.

use crate::unclear::Unclear;

/// A field's content, of the wire types that the messages read here use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Value<'a> {
    /// Integers, booleans, enumerations.
    Varint(u64),
    /// Strings, bytes, messages.
    Bytes(&'a [u8]),
    /// Fixed-width numbers, whose content nobody asks for.
    Fixed,
}

/// One field of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<'a> {
    /// Its number.
    pub(crate) number: u32,
    /// Its content.
    pub(crate) value: Value<'a>,
}

impl<'a> Field<'a> {
    /// The content of a string, bytes or message field.
    pub(crate) fn bytes(&self) -> Result<&'a [u8], Unclear> {
        match self.value {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(Unclear::WireType(self.number)),
        }
    }
}

/// Reads the fields of one message.
#[derive(Clone)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Starts at a message's first byte; the message is all of `message`.
    pub(crate) fn new(message: &'a [u8]) -> Self {
        Fields { rest: message }
    }

    /// The next field; `None` at the end.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<Option<Field<'a>>, Unclear> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| Unclear::Truncated)?;
        if number == 0 || number >= 1 << 29 {
            return Err(Unclear::Truncated);
        }
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Unclear::Truncated)?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            // Groups, and types that do not exist.
            _ => return Err(Unclear::WireType(number)),
        };
        Ok(Some(Field { number, value }))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Unclear> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(Unclear::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Unclear> {
        let mut value = 0_u64;
        for (i, &byte) in self.rest.iter().enumerate().take(10) {
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit only.
            if i == 9 && bits > 1 {
                return Err(Unclear::Truncated);
            }
            value |= bits << (7 * i);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[i + 1..];
                return Ok(value);
            }
        }
        Err(Unclear::Truncated)
    }
}

/// Which fields a message has: numbers below 64, as bit masks.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    varint: u64,
    bytes: u64,
    repeated: u64,
}

/// The mask of some field numbers.
pub(crate) const fn mask(numbers: &[u32]) -> u64 {
    let mut mask = 0;
    let mut i = 0;
    while i < numbers.len() {
        mask |= 1 << numbers[i];
        i += 1;
    }
    mask
}

impl Shape {
    /// A message with these integer fields, these fields of bytes (strings, messages), and of
    /// the latter these repeated ones (also maps).
    pub(crate) const fn new(varint: &[u32], bytes: &[u32], repeated: &[u32]) -> Shape {
        Shape {
            varint: mask(varint),
            bytes: mask(bytes) | mask(repeated),
            repeated: mask(repeated),
        }
    }

    /// The mask of all the fields that the message has.
    pub(crate) const fn all(&self) -> u64 {
        self.varint | self.bytes
    }

    fn check(&self, field: &Field<'_>) -> Result<(), Unclear> {
        let n = field.number;
        if n >= 64 || self.all() & (1 << n) == 0 {
            return Err(Unclear::UnknownField(n));
        }
        let expected = match field.value {
            Value::Varint(_) => self.varint,
            Value::Bytes(_) => self.bytes,
            Value::Fixed => 0,
        };
        if expected & (1 << n) == 0 {
            return Err(Unclear::WireType(n));
        }
        Ok(())
    }
}

/// All the occurrences of one field of a message, which stand side by side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'a> {
    /// The field's number, below 64.
    pub(crate) number: u32,
    /// Tags and contents as they stand in the message.
    pub(crate) raw: &'a [u8],
    /// The first occurrence's content.
    pub(crate) first: Value<'a>,
}

impl<'a> Run<'a> {
    /// The first occurrence's bytes; empty if it is a number.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        match self.first {
            Value::Bytes(bytes) => bytes,
            _ => &[],
        }
    }

    /// The single fields.
    pub(crate) fn fields(&self) -> Fields<'a> {
        Fields::new(self.raw)
    }
}

/// Reads a message run by run and checks it against its shape.
pub(crate) struct Runs<'a> {
    fields: Fields<'a>,
    /// The field that ended the run before, and where it starts.
    ahead: Option<(Field<'a>, &'a [u8])>,
    shape: Shape,
    last: u32,
}

impl<'a> Runs<'a> {
    /// Starts at a message's first byte.
    pub(crate) fn new(message: &'a [u8], shape: Shape) -> Self {
        Runs {
            fields: Fields::new(message),
            ahead: None,
            shape,
            last: 0,
        }
    }

    /// The next run; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Run<'a>>, Unclear> {
        let (first, start) = match self.ahead.take() {
            Some(ahead) => ahead,
            None => {
                let start = self.fields.rest;
                match self.fields.next()? {
                    Some(field) => (field, start),
                    None => return Ok(None),
                }
            }
        };
        self.shape.check(&first)?;
        let number = first.number;
        if number <= self.last {
            return Err(Unclear::Order(number));
        }
        self.last = number;
        loop {
            let here = self.fields.rest;
            let end = start.len() - here.len();
            let next = self.fields.next()?;
            match next {
                Some(field) if field.number == number => {
                    if self.shape.repeated & (1 << number) == 0 {
                        return Err(Unclear::Duplicate(number));
                    }
                    self.shape.check(&field)?;
                }
                _ => {
                    self.ahead = next.map(|field| (field, here));
                    return Ok(Some(Run {
                        number,
                        raw: &start[..end],
                        first: first.value,
                    }));
                }
            }
        }
    }
}

/// The mask of the fields that differ between two messages of one shape.
pub(crate) fn diff(old: &[u8], new: &[u8], shape: Shape) -> Result<u64, Unclear> {
    if old == new {
        return Ok(0);
    }
    let (mut olds, mut news) = (Runs::new(old, shape), Runs::new(new, shape));
    let (mut a, mut b) = (olds.next()?, news.next()?);
    let mut changed = 0;
    loop {
        match (&a, &b) {
            (None, None) => return Ok(changed),
            (Some(x), Some(y)) if x.number == y.number => {
                if x.raw != y.raw {
                    changed |= 1 << x.number;
                }
                a = olds.next()?;
                b = news.next()?;
            }
            (Some(x), Some(y)) if x.number > y.number => {
                changed |= 1 << y.number;
                b = news.next()?;
            }
            (Some(x), _) => {
                changed |= 1 << x.number;
                a = olds.next()?;
            }
            (None, Some(y)) => {
                changed |= 1 << y.number;
                b = news.next()?;
            }
        }
    }
}

/// One run of a message, if the field is there. Reads no further than to that field.
pub(crate) fn find<'a>(
    message: &'a [u8],
    shape: Shape,
    number: u32,
) -> Result<Option<Run<'a>>, Unclear> {
    let mut runs = Runs::new(message, shape);
    while let Some(run) = runs.next()? {
        if run.number == number {
            return Ok(Some(run));
        }
        if run.number > number {
            break;
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape::new(&[1], &[2], &[3]);

    fn runs(message: &[u8]) -> Result<Vec<(u32, usize)>, Unclear> {
        let mut runs = Runs::new(message, SHAPE);
        let mut all = Vec::new();
        while let Some(run) = runs.next()? {
            all.push((run.number, run.raw.len()));
        }
        Ok(all)
    }

    #[test]
    fn runs_are_read_and_checked() {
        assert_eq!(runs(b""), Ok(vec![]));
        assert_eq!(
            runs(b"\x08\x05\x12\x01a\x1a\x00\x1a\x01b"),
            Ok(vec![(1, 2), (2, 3), (3, 5)])
        );
        assert_eq!(runs(b"\x08\x05\x08\x06"), Err(Unclear::Duplicate(1)));
        assert_eq!(runs(b"\x12\x00\x08\x06"), Err(Unclear::Order(1)));
        assert_eq!(runs(b"\x0a\x00"), Err(Unclear::WireType(1)));
        assert_eq!(runs(b"\x20\x00"), Err(Unclear::UnknownField(4)));
        assert_eq!(runs(b"\x0b"), Err(Unclear::WireType(1)));
        assert_eq!(runs(b"\x12\x05a"), Err(Unclear::Truncated));
        assert_eq!(
            runs(b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"),
            Err(Unclear::Truncated)
        );
        assert_eq!(runs(b"\x00\x01"), Err(Unclear::Truncated));
    }

    #[test]
    fn differing_fields_are_named() {
        let old = b"\x08\x05\x12\x01a";
        assert_eq!(diff(old, old, SHAPE), Ok(0));
        assert_eq!(diff(old, b"\x08\x06\x12\x01a", SHAPE), Ok(1 << 1));
        assert_eq!(diff(old, b"\x12\x01a", SHAPE), Ok(1 << 1));
        assert_eq!(diff(b"", old, SHAPE), Ok(1 << 1 | 1 << 2));
        assert_eq!(diff(old, b"\x08\x05\x12\x01a\x1a\x00", SHAPE), Ok(1 << 3));
        assert_eq!(diff(b"\x1a\x00", b"\x1a\x00\x1a\x00", SHAPE), Ok(1 << 3));
        assert_eq!(diff(old, b"\x08", SHAPE), Err(Unclear::Truncated));
    }
}
