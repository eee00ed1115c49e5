//! What stands in the bucket: one value for each member and one for each resource.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A member that is there. A replica that comes again is another member.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Identity {
    /// Name of the replica.
    pub replica: String,
    /// Tells the members of one name apart: random, made at every joining.
    pub incarnation: String,
}

/// Value of a member's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MemberRecord {
    pub incarnation: String,
    /// It gives everything away and wants nothing.
    pub draining: bool,
}

/// Value of a resource's key: a line of JSON, then the note as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LeaseRecord {
    pub owner: Option<Identity>,
    /// Revision of the acquisition; `None` in the acquisition itself, which cannot know it.
    pub epoch: Option<u64>,
    pub note: Bytes,
}

#[derive(Serialize, Deserialize)]
struct LeaseHead {
    owner: Option<Identity>,
    epoch: Option<u64>,
}

impl MemberRecord {
    pub(super) fn encode(&self) -> Bytes {
        serde_json::to_vec(self).expect("strings and booleans are JSON").into()
    }

    /// `None` for bytes of someone who does not know the format.
    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(value).ok()
    }
}

impl LeaseRecord {
    pub(super) fn encode(&self) -> Bytes {
        let head = LeaseHead { owner: self.owner.clone(), epoch: self.epoch };
        let mut bytes = serde_json::to_vec(&head).expect("strings and numbers are JSON");
        bytes.push(b'\n');
        bytes.extend_from_slice(&self.note);
        bytes.into()
    }

    /// As [`MemberRecord::decode`].
    pub(super) fn decode(value: &Bytes) -> Option<Self> {
        let end = value.iter().position(|byte| *byte == b'\n')?;
        let head: LeaseHead = serde_json::from_slice(&value[..end]).ok()?;
        Some(Self { owner: head.owner, epoch: head.epoch, note: value.slice(end + 1..) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_strangers_are_told() {
        let owner = Some(Identity { replica: "a".into(), incarnation: "1f".into() });
        for note in [&b""[..], b"\n\x00binary\n", b"42"] {
            let record =
                LeaseRecord { owner: owner.clone(), epoch: Some(9), note: Bytes::copy_from_slice(note) };
            assert_eq!(LeaseRecord::decode(&record.encode()), Some(record));
        }
        let member = MemberRecord { incarnation: "1f".into(), draining: true };
        assert_eq!(MemberRecord::decode(&member.encode()), Some(member));
        for bad in [&b""[..], b"{}", b"hello\nnote", b"{\"owner\":3}\n"] {
            assert_eq!(LeaseRecord::decode(&Bytes::copy_from_slice(bad)), None, "{bad:?}");
        }
        assert_eq!(MemberRecord::decode(b"[]"), None);
    }
}
