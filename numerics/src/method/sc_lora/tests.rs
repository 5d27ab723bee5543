//! Directions that hard inputs leave open, and the size of the numbers. Agreement with the definition is in the battery and in `peers.rs`.

use super::*;
use crate::constraint::Evidence;
use crate::initializer::Initializer;
use crate::method::{Method, Options};
use crate::random::gaussian;
use crate::rank::{Limits, Policy};

const RANK: usize = 4;

fn options(beta: f64) -> Options {
    Options {
        method: Method::ScLora,
        start: Start::Residual,
        beta: Some(beta),
        ranks: Policy::Fixed(RANK),
        limits: Limits { min: 0, max: RANK, multiple: 1 },
        ..Options::default()
    }
}

fn factors(target: &Mat<f32>, source: &Mat<f32>, weight: &Mat<f32>, beta: f64) -> Factors {
    let [target, source] = [target, source].map(|rows| Moments::of(rows.as_ref()).unwrap());
    let evidence = Evidence { target: &target, source: Some(&source), change: None };
    let site = Initializer::new(options(beta)).unwrap().site(evidence).unwrap();
    site.layer("layer", weight.as_ref()).unwrap().factors().unwrap()
}

/// The largest deviation of `BᵀB` from the identity.
fn from_orthonormal(b: &Mat<f32>) -> f64 {
    let b = dense::to_f64(b.as_ref());
    (b.transpose() * &b - Mat::<f64>::identity(b.ncols(), b.ncols())).norm_max()
}

/// With `β = 1`, no output is better than one that the pre-training activations reach, so a tall weight gets directions that it does
/// not reach: `A` is zero there. Of a wide weight, the least outputs remain.
#[test]
fn outputs_that_the_weight_does_not_reach_come_before_those_that_count_against_it() {
    let rows = gaussian::<f32>(50, 6, 0, "rows");
    let tall = gaussian::<f32>(9, 6, 1, "tall");
    let Factors { a, b } = factors(&rows, &rows, &tall, 1.0);
    assert!(from_orthonormal(&b) < 1e-6);
    // Three of nine outputs are not reached.
    let lengths: Vec<f32> = a.row_iter().map(|row| row.norm_l2()).collect();
    assert!(lengths[..3].iter().all(|length| *length < 1e-5) && lengths[3] > 0.1, "{lengths:?}");
    let wide = gaussian::<f32>(5, 6, 1, "wide");
    let Factors { a, b } = factors(&rows, &rows, &wide, 1.0);
    assert!(from_orthonormal(&b) < 1e-6 && a.row_iter().all(|row| row.norm_l2() > 0.1));
}

/// Weights of rank 0 and 1 have no more than that many directions of their own. The others are orthonormal, and their rows of `A` are zero.
#[test]
fn weights_of_lower_rank_than_the_adapter() {
    let target = gaussian::<f32>(50, 6, 0, "target");
    let source = gaussian::<f32>(50, 6, 1, "source");
    for (outputs, inputs) in [(9, 6), (5, 6), (6, 6)] {
        for rank in [0, 1] {
            let weight =
                gaussian::<f32>(outputs, rank, 2, "left") * gaussian::<f32>(rank, inputs, 3, "right");
            for beta in [0.0, 0.3] {
                let Factors { a, b } = factors(&target, &source, &weight, beta);
                let label = format!("{outputs} × {inputs} of rank {rank}, β = {beta}");
                assert!(from_orthonormal(&b) < 1e-6, "{label}");
                let product = dense::to_f64(b.as_ref()) * dense::to_f64(a.as_ref());
                let error = (product - dense::to_f64(weight.as_ref())).norm_l2();
                assert!(error <= 1e-5 * f64::from(weight.norm_l2()), "{label}: {error:e}");
            }
        }
    }
}

/// Moments of any size give the same factors.
#[test]
fn activations_of_any_scale() {
    let rows = |name: &str, scale: f32| {
        let rows = gaussian::<f32>(60, 7, 0, name);
        Mat::from_fn(60, 7, |i, j| scale * rows[(i, j)] / (j + 1) as f32)
    };
    for outputs in [5, 9] {
        let weight = gaussian::<f32>(outputs, 7, 1, "weight");
        let made = |scale| factors(&rows("target", scale), &rows("source", scale), &weight, 0.4);
        let wanted = made(1.0);
        for exponent in [-56, 36] {
            let found = made((exponent as f32).exp2());
            let error = (&found.b - &wanted.b).norm_max().max((&found.a - &wanted.a).norm_max());
            assert!(error < 1e-5, "{outputs} outputs, 2^{exponent}: {error:e}");
        }
    }
}

/// Tokens: the second moments are diagonal. The vocabulary is larger than the number of tokens that occur.
#[test]
fn embeddings_are_those_of_rows_of_unit_vectors() {
    let counts = |step: u64| (0..11).map(|token| (step * token) % 5).collect::<Vec<u64>>();
    let rows = |counts: &[u64]| {
        let tokens: Vec<usize> =
            counts.iter().enumerate().flat_map(|(token, count)| vec![token; *count as usize]).collect();
        Mat::from_fn(tokens.len(), 11, |i, j| f32::from(u8::from(tokens[i] == j)))
    };
    let (target, source) = (counts(2), counts(3));
    let weight = gaussian::<f32>(6, 11, 4, "weight");
    let wanted = factors(&rows(&target), &rows(&source), &weight, 0.5);
    let [target, source] = [target, source].map(|counts| Counts::new(counts).unwrap());
    let tokens = crate::constraint::TokenEvidence { target: &target, source: Some(&source) };
    let site = Initializer::new(options(0.5)).unwrap().site(tokens).unwrap();
    let found = site.layer("layer", weight.as_ref()).unwrap().factors().unwrap();
    assert!((found.b - wanted.b).norm_max() < 1e-5 && (found.a - wanted.a).norm_max() < 1e-5);
}

/// No site is made without pre-training activations, from those of another width, or from zeros.
#[test]
fn pre_training_activations_that_cannot_be_used_are_refused() {
    let target = Moments::of(gaussian::<f32>(20, 5, 0, "rows").as_ref()).unwrap();
    let site = |source: Option<&Moments>| {
        let evidence = Evidence { target: &target, source, change: None };
        Initializer::new(options(0.5)).unwrap().site(evidence).map(drop).unwrap_err()
    };
    let other = Moments::of(gaussian::<f32>(20, 4, 0, "rows").as_ref()).unwrap();
    let zero = Moments::of(Mat::<f32>::zeros(20, 5).as_ref()).unwrap();
    let texts = [site(None), site(Some(&other)), site(Some(&zero)), site(Some(&Moments::new(5)))];
    expect_test::expect![[r#"
        the method sc-lora needs pre-training activations
        width of the pre-training activations: expected 5, found 4
        all pre-training activations are zero: there is nothing to initialize from
        there are no rows to take statistics of"#]]
    .assert_eq(&texts.map(|error| error.to_string()).join("\n"));
}
