//! Adapters as files: the writer and the reader of PEFT folders, the residual base, and the check that re-reads what
//! was written. How the factors came about is not known here.

mod config;
#[cfg(test)]
mod faults;
mod folder;
mod peft;
mod read;
mod record;
mod replace;
mod residual;
#[cfg(test)]
mod testing;
mod verify;

pub use config::{Config, Patterns, Targets};
pub use folder::refuse_occupied;
pub use peft::{other_modules, retire_peft, write_peft};
pub use read::{PeftAdapter, PeftLayer};
pub use record::{FileRecord, RECORD_FILE};
pub use replace::remove_residual_base;
pub use residual::{StagedBase, refuse_model_folder, stage_residual_base, write_residual_base};
pub use verify::{Check, Outcome, Verification, verify};

use crate::element::Element;
use crate::factors::Factors;
use crate::storage::Problem;
use faer::MatRef;
use std::collections::BTreeMap;

/// The tensors of a PEFT adapter.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";
/// The configuration of a PEFT adapter. It is written last: its presence means that the adapter is complete.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// The factors of all layers, by runtime module name, and the scale `s` that they share.
pub struct Adapter {
    /// Factors by module name.
    pub layers: BTreeMap<String, Factors>,
    /// The adapter adds `scale · B A`.
    pub scale: f64,
    /// `base_model_name_or_path` of its configuration.
    pub base: String,
}

/// The key prefix of every tensor of a PEFT adapter.
const PREFIX: &str = "base_model.model.";
/// The key suffix of a down matrix.
const A_SUFFIX: &str = ".lora_A.weight";
/// The key suffix of an up matrix.
const B_SUFFIX: &str = ".lora_B.weight";

/// Refuses factors that make no update.
fn check_shapes(factors: &Factors) -> Result<(), Problem> {
    let Factors { a, b } = factors;
    if a.nrows() > 0 && a.ncols() > 0 && b.nrows() > 0 && a.nrows() == b.ncols() {
        return Ok(());
    }
    let (a, b) = ((a.nrows(), a.ncols()), (b.nrows(), b.ncols()));
    Err(Problem::data(format!(
        "expected factors A (rank, inputs) and B (outputs, rank) with a rank of 1 or more, found {a:?} and {b:?}"
    )))
}

/// The numbers of a factor in the number format of a file, row by row.
fn encode(factor: MatRef<'_, f32>, element: Element) -> Vec<u8> {
    let mut bytes = Vec::new();
    let places = (0..factor.nrows()).flat_map(|i| (0..factor.ncols()).map(move |j| (i, j)));
    element.encode(places.map(|place| f64::from(factor[place])), &mut bytes);
    bytes
}
