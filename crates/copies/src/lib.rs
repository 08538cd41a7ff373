//! The stream of a server's records to those who keep copies of them.
//!
//! Two kinds of followers: keepers, whose stream this is, and shards ([`shards`]), which hold the
//! log's newest frames in memory.
//!
//! Pure: what the two sides say ([`message`]), what a server keeps of the stream for all who
//! follow ([`backlog`]), how it receives one who wants to follow ([`admission`]), and when it may
//! show something while it counts a keeper ([`counted`], which no server asks yet). It may not open
//! a connection, read a clock, or touch a file.
//!
//! A follower dials the server's peer URL and says in its first message who it is, which versions
//! it speaks and where it stands ([`message::Hello`]). The server answers where the stream begins
//! ([`message::Welcome`]) or why not ([`message::Refused`]); then come records in order of
//! visibility, each with its place in the stream, its frame in the server's log, its class and the
//! revision before it. The follower says how far it has them. `docs/decisions/0024-the-stream.md`
//! has the reasons.

pub mod admission;
pub mod backlog;
pub mod counted;
pub mod message;
pub mod shards;

/// The one version of the protocol that this release speaks.
pub const VERSION: u32 = 1;
/// The gRPC method that a follower calls: its service and name.
pub const METHOD: (&str, &str) = ("orlop.copies.v1.Copies", "Follow");
