//! Message headers.

use async_nats::HeaderMap;

/// Headers of a message: few, so a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// No headers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a header. What would break the protocol is replaced: line ends in the value by spaces,
    /// everything but visible ASCII in the name by `-`, and colons too.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let clean = |c: char| if c.is_ascii_graphic() && c != ':' { c } else { '-' };
        let name = name.into().chars().map(clean).collect();
        self.0.push((name, value.into().replace(['\r', '\n'], " ")));
        self
    }

    /// Removes every value of this name.
    pub(super) fn remove(&mut self, name: &str) {
        self.0.retain(|(key, _)| key != name);
    }

    /// The first value of this name; names are case-sensitive.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// All headers.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub(super) fn to_map(&self) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in self.iter().filter(|(name, _)| !name.is_empty()) {
            map.append(name, value);
        }
        map
    }

    pub(super) fn from_map(map: Option<&HeaderMap>) -> Self {
        let Some(map) = map else { return Self::default() };
        let pairs = map.iter().flat_map(|(name, values)| {
            values.iter().map(move |value| (name.to_string(), value.as_str().to_owned()))
        });
        Self(pairs.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_headers_cannot_break_the_protocol() {
        let headers = Headers::new().with("A b:\r\nc", "x\r\nEvil: yes").with("Plain", "v");
        assert_eq!(headers.get("A-b---c"), Some("x  Evil: yes"));
        let back = Headers::from_map(Some(&headers.to_map()));
        assert_eq!(back.get("Plain"), Some("v"));
        assert_eq!(back.iter().count(), 2);
    }
}
