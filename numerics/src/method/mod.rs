//! The methods, and the options that decide the factors.
//!
//! Each method is one file, which implements `Definition`, and one row of the table in `table.rs`. The work that depends on the activations
//! of a site alone is done once per site; then each weight that reads the site is decomposed into a [`Draft`]; a draft gives the
//! factors when the ranks are known. [`Options`] decide all of it.

pub mod astra;
pub mod cntlora;
pub mod corda;
mod definition;
mod draft;
pub mod eva;
pub mod lora;
pub mod lora_null;
pub mod mica;
pub mod milora;
pub mod olora;
pub mod olora_tail;
mod options;
pub mod orthogonal;
pub mod pissa;
mod rules;
pub mod sc_lora;
mod table;

pub(crate) use definition::{Basis, Weight};
pub use definition::{Bytes, Form, RankRule, SiteSize};
pub use draft::{Decomposition, Draft, Nested};
pub use options::Options;
pub use table::Method;
