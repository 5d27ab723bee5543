//! What `cntlora.json` says of an adapter: where it came from. The same inputs and options give the same bytes, so
//! there is no time, date, duration or number of threads in it.

use cntlora::activations::ActivationSet;
use cntlora::plan::{Inputs, Plan};
use cntlora::report::Report;
use cntlora::storage::Source;
use serde_json::{Map, Value, json};

/// Version of this structure.
const VERSION: u32 = 1;

/// The provenance of the adapter that a run gave.
pub fn provenance(plan: &Plan, inputs: &Inputs, report: &Report) -> Map<String, Value> {
    let mut entries = of_report(plan, report);
    entries.insert("activations".into(), files(inputs.target.files()));
    entries.insert("source".into(), files(inputs.source.as_ref().map_or(&[], ActivationSet::files)));
    entries
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
    Map::from_iter([
        ("format".into(), json!("cntlora-adapter")),
        ("version".into(), json!(VERSION)),
        ("tool_version".into(), json!(report.tool_version)),
        ("model".into(), json!(plan.model.display().to_string())),
        ("method".into(), json!(plan.method)),
        ("nonfinite".into(), json!(plan.nonfinite)),
        ("precision".into(), json!(plan.precision)),
        ("layers".into(), json!(layers)),
    ])
}

fn files(sources: &[Source]) -> Value {
    sources
        .iter()
        .map(|source| json!({ "path": source.path().display().to_string(), "bytes": source.length() }))
        .collect()
}
