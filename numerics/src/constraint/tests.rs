//! The identities of the method, on small problems with known answers.

use super::*;
use crate::error::Error;
use crate::moments::Moments;
use crate::random::gaussian;
use faer::{Mat, Par};
use quickcheck::quickcheck;

/// Mean eigenvalue: `tr M / d`.
fn trace_mean(matrix: &Mat<f64>) -> f64 {
    matrix.diagonal().column_vector().iter().sum::<f64>() / matrix.nrows() as f64
}

const TERMS: Terms = Terms {
    coupling: Coupling::Transport,
    preserve: 0.0,
    ridge: 1e-7,
    channel_scale: ChannelScale::Mean,
    shrinkage: Shrinkage::None,
};

/// Correlated rows about a mean.
fn sample(rows: usize, width: usize, seed: u64, mean: f32) -> Mat<f32> {
    let mixing = gaussian::<f32>(width, width, seed, "mixing") * faer::Scale(0.3);
    let rows = gaussian::<f32>(rows, width, seed, "rows") * (mixing + Mat::<f32>::identity(width, width));
    Mat::from_fn(rows.nrows(), width, |i, j| rows[(i, j)] + mean * (j % 3) as f32)
}

fn centred(rows: &Mat<f32>) -> Mat<f32> {
    let mean = |j| rows.col(j).sum() / rows.nrows() as f32;
    Mat::from_fn(rows.nrows(), rows.ncols(), |i, j| rows[(i, j)] - mean(j))
}

fn moments(rows: &Mat<f32>) -> Moments {
    Moments::of(rows.as_ref()).unwrap()
}

fn constraint(target: &Moments, source: Option<&Moments>, terms: Terms) -> Constraint {
    Constraint::new(Evidence { target, source, change: None }, terms, Par::Seq).unwrap()
}

/// `(K − C) L⁻¹`, the update of a layer with `W = I`.
fn update(constraint: &Constraint) -> Mat<f32> {
    let width = constraint.width();
    constraint.apply(Norm::Weights, Mat::identity(width, width).as_ref(), Par::Seq)
}

fn all_terms() -> impl Iterator<Item = (Terms, Norm)> {
    let couplings = [Coupling::Transport, Coupling::Uncorrelated];
    couplings.into_iter().flat_map(|coupling| {
        [0.0, 0.5].into_iter().flat_map(move |preserve| {
            let terms = Terms { coupling, preserve, ridge: 0.01, ..TERMS };
            [Norm::Activations, Norm::Weights].into_iter().map(move |norm| (terms, norm))
        })
    })
}

/// On centred data the transported inputs have exactly the source statistics.
#[test]
fn transport_takes_the_target_to_the_source() {
    let (x, z) = (centred(&sample(400, 8, 1, 0.0)), centred(&sample(300, 8, 2, 0.0)));
    let (x, z) = (moments(&x), moments(&z));
    let moved = update(&constraint(&x, Some(&z), TERMS)) + Mat::<f32>::identity(8, 8);
    let moved = Mat::from_fn(8, 8, |i, j| f64::from(moved[(i, j)]));
    let image = &moved * x.second_moment().unwrap() * moved.transpose();
    assert!((image - z.second_moment().unwrap()).norm_max() < 1e-4);
}

/// Without source activations the transported inputs are white, with their original mean variance.
#[test]
fn transport_without_a_source_whitens() {
    let x = moments(&centred(&sample(400, 8, 1, 0.0)));
    let second = x.second_moment().unwrap();
    let moved = update(&constraint(&x, None, TERMS)) + Mat::<f32>::identity(8, 8);
    let moved = Mat::from_fn(8, 8, |i, j| f64::from(moved[(i, j)]));
    let image = &moved * &second * moved.transpose();
    let white = Mat::<f64>::identity(8, 8) * faer::Scale(trace_mean(&second));
    assert!((image - white).norm_max() < 1e-4);
}

/// Independent and centred activations: the best update removes the layer's response.
#[test]
fn uncorrelated_centred_activations_remove_the_layer() {
    let x = moments(&centred(&sample(400, 8, 1, 0.0)));
    let terms = Terms { coupling: Coupling::Uncorrelated, ..TERMS };
    let removed = update(&constraint(&x, None, terms)) + Mat::<f32>::identity(8, 8);
    assert!(removed.norm_max() < 1e-4);
}

/// Paired activations: the normal equations of least squares, `(I + Δ) C = K`.
#[test]
fn paired_activations_are_least_squares() {
    let x = sample(400, 8, 1, 1.0);
    let z = sample(400, 8, 2, 0.5);
    let cross = z.transpose() * &x;
    let cross = Mat::from_fn(8, 8, |i, j| f64::from(cross[(i, j)]) / 400.0);
    let change = (&z - &x).transpose() * &x;
    let change = Mat::from_fn(8, 8, |i, j| f64::from(change[(i, j)]) / 400.0);
    let (x, z) = (moments(&x), moments(&z));
    let evidence = Evidence { target: &x, source: Some(&z), change: Some(change.as_ref()) };
    let terms = Terms { coupling: Coupling::Paired, ..TERMS };
    let moved = update(&Constraint::new(evidence, terms, Par::Seq).unwrap()) + Mat::<f32>::identity(8, 8);
    let moved = Mat::from_fn(8, 8, |i, j| f64::from(moved[(i, j)]));
    assert!((moved * x.second_moment().unwrap() - cross).norm_max() < 1e-4);
}

/// A larger weight of preservation reduces the change for pre-training inputs.
#[test]
fn preservation_reduces_the_change_of_the_source() {
    let (x, z) = (moments(&sample(400, 8, 1, 1.0)), moments(&sample(300, 8, 2, 0.5)));
    let second = z.second_moment().unwrap();
    let mut last = f64::INFINITY;
    for preserve in [0.0, 1.0, 100.0] {
        let update = update(&constraint(&x, Some(&z), Terms { preserve, ..TERMS }));
        let update = Mat::from_fn(8, 8, |i, j| f64::from(update[(i, j)]));
        let change = trace_mean(&(&update * &second * update.transpose()));
        assert!(change < 0.5 * last, "{preserve}: {change} after {last}");
        last = change;
    }
}

quickcheck! {
    /// `⟨u, M v⟩ = ⟨Mᵀ u, v⟩`, for every combination of terms.
    fn apply_transpose_is_the_transpose_of_apply(width: u8, seed: u64, measured: bool) -> bool {
        let width = usize::from(width % 12) + 2;
        let (x, z) = (moments(&sample(50, width, seed, 1.0)), moments(&sample(40, width, !seed, 0.5)));
        all_terms().all(|(terms, norm)| {
            let constraint = constraint(&x, measured.then_some(&z), terms);
            let identity = Mat::<f32>::identity(width, width);
            let matrix = constraint.apply(norm, identity.as_ref(), Par::Seq);
            let transpose = constraint.apply_transpose(norm, identity.as_ref(), Par::Seq);
            (&matrix - transpose.transpose()).norm_max() < 1e-3 * (1.0 + matrix.norm_max())
        })
    }

    /// The two norms differ by `F`: `M_activations = M_weights F`, with `F Fᵀ = C + λI` as `leave_norm` inverts it.
    fn norms_differ_by_the_metric(width: u8, seed: u64, measured: bool) -> bool {
        let width = usize::from(width % 12) + 2;
        let (x, z) = (moments(&sample(50, width, seed, 1.0)), moments(&sample(40, width, !seed, 0.5)));
        all_terms().filter(|(_, norm)| *norm == Norm::Activations).all(|(terms, norm)| {
            let constraint = constraint(&x, measured.then_some(&z), terms);
            let mut rows = constraint.apply_transpose(norm, Mat::<f32>::identity(width, width).as_ref(), Par::Seq);
            constraint.leave_norm(norm, rows.as_mut(), Par::Seq);
            let matrix = constraint.apply(Norm::Weights, Mat::<f32>::identity(width, width).as_ref(), Par::Seq);
            (rows.transpose() - &matrix).norm_max() < 1e-3 * (1.0 + matrix.norm_max())
        })
    }

    /// `tr(W C Wᵀ)` and `aᵀ C a` against their definitions over the rows.
    fn energies_are_mean_squares(width: u8, outputs: u8, seed: u64) -> bool {
        let (width, outputs) = (usize::from(width % 9) + 2, usize::from(outputs % 9) + 1);
        let x = sample(60, width, seed, 1.0);
        let constraint = constraint(&moments(&x), None, TERMS);
        let weight = gaussian::<f32>(outputs, width, seed, "weight");
        let responses = &x * weight.transpose();
        let mean_square = |j: usize| f64::from(responses.col(j).squared_norm_l2()) / 60.0;
        let all: f64 = (0..outputs).map(mean_square).sum();
        let each = constraint.activation_energy(weight.transpose(), Par::Seq);
        (constraint.output_energy(weight.as_ref(), Par::Seq) - all).abs() < 1e-4 * all
            && each.iter().enumerate().all(|(j, energy)| (energy - mean_square(j)).abs() < 1e-4 * (1e-3 + mean_square(j)))
    }
}

/// Fewer rows than columns and almost no damping: the damping is raised and recorded.
#[test]
fn damping_is_raised_until_the_factorization_works() {
    let x = moments(&sample(5, 40, 1, 0.0));
    let terms = Terms { coupling: Coupling::Uncorrelated, ridge: 1e-18, ..TERMS };
    let constraint = constraint(&x, None, terms);
    let damping = constraint.dampings().largest();
    assert!(damping > 1e-17 && damping < 1e-2, "{damping}");
    assert!(update(&constraint).norm_max().is_finite());
}

/// Activations that give nothing to initialize from are refused with the reason, and do not give an adapter of noise.
#[test]
fn activations_without_variation_are_refused() {
    let refusal = |rows: Mat<f32>, terms| {
        let target = moments(&rows);
        let evidence = Evidence { target: &target, source: None, change: None };
        Constraint::new(evidence, terms, Par::Seq).unwrap_err()
    };
    let zero = Error::NoVariation { what: "all activations are zero" };
    let constant = Error::NoVariation { what: "all rows of activations are equal" };
    let tiny = Error::NoVariation { what: "the squares of the activations are too small for f32" };
    let huge = Error::NonFinite { what: "second moment of the activations" };
    assert_eq!(refusal(Mat::zeros(9, 4), TERMS), zero);
    assert_eq!(refusal(sample(9, 4, 0, 0.3) * faer::Scale(1e-21), TERMS), tiny);
    assert_eq!(refusal(sample(9, 4, 0, 0.3) * faer::Scale(1e-30), TERMS), tiny);
    assert_eq!(refusal(sample(9, 4, 0, 0.3) * faer::Scale(1e25), TERMS), huge);
    assert_eq!(refusal(Mat::from_fn(9, 4, |_, j| 0.1 + j as f32 / 3.0), TERMS), constant);
    assert_eq!(
        refusal(sample(9, 4, 0, 0.3), Terms { coupling: Coupling::Paired, ..TERMS }),
        Error::MissingSource
    );
    // In every coupling, also if a formula would give an update of zero.
    for coupling in [Coupling::Transport, Coupling::Uncorrelated, Coupling::Paired] {
        let terms = Terms { coupling, ..TERMS };
        assert_eq!(refusal(Mat::from_fn(9, 4, |_, j| 0.1 + j as f32 / 3.0), terms), constant);
        assert_eq!(refusal(sample(1, 4, 0, 0.3), terms), constant);
    }

    let (target, source) = (moments(&sample(9, 4, 0, 0.0)), moments(&sample(9, 3, 0, 0.0)));
    let evidence = Evidence { target: &target, source: Some(&source), change: None };
    let shape = Error::Shape { what: "width of the source activations", expected: 4, found: 3 };
    assert_eq!(Constraint::new(evidence, TERMS, Par::Seq).unwrap_err(), shape);
    let evidence = Evidence { target: &Moments::new(4), source: None, change: None };
    assert_eq!(Constraint::new(evidence, TERMS, Par::Seq).unwrap_err(), Error::NoRows);
}

/// Constant and copied columns are legal.
#[test]
fn degenerate_columns_are_damped() {
    let base = sample(200, 6, 3, 1.0);
    let rows = Mat::from_fn(200, 8, |i, j| match j {
        6 => 2.5,
        7 => base[(i, 0)],
        _ => base[(i, j)],
    });
    for (terms, _) in all_terms() {
        let constraint = constraint(&moments(&rows), None, terms);
        assert_eq!(constraint.dampings().largest(), 0.01);
        assert!(update(&constraint).norm_max().is_finite());
    }
}

/// The Fréchet distance agrees with closed forms: zero to itself, the length of a shift, and the difference of the scales times the root
/// of the variance. Other couplings do not compute it.
#[test]
fn frechet_distances_of_shifts_and_scales() {
    let rows = sample(400, 6, 1, 1.0);
    let changed =
        |scale: f32, shift: f32| moments(&Mat::from_fn(rows.nrows(), 6, |i, j| scale * rows[(i, j)] + shift));
    let x = changed(1.0, 0.0);
    let terms = Terms { ridge: 0.01, ..TERMS };
    let distance = |z: &Moments| constraint(&x, Some(z), terms).frechet_distance().unwrap();
    let mean = x.mean().unwrap();
    let damped =
        1.01 * (x.second_moment().unwrap() - &mean * mean.transpose()).diagonal().column_vector().sum();
    assert!(distance(&x) < 1e-3 * damped.sqrt());
    assert!((distance(&changed(1.0, 2.0)) - 2.0 * 6f64.sqrt()).abs() < 1e-3);
    let scaled = (mean.squared_norm_l2() + damped).sqrt();
    assert!((distance(&changed(2.0, 0.0)) - scaled).abs() < 1e-3 * scaled);
    assert_eq!(constraint(&x, None, terms).frechet_distance(), None);
    let uncorrelated = Terms { coupling: Coupling::Uncorrelated, ..terms };
    assert_eq!(constraint(&x, Some(&x), uncorrelated).frechet_distance(), None);
}

/// Every ridge terminates: legal ones give a result, the others are refused. The same holds for every weight of preservation.
#[test]
fn every_ridge_terminates() {
    let (few, many) = (moments(&sample(5, 12, 1, 0.5)), moments(&sample(90, 12, 1, 0.5)));
    for coupling in [Coupling::Transport, Coupling::Uncorrelated] {
        let make = |target, ridge, preserve| {
            let terms = Terms { coupling, ridge, preserve, ..TERMS };
            Constraint::new(Evidence { target, source: None, change: None }, terms, Par::Seq)
        };
        for target in [&few, &many] {
            for ridge in [f64::from_bits(1), 1e-300, 1e-18, 1e-9, 1.0] {
                let dampings = make(target, ridge, 0.0).unwrap().dampings();
                assert!(dampings.largest() >= ridge && dampings.largest() < 1e-9_f64.max(2.0 * ridge));
            }
            for ridge in [0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300, 1.5] {
                let refused = make(target, ridge, 0.0).unwrap_err();
                assert!(matches!(refused, Error::Option { what: "the ridge", .. }), "{ridge}: {refused}");
            }
            for preserve in [-1.0, f64::NAN, f64::INFINITY] {
                let refused = make(target, 0.01, preserve).unwrap_err();
                assert!(
                    matches!(refused, Error::Option { what: "the preservation weight", .. }),
                    "{refused}"
                );
            }
        }
    }
    for ridge in [0.0, f64::NAN, f64::INFINITY, 1e300] {
        assert!(matches!(damped_second_moment(&many, ridge, Par::Seq), Err(Error::Option { .. })), "{ridge}");
    }
}

/// Each damping has the name of its matrix: the covariance if there is one, the metric if it is not the denominator.
#[test]
fn dampings_have_names() {
    let x = moments(&sample(90, 12, 1, 0.5));
    let names = |terms| {
        let dampings = constraint(&x, None, terms).dampings();
        dampings.named().map(|(name, damping)| (name, damping / terms.ridge)).collect::<Vec<_>>()
    };
    let (covariance, second, metric) =
        ("covariance of the activations", "second moment of the activations", "metric of the activations");
    let terms = Terms { ridge: 0.01, ..TERMS };
    assert_eq!(names(terms), [(covariance, 1.0), (second, 1.0)]);
    let terms = Terms { coupling: Coupling::Uncorrelated, preserve: 1.0, ..terms };
    assert_eq!(names(terms), [(second, 1.0), (metric, 1.0)]);
}
