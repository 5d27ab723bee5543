//! An inspection as text.

use super::super::plan;
use super::bars::bars;
use super::values::Values;
use super::{Activations, AdapterFolder, CheckpointFiles, FileEntry, Inspection, NpyFile, SafetensorsFile};
use super::{SiteEntry, TensorEntry};
use crate::report::format::{bytes, count, number};
use crate::report::table::{Align, Table};
use crate::report::text as report;
use crate::storage::visible;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A line about the file or folder, and a table of its content. `blocks` is true if the terminal shows block characters.
pub(crate) fn render(inspection: &Inspection, blocks: bool) -> String {
    match inspection {
        Inspection::Safetensors(file) => safetensors(file),
        Inspection::Npy(file) => npy(file),
        Inspection::Checkpoint(checkpoint) => self::checkpoint(checkpoint),
        Inspection::Activations(activations) => self::activations(activations),
        Inspection::Moments(summary) => summary.render(),
        Inspection::Adapter(adapter) => self::adapter(adapter, blocks),
        Inspection::Report(report) => format!("report of a run\n\n{}", report::render(report)),
        Inspection::Plan(plan) => format!("plan of a run\n\n{}", plan::render(plan)),
    }
}

fn safetensors(file: &SafetensorsFile) -> String {
    let mut text = format!(
        "{}: safetensors file, {}, {}\n",
        shown(&file.path),
        bytes(file.bytes),
        formats(&file.tensors)
    );
    // The entry of cntlora is shown as sites.
    for (key, value) in file.metadata.iter().filter(|(key, _)| file.sites.is_none() || *key != "cntlora") {
        text.push_str(&format!("metadata {}: {}\n", visible(key), visible(value)));
    }
    text.push_str(&format!("\n{}", tensors(&file.tensors)));
    if let Some(sites) = &file.sites {
        text.push_str(&format!("\n{}", self::sites(sites)));
    }
    text
}

fn npy(file: &NpyFile) -> String {
    let values = file.values.as_ref().map(|values| format!("{}\n", self::values(values)));
    format!(
        "{}: NumPy array, {}, {} {}, {} byte first, {} axis fastest\n{}",
        shown(&file.path),
        bytes(file.bytes),
        shape(&file.shape),
        file.dtype,
        if file.big_endian { "most significant" } else { "least significant" },
        if file.fortran_order { "first" } else { "last" },
        values.unwrap_or_default(),
    )
}

fn checkpoint(checkpoint: &CheckpointFiles) -> String {
    let model = checkpoint.model_type.as_ref().map(|name| format!(" of a {} model", visible(name)));
    format!(
        "{}: checkpoint{}, {}, {}, {}\n\n{}",
        shown(&checkpoint.path),
        model.unwrap_or_default(),
        file_sizes(&checkpoint.files),
        count(checkpoint.parameters, "parameter"),
        formats(&checkpoint.tensors),
        tensors(&checkpoint.tensors)
    )
}

fn activations(activations: &Activations) -> String {
    format!("activations in {}\n\n{}", file_sizes(&activations.files), sites(&activations.sites))
}

fn adapter(adapter: &AdapterFolder, blocks: bool) -> String {
    let mut table = Table::new([
        ("module", Align::Left),
        ("shape", Align::Right),
        ("rank", Align::Right),
        ("scale", Align::Right),
        ("norm", Align::Right),
        ("spectrum", Align::Left),
    ]);
    for layer in &adapter.layers {
        table.row([
            visible(&layer.name.to_string()),
            format!("{}×{}", layer.outputs, layer.inputs),
            layer.rank.to_string(),
            number(layer.scale),
            number(layer.norm),
            bars(&layer.singular_values, blocks),
        ]);
    }
    let formats: BTreeSet<&str> = adapter.layers.iter().map(|layer| layer.dtype).collect();
    let formats = formats.into_iter().collect::<Vec<_>>().join(", ");
    let base = adapter.base.as_ref().map(|base| format!(", for {}", visible(base)));
    let notes: String = adapter.notes.iter().map(|note| format!("note: {note}\n")).collect();
    let is_zero = !adapter.layers.is_empty() && adapter.layers.iter().all(|layer| layer.norm == 0.0);
    let zero = if is_zero { ";\nthey are zero, as before training" } else { "" };
    format!(
        "{}: PEFT adapter{}, {} in {}, {}\n\n{}\nnorm and spectrum are those of the product that each layer adds to its weight{zero}\n{notes}",
        shown(&adapter.path),
        base.unwrap_or_default(),
        bytes(adapter.bytes),
        formats,
        count(adapter.layers.len() as u64, "layer"),
        table.render()
    )
}

fn tensors(tensors: &[TensorEntry]) -> String {
    let mut table = Table::new([("tensor", Align::Left), ("format", Align::Left), ("shape", Align::Right)]);
    for tensor in tensors {
        let name = visible(&tensor.name);
        table.row([name, visible(&tensor.dtype), shape(&tensor.shape)]);
    }
    let mut text = table.render();
    for tensor in tensors {
        if let Some(values) = &tensor.values {
            text.push_str(&format!("{}: {}\n", visible(&tensor.name), self::values(values)));
        }
    }
    text
}

fn values(values: &Values) -> String {
    let nonfinite = match values.nonfinite {
        0 => String::new(),
        many => format!(", {many} NaN or infinite"),
    };
    format!(
        "norm {}, largest {}, {}{nonfinite}",
        number(values.norm),
        number(values.abs_max),
        count(values.zeros, "zero")
    )
}

fn sites(sites: &[SiteEntry]) -> String {
    let mut text = format!("{}\n", count(sites.len() as u64, "activation site"));
    for site in sites {
        let modules: Vec<String> = site.modules.iter().map(|module| visible(module)).collect();
        let recorded = match site.counts {
            true => format!("{} of a vocabulary of {}", count(site.rows, "token"), site.width),
            false => format!("{} of {}", count(site.rows, "row"), count(site.width as u64, "number")),
        };
        text.push_str(&format!("{}: {recorded}, read by {}\n", visible(&site.name), modules.join(", ")));
    }
    text
}

/// The number of tensors of each format.
fn formats(tensors: &[TensorEntry]) -> String {
    let mut numbers = BTreeMap::<&str, u64>::new();
    for tensor in tensors {
        *numbers.entry(&tensor.dtype).or_default() += 1;
    }
    let formats: Vec<String> =
        numbers.iter().map(|(dtype, number)| format!("{number} {}", visible(dtype))).collect();
    // The names of some formats of quantized weights have commas.
    let separator = if numbers.keys().any(|dtype| dtype.contains(',')) { "; " } else { ", " };
    match formats.is_empty() {
        true => count(0, "tensor"),
        false => format!("{} ({})", count(tensors.len() as u64, "tensor"), formats.join(separator)),
    }
}

fn file_sizes(files: &[FileEntry]) -> String {
    let size = files.iter().map(|file| file.bytes).fold(0, u64::saturating_add);
    format!("{} of {}", count(files.len() as u64, "file"), bytes(size))
}

/// A shape. Only the first axes are shown if there are many.
fn shape(shape: &[u64]) -> String {
    const SHOWN: usize = 8;
    let axes = |shape: &[u64]| shape.iter().map(u64::to_string).collect::<Vec<_>>().join("×");
    match shape {
        [] => "scalar".into(),
        _ if shape.len() <= SHOWN => axes(shape),
        _ => format!("{}×… ({} axes)", axes(&shape[..SHOWN]), shape.len()),
    }
}

fn shown(path: &Path) -> String {
    visible(&path.to_string_lossy())
}
