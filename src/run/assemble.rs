//! The end of a run: ranks, factors and the report.

use super::site::{DecomposedLayer, FinishedSite};
use super::{Outcome, ranks, shift, unusable};
use crate::adapter::Adapter;
use crate::factors::{Factors, LayerShape, Strength};
use crate::method::Options;
use crate::plan::Plan;
use crate::rank::Policy;
use crate::report::{InputFiles, LayerReport, Report, SCHEMA_VERSION, UnusableSite};
use crate::simd::{Precision, Tier};
use crate::storage::{Problem, Problems, quoted};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// Chooses the ranks from the spectra of all layers, and makes the factors, with the threads of the current pool.
pub(super) fn assemble(
    plan: &Plan,
    files: InputFiles,
    sites: Vec<FinishedSite<'_>>,
    started: Instant,
) -> Result<Outcome, Problems> {
    let (mut reports, mut unusable) = (Vec::new(), Vec::new());
    let mut layers: Vec<DecomposedLayer<'_>> = Vec::new();
    for site in sites {
        layers.extend(site.layers);
        match site.found {
            Ok(report) => reports.push(report),
            Err(site) => unusable.push(site),
        }
    }
    drop_incomplete(&mut layers, &unusable);
    if !unusable.is_empty() && (plan.strict || layers.is_empty()) {
        return Err(Problems(unusable.iter().map(|site| unusable::refusal(site, plan.strict)).collect()));
    }
    layers.sort_by(|a, b| a.planned.name.cmp(&b.planned.name));
    let ranks = ranks::allocate(&layers, &plan.method).map_err(|error| {
        let option = if matches!(plan.method.ranks, Policy::Budget(_)) { "--budget" } else { "--rank" };
        Problem::usage(error.to_string()).help(format!("give a larger {option}, or a smaller --min-rank"))
    })?;
    let adapted = layers.iter().zip(&ranks).filter(|(_, rank)| **rank > 0).map(|(layer, _)| layer);
    let trust_region = shift::divide(&plan.method, adapted);
    let mut options = plan.method.clone();
    if let Some(trust_region) = trust_region {
        options.strength = Strength::MaxShift(trust_region.layer);
    }
    let finished = layers
        .par_iter()
        .zip(ranks)
        .map(|(layer, rank)| finish(layer, rank, &options))
        .collect::<Result<Vec<_>, _>>()?;

    let shaped = plan.layers().filter(|layer| layer.shape != LayerShape::Linear);
    let mut adapter = Adapter {
        layers: BTreeMap::new(),
        shapes: shaped.map(|layer| (layer.name.clone(), layer.shape.clone())).collect(),
        components: BTreeMap::new(),
        scale: plan.method.scale,
        base: plan.model.display().to_string(),
    };
    let mut layer_reports = Vec::new();
    for (report, factors) in finished {
        if let Some(factors) = factors {
            adapter.layers.insert(report.name(), factors);
        }
        layer_reports.push(report);
    }
    let seconds = started.elapsed().as_secs_f64();
    let report = Report {
        schema_version: SCHEMA_VERSION,
        tool_version: env!("CARGO_PKG_VERSION").into(),
        instruction_set: Tier::best().name().into(),
        precision: plan.precision,
        bf16_products: (plan.precision == Precision::Bf16).then(|| plan.precision.products_name().into()),
        command: None,
        model: plan.model.clone(),
        inputs: files,
        method: plan.method.clone(),
        sites: reports,
        element: plan.element,
        parameters: layer_reports
            .iter()
            .map(|layer| (layer.rank * (layer.inputs + layer.outputs)) as u64)
            .sum(),
        layers: layer_reports,
        skipped: plan.skipped.clone(),
        unusable,
        trust_region,
        seconds,
    };
    Ok(Outcome { adapter, report })
}

/// Removes all blocks of modules that have a block without a usable site: PEFT adapts all blocks of a module, or none.
fn drop_incomplete(layers: &mut Vec<DecomposedLayer<'_>>, unusable: &[UnusableSite]) {
    let left_out: BTreeSet<&str> =
        unusable.iter().flat_map(|site| &site.modules).map(String::as_str).collect();
    layers.retain(|layer| !left_out.contains(layer.planned.name.module.as_str()));
}

/// The report of a layer, and its factors; no factors for rank 0.
fn finish(
    layer: &DecomposedLayer<'_>,
    rank: usize,
    options: &Options,
) -> Result<(LayerReport, Option<Factors>), Problem> {
    let started = Instant::now();
    let DecomposedLayer { site, planned, draft, seconds } = layer;
    let made = match rank {
        0 => None,
        _ => {
            let made = draft.initialize(rank, options);
            Some(made.map_err(|error| Problem::data(error.to_string()).in_tensor(&planned.tensors()))?)
        }
    };
    let report = LayerReport {
        module: planned.name.module.clone(),
        block: planned.name.block,
        tensor: planned.tensors(),
        site: (*site).into(),
        outputs: planned.outputs,
        inputs: planned.inputs,
        rank,
        energy_kept: draft.as_layer(options.start).energy_kept(rank),
        energy: draft.energy(),
        energy_exact: draft.energy_exact(),
        strength: made.as_ref().map_or(0.0, |made| made.strength),
        shift: made.as_ref().map_or(0.0, |made| made.shift),
        empty_units: made.as_ref().map_or(0, |made| made.empty_units),
        singular_values: draft.spectrum().to_vec(),
        residual: draft.residual(),
        seconds: seconds + started.elapsed().as_secs_f64(),
    };
    let (layer, kept) = (quoted(&planned.name.to_string()), report.energy_kept);
    tracing::debug!(%layer, rank, kept, strength = report.strength, "made factors");
    Ok((report, made.map(|made| made.factors)))
}
