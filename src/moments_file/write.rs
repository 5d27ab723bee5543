//! The writer of moments files. It needs the sums of one site in memory at a time.

use super::content::Stated;
use super::stored::Stored;
use super::{Content, METADATA, SiteSums};
use crate::storage::safetensors::{Header, Layout};
use crate::storage::{AtomicFile, Problem, StagedFile};
use std::collections::BTreeMap;
use std::path::Path;

/// Writes a moments file. `sums` returns the sums of a site, and is called twice for each site.
///
/// The same content and sums give the same bytes. The file is replaced atomically.
///
/// # Errors
/// The errors of `sums`, and I/O problems of writing.
///
/// # Panics
/// If the width or the kind of a site's sums differs from the content.
pub fn write<'a>(
    path: &Path,
    content: &Content,
    sums: &dyn Fn(&str) -> Result<SiteSums<'a>, Problem>,
) -> Result<(), Problem> {
    stage(path, content, sums)?.commit()
}

/// As [`write()`], but the file is not yet moved to its place.
///
/// # Errors
/// As [`write()`].
///
/// # Panics
/// As [`write()`].
pub fn stage<'a>(
    path: &Path,
    content: &Content,
    sums: &dyn Fn(&str) -> Result<SiteSums<'a>, Problem>,
) -> Result<StagedFile, Problem> {
    let prepared = Prepared::new(content, sums)?;
    let mut file = AtomicFile::create(path)?;
    prepared.put(sums, &mut |bytes| file.put(bytes))?;
    file.stage()
}

/// The bytes of a moments file, as [`write()`] writes them.
///
/// # Errors
/// The errors of `sums`; an environment problem if there is not enough memory.
///
/// # Panics
/// As [`write()`].
pub fn to_bytes<'a>(
    content: &Content,
    sums: &dyn Fn(&str) -> Result<SiteSums<'a>, Problem>,
) -> Result<Vec<u8>, Problem> {
    let prepared = Prepared::new(content, sums)?;
    let length = prepared.layout.file_length();
    let mut file = Vec::new();
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    file.try_reserve_exact(length)
        .map_err(|_| Problem::environment(format!("not enough memory for {length} bytes of moments")))?;
    prepared.put(sums, &mut |bytes| {
        file.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(file)
}

/// The header of a file, and what is needed to write its tensors in order.
struct Prepared<'c> {
    layout: Layout,
    /// The site and the kind of each tensor.
    owners: BTreeMap<String, (&'c str, Stored)>,
    /// These tensors are small, and the maxima are far from the other sums of their site in the file, because wider numbers come first.
    small: BTreeMap<String, Vec<u8>>,
}

impl<'c> Prepared<'c> {
    fn new<'a>(
        content: &'c Content,
        sums: &dyn Fn(&str) -> Result<SiteSums<'a>, Problem>,
    ) -> Result<Self, Problem> {
        let mut stated = BTreeMap::new();
        let mut shapes = BTreeMap::new();
        let mut owners = BTreeMap::new();
        let mut small = BTreeMap::new();
        for (site, measured) in &content.sites {
            let sums = sums(site)?;
            let (width, counts) = (measured.width, measured.counts);
            assert_eq!(
                (sums.width(), sums.0.is_tokens()),
                (width, counts),
                "width and kind of site {site:?}"
            );
            stated.insert(site.as_str(), Stated { sha256: sums.hash(), zero_rows: sums.zero_rows() });
            for &stored in Stored::of(measured) {
                let name = stored.tensor(site);
                if matches!(stored, Stored::Count | Stored::AbsMax) {
                    small.insert(name.clone(), sums.bytes(stored).into_owned());
                }
                shapes.insert(name.clone(), (stored.dtype().to_owned(), stored.shape(width as u64)));
                owners.insert(name, (site.as_str(), stored));
            }
        }
        let metadata = BTreeMap::from([(METADATA.to_owned(), content.to_text(&stated))]);
        let layout = Layout::new(&metadata, &shapes);
        check_header(layout.header().len() as u64)?;
        Ok(Self { layout, owners, small })
    }

    /// Passes the bytes of the file on, in order.
    fn put<'a>(
        &self,
        sums: &dyn Fn(&str) -> Result<SiteSums<'a>, Problem>,
        put: &mut dyn FnMut(&[u8]) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        put(self.layout.header())?;
        let mut current: Option<(&str, SiteSums<'_>)> = None;
        for tensor in self.layout.in_file_order() {
            if let Some(bytes) = self.small.get(tensor) {
                put(bytes)?;
                continue;
            }
            let (site, stored) = self.owners[tensor];
            // The sums of the previous site are dropped before the next ones are read.
            let known = current.take().filter(|(name, _)| *name == site);
            let (_, sums) = current.insert(match known {
                Some(known) => known,
                None => (site, sums(site)?),
            });
            put(&sums.bytes(stored))?;
        }
        Ok(())
    }
}

/// Checks that the file can be read again.
pub(super) fn check_header(length: u64) -> Result<(), Problem> {
    match length <= Header::LONGEST {
        true => Ok(()),
        false => Err(Problem::data(format!(
            "too many sites for one moments file: its header would have {length} bytes, the limit is {}",
            Header::LONGEST
        ))
        .help("measure in parts with --shard, and pass all parts to --moments")),
    }
}
