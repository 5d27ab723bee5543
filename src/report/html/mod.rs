//! The report as one HTML page that needs no other file: no network, no framework, no font. It works in light and dark colours, on a
//! phone and on paper. Without its script it only loses sorting and filtering.
//!
//! Names in a report come from files that anyone can write. All of them go through `escape`, and the page forbids itself to load
//! anything.

mod chart;
mod cost;
mod escape;
mod layers;
mod left_out;
mod module;
mod origin;
mod page;
mod ranks;
mod sites;
mod spectra;
mod table;

pub use page::render;
