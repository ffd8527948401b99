//! Tokens as an upstream counts them in one answer.

/// `None` is "not reported", which is not zero. The parts are disjoint: `input` leaves out what was
/// read from or written to the prompt cache, whatever the dialect's own habit is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenUsage {
    pub input: Option<u64>,
    pub output: Option<u64>,
    pub cache_read: Option<u64>,
    pub cache_write: Option<u64>,
    /// Part of `output` spent on reasoning.
    pub reasoning: Option<u64>,
}

impl TokenUsage {
    /// Takes over what a later report of the same answer says; what it leaves out stays, and so does
    /// what it says is nothing (multiplexer 13.4).
    pub fn update(&mut self, later: Self) {
        let newer =
            |known: Option<u64>, said: Option<u64>| said.filter(|n| *n > 0).or(known).or(said);
        self.input = newer(self.input, later.input);
        self.output = newer(self.output, later.output);
        self.cache_read = newer(self.cache_read, later.cache_read);
        self.cache_write = newer(self.cache_write, later.cache_write);
        self.reasoning = newer(self.reasoning, later.reasoning);
    }

    pub fn is_reported(&self) -> bool {
        self.input.is_some() || self.output.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_report_wins_and_silence_keeps() {
        let mut usage = TokenUsage { input: Some(10), output: Some(1), ..Default::default() };
        usage.update(TokenUsage { output: Some(7), ..Default::default() });
        assert_eq!((usage.input, usage.output), (Some(10), Some(7)));
        usage.update(TokenUsage { input: Some(0), cache_read: Some(0), ..Default::default() });
        assert_eq!((usage.input, usage.cache_read), (Some(10), Some(0)), "nothing is no news");
        assert!(usage.is_reported());
        assert!(!TokenUsage::default().is_reported());
    }
}
