//! Why nothing is decided about a service.

/// Why nothing is decided about a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hold {
    /// The cluster's objects are not known, or may be old.
    Objects(String),
    /// Round trips cannot be read, or are old.
    Latency(String),
    /// Traffic cannot be read.
    Traffic(String),
    /// There is no series of this service's traffic.
    NoSeries(String),
    /// Something in the Seika cannot be understood.
    Seika(String),
    /// What was written in an earlier round is not seen yet.
    Behind,
}

impl Hold {
    /// Names of all, for series.
    pub const NAMES: [&'static str; 6] = [
        "objects",
        "latency",
        "traffic",
        "no_series",
        "seika",
        "behind",
    ];

    /// Its name in series.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Hold::Objects(_) => "objects",
            Hold::Latency(_) => "latency",
            Hold::Traffic(_) => "traffic",
            Hold::NoSeries(_) => "no_series",
            Hold::Seika(_) => "seika",
            Hold::Behind => "behind",
        }
    }

    /// In words.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Hold::Objects(why) => format!("the cluster's objects are not current: {why}"),
            Hold::Latency(why) => format!("round trips are not current: {why}"),
            Hold::Traffic(why) => format!("traffic cannot be read: {why}"),
            Hold::NoSeries(of) => format!("there is no series of the traffic of {of}"),
            Hold::Seika(why) => why.clone(),
            Hold::Behind => "what was written last is not seen yet".into(),
        }
    }
}
