//! The versions of the files and weights that a run read.

use super::side_by_side::with_threads;
use crate::adapter::{FileRecord, weight_fingerprint};
use crate::factors::LayerName;
use crate::plan::{Inputs, Plan, PlannedLayer, Recording};
use crate::report::{InputFile, InputFiles};
use crate::storage::{Problem, Source};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// The files of one kind are hashed if their total length in bytes is at most this, which takes a fraction of a second. Larger
/// recordings are not read twice.
const HASHED: u64 = 1 << 28;

pub(super) fn files(inputs: &Inputs) -> Result<InputFiles, Problem> {
    Ok(InputFiles {
        checkpoint: match inputs.checkpoint.is_in_memory() {
            // The weights of a model in memory have no file, and to read all of them again can take long.
            true => Vec::new(),
            false => identify(&inputs.checkpoint.files().iter().map(|(file, _)| file).collect::<Vec<_>>())?,
        },
        activations: identify(&inputs.target.as_ref().map(Recording::files).unwrap_or_default())?,
        source: identify(&inputs.source.as_ref().map(Recording::files).unwrap_or_default())?,
    })
}

fn identify(files: &[&Source]) -> Result<Vec<InputFile>, Problem> {
    let bytes = files.iter().map(|file| file.length()).fold(0, u64::saturating_add);
    let identify = |file: &&Source| {
        let seconds = |nanoseconds: i128| i64::try_from(nanoseconds.div_euclid(1_000_000_000)).ok();
        Ok(InputFile {
            path: file.path().into(),
            bytes: file.length(),
            modified: file.identity().and_then(|identity| seconds(identity.modified)),
            sha256: (bytes <= HASHED).then(|| FileRecord::of(file)).transpose()?.map(|record| record.sha256),
        })
    };
    files.iter().map(identify).collect()
}

/// The fingerprints of the pieces of each weight of a plan. None for a model in memory, which has no files to recognize.
///
/// # Errors
/// Problems of reading.
pub fn weight_fingerprints<'a>(
    plan: &'a Plan,
    inputs: &Inputs,
) -> Result<BTreeMap<&'a LayerName, Vec<String>>, Problem> {
    if inputs.checkpoint.is_in_memory() {
        return Ok(BTreeMap::new());
    }
    let layers: Vec<&PlannedLayer> = plan.layers().collect();
    let of_layer = |layer: &&'a PlannedLayer| {
        let pieces = layer.weight.iter().map(|piece| weight_fingerprint(&inputs.checkpoint, piece));
        Ok((&layer.name, pieces.collect::<Result<_, _>>()?))
    };
    with_threads(plan.threads, || layers.par_iter().map(of_layer).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::ReadAt;
    use std::io;

    /// A large file that must not be read.
    struct Large;

    impl ReadAt for Large {
        fn len(&self) -> u64 {
            HASHED
        }
        fn read_exact_at(&self, _buffer: &mut [u8], _offset: u64) -> io::Result<()> {
            Err(io::Error::other("read although it is large"))
        }
    }

    /// Small files have a hash. If the files are large together, none is read.
    #[test]
    fn only_small_files_are_hashed() {
        let small = Source::from_bytes("small", b"abc".into());
        let large = Source::from_reader("large".into(), Box::new(Large));
        let alone = identify(&[&small]).unwrap();
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((alone[0].bytes, alone[0].sha256.as_deref()), (3, Some(hash)));
        let both = identify(&[&small, &large]).unwrap();
        assert!(both.iter().all(|file| file.sha256.is_none()));
    }
}
