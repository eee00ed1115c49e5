//! Closed vocabularies: a number on the wire, a dotted name in text.

/// Declares a closed vocabulary. The numbers are wire law: append, never renumber or reuse.
macro_rules! vocabulary {
    (
        $(#[$doc:meta])*
        pub enum $name:ident: $repr:ty {
            $( $(#[$vdoc:meta])* $variant:ident = $number:literal => $text:literal, )+
        }
    ) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord,
            rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
        )]
        #[rkyv(derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord))]
        #[repr($repr)]
        pub enum $name {
            $( $(#[$vdoc])* #[doc = concat!("`", $text, "`")] $variant = $number, )+
        }

        impl $name {
            /// Every member, in wire order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name as text.
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $text, )+ }
            }
        }


        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = crate::vocabulary::UnknownWord;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $( $text => Ok(Self::$variant), )+
                    _ => Err(crate::vocabulary::UnknownWord {
                        vocabulary: stringify!($name),
                        word: text.chars().take(80).collect(),
                    }),
                }
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

/// A word that is not in the vocabulary.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{word}` is not in the vocabulary {vocabulary}")]
pub struct UnknownWord {
    /// Which vocabulary.
    pub vocabulary: &'static str,
    /// The word, cut to 80 characters.
    pub word: String,
}

pub(crate) use vocabulary;
