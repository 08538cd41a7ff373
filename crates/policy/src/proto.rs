//! Just enough protobuf to compare stored Kubernetes objects: a reader of fields and of runs
//! of fields that borrows all it returns.
//!
//! It expects what Kubernetes writes (fields in rising order, each singular field once) and
//! reports anything else, since a value that it misreads could cost a durable write.

use crate::unclear::Unclear;

/// One field of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<'a> {
    /// Its number.
    pub(crate) number: u32,
    /// Its content, if that is a string, bytes or a message; nobody asks for numbers.
    content: Option<&'a [u8]>,
}

impl<'a> Field<'a> {
    /// The content of a string, bytes or message field.
    pub(crate) fn bytes(&self) -> Result<&'a [u8], Unclear> {
        self.content.ok_or(Unclear::WireType(self.number))
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
        let tag = varint(&mut self.rest)?;
        let number = u32::try_from(tag >> 3).map_err(|_| Unclear::Truncated)?;
        if number == 0 || number >= 1 << 29 {
            return Err(Unclear::Truncated);
        }
        let content = match tag & 7 {
            0 => varint(&mut self.rest).map(|_| None)?,
            1 => take(&mut self.rest, 8).map(|_| None)?,
            2 => Some(bytes(&mut self.rest)?),
            5 => take(&mut self.rest, 4).map(|_| None)?,
            // Groups, and types that do not exist.
            _ => return Err(Unclear::WireType(number)),
        };
        Ok(Some(Field { number, content }))
    }
}

#[inline(always)]
fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Unclear> {
    let (taken, after) = rest.split_at_checked(length).ok_or(Unclear::Truncated)?;
    *rest = after;
    Ok(taken)
}

/// A length and so many bytes.
#[inline(always)]
fn bytes<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Unclear> {
    let length = usize::try_from(varint(rest)?).map_err(|_| Unclear::Truncated)?;
    take(rest, length)
}

#[inline(always)]
fn varint(rest: &mut &[u8]) -> Result<u64, Unclear> {
    // Nearly all tags and lengths have one byte or two.
    match **rest {
        [a, ref after @ ..] if a < 0x80 => {
            *rest = after;
            Ok(u64::from(a))
        }
        [a, b, ref after @ ..] if b < 0x80 => {
            *rest = after;
            Ok(u64::from(a & 0x7f) | u64::from(b) << 7)
        }
        _ => long_varint(rest),
    }
}

#[cold]
fn long_varint(rest: &mut &[u8]) -> Result<u64, Unclear> {
    let mut value = 0_u64;
    for (i, &byte) in rest.iter().enumerate().take(10) {
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit only.
        if i == 9 && bits > 1 {
            return Err(Unclear::Truncated);
        }
        value |= bits << (7 * i);
        if byte & 0x80 == 0 {
            *rest = &rest[i + 1..];
            return Ok(value);
        }
    }
    Err(Unclear::Truncated)
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

    /// Why a field with this number and wire type is refused.
    #[cold]
    fn refuse(&self, number: u64, wire_type: u64) -> Unclear {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        if number == 0 || wire_type > 5 {
            Unclear::Truncated
        } else if number >= 64 || self.all() & (1 << number) == 0 {
            Unclear::UnknownField(number)
        } else {
            Unclear::WireType(number)
        }
    }
}

/// All the occurrences of one field of a message, which stand side by side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<'a> {
    /// The field's number, below 64.
    pub(crate) number: u32,
    /// Tags and contents as they stand in the message.
    pub(crate) raw: &'a [u8],
    /// The first occurrence's bytes; empty if the field is a number.
    pub(crate) bytes: &'a [u8],
    /// The field's number; 0 if it is bytes.
    pub(crate) integer: u64,
}

impl<'a> Run<'a> {
    /// The single fields.
    pub(crate) fn fields(&self) -> Fields<'a> {
        Fields::new(self.raw)
    }
}

/// Reads a message run by run and checks it against its shape.
pub(crate) struct Runs<'a> {
    rest: &'a [u8],
    shape: Shape,
    last: u32,
}

impl<'a> Runs<'a> {
    /// Starts at a message's first byte.
    pub(crate) fn new(message: &'a [u8], shape: Shape) -> Self {
        Runs {
            rest: message,
            shape,
            last: 0,
        }
    }

    /// The next run; `None` at the end.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<Option<Run<'a>>, Unclear> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let start = self.rest;
        let tag = varint(&mut self.rest)?;
        let number = tag >> 3;
        let bit = if number < 64 { 1_u64 << number } else { 0 };
        let (bytes, integer) = match tag & 7 {
            0 if self.shape.varint & bit != 0 => (&[][..], varint(&mut self.rest)?),
            2 if self.shape.bytes & bit != 0 => (bytes(&mut self.rest)?, 0),
            wire_type => return Err(self.shape.refuse(number, wire_type)),
        };
        // Below 64, as the shape has it.
        let number = number as u32;
        if number <= self.last {
            return Err(match number == self.last {
                true => Unclear::Duplicate(number),
                false => Unclear::Order(number),
            });
        }
        self.last = number;
        if self.shape.repeated & bit != 0 {
            while !self.rest.is_empty() {
                let mut ahead = self.rest;
                if varint(&mut ahead)? != tag {
                    break;
                }
                self::bytes(&mut ahead)?;
                self.rest = ahead;
            }
        }
        let raw = &start[..start.len() - self.rest.len()];
        Ok(Some(Run {
            number,
            raw,
            bytes,
            integer,
        }))
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
