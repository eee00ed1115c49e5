//! The text form of metrics: Prometheus 0.0.4 and OpenMetrics 1.0, line by line.
//!
//! Reference: <https://prometheus.io/docs/instrumenting/exposition_formats/>. Comments (`HELP`, `TYPE`, `EOF`), exemplars
//! and times of samples are left out: a sample counts for the time of the scrape.

use std::borrow::Cow;

/// Bytes of a line; a longer one is skipped and counted.
pub const LINE_BYTES_MAX: usize = 64 << 10;
/// Labels of a sample; a sample with more is skipped and counted.
pub const LABELS_MAX: usize = 64;

/// One sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample<'a> {
    /// `http_requests_total`.
    pub name: &'a str,
    /// In the order of the line.
    pub labels: Vec<(&'a str, Cow<'a, str>)>,
    /// May be infinite or no number.
    pub value: f64,
}

impl Sample<'_> {
    /// Value of a label; empty when it is not there, as Prometheus has it.
    pub fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value)
    }
}

/// The sample of a line; `Ok(None)` for comments and empty lines.
///
/// # Errors
/// The reason, in words, when it is neither.
pub fn parse(line: &str) -> Result<Option<Sample<'_>>, &'static str> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let end = line.find(|c: char| c == '{' || c.is_ascii_whitespace()).ok_or("a name without a value")?;
    let (name, rest) = line.split_at(end);
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_:".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_name) || name.as_bytes()[0].is_ascii_digit() {
        return Err("a name that is none");
    }
    let rest = rest.trim_start();
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let value = rest.split_ascii_whitespace().next().ok_or("no value")?;
    Ok(Some(Sample { name, labels, value: number(value).ok_or("a value that is no number")? }))
}

type Labels<'a> = Vec<(&'a str, Cow<'a, str>)>;

/// `a="b",c="d"} rest`.
fn labels(mut rest: &str) -> Result<(Labels<'_>, &str), &'static str> {
    let mut all = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ', '\t']);
        if let Some(rest) = rest.strip_prefix('}') {
            return Ok((all, rest));
        }
        let (key, after) = rest.split_once('=').ok_or("a label without a value")?;
        let quoted = after.trim_start().strip_prefix('"').ok_or("a label whose value is not quoted")?;
        let (value, after) = unquoted(quoted).ok_or("a label whose value does not end")?;
        if all.len() >= LABELS_MAX {
            return Err("too many labels");
        }
        all.push((key.trim(), value));
        rest = after;
    }
}

/// The text up to the closing quote, and what follows. `\\`, `\"` and `\n` are escapes.
fn unquoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut escaped: Option<String> = None;
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match (letter, &mut escaped) {
            ('"', None) => return Some((Cow::Borrowed(&text[..at]), &text[at + 1..])),
            ('"', Some(_)) => return Some((Cow::Owned(escaped?), &text[at + 1..])),
            ('\\', _) => {
                let text = escaped.get_or_insert_with(|| text[..at].to_owned());
                match letters.next()?.1 {
                    'n' => text.push('\n'),
                    other => text.push(other),
                }
            }
            (letter, Some(text)) => text.push(letter),
            (_, None) => {}
        }
    }
    None
}

/// Also `+Inf`, `-Inf` and `NaN`.
pub fn number(text: &str) -> Option<f64> {
    text.parse().ok()
}

/// Cuts chunks of a body into lines, with bounded memory.
#[derive(Debug, Default)]
pub struct Lines {
    rest: Vec<u8>,
    skipping: bool,
    /// Lines that were too long or no text.
    pub broken: u64,
}

impl Lines {
    /// Gives every line that ends in `chunk`.
    pub fn take(&mut self, chunk: &[u8], each: &mut impl FnMut(&str)) {
        for part in chunk.split_inclusive(|byte| *byte == b'\n') {
            let ends = part.ends_with(b"\n");
            if self.skipping || self.rest.len() + part.len() > LINE_BYTES_MAX {
                self.skipping = true;
                self.rest.clear();
            } else {
                self.rest.extend_from_slice(part);
            }
            if ends {
                self.end(each);
            }
        }
    }

    /// The last line, which may have no end.
    pub fn end(&mut self, each: &mut impl FnMut(&str)) {
        match std::str::from_utf8(&self.rest) {
            Ok(line) if !self.skipping => each(line),
            _ => self.broken += 1,
        }
        self.rest.clear();
        self.skipping = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(line: &str) -> Sample<'_> {
        parse(line).unwrap().unwrap()
    }

    #[test]
    fn samples_have_names_labels_and_values() {
        let plain = sample("up 1");
        assert_eq!((plain.name, plain.value, plain.labels.len()), ("up", 1.0, 0));
        let labelled = sample(r#"a:b_total{path="C:\\x \"y\"\n",code="200",} 1.5e3 1395066363000"#);
        assert_eq!((labelled.label("path"), labelled.label("code")), ("C:\\x \"y\"\n", "200"));
        assert_eq!((labelled.value, labelled.label("none")), (1500.0, ""));
        let bucket = sample(r##"d_bucket{le="+Inf"} 4 # {trace_id="x"} 0.5"##);
        assert_eq!((bucket.label("le"), bucket.value), ("+Inf", 4.0));
        assert!(number(bucket.label("le")).unwrap().is_infinite());
        assert!(sample("x NaN").value.is_nan());
        assert_eq!(sample(r#"x{a="}"} 2"#).label("a"), "}");
        for nothing in ["", "  ", "# HELP a b", "# TYPE a counter", "# EOF"] {
            assert_eq!(parse(nothing).unwrap(), None);
        }
    }

    #[test]
    fn what_is_no_sample_is_refused_with_the_reason() {
        let many: String = (0..=LABELS_MAX).map(|i| format!("l{i}=\"\",")).collect();
        for (line, reason) in [
            ("up", "a name without a value"),
            ("1up 1", "a name that is none"),
            ("<html> 1", "a name that is none"),
            ("up{a=1} 1", "a label whose value is not quoted"),
            ("up{a=\"1} 1", "a label whose value does not end"),
            ("up{a} 1", "a label without a value"),
            ("up{a=\"b\"}", "no value"),
            ("up one", "a value that is no number"),
            (&format!("up{{{many}}} 1"), "too many labels"),
        ] {
            assert_eq!(parse(line), Err(reason), "{line}");
        }
    }

    #[test]
    fn lines_are_put_together_from_any_chunks_and_long_ones_are_skipped() {
        let long = "x".repeat(LINE_BYTES_MAX + 1);
        let text = format!("a 1\nb 2\n{long}\nc 3\n\u{e9} 4");
        for size in [1, 3, 1000, text.len()] {
            let (mut lines, mut seen) = (Lines::default(), Vec::new());
            for chunk in text.as_bytes().chunks(size) {
                lines.take(chunk, &mut |line| seen.push(line.trim().to_owned()));
            }
            lines.end(&mut |line| seen.push(line.to_owned()));
            assert_eq!((seen, lines.broken), (["a 1", "b 2", "c 3", "é 4"].map(str::to_owned).to_vec(), 1));
        }
    }
}
