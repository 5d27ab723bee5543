//! The reader of one moments file: the header first, the sums of one site on demand.

use super::content::{Stated, claims};
use super::stored::Stored;
use super::{Content, METADATA, SiteSums};
use crate::dense::Buffer;
use crate::error::Error;
use crate::moments::{Counts, Moments, RowsOrTokens};
use crate::storage::safetensors::{Header, Tensor};
use crate::storage::{Access, Problem, Source, buffer, quoted};
use bytemuck::{Pod, cast_slice_mut};
use std::collections::BTreeMap;
use std::path::Path;

/// An open moments file with a checked header. Sums are read for one site at a time.
#[derive(Debug)]
pub struct MomentsFile {
    pub(super) source: Source,
    pub(super) content: Content,
    stated: BTreeMap<String, Stated>,
    /// The rows that were read of each site.
    rows: BTreeMap<String, u64>,
    pub(super) tensors: BTreeMap<String, Tensor>,
}

impl MomentsFile {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// An I/O problem if it cannot be read; a data problem if it is not a moments file, has a newer version, or is inconsistent.
    pub fn open(path: &Path, access: Access) -> Result<Self, Problem> {
        Self::from_source(Source::open(path, access)?)
    }

    /// From an open file.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_source(source: Source) -> Result<Self, Problem> {
        let header = Header::read(&source)?;
        let (content, stated) = Self::check(&header).map_err(|problem| problem.in_file(source.path()))?;
        let rows = content.rows_of_sites().into_iter().map(|(site, rows)| (site.to_owned(), rows)).collect();
        Ok(Self { source, content, stated, rows, tensors: header.tensors })
    }

    /// Returns whether a header claims to be that of a moments file, valid or not.
    pub fn claims(header: &Header) -> bool {
        header.metadata.get(METADATA).is_some_and(|text| claims(text))
    }

    fn check(header: &Header) -> Result<(Content, BTreeMap<String, Stated>), Problem> {
        let text = header.metadata.get(METADATA).ok_or_else(|| {
            Problem::data("not a moments file: the metadata entry \"cntlora\" is missing")
                .help("measure activations with `cntlora moments`")
        })?;
        let (content, stated) = Content::parse(text)?;
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
                    None => return refused("no tensor".into()),
                    Some(found) if found.dtype != dtype || found.shape != shape => {
                        return refused(format!("{} of shape {:?}", quoted(&found.dtype), found.shape));
                    }
                    Some(_) => {}
                }
            }
        }
        if header.tensors.len() != expected {
            let found = header.tensors.len();
            return Err(Problem::data(format!("expected {expected} tensors for its sites, found {found}")));
        }
        Ok((content, stated))
    }

    /// The metadata.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// Number of rows that were read of a site, including skipped ones.
    pub fn rows(&self, site: &str) -> u64 {
        self.rows.get(site).copied().unwrap_or(0)
    }

    /// The file.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Reads the sums of a site.
    ///
    /// # Errors
    /// An I/O problem if the sums cannot be read, or there is not enough memory; a data problem for a site that is not in the file, for
    /// invalid sums, and for a checksum mismatch.
    pub fn read(&self, site: &str) -> Result<SiteSums<'static>, Problem> {
        let problem = |problem: Problem| problem.in_file(self.source.path()).in_tensor(site);
        let measured = self
            .content
            .sites
            .get(site)
            .ok_or_else(|| problem(Problem::data("the file has no site with this name")))?;
        let sums: Result<SiteSums<'_>, Error> = match measured.counts {
            true => Counts::new(self.numbers(site, Stored::Counts)?.to_vec()).map(Into::into),
            false => {
                let count: Buffer<u64> = self.numbers(site, Stored::Count)?;
                let sum: Buffer<f64> = self.numbers(site, Stored::Sum)?;
                let gram: Buffer<f64> = self.numbers(site, Stored::Gram)?;
                let abs_max: Buffer<f32> = self.numbers(site, Stored::AbsMax)?;
                let zero_rows = self.stated.get(site).map_or(0, |stated| stated.zero_rows);
                let moments = Moments::from_sums(count[0], sum.to_vec(), gram, abs_max.to_vec());
                moments.map(|moments| moments.with_zero_rows(zero_rows).into())
            }
        };
        let sums = sums.map_err(|error| problem(Problem::data(error.to_string())))?;
        let damaged =
            |what: String| problem(Problem::data(what).help("copy the file again, or measure again"));
        if self.stated.get(site).map(|stated| &stated.sha256) != Some(&sums.hash()) {
            return Err(damaged("checksum mismatch: the file is damaged".into()));
        }
        let rows = self.rows(site);
        if sums.count().checked_add(measured.skipped_rows) != Some(rows) {
            let (count, skipped) = (sums.count(), measured.skipped_rows);
            return Err(damaged(format!(
                "inconsistent numbers of rows: {rows} in the sources, but {count} in the sums and {skipped} skipped"
            )));
        }
        Ok(sums)
    }

    /// The moments of a site.
    ///
    /// # Errors
    /// As [`read`](Self::read); a data problem for token counts.
    pub fn moments(&self, site: &str) -> Result<Moments, Problem> {
        match self.read(site)?.0 {
            RowsOrTokens::Rows(moments) => Ok(moments.into_owned()),
            RowsOrTokens::Tokens(_) => Err(not_rows().in_file(self.source.path()).in_tensor(site)),
        }
    }

    /// The numbers of one tensor.
    fn numbers<T: Pod>(&self, site: &str, sum: Stored) -> Result<Buffer<T>, Problem> {
        let name = sum.tensor(site);
        let tensor = &self.tensors[&name];
        let located = |problem: Problem| problem.in_file(self.source.path()).in_tensor(&name);
        // The header was checked against the length of the file. The memory can still be too small.
        let mut numbers: Buffer<T> = buffer(tensor.length / size_of::<T>() as u64).map_err(located)?;
        let bytes: &mut [u8] = cast_slice_mut(&mut numbers);
        self.source.read(bytes, tensor.offset).map_err(|problem| problem.in_tensor(&name))?;
        if cfg!(target_endian = "big") {
            bytes.chunks_exact_mut(size_of::<T>()).for_each(<[u8]>::reverse);
        }
        Ok(numbers)
    }
}

/// The problem of token counts in place of sums of rows.
pub(super) fn not_rows() -> Problem {
    Problem::data("expected sums of rows, found token counts")
}
