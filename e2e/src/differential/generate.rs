//! Makes operations out of chance and of what is known about the stores. Few keys,
//! so that operations meet; every field of every request; wrong requests too.

use bytes::Bytes;
use etcd_api::etcdserverpb as pb;

use super::kubernetes::Objects;
use super::op::{Op, STREAMS, State};
use super::rng::Rng;

/// Watches a stream may have at a time.
const MAX_WATCHES: usize = 6;
/// Lives of leases, in seconds: so long that none ends during a run, and far
/// apart, because LeaseLeases is ordered by what is left of them.
const TTLS_S: [i64; 4] = [1_000_000, 2_000_000, 50_000_000, MAX_TTL_S];
/// The longest life that etcd grants.
const MAX_TTL_S: i64 = 9_000_000_000;
/// Lives that end at once. All of them mean the shortest.
const SHORT_TTLS_S: [i64; 4] = [-1, 0, 1, 2];
/// Most operations etcd allows in a transaction by default.
const MAX_TXN_OPS: usize = 128;

/// Keys with awkward neighbours. The first few make a small world of their own.
const KEYS: [&[u8]; 26] = [
    b"a",
    b"a\0",
    b"a/",
    b"a/b",
    b"a/b/c",
    b"a0",
    b"b",
    b"\xff",
    b"\0",
    b"\0\0",
    b"aa",
    b"b\xff",
    b"b\xff\xff",
    b"c",
    b"registry/pods/default/a",
    b"registry/pods/default/b",
    b"registry/pods/kube-system/a",
    b"registry/pods0",
    b"registry/leases/x",
    b"z/1",
    b"z/2",
    b"z/3",
    b"z/4",
    b"z/5",
    b"z/6",
    b"\xff\xff",
];
/// Size of the small world: etcd sorts so few keys in a defined order.
const FEW_KEYS: usize = 9;

/// A maker of operations. Equal seeds and equal knowledge give equal operations.
#[derive(Debug)]
pub struct Generator {
    pub(super) rng: Rng,
    keys: usize,
    big_values: bool,
    values: u64,
    /// Keys and values as kube-apiserver's, instead of [`KEYS`].
    objects: Option<Objects>,
    /// Whether the transaction that is being made has puts.
    pub(super) puts_in_txn: bool,
}

impl Generator {
    /// The sequence of a seed. The seed also decides how many keys there are and
    /// whether values are big.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        Self {
            keys: if rng.chance(50) { FEW_KEYS } else { KEYS.len() },
            big_values: rng.chance(30),
            rng,
            values: 0,
            objects: None,
            puts_in_txn: false,
        }
    }

    /// Works on Kubernetes' keys and objects, and often as kube-apiserver does.
    #[must_use]
    pub fn on(mut self, objects: Objects) -> Self {
        self.objects = Some(objects);
        self
    }

    /// The next operation.
    pub fn op(&mut self, state: &State) -> Op {
        if self.objects.is_some() && self.rng.chance(30) {
            return Op::Txn(self.guarded_write(state));
        }
        match self.rng.below(1000) {
            0..150 => Op::Range(self.range(state)),
            150..190 => Op::RangeStream(self.range_for_stream(state)),
            190..450 => Op::Put(self.put(state)),
            450..510 => Op::DeleteRange(self.delete_range()),
            510..710 => Op::Txn(self.txn(state, 0)),
            710..725 => Op::Compact(self.compact(state)),
            725..745 => Op::HashKv(self.hash_kv(state)),
            745..830 => self.lease(state),
            830..970 => self.watch(state),
            _ => Op::Settle,
        }
    }

    /// A short-lived lease and some keys. It takes seconds, so it is not among the
    /// others.
    pub fn expire(&mut self) -> Op {
        let count = 1 + self.rng.below(4);
        Op::LeaseExpire {
            id: 1000,
            ttl_s: self.rng.pick(&SHORT_TTLS_S),
            keys: (0..count).map(|_| self.key()).collect(),
        }
    }

    pub(super) fn key(&mut self) -> Bytes {
        match &self.objects {
            Some(objects) => objects.key(self.keys, &mut self.rng),
            None => Bytes::from_static(KEYS[self.rng.below(self.keys)]),
        }
    }

    /// A key, or none, which is refused.
    pub(super) fn key_or_none(&mut self) -> Bytes {
        if self.rng.chance(2) {
            Bytes::new()
        } else {
            self.key()
        }
    }

    /// Start and end of a range: one key, a prefix, up to the end, everything, two
    /// keys in order or not, or the empty range between equal keys.
    pub(super) fn interval(&mut self) -> (Bytes, Bytes) {
        let key = self.key_or_none();
        let end = match self.rng.below(10) {
            0..3 => Bytes::new(),
            3..5 => prefix_end(&key),
            5 => Bytes::from_static(b"\0"),
            6 => return (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
            7 => key.clone(),
            8 if self.objects.is_some() => {
                let pods = Bytes::from_static(b"/registry/pods/");
                return (pods.clone(), prefix_end(&pods));
            }
            8 => return (Bytes::from_static(b"a"), Bytes::from_static(b"s")),
            _ => self.key(),
        };
        (key, end)
    }

    /// A value for `key`.
    pub(super) fn value(&mut self, key: &[u8]) -> Bytes {
        self.values += 1;
        if let Some(objects) = &self.objects
            && self.rng.chance(95)
            && let Some(value) = objects.value(key, &mut self.rng)
        {
            return value;
        }
        match self.rng.below(12) {
            0 => Bytes::new(),
            // Few small values, which compares can hit.
            1..6 => Bytes::from(format!("v{}", self.rng.below(3))),
            6 if self.big_values => Bytes::from(vec![b'4'; 4000]),
            // Over the limit of a request that the stores are started with.
            7 if self.big_values && self.rng.chance(10) => Bytes::from(vec![b'x'; 40_000]),
            8..10 if self.big_values => {
                let mut value = format!("{:08}", self.values).into_bytes();
                value.resize(1000, b'.');
                Bytes::from(value)
            }
            _ => Bytes::from(format!("value {}", self.values)),
        }
    }

    /// A revision: now, the past, around the compaction, the future, nonsense.
    pub(super) fn revision(&mut self, state: &State) -> i64 {
        match self.rng.below(20) {
            0..12 => self
                .rng
                .between(state.compact_revision.max(1), state.revision.max(1)),
            12..15 => state.revision,
            15 => state.compact_revision + self.rng.between(-1, 1),
            16 => state.revision + self.rng.between(1, 3),
            17 => self.rng.between(1, 3),
            18 => -self.rng.between(1, 3),
            _ => self.rng.pick(&[i64::MAX, i64::MIN, 0]),
        }
    }

    fn filter_revision(&mut self, state: &State) -> i64 {
        if self.rng.chance(80) {
            0
        } else {
            self.revision(state)
        }
    }

    pub(super) fn range(&mut self, state: &State) -> pb::RangeRequest {
        let (key, range_end) = self.interval();
        let sorted = self.rng.chance(40);
        pb::RangeRequest {
            key,
            range_end,
            limit: self.limit(),
            revision: self.optional_revision(state),
            sort_order: match self.rng.below(50) {
                0 => 7,
                choice if sorted => choice as i32 % 3,
                _ => 0,
            },
            sort_target: match self.rng.below(50) {
                0 => 9,
                choice if sorted => choice as i32 % 5,
                _ => 0,
            },
            serializable: self.rng.chance(30),
            keys_only: self.rng.chance(15),
            count_only: self.rng.chance(10),
            min_mod_revision: self.filter_revision(state),
            max_mod_revision: self.filter_revision(state),
            min_create_revision: self.filter_revision(state),
            max_create_revision: self.filter_revision(state),
        }
    }

    fn range_for_stream(&mut self, state: &State) -> pb::RangeRequest {
        let mut request = self.range(state);
        if self.rng.chance(90) {
            // What it refuses is tried in the other cases.
            request.sort_order = 0;
            request.sort_target = 0;
            request.min_mod_revision = 0;
            request.max_mod_revision = 0;
            request.min_create_revision = 0;
            request.max_create_revision = 0;
        }
        if request.sort_order == 0 {
            // etcd sorts each of its chunks by itself: see decision 5.
            request.sort_target = 0;
        }
        request
    }

    fn limit(&mut self) -> i64 {
        match self.rng.below(10) {
            0..5 => 0,
            5..9 => self.rng.between(1, 12),
            _ => self.rng.pick(&[-1, i64::MAX, i64::MAX - 1, i64::MIN]),
        }
    }

    fn optional_revision(&mut self, state: &State) -> i64 {
        if self.rng.chance(60) {
            0
        } else {
            self.revision(state)
        }
    }

    pub(super) fn put(&mut self, state: &State) -> pb::PutRequest {
        let ignore_value = self.rng.chance(6);
        let ignore_lease = self.rng.chance(6);
        let key = self.key_or_none();
        pb::PutRequest {
            value: if ignore_value && self.rng.chance(80) {
                Bytes::new()
            } else {
                self.value(&key)
            },
            key,
            lease: match self.rng.below(10) {
                _ if ignore_lease && self.rng.chance(80) => 0,
                0..3 => self.lease_id(state),
                _ => 0,
            },
            prev_kv: self.rng.chance(30),
            ignore_value,
            ignore_lease,
        }
    }

    pub(super) fn delete_range(&mut self) -> pb::DeleteRangeRequest {
        let (key, mut range_end) = self.interval();
        if self.rng.chance(50) {
            // Mostly small ones, or there would never be much to see.
            range_end = Bytes::new();
        }
        pb::DeleteRangeRequest {
            key,
            range_end,
            prev_kv: self.rng.chance(40),
        }
    }

    fn compact(&mut self, state: &State) -> pb::CompactionRequest {
        pb::CompactionRequest {
            revision: if self.rng.chance(70) {
                let low = (state.compact_revision + 1).min(state.revision);
                self.rng.between(low, state.revision)
            } else {
                self.revision(state)
            },
            physical: self.rng.chance(30),
        }
    }

    fn hash_kv(&mut self, state: &State) -> pb::HashKvRequest {
        pb::HashKvRequest {
            revision: self.optional_revision(state),
        }
    }

    /// A lease that exists, mostly.
    pub(super) fn lease_id(&mut self, state: &State) -> i64 {
        let leases: Vec<i64> = state.leases.iter().copied().collect();
        if leases.is_empty() || self.rng.chance(15) {
            self.any_lease_id()
        } else {
            self.rng.pick(&leases)
        }
    }

    fn any_lease_id(&mut self) -> i64 {
        match self.rng.below(10) {
            0 => self.rng.pick(&[i64::MAX, i64::MIN, -1]),
            _ => self.rng.between(1, 6),
        }
    }

    fn lease(&mut self, state: &State) -> Op {
        match self.rng.below(10) {
            0..3 => Op::LeaseGrant(pb::LeaseGrantRequest {
                ttl: if self.rng.chance(5) {
                    MAX_TTL_S + 1
                } else {
                    self.rng.pick(&TTLS_S)
                },
                id: self.any_lease_id(),
            }),
            3 => Op::LeaseGrantAnyId {
                ttl_s: self.rng.pick(&[1000, MAX_TTL_S, MAX_TTL_S + 1, i64::MAX]),
            },
            4 => Op::LeaseRevoke(pb::LeaseRevokeRequest {
                id: self.lease_id(state),
            }),
            5..8 => Op::LeaseTimeToLive(pb::LeaseTimeToLiveRequest {
                id: self.lease_id(state),
                keys: self.rng.chance(70),
            }),
            8 => Op::LeaseLeases,
            _ => Op::LeaseKeepAlive {
                id: self.lease_id(state),
            },
        }
    }

    fn watch(&mut self, state: &State) -> Op {
        let stream = self.rng.below(STREAMS);
        let open = &state.watches[stream];
        match self.rng.below(20) {
            0..9 if open.len() < MAX_WATCHES => Op::WatchCreate {
                stream,
                request: self.watch_create(state),
            },
            9..13 => {
                let ids: Vec<i64> = open.keys().copied().collect();
                Op::WatchCancel {
                    stream,
                    watch_id: if ids.is_empty() || self.rng.chance(10) {
                        self.rng.between(-2, 12)
                    } else {
                        self.rng.pick(&ids)
                    },
                    settle: self.rng.chance(60),
                }
            }
            13..16 => Op::WatchProgress { stream },
            16..18 if state.compact_revision > 1 => {
                let mut request = self.watch_create(state);
                request.start_revision = self.rng.between(1, state.compact_revision - 1);
                Op::WatchCompacted(request)
            }
            18 => Op::StreamReset { stream },
            _ => Op::Settle,
        }
    }

    fn watch_create(&mut self, state: &State) -> pb::WatchCreateRequest {
        let (mut key, mut range_end) = self.interval();
        if self.rng.chance(30) {
            (key, range_end) = (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
        }
        pb::WatchCreateRequest {
            key,
            range_end,
            start_revision: match self.rng.below(20) {
                0..7 => 0,
                7..15 => {
                    let low = state.compact_revision.max(1);
                    self.rng.between(low, state.revision.max(low))
                }
                15..17 => state.revision + self.rng.between(1, 4),
                17..19 => state.compact_revision.max(1),
                _ => self.rng.pick(&[-1, i64::MIN]),
            },
            // Comes every ten minutes, so nothing is seen of it here.
            progress_notify: self.rng.chance(20),
            filters: match self.rng.below(10) {
                0 => vec![pb::watch_create_request::FilterType::Noput.into()],
                1 => vec![pb::watch_create_request::FilterType::Nodelete.into()],
                2 => vec![0, 1],
                3 => vec![7],
                _ => Vec::new(),
            },
            prev_kv: self.rng.chance(50),
            watch_id: match self.rng.below(10) {
                0..6 => 0,
                6..9 => self.rng.between(1, 9),
                _ => self.rng.pick(&[-5, i64::MAX, 1 << 40]),
            },
            fragment: self.rng.chance(30),
        }
    }

    /// How many operations a branch of a transaction has.
    pub(super) fn branch_len(&mut self, depth: usize) -> usize {
        match self.rng.below(200) {
            0 => MAX_TXN_OPS + 1,
            1 => MAX_TXN_OPS,
            _ => self.rng.below(if depth == 0 { 6 } else { 3 }),
        }
    }
}

/// End of the range of all keys with a prefix.
fn prefix_end(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Bytes::from(end);
        }
    }
    Bytes::from_static(b"\0")
}
