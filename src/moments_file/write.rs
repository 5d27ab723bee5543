//! Writing: one site in memory at a time.

use super::{Content, METADATA, SiteSums, Stored};
use crate::storage::safetensors::Layout;
use crate::storage::{AtomicFile, Problem, StagedFile};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// Writes a moments file. `sums` gives those of a site, and is asked twice for each of them.
///
/// The same content and sums give the same bytes. The file is absent, old or complete, whatever happens.
///
/// # Errors
/// What `sums` returns, and I/O problems of writing.
///
/// # Panics
/// If the sums of a site are of another width or kind than the content says.
pub fn write<'a>(
    path: &Path,
    content: &Content,
    sums: &dyn Fn(&str) -> Result<SiteSums<'a>, Problem>,
) -> Result<(), Problem> {
    stage(path, content, sums)?.commit()
}

/// As [`write()`] up to the point where the file comes into its place.
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
    // Small, and the maxima are far from the other sums of their site in the file, where wider numbers come first.
    let mut small = BTreeMap::new();
    for (site, measured) in &content.sites {
        let sums = sums(site)?;
        let (width, counts) = (measured.width, measured.counts);
        assert_eq!((sums.width(), sums.are_counts()), (width, counts), "width and kind of site {site:?}");
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
    let mut put = |bytes: &[u8]| {
        file.write_all(bytes).map_err(|error| Problem::io("cannot write", &error).in_file(path))
    };
    put(layout.header())?;
    let mut current: Option<(&str, SiteSums<'_>)> = None;
    for tensor in layout.in_file_order() {
        if let Some(bytes) = small.get(tensor) {
            put(bytes)?;
            continue;
        }
        let (site, stored) = owners[tensor];
        // Another site goes before the next one comes.
        let known = current.take().filter(|(name, _)| *name == site);
        let (_, sums) = current.insert(match known {
            Some(known) => known,
            None => (site, sums(site)?),
        });
        put(&sums.bytes(stored))?;
    }
    file.stage()
}
