//! Several recordings as one, in time order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::BufRead;

use anyhow::Context;

use super::line::RecordedLine;

/// Longest line that is read.
const LINE_BYTES_MAX: usize = 64 << 20;

struct Source {
    reader: Box<dyn BufRead>,
    file: usize,
    number: usize,
}

impl Source {
    fn next(&mut self) -> anyhow::Result<Option<RecordedLine>> {
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
                return RecordedLine::parse(&text).map(Some).with_context(|| self.place(self.number));
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
    /// Reads the first line of each file.
    pub fn new(files: Vec<Box<dyn BufRead>>) -> anyhow::Result<Self> {
        let sources = files.into_iter().enumerate().map(|(file, reader)| Source { reader, file, number: 0 });
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
