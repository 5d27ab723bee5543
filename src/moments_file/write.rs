//! The writer of moments files. It needs the sums of one site in memory at a time.

use super::stored::Stored;
use super::{Content, METADATA, SiteSums};
use crate::storage::safetensors::Layout;
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
    let mut hashes = BTreeMap::new();
    let mut shapes = BTreeMap::new();
    let mut owners = BTreeMap::new();
    // These tensors are small, and the maxima are far from the other sums of their site in the file, because wider numbers come first.
    let mut small = BTreeMap::new();
    for (site, measured) in &content.sites {
        let sums = sums(site)?;
        let (width, counts) = (measured.width, measured.counts);
        assert_eq!((sums.width(), sums.0.is_tokens()), (width, counts), "width and kind of site {site:?}");
        hashes.insert(site.as_str(), sums.hash());
        for &stored in Stored::of(measured) {
            let name = stored.tensor(site);
            if matches!(stored, Stored::Count | Stored::AbsMax) {
                small.insert(name.clone(), sums.bytes(stored).into_owned());
            }
            shapes.insert(name.clone(), (stored.dtype().to_owned(), stored.shape(width as u64)));
            owners.insert(name, (site.as_str(), stored));
        }
    }
    let metadata = BTreeMap::from([(METADATA.to_owned(), content.to_text(&hashes))]);
    let layout = Layout::new(&metadata, &shapes);
    let mut file = AtomicFile::create(path)?;
    file.put(layout.header())?;
    let mut current: Option<(&str, SiteSums<'_>)> = None;
    for tensor in layout.in_file_order() {
        if let Some(bytes) = small.get(tensor) {
            file.put(bytes)?;
            continue;
        }
        let (site, stored) = owners[tensor];
        // The sums of the previous site are dropped before the next ones are read.
        let known = current.take().filter(|(name, _)| *name == site);
        let (_, sums) = current.insert(match known {
            Some(known) => known,
            None => (site, sums(site)?),
        });
        file.put(&sums.bytes(stored))?;
    }
    file.stage()
}
