//! The record of an adapter in `cntlora.json`: its inputs and options. It holds no time, date, duration or number of threads, so that the
//! same inputs and options give the same bytes.

use crate::adapter::{record_heading, recorded_layer};
use crate::factors::LayerName;
use crate::plan::{Inputs, Plan, Recording};
use crate::report::Report;
use crate::run::weight_fingerprints;
use crate::storage::{Piece, Problem, Source};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The record of the adapter of a run.
///
/// # Errors
/// Problems of reading the weights.
pub(crate) fn provenance(
    plan: &Plan,
    inputs: &Inputs,
    report: &Report,
) -> Result<Map<String, Value>, Problem> {
    let fingerprints = weight_fingerprints(plan, inputs)?;
    let mut entries = of_report(plan, inputs, report, &fingerprints);
    entries.insert("activations".into(), json!([]));
    entries.insert("source".into(), json!([]));
    if let Some(target) = &inputs.target {
        let (rows, moments) = match plan.method.method.reads_only_source() {
            true => ("source", "source_moments"),
            false => ("activations", "moments"),
        };
        insert_recording(&mut entries, target, rows, moments);
    }
    if let Some(source) = &inputs.source {
        insert_recording(&mut entries, source, "source", "source_moments");
    }
    Ok(entries)
}

/// The activation files, and the moments files if those were used in their place.
fn insert_recording(entries: &mut Map<String, Value>, recording: &Recording, rows: &str, moments: &str) {
    let files = |sources: Vec<&Source>| -> Value {
        sources.iter().map(|source| file(&source.path().display().to_string(), source.length())).collect()
    };
    match recording {
        Recording::Activations(_) => {
            entries.insert(rows.into(), files(recording.files()));
        }
        Recording::Moments(set) => {
            let sources = set.content().sources.iter();
            entries.insert(rows.into(), sources.map(|source| file(&source.path, source.bytes)).collect());
            entries.insert(moments.into(), files(recording.files()));
        }
    }
}

fn of_report(
    plan: &Plan,
    inputs: &Inputs,
    report: &Report,
    fingerprints: &BTreeMap<&LayerName, Vec<String>>,
) -> Map<String, Value> {
    let is_whole = |weight: &[Piece]| matches!(weight, [one] if inputs.checkpoint.whole(&one.tensor).as_ref() == Some(one));
    let pieces: BTreeMap<&LayerName, &[Piece]> = plan
        .layers()
        .map(|layer| (&layer.name, layer.weight.as_slice()))
        .filter(|(_, weight)| !is_whole(weight))
        .collect();
    let layers: Vec<Value> = report
        .layers
        .iter()
        .filter(|layer| layer.rank > 0)
        .map(|layer| {
            let name = layer.name();
            let fingerprints = fingerprints.get(&name).map_or(&[][..], Vec::as_slice);
            let mut record =
                recorded_layer(&name.to_string(), &layer.tensor, pieces.get(&name).copied(), fingerprints);
            record["rank"] = json!(layer.rank);
            record["energy_kept"] = json!(layer.energy_kept);
            record["strength"] = json!(layer.strength);
            record["singular_values"] = json!(layer.singular_values);
            record
        })
        .collect();
    let mut entries = record_heading();
    entries.extend([
        ("model".into(), json!(plan.model.display().to_string())),
        ("method".into(), json!(plan.method)),
        ("nonfinite".into(), json!(plan.nonfinite)),
        ("precision".into(), json!(plan.precision)),
        ("layers".into(), json!(layers)),
    ]);
    entries
}

fn file(path: &str, bytes: u64) -> Value {
    json!({ "path": path, "bytes": bytes })
}
