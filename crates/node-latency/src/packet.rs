//! The echo's one packet. An answer has the size of its question, so nobody can have an agent send
//! more than it was sent.
//!
//! | bytes | |
//! |---|---|
//! | 0 to 3 | `OLAT` |
//! | 4 | version, 1 |
//! | 5 | 1: question, 2: answer |
//! | 6, 7 | 0 |
//! | 8 to 23 | the question's nonce |
//!
//! A nonce is random and used once: who does not see the question cannot forge its answer.

/// Size of a packet in bytes.
pub const SIZE: usize = 24;
/// Version of the format.
pub const VERSION: u8 = 1;
const MAGIC: [u8; 4] = *b"OLAT";

/// What ties an answer to its question.
pub type Nonce = [u8; 16];

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// To be answered.
    Question(Nonce),
    /// The answer to the question of this nonce.
    Answer(Nonce),
}

impl Packet {
    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; SIZE] {
        let (kind, nonce) = match self {
            Packet::Question(nonce) => (1, nonce),
            Packet::Answer(nonce) => (2, nonce),
        };
        let mut bytes = [0; SIZE];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = kind;
        bytes[8..].copy_from_slice(nonce);
        bytes
    }

    /// Reads a packet; `None` for anything else than exactly one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; SIZE] = bytes.try_into().ok()?;
        if bytes[..4] != MAGIC || bytes[4] != VERSION || bytes[6..8] != [0, 0] {
            return None;
        }
        let mut nonce = Nonce::default();
        nonce.copy_from_slice(&bytes[8..]);
        match bytes[5] {
            1 => Some(Packet::Question(nonce)),
            2 => Some(Packet::Answer(nonce)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(nonce in any::<Nonce>()) {
            for packet in [Packet::Question(nonce), Packet::Answer(nonce)] {
                prop_assert_eq!(Packet::decode(&packet.encode()), Some(packet));
            }
        }

        #[test]
        fn no_other_bytes_are_a_packet(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(packet) = Packet::decode(&bytes) {
                prop_assert_eq!(packet.encode().to_vec(), bytes);
            }
        }

        #[test]
        fn a_changed_head_is_no_packet(nonce in any::<Nonce>(), at in 0_usize..8, bit in 0_u8..8) {
            let mut bytes = Packet::Question(nonce).encode();
            bytes[at] ^= 1 << bit;
            prop_assert_ne!(Packet::decode(&bytes), Some(Packet::Question(nonce)));
        }
    }
}
