//! Token counts, which are the activations of an embedding: a tensor of one axis, whose entry `i` says how often token `i` was
//! met. They are small, and read when the files are opened.

use super::Site;
use super::headers::StoredRows;
use crate::error::Error;
use crate::moments::Counts;
use crate::storage::{Number, Problem, Problems, Source, quoted};
use std::collections::BTreeMap;

/// Bytes that are read at once.
const BLOCK: u64 = 1 << 20;

/// The counts of a site in one file.
pub(super) struct StoredCounts {
    /// Name of the site.
    pub site: String,
    /// Name of the tensor in the file, or the stem of the `.npy` file.
    pub tensor: String,
    /// How often each token was met.
    pub counts: Vec<u64>,
    /// Bytes that hold them.
    pub bytes: u64,
}

/// The counts of a site in all files together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteCounts {
    /// How often each token was met.
    pub counts: Counts,
    /// Bytes that hold them in the files.
    pub bytes: u64,
    /// Index of the first file in [`ActivationSet::files`](super::ActivationSet::files).
    pub(super) file: usize,
}

/// What a tensor holds.
pub(super) enum Stored {
    /// Rows of numbers.
    Rows(StoredRows),
    /// Counts of tokens.
    Counts(StoredCounts),
}

/// Reads a tensor of one axis. `big_endian` says whether numbers are stored with the most significant byte first.
///
/// # Errors
/// An I/O problem if it cannot be read; a data problem for what is no count, with its position.
pub(super) fn read(
    source: &Source,
    offset: u64,
    tokens: u64,
    number: Number,
    big_endian: bool,
) -> Result<Vec<u64>, Problem> {
    let size = number.size();
    let mut counts = Vec::new();
    let room = usize::try_from(tokens).ok().filter(|&tokens| counts.try_reserve_exact(tokens).is_ok());
    if room.is_none() {
        return Err(Problem::environment("no memory for its counts").in_file(source.path()));
    }
    // The header was checked: the tensor is within the file.
    let (end, mut at) = (offset + tokens * size as u64, offset);
    while at < end {
        let mut bytes = source.read_vec(at, BLOCK.min(end - at))?;
        at += bytes.len() as u64;
        for bytes in bytes.chunks_exact_mut(size) {
            if big_endian {
                bytes.reverse();
            }
            let count = number.whole(bytes).map_err(|found| {
                let what = format!(
                    "expected how often each token was met, whole numbers from 0 on, since it has one axis, found {found} for \
                     token {}",
                    counts.len()
                );
                Problem::data(what).in_file(source.path()).help(
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
    file: usize,
    tensor: String,
}

/// Sums of counts by site, while files are read.
#[derive(Default)]
pub(super) struct Sums(BTreeMap<String, Sum>);

impl Sums {
    /// Adds what one file holds of a site.
    pub(super) fn add(
        &mut self,
        file: usize,
        stored: StoredCounts,
        files: &[Source],
        problems: &mut Problems,
    ) {
        let complain =
            |what: String| Problem::data(what).in_file(files[file].path()).in_tensor(&stored.tensor);
        let Some(sum) = self.0.get_mut(&stored.site) else {
            let StoredCounts { site, tensor, counts, bytes } = stored;
            self.0.insert(site, Sum { counts, bytes, file, tensor });
            return;
        };
        if sum.counts.len() != stored.counts.len() {
            let first = files[sum.file].path().display().to_string();
            problems.push(complain(format!(
                "expected counts of {} tokens as in {}, found counts of {}",
                sum.counts.len(),
                quoted(&first),
                stored.counts.len()
            )));
            return;
        }
        sum.bytes = sum.bytes.saturating_add(stored.bytes);
        for (sum, count) in sum.counts.iter_mut().zip(&stored.counts) {
            match sum.checked_add(*count) {
                Some(more) => *sum = more,
                None => {
                    problems.push(complain(
                        "its counts and those of other files are too large to be added".into(),
                    ));
                    return;
                }
            }
        }
    }

    /// Adds a site for each sum. A site has either rows or counts.
    pub(super) fn into_sites(
        self,
        sites: &mut BTreeMap<String, Site>,
        files: &[Source],
        problems: &mut Problems,
    ) {
        for (name, Sum { counts, bytes, file, tensor }) in self.0 {
            let complain = |what: String| Problem::data(what).in_file(files[file].path()).in_tensor(&tensor);
            if let Some(site) = sites.get(&name) {
                let other = files[site.first_file()].path().display().to_string();
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
            let counts = counts.map(|counts| SiteCounts { counts, bytes, file });
            sites.insert(name.clone(), Site { name, width, modules: Vec::new(), parts: Vec::new(), counts });
        }
    }
}
