//! An inspection in words.

use super::super::plan;
use super::{Activations, AdapterFolder, CheckpointFiles, FileEntry, Inspection, NpyFile, SafetensorsFile};
use super::{SiteEntry, TensorEntry};
use cntlora::element::Element;
use cntlora::report::table::{Align, Table, bytes, count, number};
use cntlora::report::text as report;
use std::collections::BTreeMap;
use std::path::Path;

/// A sentence on what it is, and a table of what it holds.
pub fn render(inspection: &Inspection) -> String {
    match inspection {
        Inspection::Safetensors(file) => safetensors(file),
        Inspection::Npy(file) => npy(file),
        Inspection::Checkpoint(checkpoint) => self::checkpoint(checkpoint),
        Inspection::Activations(activations) => self::activations(activations),
        Inspection::Moments(summary) => summary.render(),
        Inspection::Adapter(adapter) => self::adapter(adapter),
        // The report and the plan do not say in which format the factors are stored; the default is the likeliest.
        Inspection::Report(report) => format!("report of a run\n\n{}", report::render(report, Element::F32)),
        Inspection::Plan(plan) => format!("plan of a run\n\n{}", plan::render(plan, Element::F32)),
    }
}

fn safetensors(file: &SafetensorsFile) -> String {
    let mut text = format!(
        "{}: safetensors file, {}, {}\n",
        shown(&file.path),
        bytes(file.bytes),
        formats(&file.tensors)
    );
    // Our own entry is shown as sites.
    for (key, value) in file.metadata.iter().filter(|(key, _)| file.sites.is_none() || *key != "cntlora") {
        text.push_str(&format!("metadata {}: {}\n", key.escape_debug(), value.escape_debug()));
    }
    text.push_str(&format!("\n{}", tensors(&file.tensors)));
    if let Some(sites) = &file.sites {
        text.push_str(&format!("\n{}", self::sites(sites)));
    }
    text
}

fn npy(file: &NpyFile) -> String {
    format!(
        "{}: NumPy array, {}, {} {}, {} byte first, {} axis fastest\n",
        shown(&file.path),
        bytes(file.bytes),
        shape(&file.shape),
        file.dtype,
        if file.big_endian { "most significant" } else { "least significant" },
        if file.fortran_order { "first" } else { "last" },
    )
}

fn checkpoint(checkpoint: &CheckpointFiles) -> String {
    let model = checkpoint.model_type.as_ref().map(|name| format!(" of a {} model", name.escape_debug()));
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

fn adapter(adapter: &AdapterFolder) -> String {
    let mut table = Table::new([
        ("module", Align::Left),
        ("shape", Align::Right),
        ("rank", Align::Right),
        ("scale", Align::Right),
        ("format", Align::Left),
    ]);
    for layer in &adapter.layers {
        table.row([
            layer.module.escape_debug().to_string(),
            format!("{}×{}", layer.outputs, layer.inputs),
            layer.rank.to_string(),
            number(layer.scale),
            layer.dtype.into(),
        ]);
    }
    let base = adapter.base.as_ref().map(|base| format!(", for {}", base.escape_debug()));
    format!(
        "{}: PEFT adapter{}, {}, {}\n\n{}",
        shown(&adapter.path),
        base.unwrap_or_default(),
        bytes(adapter.bytes),
        count(adapter.layers.len() as u64, "layer"),
        table.render()
    )
}

fn tensors(tensors: &[TensorEntry]) -> String {
    let mut table = Table::new([("tensor", Align::Left), ("format", Align::Left), ("shape", Align::Right)]);
    for tensor in tensors {
        let name = tensor.name.escape_debug().to_string();
        table.row([name, tensor.dtype.escape_debug().to_string(), shape(&tensor.shape)]);
    }
    table.render()
}

fn sites(sites: &[SiteEntry]) -> String {
    let mut text = format!("{}\n", count(sites.len() as u64, "activation site"));
    for site in sites {
        let modules: Vec<String> =
            site.modules.iter().map(|module| module.escape_debug().to_string()).collect();
        text.push_str(&format!(
            "{}: {} of {}, read by {}\n",
            site.name.escape_debug(),
            count(site.rows, "row"),
            count(site.width as u64, "number"),
            modules.join(", ")
        ));
    }
    text
}

/// How many tensors there are of each format.
fn formats(tensors: &[TensorEntry]) -> String {
    let mut numbers = BTreeMap::<&str, u64>::new();
    for tensor in tensors {
        *numbers.entry(&tensor.dtype).or_default() += 1;
    }
    let formats: Vec<String> =
        numbers.iter().map(|(dtype, number)| format!("{number} {}", dtype.escape_debug())).collect();
    match formats.is_empty() {
        true => count(0, "tensor"),
        false => format!("{} ({})", count(tensors.len() as u64, "tensor"), formats.join(", ")),
    }
}

fn file_sizes(files: &[FileEntry]) -> String {
    let size = files.iter().map(|file| file.bytes).fold(0, u64::saturating_add);
    format!("{} of {}", count(files.len() as u64, "file"), bytes(size))
}

fn shape(shape: &[u64]) -> String {
    match shape {
        [] => "scalar".into(),
        _ => shape.iter().map(u64::to_string).collect::<Vec<_>>().join("×"),
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string().escape_debug().to_string()
}
