//! `ETCD_*` variables, and `ORLOP_*` for orlop's own flags.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use crate::golang::quote;
use crate::removed::REMOVED;
use crate::settings::{Known, Settings};
use crate::table::{FLAGS, Flag, shown};
use crate::tls::LISTS_OF_CLIENTS;
use crate::{Error, Notice};

const ETCD: &str = "ETCD_";
const OWN: &str = "ORLOP_";
const VERSION: &str = "ETCD_VERSION";

/// The variables of an environment that concern orlop.
pub(crate) struct Variables(BTreeMap<String, String>);

impl Variables {
    /// Keeps the variables whose names begin with a prefix of ours.
    pub(crate) fn collect(
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Error> {
        let mut variables = BTreeMap::new();
        for (name, value) in env {
            let Ok(name) = name.into_string() else {
                continue;
            };
            if !name.starts_with(ETCD) && !name.starts_with(OWN) {
                continue;
            }
            match value.into_string() {
                Ok(value) => variables.insert(name, value),
                Err(_) => return Err(Error::NotUtf8(format!("environment variable {name}"))),
            };
        }
        Ok(Self(variables))
    }

    /// `ETCD_CONFIG_FILE`, when it is not empty.
    pub(crate) fn config_file(&self) -> Option<String> {
        self.0
            .get("ETCD_CONFIG_FILE")
            .filter(|path| !path.is_empty())
            .cloned()
    }

    /// Adds to the settings of the command line.
    pub(crate) fn read(mut self, settings: &mut Settings) -> Result<(), Error> {
        if let Some(version) = self.0.get(VERSION).filter(|value| !value.is_empty()) {
            settings.notices.push(
                Notice::warn("cannot set special environment variable")
                    .with("key", VERSION)
                    .with("value", version),
            );
            self.0.remove(VERSION);
        }
        let mut used = BTreeSet::new();
        for known in every_known() {
            let variable = variable_name(known);
            let Some(value) = self.0.get(&variable) else {
                continue;
            };
            if settings.is_known_set(known) {
                return Err(Error::Shadowed { variable });
            }
            if value.is_empty() && !LISTS_OF_CLIENTS.contains(&known.name()) {
                continue;
            }
            settings
                .set(known, value)
                .map_err(|reason| Error::Variable {
                    value: quote(shown(known.name(), value)),
                    variable: variable.clone(),
                    reason,
                })?;
            settings.notices.push(
                Notice::info("recognized and used environment variable")
                    .with("variable-name", &variable)
                    .with("variable-value", shown(known.name(), value)),
            );
            used.insert(variable);
        }
        for variable in self.0.keys().filter(|name| !used.contains(*name)) {
            // etcd logs the value too; it may be a secret, so the name only.
            settings.notices.push(
                Notice::warn("unrecognized environment variable")
                    .with("environment-variable", variable),
            );
        }
        Ok(())
    }
}

fn every_known() -> impl Iterator<Item = Known> {
    let flags = FLAGS.iter().map(Known::Flag);
    flags.chain(REMOVED.iter().map(Known::Removed))
}

/// The name of a flag's variable: upper case, with `_` for `-`.
fn variable_name(known: Known) -> String {
    let prefix = match known {
        Known::Flag(Flag { own: true, .. }) => OWN,
        _ => ETCD,
    };
    format!("{prefix}{}", known.name().to_uppercase().replace('-', "_"))
}
