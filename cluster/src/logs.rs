//! What of the workers' log lines is shown: each once, not too many, and always the last ones when something failed.
//!
//! All the lines are in the log files; this is for people who watch. Pure: the time is an input.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// How many lines are let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Lines a second from one member, on average.
    pub per_second: u32,
    /// Lines from one member at once.
    pub burst: u32,
    /// The same line, from whichever member, is shown once in this time.
    pub repeat: Duration,
    /// Lines of each member kept for a failure's report.
    pub tail: usize,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { per_second: 100, burst: 1000, repeat: Duration::from_secs(5), tail: 30 }
    }
}

/// A line that is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// The member it came from first.
    pub rank: u32,
    /// The line.
    pub text: String,
    /// How often the same line was left out since it was last shown, over all members.
    pub repeated: u64,
    /// How many of this member's lines were left out before this one, because there were too many.
    pub dropped: u64,
}

/// The most distinct lines remembered to tell repetitions.
const REMEMBERED: usize = 512;

struct Source {
    tokens: f64,
    refilled: Duration,
    dropped: u64,
    tail: VecDeque<String>,
}

struct Seen {
    shown: Duration,
    repeated: u64,
}

/// Decides which lines of a gang are shown.
pub struct LogGate {
    limits: LogLimits,
    sources: Vec<Source>,
    seen: HashMap<String, Seen>,
}

impl LogGate {
    /// A gate for so many members.
    pub fn new(limits: LogLimits, members: usize) -> Self {
        let source = || Source {
            tokens: f64::from(limits.burst),
            refilled: Duration::ZERO,
            dropped: 0,
            tail: VecDeque::new(),
        };
        Self { limits, sources: (0..members).map(|_| source()).collect(), seen: HashMap::new() }
    }

    /// Takes a line in; returns it if it is to be shown.
    pub fn line(&mut self, now: Duration, rank: u32, text: String) -> Option<LogLine> {
        let source = self.sources.get_mut(rank as usize)?;
        source.tail.push_back(text.clone());
        if source.tail.len() > self.limits.tail {
            source.tail.pop_front();
        }
        let passed = now.saturating_sub(source.refilled).as_secs_f64();
        let refill = passed * f64::from(self.limits.per_second);
        source.tokens = (source.tokens + refill).min(f64::from(self.limits.burst));
        source.refilled = now;

        if let Some(seen) = self.seen.get_mut(&text)
            && now < seen.shown + self.limits.repeat
        {
            seen.repeated += 1;
            return None;
        }
        if source.tokens < 1.0 {
            source.dropped += 1;
            return None;
        }
        source.tokens -= 1.0;
        let dropped = std::mem::take(&mut source.dropped);
        if self.seen.len() >= REMEMBERED {
            let repeat = self.limits.repeat;
            self.seen.retain(|_, seen| now < seen.shown + repeat);
            if self.seen.len() >= REMEMBERED {
                self.seen.clear();
            }
        }
        let before = self.seen.insert(text.clone(), Seen { shown: now, repeated: 0 });
        Some(LogLine { rank, text, repeated: before.map_or(0, |seen| seen.repeated), dropped })
    }

    /// Counts lines that were lost before they came here.
    pub fn lost(&mut self, rank: u32, lines: u64) {
        if let Some(source) = self.sources.get_mut(rank as usize) {
            source.dropped += lines;
        }
    }

    /// The last lines of a member.
    pub fn tail(&self, rank: u32) -> Vec<String> {
        self.sources.get(rank as usize).map_or_else(Vec::new, |source| source.tail.iter().cloned().collect())
    }
}
