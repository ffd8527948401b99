//! Inputs made of inputs: seeded, so that a finding can be made again.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Words that turn one case into another where chance alone would take long.
const WORDS: [&[u8]; 32] = [
    b"\n\n",
    b"\r\n",
    b"\r",
    b"data: ",
    b"event: ",
    b"codex.rate_limits",
    b"codex.",
    b"[DONE]",
    b"response.completed",
    b"\"type\":\"error\"",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b"\\u00e9",
    b"\\ud800",
    b",",
    b":",
    b"null",
    b"-0.1e+5",
    b"\xef\xbb\xbf",
    b"\xff",
    b"\0",
    b"/",
    b"..",
    b"%2f",
    b"authorization:Bearer k",
    b"connection:x-codex-hop",
    b"\x81\x00",
    b"\x88\x02\x03\xe8",
];

const LONGEST: usize = 16 << 10;

pub struct Mutations<'a> {
    corpus: &'a [Vec<u8>],
    random: StdRng,
}

impl<'a> Mutations<'a> {
    pub fn new(corpus: &'a [Vec<u8>], seed: u64) -> Self {
        Self { corpus, random: StdRng::seed_from_u64(seed) }
    }

    fn one(&mut self) -> Vec<u8> {
        let corpus = self.corpus;
        corpus[self.random.random_range(0..corpus.len())].clone()
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        let at = self.random.random_range(0..=input.len());
        let to = self.random.random_range(at..=input.len().min(at + 32));
        match self.random.random_range(0..7) {
            0 => drop(input.drain(at..to)),
            1 => {
                let again = input[at..to].to_vec();
                input.splice(at..at, again);
            }
            2 => {
                let word = WORDS[self.random.random_range(0..WORDS.len())];
                input.splice(at..at, word.iter().copied());
            }
            3 => {
                let word = WORDS[self.random.random_range(0..WORDS.len())];
                input.splice(at..to, word.iter().copied());
            }
            4 => {
                let other = self.one();
                let from = self.random.random_range(0..=other.len());
                input.splice(at.., other[from..].iter().copied());
            }
            5 => input.truncate(at),
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << self.random.random_range(0..8);
                }
            }
        }
        input.truncate(LONGEST);
    }
}

impl Iterator for Mutations<'_> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let mut input = self.one();
        for _ in 0..self.random.random_range(1..5) {
            self.change(&mut input);
        }
        Some(input)
    }
}
