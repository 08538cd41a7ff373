//! Reads JSON objects without copying: members as slices of the text. The only memory that it
//! takes is serde_json's buffer for the nesting of what it skips.

use crate::unclear::Unclear;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;
use std::marker::PhantomData;

/// Members of an object, or items of a list, at most this many. Kubernetes' objects have
/// about 5 at the top and 17 in their metadata; labels have a limit of their own.
const MAX: usize = 32;

/// The members of one JSON object, in their order. Keys are unique.
#[derive(Clone)]
pub(crate) struct Members<'a> {
    items: [(&'a str, &'a str); MAX],
    len: usize,
}

impl<'a> Members<'a> {
    /// Reads a whole text; only white space may follow the object.
    pub(crate) fn read(text: &'a str) -> Result<Self, Unclear> {
        let mut members = Members {
            items: [("", ""); MAX],
            len: 0,
        };
        each_member(text, |key, value| members.push(key, value))?;
        Ok(members)
    }

    fn push(&mut self, key: &'a str, value: &'a str) -> Result<(), Unclear> {
        if self.get(key).is_some() {
            return Err(Unclear::Json);
        }
        *self.items.get_mut(self.len).ok_or(Unclear::TooMany)? = (key, value);
        self.len += 1;
        Ok(())
    }

    /// Keys and values as they stand in the text.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> + '_ {
        self.items[..self.len].iter().copied()
    }

    /// A member's text.
    pub(crate) fn get(&self, key: &str) -> Option<&'a str> {
        self.iter().find(|(k, _)| *k == key).map(|(_, v)| v)
    }

    /// A member that is a string; `None` if it is not there.
    pub(crate) fn string(&self, key: &str) -> Result<Option<&'a str>, Unclear> {
        self.get(key).map(string).transpose()
    }
}

/// A JSON string's content. One with escapes cannot be borrowed and is not read.
pub(crate) fn string(text: &str) -> Result<&str, Unclear> {
    serde_json::from_str(text).map_err(|_| Unclear::Json)
}

/// Calls `f` with each member of an object: key, and value as it stands in the text.
pub(crate) fn each_member<'a>(
    text: &'a str,
    f: impl FnMut(&'a str, &'a str) -> Result<(), Unclear>,
) -> Result<(), Unclear> {
    let mut failure = None;
    let mut json = serde_json::Deserializer::from_str(text);
    let visitor = MemberVisitor {
        f,
        failure: &mut failure,
        text: PhantomData,
    };
    let read = json.deserialize_map(visitor).and_then(|()| json.end());
    settle(read, failure)
}

/// Calls `f` with each item of a list, as it stands in the text.
pub(crate) fn each_item<'a>(
    text: &'a str,
    f: impl FnMut(&'a str) -> Result<(), Unclear>,
) -> Result<(), Unclear> {
    let mut failure = None;
    let mut json = serde_json::Deserializer::from_str(text);
    let visitor = ItemVisitor {
        f,
        failure: &mut failure,
        text: PhantomData,
    };
    let read = json.deserialize_seq(visitor).and_then(|()| json.end());
    settle(read, failure)
}

/// The visitor's own error says more than serde's.
fn settle(read: serde_json::Result<()>, failure: Option<Unclear>) -> Result<(), Unclear> {
    match (read, failure) {
        (_, Some(unclear)) => Err(unclear),
        (Err(_), None) => Err(Unclear::Json),
        (Ok(()), None) => Ok(()),
    }
}

struct MemberVisitor<'a, 'f, F> {
    f: F,
    failure: &'f mut Option<Unclear>,
    text: PhantomData<&'a str>,
}

impl<'a, F: FnMut(&'a str, &'a str) -> Result<(), Unclear>> Visitor<'a>
    for MemberVisitor<'a, '_, F>
{
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<&'a str>()? {
            let value = map.next_value::<&'a RawValue>()?;
            // The rest is still read: serde expects it of a visitor.
            if self.failure.is_none() {
                *self.failure = (self.f)(key, value.get()).err();
            }
        }
        Ok(())
    }
}

struct ItemVisitor<'a, 'f, F> {
    f: F,
    failure: &'f mut Option<Unclear>,
    text: PhantomData<&'a str>,
}

impl<'a, F: FnMut(&'a str) -> Result<(), Unclear>> Visitor<'a> for ItemVisitor<'a, '_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'a>>(mut self, mut list: A) -> Result<(), A::Error> {
        while let Some(item) = list.next_element::<&'a RawValue>()? {
            if self.failure.is_none() {
                *self.failure = (self.f)(item.get()).err();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_slices_of_the_text() {
        let members = Members::read("{\"a\": [1, {\"b\":2}], \"c\":\"x\"}\n");
        let members = members.expect("an object");
        assert_eq!(members.get("a"), Some("[1, {\"b\":2}]"));
        assert_eq!(members.string("c"), Ok(Some("x")));
        assert_eq!(members.string("d"), Ok(None));
        assert_eq!(members.string("a"), Err(Unclear::Json));
    }

    #[test]
    fn what_is_not_plain_is_refused() {
        for bad in [
            "",
            "[]",
            "{",
            "{\"a\":1}x",
            "{\"a\":1,\"a\":2}",
            "{\"\\u0061\":1}",
            "{\"a\":1,}",
            "null",
        ] {
            assert_eq!(Members::read(bad).err(), Some(Unclear::Json), "{bad}");
        }
        let many: Vec<String> = (0..=MAX).map(|i| format!("\"k{i}\":{i}")).collect();
        let many = format!("{{{}}}", many.join(","));
        assert_eq!(Members::read(&many).err(), Some(Unclear::TooMany));
    }
}
