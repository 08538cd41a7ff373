//! etcd's command line, environment and configuration file, read into one [`Config`].
//!
//! orlop takes etcd 3.7's flags, `ETCD_*` variables and YAML `--config-file`
//! with etcd's names, defaults, precedence and error texts. One table
//! ([`FLAGS`]) says of every flag what becomes of it here: same, accepted,
//! one member only, or refused, and why; the parser, `--help` and
//! `docs/reference/flags.md` are all driven by it.
//!
//! This crate knows nothing of the server and does no I/O, except that it
//! reads the configuration file and, when asked, looks whether a data
//! directory is empty. It does not log: what is worth saying is returned as
//! [`Notice`]s.
//!
//! Source of the facts: etcd 3.7.3 (`server/embed/config.go`,
//! `server/etcdmain/config.go`, `pkg/flags`) and Go's `flag` package; removed
//! flags from etcd 3.5.35 and 3.6.16.

mod args;
mod build;
mod cipher;
mod config;
mod env;
mod error;
mod file;
mod gates;
mod golang;
mod listen;
mod removed;
mod settings;
mod table;
mod text;
mod tls;
mod url;
mod value;

pub use cipher::CipherSuite;
pub use config::{
    AdminTls, AutoCompaction, ClientTls, ClusterState, Config, Followers, LogFormat, LogLevel,
    LogOutput, Metrics, ScheduledSnapshots, Shards, Storage, TlsVersion,
};
pub use error::Error;
pub use removed::{REMOVED, Removed, Successor, removed_flag_names};
pub use table::{FLAGS, Flag, Group, Treatment, all_etcd_flag_names};
pub use text::{flags_markdown, help_text, usage_text};
pub use url::{Scheme, Url};
pub use value::Kind;

use std::ffi::OsString;

/// Under which name the program was started: it decides the default data
/// directory and the texts of the help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Personality {
    /// As itself: data in `NAME.orlop`.
    Orlop,
    /// Through a link named `etcd`: data in `NAME.etcd`, as etcd would.
    Etcd,
}

/// How serious a [`Notice`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Worth knowing.
    Info,
    /// Something was ignored, mapped or adjusted.
    Warn,
}

/// A line for the log that reading the configuration gave rise to. The log is
/// configured by what is being read, so the caller writes it afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// How serious it is.
    pub level: Level,
    /// The message; etcd's where etcd has one.
    pub message: String,
    /// Further fields, with etcd's keys where etcd has them.
    pub fields: Vec<(String, String)>,
}

impl Notice {
    pub(crate) fn info(message: impl Into<String>) -> Self {
        Self {
            level: Level::Info,
            message: message.into(),
            fields: Vec::new(),
        }
    }

    pub(crate) fn warn(message: impl Into<String>) -> Self {
        Self {
            level: Level::Warn,
            message: message.into(),
            fields: Vec::new(),
        }
    }

    pub(crate) fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.fields.push((key.to_owned(), value.into()));
        self
    }
}

/// A configuration to run with, and what to log about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The configuration.
    pub config: Config,
    /// What to log, in the order in which it came up.
    pub notices: Vec<Notice>,
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Serve.
    Run(Box<Run>),
    /// `-h` or `--help`: print [`help_text`] and exit 0.
    Help,
    /// `--version`: print the version and exit 0.
    Version,
}

impl Config {
    /// Reads a configuration from a command line and an environment.
    ///
    /// `args` are the arguments after the program's name (and after `serve`);
    /// `env` is the whole environment. Flags win over variables; a variable
    /// that a flag shadows is an error, as in etcd; a configuration file
    /// (`--config-file` or `ETCD_CONFIG_FILE`) replaces both.
    ///
    /// # Errors
    /// Whatever etcd refuses is refused with etcd's text, and what orlop
    /// cannot do with a sentence. [`Error::exit_code`] is the process's exit
    /// code.
    pub fn from_args(
        personality: Personality,
        args: impl IntoIterator<Item = OsString>,
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Parsed, Error> {
        let mut settings = settings::Settings::default();
        if args::read(args, &mut settings)? == args::Asked::Help {
            return Ok(Parsed::Help);
        }
        if settings.bool("version") {
            return Ok(Parsed::Version);
        }
        let env = env::Variables::collect(env)?;
        let config_file = match settings.text("config-file") {
            path if path.is_empty() => env.config_file(),
            path => Some(path),
        };
        match config_file {
            Some(path) => settings = file::read(&path)?,
            None => env.read(&mut settings)?,
        }
        settings.map_removed();
        build::build(personality, settings).map(|run| Parsed::Run(Box::new(run)))
    }
}
