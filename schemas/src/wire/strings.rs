//! The string table: each text of a batch once, read in place.

use super::WireError;
use super::header::u32_at;

/// Borrowed view of a checked string table.
#[derive(Clone, Copy, Debug)]
pub struct Strings<'a> {
    ends: &'a [u8],
    text: &'a str,
}

impl<'a> Strings<'a> {
    /// Checks offsets and UTF-8 once, so that [`Strings::get`] cannot fail on a checked index.
    pub(super) fn check(bytes: &'a [u8], count: u32) -> Result<Self, WireError> {
        let ends_bytes = (count as usize).checked_mul(4).ok_or(WireError::Strings("count"))?;
        if ends_bytes > bytes.len() {
            return Err(WireError::Strings("more offsets than bytes"));
        }
        let (ends, text) = bytes.split_at(ends_bytes);
        let text = std::str::from_utf8(text).map_err(|_| WireError::Strings("not UTF-8"))?;
        let mut last = 0u32;
        for at in (0..ends.len()).step_by(4) {
            let end = u32_at(ends, at);
            if end < last || !text.is_char_boundary(end as usize) {
                return Err(WireError::Strings("offset out of order, out of range or inside a character"));
            }
            last = end;
        }
        if last as usize != text.len() {
            return Err(WireError::Strings("text after the last offset"));
        }
        Ok(Self { ends, text })
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len() / 4
    }

    /// True when the table is empty.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The text at `index`; the empty string for an index outside the table (a checked batch has none).
    pub fn get(&self, index: u32) -> &'a str {
        let at = index as usize * 4;
        if at + 4 > self.ends.len() {
            return "";
        }
        let start = if index == 0 { 0 } else { u32_at(self.ends, at - 4) as usize };
        self.text.get(start..u32_at(self.ends, at) as usize).unwrap_or("")
    }
}
