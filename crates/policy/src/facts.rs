//! What is found out about one write, each thing at most once however many rules ask.

use crate::change::Change;
use crate::object::Object;
use crate::unclear::Unclear;
use crate::update::Update;

/// A write, and what has been found out about it.
pub(crate) struct Facts<'a> {
    change: Change<'a>,
    old: Option<Result<Object<'a>, Unclear>>,
    new: Option<Result<Object<'a>, Unclear>>,
    update: Option<Update>,
}

impl<'a> Facts<'a> {
    /// Nothing is found out yet.
    pub(crate) fn new(change: Change<'a>) -> Self {
        Facts {
            change,
            old: None,
            new: None,
            update: None,
        }
    }

    /// Whether the key existed.
    pub(crate) fn existed(&self) -> bool {
        self.change.old.is_some()
    }

    /// Whether the key will exist.
    pub(crate) fn will_exist(&self) -> bool {
        self.change.new.is_some()
    }

    /// Asks of the objects before and after (of the one that there is) whether something
    /// holds: for both of them if `every`, else for either.
    pub(crate) fn holds(
        &mut self,
        every: bool,
        question: impl Fn(&Object<'a>) -> Result<bool, Unclear>,
    ) -> Result<bool, Unclear> {
        let mut answer = every;
        let sides = [
            (&mut self.old, self.change.old),
            (&mut self.new, self.change.new),
        ];
        for (object, value) in sides {
            let Some(value) = value else { continue };
            let holds = question(read(object, value)?)?;
            if every {
                answer &= holds;
            } else {
                answer |= holds;
            }
        }
        Ok(answer)
    }

    /// What kind of update it is.
    pub(crate) fn update(&mut self) -> Update {
        if let Some(update) = self.update {
            return update;
        }
        let update = match (self.change.old, self.change.new) {
            (Some(old), Some(new)) => match (read(&mut self.old, old), read(&mut self.new, new)) {
                (Ok(old), Ok(new)) => Update::judge(old, new),
                (Err(why), _) | (_, Err(why)) => Update::unclear(why),
            },
            _ => Update::none(),
        };
        self.update = Some(update);
        update
    }
}

/// Opens an object when it is first asked for.
fn read<'o, 'a>(
    object: &'o mut Option<Result<Object<'a>, Unclear>>,
    value: &'a [u8],
) -> Result<&'o Object<'a>, Unclear> {
    object
        .get_or_insert_with(|| Object::read(value))
        .as_ref()
        .map_err(|why| *why)
}
