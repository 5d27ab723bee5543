//! Moments files: statistics that are measured once and used for many initializations.
//!
//! A moments file is a safetensors file. For each site with rows it contains
//!
//! | tensor | format | shape | |
//! |---|---|---|---|
//! | `<site>/count` | U64 | `[]` | number of rows |
//! | `<site>/sum` | F64 | `[d]` | sum of the rows |
//! | `<site>/gram` | F64 | `[d (d + 1) / 2]` | upper triangle of `Σ x xᵀ`, row after row |
//! | `<site>/abs_max` | F32 | `[d]` | largest absolute value of each column |
//!
//! For the input of an embedding, it contains instead
//!
//! | tensor | format | shape | |
//! |---|---|---|---|
//! | `<site>/counts` | U64 | `[V]` | count of each token of the vocabulary |
//!
//! Files contain sums, so that merging is adding. The metadata entry `cntlora` is a [`Content`] as JSON, with `"format":"moments"` and
//! a version: the sites with their modules, and the source files with the rows that were read of each. Each counted token is like one
//! row. So rows that are counted twice can be refused ([`MomentsSet`]). The entry also contains a checksum for the sums of each site,
//! which is verified at each read.

mod collected;
mod collected_site;
mod content;
mod file;
mod parts;
mod ranges;
mod set;
mod stored;
mod sums;
#[cfg(test)]
mod tests;
mod write;

pub use collected::Collected;
pub use collected_site::CollectedSite;
pub use content::{Content, MeasuredSite, MeasuredSource, Part};
pub use file::MomentsFile;
pub(crate) use parts::check_all_once;
pub use ranges::RowRanges;
pub use set::MomentsSet;
pub use sums::SiteSums;
pub(crate) use sums::memory;
pub use write::{stage, to_bytes, write};

/// The end of the names of moments files in a folder.
pub const ENDING: &str = ".moments.safetensors";

/// The metadata entry.
const METADATA: &str = "cntlora";
