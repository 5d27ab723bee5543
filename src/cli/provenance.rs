//! What `cntlora.json` says of an adapter: where it came from. The same inputs and options give the same bytes, so
//! there is no time, date, duration or number of threads in it.

use cntlora::adapter::record_heading;
use cntlora::plan::{Inputs, Plan, Recording};
use cntlora::report::Report;
use cntlora::storage::Source;
use serde_json::{Map, Value, json};

/// The provenance of the adapter that a run gave.
pub fn provenance(plan: &Plan, inputs: &Inputs, report: &Report) -> Map<String, Value> {
    let mut entries = of_report(plan, report);
    entries.insert("activations".into(), json!([]));
    entries.insert("source".into(), json!([]));
    if let Some(target) = &inputs.target {
        insert_recording(&mut entries, target, "activations", "moments");
    }
    if let Some(source) = &inputs.source {
        insert_recording(&mut entries, source, "source", "source_moments");
    }
    entries
}

/// The files that rows came from, and the files of their moments, where those took their place.
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

fn of_report(plan: &Plan, report: &Report) -> Map<String, Value> {
    let layers: Vec<Value> = report
        .layers
        .iter()
        .filter(|layer| layer.rank > 0)
        .map(|layer| {
            json!({
                "module": layer.module,
                "tensor": layer.tensor,
                "rank": layer.rank,
                "energy_kept": layer.energy_kept,
                "strength": layer.strength,
                "singular_values": layer.singular_values,
            })
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
