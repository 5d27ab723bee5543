//! The parts of the iteration.

use super::*;
use crate::oracle::orthonormal;
use crate::random::gaussian;

const SIDE: usize = 80;

fn basis(columns: usize, name: &str) -> Mat<f32> {
    dense::to_f32(orthonormal(SIDE, columns, 0, name).as_ref())
}

fn orthonormalized(block: Mat<f32>, basis: &Mat<f32>) -> Orthonormalized {
    let scale = block.norm_l2();
    let fresh = |count| gaussian(SIDE, count, 1, "fresh");
    orthonormalize(block, basis.as_ref(), scale, fresh, Par::Seq).unwrap()
}

/// For every block, its terms multiply back to it, and the new directions are orthonormal to each other and to the basis.
#[test]
fn blocks_that_the_basis_spans_in_part() {
    let old = basis(12, "old");
    let inside = &old * gaussian::<f32>(12, 6, 2, "inside");
    let outside = gaussian::<f32>(SIDE, 6, 3, "outside");
    let repeated = Mat::from_fn(SIDE, 6, |i, j| outside[(i, j % 2)]);
    let half = Mat::from_fn(SIDE, 6, |i, j| if j < 3 { inside[(i, j)] } else { outside[(i, j)] });
    // The part outside is below the rounding of the part inside.
    let noisy = &inside + &outside * faer::Scale(1e-8f32);
    // Coordinates that are in the basis already, with noise.
    let unit = Mat::from_fn(SIDE, 6, |i, j| f32::from(u8::from(i == j)));
    let blocks = [inside, outside, repeated, half, noisy, unit, Mat::zeros(SIDE, 6)];
    for (kept, block) in [0, 6, 2, 3, 0, 6, 0].into_iter().zip(blocks) {
        let step = orthonormalized(block.clone(), &old);
        let error = (&old * &step.inside + &step.q * &step.remainder - &block).norm_max();
        assert!(error <= 2e-6 * block.norm_l2(), "{kept} kept: the block is off by {error:e}");
        let all = Mat::from_fn(SIDE, 18, |i, j| if j < 12 { old[(i, j)] } else { step.q[(i, j - 12)] });
        assert!(defect(&all, Par::Seq) < 2e-6, "{kept} kept: {:e}", defect(&all, Par::Seq));
        let rows = (0..6).filter(|i| step.remainder.row(*i).norm_max() > 0.0).count();
        assert_eq!(rows, kept, "directions of the block that are no noise");
    }
}

/// Noise above the threshold whose direction is that of the basis: the second projection finds it.
#[test]
fn noise_in_the_directions_of_the_basis() {
    // The basis is a rotation of 12 coordinates, so rounding errors of the projection lie in those coordinates.
    let turn = dense::to_f32(orthonormal(12, 12, 4, "turn").as_ref());
    let old = Mat::from_fn(SIDE, 12, |i, j| if i % 6 == 0 && i / 6 < 12 { turn[(i / 6, j)] } else { 0.0 });
    let block = &old * gaussian::<f32>(12, 6, 5, "inside");
    let fresh = |count| gaussian(SIDE, count, 1, "fresh");
    // No threshold for noise.
    let step = orthonormalize(block, old.as_ref(), 0.0, fresh, Par::Seq).unwrap();
    let all = Mat::from_fn(SIDE, 18, |i, j| if j < 12 { old[(i, j)] } else { step.q[(i, j - 12)] });
    assert!(defect(&all, Par::Seq) < 2e-6, "{:e}", defect(&all, Par::Seq));
}

/// The check refuses vectors that are not orthonormal, and singular values that are not those of the operator.
#[test]
fn the_check_refuses_wrong_triplets() {
    let (left, right) = (basis(6, "left"), basis(6, "right"));
    let values = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0];
    let scaled = Mat::from_fn(SIDE, 6, |i, j| left[(i, j)] * values[j] as f32);
    let matrix = scaled * right.transpose();
    let found = |u: &Mat<f32>, s: [f64; 6], v: &Mat<f32>| {
        let (u, s, v, basis) = (u.clone(), s.to_vec(), v.clone(), right.clone());
        let found = Found { u, s, v, basis, captured: 91.0, residual: 0.0 };
        check(&matrix.as_ref(), found, 0, "layer", Par::Seq).unwrap()
    };
    let right_answer = found(&left, values, &right).expect("right triplets pass");
    assert!(right_answer.residual < 1e-6 && (right_answer.energy - 91.0).abs() < 1e-3);
    let twice = |q: &Mat<f32>| Mat::from_fn(SIDE, 6, |i, j| q[(i, j.min(4))]);
    assert!(found(&twice(&left), [6.0, 5.0, 4.0, 3.0, 2.0, 2.0], &twice(&right)).is_none());
    assert!(found(&left, [7.0, 5.0, 4.0, 3.0, 2.0, 1.0], &right).is_none());
    let mut turned = left.clone();
    turned.col_mut(0).copy_from(left.col(0) * faer::Scale(-1f32));
    assert!(found(&turned, values, &right).is_none());
}

/// Copies of a value can be missing only if as many were found as a block is wide, and smaller values follow.
#[test]
fn missing_copies_are_detected() {
    assert!(may_miss_copies(&[3.0, 3.0, 3.0, 1.0], 3));
    assert!(may_miss_copies(&[4.0, 3.0, 3.0, 2.9999, 1.0], 3));
    assert!(!may_miss_copies(&[3.0, 3.0, 3.0, 3.0], 3));
    assert!(!may_miss_copies(&[3.0, 3.0, 2.0, 1.0], 3));
    assert!(!may_miss_copies(&[3.0, 3.0], 3));
    assert!(!may_miss_copies(&[0.0; 5], 3));
}
