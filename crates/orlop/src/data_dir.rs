//! The data directory that a command is about, named in one way by all of them.

use std::path::PathBuf;

/// The server's own variable: who has set it for a server means that one.
const VARIABLE: &str = "ETCD_DATA_DIR";
/// The server's own default.
const DEFAULT: &str = "default.orlop";

/// A data directory, as `DATA_DIR` or `--data-dir`.
#[derive(Debug, clap::Args)]
pub(crate) struct DataDir {
    /// The server's data directory [default: $ETCD_DATA_DIR, else default.orlop].
    #[arg(id = "data-dir-positional", value_name = "DATA_DIR")]
    positional: Option<PathBuf>,
    /// The same, as the server's own flag names it.
    #[arg(
        long = "data-dir",
        value_name = "DATA_DIR",
        conflicts_with = "data-dir-positional"
    )]
    flag: Option<PathBuf>,
}

impl DataDir {
    /// Which one.
    pub(crate) fn path(&self) -> PathBuf {
        self.or(std::env::var_os(VARIABLE).map(PathBuf::from))
    }

    fn or(&self, variable: Option<PathBuf>) -> PathBuf {
        let given = self.positional.clone().or_else(|| self.flag.clone());
        let variable = variable.filter(|path| !path.as_os_str().is_empty());
        given.or(variable).unwrap_or_else(|| PathBuf::from(DEFAULT))
    }
}

#[cfg(test)]
mod tests {
    use super::DataDir;
    use clap::Parser;
    use std::path::{Path, PathBuf};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        dir: DataDir,
    }

    #[test]
    fn is_named_by_itself_by_its_flag_or_by_the_servers_variable() {
        let dir = |args: &[&str], variable: Option<&str>| {
            let line = ["orlop"].iter().chain(args);
            let parsed = Cli::try_parse_from(line).unwrap_or_else(|e| panic!("{e}"));
            parsed.dir.or(variable.map(PathBuf::from))
        };
        assert_eq!(dir(&["a"], Some("v")), Path::new("a"));
        assert_eq!(dir(&["--data-dir=a"], Some("v")), Path::new("a"));
        assert_eq!(dir(&[], Some("v")), Path::new("v"));
        assert_eq!(dir(&[], Some("")), Path::new("default.orlop"));
        assert_eq!(dir(&[], None), Path::new("default.orlop"));
        assert!(Cli::try_parse_from(["orlop", "a", "--data-dir=b"]).is_err());
    }
}
