//! Why a forecast cannot be made, or a data set or model not be used.

use std::path::{Path, PathBuf};

/// Why a forecast cannot be made, or a data set or model not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// How the cluster is reached.
    #[error(transparent)]
    Upstream(#[from] upstream::Error),
    /// A call to the cluster.
    #[error(transparent)]
    Call(#[from] upstream::CallError),
    /// TLS files, or an address to listen on.
    #[error(transparent)]
    Wire(#[from] wire::Error),
    /// A file.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A data set that is none, or one of another schema.
    #[error("{}, line {line}: {why}", path.display())]
    DataSet {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// A data set that nothing can be learned from.
    #[error("the data set cannot be used: {0}")]
    TooLittle(String),
    /// A model that is damaged, or not one of this program.
    #[error("{}: {why}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It was refused, with the reason.
    #[error("{0}")]
    Refused(String),
}

/// A file's error, for `map_err`.
pub(crate) fn io(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io {
        action,
        path,
        source,
    }
}
