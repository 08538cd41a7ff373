//! The calls by which one process of a cluster moves the lead.

use crate::cost::Ways;
use crate::error::Error;
use crate::guard::{self, Board};
use etcd_api::etcdserverpb as pb;
use pb::lease_client::LeaseClient;
use std::time::Duration;
use tokio::time::Instant;
use upstream::{CallError, Client, View, Work};

/// How long a call may take. A lead that moves takes less; one that does not is left alone.
const CALL: Duration = Duration::from_secs(3);
/// A lease is kept alive in each such part of its time.
const KEEP_PART: u32 = 3;

/// A lease of our own.
#[derive(Clone, Copy, Debug)]
struct Held {
    id: i64,
    kept: Instant,
}

/// What a process needs to act, and to tell others of its ways.
#[derive(Debug)]
pub(crate) struct Actor {
    client: Client,
    prefix: String,
    who: String,
    /// How long others wait for an actor that is gone.
    time_to_live: Duration,
    held: Option<Held>,
    told: Option<Instant>,
}

/// How a move ended.
#[derive(Debug)]
pub(crate) enum Moved {
    /// It was made.
    Made,
    /// Somebody else was first, or the keys forbid it.
    NotBegun(String),
    /// It failed, or nobody knows.
    Failed(String),
}

impl Actor {
    pub(crate) fn new(client: Client, prefix: &str, who: &str, time_to_live: Duration) -> Self {
        Actor {
            client,
            prefix: prefix.to_owned(),
            who: who.to_owned(),
            time_to_live,
            held: None,
            told: None,
        }
    }

    /// The name under which it tells others of its ways.
    pub(crate) fn name(&self) -> &str {
        &self.who
    }

    /// What the keys say.
    pub(crate) async fn board(&self) -> Result<Board, CallError> {
        let found = self.client.range(guard::board(&self.prefix), CALL).await?;
        Ok(Board::read(&self.prefix, &found.kvs))
    }

    /// The revision at which this process became the actor, if it is one by the board, and its
    /// lease is alive by its own clock too.
    pub(crate) fn acts_since(&self, board: &Board) -> Option<i64> {
        let held = self.held?;
        let (who, revision) = board.actor.as_ref()?;
        (*who == self.who && held.kept.elapsed() < self.time_to_live).then_some(*revision)
    }

    /// Has a lease, and the actor's key if `acts` and nobody else does.
    pub(crate) async fn keep(&mut self, board: &Board, acts: bool) -> Result<(), Error> {
        match self.held {
            None => {
                let asked = Instant::now();
                let id = self.grant(self.time_to_live).await?;
                self.held = Some(Held { id, kept: asked });
            }
            Some(held) if held.kept.elapsed() > self.time_to_live / KEEP_PART => {
                let asked = Instant::now();
                // One that is lost is made anew in the next round.
                self.held = match self.keep_alive(held.id).await? {
                    true => Some(Held {
                        kept: asked,
                        ..held
                    }),
                    false => None,
                };
            }
            Some(_) => {}
        }
        if let (true, None, Some(held)) = (acts, &board.actor, self.held) {
            let claim = guard::claim(&self.prefix, &self.who, held.id);
            if self.client.txn(claim, CALL).await?.succeeded {
                tracing::info!(actor = self.who, "acts for this cluster from now on");
            }
        }
        Ok(())
    }

    /// Tells others of this client's ways, a third of the lease's time after the last at the
    /// earliest.
    pub(crate) async fn tell(&mut self, ways: &Ways) -> Result<(), CallError> {
        let pause = self.time_to_live / KEEP_PART;
        let Some(held) = self.held else {
            return Ok(());
        };
        if self.told.is_some_and(|told| told.elapsed() < pause) {
            return Ok(());
        }
        let name = format!("ways/{}", self.who);
        let set = guard::set(&self.prefix, &name, &guard::ways_text(ways), held.id);
        self.client.txn(set, CALL).await?;
        self.told = Some(Instant::now());
        Ok(())
    }

    /// Sees to it that whoever has moved the lead has begun a cool-down.
    pub(crate) async fn note_leader(
        &self,
        board: &Board,
        view: &View,
        cool_down: Duration,
    ) -> Result<(), Error> {
        let (Some(since), Some(leader)) = (self.acts_since(board), &view.leader) else {
            return Ok(());
        };
        let led = format!("{:x} in term {}", leader.member_id, leader.term);
        if board.led.as_ref() == Some(&led) {
            return Ok(());
        }
        let txn = match &board.led {
            // Nobody has looked before: there is nothing that it could have changed from.
            None => guard::note_led(&self.prefix, since, &led),
            Some(was) => {
                let lease = self.grant(cool_down).await?;
                let why = format!("the lead went from {was} to {led}");
                tracing::info!(
                    from = was,
                    to = led,
                    "the lead has moved: a cool-down begins"
                );
                guard::note_change(&self.prefix, since, &led, &why, lease)
            }
        };
        self.client.txn(txn, CALL).await?;
        Ok(())
    }

    /// Moves the lead. The cool-down begins before it is known what comes of it.
    pub(crate) async fn move_to(
        &self,
        board: &Board,
        view: &View,
        to: u64,
        cool_down: Duration,
        why: &str,
    ) -> Moved {
        let begun = async {
            let Some(since) = self.acts_since(board) else {
                return Ok(Err(
                    "another process acts, or the lease is too old".to_owned()
                ));
            };
            if let Some(changed) = self.members_differ(view).await? {
                return Ok(Err(changed));
            }
            let lease = self.grant(cool_down).await?;
            let txn = guard::begin_move(&self.prefix, since, why, lease);
            match self.client.txn(txn, CALL).await?.succeeded {
                true => Ok(Ok(())),
                false => {
                    self.revoke(lease).await;
                    Ok(Err("the keys do not allow it any more".to_owned()))
                }
            }
        };
        match begun.await {
            Ok(Ok(())) => match self.client.move_leader(to, CALL).await {
                Ok(()) => Moved::Made,
                Err(error) => Moved::Failed(error.to_string()),
            },
            Ok(Err(why)) => Moved::NotBegun(why),
            Err::<_, Error>(error) => Moved::NotBegun(error.to_string()),
        }
    }

    /// Whether the members are others by now than the view has, which may be half a minute old.
    async fn members_differ(&self, view: &View) -> Result<Option<String>, CallError> {
        let list = self.client.call(Work::Read, CALL, |attempt| {
            let request = attempt.request(pb::MemberListRequest { linearizable: true });
            let mut client = pb::cluster_client::ClusterClient::new(attempt.channel);
            async move { client.member_list(request).await }
        });
        let list: pb::MemberListResponse = list.await?;
        let mut now: Vec<_> = list.members.iter().map(|m| (m.id, m.is_learner)).collect();
        let known = view
            .members
            .iter()
            .filter_map(|m| Some((m.member_id?, m.learner)));
        let mut known: Vec<_> = known.collect();
        now.sort_unstable();
        known.sort_unstable();
        Ok((now != known).then(|| "the members have changed".to_owned()))
    }

    /// Tells everybody that moves do not help.
    pub(crate) async fn give_up(&self, why: &str) -> Result<(), CallError> {
        let set = guard::set(&self.prefix, "gave-up", why, 0);
        self.client.txn(set, CALL).await.map(drop)
    }

    /// Ends the lease, so that another may act at once.
    pub(crate) async fn leave(&mut self) {
        if let Some(held) = self.held.take() {
            self.revoke(held.id).await;
        }
    }

    async fn grant(&self, time: Duration) -> Result<i64, Error> {
        let ttl = i64::try_from(time.as_secs().max(1)).unwrap_or(i64::MAX);
        let granted = self.client.call(Work::Write, CALL, |attempt| {
            let request = attempt.request(pb::LeaseGrantRequest { ttl, id: 0 });
            let mut client = LeaseClient::new(attempt.channel);
            async move { client.lease_grant(request).await }
        });
        let granted: pb::LeaseGrantResponse = granted.await?;
        match granted.error.is_empty() {
            true => Ok(granted.id),
            false => Err(Error::Refused(format!("no lease: {}", granted.error))),
        }
    }

    async fn revoke(&self, id: i64) {
        let revoked = self.client.call(Work::Write, CALL, |attempt| {
            let request = attempt.request(pb::LeaseRevokeRequest { id });
            let mut client = LeaseClient::new(attempt.channel);
            async move { client.lease_revoke(request).await }
        });
        // One that stays ends by itself.
        let _: Result<pb::LeaseRevokeResponse, _> = revoked.await;
    }

    /// Whether the lease is alive.
    async fn keep_alive(&self, id: i64) -> Result<bool, CallError> {
        let mut stream = self
            .client
            .call(Work::Read, CALL, |attempt| {
                let once = tokio_stream::once(pb::LeaseKeepAliveRequest { id });
                let request = attempt.request(once);
                let mut client = LeaseClient::new(attempt.channel);
                async move { client.lease_keep_alive(request).await }
            })
            .await?;
        let answer = tokio::time::timeout(CALL, stream.message()).await;
        Ok(matches!(answer, Ok(Ok(Some(kept))) if kept.ttl > 0))
    }
}
