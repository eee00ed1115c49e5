//! Which shard an event belongs to.

use crate::names::SHARD_COUNT;

/// What brings events together: a trace id, or a lineage id carried as one (`derived`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardKey {
    /// Trace id or lineage id.
    pub id: u128,
    /// True for a lineage id.
    pub derived: bool,
}

impl ShardKey {
    /// A real trace.
    pub const fn trace(id: u128) -> Self {
        Self { id, derived: false }
    }

    /// A lineage.
    pub const fn derived(id: u128) -> Self {
        Self { id, derived: true }
    }

    /// The shard, 0..64.
    pub fn shard(self) -> u16 {
        shard(self.id)
    }
}

/// `shard = hash(key) mod 64`. Trace ids are not always uniform (some generators keep low bits), so they are hashed.
pub fn shard(key: u128) -> u16 {
    (xxhash_rust::xxh3::xxh3_64(&key.to_be_bytes()) % u64::from(SHARD_COUNT)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_wire_law() {
        // Changing any of these moves live data between shards.
        assert_eq!([shard(0), shard(1), shard(u128::MAX)], GOLDEN);
    }

    const GOLDEN: [u16; 3] = [40, 59, 19];

    #[test]
    fn sequential_keys_spread_evenly() {
        let mut counts = [0u32; SHARD_COUNT as usize];
        for key in 0..64_000u128 {
            counts[shard(key << 64) as usize] += 1;
        }
        let (min, max) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(f64::from(*max) / f64::from(*min) < 1.5, "{min}..{max}");
    }
}
