//! Adapters as files: writing and reading PEFT folders and single files, the residual base, and verification of written adapters.
//!
//! This module gets factors and writes them. It does not depend on how they were computed, except that [`verify`] checks the
//! properties that a method promises.

mod card;
mod components;
mod config;
mod contents;
mod convert;
#[cfg(test)]
mod faults;
mod folder;
mod format;
mod further;
mod keys;
mod layer;
mod loading;
mod location;
mod made_from;
mod mlx;
mod modules;
mod names;
mod numbers;
mod patterns;
mod peft;
mod read;
mod record;
mod replace;
mod residual;
mod single_file;
mod sorting;
mod staged;
#[cfg(test)]
mod testing;
mod uniform;
mod verify;
mod write;

pub use card::CARD_FILE;
pub use components::{Named, Naming, named};
pub use config::{Config, Targets};
pub use contents::{Contents, PeftContents};
pub use convert::{Conversion, convert};
pub use folder::refuse_occupied;
pub use format::{Component, Format, SingleFile};
pub use further::Carried;
pub use layer::PeftLayer;
pub(crate) use layer::Renaming;
pub use loading::{Loading, StoredWholes, TASKS, Task};
pub use location::is_single_file_adapter;
pub use made_from::weight_fingerprint;
pub use names::{CONFIG_FILE, REPORT_FILE, TENSORS_FILE};
pub use patterns::Patterns;
pub use peft::other_modules;
pub use read::PeftAdapter;
pub use record::{FileRecord, Origin, RECORD_FILE, record_heading, recorded_layer};
pub use residual::{AdaptedWeight, Base, BaseFormat, refuse_model_folder, refuse_quantized};
pub use single_file::refuse_shapes_without_place;
pub use staged::{Staged, anchor_of, default_base, write_residual_base};
pub use uniform::UniformRank;
pub use verify::{Check, Outcome, Verification, verify};
pub use write::{Adapter, is_complete, write_adapter};
