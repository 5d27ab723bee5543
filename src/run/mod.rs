//! Carries out a plan, and tells an observer about each step. Prints nothing.

mod assemble;

#[cfg(test)]
mod faults;
mod inputs;
mod job;
mod lock;
mod many_sums;
mod measure;
mod moments;
mod observer;
mod output;
mod part;
mod partial;
mod parts;
mod ranks;
#[cfg(test)]
mod refusals;
mod rows;
mod saved_layers;
mod saved_sums;
mod shift;
mod side_by_side;
mod site;
mod site_statistics;
mod unusable;
mod weight;
mod whole;

pub use inputs::weight_fingerprints;
pub use job::Job;
pub use lock::{OutputLock, progress_folder};
pub use measure::measure;
pub use observer::{Event, Observer};
pub use output::{Output, write};
pub use part::{Part, Writing};
pub use partial::PartialRun;
pub use parts::{Parts, run_part};
pub use saved_layers::SavedLayers;
pub use whole::{Outcome, run, run_resumable};
