//! Token counts, the activations of an embedding: a tensor with one axis, whose entry `i` is the count of token `i`. Counts are small, and
//! are read when the files are opened.

use super::Site;
use super::headers::StoredCounts;
use crate::error::Error;
use crate::moments::{Counts, RowsOrTokens};
use crate::storage::{Problem, Problems, Source, quoted, reserve};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Number of bytes to read at a time.
const BLOCK: u64 = 1 << 20;

/// The token counts of a site, summed over all files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteCounts {
    /// The count of each token.
    pub counts: Counts,
    /// Bytes of the counts in all files.
    pub bytes: u64,
    /// Index in [`ActivationSet::files`](super::ActivationSet::files) of each file with counts, and its number of counted tokens.
    pub(super) files: Vec<(usize, u64)>,
}

/// Reads the counts of a file.
///
/// # Errors
/// An I/O problem if the counts cannot be read; a data problem for an invalid count, with its position.
fn read(source: &Source, stored: &StoredCounts) -> Result<Vec<u64>, Problem> {
    let mut counts = Vec::new();
    reserve(&mut counts, stored.tokens)?;
    // The header was checked: the tensor is within the file.
    let (end, mut at) = (stored.offset + stored.bytes(), stored.offset);
    while at < end {
        let mut bytes = source.read_vec(at, BLOCK.min(end - at))?;
        at += bytes.len() as u64;
        for bytes in bytes.chunks_exact_mut(stored.number.size()) {
            if stored.big_endian {
                bytes.reverse();
            }
            let count = stored.number.whole(bytes).map_err(|found| {
                let what = format!(
                    "a tensor with one axis contains token counts: expected whole numbers from 0, found {found} for token {}",
                    counts.len()
                );
                Problem::data(what).help(
                    "record numpy.bincount(ids, minlength=V) for an embedding of V tokens, and [rows, width] for other layers",
                )
            })?;
            counts.push(count);
        }
    }
    Ok(counts)
}

/// The sum of the counts of a site over files.
struct Sum {
    counts: Vec<u64>,
    bytes: u64,
    files: Vec<(usize, u64)>,
    /// The first file, and the name of its tensor.
    first: (usize, String),
}

/// Sums of counts for each site, while files are read.
#[derive(Default)]
pub(super) struct Sums(BTreeMap<String, Sum>);

impl Sums {
    /// Adds the counts of one file.
    ///
    /// # Errors
    /// An I/O problem if the counts cannot be read; a data problem for invalid counts, and for counts that do not match other files.
    pub(super) fn add(&mut self, file: usize, stored: StoredCounts, files: &[Source]) -> Result<(), Problem> {
        let located = |problem: Problem| problem.in_file(files[file].path()).in_tensor(&stored.tensor);
        let counts = read(&files[file], &stored).map_err(located)?;
        let tokens = counts.iter().copied().fold(0, u64::saturating_add);
        let sum = match self.0.entry(stored.site.clone()) {
            Entry::Vacant(entry) => {
                let first = (file, stored.tensor.clone());
                entry.insert(Sum { counts, bytes: stored.bytes(), files: vec![(file, tokens)], first });
                return Ok(());
            }
            Entry::Occupied(entry) => entry.into_mut(),
        };
        if sum.counts.len() != counts.len() {
            let first = files[sum.first.0].path().display().to_string();
            return Err(located(Problem::data(format!(
                "expected counts of {} tokens as in {}, found counts of {}",
                sum.counts.len(),
                quoted(&first),
                counts.len()
            ))));
        }
        for (sum, count) in sum.counts.iter_mut().zip(&counts) {
            *sum = sum.checked_add(*count).ok_or_else(|| {
                located(Problem::data("the sum of its counts and those of other files is too large"))
            })?;
        }
        sum.bytes = sum.bytes.saturating_add(stored.bytes());
        sum.files.push((file, tokens));
        Ok(())
    }

    /// Adds a site for each sum. A site has either rows or token counts.
    pub(super) fn into_sites(
        self,
        sites: &mut BTreeMap<String, Site>,
        files: &[Source],
        problems: &mut Problems,
    ) {
        for (name, Sum { counts, bytes, files: holders, first: (first_file, tensor) }) in self.0 {
            let refused =
                |what: String| Problem::data(what).in_file(files[first_file].path()).in_tensor(&tensor);
            if let Some(site) = sites.get(&name) {
                let other = files[site.first_file].path().display().to_string();
                problems.push(refused(format!(
                    "expected rows of {} numbers as in {}, found counts of tokens",
                    site.width,
                    quoted(&other)
                )));
                continue;
            }
            let width = counts.len();
            let counts = problems.collect(Counts::new(counts).map_err(|error| match error {
                Error::NoRows => refused("all token counts are zero in all files".into()),
                error => refused(error.to_string()),
            }));
            if let Some(counts) = counts {
                let recorded = RowsOrTokens::Tokens(SiteCounts { counts, bytes, files: holders });
                sites.insert(name.clone(), Site { name, width, modules: Vec::new(), first_file, recorded });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Number, snapshot};
    use expect_test::expect;

    #[test]
    fn missing_memory_is_reported() {
        let stored = StoredCounts {
            site: "e".into(),
            tensor: "e".into(),
            tokens: u64::MAX,
            number: Number::from_name("U8").unwrap(),
            offset: 0,
            big_endian: false,
        };
        let source = Source::from_bytes("a.safetensors", Vec::new());
        let problem = Sums::default().add(0, stored, &[source]).unwrap_err();
        expect![[r#"
            a.safetensors: tensor "e": not enough memory for 18446744073709551615 bytes
        "#]]
        .assert_eq(&snapshot(problem));
    }
}
