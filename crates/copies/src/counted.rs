//! How one counted keeper stands with its server, and what may be shown because of that: a state
//! machine without connections, files and clock.
//!
//! It is told who comes, goes and acknowledges, and says what to do next ([`Act`]) and whether an
//! entry may be shown ([`Counted::may_show`]). What must outlive the server's process is noted in
//! its directory ([`Noted`]), before anything is done because of it. Sequences are those of the
//! tap, of one run of the server; `docs/decisions/0032-counted-keepers.md` has the reasons.

/// What the server does when the keeper is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenGone {
    /// Nothing is shown until it is back: no acknowledged write is lost with the machine.
    Wait,
    /// It is noted as left behind, and the server goes on without it.
    GoOn,
}

/// What the server's directory says of the keeper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Noted {
    /// Nothing: it never counted.
    #[default]
    Never,
    /// It has all that was acknowledged.
    Counts,
    /// The server went on without it.
    Left,
    /// It has all that was shown, and may have been told that the server waits for it: as long as
    /// it has not been told otherwise, it can be promoted exactly.
    Promised,
}

/// Something to do. It is asked for again until it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Note this in the directory, synced; then [`Counted::noted`].
    Note(Noted),
    /// Tell the keeper that the server waits for it; then [`Counted::promised`].
    Promise {
        /// Its connection.
        session: u64,
    },
}

/// Protections that tests switch off, one at a time, to see a test fail without them.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Guards {
    /// What is shown is on the keeper's disk.
    pub synced: bool,
    /// That the server goes on alone is noted before it does.
    pub note: bool,
    /// A keeper counts only when it has all that was shown.
    pub all: bool,
    /// A start that waits shows nothing of its log before the keeper has it.
    pub start: bool,
    /// A promise holds until the keeper has heard that it does not.
    pub promise: bool,
}

impl Default for Guards {
    fn default() -> Self {
        Guards {
            synced: true,
            note: true,
            all: true,
            start: true,
            promise: true,
        }
    }
}

/// The connection of a keeper that does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Down,
    /// It has acknowledged nothing by this connection.
    Joining(u64),
    /// All up to here is on its disk.
    Synced {
        session: u64,
        synced: u64,
    },
}

impl Link {
    fn session(self) -> Option<u64> {
        match self {
            Link::Down => None,
            Link::Joining(session) | Link::Synced { session, .. } => Some(session),
        }
    }
}

/// A keeper that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counting {
    session: u64,
    synced: u64,
    told: Told,
    debt: Debt,
}

/// What the keeper was told by its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Nothing,
    Promise,
}

/// Whether the keeper owes an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Debt {
    Paid,
    SinceMs(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The server has started, and shows nothing: its log may have more than the keeper.
    Starting(Link),
    /// Nothing more is shown. All that was shown is on the keeper's disk.
    Awaited(Link),
    /// Nothing more is shown until it is noted that the server goes on.
    Leaving(Link),
    /// The server goes on without it.
    Left(Link),
    /// What it has on its disk is shown.
    Counting(Counting),
}

/// How the keeper stands, for an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The server has started, and waits for it before it answers anything.
    Starting,
    /// Durable writes wait for it to come back.
    Awaited,
    /// It is being noted that the server goes on without it.
    Leaving,
    /// The server goes on without it.
    Left,
    /// Durable writes wait for its disk.
    Counting,
}

/// One counted keeper.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    when_gone: WhenGone,
    noted: Noted,
    state: State,
    guards: Guards,
}

/// Whether a server that does not count a keeper may start from a directory that says this of it.
/// Not with a promise: the keeper could be promoted exactly, and would not have what the server
/// shows from here on.
pub fn may_be_uncounted(noted: Noted) -> bool {
    noted != Noted::Promised
}

impl Counted {
    /// The server starts, and its directory says `noted`.
    pub fn start(when_gone: WhenGone, noted: Noted, guards: Guards) -> Self {
        let bound = noted == Noted::Promised && guards.promise;
        let state = match (when_gone, noted) {
            (WhenGone::Wait, _) => State::Starting(Link::Down),
            // It counts on not being left behind, until it has heard from this server.
            (WhenGone::GoOn, Noted::Promised) if bound => State::Starting(Link::Down),
            (WhenGone::GoOn, Noted::Left) => State::Left(Link::Down),
            (WhenGone::GoOn, _) => State::Leaving(Link::Down),
        };
        Counted {
            when_gone,
            noted,
            state,
            guards,
        }
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        match self.state {
            State::Starting(_) => Standing::Starting,
            State::Awaited(_) => Standing::Awaited,
            State::Leaving(_) => Standing::Leaving,
            State::Left(_) => Standing::Left,
            State::Counting(_) => Standing::Counting,
        }
    }

    /// Whether what the log had at the start may be shown to anybody.
    pub fn may_serve(&self) -> bool {
        match self.state {
            State::Starting(_) => !self.guards.start,
            State::Leaving(_) => self.noted == Noted::Left || !self.guards.note,
            State::Awaited(_) | State::Left(_) | State::Counting(_) => true,
        }
    }

    /// Whether the entry with this sequence may be shown, and its writer answered.
    pub fn may_show(&self, sequence: u64) -> bool {
        match self.state {
            State::Starting(_) | State::Awaited(_) => false,
            State::Leaving(_) => !self.guards.note,
            State::Left(_) => true,
            State::Counting(counting) => counting.synced >= sequence || !self.guards.synced,
        }
    }

    /// The keeper is connected anew. What an earlier connection said counts no more.
    pub fn joined(&mut self, session: u64) {
        self.unlink(Link::Joining(session));
    }

    /// A connection is gone.
    pub fn lost(&mut self, session: u64) {
        if self.session() == Some(session) {
            self.unlink(Link::Down);
        }
    }

    /// By this connection: all up to `synced` is on the keeper's disk. `shown` is the last entry
    /// that anybody was shown. A connection's first acknowledgement comes after the keeper has
    /// noted, on its disk, that what it was told before is void.
    pub fn acked(&mut self, session: u64, synced: u64, shown: u64) {
        if self.session() != Some(session) {
            return;
        }
        let at = Link::Synced { session, synced };
        match &mut self.state {
            State::Counting(counting) => {
                if synced > counting.synced {
                    counting.synced = synced;
                    counting.debt = Debt::Paid;
                }
            }
            State::Starting(link)
            | State::Awaited(link)
            | State::Leaving(link)
            | State::Left(link) => *link = at,
        }
        self.settle(shown);
    }

    /// Somebody waits for the entry `wanted`. A keeper that has not acknowledged anything new for
    /// longer than `limit_ms` is gone, also with a connection that stands. True if so.
    pub fn owes(&mut self, wanted: u64, now_ms: u64, limit_ms: u64) -> bool {
        let State::Counting(counting) = &mut self.state else {
            return false;
        };
        if counting.synced >= wanted {
            counting.debt = Debt::Paid;
            return false;
        }
        match counting.debt {
            Debt::Paid => {
                counting.debt = Debt::SinceMs(now_ms);
                false
            }
            Debt::SinceMs(since) if now_ms.saturating_sub(since) <= limit_ms => false,
            Debt::SinceMs(_) => {
                let session = counting.session;
                self.lost(session);
                true
            }
        }
    }

    /// What to do next, if anything.
    pub fn act(&self) -> Option<Act> {
        match (self.state, self.when_gone, self.noted) {
            (State::Leaving(_), _, _) => Some(Act::Note(Noted::Left)),
            (State::Counting(counting), WhenGone::Wait, Noted::Promised) => {
                let session = counting.session;
                (counting.told == Told::Nothing).then_some(Act::Promise { session })
            }
            // Before it is told: a later start has to know.
            (State::Counting(_), WhenGone::Wait, _) => Some(Act::Note(Noted::Promised)),
            (State::Counting(_), WhenGone::GoOn, Noted::Counts) => None,
            (State::Counting(_), WhenGone::GoOn, _) => Some(Act::Note(Noted::Counts)),
            (State::Starting(_) | State::Awaited(_) | State::Left(_), _, _) => None,
        }
    }

    /// The directory says this now, on its disk.
    pub fn noted(&mut self, noted: Noted, shown: u64) {
        self.noted = noted;
        if let (State::Leaving(link), Noted::Left) = (self.state, noted) {
            self.state = State::Left(link);
            self.settle(shown);
        }
    }

    /// The keeper is being told that the server waits for it.
    pub fn promised(&mut self, session: u64) {
        if let State::Counting(counting) = &mut self.state
            && counting.session == session
        {
            counting.told = Told::Promise;
        }
    }

    fn session(&self) -> Option<u64> {
        match self.state {
            State::Starting(link)
            | State::Awaited(link)
            | State::Leaving(link)
            | State::Left(link) => link.session(),
            State::Counting(counting) => Some(counting.session),
        }
    }

    /// Another connection, or none.
    fn unlink(&mut self, link: Link) {
        self.state = match (self.state, self.when_gone) {
            (State::Starting(_), _) => State::Starting(link),
            (State::Leaving(_), _) => State::Leaving(link),
            (State::Left(_), _) => State::Left(link),
            (State::Awaited(_) | State::Counting(_), WhenGone::Wait) => State::Awaited(link),
            (State::Awaited(_) | State::Counting(_), WhenGone::GoOn) => State::Leaving(link),
        };
    }

    /// It counts once it has all that was shown.
    fn settle(&mut self, shown: u64) {
        let (State::Starting(link) | State::Awaited(link) | State::Left(link)) = self.state else {
            return;
        };
        if let Link::Synced { session, synced } = link
            && (synced >= shown || !self.guards.all)
        {
            self.state = State::Counting(Counting {
                session,
                synced,
                told: Told::Nothing,
                debt: Debt::Paid,
            });
        }
    }
}
