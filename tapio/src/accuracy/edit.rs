//! A recording as it is given to the pipeline: without a kind of signal, perturbed, or with other names. Line by line.

use std::io::{BufRead, Read};

use anyhow::Context;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::perturb::{Perturbation, Perturbed};
use super::rename::Renaming;

/// Longest line that is read.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// A line of a recording, its request unread.
#[derive(Deserialize)]
pub struct Envelope<'a> {
    at_unix_nano: serde_json::Value,
    /// `traces`, `metrics`, `logs`, …
    pub signal: &'a str,
    /// The request as it stands.
    #[serde(borrow)]
    pub request: &'a RawValue,
}

impl<'a> Envelope<'a> {
    /// Reads the envelope of a line.
    pub fn parse(line: &'a str) -> anyhow::Result<Self> {
        serde_json::from_str(line).context("not a line of a recording")
    }

    /// When it was observed, nanoseconds.
    pub fn at(&self) -> anyhow::Result<u64> {
        let at = &self.at_unix_nano;
        at.as_u64().or_else(|| at.as_str()?.parse().ok()).context("at_unix_nano is not a number")
    }
}

/// What is changed.
#[derive(Debug, Clone, Default)]
pub struct Edit {
    /// Lines of these signals are left out.
    pub without: Vec<String>,
    /// What remains is perturbed.
    pub perturbation: Option<Perturbation>,
    /// Names are replaced.
    pub renaming: Option<Renaming>,
}

impl Edit {
    /// True when lines pass as they are.
    pub fn is_nothing(&self) -> bool {
        self.without.is_empty() && self.perturbation.is_none() && self.renaming.is_none()
    }

    fn line(&self, line: &str) -> anyhow::Result<Option<String>> {
        let envelope = Envelope::parse(line)?;
        if self.without.iter().any(|signal| signal == envelope.signal) {
            return Ok(None);
        }
        let Some(renaming) = &self.renaming else { return Ok(Some(line.to_owned())) };
        let request = renaming.request(serde_json::from_str(envelope.request.get())?);
        let at = envelope.at()?.to_string();
        let line = serde_json::json!({"at_unix_nano": at, "signal": envelope.signal, "request": request});
        Ok(Some(line.to_string()))
    }
}

/// The lines of a source, each without its end.
fn lines(mut source: Box<dyn BufRead>) -> impl Iterator<Item = anyhow::Result<String>> {
    std::iter::from_fn(move || {
        let mut text = String::new();
        match Read::take(&mut source, LINE_BYTES_MAX).read_line(&mut text) {
            Ok(0) => None,
            Ok(_) => Some(Ok(text.trim_end().to_owned())),
            Err(error) => Some(Err(error.into())),
        }
    })
}

/// Reader of the edited lines.
pub struct Edited {
    source: Box<dyn Iterator<Item = anyhow::Result<String>>>,
    edit: Edit,
    line: Vec<u8>,
    read: usize,
}

impl Edited {
    /// Edits what `source` gives.
    pub fn new(source: Box<dyn BufRead>, edit: Edit) -> Self {
        let source: Box<dyn Iterator<Item = _>> = match edit.perturbation {
            Some(how) => Box::new(Perturbed::new(lines(source), how)),
            None => Box::new(lines(source)),
        };
        Self { source, edit, line: Vec::new(), read: 0 }
    }

    fn next_line(&mut self) -> anyhow::Result<bool> {
        (self.read, self.line) = (0, Vec::new());
        while self.line.is_empty() {
            let Some(text) = self.source.next().transpose()? else { return Ok(false) };
            if !text.is_empty()
                && let Some(line) = self.edit.line(&text)?
            {
                self.line = line.into_bytes();
                self.line.push(b'\n');
            }
        }
        Ok(true)
    }
}

impl Read for Edited {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let count = self.fill_buf()?.read(to)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Edited {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        if self.read == self.line.len() {
            self.next_line().map_err(std::io::Error::other)?;
        }
        Ok(&self.line[self.read..])
    }

    fn consume(&mut self, count: usize) {
        self.read += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_signal_are_left_out() {
        let text = "{\"at_unix_nano\":\"1\",\"signal\":\"logs\",\"request\":{}}\n\n{\"at_unix_nano\":2,\"signal\":\"traces\",\"request\":{\"a\":1}}\n";
        let edit = Edit { without: vec!["logs".to_owned()], ..Edit::default() };
        let mut left = String::new();
        Edited::new(Box::new(text.as_bytes()), edit).read_to_string(&mut left).unwrap();
        assert_eq!(left, "{\"at_unix_nano\":2,\"signal\":\"traces\",\"request\":{\"a\":1}}\n");
    }

    #[test]
    fn what_is_no_line_is_an_error() {
        let edit = Edit { without: vec!["logs".to_owned()], ..Edit::default() };
        let mut left = String::new();
        assert!(Edited::new(Box::new(&b"nonsense\n"[..]), edit).read_to_string(&mut left).is_err());
    }
}
