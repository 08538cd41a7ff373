//! What can go wrong, with the place in the file.

use std::io;

/// Why a database could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are no bbolt database, or one of a kind this crate does not read.
    #[error("this is not a bbolt database that can be read: {found}")]
    Foreign {
        /// What was found instead.
        found: String,
    },
    /// The file ends before the pages its meta page counts.
    #[error(
        "the database is cut short: it has {bytes} bytes, its meta page needs {needed}; \
         take another copy of it"
    )]
    Truncated {
        /// Bytes there are.
        bytes: u64,
        /// Bytes the meta page's high-water mark asks for.
        needed: u64,
    },
    /// A page is not what the format allows.
    #[error("the database is damaged at page {page}, byte {offset}: {what}")]
    Damaged {
        /// The page, from 0. Of an inline bucket: the page that holds it.
        page: u64,
        /// Where in the file, in bytes from its beginning.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// Reading failed.
    #[error("reading the database at byte {offset} failed: {source}")]
    Read {
        /// Where in the file, in bytes from its beginning.
        offset: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// Writing to the output failed.
    #[error("writing the database failed: {source}")]
    Write {
        /// The output's reason.
        source: io::Error,
    },
    /// A caller's argument that the format cannot hold, such as keys out of order.
    #[error("the database cannot be written: {what}")]
    Invalid {
        /// Which argument, and why.
        what: String,
    },
    /// The second pass did not bring what the first pass planned.
    #[error("the database being written differs from its plan and cannot be used: {what}")]
    Unplanned {
        /// What differs.
        what: String,
    },
}

/// Where in a file something refers to a page, for the error about it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) page: u64,
    pub(crate) offset: u64,
}

impl Place {
    pub(crate) fn damaged(self, what: impl Into<String>) -> Error {
        Error::Damaged {
            page: self.page,
            offset: self.offset,
            what: what.into(),
        }
    }
}
