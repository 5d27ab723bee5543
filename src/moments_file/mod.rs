//! Moments on disk: written once, and initialized from many times. Knows nothing of weights, nor of how rows were read.
//!
//! A moments file is a safetensors file. Of each site it holds
//!
//! | tensor | format | shape | |
//! |---|---|---|---|
//! | `<site>/count` | U64 | `[]` | rows that were added |
//! | `<site>/sum` | F64 | `[d]` | their sum |
//! | `<site>/gram` | F64 | `[d (d + 1) / 2]` | upper triangle of `Σ x xᵀ`, row after row |
//! | `<site>/abs_max` | F32 | `[d]` | largest absolute value of each column |
//!
//! and of the input of an embedding, in their place,
//!
//! | tensor | format | shape | |
//! |---|---|---|---|
//! | `<site>/counts` | U64 | `[V]` | how often each token of the vocabulary was met |
//!
//! Sums and not means, so that merging is adding. The metadata entry `cntlora` is a [`Content`] as JSON, with
//! `"format":"moments"` and a version: the sites with their modules, and the files that the rows came from, with which rows of
//! each, as if each token that was met were one. So no row is counted twice ([`MomentsSet`]). It also holds a hash of the sums of each site, which is checked whenever they are read.
//!
//! `content` is the metadata, `sums` what is held of a site, `ranges` which rows were used, `write` the writer, `set` several files taken together, `parts` those of one
//! measurement; the reader is here.

mod content;
mod parts;
mod ranges;
mod set;
mod sums;
#[cfg(test)]
mod tests;
mod write;

pub use content::{Content, MeasuredSite, MeasuredSource, Part};
pub use ranges::RowRanges;
pub use set::MomentsSet;
pub use sums::SiteSums;
pub use write::{stage, write};

use crate::error::Error;
use crate::moments::{Counts, Moments};
use crate::storage::safetensors::{Header, Tensor};
use crate::storage::{Access, Problem, Source, quoted};
use bytemuck::{Pod, Zeroable, cast_slice_mut};
use std::collections::BTreeMap;
use std::path::Path;

/// What the names of moments files end in, so that they are found in a folder.
pub const ENDING: &str = ".moments.safetensors";

/// The metadata entry.
const METADATA: &str = "cntlora";

/// One of the tensors of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    Count,
    Sum,
    Gram,
    AbsMax,
    Counts,
}

impl Stored {
    /// Those of a site.
    fn of(site: &MeasuredSite) -> &'static [Self] {
        if site.counts { &[Self::Counts] } else { &[Self::Count, Self::Sum, Self::Gram, Self::AbsMax] }
    }

    /// Its name.
    fn tensor(self, site: &str) -> String {
        let name = match self {
            Self::Count => "count",
            Self::Sum => "sum",
            Self::Gram => "gram",
            Self::AbsMax => "abs_max",
            Self::Counts => "counts",
        };
        format!("{site}/{name}")
    }

    fn dtype(self) -> &'static str {
        match self {
            Self::Count | Self::Counts => "U64",
            Self::Sum | Self::Gram => "F64",
            Self::AbsMax => "F32",
        }
    }

    /// Shape for a site of this width; a width beyond all memory gives a shape that no file has.
    fn shape(self, width: u64) -> Vec<u64> {
        match self {
            Self::Count => vec![],
            Self::Sum | Self::AbsMax | Self::Counts => vec![width],
            Self::Gram => vec![width.saturating_mul(width.saturating_add(1)) / 2],
        }
    }
}

/// A moments file whose header was checked; the sums are read site by site.
#[derive(Debug)]
pub struct MomentsFile {
    source: Source,
    content: Content,
    hashes: BTreeMap<String, String>,
    tensors: BTreeMap<String, Tensor>,
}

impl MomentsFile {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// An I/O problem if it cannot be read; a data problem if it is no moments file, is of a newer version, or disagrees with itself.
    pub fn open(path: &Path, access: Access) -> Result<Self, Problem> {
        Self::from_source(Source::open(path, access)?)
    }

    /// A file that is open already.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_source(source: Source) -> Result<Self, Problem> {
        let header = Header::read(&source)?;
        let (content, hashes) = Self::check(&header).map_err(|problem| problem.in_file(source.path()))?;
        Ok(Self { source, content, hashes, tensors: header.tensors })
    }

    /// Whether a header is that of a moments file, sound or not.
    pub fn claims(header: &Header) -> bool {
        header.metadata.get(METADATA).is_some_and(|text| content::claims(text))
    }

    fn check(header: &Header) -> Result<(Content, BTreeMap<String, String>), Problem> {
        let text = header.metadata.get(METADATA).ok_or_else(|| {
            Problem::data("expected a moments file, found a safetensors file without the metadata of one")
                .help("make moments of activations with `cntlora moments`")
        })?;
        let (content, hashes) = Content::parse(text)?;
        let mut expected = 0;
        for (site, measured) in &content.sites {
            for sum in Stored::of(measured) {
                expected += 1;
                let name = sum.tensor(site);
                let shape = sum.shape(measured.width as u64);
                let dtype = sum.dtype();
                let refused = |found: String| {
                    let what = format!("expected {dtype} of shape {shape:?}, found {found}");
                    Err(Problem::data(what).in_tensor(&name))
                };
                match header.tensors.get(&name) {
                    None => return refused("no such tensor".into()),
                    Some(found) if found.dtype != dtype || found.shape != shape => {
                        return refused(format!("{} of shape {:?}", quoted(&found.dtype), found.shape));
                    }
                    Some(_) => {}
                }
            }
        }
        if header.tensors.len() != expected {
            let found = header.tensors.len();
            return Err(Problem::data(format!(
                "expected the {expected} tensors of its sites, found {found} tensors"
            )));
        }
        Ok((content, hashes))
    }

    /// What it says of itself.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The file.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// What is held of a site.
    ///
    /// # Errors
    /// An I/O problem if it cannot be read, or there is no memory for it; a data problem for a site that the file does not hold, for sums
    /// that cannot be, and for those whose hash is another.
    pub fn read(&self, site: &str) -> Result<SiteSums<'static>, Problem> {
        let problem = |problem: Problem| problem.in_file(self.source.path()).in_tensor(site);
        let measured = self
            .content
            .sites
            .get(site)
            .ok_or_else(|| problem(Problem::data("expected this site, found none of its name")))?;
        let sums: Result<SiteSums<'_>, Error> = match measured.counts {
            true => Counts::new(self.numbers(site, Stored::Counts)?).map(Into::into),
            false => {
                let count: Vec<u64> = self.numbers(site, Stored::Count)?;
                let sum = self.numbers(site, Stored::Sum)?;
                let gram = self.numbers(site, Stored::Gram)?;
                let abs_max = self.numbers(site, Stored::AbsMax)?;
                Moments::from_sums(count[0], sum, gram, abs_max).map(Into::into)
            }
        };
        let sums = sums.map_err(|error| problem(Problem::data(error.to_string())))?;
        let damaged = |what: String| {
            problem(Problem::data(what).help("the file is damaged: copy it again, or measure again"))
        };
        if self.hashes.get(site) != Some(&sums.hash()) {
            return Err(damaged("its sums are not those that were written: their hash is another".into()));
        }
        let rows = self.content.rows(site);
        if sums.count().checked_add(measured.skipped_rows) != Some(rows) {
            let (count, skipped) = (sums.count(), measured.skipped_rows);
            return Err(damaged(format!(
                "expected the {rows} rows of its sources, found {count} and {skipped} skipped ones"
            )));
        }
        Ok(sums)
    }

    /// The moments of a site.
    ///
    /// # Errors
    /// As [`read`](Self::read); a data problem for counts of tokens.
    pub fn moments(&self, site: &str) -> Result<Moments, Problem> {
        match self.read(site)? {
            SiteSums::Rows(moments) => Ok(moments.into_owned()),
            SiteSums::Tokens(_) => {
                let what = "expected sums over rows, found counts of tokens";
                Err(Problem::data(what).in_file(self.source.path()).in_tensor(site))
            }
        }
    }

    /// The numbers of one tensor.
    fn numbers<T: Pod + Zeroable>(&self, site: &str, sum: Stored) -> Result<Vec<T>, Problem> {
        let name = sum.tensor(site);
        let tensor = &self.tensors[&name];
        let located = |problem: Problem| problem.in_file(self.source.path()).in_tensor(&name);
        let mut numbers: Vec<T> = Vec::new();
        // The header was checked: the file is this long. The memory need not be.
        let length = usize::try_from(tensor.length).unwrap_or(usize::MAX) / size_of::<T>();
        numbers.try_reserve_exact(length).map_err(|_| {
            located(Problem::environment(format!("no memory for {} bytes of it", tensor.length)))
        })?;
        numbers.resize(length, T::zeroed());
        let bytes: &mut [u8] = cast_slice_mut(&mut numbers);
        self.source.read(bytes, tensor.offset).map_err(|problem| problem.in_tensor(&name))?;
        if cfg!(target_endian = "big") {
            bytes.chunks_exact_mut(size_of::<T>()).for_each(<[u8]>::reverse);
        }
        Ok(numbers)
    }
}
