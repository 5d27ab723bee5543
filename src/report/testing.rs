//! Reports for the tests of their renderings.

use super::{InputFile, InputFiles, LayerReport, Report, SCHEMA_VERSION, SiteReport};
use crate::element::Element;
use crate::factors::{Start, Strength};
use crate::method::Options;
use crate::plan::Skipped;
use crate::rank::{Limits, Policy};
use crate::simd::Precision;
use crate::spread::Spread;

pub(super) fn layer(module: &str, rank: usize) -> LayerReport {
    LayerReport {
        module: module.into(),
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

pub(super) fn report(layers: Vec<LayerReport>) -> Report {
    let file = |path: &str| InputFile { path: path.into(), bytes: 1000, modified: Some(0), sha256: None };
    Report {
        schema_version: SCHEMA_VERSION,
        tool_version: "0.1.0".into(),
        instruction_set: "scalar".into(),
        precision: Precision::F32,
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
            width: 384,
            rows: 97,
            source_rows: None,
            skipped_rows: 3,
            damping: 0.01,
            spread: Some(Spread { mean_square: 4.0, variance: 3.0, effective_rank: 12.5, top_share: 0.25 }),
            source_spread: None,
            frechet_distance: None,
            moments_seconds: 0.25,
            constraint_seconds: 0.25,
        }],
        layers,
        skipped: vec![Skipped { name: "conv\u{1b}[31m".into(), reason: "its weight is not a matrix".into() }],
        unusable: vec![],
        trust_region: None,
        element: Element::F32,
        parameters: 23040,
        seconds: 1.25,
    }
}
