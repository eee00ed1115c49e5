//! Messages come out of the network at any address; archives are read in place at multiples of sixteen.

use rkyv::util::AlignedVec;

/// Alignment that the wire format keeps inside a message, bytes.
const ALIGNMENT: usize = 16;

/// A reusable aligned buffer: a message that already lies right is not copied.
#[derive(Default)]
pub struct Aligned(AlignedVec<ALIGNMENT>);

impl Aligned {
    /// The same bytes at an aligned address.
    pub fn of<'a>(&'a mut self, bytes: &'a [u8]) -> &'a [u8] {
        if bytes.as_ptr().addr().is_multiple_of(ALIGNMENT) {
            return bytes;
        }
        self.0.clear();
        self.0.extend_from_slice(bytes);
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_address_becomes_an_aligned_one() {
        let bytes: Vec<u8> = (0..200).collect();
        let mut aligned = Aligned::default();
        for start in 0..16 {
            let out = aligned.of(&bytes[start..]);
            assert_eq!(out.as_ptr().addr() % ALIGNMENT, 0);
            assert_eq!(out, &bytes[start..]);
        }
    }
}
