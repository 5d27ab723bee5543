//! Writing: one site in memory at a time.

use super::{Content, METADATA, Stored};
use crate::moments::Moments;
use crate::storage::safetensors::Layout;
use crate::storage::{AtomicFile, Hashing, Problem};
use bytemuck::{NoUninit, cast_slice};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// Writes a moments file. `moments` gives those of a site, and is asked twice for each of them.
///
/// The same content and moments give the same bytes. The file is absent, old or complete, whatever happens.
///
/// # Errors
/// What `moments` returns, and I/O problems of writing.
///
/// # Panics
/// If the moments of a site are not as wide as the content says.
pub fn write<'a>(
    path: &Path,
    content: &Content,
    moments: &dyn Fn(&str) -> Result<Cow<'a, Moments>, Problem>,
) -> Result<(), Problem> {
    let mut hashes = BTreeMap::new();
    let mut shapes = BTreeMap::new();
    let mut owners = BTreeMap::new();
    // Small, and the maxima are far from the other sums of their site in the file, where wider numbers come first.
    let mut small = BTreeMap::new();
    for (site, measured) in &content.sites {
        let moments = moments(site)?;
        assert_eq!(moments.width(), measured.width, "width of site {site:?}");
        hashes.insert(site.as_str(), hash(&moments));
        small.insert(site.as_str(), (moments.count(), moments.abs_max().to_vec()));
        for sum in Stored::ALL {
            shapes.insert(sum.tensor(site), (sum.dtype().to_owned(), sum.shape(measured.width as u64)));
            owners.insert(sum.tensor(site), (site.as_str(), sum));
        }
    }
    let metadata = BTreeMap::from([(METADATA.to_owned(), content.to_text(&hashes))]);
    let layout = Layout::new(&metadata, &shapes);
    let mut file = AtomicFile::create(path)?;
    let mut put = |bytes: &[u8]| {
        file.write_all(bytes).map_err(|error| Problem::io("cannot write", &error).in_file(path))
    };
    put(layout.header())?;
    let mut current: Option<(&str, Cow<'_, Moments>)> = None;
    for tensor in layout.in_file_order() {
        let (site, sum) = owners[tensor];
        let (count, abs_max) = &small[site];
        match sum {
            Stored::Count => put(&little_endian(&[*count]))?,
            Stored::AbsMax => put(&little_endian(abs_max))?,
            Stored::Sum | Stored::Gram => {
                // Another site goes before the next one comes.
                let known = current.take().filter(|(name, _)| *name == site);
                let (_, moments) = current.insert(match known {
                    Some(known) => known,
                    None => (site, moments(site)?),
                });
                let is_sum = sum == Stored::Sum;
                put(&little_endian(if is_sum { moments.sum() } else { moments.gram_triangle() }))?;
            }
        }
    }
    file.commit()
}

/// Hash of the sums of a site.
pub(super) fn hash(moments: &Moments) -> String {
    let mut hashing = Hashing::default();
    hashing.update(&little_endian(&[moments.count()]));
    hashing.update(&little_endian(moments.sum()));
    hashing.update(&little_endian(moments.gram_triangle()));
    hashing.update(&little_endian(moments.abs_max()));
    hashing.finish()
}

/// Numbers as they stand in files.
fn little_endian<T: NoUninit>(numbers: &[T]) -> Cow<'_, [u8]> {
    let bytes = cast_slice(numbers);
    if cfg!(target_endian = "little") {
        return bytes.into();
    }
    let mut bytes = bytes.to_vec();
    bytes.chunks_exact_mut(size_of::<T>()).for_each(<[u8]>::reverse);
    bytes.into()
}
