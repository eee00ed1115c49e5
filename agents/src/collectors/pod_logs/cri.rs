//! Lines as a container runtime writes them: `TIME STREAM TAG text`, where the tag `P` says that the line goes on in the
//! next entry of the same stream and `F` that it is complete.
//! Source: the logging format of the Container Runtime Interface, `kubernetes/design-proposals-archive/node/kubelet-cri-logging.md`.

/// Bytes of a line that is put together from parts; the rest of it is left out.
const JOINED_BYTES_MAX: usize = 16 << 10;

/// A line that is not complete yet.
#[derive(Default)]
struct Open {
    text: Vec<u8>,
    /// Its place among the complete ones is that of its last part.
    has_begun: bool,
}

impl Open {
    fn add(&mut self, part: &[u8]) {
        self.has_begun = true;
        let room = JOINED_BYTES_MAX.saturating_sub(self.text.len());
        self.text.extend_from_slice(&part[..part.len().min(room)]);
    }
}

/// The lines in order, their parts put together. `bytes` begin at the beginning of an entry. What is no entry is a line as
/// it stands.
pub fn lines(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (mut out, mut error) = (Open::default(), Open::default());
    let mut all = Vec::new();
    for entry in bytes.split(|byte| *byte == b'\n').filter(|entry| !entry.is_empty()) {
        let Some((stream, is_complete, text)) = parse(entry) else {
            all.push(entry.to_vec());
            continue;
        };
        let open = if stream == b"stderr" { &mut error } else { &mut out };
        open.add(text);
        if is_complete {
            all.push(std::mem::take(open).text);
        }
    }
    // It ended in the middle of a line: what there is of it may be the most telling of all.
    all.extend([out, error].into_iter().filter(|open| open.has_begun).map(|open| open.text));
    all
}

/// Stream, whether the line ends here, and text.
fn parse(entry: &[u8]) -> Option<(&[u8], bool, &[u8])> {
    let mut fields = entry.splitn(4, |byte| *byte == b' ');
    let (time, stream, tags) = (fields.next()?, fields.next()?, fields.next()?);
    let is_entry = time.first().is_some_and(u8::is_ascii_digit)
        && time.contains(&b'T')
        && [&b"stdout"[..], b"stderr"].contains(&stream);
    // Tags are separated by colons; the first one is this.
    let tag = tags.split(|byte| *byte == b':').next()?;
    match (is_entry, tag) {
        (true, b"F") => Some((stream, true, fields.next().unwrap_or_default())),
        (true, b"P") => Some((stream, false, fields.next().unwrap_or_default())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(bytes: &[u8]) -> Vec<String> {
        lines(bytes).iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect()
    }

    #[test]
    fn parts_of_a_line_are_put_together_by_stream() {
        let log = b"2026-01-01T00:00:01.000000001Z stdout P Traceback: \n\
            2026-01-01T00:00:01.000000002Z stderr F panic: no database\n\
            2026-01-01T00:00:01.000000003Z stdout P value \n\
            2026-01-01T00:00:01.000000004Z stdout F is missing\n\
            2026-01-01T00:00:02.000000000+01:00 stdout F:x \n";
        assert_eq!(texts(log), ["panic: no database", "Traceback: value is missing", ""]);
    }

    #[test]
    fn what_ends_in_the_middle_and_what_is_no_entry_is_told() {
        let log = b"not written by a runtime\n2026-01-01T00:00:01Z stderr P fatal error: out of";
        assert_eq!(texts(log), ["not written by a runtime", "fatal error: out of"]);
        assert_eq!(texts(b"2026-01-01T00:00:01Z stderr X text\n"), ["2026-01-01T00:00:01Z stderr X text"]);
        assert!(texts(b"\n\n").is_empty());
    }

    #[test]
    fn a_line_without_end_is_bounded() {
        let part = format!("2026-01-01T00:00:01Z stdout P {}\n", "x".repeat(8 << 10));
        let joined = lines(part.repeat(64).as_bytes());
        assert_eq!(joined.iter().map(Vec::len).collect::<Vec<_>>(), [JOINED_BYTES_MAX]);
    }
}
