//! SHA-256 of written data, and fingerprints of input files.

use super::{Problem, Source};
use sha2::{Digest, Sha256};
use std::fmt::Write;

/// Computes the length and the SHA-256 of bytes that arrive in pieces.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hashing {
    bytes: u64,
    digest: Sha256,
}

impl Hashing {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.digest.update(bytes);
    }

    /// Number of bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The SHA-256 in lower-case hexadecimal digits.
    pub(crate) fn finish(self) -> String {
        let mut digits = String::new();
        for byte in self.digest.finalize() {
            write!(digits, "{byte:02x}").expect("writing to a string does not fail");
        }
        digits
    }
}

/// Length of a sample of [`fingerprint`].
const SAMPLE: u64 = 1 << 16;
/// Number of samples of [`fingerprint`]. Files of up to 1 MiB are hashed whole.
const SAMPLES: u64 = 16;

/// A fingerprint of the content of a file, computed without reading all of a large file: the SHA-256, in hexadecimal digits, of
/// its length and of 16 samples of 64 KiB, spread evenly from the first byte to the last.
///
/// Equal files have equal fingerprints at every path. Different recordings have different fingerprints, unless one is an edited copy
/// of the other. A fingerprint does not detect damage.
///
/// # Errors
/// An I/O problem if the file cannot be read.
pub fn fingerprint(source: &Source) -> Result<String, Problem> {
    let length = source.length();
    let mut hashing = Hashing::default();
    hashing.update(&length.to_le_bytes());
    if length <= SAMPLE * SAMPLES {
        hashing.update(&source.read_vec(0, length)?);
    } else {
        for sample in 0..SAMPLES {
            let last = u128::from(length - SAMPLE);
            // In range: at most the offset of the last sample.
            let offset = (last * u128::from(sample) / u128::from(SAMPLES - 1)) as u64;
            hashing.update(&source.read_vec(offset, SAMPLE)?);
        }
    }
    Ok(hashing.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    fn of(bytes: Vec<u8>) -> String {
        fingerprint(&Source::from_bytes("x", bytes)).unwrap()
    }

    /// The oracle is the published digest of "abc" (FIPS 180-4, example 1).
    #[test]
    fn the_hash_is_sha256_of_all_pieces() {
        let mut hashing = Hashing::default();
        hashing.update(b"a");
        hashing.update(b"bc");
        assert_eq!(hashing.bytes(), 3);
        assert_eq!(hashing.finish(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    quickcheck! {
        /// Every byte of a small file changes the fingerprint.
        fn small_files_are_hashed_whole(bytes: Vec<u8>, at: usize, more: u8) -> bool {
            let mut other = bytes.clone();
            match other.len() {
                0 => other.push(more),
                length => other[at % length] ^= more | 1,
            }
            of(bytes.clone()) == of(bytes.clone()) && of(bytes) != of(other)
        }
    }

    /// The length, changes at both ends and changes throughout a large file change the fingerprint.
    #[test]
    fn large_files_are_sampled_from_end_to_end() {
        let length = 3 << 20;
        let file = |change: &[usize]| {
            let mut bytes = vec![7u8; length];
            change.iter().for_each(|&at| bytes[at] = 8);
            of(bytes)
        };
        let plain = file(&[]);
        assert_eq!(plain, file(&[]));
        assert_ne!(plain, file(&[0]));
        assert_ne!(plain, file(&[length - 1]));
        assert_ne!(plain, file(&(0..length).step_by(60_000).collect::<Vec<_>>()));
        assert_ne!(plain, of(vec![7; length + 1]));
    }
}
