//! Text that is always the same for the same seed, and looks like documentation to a
//! compressor and a parser.

/// Syllables of names and sentences.
const SYLLABLES: [&str; 32] = [
    "al", "ba", "con", "der", "el", "fi", "gra", "hy", "in", "jo", "ka", "lem", "mo", "ner", "or",
    "pra", "qui", "re", "sta", "ten", "ul", "ver", "wi", "xe", "ya", "zon", "ad", "ter", "sio",
    "men", "ti", "ous",
];

/// A source of words: a linear congruential generator with Knuth's constants.
#[derive(Debug, Clone)]
pub(crate) struct Words(u64);

impl Words {
    /// The words of `seed`.
    pub(crate) fn new(seed: u64) -> Words {
        let mut words = Words(seed);
        words.below(2);
        words
    }

    /// A number below `bound`, which is not zero.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        // The upper bits are the better ones.
        ((self.0 >> 33) as usize) % bound.max(1)
    }

    /// One word of two to four syllables.
    pub(crate) fn word(&mut self) -> String {
        let count = 2 + self.below(3);
        let syllables = (0..count).map(|_| SYLLABLES[self.below(SYLLABLES.len())]);
        syllables.collect()
    }

    /// A name in camel case.
    pub(crate) fn name(&mut self) -> String {
        let mut name = self.word();
        let more = self.word();
        let (head, tail) = more.split_at(1);
        name.push_str(&head.to_uppercase());
        name.push_str(tail);
        name
    }

    /// Sentences of about `len` bytes.
    pub(crate) fn text(&mut self, len: usize) -> String {
        let mut text = String::with_capacity(len + 16);
        while text.len() < len {
            if !text.is_empty() {
                text.push_str(if self.below(9) == 0 { ". " } else { " " });
            }
            let word = self.word();
            text.push_str(&word);
        }
        text.push('.');
        text
    }

    /// `len` bytes that do not compress, as base64 has them.
    pub(crate) fn noise(&mut self, len: usize) -> String {
        const ALPHABET: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        (0..len)
            .map(|_| char::from(ALPHABET[self.below(ALPHABET.len())]))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_says_the_same() {
        let say = |seed| {
            let mut words = Words::new(seed);
            (words.text(100), words.name(), words.noise(8))
        };
        assert_eq!(say(7), say(7));
        assert_ne!(say(7), say(8));
        let text = say(7).0;
        assert!((100..130).contains(&text.len()), "{text}");
    }
}
