//! Identifiers and scores as newtypes, so that they cannot be mixed up.

use std::fmt;
use std::str::FromStr;

use rkyv::{Archive, Deserialize, Serialize};
use serde::de::Error as _;

/// An identifier, time or score that is not in the expected form.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdError {
    /// Not hexadecimal, or of the wrong length.
    #[error("`{text}` is not {expected} hexadecimal digits")]
    Hex {
        /// What was given.
        text: String,
        /// Number of digits wanted.
        expected: usize,
    },
    /// A score outside of 0..=1, or not a number.
    #[error("{0} is not a score between 0 and 1")]
    Score(String),
    /// A time that is not RFC 3339 and not unsigned nanoseconds.
    #[error("`{0}` is neither an RFC 3339 time nor unix nanoseconds")]
    Time(String),
}

fn parse_hex(text: &str, digits: usize) -> Result<u128, IdError> {
    let well_formed = text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !well_formed {
        return Err(IdError::Hex { text: text.chars().take(64).collect(), expected: digits });
    }
    u128::from_str_radix(text, 16).map_err(|_| IdError::Hex { text: text.to_owned(), expected: digits })
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $int:ty, $digits:literal, $prefix:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Archive, Serialize, Deserialize,
        )]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{:0", $digits, "x}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let digits = text.strip_prefix($prefix).unwrap_or(text);
                Ok(Self(parse_hex(digits, $digits)? as $int))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(D::Error::custom)
            }
        }
    };
}

hex_id!(
    /// Event id: the event's millisecond in the upper 48 bits, then 80 bits of hash, so ids sort by time.
    EventId, u128, 32, "evt-"
);
hex_id!(
    /// W3C trace id, 16 bytes big endian. Zero means "no trace".
    TraceId, u128, 32, ""
);
hex_id!(
    /// W3C span id, 8 bytes big endian. Zero means "no span".
    SpanId, u64, 16, ""
);
hex_id!(
    /// Signal id: a hash of cluster, entity, kind and onset.
    SignalId, u128, 32, "sig-"
);
hex_id!(
    /// Finding id: a hash of the cluster and the first signal of the incident.
    FindingId, u128, 32, "fnd-"
);
hex_id!(
    /// Semantic group id: a hash of cluster, key and group type.
    GroupId, u128, 32, "grp-"
);
hex_id!(
    /// A process that publishes batches; stable for one run of one component on one node.
    ProducerId, u64, 16, ""
);

impl EventId {
    /// Builds an id from event time and anything that tells this event from others at that time.
    pub fn derive(at: UnixNanos, seed: &[u8]) -> Self {
        let hash = xxhash_rust::xxh3::xxh3_128(seed) & ((1 << 80) - 1);
        Self((u128::from(at.0 / 1_000_000) << 80) | hash)
    }

    /// Builds an id from event time, producer and the producer's own counter.
    pub fn sequenced(at: UnixNanos, producer: ProducerId, sequence: u64) -> Self {
        let low = (u128::from(producer.0 & 0xffff_ffff) << 48) | u128::from(sequence & 0xffff_ffff_ffff);
        Self((u128::from(at.0 / 1_000_000) << 80) | low)
    }
}

/// Nanoseconds since the Unix epoch, UTC. Zero means "unknown".
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Archive, Serialize, Deserialize)]
pub struct UnixNanos(pub u64);

impl UnixNanos {
    /// The latest time that can be shown (year 2554).
    pub const MAX: Self = Self(u64::MAX);

    /// Nanoseconds from `earlier` to `self`; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Later by `nanos`, saturating.
    pub fn plus(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }

    /// Earlier by `nanos`, saturating.
    pub fn minus(self, nanos: u64) -> Self {
        Self(self.0.saturating_sub(nanos))
    }

    /// Seconds since the epoch as a float, for arithmetic on series.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// From seconds since the epoch; negative and non-finite values become zero.
    pub fn from_secs_f64(secs: f64) -> Self {
        Self(if secs.is_finite() && secs > 0.0 { (secs * 1e9) as u64 } else { 0 })
    }
}

impl fmt::Display for UnixNanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_nanosecond(i128::from(self.0)) {
            Ok(t) => write!(f, "{t:.3}"),
            Err(_) => write!(f, "{}ns", self.0),
        }
    }
}

impl fmt::Debug for UnixNanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for UnixNanos {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        if let Ok(nanos) = text.parse::<u64>() {
            return Ok(Self(nanos));
        }
        let parsed: jiff::Timestamp = text.parse().map_err(|_| IdError::Time(text.to_owned()))?;
        u64::try_from(parsed.as_nanosecond()).map(Self).map_err(|_| IdError::Time(text.to_owned()))
    }
}

impl serde::Serialize for UnixNanos {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        // Nine digits: a time must survive the way through JSON unchanged.
        match jiff::Timestamp::from_nanosecond(i128::from(self.0)) {
            Ok(t) => s.collect_str(&format_args!("{t:.9}")),
            Err(_) => s.collect_str(&self.0),
        }
    }
}

impl<'de> serde::Deserialize<'de> for UnixNanos {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        match <Either as serde::Deserialize>::deserialize(d)? {
            Either::Number(nanos) => Ok(Self(nanos)),
            Either::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

/// A score between 0 and 1 inclusive: confidence, probability, strength, impact.
#[derive(Clone, Copy, PartialEq, PartialOrd, Default, Archive, Serialize, Deserialize)]
pub struct Score(f64);

impl Score {
    /// Certain.
    pub const ONE: Self = Self(1.0);
    /// Impossible.
    pub const ZERO: Self = Self(0.0);

    /// Checked constructor.
    pub fn new(value: f64) -> Result<Self, IdError> {
        if (0.0..=1.0).contains(&value) { Ok(Self(value)) } else { Err(IdError::Score(value.to_string())) }
    }

    /// Clamps into range; NaN becomes zero.
    pub fn clamped(value: f64) -> Self {
        Self(if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) })
    }

    /// The value, 0..=1.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl ArchivedScore {
    /// The value, 0..=1 (foreign values are clamped).
    pub fn get(&self) -> f64 {
        Score::clamped(self.0.to_native()).get()
    }
}

impl fmt::Debug for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.0)
    }
}

impl serde::Serialize for Score {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        // Four digits are more than a probability of this kind means; it keeps the JSON readable.
        s.serialize_f64((self.0 * 1e4).round() / 1e4)
    }
}

impl<'de> serde::Deserialize<'de> for Score {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::new(<f64 as serde::Deserialize>::deserialize(d)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_text() {
        let id = EventId::derive(UnixNanos(1_700_000_000_123_456_789), b"seed");
        assert_eq!(id.to_string().parse::<EventId>().unwrap(), id);
        assert!("evt-12".parse::<EventId>().is_err());
        assert!("+000000000000000000000000000000f".parse::<TraceId>().is_err());
    }

    #[test]
    fn event_ids_sort_by_time() {
        let early = EventId::derive(UnixNanos(1_700_000_000_000_000_000), b"z");
        let late = EventId::derive(UnixNanos(1_700_000_000_002_000_000), b"a");
        assert!(early < late);
    }

    #[test]
    fn times_survive_json_to_the_nanosecond() {
        let at = UnixNanos(1_700_000_000_123_456_789);
        let json = serde_json::to_string(&at).unwrap();
        assert_eq!(serde_json::from_str::<UnixNanos>(&json).unwrap(), at);
        assert_eq!(serde_json::from_str::<UnixNanos>("\"1700000000123456789\"").unwrap(), at);
    }

    #[test]
    fn scores_stay_in_range() {
        assert!(Score::new(1.01).is_err());
        assert!(Score::new(f64::NAN).is_err());
        assert_eq!(Score::clamped(7.0), Score::ONE);
    }
}
