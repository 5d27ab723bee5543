//! Snapshots of whole reports.

use super::super::testing::{block, layer, report, spectrum};
use super::super::{LayerReport, Report, SiteReport, TrustRegion, UnusableSite};
use super::*;
use crate::element::Element;
use crate::factors::Start;
use crate::plan::Skipped;
use expect_test::expect;

/// A layer whose rank 8 keeps half of the update.
fn half(module: &str, rank: usize) -> LayerReport {
    spectrum(module, rank, &[1.0; 16], 16.0)
}

#[test]
fn linear_layers() {
    let mut report = report(vec![
        half("encoder.layer.0.attention.self.query", 8),
        half("encoder.layer.11.intermediate.dense", 4),
    ]);
    report.trust_region = Some(TrustRegion { model: 0.1, depth: 4, layer: 0.05 });
    expect![[r#"
        module                                   shape  rank    kept    at 2×    at 4×  strength  shift
        encoder.layer.0.attention.self.query  1536×384     8  50.0 %  100.0 %        –    0.0625  5.0 %
        encoder.layer.11.intermediate.dense   1536×384     4  25.0 %   50.0 %  100.0 %    0.0625  5.0 %

        2 layers, 23040 parameters, 92.2 kB, ranks 4 to 8, update start, 1.2 s
        2048 tokens of fine-tuning activations, a row per token at every site
        update kept on average: 37.5 %, 75.0 % at 2× the rank
        update kept at 4× the rank: unknown beyond 16 singular values per layer
        shift of the model: about 10.0 % at most, 5.0 % for each of 4 layers that follow one another

        Advice: Use --budget, which would keep 50.0 % of an update on average instead of
        37.5 % with the same number of parameters.
    "#]]
    .assert_eq(&render(&report));
}

#[test]
fn layers_sites_and_rows_that_were_left_out() {
    let mut report = report(vec![half("q", 8), half("x", 0)]);
    report.skipped =
        vec![Skipped { name: "conv\u{1b}[31m".into(), reason: "its weight is not a matrix".into() }];
    report.unusable = vec![UnusableSite {
        name: "0.in".into(),
        modules: vec!["0.q".into(), "0.k\n".into()],
        reason: "all activations are zero".into(),
        remedy: "record more".into(),
    }];
    report.sites[0].skipped_rows = 3;
    expect![[r#"
        module     shape  rank    kept    at 2×  strength  shift
        q       1536×384     8  50.0 %  100.0 %    0.0625  5.0 %
        x       1536×384     0       –        –         –      –

        1 layer, 23040 parameters, 92.2 kB, rank 8, update start, 1.2 s
        2048 tokens of fine-tuning activations, a row per token at every site
        update kept on average: 25.0 %, 50.0 % at 2× the rank
        update kept at 4× the rank: unknown beyond 16 singular values per layer
        left out: x: rank 0
        left out: conv\u{1b}[31m: its weight is not a matrix
        left out: 0.q, 0.k\n: site 0.in: all activations are zero
        left out: 3 rows of site in: NaN or infinity

        Advice: Record site "0.in" again, because 2 modules have no adapter without it.
    "#]]
    .assert_eq(&render(&report));
}

#[test]
fn other_starts_have_no_strength_and_no_shift() {
    let mut report = report(vec![half("q", 16), half("v", 8)]);
    report.layers[1].energy_kept = 0.25;
    report.method.start = Start::Mirrored;
    expect![[r#"
        module     shape  rank     kept    at 2×    at 4×
        q       1536×384    16  100.0 %  100.0 %        –
        v       1536×384     8   25.0 %   50.0 %  100.0 %

        2 layers, 23040 parameters, 92.2 kB, ranks 8 to 16, mirrored start, 1.2 s
        2048 tokens of fine-tuning activations, a row per token at every site
        update kept on average: 62.5 %, 75.0 % at 2× the rank
        update kept at 4× the rank: unknown beyond 16 singular values per layer

        Advice: Use rank 30 for all layers to keep 93.8 % of an update on average
        instead of 62.5 %.
    "#]]
    .assert_eq(&render(&report));
}

#[test]
fn methods_without_an_update_have_no_shares() {
    let layer = |module| LayerReport {
        energy_kept: 1.0,
        singular_values: vec![0.0; 8],
        energy: 0.0,
        ..layer(module, 8)
    };
    let mut report = report(vec![layer("q"), layer("v")]);
    report.method.method = Method::Lora;
    report.method.start = Start::Zero;
    report.sites[0].rows = 0;
    expect![[r#"
        module     shape  rank
        q       1536×384     8
        v       1536×384     8

        2 layers, 23040 parameters, 92.2 kB, rank 8, zero start, 1.2 s, lora

        Advice: Choose the rank as for plain LoRA, because this method does not measure
        how much a rank keeps.
    "#]]
    .assert_eq(&render(&report));
}

#[test]
fn methods_that_take_other_components_have_no_shares() {
    let mut report = report(vec![half("q", 8)]);
    report.method.method = Method::Milora;
    report.method.start = Start::Residual;
    expect![[r#"
        module     shape  rank
        q       1536×384     8

        1 layer, 23040 parameters, 92.2 kB, rank 8, residual start, 1.2 s, milora
        2048 tokens of fine-tuning activations, a row per token at every site

        Advice: Choose the rank as for plain LoRA, because this method does not measure
        how much a rank keeps.
    "#]]
    .assert_eq(&render(&report));
}

#[test]
fn the_experts_of_a_module_are_one_row() {
    let mut layers = vec![half("model.layers.12.self_attn.q_proj", 8)];
    for module in ["model.layers.12.mlp.experts.down_proj", "model.layers.12.mlp.experts.gate_up_proj"] {
        layers.extend((0..128_usize).map(|number| LayerReport {
            site: format!("experts.{number}"),
            block: Some(number),
            energy: 16.0 + number as f64,
            energy_kept: 4.0 / (16.0 + number as f64),
            ..half(module, 8)
        }));
    }
    let mut report = report(layers);
    let site = report.sites[0].clone();
    report.sites.extend((0..128).map(|number| SiteReport {
        name: format!("experts.{number}"),
        rows: 2000 + 10 * number,
        ..site.clone()
    }));
    report.method.start = Start::Mirrored;
    report.layers[0].energy_kept = 0.25;
    expect![[r#"
        module                                    blocks     shape       rows  rank    kept   at 2×    at 4×
        model.layers.12.mlp.experts.down_proj        128  1536×384  2000–3270     8   5.1 %  10.1 %   20.3 %
        model.layers.12.mlp.experts.gate_up_proj     128  1536×384  2000–3270     8   5.1 %  10.1 %   20.3 %
        model.layers.12.self_attn.q_proj               –  1536×384       2048     8  25.0 %  50.0 %  100.0 %
        Modules with blocks: ranges of rows and ranks, medians of the other figures.

        257 layers, 23040 parameters, 92.2 kB, rank 8, mirrored start, 1.2 s
        2048 tokens of fine-tuning activations
        update kept on average: 7.0 %, 14.0 % at 2× the rank, 28.1 % at 4× the rank

        Advice: Consider a higher rank if memory allows, because twice the rank would
        keep 14.0 % of an update on average instead of 7.0 %.
    "#]]
    .assert_eq(&render(&report));
}

#[test]
fn experts_of_rank_0_are_one_line() {
    let mut report = report(vec![half("q", 8)]);
    report.layers.extend((0..128_usize).map(|number| LayerReport {
        rank: 0,
        energy_kept: 0.0,
        energy: 0.0,
        ..block("experts.up", number)
    }));
    expect![[r#"
        module      blocks     shape  rank    kept    at 2×  strength  shift
        experts.up     128  1536×384     0       –        –         –      –
        q                –  1536×384     8  50.0 %  100.0 %    0.0625  5.0 %
        Modules with blocks: ranges of rows and ranks, medians of the other figures.

        1 layer, 23040 parameters, 92.2 kB, rank 8, update start, 1.2 s
        2048 tokens of fine-tuning activations, a row per token at every site
        update kept on average: 50.0 %, 100.0 % at 2× the rank
        update kept at 4× the rank: unknown beyond 16 singular values per layer
        left out: experts.up: rank 0 in 128 of 128 blocks

        Advice: Use rank 15 for all layers to keep 93.8 % of an update on average
        instead of 50.0 %.
    "#]]
    .assert_eq(&render(&report));
}

#[test]
fn embeddings_count_tokens() {
    let mut report = report(vec![half("q", 8), LayerReport { site: "words".into(), ..half("words", 8) }]);
    let words = SiteReport {
        name: "words".into(),
        embedding: true,
        width: 30_000,
        rows: 3000,
        ..report.sites[0].clone()
    };
    report.sites.push(words);
    expect![[r#"
        module     shape         rows  rank    kept    at 2×  strength  shift
        q       1536×384         2048     8  50.0 %  100.0 %    0.0625  5.0 %
        words   1536×384  3000 tokens     8  50.0 %  100.0 %    0.0625  5.0 %

        2 layers, 23040 parameters, 92.2 kB, rank 8, update start, 1.2 s
        3000 tokens of fine-tuning activations
        update kept on average: 50.0 %, 100.0 % at 2× the rank
        update kept at 4× the rank: unknown beyond 16 singular values per layer

        Advice: Use rank 15 for all layers to keep 93.8 % of an update on average
        instead of 50.0 %.
    "#]]
    .assert_eq(&render(&report));
}

#[test]
fn units_without_a_singular_value_are_counted() {
    let report = report(vec![LayerReport { empty_units: 6, ..half("q", 8) }, half("v", 4)]);
    expect![[r#"
        module     shape  rank    kept    at 2×    at 4×  strength  shift
        q       1536×384     8  50.0 %  100.0 %        –    0.0625  5.0 %
        v       1536×384     4  25.0 %   50.0 %  100.0 %    0.0625  5.0 %

        2 layers, 23040 parameters, 92.2 kB, ranks 4 to 8, update start, 1.2 s
        2048 tokens of fine-tuning activations, a row per token at every site
        update kept on average: 37.5 %, 75.0 % at 2× the rank
        update kept at 4× the rank: unknown beyond 16 singular values per layer
        6 units of rank in 1 layer without a singular value: a zero column in B, an orthonormal row in A

        Advice: Use a smaller rank, because 6 of 12 units of rank have no singular
        value.
    "#]]
    .assert_eq(&render(&report));
}

#[test]
fn the_summary_names_methods_precisions_and_sizes() {
    let mut report = Report { element: Element::F16, ..report(vec![half("q", 8)]) };
    report.method.method = Method::Pissa;
    report.precision = Precision::Bf16;
    report.seconds = 150.0;
    expect!["1 layer, 23040 parameters, 46.1 kB, rank 8, update start, 2.5 min, precision bf16 (bf16 dot products), pissa"]
        .assert_eq(&summary(&report));
    report.layers.clear();
    expect!["0 layers, 23040 parameters, 46.1 kB, no ranks, update start, 2.5 min, precision bf16 (bf16 dot products), pissa"]
        .assert_eq(&summary(&report));
}
