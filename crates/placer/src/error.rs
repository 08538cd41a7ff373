//! What can go wrong.

/// Why the loop does not run, or why a round has changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting that is out of its range.
    #[error("{name} is {value}; it must be {range}")]
    Setting {
        /// Its name.
        name: &'static str,
        /// What it was.
        value: String,
        /// What it may be.
        range: &'static str,
    },
    /// A setting of the decision that is out of its range.
    #[error("{0}")]
    Placement(placement::SettingsError),
    /// The pages.
    #[error(transparent)]
    Pages(#[from] wire::Error),
    /// An address that is none.
    #[error(
        "{url} is no URL of a Prometheus: {why}; it is http://HOST:PORT, with a path if it has one"
    )]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// Prometheus did not answer.
    #[error("Prometheus at {url} does not answer: {why}")]
    Silent {
        /// Its address.
        url: String,
        /// Why.
        why: String,
    },
    /// Prometheus refused a query.
    #[error("Prometheus refuses the query {query}: {why}")]
    Refused {
        /// The query.
        query: String,
        /// What it said.
        why: String,
    },
    /// An answer that is not what it should be.
    #[error("the answer to the query {query} cannot be used: {why}")]
    Answer {
        /// The query.
        query: String,
        /// What is wrong with it.
        why: String,
    },
}
