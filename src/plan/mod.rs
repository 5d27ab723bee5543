//! Plans from headers alone: sites, layers, shapes, memory and work. All problems are reported together.
//!
//! A [`Plan`] is data. Making one reads no rows and computes nothing.

mod blocks;
mod cost;
mod division;
mod embeddings;
mod families;
mod layers;
mod measurement;
mod names;
mod naming;
mod nearest;
mod options;
mod planned;
mod planning;
mod presets;
mod recording;
mod renames;
mod request;
mod room;
mod schedule;
mod select;
mod shard;
mod shared;
mod stored;
#[cfg(test)]
mod testing;
mod unadapted;
mod unfit;
mod weights;

pub(crate) use cost::{MANY_SITES, MANY_SUMS};
pub use division::{Division, Share};
pub use measurement::{Measurement, MeasurementRequest, SiteRows, plan_measurement};
pub use planned::{Plan, PlannedLayer, PlannedSite, SharedTensor, Skipped, Work};
pub use planning::{Inputs, plan, plan_opened};
pub use recording::Recording;
pub use renames::Rename;
pub(crate) use renames::Renames;
pub use request::{Nonfinite, Request, Selection};
pub use room::Room;
pub use schedule::SideBySide;
pub use shard::Shard;
pub use shared::refuse_shared_weights;
