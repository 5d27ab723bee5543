//! Reports for the tests of their renderings.

use super::{InputFile, InputFiles, LayerReport, Report, SCHEMA_VERSION, SiteReport};
use crate::element::Element;
use crate::factors::{Start, Strength};
use crate::method::Options;
use crate::rank::{Limits, Policy};
use crate::simd::Precision;
use crate::spread::Spread;

pub(super) fn layer(module: &str, rank: usize) -> LayerReport {
    LayerReport {
        module: module.into(),
        block: None,
        tensor: format!("{module}.weight"),
        site: "in".into(),
        outputs: 1536,
        inputs: 384,
        rank,
        energy_kept: 0.8125,
        energy: 2.0,
        energy_exact: true,
        strength: 0.0625,
        shift: 0.05,
        empty_units: 0,
        singular_values: vec![12.5, 3.0],
        residual: 0.0,
        seconds: 0.5,
    }
}

/// A block of a module, such as an expert.
pub(super) fn block(module: &str, block: usize) -> LayerReport {
    LayerReport { block: Some(block), ..layer(module, 8) }
}

/// A layer with these singular values and this energy. The share that its rank keeps follows from them.
pub(super) fn spectrum(module: &str, rank: usize, values: &[f64], energy: f64) -> LayerReport {
    let kept: f64 = values.iter().take(rank).map(|value| value * value).sum();
    LayerReport {
        singular_values: values.to_vec(),
        energy,
        energy_kept: kept / energy,
        ..layer(module, rank)
    }
}

/// A report with one site of enough rows.
pub(super) fn report(layers: Vec<LayerReport>) -> Report {
    let file = |path: &str| InputFile { path: path.into(), bytes: 1000, modified: Some(0), sha256: None };
    Report {
        schema_version: SCHEMA_VERSION,
        tool_version: "0.1.0".into(),
        instruction_set: "scalar".into(),
        precision: Precision::F32,
        bf16_products: None,
        command: Some("cntlora init model".into()),
        model: "model".into(),
        inputs: InputFiles {
            checkpoint: vec![InputFile {
                sha256: Some("0123456789abcdef".into()),
                ..file("model.safetensors")
            }],
            activations: vec![file("a.safetensors")],
            source: vec![],
        },
        method: Options {
            start: Start::Update,
            strength: Strength::MaxShift(0.05),
            ranks: Policy::Fixed(8),
            limits: Limits { min: 0, max: 8, multiple: 1 },
            ..Options::default()
        },
        sites: vec![SiteReport {
            name: "in".into(),
            embedding: false,
            width: 384,
            rows: 2048,
            source_rows: None,
            skipped_rows: 0,
            zero_rows: 0,
            source_zero_rows: 0,
            damping: 0.01,
            spread: Some(Spread { mean_square: 4.0, variance: 3.0, effective_rank: 12.5, top_share: 0.25 }),
            source_spread: None,
            frechet_distance: None,
            moments_seconds: 0.25,
            constraint_seconds: 0.25,
        }],
        layers,
        skipped: vec![],
        unusable: vec![],
        trust_region: None,
        element: Element::F32,
        parameters: 23040,
        seconds: 1.25,
    }
}
