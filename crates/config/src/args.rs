//! The command line, in the syntax of Go's `flag` package.

use std::ffi::OsString;

use crate::Error;
use crate::golang::quote;
use crate::settings::{Known, Settings, invalid_value};

/// What a command line asks for besides settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Nothing,
    Help,
}

/// Reads flags into `settings` until the arguments end, `--help` is met, or
/// one is wrong; what comes first counts, as in Go.
pub(crate) fn read(
    args: impl IntoIterator<Item = OsString>,
    settings: &mut Settings,
) -> Result<Asked, Error> {
    let mut args = args.into_iter().map(|arg| {
        arg.into_string()
            .map_err(|arg| Error::NotUtf8(format!("argument {arg:?}")))
    });
    while let Some(arg) = args.next().transpose()? {
        let Some(flag) = arg.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
            return Err(Error::Positional(quote(&arg)));
        };
        let flag = match flag.strip_prefix('-') {
            // `--` ends the flags, and nothing may follow it.
            Some("") => {
                return match args.next().transpose()? {
                    Some(rest) => Err(Error::Positional(quote(&rest))),
                    None => Ok(Asked::Nothing),
                };
            }
            Some(flag) => flag,
            None => flag,
        };
        if flag.starts_with(['-', '=']) {
            return Err(Error::Syntax(format!("bad flag syntax: {arg}")));
        }
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let Some(known) = Known::find(name) else {
            if matches!(name, "h" | "help") {
                return Ok(Asked::Help);
            }
            return Err(Error::Syntax(format!(
                "flag provided but not defined: -{name}"
            )));
        };
        let value = match value {
            Some(value) => value,
            None if known.kind().is_bool() => "true".to_owned(),
            None => match args.next().transpose()? {
                Some(value) => value,
                None => {
                    return Err(Error::Syntax(format!("flag needs an argument: -{name}")));
                }
            },
        };
        settings
            .set(known, &value)
            .map_err(|reason| Error::Syntax(invalid_value(&value, known, &reason)))?;
    }
    Ok(Asked::Nothing)
}
