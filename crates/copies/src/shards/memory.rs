//! What a shard holds, and from whom it takes it.

use super::message::{Ack, Begin, Collect, Frames, Hello, Welcome};
use super::{Fence, Guards, VERSION};
use journal::{HeldFrame, Lsn};
use std::collections::VecDeque;

/// Why a shard does not do what a server says. The connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// A later server was here.
    #[error(
        "a later server was here ({seen}), and this one ({told}) was replaced by it, or its \
         directory was put back to an older state"
    )]
    Fenced {
        /// The highest seen.
        seen: Fence,
        /// That of the server that speaks.
        told: Fence,
    },
    /// A server of another cluster.
    #[error("it holds frames of cluster {held:x}, and this is a server of cluster {told:x}")]
    Cluster {
        /// Its own.
        held: u64,
        /// The server's.
        told: u64,
    },
    /// Frames of a set that was not begun, or that do not follow what is there.
    #[error("frame {lsn} of set {set} does not follow what the shard has")]
    OutOfOrder {
        /// The set.
        set: u64,
        /// The frame.
        lsn: Lsn,
    },
    /// No memory for more.
    #[error(
        "the shard's memory is full: {bytes} bytes are not on the server's disk yet, and it may \
         hold {limit_bytes} (--memory-limit-bytes)"
    )]
    Full {
        /// What it would take.
        bytes: u64,
        /// What it may.
        limit_bytes: u64,
    },
}

/// The frames of one set, without a gap.
#[derive(Debug)]
struct Run {
    raft_term: u64,
    set: u64,
    /// All up to here was held, or is on the server's disk.
    held: Lsn,
    frames: VecDeque<HeldFrame>,
    bytes: u64,
}

/// A shard's memory.
#[derive(Debug)]
pub struct Shard {
    name: String,
    zone: String,
    incarnation: u64,
    limit_bytes: u64,
    cluster_id: u64,
    fence: Fence,
    run: Option<Run>,
    guards: Guards,
}

impl Shard {
    /// One that begins, with nothing in memory. `incarnation` is a random number.
    pub fn new(name: &str, zone: &str, incarnation: u64, limit_bytes: u64) -> Self {
        Shard {
            name: name.to_owned(),
            zone: zone.to_owned(),
            incarnation,
            limit_bytes,
            cluster_id: 0,
            fence: Fence::default(),
            run: None,
            guards: Guards::default(),
        }
    }

    /// The same with protections switched off.
    #[doc(hidden)]
    #[must_use]
    pub fn with_guards(self, guards: Guards) -> Self {
        Shard { guards, ..self }
    }

    /// How it begins a connection.
    pub fn hello(&self) -> Hello {
        Hello {
            version_min: VERSION,
            version_max: VERSION,
            name: self.name.clone(),
            incarnation: self.incarnation,
            zone: self.zone.clone(),
            cluster_id: self.cluster_id,
            raft_term: self.fence.raft_term,
            generation: self.fence.generation,
            limit_bytes: self.limit_bytes,
        }
    }

    /// Its number.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> u64 {
        self.run.as_ref().map_or(0, |run| run.bytes)
    }

    /// Frames that it holds.
    pub fn frames(&self) -> usize {
        self.run.as_ref().map_or(0, |run| run.frames.len())
    }

    /// The set that it is one of, and the last frame of it.
    pub fn set(&self) -> Option<(u64, Lsn)> {
        self.run.as_ref().map(|run| (run.set, run.held))
    }

    /// A server takes it: from here on it takes nothing from earlier ones.
    ///
    /// # Errors
    /// [`ShardError::Fenced`], [`ShardError::Cluster`].
    pub fn welcome(&mut self, welcome: &Welcome) -> Result<Fence, ShardError> {
        if self.cluster_id != 0 && self.cluster_id != welcome.cluster_id {
            return Err(ShardError::Cluster {
                held: self.cluster_id,
                told: welcome.cluster_id,
            });
        }
        let told = welcome.fence();
        self.of_latest(told)?;
        if self.guards.seal {
            self.fence = self.fence.max(told);
        }
        self.cluster_id = welcome.cluster_id;
        Ok(told)
    }

    fn of_latest(&self, told: Fence) -> Result<(), ShardError> {
        match told < self.fence && self.guards.fence {
            true => Err(ShardError::Fenced {
                seen: self.fence,
                told,
            }),
            false => Ok(()),
        }
    }

    /// A server that begins a set has on its disk whatever an earlier set held.
    ///
    /// # Errors
    /// [`ShardError::Fenced`].
    pub fn begin(&mut self, from: Fence, begin: &Begin) -> Result<Ack, ShardError> {
        self.of_latest(from)?;
        self.fence = self.fence.max(from);
        self.run = Some(Run {
            raft_term: from.raft_term,
            set: begin.set,
            held: begin.after,
            frames: VecDeque::new(),
            bytes: 0,
        });
        Ok(Ack {
            set: begin.set,
            held: begin.after,
            bytes: 0,
        })
    }

    /// Takes frames, all or none, and forgets what is on the server's disk.
    ///
    /// # Errors
    /// Any of [`ShardError`]; what it held before, it holds.
    pub fn take(&mut self, from: Fence, told: Frames) -> Result<Ack, ShardError> {
        self.of_latest(from)?;
        let (set, first) = (told.set, told.frames.first().map_or(0, |frame| frame.lsn));
        let out_of_order = |lsn| ShardError::OutOfOrder { set, lsn };
        let (limit_bytes, guards) = (self.limit_bytes, self.guards);
        let own = |run: &&mut Run| run.set == set && run.raft_term == from.raft_term;
        let run = self.run.as_mut().filter(own);
        let run = run.ok_or_else(|| out_of_order(first))?;
        while run.frames.front().is_some_and(|f| f.lsn <= told.synced) {
            if let Some(frame) = run.frames.pop_front() {
                run.bytes -= frame.size_bytes();
            }
        }
        run.held = run.held.max(told.synced);
        let mut held = run.held;
        let mut more = Vec::with_capacity(told.frames.len());
        for frame in told.frames {
            if frame.lsn <= held {
                continue;
            }
            if frame.lsn != held + 1 && guards.contiguity {
                return Err(out_of_order(frame.lsn));
            }
            held = frame.lsn;
            more.push(HeldFrame::from(frame));
        }
        let bytes = run.bytes + more.iter().map(HeldFrame::size_bytes).sum::<u64>();
        if bytes > limit_bytes {
            return Err(ShardError::Full { bytes, limit_bytes });
        }
        run.frames.extend(more);
        (run.held, run.bytes) = (held, bytes);
        Ok(Ack { set, held, bytes })
    }

    /// What it holds of a set after a frame, for a start that asks, and the last frame that it had;
    /// nothing and 0 if it was given nothing of that set.
    ///
    /// # Errors
    /// [`ShardError::Fenced`].
    pub fn collect(
        &self,
        from: Fence,
        asked: &Collect,
    ) -> Result<(impl Iterator<Item = &HeldFrame>, Lsn), ShardError> {
        self.of_latest(from)?;
        let Collect { set, after } = *asked;
        let own = |run: &&Run| run.set == set && run.raft_term == from.raft_term;
        let run = self.run.as_ref().filter(own);
        let frames = run.into_iter().flat_map(|run| &run.frames);
        // The one before too: it has to be the one that is on the disk.
        let frames = frames.filter(move |frame| frame.lsn >= after);
        Ok((frames, run.map_or(0, |run| run.held)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shards::message::Frame;

    fn fence(raft_term: u64, generation: u64) -> Fence {
        Fence {
            raft_term,
            generation,
        }
    }

    fn welcome(of: Fence) -> Welcome {
        Welcome {
            version: 1,
            cluster_id: 7,
            raft_term: of.raft_term,
            generation: of.generation,
            name: "s".to_owned(),
        }
    }

    fn frames(set: u64, synced: u64, lsns: &[u64]) -> Frames {
        let frame = |lsn: &u64| Frame {
            lsn: *lsn,
            headers: Vec::new(),
            bytes: vec![0; 100].into(),
        };
        Frames {
            set,
            synced,
            frames: lsns.iter().map(frame).collect(),
        }
    }

    fn lsns(shard: &Shard, from: Fence, set: u64, after: u64) -> Vec<u64> {
        let asked = Collect { set, after };
        let (held, _) = shard.collect(from, &asked).unwrap();
        held.map(|frame| frame.lsn).collect()
    }

    #[test]
    fn it_holds_a_set_without_gaps_until_it_is_on_disk() {
        let mut shard = Shard::new("a", "", 1, 1000);
        let own = fence(2, 1);
        shard.welcome(&welcome(own)).unwrap();
        let begin = Begin { set: 4, after: 10 };
        assert_eq!(shard.begin(own, &begin).unwrap().held, 10);
        assert_eq!(shard.take(own, frames(4, 10, &[11, 12])).unwrap().held, 12);
        // One comes again; one is missing.
        assert_eq!(shard.take(own, frames(4, 10, &[12, 13])).unwrap().held, 13);
        let gap = shard.take(own, frames(4, 10, &[15]));
        assert_eq!(gap, Err(ShardError::OutOfOrder { set: 4, lsn: 15 }));
        let other = shard.take(own, frames(3, 10, &[14]));
        assert_eq!(other, Err(ShardError::OutOfOrder { set: 3, lsn: 14 }));
        assert_eq!(lsns(&shard, own, 4, 11), [11, 12, 13]);
        assert_eq!(lsns(&shard, own, 5, 0), []);
        // What is on disk by now need not have come.
        assert_eq!(shard.take(own, frames(4, 14, &[15])).unwrap().held, 15);
        assert_eq!((shard.frames(), shard.set()), (1, Some((4, 15))));
        assert_eq!(shard.take(own, frames(4, 15, &[])).unwrap().bytes, 0);
        let many: Vec<u64> = (16..30).collect();
        assert!(matches!(
            shard.take(own, frames(4, 15, &many)),
            Err(ShardError::Full { .. })
        ));
        assert_eq!(shard.set(), Some((4, 15)));
    }

    #[test]
    fn from_a_welcome_on_it_takes_nothing_from_earlier_servers() {
        let mut shard = Shard::new("a", "", 1, 1000);
        let (old, new) = (fence(2, 9), fence(3, 1));
        shard.welcome(&welcome(old)).unwrap();
        shard.begin(old, &Begin { set: 1, after: 0 }).unwrap();
        shard.take(old, frames(1, 0, &[1])).unwrap();
        shard.welcome(&welcome(new)).unwrap();
        let fenced = ShardError::Fenced {
            seen: new,
            told: old,
        };
        assert_eq!(shard.take(old, frames(1, 0, &[2])), Err(fenced));
        assert_eq!(shard.begin(old, &Begin { set: 2, after: 1 }), Err(fenced));
        assert_eq!(shard.welcome(&welcome(old)), Err(fenced));
        assert_eq!(shard.hello().fence(), new);
        // A set of another term is another one, whatever its number.
        assert_eq!(lsns(&shard, new, 1, 0), []);
        let other = Welcome {
            cluster_id: 8,
            ..welcome(new)
        };
        assert!(matches!(
            shard.welcome(&other),
            Err(ShardError::Cluster { .. })
        ));
    }
}
