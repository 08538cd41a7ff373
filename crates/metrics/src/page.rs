//! Pages of processes whose series are all made at a scrape: what they have in common.

use crate::registry::{self, Family, Kind, Origin, Registry, Source};
use crate::scrape::ScrapeInput;
use crate::{fixed, process};

/// The family that says which process, and which release of it, the page is of.
pub(crate) struct Info<'a> {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) labels: &'static [&'static str],
    pub(crate) values: &'a [&'a str],
}

/// All families of a process: its info, the process's own, and what `add` makes.
pub(crate) fn families(info: &Info<'_>, add: impl FnOnce(&mut Registry)) -> Vec<Family> {
    let mut registry = Registry::new(1);
    fixed::declare_process(&mut registry);
    let mut family = registry.family(
        info.name,
        Kind::Gauge,
        info.labels,
        Origin::Orlop,
        info.help,
    );
    family.sample(info.values, Source::Constant(1.0));
    family.done();
    add(&mut registry);
    registry.finish()
}

/// The text of a scrape, in the format of [`crate::CONTENT_TYPE`]. Reads `/proc`.
pub(crate) fn text(info: &Info<'_>, add: impl FnOnce(&mut Registry)) -> String {
    registry::encode(
        &families(info, add),
        &ScrapeInput::default(),
        &process::read(),
    )
}

/// Those of what `add` makes that are the process's own, by name, for the reference.
pub(crate) fn own(add: impl FnOnce(&mut Registry), is_own: impl Fn(&str) -> bool) -> Vec<Family> {
    let mut registry = Registry::new(1);
    add(&mut registry);
    let mut all = registry.finish();
    all.retain(|family| is_own(family.name));
    all.sort_by_key(|family| family.name);
    all
}

/// A family of one sample without labels.
pub(crate) fn single(
    r: &mut Registry,
    name: &'static str,
    kind: Kind,
    help: &'static str,
    value: f64,
) {
    r.family(name, kind, &[], Origin::Orlop, help)
        .one(Source::Constant(value));
}

/// A family of a count for each value of one label.
pub(crate) fn by_label(
    r: &mut Registry,
    name: &'static str,
    kind: Kind,
    label: &'static [&'static str],
    help: &'static str,
    counts: &[(&'static str, u64)],
) {
    let mut family = r.family(name, kind, label, Origin::Orlop, help);
    for (value, count) in counts {
        family.sample(&[value], Source::Constant(*count as f64));
    }
    family.done();
}

/// A process's single series: name, kind, meaning, and how its value is read.
pub(crate) type Row<I> = (&'static str, Kind, &'static str, fn(&I) -> f64);

/// Makes them.
pub(crate) fn rows<I>(r: &mut Registry, rows: &[Row<I>], input: &I) {
    for (name, kind, help, read) in rows {
        single(r, name, *kind, help, read(input));
    }
}
