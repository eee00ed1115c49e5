//! Several recordings as one, in time order.
//!
//! Lines of one recording that are not in the order of their times are put in order as far as [`AHEAD_NS`] goes: who records
//! several senders writes down what comes first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io::BufRead;

use anyhow::Context;

use super::line::RecordedLine;

/// Longest line that is read.
const LINE_BYTES_MAX: usize = 64 << 20;

/// How much later than its turn a line may stand and still be put in order.
const AHEAD_NS: u64 = 5_000_000_000;
/// Lines of one recording that wait for their turn; then the first of them comes.
const AHEAD_LINES_MAX: usize = 65_536;
/// … and their bytes.
const AHEAD_BYTES_MAX: usize = 32 << 20;

struct Source {
    reader: Box<dyn BufRead>,
    file: usize,
    number: usize,
    /// Lines that wait, with their bytes, by time and number.
    waiting: BTreeMap<(u64, usize), (RecordedLine, usize)>,
    bytes: usize,
    newest: u64,
    is_over: bool,
}

impl Source {
    fn new(reader: Box<dyn BufRead>, file: usize) -> Self {
        Self { reader, file, number: 0, waiting: BTreeMap::new(), bytes: 0, newest: 0, is_over: false }
    }

    /// The line whose turn it is.
    fn next(&mut self) -> anyhow::Result<Option<RecordedLine>> {
        while !self.is_next_due() {
            match self.read()? {
                Some((line, bytes)) => {
                    self.newest = self.newest.max(line.at.0);
                    self.bytes += bytes;
                    self.waiting.insert((line.at.0, self.number), (line, bytes));
                }
                None => self.is_over = true,
            }
        }
        Ok(self.waiting.pop_first().map(|(_, (line, bytes))| {
            self.bytes -= bytes;
            line
        }))
    }

    fn is_next_due(&self) -> bool {
        let is_full = self.waiting.len() >= AHEAD_LINES_MAX || self.bytes >= AHEAD_BYTES_MAX;
        let first = self.waiting.first_key_value();
        let is_late = first.is_some_and(|((at, _), _)| at.saturating_add(AHEAD_NS) <= self.newest);
        self.is_over || is_full || is_late
    }

    /// The line that stands next, and its bytes.
    fn read(&mut self) -> anyhow::Result<Option<(RecordedLine, usize)>> {
        let mut text = String::new();
        loop {
            text.clear();
            let mut limited = std::io::Read::take(&mut self.reader, LINE_BYTES_MAX as u64);
            let read = limited.read_line(&mut text).with_context(|| self.place(self.number + 1))?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            if !text.trim().is_empty() {
                let line = RecordedLine::parse(&text).with_context(|| self.place(self.number))?;
                return Ok(Some((line, text.len())));
            }
        }
    }

    fn place(&self, line: usize) -> String {
        format!("file {}, line {line}", self.file + 1)
    }
}

/// Iterator over the lines of all files.
pub struct Merged {
    sources: Vec<Source>,
    /// Next line of each source by time, then by file.
    heads: BinaryHeap<Reverse<(u64, usize)>>,
    lines: Vec<Option<RecordedLine>>,
}

impl Merged {
    /// Reads the first lines of each file.
    pub fn new(files: Vec<Box<dyn BufRead>>) -> anyhow::Result<Self> {
        let sources = files.into_iter().enumerate().map(|(file, reader)| Source::new(reader, file));
        let mut merged = Self { sources: sources.collect(), heads: BinaryHeap::new(), lines: Vec::new() };
        merged.lines.resize_with(merged.sources.len(), || None);
        for file in 0..merged.sources.len() {
            merged.refill(file)?;
        }
        Ok(merged)
    }

    fn refill(&mut self, file: usize) -> anyhow::Result<()> {
        self.lines[file] = self.sources[file].next()?;
        if let Some(line) = &self.lines[file] {
            self.heads.push(Reverse((line.at.0, file)));
        }
        Ok(())
    }
}

impl Iterator for Merged {
    type Item = anyhow::Result<RecordedLine>;

    fn next(&mut self) -> Option<Self::Item> {
        let Reverse((_, file)) = self.heads.pop()?;
        let line = self.lines[file].take()?;
        Some(self.refill(file).map(|()| line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(files: &[&[u64]]) -> Vec<u64> {
        let line = |s: &u64| {
            format!("{{\"at_unix_nano\":\"{}\",\"signal\":\"logs\",\"request\":{{}}}}\n\n", s * 1_000_000_000)
        };
        let reader = |file: &&[u64]| -> Box<dyn BufRead> {
            Box::new(std::io::Cursor::new(file.iter().map(line).collect::<String>()))
        };
        let lines = Merged::new(files.iter().map(reader).collect()).unwrap();
        lines.map(|line| line.unwrap().at.0 / 1_000_000_000).collect()
    }

    #[test]
    fn lines_that_stand_a_little_late_come_in_their_turn() {
        assert_eq!(merged(&[&[103, 101, 102, 107, 104, 110]]), [101, 102, 103, 104, 107, 110]);
        assert_eq!(merged(&[&[102, 101, 109], &[105, 103]]), [101, 102, 103, 105, 109]);
    }

    #[test]
    fn a_line_that_stands_far_too_late_comes_where_it_stands() {
        assert_eq!(merged(&[&[101, 102, 120, 103, 121]]), [101, 102, 103, 120, 121]);
        assert_eq!(merged(&[&[101, 102, 120, 130, 103]]), [101, 102, 120, 103, 130]);
    }
}
