//! The report of a run: one value that can be saved as JSON, as text for a terminal and as an HTML page.
//!
//! `content` holds the fields. [`text`] and [`html`] render them. Both take what they show from `groups` (one row for all experts of a
//! module), `figures`, `kept` (the share of an update that a rank keeps), `tokens` and `advice`. [`table`] and [`format`](mod@format)
//! hold the text tables and the number formats of the whole tool.

mod advice;
pub(crate) mod card;
mod content;
mod figures;
pub mod format;
mod groups;
pub mod html;
mod kept;
pub mod table;
#[cfg(test)]
mod testing;
pub mod text;
mod tokens;
pub(crate) mod zero_rows;

pub use crate::adapter::REPORT_FILE;
pub use content::{
    InputFile, InputFiles, LayerReport, Report, SCHEMA_VERSION, SiteReport, TrustRegion, UnusableSite,
};
pub(crate) use tokens::kind_of_rows;
