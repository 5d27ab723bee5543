//! Token counts, which are the activations of an embedding: a tensor of one axis, whose entry `i` says how often token `i` was
//! met. They are small, and read when the files are opened.

use super::headers::StoredCounts;
use super::{Recorded, Site};
use crate::error::Error;
use crate::moments::Counts;
use crate::storage::{Problem, Problems, Source, quoted};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Bytes that are read at once.
const BLOCK: u64 = 1 << 20;

/// The counts of a site in all files together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteCounts {
    /// How often each token was met.
    pub counts: Counts,
    /// Bytes that hold them in the files.
    pub bytes: u64,
    /// Index of each file in [`ActivationSet::files`](super::ActivationSet::files) that holds some, and how many tokens it counts.
    pub(super) files: Vec<(usize, u64)>,
}

/// Reads the counts of a file.
///
/// # Errors
/// An I/O problem if they cannot be read; a data problem for what is no count, with its position.
fn read(source: &Source, stored: &StoredCounts) -> Result<Vec<u64>, Problem> {
    let mut counts = Vec::new();
    let room = usize::try_from(stored.tokens).ok().filter(|&tokens| counts.try_reserve_exact(tokens).is_ok());
    if room.is_none() {
        return Err(Problem::environment("no memory for its counts"));
    }
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
                    "expected how often each token was met, whole numbers from 0 on, since it has one axis, found {found} for \
                     token {}",
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

/// The sum of what files hold of a site.
struct Sum {
    counts: Vec<u64>,
    bytes: u64,
    files: Vec<(usize, u64)>,
    /// The first file, and the name of the tensor in it.
    first: (usize, String),
}

/// Sums of counts by site, while files are read.
#[derive(Default)]
pub(super) struct Sums(BTreeMap<String, Sum>);

impl Sums {
    /// Adds what one file holds of a site.
    ///
    /// # Errors
    /// An I/O problem if it cannot be read; a data problem for what is no count, and for counts that do not fit to those of other files.
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
                located(Problem::data("its counts and those of other files are too large to be added"))
            })?;
        }
        sum.bytes = sum.bytes.saturating_add(stored.bytes());
        sum.files.push((file, tokens));
        Ok(())
    }

    /// Adds a site for each sum. A site has either rows or counts.
    pub(super) fn into_sites(
        self,
        sites: &mut BTreeMap<String, Site>,
        files: &[Source],
        problems: &mut Problems,
    ) {
        for (name, Sum { counts, bytes, files: holders, first: (first_file, tensor) }) in self.0 {
            let complain =
                |what: String| Problem::data(what).in_file(files[first_file].path()).in_tensor(&tensor);
            if let Some(site) = sites.get(&name) {
                let other = files[site.first_file].path().display().to_string();
                problems.push(complain(format!(
                    "expected rows of {} numbers as in {}, found counts of tokens",
                    site.width,
                    quoted(&other)
                )));
                continue;
            }
            let width = counts.len();
            let counts = problems.collect(Counts::new(counts).map_err(|error| match error {
                Error::NoRows => complain(
                    "expected at least one token in all files together, found none that was met".into(),
                ),
                error => complain(error.to_string()),
            }));
            if let Some(counts) = counts {
                let recorded = Recorded::Counts(SiteCounts { counts, bytes, files: holders });
                sites.insert(name.clone(), Site { name, width, modules: Vec::new(), first_file, recorded });
            }
        }
    }
}
