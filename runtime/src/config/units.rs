//! Values with a unit, written the way people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text that is not a size or a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// No digits where a number must be.
    #[error("`{0}` does not start with a number")]
    NoNumber(String),
    /// A number without a unit, or an unknown unit.
    #[error("`{text}` has unit `{unit}`, expected one of {expected}")]
    UnknownUnit {
        /// The whole text.
        text: String,
        /// The part that is not a unit.
        unit: String,
        /// The units there are.
        expected: &'static str,
    },
    /// The value does not fit 64 bits.
    #[error("`{0}` is too large")]
    TooLarge(String),
}

const SIZE_UNITS: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("KB", 1_000),
    ("B", 1),
    ("", 1),
];

const DURATION_UNITS: &[(&str, u64)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3_600 * 1_000_000_000),
    ("d", 86_400 * 1_000_000_000),
];

/// Order in which a duration is written, largest first.
const DURATION_SHOWN: &[(&str, u64)] = &[
    ("d", 86_400 * 1_000_000_000),
    ("h", 3_600 * 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// A number of bytes: `64MiB`, `1GB`, `512`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// So many mebibytes.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// So many gibibytes.
    pub const fn gib(count: u64) -> Self {
        Self(count << 30)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let trimmed = text.trim();
        let (number, unit) = split_number(trimmed);
        let number: f64 = parse_number(number, trimmed)?;
        let factor = lookup(SIZE_UNITS, unit).ok_or_else(|| UnitError::UnknownUnit {
            text: trimmed.to_owned(),
            unit: unit.to_owned(),
            expected: "B, kB, MB, GB, TB, KiB, MiB, GiB, TiB",
        })?;
        scaled(number, factor, trimmed).map(Self)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = SIZE_UNITS[..4].iter().find(|(_, size)| self.0 >= *size && self.0.is_multiple_of(*size));
        match shown {
            Some((unit, size)) => write!(f, "{}{unit}", self.0 / size),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// A span of time: `5s`, `250ms`, `1h30m`. A unit is required, except for `0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct HumanDuration(Duration);

impl HumanDuration {
    /// So many milliseconds.
    pub const fn from_millis(count: u64) -> Self {
        Self(Duration::from_millis(count))
    }

    /// So many seconds.
    pub const fn from_secs(count: u64) -> Self {
        Self(Duration::from_secs(count))
    }

    /// The standard type.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl From<Duration> for HumanDuration {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl From<HumanDuration> for Duration {
    fn from(duration: HumanDuration) -> Self {
        duration.0
    }
}

impl FromStr for HumanDuration {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let trimmed = text.trim();
        if trimmed == "0" {
            return Ok(Self::default());
        }
        let mut rest = trimmed;
        let mut total_nanos: u64 = 0;
        loop {
            let (number, tail) = split_number(rest);
            let number = parse_number(number, trimmed)?;
            let end = tail.find(|c: char| !c.is_alphabetic()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(end);
            let factor = lookup(DURATION_UNITS, unit).ok_or_else(|| UnitError::UnknownUnit {
                text: trimmed.to_owned(),
                unit: unit.to_owned(),
                expected: "ns, us, ms, s, m, h, d",
            })?;
            total_nanos = total_nanos
                .checked_add(scaled(number, factor, trimmed)?)
                .ok_or_else(|| UnitError::TooLarge(trimmed.to_owned()))?;
            rest = tail.trim_start();
            if rest.is_empty() {
                return Ok(Self(Duration::from_nanos(total_nanos)));
            }
        }
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut nanos = u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX);
        if nanos == 0 {
            return f.write_str("0s");
        }
        for (unit, size) in DURATION_SHOWN {
            if nanos >= *size {
                write!(f, "{}{unit}", nanos / size)?;
                nanos %= size;
            }
        }
        Ok(())
    }
}

fn split_number(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start())
}

fn parse_number(number: &str, text: &str) -> Result<f64, UnitError> {
    number.parse().map_err(|_| UnitError::NoNumber(text.to_owned()))
}

fn lookup(units: &[(&str, u64)], unit: &str) -> Option<u64> {
    units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor)
}

/// Whole numbers up to 2^53 are exact; larger ones are rounded to what a double holds.
fn scaled(number: f64, factor: u64, text: &str) -> Result<u64, UnitError> {
    let value = number * factor as f64;
    // 2^64 as a double; the comparison is exact.
    if value >= 18_446_744_073_709_551_616.0 {
        return Err(UnitError::TooLarge(text.to_owned()));
    }
    Ok(value.round() as u64)
}

macro_rules! serde_as_text {
    ($type:ty, $expecting:literal, $from_u64:expr) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_u64<E: de::Error>(self, number: u64) -> Result<$type, E> {
                        let from_u64: fn(u64) -> Result<$type, UnitError> = $from_u64;
                        from_u64(number).map_err(E::custom)
                    }
                    fn visit_i64<E: de::Error>(self, number: i64) -> Result<$type, E> {
                        let number = u64::try_from(number)
                            .map_err(|_| E::custom(format!("`{number}` is negative")))?;
                        self.visit_u64(number)
                    }
                }
                deserializer.deserialize_any(Text)
            }
        }
    };
}

serde_as_text!(ByteSize, "a size such as 64MiB", |number| Ok(ByteSize(number)));
serde_as_text!(HumanDuration, "a duration such as 5s or 250ms", |number| number.to_string().parse());

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_people_write() {
        assert_eq!("64MiB".parse(), Ok(ByteSize::mib(64)));
        assert_eq!("1.5 GB".parse(), Ok(ByteSize(1_500_000_000)));
        assert_eq!("512".parse(), Ok(ByteSize(512)));
        assert_eq!("1h30m".parse(), Ok(HumanDuration::from_secs(5_400)));
        assert_eq!("0.25s".parse(), Ok(HumanDuration::from_millis(250)));
        assert_eq!("0".parse(), Ok(HumanDuration::default()));
    }

    #[test]
    fn refuses_what_is_ambiguous_and_says_why() {
        let error = "5".parse::<HumanDuration>().unwrap_err().to_string();
        assert!(error.contains("expected one of ns"), "{error}");
        assert!("MiB".parse::<ByteSize>().is_err());
        assert!("-5s".parse::<HumanDuration>().is_err());
        assert!("3 parsecs".parse::<HumanDuration>().is_err());
        assert_eq!("99999999TiB".parse::<ByteSize>(), Err(UnitError::TooLarge("99999999TiB".into())));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(bytes in 0u64..(1 << 53), nanos in 0u64..(1 << 53)) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
            let duration = HumanDuration(Duration::from_nanos(nanos));
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = text.parse::<ByteSize>();
            let _ = text.parse::<HumanDuration>();
        }
    }
}
